//! The command line: every option with its unit, the spelling with one dash, and what contradicts itself.

use super::access::AccessFiles;
use super::driver::StoreProtocol;
use super::fault::FaultPlan;
use super::keys::Distribution;
use super::record::LoadSettings;
use super::sweep::{self, Dimension, Name};
use super::value::Texts;
use clap::{Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The most connections of a run: about as many as one address has ports for.
const CONNECTIONS_MAX: u32 = 60_000;

/// The most bytes of values in one batch.
const BATCH_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The most bytes of values in flight on all connections: each has them in a buffer.
const IN_FLIGHT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// The lowest and the highest rate of an open loop. Beyond, requests would be due at the same nanoseconds, or never.
const RATE: std::ops::RangeInclusive<f64> = 0.001..=1e8;

const EXAMPLES: &str = "Examples:
  dsm-test-harness --slaves 5 --clients 18
      starts a primary, a backup and 5 slaves, and loads them for 30 s after a warm-up of 5 s
  dsm-test-harness --slaves 3 --clients 10 --think 0 --check
      loads the cluster as fast as it answers, and checks that the history is linearizable
  dsm-test-harness --slaves 3 --clients 10 --rate 5000 --fault kill-primary@10s,restart-primary@15s
      sends 5000 requests a second, and measures how long a failover interrupts them
  dsm-test-harness --target 127.0.0.1:12345,127.0.0.1:12346 --clients 50 --write-pct 50
      loads a running cluster, whose keys key0 to key999 are overwritten
  dsm-test-harness --target 127.0.0.1:6379 --think 0 --pipeline 16
      loads Redis in the same way
  dsm-test-harness --tls --secrets --fault kill-primary@10s+2s
      the same for a cluster in which all speak TLS and show who they are
  dsm-test-harness --target HOST:12345 --tls-ca ca.pem --tls-cert me.crt --tls-key me.key
      loads a running cluster by TLS
  dsm-test-harness --sweep slaves=1..9 --sweep clients=1,2,5,10,20,50 --duration 10s
      runs each combination, on a new cluster each

Exit codes: 0 measured, and every answer was right; 1 an answer was wrong, an acknowledged write was
lost, the check failed, --max-error-rate was exceeded, no request succeeded, or nothing could be
measured; 2 wrong usage.

docs/HARNESS.md explains the columns of results.csv, the fields of run.json, and the faults.";

/// Loads its own cluster, or any store that speaks the Redis protocol, verifies every answer, and measures.
///
/// Without --target it starts a cluster of real processes on free ports in a temporary directory, which it removes at the
/// end. Long options may be written with one dash: -slaves 5 -clients 18.
#[derive(Clone, Debug, Parser)]
#[command(name = "dsm-test-harness", version, after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Number of slaves of the cluster, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64),
          help_heading = "Store")]
    pub slaves: u32,

    /// Load this running store instead: HOST:PORT,HOST:PORT, tried in this order
    #[arg(long, value_name = "ADDR,ADDR", value_delimiter = ',', value_parser = dsm::address::to_connect_by_tcp, help_heading = "Store",
          conflicts_with_all = ["slaves", "placement", "fsync", "data"])]
    pub target: Vec<String>,

    /// Protocol of the store; etcd and ZooKeeper only if the harness was built with the feature `peers`
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        default_value = "resp",
        help_heading = "Store",
        requires_if("etcd", "target"),
        requires_if("zookeeper", "target"),
        requires_if("zookeeper-local", "target")
    )]
    pub protocol: StoreProtocol,

    /// How the slaves of a write are chosen
    #[arg(long, value_name = "POLICY", default_value = "hash", value_parser = ["hash", "random"],
          help_heading = "Store")]
    pub placement: String,

    /// When a write counts as written to the log
    #[arg(long, value_name = "POLICY", default_value = "always", value_parser = ["always", "everysec", "never"],
          help_heading = "Store")]
    pub fsync: String,

    /// Directory in which the cluster's own directory is created [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    pub data: Option<PathBuf>,

    /// Have all nodes and connections of the cluster speak TLS, with certificates made for the run
    #[arg(long, help_heading = "Store", conflicts_with = "target")]
    pub tls: bool,

    /// Have the nodes and native clients of the cluster prove secrets, and the load give a password, all made for the run
    #[arg(long, help_heading = "Store", conflicts_with = "target")]
    pub secrets: bool,

    #[command(flatten)]
    pub access: AccessFiles,

    /// Number of clients, each with connections of its own
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000),
          help_heading = "Load")]
    pub clients: u32,

    /// Number of connections of each client
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000),
          help_heading = "Load")]
    pub pool: u32,

    /// Number of different keys: with 1000, key0 to key999
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Load")]
    pub keys: u32,

    /// Text that each key begins with
    #[arg(long, value_name = "TEXT", default_value = "key", help_heading = "Load")]
    pub key_prefix: String,

    /// How the key of a request is chosen
    #[arg(long, value_name = "DISTRIBUTION", value_enum, default_value = "uniform", help_heading = "Load")]
    pub distribution: Distribution,

    /// Exponent s of --distribution zipf
    #[arg(long, value_name = "S", default_value_t = 0.99, help_heading = "Load")]
    pub zipf_exponent: f64,

    /// Share of writes among all requests, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 30.0, help_heading = "Load")]
    pub write_pct: f64,

    /// Length of each value, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, help_heading = "Load")]
    pub value_bytes: u32,

    /// Pause of a connection between an answer and its next request; 0: no pause
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = duration, help_heading = "Load")]
    pub think: Duration,

    /// Requests per second of all connections together, sent at fixed times whatever the store does (open loop).
    ///
    /// The latency of a request counts from the time at which it was due. --think is not used.
    #[arg(long, value_name = "RPS", help_heading = "Load")]
    pub rate: Option<f64>,

    /// Number of requests that each connection has in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000),
          help_heading = "Load")]
    pub pipeline: u32,

    /// Send WAIT N 1000 after each SET, and count both as one write (for Redis with replicas)
    #[arg(long, value_name = "N", help_heading = "Load")]
    pub wait: Option<u32>,

    /// How long an answer may take, or a connection to open; then the connection is closed
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration, help_heading = "Load")]
    pub timeout: Duration,

    /// Number of threads that send requests
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256),
          help_heading = "Load")]
    pub threads: u32,

    /// Seed of the random choices [default: a random one, noted in run.json]
    #[arg(long, value_name = "NUMBER", help_heading = "Load")]
    pub seed: Option<u64>,

    /// How long to load the store before the measurement
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration, help_heading = "Measurement")]
    pub warmup: Duration,

    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration, help_heading = "Measurement")]
    pub duration: Duration,

    /// Faults to cause, each with its time since the start of the measurement: kill-primary@10s,pause-slave:2@20s+3s
    ///
    /// A fault is kill-, restart-, pause- or resume- with primary, backup or slave:N, or failover-request. With +DURATION, a
    /// kill or a pause is undone after that time.
    #[arg(
        long,
        value_name = "FAULTS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Measurement"
    )]
    pub fault: FaultPlan,

    /// Record every request, and check that the history is linearizable
    #[arg(long, help_heading = "Measurement")]
    pub check: bool,

    /// Most requests that --check records, in 48 bytes of memory each; later ones are not checked
    #[arg(long, value_name = "N", default_value_t = 5_000_000, help_heading = "Measurement")]
    pub check_max: u64,

    /// Run once for each value, as in slaves=1..9 or clients=1,2,5; given again, run each combination.
    ///
    /// NAME is slaves, clients, pool, pipeline, write-pct or value-bytes.
    #[arg(long, value_name = "NAME=VALUES", help_heading = "Measurement")]
    pub sweep: Vec<Dimension>,

    /// When to measure how each --placement spreads 10,000 writes over 9 slaves, on a new cluster each.
    ///
    /// It takes some seconds, and is not done with --target.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value = "after",
        default_missing_value = "only",
        help_heading = "Measurement"
    )]
    pub placement_experiment: PlacementExperiment,

    /// Directory for results.csv, run.json, the plots and the report
    #[arg(
        long,
        visible_alias = "out",
        value_name = "DIR",
        default_value = "results",
        help_heading = "Output"
    )]
    pub output: PathBuf,

    /// Print only errors and warnings
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,

    /// Largest share of failed requests, in percent; with more, the exit code is 1
    #[arg(long, value_name = "PERCENT", help_heading = "Output")]
    pub max_error_rate: Option<f64>,

    #[command(flatten)]
    pub log: dsm_server::cli::LogArgs,

    /// Further flags for both masters, after `--`
    #[arg(last = true, value_name = "MASTER_FLAGS", conflicts_with = "target")]
    pub master_flags: Vec<OsString>,
}

/// When the placement experiment is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlacementExperiment {
    /// After the runs
    After,
    /// Instead of the runs; the flag without a value means this
    Only,
    /// Never
    Never,
}

impl dsm_server::cli::Flags for Options {
    fn validate(&self) -> Result<(), String> {
        let percent = |name: &str, value: f64| {
            if (0.0..=100.0).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} must be from 0 to 100"))
            }
        };
        percent("--write-pct", self.write_pct)?;
        percent("--max-error-rate", self.max_error_rate.unwrap_or(0.0))?;
        if self.key_prefix.bytes().any(|byte| byte == b':' || !byte.is_ascii_graphic()) {
            return Err("--key-prefix must be visible ASCII without a colon".to_owned());
        }
        if self.rate.is_some_and(|rate| !RATE.contains(&rate)) {
            return Err(format!("--rate must be from {} to {}", RATE.start(), RATE.end()));
        }
        if !(self.zipf_exponent.is_finite() && self.zipf_exponent >= 0.0) {
            return Err("--zipf-exponent must be 0 or above".to_owned());
        }
        if self.duration.is_zero() || self.timeout.is_zero() {
            return Err("--duration and --timeout must be above 0".to_owned());
        }
        if !self.target.is_empty() && self.sweep.iter().any(|dimension| dimension.name == Name::Slaves) {
            return Err("--sweep slaves needs a cluster of the harness, not --target".to_owned());
        }
        if !self.target.is_empty() && self.fault.touches_processes() {
            return Err(
                "--fault needs a cluster of the harness, not --target (but for failover-request)".to_owned()
            );
        }
        if self.protocol != StoreProtocol::Resp && self.access != AccessFiles::default() {
            return Err(format!(
                "--tls-ca, --tls-cert, --tls-key and --password-file are not for --protocol {}",
                self.protocol
            ));
        }
        if self.placement_experiment == PlacementExperiment::Only {
            let with = [
                (!self.target.is_empty(), "--target"),
                (!self.sweep.is_empty(), "--sweep"),
                (!self.fault.is_empty(), "--fault"),
                (self.check, "--check"),
            ];
            if let Some((_, other)) = with.into_iter().find(|(given, _)| *given) {
                return Err(format!("--placement-experiment runs nothing else, so {other} cannot be given"));
            }
        }
        if let Some(late) = self.fault.first_after(self.duration) {
            return Err(format!("--fault {late} would strike after the end of --duration"));
        }
        for point in self.points(0)? {
            self.validate_point(&point).map_err(|why| match self.sweep.is_empty() {
                true => why,
                false => format!("in a run of --sweep: {why}"),
            })?;
        }
        Ok(())
    }
}

impl Options {
    /// Reads the command line. What is wrong with it is told in one line; then there is nothing to do but to end.
    ///
    /// # Errors
    /// The exit code: 2 for wrong usage, 0 for help and version.
    pub(crate) fn from_command_line(words: impl IntoIterator<Item = OsString>) -> Result<Options, ExitCode> {
        let options: Options = dsm_server::cli::parse(words)?;
        if options.target.is_empty() {
            // Before anything is started.
            let flags = masters_with(&options.fsync, &options.placement, &options.master_flags);
            crate::roles::value_max(&flags)?;
        }
        Ok(options)
    }
    fn validate_point(&self, point: &LoadSettings) -> Result<(), String> {
        let shortest = Texts::value_bytes_min(&self.key_prefix, point.keys);
        if (point.value_bytes as usize) < shortest {
            return Err(format!(
                "--value-bytes must be at least {shortest}: a value names its key and its writer"
            ));
        }
        if u64::from(point.value_bytes) * u64::from(point.pipeline) > BATCH_BYTES_MAX {
            return Err(format!("--value-bytes times --pipeline must be at most {BATCH_BYTES_MAX}"));
        }
        let connections = point.clients.saturating_mul(point.pool);
        if connections > CONNECTIONS_MAX {
            return Err(format!("--clients times --pool must be at most {CONNECTIONS_MAX} connections"));
        }
        let batch_bytes = u64::from(point.value_bytes) * u64::from(point.pipeline);
        if batch_bytes * u64::from(connections) > IN_FLIGHT_BYTES_MAX {
            return Err(format!(
                "--value-bytes times --pipeline times all connections must be at most {IN_FLIGHT_BYTES_MAX}"
            ));
        }
        if self.target.is_empty() {
            self.fault.validate(point.slaves)?;
        }
        Ok(())
    }

    /// The settings of every run.
    ///
    /// # Errors
    /// When the grid makes no sense.
    pub(crate) fn points(&self, seed: u64) -> Result<Vec<LoadSettings>, String> {
        sweep::grid(&self.sweep, &self.settings(seed))
    }

    /// The settings of a single run.
    pub(crate) fn settings(&self, seed: u64) -> LoadSettings {
        let own = self.target.is_empty();
        let own_text = |text: &str| if own { text.to_owned() } else { String::new() };
        LoadSettings {
            target: (!own).then(|| self.target.join(",")),
            slaves: if own { self.slaves } else { 0 },
            clients: self.clients,
            pool: self.pool,
            keys: self.keys,
            distribution: self.distribution.to_string(),
            write_pct: self.write_pct,
            value_bytes: self.value_bytes,
            think_ms: if self.rate.is_some() { 0.0 } else { self.think.as_secs_f64() * 1000.0 },
            rate: self.rate,
            pipeline: self.pipeline,
            warmup_s: self.warmup.as_secs_f64(),
            duration_s: self.duration.as_secs_f64(),
            placement: own_text(&self.placement),
            fsync: own_text(&self.fsync),
            seed,
            timeout_s: self.timeout.as_secs_f64(),
            threads: self.threads,
            wait: self.wait,
            zipf_exponent: (self.distribution == Distribution::Zipf).then_some(self.zipf_exponent),
            key_prefix: self.key_prefix.clone(),
            protocol: self.protocol.to_string(),
            faults: self.fault.to_string(),
            tls: self.tls || self.access.ca.is_some(),
            secrets: self.secrets || self.access.password_file.is_some(),
            master_flags: self.master_flags.iter().map(|flag| flag.to_string_lossy().into_owned()).collect(),
        }
    }
}

/// The flags of a cluster's masters.
pub(crate) fn masters_with(fsync: &str, placement: &str, further: &[OsString]) -> Vec<OsString> {
    let mut flags = ["--fsync", fsync, "--placement", placement].map(OsString::from).to_vec();
    flags.extend_from_slice(further);
    flags
}

/// `10ms`, `2s`, or `0`.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use dsm_server::cli::{two_dashes, Flags as _};

    fn parse(line: &str) -> Result<Options, String> {
        let words = std::iter::once("dsm-test-harness").chain(line.split_whitespace()).map(OsString::from);
        let options = Options::try_parse_from(two_dashes(&Options::command(), words))
            .map_err(|error| error.to_string())?;
        options.validate().map(|()| options)
    }

    #[test]
    fn options_may_have_one_dash() {
        let options = parse("-slaves 5 -clients=18 -think 0 -out here -- -x --slaves").unwrap();
        assert_eq!((options.slaves, options.clients), (5, 18));
        assert_eq!((options.think, options.output), (Duration::ZERO, PathBuf::from("here")));
        assert_eq!(options.master_flags, ["-x", "--slaves"]);
    }

    #[test]
    fn the_placement_experiment_has_its_time() {
        use PlacementExperiment::{After, Never, Only};
        for (line, expected) in [
            ("", After),
            ("-placement-experiment --keys 5", Only),
            ("--placement-experiment=only", Only),
            ("--placement-experiment=never --check", Never),
            ("--placement-experiment=never --target a:1", Never),
        ] {
            assert_eq!(parse(line).unwrap().placement_experiment, expected, "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_flag() {
        for (line, named) in [
            ("--write-pct 101", "--write-pct"),
            ("--value-bytes 10", "--value-bytes"),
            ("--rate 0", "--rate"),
            ("--rate 2e8", "--rate"),
            ("--rate NaN", "--rate"),
            ("--duration 0", "--duration"),
            ("--key-prefix a:b", "--key-prefix"),
            ("--target a:1 --fault kill-primary@1s", "--fault"),
            ("--slaves 2 --fault kill-slave:3@1s", "--fault names slave:3"),
            ("--target a:1 --slaves 3", "--slaves"),
            ("--slaves 0", "--slaves"),
            ("--sweep colour=1", "colour"),
            ("--sweep value-bytes=64,10", "--value-bytes"),
            ("--sweep slaves=1..3 --fault kill-slave:3@1s", "--fault names slave:3"),
            ("--sweep clients=1 --sweep clients=2", "--sweep clients is given twice"),
            ("--sweep clients=1..999 --sweep pool=1,2", "--sweep"),
            ("--target a:1 --sweep slaves=1,2", "--sweep slaves"),
            ("--value-bytes 100000000 --pipeline 100", "--pipeline"),
            ("--value-bytes 1000000 --pipeline 100 --clients 50", "all connections"),
            ("--clients 10000 --pool 100", "--clients"),
            ("--fault nonsense", "nonsense"),
            ("--target a:1 --tls", "--tls"),
            ("--target a:1 --secrets", "--secrets"),
            ("--tls-ca ca", "--target"),
            ("--password-file word", "--target"),
            ("--target a:1 --tls-ca ca --tls-cert own", "--tls-key"),
            ("--target a:1 --tls-ca ca --tls-key own", "--tls-cert"),
            ("--target a:1 --tls-cert own --tls-key own", "--tls-ca"),
            ("--placement-experiment --check", "--check"),
            ("--placement-experiment=only --target a:1", "--target"),
            ("--placement-experiment=soon", "soon"),
            ("--duration 1s --fault kill-primary@1s", "kill-primary"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn the_settings_hold_what_a_repetition_needs() {
        let line = "--timeout 3s --threads 2 --wait 1 --distribution zipf --key-prefix k --fault \
                    kill-primary@1s+500ms,pause-slave:2@2s -- --min-slaves 2";
        let settings = parse(line).unwrap().settings(7);
        assert_eq!((settings.timeout_s, settings.threads, settings.wait), (3.0, 2, Some(1)));
        assert_eq!((settings.zipf_exponent, settings.key_prefix.as_str()), (Some(0.99), "k"));
        assert_eq!(settings.faults, "kill-primary@1s+500ms,pause-slave:2@2s");
        assert_eq!((settings.protocol.as_str(), settings.seed), ("resp", 7));
        assert_eq!(settings.master_flags, ["--min-slaves", "2"]);
        for (line, expected) in [
            ("", (false, false)),
            ("--tls --secrets", (true, true)),
            ("--target a:1 --tls-ca ca", (true, false)),
            ("--target a:1 --password-file word", (false, true)),
        ] {
            let settings = parse(line).unwrap().settings(7);
            assert_eq!((settings.tls, settings.secrets), expected, "{line}");
        }
        assert_eq!(parse("").unwrap().settings(7).zipf_exponent, None);
    }

    #[test]
    fn the_command_is_well_formed() {
        Options::command().debug_assert();
    }
}
