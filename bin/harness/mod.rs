//! The load-test harness. See `docs/HARNESS.md`.

#![allow(dead_code)]

pub(crate) mod plots;
pub(crate) mod record;
pub(crate) mod report;
