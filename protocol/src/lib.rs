//! The deterministic half of dsm.

pub mod command;
pub mod frame;
pub mod history;
pub mod ids;
pub mod lock_file;
pub mod machine;
pub mod message;
pub mod record;
pub mod resp;
