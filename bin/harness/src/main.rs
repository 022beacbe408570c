//! `dsm-test-harness`: loads a cluster of its own, or any store that speaks Redis' protocol, verifies every answer and
//! measures. See `--help` and `docs/HARNESS.md`.
//!
//! `dsm-test-harness one-core` measures a build beside the one before it, `dsm-test-harness cold-start` how long a master
//! needs until it serves, and with the feature `peers`, `dsm-test-harness peers` measures this store beside others; see
//! `docs/BENCHMARKS.md`.
//!
//! It runs the roles of its cluster by running itself again (`dsm-test-harness role …`, for internal use). The store
//! does not depend on this crate, so it is built without plotters, fonts and the drivers of other stores.
//!
//! This file has the order of things from the command line to the exit code.
//!
//! | module | owns |
//! |---|---|
//! | [`options`], [`fault`], [`sweep`] | the command line |
//! | [`run`] | one run from beginning to end |
//! | [`placement`] | the placement experiment |
//! | [`load`], [`driver`], [`schedule`], [`pacer`] | the requests |
//! | [`keys`], [`value`], [`ledger`], [`judge`], [`check`] | what is asked for, and whether the answer is true |
//! | [`verdict`] | what may be wrong, and its names |
//! | [`window`], [`monitor`], [`system`], [`clock`] | figures |
//! | [`one_core`] | compares a build with the previous one |
//! | [`cold_start`] | how long a master needs until it serves a log of many keys |
//! | `peers`, with the feature of that name | compares this store with others |
//! | [`instance`] | the processes of both |
//! | [`record`], [`output`], [`progress`], [`plots`], [`report`] | the results, in files and on the screen |
//! | [`access`], [`tls`], [`credentials`] | TLS and passwords of connections; what a cluster gets of both for a run |
//! | [`cluster`], [`stop`] | processes and signals |

// A blocked or closed standard error must neither delay nor end this process: print with `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod access;
mod check;
mod clock;
mod cluster;
mod cold_start;
mod credentials;
mod driver;
mod failures;
mod fault;
mod instance;
mod judge;
mod keys;
mod ledger;
mod load;
mod monitor;
mod one_core;
mod options;
mod output;
mod pacer;
#[cfg(feature = "peers")]
mod peers;
mod placement;
mod plots;
mod progress;
mod record;
mod report;
mod run;
mod schedule;
mod stop;
mod sweep;
mod system;
mod tls;
mod value;
mod verdict;
mod window;

use access::StoreAccess;
use anyhow::Context as _;
use cluster::OwnCluster;
use dsm::launcher::{LaunchError, Launcher};
use dsm_server::why_not_launched::sentence;
use dsm_server::{cli, roles};
use options::{Options, PlacementExperiment};
use plots::Plot;
use progress::Progress;
use rand::RngExt as _;
use record::{LoadSettings, RunRecord, SweepRecord, FORMAT};
use run::Setting;
use rustix::process::Resource;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use stop::StopSignal;

/// How long a point of a grid takes beside warm-up and measurement, roughly: start, first values, last reading, end.
const POINT_EXTRA_S: f64 = 2.0;

/// How long the placement experiment takes, roughly.
const PLACEMENT_S: f64 = 2.0;

/// How many lines of a node that does not start are shown.
const LAST_LINES: usize = 5;

// The roles run in this program too, and are measured with the allocator of their own binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "peers")]
    if std::env::args_os().nth(1).is_some_and(|word| word == "peers") {
        return peers::main(std::env::args_os().skip(1).collect());
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == "one-core") {
        return one_core::main(std::env::args_os().skip(1).collect());
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == "cold-start") {
        return cold_start::main(std::env::args_os().skip(1).collect());
    }
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == "role") {
        let role = words.next().unwrap_or_default();
        return roles::run(&role.to_string_lossy(), words.collect());
    }
    load_test(std::env::args_os().collect())
}

/// Runs the harness with the words of the command line.
fn load_test(words: Vec<OsString>) -> ExitCode {
    cli::outlive_file_limit();
    let options = match Options::from_command_line(words) {
        Ok(options) => options,
        Err(code) => return code,
    };
    options.log.start("warn");
    cli::finish(measure(&options), 1)
}

fn measure(options: &Options) -> anyhow::Result<ExitCode> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    let points = options.points(seed).map_err(anyhow::Error::msg)?;
    raise_descriptors();
    // Now, and not after an hour.
    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("cannot make {}", options.output.display()))?;
    let stop = StopSignal::on_signals()?;
    let mut progress = Progress::new(options.quiet);
    let alone = options.placement_experiment == PlacementExperiment::Only;
    let single = options.sweep.is_empty() && !alone;
    let mut sweep = SweepRecord { format: FORMAT, ..SweepRecord::default() };
    let mut wrong = Vec::new();
    if !alone {
        announce(options, &points, &mut progress);
        for (number, point) in points.iter().enumerate() {
            if stop.is_set() {
                break;
            }
            if !single {
                progress.label(format!("{}/{} ", number + 1, points.len()));
            }
            let mut keep = |record: &RunRecord| {
                sweep.runs.push(record.clone());
                let written = output::write(&sweep, single, &options.output);
                sweep.runs.pop();
                written
            };
            let record = match one(options, point, &stop, &mut progress, &mut keep) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) if single => return Err(error),
                Err(error) => {
                    // The other points are worth having.
                    wrong.push(format!("run {} of {}: {error:#}", number + 1, points.len()));
                    continue;
                }
            };
            let found = verdict::findings(&record, options.max_error_rate);
            wrong.extend(found.iter().map(ToString::to_string));
            let table = progress::table(&record);
            sweep.runs.push(record);
            // The files are written first, after each point, so that long work is not lost.
            if let Err(error) = leave(&sweep, single, options, plots::draw_after_point) {
                progress.warn(&format!("{error:#}"));
            }
            progress.table(&table);
        }
        progress.label(String::new());
    }
    if wants_placement(options) && !stop.is_set() {
        match placement::experiment(options, seed, &stop, &mut progress) {
            Ok(records) => sweep.placement = records,
            Err(error) if alone => return Err(error),
            // The runs are complete even if the experiment after them fails.
            Err(error) => progress.warn(&format!("no placement experiment: {error:#}")),
        }
        progress.table(&placement::table(&sweep.placement));
    }
    if sweep.runs.is_empty() && sweep.placement.is_empty() {
        wrong.push("nothing was measured".to_owned());
    } else {
        match leave(&sweep, single, options, plots::draw) {
            Ok(()) => progress.say(&format!("written to {}", options.output.display())),
            // What was found is still reported.
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    for complaint in &wrong {
        progress.error(complaint);
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the plots are drawn.
type Draw = fn(&SweepRecord, &Path) -> anyhow::Result<Vec<Plot>>;

fn leave(sweep: &SweepRecord, single: bool, options: &Options, draw: Draw) -> anyhow::Result<()> {
    output::write(sweep, single, &options.output)?;
    let plots = draw(sweep, &options.output).context("cannot draw the plots")?;
    report::write(sweep, &plots, &options.output.join("report.html")).context("cannot write the report")
}

/// Lets this process have as many connections as the system allows. Where that is too few, connections cannot be opened;
/// they count as errors, and the run warns with the reason of the first.
fn raise_descriptors() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        log::debug!("open files stay limited cause={error}");
    }
}

fn wants_placement(options: &Options) -> bool {
    options.target.is_empty() && options.placement_experiment != PlacementExperiment::Never
}

fn announce(options: &Options, points: &[LoadSettings], progress: &mut Progress) {
    if points.len() > 1 {
        let each_s = options.warmup.as_secs_f64() + options.duration.as_secs_f64() + POINT_EXTRA_S;
        let behind_s = if wants_placement(options) { PLACEMENT_S } else { 0.0 };
        let total_s = each_s * points.len() as f64 + behind_s;
        progress.say(&format!(
            "{} runs, about {:.0} min {:.0} s",
            points.len(),
            (total_s / 60.0).floor(),
            total_s % 60.0
        ));
    }
}

/// One run, with a cluster of its own or against the target; nothing, if it was interrupted before it began.
fn one(
    options: &Options,
    settings: &LoadSettings,
    stop: &StopSignal,
    progress: &mut Progress,
    keep: &mut dyn FnMut(&RunRecord) -> anyhow::Result<()>,
) -> anyhow::Result<Option<RunRecord>> {
    let settings = settings.clone();
    if !options.target.is_empty() {
        let targets = options.target.clone();
        let (access, launcher) = (StoreAccess::read(&options.access)?, None);
        let setting = Setting { options, settings, targets, access, launcher, stop, progress, keep };
        return match run::run(setting) {
            Ok(record) => Ok(Some(record)),
            Err(_) if stop.is_set() => Ok(None),
            Err(error) => Err(error),
        };
    }
    progress.say(&format!("starting a primary, a backup and {} slaves", settings.slaves));
    let Some(mut cluster) = start(options, &settings, stop)? else { return Ok(None) };
    if cluster.is_in_memory() && settings.fsync == "always" {
        progress.warn(
            "the log lies in memory (tmpfs), where a sync costs nothing: --data DIR chooses another place",
        );
    }
    let (targets, access) = (cluster.launcher().masters(), cluster.access().clone());
    let launcher = Some(cluster.launcher());
    let setting = Setting { options, settings, targets, access, launcher, stop, progress, keep };
    let result = run::run(setting);
    cluster.stop()?;
    match result {
        Ok(record) => Ok(Some(record)),
        Err(_) if stop.is_set() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts a cluster; nothing, if that was interrupted.
fn start(
    options: &Options,
    settings: &LoadSettings,
    stop: &StopSignal,
) -> anyhow::Result<Option<OwnCluster>> {
    let mut cluster = OwnCluster::prepare(settings, &options.master_flags, options.data.as_deref())?;
    stop.also_set(cluster.launcher().interruption());
    match cluster.launcher().start_all() {
        Ok(()) => Ok(Some(cluster)),
        Err(LaunchError::Interrupted) => {
            cluster.stop()?;
            Ok(None)
        }
        Err(error) => {
            // The directory with the nodes' output is removed with the cluster.
            let said = last_words(cluster.launcher(), &error);
            Err(anyhow::anyhow!(sentence(&error)))
                .with_context(|| format!("the cluster does not start{said}"))
        }
    }
}

/// What the node printed last that kept the others from starting, or else every node.
fn last_words(launcher: &Launcher, error: &LaunchError) -> String {
    let said: Vec<String> = match error {
        LaunchError::Ended { role, .. } => {
            let output = std::fs::read(launcher.output_path(*role)).unwrap_or_default();
            let output = String::from_utf8_lossy(&output).into_owned();
            let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect()
        }
        _ => {
            let said = launcher.roles().into_iter().map(|role| (role, launcher.last_output(role)));
            let said = said.filter(|(_, line)| !line.is_empty());
            said.map(|(role, line)| format!("{role}: {line}")).collect()
        }
    };
    if said.is_empty() {
        String::new()
    } else {
        format!(" (said last: {})", said.join("; "))
    }
}
