//! The machines held to `docs/ARCHITECTURE.md`: transcripts of one behaviour each, and properties under a random
//! driver.

mod properties;
mod world;
