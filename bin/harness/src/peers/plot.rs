//! The pictures of docs/BENCHMARKS.md, made from the same medians as its tables.

use super::super::plots::named::{bars, Named};
use super::plan::{Cell, Peer};
use super::record::{PeerRun, PeersRecord};
use super::table::View;
use std::path::Path;

/// The most loads in one picture.
const PANELS_MAX: usize = 6;

/// Draws them into `directory`, which is made if it is missing.
///
/// # Errors
/// When nothing was measured, or a file cannot be written.
pub(crate) fn draw(record: &PeersRecord, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let view = View { record };
    let cells = cells(record);
    let machine = format!(
        "{} cores, {} rounds; each answer verified, {} keys, values of {} bytes; medians",
        record.system.cores, record.rounds, record.keys, record.value_bytes
    );
    let panels = |of: fn(&PeerRun) -> f64| -> Vec<Named> {
        let panel = |cell: &Cell| Named {
            title: cell.title(),
            values: view
                .peers()
                .iter()
                .map(|peer| (peer.title().to_owned(), view.median(*peer, *cell, of)))
                .collect(),
        };
        cells.iter().map(panel).collect()
    };
    let own = Peer::Dsm.title();
    let throughput = panels(|run| run.throughput_rps);
    let subtitle = vec![machine.clone()];
    bars(
        "Throughput beside the peers",
        subtitle,
        "operations/s",
        own,
        &throughput,
        &directory.join("peers_throughput"),
    )?;
    let slowest = panels(|run| run.read.p99.max(run.write.p99) as f64);
    let subtitle = vec![
        machine,
        "The 99th percentile of reads or of writes, whichever is higher. Lower is better.".to_owned(),
    ];
    bars("Latency beside the peers", subtitle, "p99 (µs)", own, &slowest, &directory.join("peers_latency"))
}

/// The loads that are drawn: all, or of many the ones with fifty connections.
fn cells(record: &PeersRecord) -> Vec<Cell> {
    let mut cells = record.cells.clone();
    if cells.len() > PANELS_MAX {
        cells.retain(|cell| cell.connections == 50);
    }
    cells.truncate(PANELS_MAX);
    cells
}
