//! The log of a master: who appends to it, who follows it, and who may lead.
//!
//! The log is one file that two masters of one machine share: [`shared_file`].

pub mod shared_file;
