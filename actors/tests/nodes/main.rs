//! `MasterActor` and `SlaveActor`, each alone in a simulated world: the test plays everybody else, in virtual time.

#![allow(clippy::unwrap_used)]

mod master;
mod peer;
mod slave;
