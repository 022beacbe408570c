//! `dsm-log repair --from-slaves`: fetches records that the log has lost from the slaves that hold them.
//!
//! Owns the log, its locks and the note of witnesses for that time. What is taken is decided by
//! `dsm_protocol::machine::salvage`; the slaves are `dsm::salvage`'s.

use crate::{
    beside, cli, crash_kind, explain, open_locked, printable_bytes, random, read_more, save_tail,
    sync_directory, text_of, walk, write_beside, Crash, Walk, CHUNK_BYTES, EXIT_CLEAN,
};
use anyhow::{bail, Context as _};
use bytesize::ByteSize;
use clap::ValueEnum;
use dsm::address;
use dsm::config::{MasterConfig, ProtectedMode, SecretSource, TlsFiles};
use dsm::env::real::RealEnv;
use dsm::salvage::{recover_from_slaves, SalvageStore};
use dsm_protocol::ids::{ClusterId, Epoch, Millis, Reign, ReignId, Seq, Stamp};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::salvage::{
    show_stamp, Findings, Known, Salvage, SalvageOutcome, Undecided, Wishes, BEGUN_AT, BRANCHES_MAX,
    ENDED_AT, RECOVERED,
};
use dsm_protocol::message::Seen;
use dsm_protocol::record::{
    encode, encode_write_with, Operation, Position, ReignMark, Scanner, Step, SyncMode, Trailer, Verdict,
};
use dsm_protocol::witness_file::{WitnessText, NOTED_MAX};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Nothing was put back, or not everything: another run is needed.
const EXIT_UNREPAIRED: u8 = 1;

/// So much is written and synced at once, in bytes.
const GROUP_BYTES: usize = 8 << 20;

/// So much of the log is read between two looks at what slaves say, in bytes.
const SURVEYED_AT_ONCE: u64 = 1 << 20;

/// Masters, slaves and clients may come at once.
const CONNECTIONS_MAX: usize = 1000;

/// How the slaves are asked.
#[derive(clap::Args)]
pub(crate) struct SalvageArgs {
    /// Fetch the records that the log has lost from the slaves, which must be running
    #[arg(long)]
    pub(crate) from_slaves: bool,
    /// Where slaves look for masters: the addresses of --listen of both masters
    #[arg(long, requires = "from_slaves", value_name = "ADDR,ADDR", value_delimiter = ',',
          default_value = "127.0.0.1:12345,127.0.0.1:12346", value_parser = address::to_listen)]
    listen: Vec<String>,
    /// File of the secret that the slaves prove, if the cluster has one: that of --secret-file of all nodes
    #[arg(long, requires = "from_slaves", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// How many slaves the cluster has; without it, those that come within --wait are asked
    #[arg(long, requires = "from_slaves", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    slaves: Option<u8>,
    /// How long to wait for slaves, and for one that was lost meanwhile
    #[arg(long, requires = "from_slaves", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Whether slaves of other machines are taken only if they show a certificate
    #[arg(long, requires = "from_slaves", value_name = "WHETHER", value_enum, default_value = "yes")]
    protected_mode: ProtectedMode,
    /// Go on without slaves that do not come; what only they hold is given up
    #[arg(long, requires = "from_slaves")]
    accept_missing: bool,
    /// What becomes of keys of which it cannot be decided what is newest
    #[arg(long, requires = "from_slaves", value_enum, default_value_t = KeepWhat::Stop)]
    undecided: KeepWhat,
    /// Only say which slaves there are and what they have seen that the log lacks; change nothing
    #[arg(long, requires = "from_slaves")]
    dry_run: bool,
    #[command(flatten)]
    tls: TlsFiles,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum KeepWhat {
    /// Put nothing back at all, and name these keys
    Stop,
    /// They keep what the log says
    Log,
    /// They get the latest version of the slaves
    Slaves,
}

impl SalvageArgs {
    fn wishes(&self) -> Wishes {
        Wishes {
            slaves: self.slaves.map(usize::from),
            wait_ms: u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX),
            accept_missing: self.accept_missing,
            undecided: match self.undecided {
                KeepWhat::Stop => Undecided::Stop,
                KeepWhat::Log => Undecided::Log,
                KeepWhat::Slaves => Undecided::Slaves,
            },
            dry_run: self.dry_run,
        }
    }
}

/// Fetches from the slaves what the log at `path` lacks.
pub(crate) fn salvage(
    path: &Path,
    crash: Crash,
    line_max: usize,
    max_value: ByteSize,
    args: &SalvageArgs,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let (mut file, mut lock_file) = open_locked(path)?;
    let mut machine = Salvage::new(args.wishes(), random()?);
    let Walk { position, verdict } = walk(&file, crash_kind(crash, path), line_max, |record, _| {
        machine.read(record);
        Ok(())
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    match verdict {
        None => {}
        Some(Verdict::Torn { offset, .. }) if !args.dry_run => {
            let (saved_to, bytes) = save_tail(&mut file, path, offset)?;
            file.set_len(offset).with_context(|| format!("cannot cut {}", path.display()))?;
            file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
            writeln!(
                out,
                "cut a torn tail of {bytes} bytes at byte {offset}, saved to {}",
                saved_to.display()
            )?;
        }
        Some(Verdict::Torn { .. }) => {
            explain(path, verdict.as_ref());
        }
        Some(Verdict::Corrupt { .. }) => return Ok(explain(path, verdict.as_ref())),
    }
    let Some(cluster) = position.cluster else {
        bail!("{} names no cluster: no slave has seen it", path.display())
    };
    let lock = LockText::parse(&text_of(&mut lock_file)?);
    if let Some(named) = lock.cluster.filter(|named| *named != cluster) {
        bail!(
            "{} is of cluster {cluster}, but the lock file names cluster {named}: this is another log",
            path.display()
        );
    }
    let note_path = beside(path, ".witness");
    let noted = match fs::read(&note_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.with_context(|| format!("cannot read {}", note_path.display()))?,
    };
    let noted = WitnessText::parse(&String::from_utf8_lossy(&noted));
    machine.open(Millis(0), Known { cluster, end: position, noted, lock });
    let mut store = Store::new(file, path, note_path, line_max, position);
    let wait = humantime::format_duration(args.wait);
    writeln!(out, "waiting up to {wait} for slaves at {}", args.listen.join(", "))?;
    out.flush()?;
    let outcome = ask_slaves(args, max_value, cluster, &mut machine, &mut store)?;
    drop(lock_file);
    tell(&outcome, machine.findings(), path, out)
}

fn ask_slaves(
    args: &SalvageArgs,
    max_value: ByteSize,
    cluster: ClusterId,
    machine: &mut Salvage,
    store: &mut Store,
) -> anyhow::Result<SalvageOutcome> {
    let config = MasterConfig {
        listen: args.listen.clone(),
        secret: args.secret_file.clone().map(SecretSource::File),
        max_value,
        tls: args.tls.clone(),
        max_connections: CONNECTIONS_MAX,
        protected_mode: args.protected_mode,
        ..MasterConfig::default()
    };
    let system = actix_rt::System::new();
    let ended = system.block_on(async {
        let env = RealEnv::new();
        recover_from_slaves(Rc::clone(&env), config, cluster, machine, store).await
    });
    let path = store.path.display().to_string();
    ended.with_context(|| {
        format!(
            "{path} is not repaired (no master serves it if it lacks what slaves have seen): run this again"
        )
    })
}

/// The log, locked, and what is appended to it.
struct Store {
    file: File,
    path: PathBuf,
    note_path: PathBuf,
    /// The end of the log as it was.
    old_end: u64,
    /// Where unsynced lines of it may begin.
    unsynced: u64,
    /// The end of the log as it is written.
    offset: u64,
    seq: Seq,
    synced: Seq,
    epoch: Epoch,
    buffer: Vec<u8>,
    survey: Survey,
}

/// How far the log was read again.
struct Survey {
    scanner: Scanner,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How much was read.
    offset: u64,
    at_end: bool,
}

/// A part of a file, from `offset` to `end`.
struct Part<'a> {
    file: &'a File,
    offset: &'a mut u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - *self.offset).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..room], *self.offset)?;
        *self.offset += read as u64;
        Ok(read)
    }
}

impl Store {
    fn new(file: File, path: &Path, note_path: PathBuf, line_max: usize, end: Position) -> Self {
        let survey = Survey {
            scanner: Scanner::new(line_max),
            buffer: vec![0; CHUNK_BYTES],
            start: 0,
            end: 0,
            offset: 0,
            at_end: false,
        };
        Store {
            file,
            path: path.to_owned(),
            note_path,
            old_end: end.offset,
            unsynced: end.unsynced_offset,
            offset: end.offset,
            seq: end.seq,
            synced: end.synced,
            epoch: end.epoch,
            buffer: Vec::new(),
            survey,
        }
    }

    /// Writes what is not known to be on disk once more: after a failed sync the kernel may hold bytes for clean that the disk
    /// does not have.
    fn make_durable(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = self.unsynced;
        while offset < self.old_end {
            let length = usize::try_from(self.old_end - offset).unwrap_or(usize::MAX).min(chunk.len());
            self.file.read_exact_at(&mut chunk[..length], offset)?;
            self.file.write_all_at(&chunk[..length], offset)?;
            offset += length as u64;
        }
        self.file.sync_all()?;
        self.synced = self.seq;
        sync_directory(&self.path).map_err(io::Error::other)
    }

    /// Writes and syncs what was appended, or nothing of it.
    fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.file.write_all_at(&buffer, self.offset).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // A half line would be taken for a torn one, and another run cuts it; but let it be whole now.
            let _ = self.file.set_len(self.offset).and_then(|()| self.file.sync_all());
            return Err(error);
        }
        self.offset += buffer.len() as u64;
        self.synced = self.seq;
        Ok(())
    }

    fn append_epoch(&mut self, epoch: Epoch, address: &str, given_up: Vec<Reign>) -> io::Result<ReignId> {
        let id = ReignId(random().map_err(io::Error::other)?);
        let mark = ReignMark { id, fsync: SyncMode::Always, given_up };
        let begun = Operation::Epoch { address: address.to_owned(), mark: Some(mark) };
        (self.seq, self.epoch) = (self.seq.next(), epoch);
        encode(&begun, self.seq, epoch, self.synced, &mut self.buffer);
        self.flush()?;
        Ok(id)
    }
}

impl SalvageStore for Store {
    fn note(&mut self, text: &WitnessText) -> io::Result<()> {
        write_beside(&self.note_path, text.to_string().as_bytes()).map_err(io::Error::other)
    }

    fn begin(&mut self, epoch: Epoch) -> io::Result<(Reign, Seq)> {
        self.make_durable()?;
        let id = self.append_epoch(epoch, BEGUN_AT, Vec::new())?;
        Ok((Reign { epoch, id }, self.seq))
    }

    fn survey(&mut self, salvage: &mut Salvage) -> io::Result<bool> {
        let survey = &mut self.survey;
        let until = survey.scanner.position().offset + SURVEYED_AT_ONCE;
        loop {
            let before = survey.scanner.position().offset;
            if before >= until {
                return Ok(true);
            }
            let rest = &survey.buffer[survey.start..survey.end];
            let step =
                if survey.at_end { survey.scanner.finish(rest) } else { Some(survey.scanner.next(rest)) };
            let needs_more = match step {
                None => return Ok(false),
                Some(Step::Record { record, .. }) => {
                    salvage.touch(&record);
                    false
                }
                Some(Step::Ignored) => false,
                Some(Step::Partial) => true,
                Some(Step::Bad(bad)) => match survey.scanner.pass_damaged_mark(rest) {
                    Some(true) => false,
                    None if !survey.at_end => true,
                    Some(false) | None => {
                        return Err(io::Error::other(format!(
                            "line {} was good before: {}",
                            bad.line, bad.cause
                        )));
                    }
                },
            };
            if needs_more {
                let mut part = Part { file: &self.file, offset: &mut survey.offset, end: self.old_end };
                read_more(
                    &mut part,
                    &mut survey.buffer,
                    &mut survey.start,
                    &mut survey.end,
                    &mut survey.at_end,
                )?;
            } else {
                let taken = survey.scanner.position().offset - before;
                survey.start += usize::try_from(taken).map_err(io::Error::other)?;
            }
        }
    }

    fn append(&mut self, key: &[u8], stamp: Stamp, value: &[u8]) -> io::Result<()> {
        self.seq = self.seq.next();
        let was = show_stamp(stamp);
        let fields = [(RECOVERED, was.as_bytes())];
        let trailer = Trailer { fields: &fields, ..Trailer::new(self.seq, self.epoch, self.synced) };
        encode_write_with(&[(key, value)], trailer, &mut self.buffer);
        if self.buffer.len() >= GROUP_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(&mut self, epoch: Epoch, given_up: Vec<Reign>) -> io::Result<()> {
        self.flush()?;
        self.append_epoch(epoch, ENDED_AT, given_up)?;
        encode(&Operation::Synced, self.seq, epoch, self.synced, &mut self.buffer);
        self.flush()?;
        write_beside(&self.note_path, b"").map_err(io::Error::other)
    }
}

/// Tells people what became of it.
fn tell(
    outcome: &SalvageOutcome,
    findings: &Findings,
    path: &Path,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    tell_of_slaves(findings, out)?;
    let shown = path.display();
    let code = match outcome {
        SalvageOutcome::NothingLacks => {
            writeln!(
                out,
                "{shown} lacks nothing that these slaves, the lock file or the note know of: nothing to do"
            )?;
            EXIT_CLEAN
        }
        SalvageOutcome::Told => {
            writeln!(out, "{shown} is not changed; without --dry-run, the slaves report what they hold")?;
            EXIT_CLEAN
        }
        SalvageOutcome::Missing { named, there } => {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            let who =
                if named.is_empty() { String::new() } else { format!(", missing: {}", named.join(", ")) };
            cli::tell(&format!(
                "error: {there} slaves came that have seen something of this log{who}; nothing was done: do they look for masters \
                 at --listen? Give up what the others hold with --accept-missing"
            ));
            EXIT_UNREPAIRED
        }
        SalvageOutcome::Undecided => {
            tell_of_undecided(findings, out)?;
            cli::tell(&format!(
                "error: of {} keys it cannot be decided whether the log or the slaves have the newest; nothing was put back: \
                 say with --undecided log or --undecided slaves what they get",
                findings.undecided_keys
            ));
            EXIT_UNREPAIRED
        }
        SalvageOutcome::Lost { id } => {
            cli::tell(&format!(
                "error: slave {id} was lost before it had sent everything (or a value is longer than --max-value); {shown} is not served before another run has come \
                 to its end"
            ));
            EXIT_UNREPAIRED
        }
        SalvageOutcome::Stalled { named } => {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            cli::tell(&format!(
                "error: slaves come and go, and nothing new has come from them for too long, waiting for: {}; {shown} is not served \
                 before another run has come to its end",
                if named.is_empty() { "the holders of the last keys".to_owned() } else { named.join(", ") }
            ));
            EXIT_UNREPAIRED
        }
        SalvageOutcome::TooManyReigns => {
            bail!("slaves hold copies of more than {BRANCHES_MAX} reigns that {shown} lacks")
        }
        SalvageOutcome::TooManyWitnesses => {
            bail!("{NOTED_MAX} witnesses are noted beside {shown} already, and there are more: nothing was done")
        }
        SalvageOutcome::Recovered => {
            tell_of_recovered(findings, path, out)?;
            EXIT_CLEAN
        }
    };
    out.flush()?;
    Ok(code)
}

fn tell_of_slaves(findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    for slave in &findings.slaves {
        write!(out, "slave {}: ", slave.id)?;
        match slave.seen {
            None => write!(out, "has seen no reign (it was restarted, or is new)")?,
            Some(Seen { reign, seq, .. }) => {
                let lacks = if slave.is_witness { ", which the log lacks" } else { "" };
                write!(out, "has seen reign {reign} through seq {seq}{lacks}")?;
            }
        }
        if slave.keys > 0 {
            write!(out, "; holds {} keys", slave.keys)?;
        }
        if slave.recovered_keys > 0 {
            write!(out, "; {} keys ({} bytes) taken", slave.recovered_keys, slave.recovered_bytes)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn tell_of_undecided(findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    for key in &findings.undecided {
        writeln!(out, "undecided: {}", printable_bytes(key))?;
    }
    let unnamed = findings.undecided_keys - findings.undecided.len() as u64;
    if unnamed > 0 {
        writeln!(out, "and {unnamed} more")?;
    }
    Ok(())
}

fn tell_of_recovered(findings: &Findings, path: &Path, out: &mut impl Write) -> io::Result<()> {
    tell_of_undecided(findings, out)?;
    let reigns: Vec<String> = findings.reigns.iter().map(ToString::to_string).collect();
    let before = if findings.done_before == 0 {
        String::new()
    } else {
        format!(", beside {} of an earlier run", findings.done_before)
    };
    writeln!(
        out,
        "recovered {} keys ({} bytes){before} of the reigns that {} lacked: {}",
        findings.recovered_keys(),
        findings.recovered_bytes(),
        path.display(),
        if reigns.is_empty() { "none".to_owned() } else { reigns.join(", ") }
    )?;
    writeln!(
        out,
        "lost deletions cannot be recovered: such a key has the value that the log or a slave still had; nor can what was \
         only on slaves that are not named above. Start the masters"
    )
}
