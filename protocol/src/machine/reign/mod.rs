//! Who a master is: when it takes over, what a log must hold before it does, when it yields.

pub mod start;
pub mod takeover;
