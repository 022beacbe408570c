//! The load-test harness: the order of things from the command line to the exit code. See `docs/HARNESS.md`.
//!
//! | module | owns |
//! |---|---|
//! | [`options`], [`fault`], [`sweep`] | the command line |
//! | [`run`] | one run from beginning to end |
//! | [`load`], [`driver`], [`pacer`] | the requests |
//! | [`keys`], [`value`], [`ledger`], [`check`] | what is asked for, and whether the answer is true |
//! | [`window`], [`monitor`], [`system`], [`clock`] | figures |
//! | `peers`, with the feature of that name | this store beside others |
//! | [`record`], [`output`], [`progress`], [`plots`], [`report`] | what is left behind and shown |
//! | [`cluster`], [`stop`] | processes and signals |

pub(crate) mod check;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod driver;
pub(crate) mod fault;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod monitor;
pub(crate) mod options;
pub(crate) mod output;
pub(crate) mod pacer;
#[cfg(feature = "peers")]
pub(crate) mod peers;
pub(crate) mod placement;
pub(crate) mod plots;
pub(crate) mod progress;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod stop;
pub(crate) mod sweep;
pub(crate) mod system;
pub(crate) mod value;
pub(crate) mod window;

use anyhow::Context as _;
use cluster::OwnCluster;
use dsm::launcher::LaunchError;
use options::{Options, PlacementExperiment};
use progress::Progress;
use rand::RngExt as _;
use record::{RunRecord, Settings, SweepRecord, FORMAT};
use run::Setting;
use rustix::process::Resource;
use std::ffi::OsString;
use std::process::ExitCode;
use stop::Stop;

/// How long a point of a grid takes beside warm-up and measurement, roughly: start, first values, last reading, end.
const POINT_EXTRA_S: f64 = 2.0;

/// Runs the harness with the words of the command line.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let options = Options::from_command_line(words);
    options.log.start("warn");
    crate::common::finish(measure(&options), 1)
}

fn measure(options: &Options) -> anyhow::Result<ExitCode> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    let points = options.points(seed).map_err(anyhow::Error::msg)?;
    raise_descriptors();
    // Now, and not after an hour.
    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("cannot make {}", options.output.display()))?;
    let stop = Stop::on_signals()?;
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
            let record = match one(options, point, &stop, &mut progress) {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) if single => return Err(error),
                Err(error) => {
                    // The other points are worth having.
                    wrong.push(format!("run {} of {}: {error:#}", number + 1, points.len()));
                    continue;
                }
            };
            if !options.quiet {
                println!("{}", progress::table(&record));
            }
            sweep.runs.push(record);
            // After each point, so that an hour's work survives whatever comes.
            output::write(&sweep, single, &options.output)?;
        }
        progress.label(String::new());
    }
    if wants_placement(options) && !stop.is_set() {
        match placement::experiment(options, seed, &stop, &mut progress) {
            Ok(records) => sweep.placement = records,
            Err(error) if alone => return Err(error),
            // The runs are measured, whatever became of the experiment behind them.
            Err(error) => progress.warn(&format!("no placement experiment: {error:#}")),
        }
        if !options.quiet {
            println!("{}", placement::table(&sweep.placement));
        }
    }
    if sweep.runs.is_empty() && sweep.placement.is_empty() {
        wrong.push("nothing was measured".to_owned());
    } else {
        leave(&sweep, single, options)?;
        progress.say(&format!("written to {}", options.output.display()));
    }
    wrong.extend(sweep.runs.iter().flat_map(|run| complaints(run, options)));
    for complaint in &wrong {
        eprintln!("error: {complaint}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes all files.
fn leave(sweep: &SweepRecord, single: bool, options: &Options) -> anyhow::Result<()> {
    output::write(sweep, single, &options.output)?;
    let plots = plots::draw(sweep, &options.output).context("cannot draw the plots")?;
    report::write(sweep, &plots, &options.output.join("report.html")).context("cannot write the report")
}

/// Lets this process have as many connections as the system allows; too few are told when they are opened.
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

fn announce(options: &Options, points: &[Settings], progress: &mut Progress) {
    if points.len() > 1 {
        let each_s = options.warmup.as_secs_f64() + options.duration.as_secs_f64() + POINT_EXTRA_S;
        let total_s = each_s * points.len() as f64;
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
    settings: &Settings,
    stop: &Stop,
    progress: &mut Progress,
) -> anyhow::Result<Option<RunRecord>> {
    let settings = settings.clone();
    if !options.target.is_empty() {
        let targets = options.target.clone();
        let setting = Setting { options, settings, targets, launcher: None, stop, progress };
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
    let targets = cluster.launcher().masters();
    let setting = Setting { options, settings, targets, launcher: Some(cluster.launcher()), stop, progress };
    let result = run::run(setting);
    cluster.stop()?;
    match result {
        Ok(record) => Ok(Some(record)),
        Err(_) if stop.is_set() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts a cluster; nothing, if that was interrupted.
fn start(options: &Options, settings: &Settings, stop: &Stop) -> anyhow::Result<Option<OwnCluster>> {
    let mut cluster = OwnCluster::prepare(settings, &options.master_flags, options.data.as_deref())?;
    stop.also_set(cluster.launcher().interruption());
    match cluster.launcher().start_all() {
        Ok(()) => Ok(Some(cluster)),
        Err(LaunchError::Interrupted) => {
            cluster.stop()?;
            Ok(None)
        }
        Err(error) => Err(error).context("the cluster does not start"),
    }
}

/// Why a run makes the exit code 1.
fn complaints(run: &RunRecord, options: &Options) -> Vec<String> {
    let mut found = Vec::new();
    let totals = &run.totals;
    for (class, what) in [
        ("wrong_value", "answers had a value that was never written to their key"),
        ("stale_value", "answers had a value that had been replaced"),
        ("mangled", "answers had a value that nobody wrote, or made no sense"),
    ] {
        if let Some(count) = totals.errors.get(class) {
            found.push(format!("{count} {what} ({class})"));
        }
    }
    match &run.read_back {
        Some(back) if back.lost > 0 => found.push(format!("{} acknowledged writes are lost", back.lost)),
        Some(back) if back.mangled > 0 => {
            found.push(format!("{} keys hold at the end what nobody wrote", back.mangled));
        }
        Some(_) => {}
        None => found.push("the keys could not be read back at the end".to_owned()),
    }
    if let Some(check) = run.check.as_ref().filter(|check| check.verdict != "linearizable") {
        let example = check.counter_example.as_deref().unwrap_or_default();
        found.push(format!("the check of the history: {}\n{example}", check.verdict));
    }
    if totals.success_count == 0 && !run.interrupted {
        found.push("no request succeeded: nothing was measured".to_owned());
    }
    if let Some(max) = options.max_error_rate {
        let rate = 100.0 * totals.error_count as f64 / totals.total_requests.max(1) as f64;
        if rate > max {
            found.push(format!("{rate:.3} % of the requests failed, more than --max-error-rate {max}"));
        }
    }
    found
}
