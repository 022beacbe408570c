//! Draws the plots of a sweep.

use super::record::SweepRecord;
use std::path::{Path, PathBuf};

/// A drawn plot.
#[derive(Clone, Debug)]
#[allow(dead_code)]
pub(crate) struct Plot {
    /// What it shows, in a line.
    pub title: String,
    /// What it means, in 1 to 3 sentences.
    pub explains: String,
    /// Relative to the directory of the output.
    pub png: PathBuf,
    /// Relative to the directory of the output.
    pub svg: PathBuf,
}

/// Draws every plot that applies to `sweep` below `directory`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn draw(_sweep: &SweepRecord, _directory: &Path) -> anyhow::Result<Vec<Plot>> {
    Ok(Vec::new())
}
