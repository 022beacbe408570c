//! The machines held to `docs/ARCHITECTURE.md`: transcripts of one behaviour each, and properties under a random
//! driver.

mod master_script;
mod properties;
mod scripts;
mod world;
