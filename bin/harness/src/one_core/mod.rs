//! `dsm-test-harness one-core`: a build beside the one before it and beside Redis, everything pinned to one core.
//!
//! On a machine where others compute too, the rate of a store tells more about them than about it. Here the store and the
//! load generator share one core, so that whatever a request costs lowers the rate; the builds are measured in pairs within a
//! round, so that what disturbs one disturbs the other; and beside the rate stands the processor time, which others do not
//! change.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | which stores under which loads |
//! | [`generator`] | the load |
//! | [`answer`] | keys, values, and the check of answers |
//! | [`usage`] | what the store's processes used |
//! | [`count`] | system calls and instructions |
//! | [`figures`] | the arithmetic |
//! | [`record`] | what is left behind |
//! | [`table`] | what is shown |

mod answer;
mod count;
mod figures;
mod generator;
mod plan;
mod record;
mod table;
mod usage;

use super::cluster::{OwnCluster, PROGRAMS};
use super::instance::{find, Instance};
use super::progress::Progress;
use super::record::LoadSettings;
use super::stop::StopSignal;
use super::system::{self, busy_ticks, CpuTime, TICK_S};
use anyhow::{ensure, Context as _};
use clap::Parser;
use count::CallCounter;
use generator::{Driven, Generator};
use plan::{CoreLoad, CoreStore, LoadData};
use record::{CoreFigures, CoreRecord, CoreRun, CountRecord, StoreRecord, FORMAT};
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use usage::{ServerPart, UsageSnapshot};

/// After this time nothing new is begun.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How long each system call and each instruction is counted under one load.
const COUNT_DURATION: Duration = Duration::from_millis(500);

/// How long a round takes beside its measurements, and a counting of one load on one store, roughly.
const ROUND_EXTRA_S: f64 = 3.0;
const COUNT_S: f64 = 1.0;

const EXAMPLES: &str = "Examples:
  dsm-test-harness one-core --build target/dist --base before/bin
      compares the programs in target/dist with those in before/bin and with redis-server
  dsm-test-harness one-core --load reads,mixed-16 --rounds 9
      measures two loads in 9 rounds
  dsm-test-harness one-core --tls --load reads,reads-16
      compares the build with redis-server, over TLS
  make bench-core BASE=HEAD~3
      builds the working tree and the commit HEAD~3, and compares them

Exit codes: 0 measured; 1 a measurement failed, --slower-max was exceeded, or nothing could be
measured; 2 wrong usage.

docs/BENCHMARKS.md explains the columns.";

/// Compares a build with an earlier one and with redis-server, with all processes pinned to one core.
///
/// Each round starts every store anew and measures them one after the other under each load, in a different order each round.
/// A ratio is the median of the rounds' ratios. System calls are counted in a separate pass, with strace.
#[derive(Clone, Debug, Parser)]
#[command(name = "dsm-test-harness one-core", bin_name = "dsm-test-harness one-core", version, after_help = EXAMPLES)]
struct CoreOptions {
    /// Directory of the programs to measure [default: that of this program]
    #[arg(long, value_name = "DIR")]
    build: Option<PathBuf>,

    /// Directory of the programs to compare them with [default: none]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,

    /// Loads to measure [default: all]
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    load: Vec<CoreLoad>,

    /// Number of rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// How long to measure each load on each store in each round; at most 1m
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How long to load the store before each measurement; at most 1m
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = humantime::parse_duration)]
    warmup: Duration,

    /// Measure only the loads reads, reads-16, mixed and mixed-16, in 3 rounds: about 40 s
    #[arg(long, conflicts_with_all = ["load", "rounds"])]
    quick: bool,

    /// Length of each value, from 16 bytes to 16 MiB
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(16..=16 << 20))]
    value_bytes: u32,

    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,

    /// Number of connections of all loads but one-reader and one-writer
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,

    /// Number of slaves of each cluster of dsm
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    slaves: u32,

    /// Measure also redis-server with `appendfsync always`, 2 replicas and WAIT 1, which comes closest to what dsm guarantees
    #[arg(long)]
    replicated: bool,

    /// Measure also valkey-server, which keeps nothing on disk
    #[arg(long)]
    valkey: bool,

    /// Measure all stores over TLS, with certificates made for the run
    #[arg(long)]
    tls: bool,

    /// Do not count system calls and instructions
    #[arg(long)]
    no_counts: bool,

    /// Number of the core to use, from 0 [default: the last one]
    #[arg(long, value_name = "N")]
    core: Option<usize>,

    /// Largest increase of the processor time of an operation over the base, in percent; with more, the exit code is 1.
    ///
    /// Each load is judged by the lower quartile of its rounds.
    #[arg(long, value_name = "PERCENT", requires = "base")]
    slower_max: Option<f64>,

    /// Directory in which the stores' directories are created, on the disk to be measured [default: the system's temporary
    /// directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Directory for one-core.json and one-core.csv
    #[arg(long, value_name = "DIR", default_value = "results")]
    output: PathBuf,

    #[command(flatten)]
    log: dsm_server::cli::LogArgs,
}

/// The longest measurement, and warm-up.
const DURATION_MAX: Duration = Duration::from_secs(60);

impl dsm_server::cli::Flags for CoreOptions {
    fn validate(&self) -> Result<(), String> {
        if self.duration < Duration::from_millis(10) || self.duration > DURATION_MAX {
            return Err("--duration must be 10ms to 1m".to_owned());
        }
        if self.warmup > DURATION_MAX {
            return Err("--warmup must be at most 1m".to_owned());
        }
        if self.slower_max.is_some_and(|percent| !(0.0..=1000.0).contains(&percent)) {
            return Err("--slower-max must be 0 to 1000".to_owned());
        }
        Ok(())
    }
}

/// Runs it with the words of the command line, the first of which is the program.
pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    dsm_server::cli::outlive_file_limit();
    let options: CoreOptions = match dsm_server::cli::parse(words) {
        Ok(options) => options,
        Err(code) => return code,
    };
    options.log.start("warn");
    dsm_server::cli::finish(measure(&options), 1)
}

fn measure(options: &CoreOptions) -> anyhow::Result<ExitCode> {
    // Before any thread is made: they, and all processes, inherit it.
    let core = pin(options.core)?;
    let record = CoreBench::new(options, core)?.run()?;
    writeln!(io::stdout(), "{}", table::render(&record)).context("cannot write to standard output")?;
    let mut is_good = record.ended_early.is_none() && record.runs.iter().all(|run| run.failed.is_none());
    if let Some(percent) = options.slower_max {
        for complaint in slower(&record, percent) {
            dsm_server::cli::tell(&complaint);
            is_good = false;
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The loads under which an operation costs certainly more than `percent` more processor time than in the base.
fn slower(record: &CoreRecord, percent: f64) -> Vec<String> {
    let pair = (CoreStore::Build, CoreStore::Base);
    let ratio = |load: &CoreLoad| Some((*load, table::ratio(record, *load, pair, CoreFigures::server_us)?));
    let ratios = record.loads.iter().filter_map(ratio);
    let worse = ratios.filter(|(_, ratio)| ratio.low > 1.0 + percent / 100.0);
    worse
        .map(|(load, ratio)| {
            format!(
                "{}: an operation costs {:.2} times the base's processor time (quartiles {:.2} and {:.2})",
                load.name(),
                ratio.median,
                ratio.low,
                ratio.high
            )
        })
        .collect()
}

/// Pins this thread, and what it will start, to a core; which one.
///
/// # Errors
/// When this process may not use it.
fn pin(wanted: Option<usize>) -> anyhow::Result<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).context("cannot ask for the cores")?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let core = match wanted {
        Some(core) => core,
        None => *cores.last().context("no core is allowed")?,
    };
    ensure!(cores.contains(&core), "core {core} is not one of those that this process may use: {cores:?}");
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot be pinned to core {core}"))?;
    Ok(core)
}

/// One run of the benchmark.
struct CoreBench<'a> {
    options: &'a CoreOptions,
    /// The directories of the programs.
    programs: BTreeMap<CoreStore, PathBuf>,
    stores: Vec<CoreStore>,
    record: CoreRecord,
    stop: StopSignal,
    progress: Progress,
    begun: Instant,
}

/// The stores of a round.
type Running = BTreeMap<CoreStore, Instance>;

impl<'a> CoreBench<'a> {
    fn new(options: &'a CoreOptions, core: usize) -> anyhow::Result<CoreBench<'a>> {
        let build = match &options.build {
            Some(directory) => directory.clone(),
            None => {
                let own = std::env::current_exe().context("cannot find this program's own file")?;
                own.parent().context("a program without a directory")?.to_owned()
            }
        };
        let mut programs = BTreeMap::from([(CoreStore::Build, build)]);
        programs.extend(options.base.clone().map(|base| (CoreStore::Base, base)));
        for directory in programs.values_mut() {
            for name in PROGRAMS {
                let file = directory.join(name);
                ensure!(file.is_file(), "there is no {}", file.display());
            }
            // A relative path is no program's name.
            *directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
        }
        let mut stores: Vec<CoreStore> = programs.keys().copied().collect();
        let mut remarks = Vec::new();
        if find("redis-server").is_some() {
            stores.push(CoreStore::Redis);
            stores.extend(options.replicated.then_some(CoreStore::RedisWait));
        } else {
            remarks.push("Redis is left out: not installed: Debian's package redis-server".to_owned());
        }
        if options.valkey && find("valkey-server").is_some() {
            stores.push(CoreStore::Valkey);
        } else if options.valkey {
            remarks.push("Valkey is left out: not installed: Debian's package valkey-server".to_owned());
        }
        fs::create_dir_all(&options.output)
            .with_context(|| format!("cannot make {}", options.output.display()))?;
        let (loads, rounds) = match (options.quick, options.load.is_empty()) {
            (true, _) => (CoreLoad::QUICK.to_vec(), 3),
            (false, true) => (CoreLoad::ALL.to_vec(), options.rounds),
            (false, false) => (options.load.clone(), options.rounds),
        };
        let what = |store: &CoreStore| match programs.get(store) {
            Some(directory) => directory.display().to_string(),
            None => String::new(),
        };
        let record = CoreRecord {
            format: FORMAT,
            started_at: now(),
            command_line: std::env::args().skip(1).collect(),
            system: system::describe(),
            core,
            rounds,
            warmup_s: options.warmup.as_secs_f64(),
            duration_s: options.duration.as_secs_f64(),
            keys: options.keys,
            value_bytes: options.value_bytes as usize,
            connections: options.connections,
            slaves: options.slaves,
            tls: options.tls,
            loads,
            stores: stores
                .iter()
                .map(|store| StoreRecord { store: *store, what: what(store), commands: Vec::new() })
                .collect(),
            remarks,
            ..CoreRecord::default()
        };
        let (stop, progress) = (StopSignal::on_signals()?, Progress::new(false));
        Ok(CoreBench { options, programs, stores, record, stop, progress, begun: Instant::now() })
    }

    fn run(mut self) -> anyhow::Result<CoreRecord> {
        self.announce();
        for round in 1..=self.record.rounds {
            let Some(mut running) = self.start(round)? else { break };
            for (number, load) in self.record.loads.clone().into_iter().enumerate() {
                for store in plan::order(round - 1, number, &self.stores) {
                    if let (false, Some(instance)) = (self.is_over(), running.get_mut(&store)) {
                        self.measure_one(round, load, store, instance);
                    }
                }
            }
            if round == self.record.rounds && !self.options.no_counts {
                self.count(&mut running)?;
            }
            for instance in running.into_values() {
                instance.stop()?;
            }
            // After each round, so that it survives whatever comes.
            self.save()?;
            if self.is_over() {
                break;
            }
        }
        self.record.ended_at = now();
        self.save()?;
        Ok(self.record)
    }

    fn announce(&mut self) {
        let each_s = self.record.warmup_s + self.record.duration_s;
        let pairs = (self.record.loads.len() * self.stores.len()) as f64;
        let counts_s = if self.options.no_counts { 0.0 } else { pairs * COUNT_S };
        let total_s = f64::from(self.record.rounds) * (pairs * each_s + ROUND_EXTRA_S) + counts_s;
        self.progress.say(&format!(
            "{} rounds of {} loads on {} stores, all on core {}: about {total_s:.0} s",
            self.record.rounds,
            self.record.loads.len(),
            self.stores.len(),
            self.record.core
        ));
    }

    /// Starts all stores and writes all keys to each; nothing, when it is to end.
    fn start(&mut self, round: u32) -> anyhow::Result<Option<Running>> {
        let mut running = Running::new();
        for store in plan::order(round - 1, 0, &self.stores) {
            if self.is_over() {
                return Ok(None);
            }
            self.progress.say(&format!("round {round}: starting {}", store.title()));
            let filled = self.start_one(store).and_then(|instance| {
                Generator::fill((first(&instance)?, &instance.access), self.data(), &self.stop)?;
                Ok(instance)
            });
            let instance = match filled {
                Ok(instance) => instance,
                Err(_) if self.is_over() => return Ok(None),
                Err(error) => return Err(error).with_context(|| store.title().to_owned()),
            };
            let told = self.record.stores.iter_mut().find(|told| told.store == store);
            if let Some(told) = told {
                if told.what.is_empty() {
                    told.what.clone_from(&instance.version);
                }
                told.commands.clone_from(&instance.commands);
            }
            running.insert(store, instance);
        }
        Ok(Some(running))
    }

    fn start_one(&mut self, store: CoreStore) -> anyhow::Result<Instance> {
        let parent = self.options.data.as_deref();
        if let Some(programs) = self.programs.get(&store) {
            let (slaves, tls) = (self.options.slaves, self.options.tls);
            let settings = LoadSettings { slaves, tls, ..LoadSettings::standard() };
            let cluster = OwnCluster::prepare_programs(programs, &settings, parent)?;
            let remark = "The log lies in memory (tmpfs), where a sync costs nothing: --data DIR chooses another place";
            if cluster.is_in_memory() && !self.record.remarks.iter().any(|told| told == remark) {
                self.progress.warn(remark);
                self.record.remarks.push(remark.to_owned());
            }
            return Instance::of_cluster(cluster, &self.stop);
        }
        Instance::start(parent, self.options.tls, &self.stop, |starting| match store {
            CoreStore::RedisWait => starting.redis_always(2),
            CoreStore::Valkey => starting.valkey(),
            CoreStore::Build | CoreStore::Base | CoreStore::Redis => starting.redis(),
        })
    }

    fn measure_one(&mut self, round: u32, load: CoreLoad, store: CoreStore, instance: &mut Instance) {
        let result = self.timed(load, store, instance);
        if self.stop.is_set() {
            return;
        }
        let (figures, failed) = match result {
            Ok(figures) => (figures, None),
            Err(error) => (CoreFigures::default(), Some(format!("{error:#}"))),
        };
        self.progress.say(&match &failed {
            Some(why) => format!("round {round}: {}, {}: {why}", load.name(), store.title()),
            None => format!(
                "round {round}: {}, {}: {:.0} op/s, {:.2} µs of the store's processor time each",
                load.name(),
                store.title(),
                figures.rate(),
                figures.server_us()
            ),
        });
        self.record.runs.push(CoreRun { round, load, store, failed, figures });
    }

    fn data(&self) -> LoadData {
        LoadData { keys: self.record.keys, value_bytes: self.record.value_bytes }
    }

    fn generator(&self, load: CoreLoad, store: CoreStore, instance: &Instance) -> anyhow::Result<Generator> {
        let shape = load.shape(self.record.connections);
        Generator::connect(
            (first(instance)?, &instance.access),
            shape,
            self.data(),
            store.wait(),
            rand::random(),
        )
    }

    fn timed(
        &self,
        load: CoreLoad,
        store: CoreStore,
        instance: &mut Instance,
    ) -> anyhow::Result<CoreFigures> {
        let processes = parts(instance);
        let mut generator = self.generator(load, store, instance)?;
        if !self.options.warmup.is_zero() {
            generator.run(self.options.warmup, &self.stop)?;
        }
        let core = format!("cpu{}", self.record.core);
        let busy_s = || {
            let text = fs::read_to_string("/proc/stat").unwrap_or_default();
            busy_ticks(&text, &core).unwrap_or_default() as f64 * TICK_S
        };
        let before = (UsageSnapshot::take(&processes), busy_s(), CpuTime::now());
        let driven = generator.run(self.options.duration, &self.stop)?;
        let generator_s = CpuTime::now().since(before.2).total_s();
        let busy_s = busy_s() - before.1;
        let parts = UsageSnapshot::take(&processes).since(&before.0);
        let Driven { operations, elapsed, latency_ns } = driven;
        ensure!(operations > 0, "nothing was answered");
        let mut figures = CoreFigures {
            operations,
            elapsed_s: elapsed.as_secs_f64(),
            p50_us: latency_ns.value_at_quantile(0.5) as f64 / 1e3,
            p99_us: latency_ns.value_at_quantile(0.99) as f64 / 1e3,
            parts,
            generator_s,
            others_s: 0.0,
        };
        figures.others_s = (busy_s - generator_s - figures.server_s()).max(0.0);
        Ok(figures)
    }

    /// Counts system calls and instructions under each load on each store.
    fn count(&mut self, running: &mut Running) -> anyhow::Result<()> {
        let (no_calls, no_instructions) = (count::no_calls(), count::no_instructions());
        let (with_calls, with_instructions) = (no_calls.is_none(), no_instructions.is_none());
        self.record.remarks.extend(no_calls.into_iter().chain(no_instructions));
        if !with_calls && !with_instructions {
            return Ok(());
        }
        let directory = tempfile::tempdir().context("cannot make a directory")?;
        for load in self.record.loads.clone() {
            for store in self.stores.clone() {
                let (false, Some(instance)) = (self.is_over(), running.get_mut(&store)) else { continue };
                self.progress.say(&format!("counting: {}, {}", load.name(), store.title()));
                let counted =
                    self.count_one(load, store, instance, directory.path(), (with_calls, with_instructions));
                match counted {
                    Ok(count) => self.record.counts.push(count),
                    Err(_) if self.stop.is_set() => return Ok(()),
                    // The times are measured, whatever became of the counts.
                    Err(error) => self.record.remarks.push(format!(
                        "Not counted: {}, {}: {error:#}",
                        load.name(),
                        store.title()
                    )),
                }
            }
        }
        Ok(())
    }

    fn count_one(
        &self,
        load: CoreLoad,
        store: CoreStore,
        instance: &mut Instance,
        directory: &Path,
        (with_calls, with_instructions): (bool, bool),
    ) -> anyhow::Result<CountRecord> {
        let processes = parts(instance);
        let mut generator = self.generator(load, store, instance)?;
        let mut count =
            CountRecord { load, store, operations: 0, calls: BTreeMap::new(), instructions: BTreeMap::new() };
        if with_instructions {
            let run = || Ok(generator.run(COUNT_DURATION, &self.stop)?.operations);
            count.instructions = count::count_instructions(&processes, directory, run)?;
        }
        if with_calls {
            let counter = CallCounter::start(&processes, directory, &self.stop)?;
            count.operations = generator.run(COUNT_DURATION, &self.stop)?.operations;
            count.calls = counter.finish()?;
        }
        Ok(count)
    }

    /// Whether nothing new is to be begun; why, is in the record.
    fn is_over(&mut self) -> bool {
        let why = if self.stop.is_set() {
            "interrupted by a signal".to_owned()
        } else if self.begun.elapsed() > LIMIT {
            format!("stopped after its limit of {} minutes", LIMIT.as_secs() / 60)
        } else {
            return false;
        };
        self.record.ended_early = Some(why);
        true
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.record).context("cannot put the record into JSON")?;
        for (name, bytes) in
            [("one-core.json", (text + "\n").into_bytes()), ("one-core.csv", record::csv(&self.record)?)]
        {
            let path = self.options.output.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Where clients connect.
fn first(instance: &Instance) -> anyhow::Result<&str> {
    instance.targets.first().map(String::as_str).context("a store without an address")
}

/// The store's processes, each with the part that it plays.
fn parts(instance: &mut Instance) -> Vec<(ServerPart, u32)> {
    let is_cluster = instance.is_cluster();
    let part = |number: usize| match (number, is_cluster) {
        (0, _) => ServerPart::Master,
        (1, true) => ServerPart::Standby,
        (_, _) => ServerPart::Slaves,
    };
    instance.pids().into_iter().enumerate().map(|(number, pid)| (part(number), pid)).collect()
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::usage::ThreadUsage;
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory as _;
        CoreOptions::command().debug_assert();
    }

    fn of(round: u32, store: CoreStore, cpu_s: f64) -> CoreRun {
        let parts = BTreeMap::from([(ServerPart::Master, ThreadUsage { cpu_s, ..ThreadUsage::default() })]);
        let figures = CoreFigures { operations: 1000, elapsed_s: 1.0, parts, ..CoreFigures::default() };
        CoreRun { round, load: CoreLoad::Reads, store, failed: None, figures }
    }

    #[test]
    fn a_build_is_slower_when_three_quarters_of_the_rounds_say_so() {
        let mut record = CoreRecord { rounds: 5, loads: vec![CoreLoad::Reads], ..CoreRecord::default() };
        for (round, cpu_s) in [1.0, 1.08, 1.10, 1.12, 1.5].into_iter().enumerate() {
            record.runs.push(of(round as u32 + 1, CoreStore::Build, cpu_s));
            record.runs.push(of(round as u32 + 1, CoreStore::Base, 1.0));
        }
        assert_eq!(slower(&record, 5.0).len(), 1);
        assert!(slower(&record, 5.0)[0].starts_with("reads: an operation costs 1.10 times"));
        assert!(slower(&record, 10.0).is_empty(), "a quarter is below 1.08");
    }
}
