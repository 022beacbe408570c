//! The door of a master: who comes in, by which protocol, within which limits, and the sessions of those who ask.

pub(crate) mod accept;
pub(crate) mod session;
