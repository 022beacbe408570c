//! `MasterActor` and `SlaveActor` in a simulated world, in virtual time: the test plays everybody else, or what their
//! disks do.

#![allow(clippy::unwrap_used)]

mod handover;
mod logged;
mod lowered;
mod master;
mod peer;
mod refused;
mod several;
mod slave;
mod trio;
