//! The deterministic half of dsm.

pub mod command;
pub mod frame;
pub mod ids;
pub mod message;
