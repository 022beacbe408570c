//! `dsm-log`: looks at logs and makes backups of them, also while a master runs, and restores, repairs and imports them. It
//! streams the file, and never holds more of it than one line. It never talks to a master, and to slaves only in
//! `log/salvage.rs`.

// A blocked or closed standard error must neither delay nor end this process: print with `dsm_server::cli::tell`.
#![warn(clippy::print_stderr, clippy::print_stdout)]
// The doc comments of subcommands are their help texts, in which `<offset>` is not an HTML tag.
#![allow(rustdoc::invalid_html_tags)]

#[path = "log/backup.rs"]
mod backup;
#[path = "log/compact.rs"]
mod compact;
#[path = "log/json.rs"]
mod json;
#[path = "log/mend.rs"]
mod mend;
#[path = "log/salvage.rs"]
mod salvage;

use anyhow::{bail, ensure, Context as _};
use bytesize::ByteSize;
use clap::{Parser, Subcommand, ValueEnum};
use dsm::config::check_max_value;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, Seq};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::master::{ReignRecord, Reigns, Testimony};
use dsm_protocol::message::Seen;
use dsm_protocol::record::{
    encode, line_bytes_max, Body, CrashKind, Encoded, EncodedEffect, Judge, Operation, Position, Record,
    ReignMark, Scanner, Span, Step, SyncMode, Verdict,
};
use dsm_protocol::resp::Limits;
use dsm_protocol::witness_file::WitnessText;
use dsm_server::cli::{self, Flags};
use rustix::fs::{flock, renameat_with, FlockOperation, RenameFlags, CWD};
use std::collections::hash_map::{Entry, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The log is clean, or was made so.
const EXIT_CLEAN: u8 = 0;
/// The log ends in a torn tail.
const EXIT_TORN: u8 = 1;
/// The log is corrupt, unreadable or in use.
const EXIT_CORRUPT: u8 = 2;

/// Access rights of the files that are created here, which hold the values of all clients.
const OWNER_ONLY: u32 = 0o600;

/// How many bytes of a lock file are read at most.
const LOCK_TEXT_MAX: usize = 4096;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Parser)]
#[command(
    name = "dsm-log",
    version,
    about = "Checks, dumps, backs up, restores, repairs and imports the log of a dsm cluster",
    after_help = "Examples:\n  \
        dsm-log check kv_store.log                   check that the log is whole\n  \
        dsm-log dump kv_store.log --key user1        print every record of one key\n  \
        dsm-log backup --log kv_store.log --to b.log copy the log of a running master\n  \
        dsm-log restore --from b.log --to kv_store.log\n  \
        dsm-log compact kv_store.log                 leave out what was overwritten and deleted\n  \
        dsm-log repair kv_store.log                  cut a torn tail, or remove damaged lines\n  \
        dsm-log repair kv_store.log --from-slaves    fetch lost records from the slaves\n  \
        dsm-log new-cluster staging/kv_store.log     give a copied log its own cluster id\n  \
        dsm-log accept-loss kv_store.log             give up records that are lost for good\n  \
        dsm-log forget kv_store.log                  let a new cluster begin after a lost log\n  \
        dsm-log import old_store.log kv_store.log    convert a log of the original program\n\n\
        Exit codes: 0 clean or done; 1 torn tail; 2 corrupt, unreadable, in use, or wrong usage."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// The masters' --max-value, which limits how long a line may be
    #[arg(long, global = true, env = "DSM_MAX_VALUE", default_value = "16MiB", value_name = "BYTES")]
    max_value: ByteSize,
    /// What may have interrupted the writing of the log
    #[arg(long, global = true, value_enum, default_value_t = Crash::Auto)]
    crash: Crash,
}

impl Flags for Args {
    fn validate(&self) -> Result<(), String> {
        check_max_value("--max-value", self.max_value).map_err(|error| error.to_string())
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Crash {
    /// The end of a process if the lock file shows that the machine has not restarted since, else a power cut
    Auto,
    /// The end of a process: only an unfinished last line is torn
    Process,
    /// A power cut: lines that were not synced may be torn
    Power,
}

#[derive(Subcommand)]
enum Command {
    /// Counts lines, records and keys, and says whether the log is whole; changes nothing
    Check {
        /// The log
        file: PathBuf,
    },
    /// Prints the records, one a line: seq, epoch, operation, keys and values; changes nothing
    #[command(
        after_help = "Bytes that cannot be printed appear as \\xNN. With --json, each line is one object, and a key or \
        value that is not UTF-8 is in key_hex or value_hex."
    )]
    Dump {
        /// The log
        file: PathBuf,
        /// Print only the records of this key
        #[arg(long)]
        key: Option<String>,
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Copies the log, also while a master writes and compacts it; the copy is on disk and read back before this ends
    #[command(
        after_help = "The backup holds every record that was acknowledged before this began; of writes under way then it may hold \
        some. It is a log like any other: `dsm-log check` and `dump` read it. No lock is taken, and memory is bounded. \
        The file is TO.partial until it is whole. With --until it ends with that record, as far back as the log was not compacted.\n\n\
        Example:\n  \
        dsm-log backup --log kv_store.log --to /backup/kv_store-$(date +%F).log"
    )]
    Backup(backup::BackupArgs),
    /// Makes a log of a backup, where there is none; for a new cluster unless --keep-cluster says otherwise
    #[command(
        after_help = "Stop the masters and the slaves first. The restored log has a new cluster id, so that slaves which hold newer \
        values of the old one are refused until they are restarted; then they are empty and get what they are to hold. Where the \
        log was lost and the slaves still run, restore it with --keep-cluster instead, and fetch what the backup lacks with \
        `dsm-log repair --from-slaves`.\n\n\
        Examples:\n  \
        dsm-log restore --from /backup/kv_store-2026-11-30.log --to kv_store.log\n  \
        dsm-log restore --from /backup/kv_store-2026-11-30.log --to kv_store.log --until 48211"
    )]
    Restore(backup::RestoreArgs),
    /// Writes the log anew without what was overwritten and deleted; the old file is removed
    #[command(
        after_help = "A master does this by itself while it serves (--compact-min). The keys of the log must fit into memory. The \
        new file is FILE.compact until it takes the place of the log."
    )]
    Compact {
        /// The log
        file: PathBuf,
    },
    /// Cuts a torn tail, or removes the damaged lines of a corrupt log.
    ///
    /// A torn tail is saved to FILE.cut-OFFSET before it is cut. Of a corrupt log, every line with a correct checksum is kept,
    /// what is lost is listed, and the damaged file is kept as FILE.damaged-TIME.
    ///
    /// With --from-slaves: fetches the records that an older copy of the log lacks from the slaves that hold them.
    #[command(after_help = "The key of a lost line has the value that the lines before it gave it.\n\n\
        With --from-slaves the masters are stopped and the slaves run. The slaves come to this program as to a master, because it \
        listens at the masters' addresses. Of each key of which they hold a version that the log lacks, the newest is appended to \
        the log. Then the masters can be started. If this program ends early, no master serves the log before another run has \
        come to its end. Slaves do not know of deletions. Exit codes with --from-slaves: 0 done, or nothing to do; 1 not done: \
        slaves are missing or were lost, or it is not known what is newest; 2 error.\n\n\
        Examples:\n  \
        dsm-log repair kv_store.log --from-slaves --slaves 3 --dry-run\n  \
        dsm-log repair kv_store.log --from-slaves --slaves 3")]
    Repair {
        /// The log
        file: PathBuf,
        /// Cut a corrupt log at its first damaged line, and save what follows, instead of removing only damaged lines
        #[arg(long, conflicts_with = "from_slaves")]
        cut_at_corruption: bool,
        #[command(flatten)]
        salvage: salvage::SalvageArgs,
    },
    /// Gives a copied log a new cluster id, and removes what the copied lock file says
    #[command(
        after_help = "Use it when a copy is to be served beside the original, for example as staging beside production: slaves \
        distinguish the two clusters by their ids. Run it on the copy before a master serves it."
    )]
    NewCluster {
        /// The log
        file: PathBuf,
    },
    /// Gives up the records that a log has lost for good, so that the next master serves without them
    #[command(
        after_help = "A master does not serve a log that ends before what a slave has seen, or in a lower epoch than the lock \
        file names: the log is an older copy, or was cut. If there is no newer one, stop the masters and run this command. The \
        log does not change. The next master names the lost reigns in its EPOCH record, and slaves drop what they hold of them."
    )]
    AcceptLoss {
        /// The log
        file: PathBuf,
    },
    /// Removes the cluster id from the lock file of a lost log, so that the next master may begin a new, empty one
    #[command(
        after_help = "While the lock file names a cluster, a master neither begins a new log nor serves that of another cluster: \
        the log may only have been moved, or its volume may not be mounted. If the log is lost for good, stop the masters and \
        the slaves (they know their cluster, too), and run this command."
    )]
    Forget {
        /// The log
        file: PathBuf,
    },
    /// Writes a new log from a log of the original program
    Import {
        /// Log of the original program; it is not changed
        legacy: PathBuf,
        /// The new log; the file must not exist
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    cli::outlive_file_limit();
    let args = match cli::parse::<Args>(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(&args) {
        Ok(code) => cli::ended(ExitCode::from(code)),
        // The reader of the output has closed it.
        Err(error) if cli::is_broken_pipe(&error) => cli::ended(ExitCode::from(EXIT_CLEAN)),
        Err(error) => cli::fail(&format!("{error:#}"), EXIT_CORRUPT),
    }
}

/// Whether a log is that of a member of masters on several machines: then its vote file is beside it.
fn is_of_member(file: &Path) -> bool {
    let mut vote = file.as_os_str().to_owned();
    vote.push(".vote");
    Path::new(&vote).exists()
}

/// What changes a log would make a member forget what it has told the others.
fn refuse_members(command: &Command) -> anyhow::Result<()> {
    let file = match command {
        Command::Check { .. } | Command::Dump { .. } => return Ok(()),
        Command::Backup(args) => &args.log,
        Command::Restore(args) => &args.to,
        Command::Compact { file }
        | Command::Repair { file, .. }
        | Command::NewCluster { file }
        | Command::AcceptLoss { file }
        | Command::Forget { file }
        | Command::Import { file, .. } => file,
    };
    let path = file.display();
    ensure!(
        !(matches!(command, Command::Backup(_)) && is_of_member(file)),
        "{path} is the log of a member of masters on several machines (--members), as {path}.vote says: what it ends with may not \
         be what a majority has, so a copy of it is no backup"
    );
    ensure!(
        !is_of_member(file),
        "{path} is the log of a member of masters on several machines (--members), as {path}.vote says: nothing may change it but \
         its master"
    );
    Ok(())
}

fn run(args: &Args) -> anyhow::Result<u8> {
    // As in the masters: one record may hold several values of the longest length.
    let line_max = line_bytes_max(Limits::for_values(args.max_value.as_u64() as usize).request_bytes_max);
    let mut out = BufWriter::new(io::stdout().lock());
    refuse_members(&args.command)?;
    match &args.command {
        Command::Check { file } => check(file, crash_kind(args.crash, file), line_max, &mut out),
        Command::Dump { file, key, json } => {
            let key = key.as_ref().map(String::as_bytes);
            dump(file, crash_kind(args.crash, file), line_max, key, *json, &mut out)
        }
        Command::Backup(wanted) => backup::backup(wanted, args.crash, line_max, &mut out),
        Command::Restore(wanted) => backup::restore(wanted, args.crash, line_max, &mut out),
        Command::Compact { file } => compact::compact(file, crash_kind(args.crash, file), line_max, &mut out),
        Command::Repair { file, salvage, .. } if salvage.from_slaves => {
            salvage::salvage(file, args.crash, line_max, args.max_value, salvage, &mut out)
        }
        Command::Repair { file, cut_at_corruption, .. } => {
            repair(file, args.crash, line_max, *cut_at_corruption, &mut out)
        }
        Command::NewCluster { file } => new_cluster(file, args.crash, line_max, &mut out),
        Command::AcceptLoss { file } => accept_loss(file, args.crash, line_max, &mut out),
        Command::Forget { file } => forget(file, crash_kind(args.crash, file), line_max, &mut out),
        Command::Import { legacy, file } => import(legacy, file, line_max, &mut out),
    }
}

// Walking a log.

/// How a log ended.
struct Walk {
    /// The end of the last good line.
    position: Position,
    /// The judgement of what follows; `None` when the file ends there.
    verdict: Option<Verdict>,
}

/// Reads a log to its end, or to its first bad line, which is judged by everything after it.
fn walk(
    file: impl Read,
    crash: CrashKind,
    line_max: usize,
    visit: impl FnMut(&Record<'_>, Span) -> anyhow::Result<()>,
) -> anyhow::Result<Walk> {
    walk_by((Scanner::new(line_max), line_max), file, crash, visit)
}

/// The same for a log that is only looked at, which may be that of a member.
fn walk_any(
    (path, file): (&Path, impl Read),
    crash: CrashKind,
    line_max: usize,
    visit: impl FnMut(&Record<'_>, Span) -> anyhow::Result<()>,
) -> anyhow::Result<Walk> {
    let scanner = Scanner::new(line_max);
    let scanner = if is_of_member(path) { scanner.with_members() } else { scanner };
    walk_by((scanner, line_max), file, crash, visit)
}

/// Goes on with a scanner that has read nothing yet.
fn walk_by(
    (mut scanner, line_max): (Scanner, usize),
    mut file: impl Read,
    crash: CrashKind,
    mut visit: impl FnMut(&Record<'_>, Span) -> anyhow::Result<()>,
) -> anyhow::Result<Walk> {
    let mut buffer = vec![0; CHUNK_BYTES];
    // The bytes of the buffer that are read and not parsed yet.
    let (mut start, mut end) = (0, 0);
    let mut at_end = false;
    let bad = loop {
        let before = scanner.position().offset;
        let rest = &buffer[start..end];
        let step = if at_end { scanner.finish(rest) } else { Some(scanner.next(rest)) };
        match step {
            None => return Ok(Walk { position: scanner.position(), verdict: None }),
            Some(Step::Record { record, span }) => visit(&record, span)?,
            Some(Step::Ignored) => {}
            Some(Step::Bad(bad)) => match scanner.pass_damaged_mark(rest) {
                Some(true) => {
                    cli::tell(&format!(
                        "warning: the SYNCED mark at byte {before} is damaged; no record is missing with it, so it is \
                         passed over"
                    ));
                }
                // The line after it decides, but is not read yet.
                None if !at_end => {
                    read_more(&mut file, &mut buffer, &mut start, &mut end, &mut at_end)?;
                    continue;
                }
                Some(false) | None => break bad,
            },
            Some(Step::Partial) => {
                read_more(&mut file, &mut buffer, &mut start, &mut end, &mut at_end)?;
            }
        }
        start += usize::try_from(scanner.position().offset - before)?;
    };
    let mut judge = Judge::new(bad, crash, line_max);
    judge.push(&buffer[start..end]);
    while !judge.is_decided() {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        judge.push(&buffer[..read]);
    }
    Ok(Walk { position: scanner.position(), verdict: Some(judge.finish()) })
}

/// Reads more after the buffer's bytes from `start` to `end`.
fn read_more(
    file: &mut impl Read,
    buffer: &mut Vec<u8>,
    start: &mut usize,
    end: &mut usize,
    at_end: &mut bool,
) -> io::Result<()> {
    buffer.copy_within(*start..*end, 0);
    (*start, *end) = (0, *end - *start);
    // Doubling keeps the search for the end of a long line linear.
    if *end == buffer.len() {
        buffer.resize(2 * *end, 0);
    }
    let read = file.read(&mut buffer[*end..])?;
    *at_end = read == 0;
    *end += read;
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    ensure!(file.metadata()?.is_file(), "{} is not a file", path.display());
    Ok(file)
}

/// Prints on standard error what is wrong, if anything is, and gives the exit code.
fn explain(path: &Path, verdict: Option<&Verdict>) -> u8 {
    let path = path.display();
    match verdict {
        None => EXIT_CLEAN,
        Some(Verdict::Torn { offset, bytes, lines }) => {
            cli::tell(&format!(
                "warning: {path} has a torn tail of {bytes} bytes ({lines} lines) at byte {offset} that was never \
                 acknowledged as synced (or is being written, if a master runs); the next master, or `dsm-log \
                 repair`, cuts it"
            ));
            EXIT_TORN
        }
        Some(Verdict::Corrupt { offset, line, cause, evidence }) => {
            let proof = evidence.map_or(String::new(), |evidence| {
                format!("; line {} says that seq {} had been synced", evidence.line, evidence.synced)
            });
            cli::tell(&format!(
                "error: {path} is corrupt at byte {offset}, line {line}: {cause}{proof}; restore the file from a \
                 copy, or take the damaged lines out with `dsm-log repair`, which keeps the rest and lists what is lost"
            ));
            EXIT_CORRUPT
        }
    }
}

// check

/// Counts what a log holds.
#[derive(Default)]
struct Census {
    records: u64,
    legacy: u64,
    reigns: u64,
    marks: u64,
    /// For each key the bytes of the log that hold its value: its share of the line.
    live: HashMap<Box<[u8]>, u64>,
    live_bytes: u64,
    /// Bytes of the CLUSTER line, which a compacted log keeps too.
    head_bytes: u64,
}

impl Census {
    /// The key is there, with so many bytes of the log.
    fn hold(&mut self, key: Encoded<'_>, bytes: u64) {
        self.live_bytes += bytes;
        match self.live.entry(key.decode().into()) {
            Entry::Occupied(mut held) => self.live_bytes -= held.insert(bytes),
            Entry::Vacant(free) => {
                free.insert(bytes);
            }
        }
    }

    /// The key is gone.
    fn forget(&mut self, key: Encoded<'_>) {
        self.live_bytes -= self.live.remove(&*key.decode()).unwrap_or(0);
    }

    fn count(&mut self, record: &Record<'_>, span: Span) {
        self.records += 1;
        self.legacy += u64::from(record.epoch == Epoch(0));
        match record.body {
            Body::Cluster(_) | Body::Members(_) => self.head_bytes += u64::from(span.bytes),
            Body::Epoch { .. } => self.reigns += 1,
            Body::Synced => {
                self.records -= 1;
                self.marks += 1;
            }
            Body::Write(pairs) => {
                let share = u64::from(span.bytes) / pairs.count().max(1) as u64;
                pairs.for_each(|(key, _)| self.hold(key, share));
            }
            Body::Delete(keys) => keys.for_each(|key| self.forget(key)),
            Body::Apply(effects) => {
                let share = u64::from(span.bytes) / effects.count().max(1) as u64;
                for effect in effects {
                    match effect {
                        EncodedEffect::Set { key, .. } => self.hold(key, share),
                        EncodedEffect::Del { key } => self.forget(key),
                    }
                }
            }
        }
    }
}

fn check(path: &Path, crash: CrashKind, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let mut census = Census::default();
    let Walk { position, verdict } = walk_any((path, open(path)?), crash, line_max, |record, span| {
        census.count(record, span);
        Ok(())
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    let cluster = position.cluster.map_or("none".to_owned(), |id| id.to_string());
    writeln!(out, "file              {}", path.display())?;
    writeln!(out, "cluster           {cluster}")?;
    writeln!(out, "good bytes        {}", position.offset)?;
    writeln!(out, "good lines        {}", position.line)?;
    writeln!(out, "records           {} (original program: {})", census.records, census.legacy)?;
    writeln!(out, "sync marks        {}", census.marks)?;
    writeln!(out, "last seq          {} (synced through {})", position.seq, position.synced)?;
    writeln!(out, "last epoch        {} (reigns in this file: {})", position.epoch, census.reigns)?;
    writeln!(out, "keys              {}", census.live.len())?;
    let superseded = position.offset.saturating_sub(census.live_bytes + census.head_bytes);
    writeln!(out, "superseded bytes  {superseded}")?;
    let state = match &verdict {
        None => "clean".to_owned(),
        Some(Verdict::Torn { offset, bytes, lines }) => {
            format!("torn tail at byte {offset}: {bytes} bytes, {lines} lines")
        }
        Some(Verdict::Corrupt { offset, line, .. }) => format!("corrupt at byte {offset}, line {line}"),
    };
    writeln!(out, "state             {state}")?;
    out.flush()?;
    if position.is_half_repaired {
        cli::tell(&half_repaired(path));
    }
    Ok(explain(path, verdict.as_ref()))
}

// dump

fn dump(
    path: &Path,
    crash: CrashKind,
    line_max: usize,
    key: Option<&[u8]>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let walk = walk_any((path, open(path)?), crash, line_max, |record, span| {
        let concerns = match (key, record.body) {
            (None, _) => true,
            (Some(key), Body::Write(mut pairs)) => pairs.any(|(candidate, _)| candidate.is(key)),
            (Some(key), Body::Delete(mut keys)) => keys.any(|candidate| candidate.is(key)),
            (Some(key), Body::Apply(mut effects)) => effects.any(|effect| effect.key().is(key)),
            (Some(_), Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced) => false,
        };
        if concerns && json {
            json::write(record, span, out)?;
        } else if concerns {
            write_text(record, out)?;
        }
        Ok(())
    });
    let walk = walk.with_context(|| format!("cannot dump {}", path.display()))?;
    out.flush()?;
    Ok(explain(path, walk.verdict.as_ref()))
}

fn write_text(record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{} {} {}", record.seq, record.epoch, operation_name(&record.body))?;
    match record.body {
        Body::Cluster(id) => write!(out, " {id}")?,
        Body::Epoch { address, mark } => {
            write!(out, " {}", printable(address))?;
            if let Some(fsync) = mark.fsync {
                write!(out, " reign {} fsync {}", mark.id, fsync.as_str())?;
            }
            for reign in mark.given_up {
                write!(out, " given-up {reign}")?;
            }
        }
        Body::Members(text) => write!(out, " {}", printable_bytes(text))?,
        Body::Synced => write!(out, " {}", record.synced)?,
        Body::Write(pairs) => {
            for (key, value) in pairs {
                write!(out, " {} {}", printable(key), printable(value))?;
            }
        }
        Body::Delete(keys) => {
            for key in keys {
                write!(out, " {}", printable(key))?;
            }
        }
        Body::Apply(effects) => {
            for effect in effects {
                match effect {
                    EncodedEffect::Set { key, value, expires } => {
                        write!(out, " set {} {}", printable(key), printable(value))?;
                        if let Some(expires) = expires {
                            write!(out, " until {}", expires.0)?;
                        }
                    }
                    EncodedEffect::Del { key } => write!(out, " del {}", printable(key))?,
                }
            }
        }
    }
    writeln!(out)
}

fn operation_name(body: &Body<'_>) -> &'static str {
    match body {
        Body::Cluster(_) => "CLUSTER",
        Body::Epoch { .. } => "EPOCH",
        Body::Write(_) => "WRITE",
        Body::Delete(_) => "DELETE",
        Body::Members(_) => "MEMBERS",
        Body::Apply(_) => "APPLY",
        Body::Synced => "SYNCED",
    }
}

/// The text in quotes; what could change a terminal's state is escaped.
fn printable(text: Encoded<'_>) -> String {
    printable_bytes(&text.decode())
}

/// The same of what is decoded.
fn printable_bytes(text: &[u8]) -> String {
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push('"');
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() || matches!(char, '"' | '\\') {
                shown.extend(char.escape_default());
            } else {
                shown.push(char);
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown.push('"');
    shown
}

// repair

fn new_cluster(path: &Path, crash: Crash, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let (file, mut lock_file) = open_locked(path)?;
    let mut found = None;
    let Walk { verdict, .. } = walk(&file, crash_kind(crash, path), line_max, |record, span| {
        if let Body::Cluster(id) = record.body {
            found = Some((id, record.seq, record.epoch, record.synced, span));
        }
        Ok(())
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    if verdict.is_some() {
        return Ok(explain(path, verdict.as_ref()));
    }
    let Some((old, seq, epoch, synced, span)) = found else {
        bail!("{} names no cluster: a master gives it one at its first start", path.display());
    };
    let new = ClusterId(random()?);
    let mut line = Vec::new();
    encode(&Operation::Cluster(new), seq, epoch, synced, &mut line);
    ensure!(
        line.len() == span.bytes as usize,
        "the CLUSTER line has fields that this version does not write"
    );
    let text = text_of(&mut lock_file)?;
    overwrite(&file, &line, span.offset).context("cannot write the CLUSTER line")?;
    // The lock file is that of the original log.
    let _ = fs::remove_file(beside(path, ".witness"));
    let text = LockText { cluster: None, epoch: None, reign: None, ..LockText::parse(&text) };
    write_lock_text(&lock_file, &text).with_context(|| {
        format!(
            "cluster {old} is cluster {new} from here on, but the lock file still names the original: remove {}",
            beside(path, ".lock").display()
        )
    })?;
    writeln!(out, "{}: cluster {old} is cluster {new} from here on", path.display())?;
    out.flush()?;
    Ok(EXIT_CLEAN)
}

fn forget(path: &Path, crash: CrashKind, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let mut lock_file = lock_beside(path)?;
    let log = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened.with_context(|| format!("cannot open {}", path.display()))?),
    };
    let named = LockText::parse(&text_of(&mut lock_file)?).cluster;
    let found = match log {
        Some(log) => {
            let walk = walk(log, crash, line_max, |_, _| Ok(()));
            walk.with_context(|| format!("cannot read {}", path.display()))?.position.cluster
        }
        None => None,
    };
    match (named, found) {
        (Some(named), Some(found)) if named == found => bail!(
            "{} is there, and of the cluster that the lock file names: if it lacks records that are lost for good, run \
             `dsm-log accept-loss`",
            path.display()
        ),
        (Some(named), _) => {
            forget_cluster(path, &mut lock_file)?;
            writeln!(out, "{}: cluster {named} is forgotten", path.display())?;
        }
        (None, _) => writeln!(out, "{}: the lock file names no cluster", path.display())?,
    }
    out.flush()?;
    Ok(EXIT_CLEAN)
}

fn accept_loss(path: &Path, crash: Crash, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let (file, mut lock_file) = open_locked(path)?;
    let mut reigns = Reigns::default();
    let Walk { position, verdict } = walk(&file, crash_kind(crash, path), line_max, |record, _| {
        if let Body::Epoch { mark, .. } = record.body {
            let durable = mark.fsync == Some(SyncMode::Always);
            let reign = Reign { epoch: record.epoch, id: mark.id };
            reigns.begin(ReignRecord { reign, first: record.seq, durable });
            mark.given_up.for_each(|reign| reigns.give_up(reign));
        }
        Ok(())
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(Verdict::Corrupt { .. }) = verdict {
        return Ok(explain(path, verdict.as_ref()));
    }
    let Some(cluster) = position.cluster else { bail!("{} names no cluster", path.display()) };
    let lock_text = LockText::parse(&text_of(&mut lock_file)?);
    let witness_path = beside(path, ".witness");
    let noted = match fs::read(&witness_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.with_context(|| format!("cannot read {}", witness_path.display()))?,
    };
    let noted = WitnessText::parse(&String::from_utf8_lossy(&noted));
    let mut text = WitnessText { cluster: Some(cluster), ..WitnessText::default() };
    if noted.cluster == Some(cluster) {
        (text.accepted, text.accepted_epoch) = (noted.accepted, noted.accepted_epoch);
        for (slave, seen) in noted.seen {
            if reigns.testimony_at(position.seq, &seen) != Testimony::Agrees {
                let Seen { reign, seq, .. } = seen;
                let end = position.seq;
                writeln!(
                    out,
                    "{slave} has seen reign {reign} through seq {seq}, the log ends at seq {end}: given up"
                )?;
                text.accept(reign);
            }
        }
    }
    if lock_text.cluster == Some(cluster) && lock_text.epoch.is_some_and(|epoch| epoch > position.epoch) {
        let epoch = lock_text.epoch.unwrap_or_default();
        writeln!(
            out,
            "the lock file knows of epoch {epoch}, the log ends in epoch {}: given up",
            position.epoch
        )?;
        text.accepted_epoch = Some(epoch);
        if let Some(id) = lock_text.reign {
            text.accept(Reign { epoch, id });
        }
    }
    if position.is_half_repaired {
        writeln!(out, "a repair from slaves has not come to its end: what it has not put back is given up")?;
        text.accept(position.reign);
    }
    if text.is_empty() {
        writeln!(out, "{} lacks nothing that is known of: nothing to give up", path.display())?;
        out.flush()?;
        return Ok(EXIT_CLEAN);
    }
    write_beside(&witness_path, text.to_string().as_bytes())?;
    writeln!(out, "{}: the next master serves without it", path.display())?;
    out.flush()?;
    Ok(EXIT_CLEAN)
}

/// What is to be said of a log that nobody serves because a repair from slaves has not come to its end.
fn half_repaired(path: &Path) -> String {
    format!(
        "warning: a repair of {0} from slaves has not come to its end, and no master serves it: run `dsm-log repair {0} \
         --from-slaves` again, or give up what it has not put back with `dsm-log accept-loss {0}`",
        path.display()
    )
}

/// Puts a file in its place, whole and on disk.
fn write_beside(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let draft = beside(path, ".new");
    let mut options = OpenOptions::new();
    let open = options.write(true).create(true).truncate(true).mode(OWNER_ONLY).open(&draft);
    let mut file = open.with_context(|| format!("cannot write {}", draft.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    sync_directory(path)
}

fn text_of(lock_file: &mut File) -> anyhow::Result<String> {
    let mut text = Vec::new();
    lock_file.read_to_end(&mut text).context("cannot read the lock file")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Removes the cluster and its epoch from the lock file's text, and the file of what slaves have seen of it.
fn forget_cluster(path: &Path, lock_file: &mut File) -> anyhow::Result<()> {
    lock_file.rewind().context("cannot read the lock file")?;
    let text = LockText::parse(&text_of(lock_file)?);
    let text = LockText { cluster: None, epoch: None, reign: None, ..text };
    let _ = fs::remove_file(beside(path, ".witness"));
    write_lock_text(lock_file, &text).context("cannot write the lock file")
}

/// Writes the lock file's text in place. The rest of a longer old text is blanked with the same write, so that no
/// interruption leaves a line of it after the new text.
fn write_lock_text(lock_file: &File, text: &LockText) -> io::Result<()> {
    let text = text.to_string();
    let mut bytes = text.clone().into_bytes();
    let length = usize::try_from(lock_file.metadata()?.len()).unwrap_or(0).min(LOCK_TEXT_MAX);
    bytes.resize(bytes.len().max(length), b'\n');
    lock_file.write_all_at(&bytes, 0)?;
    lock_file.set_len(text.len() as u64)?;
    lock_file.sync_all()
}

/// For a log that may lack the last records that slaves have seen: explains why a start may wait, and what to do then.
fn say_how_to_go_on(path: &Path, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "slaves may have seen what is lost at the end, and hold it: `dsm-log repair {0} --from-slaves` fetches it. The next \
         master that hears of it does not serve; what no slave holds is given up with `dsm-log accept-loss {0}`",
        path.display()
    )
}

/// Overwrites bytes of a file, all or none: a limit or an error in the middle would leave a line that is neither the old
/// nor the new one.
fn overwrite(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut old = vec![0; bytes.len()];
    file.read_exact_at(&mut old, offset)?;
    let written = file.write_all_at(bytes, offset).and_then(|()| file.sync_all());
    if written.is_err() {
        // Where new bytes were written, the old ones fit again.
        let _ = file.write_all_at(&old, offset);
        let _ = file.sync_all();
    }
    written
}

/// Opens a log for changes with both of its locks.
fn open_locked(path: &Path) -> anyhow::Result<(File, File)> {
    let open = OpenOptions::new().read(true).write(true).open(path);
    let file = open.with_context(|| format!("cannot open {}", path.display()))?;
    let lock_file = lock_beside(path)?;
    lock(&file, path)?;
    // A compaction may have replaced the file before we had the lock.
    let (locked, named) = (file.metadata()?, fs::metadata(path)?);
    let same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
    ensure!(same, "{} was replaced while it was opened, try again", path.display());
    Ok((file, lock_file))
}

fn repair(
    path: &Path,
    crash: Crash,
    line_max: usize,
    cut_at_corruption: bool,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let (mut file, _lock) = open_locked(path)?;
    let locked = file.metadata()?;
    let Walk { verdict, .. } = walk(&file, crash_kind(crash, path), line_max, |_, _| Ok(()))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let is_given_up = matches!(verdict, Some(Verdict::Corrupt { .. }));
    let offset = match verdict {
        None => {
            writeln!(out, "{} is clean, nothing to repair", path.display())?;
            out.flush()?;
            return Ok(EXIT_CLEAN);
        }
        Some(Verdict::Corrupt { offset, .. }) if cut_at_corruption => {
            let length = locked.len();
            ensure!(offset > 0, "{} has no good line to keep: it may not be a log at all", path.display());
            writeln!(out, "giving up {} bytes of acknowledged data after byte {offset}", length - offset)?;
            offset
        }
        Some(Verdict::Corrupt { .. }) => return mend::mend(&file, path, line_max, out),
        Some(Verdict::Torn { offset, .. }) => offset,
    };
    let (saved_to, bytes) = save_tail(&mut file, path, offset)?;
    file.set_len(offset).with_context(|| format!("cannot cut {}", path.display()))?;
    file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
    writeln!(
        out,
        "cut {bytes} bytes off {} at byte {offset}, saved to {}",
        path.display(),
        saved_to.display()
    )?;
    if is_given_up {
        say_how_to_go_on(path, out)?;
    }
    out.flush()?;
    Ok(EXIT_CLEAN)
}

/// Copies everything from `offset` on to a new file beside the log. It is on disk before this returns.
fn save_tail(file: &mut File, path: &Path, offset: u64) -> anyhow::Result<(PathBuf, u64)> {
    let mut attempt = 1;
    let (saved_to, mut copy) = loop {
        let suffix = if attempt == 1 { format!(".cut-{offset}") } else { format!(".cut-{offset}.{attempt}") };
        let candidate = beside(path, &suffix);
        match OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&candidate) {
            Ok(copy) => break (candidate, copy),
            // An earlier repair has cut here too; the file that it saved is kept.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(error) => return Err(error).context(format!("cannot create {}", candidate.display())),
        }
    };
    let saved = file
        .seek(SeekFrom::Start(offset))
        .and_then(|_| io::copy(file, &mut copy))
        .and_then(|bytes| copy.sync_all().map(|()| bytes));
    if saved.is_err() {
        // Remove a partial copy.
        let _ = fs::remove_file(&saved_to);
    }
    let bytes = saved.with_context(|| format!("cannot save to {}", saved_to.display()))?;
    sync_directory(path)?;
    Ok((saved_to, bytes))
}

// import

fn import(legacy: &Path, path: &Path, line_max: usize, out: &mut impl Write) -> anyhow::Result<u8> {
    let source = open(legacy)?;
    let _lock = lock_beside(path)?;
    ensure!(fs::symlink_metadata(path).is_err(), "{} exists, it is not overwritten", path.display());
    let draft = beside(path, ".import");
    let written = write_import(source, legacy, &draft, line_max);
    // The new log appears whole or not at all, and never replaces another file.
    let renamed = written.and_then(|records| {
        renameat_with(CWD, &draft, CWD, path, RenameFlags::NOREPLACE)
            .with_context(|| format!("cannot name the new log {}", path.display()))?;
        Ok(records)
    });
    if renamed.is_err() {
        let _ = fs::remove_file(&draft);
    }
    let records = renamed?;
    sync_directory(path)?;
    writeln!(out, "imported {records} records from {} into {}", legacy.display(), path.display())?;
    out.flush()?;
    Ok(EXIT_CLEAN)
}

/// Writes the new log under a temporary name and syncs it. Gives the number of records that were imported.
fn write_import(source: File, legacy: &Path, draft: &Path, line_max: usize) -> anyhow::Result<u64> {
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(OWNER_ONLY).open(draft);
    let file = options.with_context(|| format!("cannot create {}", draft.display()))?;
    let context = || format!("cannot write {}", draft.display());
    let mut writer = BufWriter::with_capacity(CHUNK_BYTES, &file);
    let mut line = Vec::new();
    let epoch = Epoch(1);
    let mut seq = Seq(1);
    encode(&Operation::Cluster(ClusterId(random()?)), seq, epoch, Seq(0), &mut line);
    seq = seq.next();
    let mark = ReignMark { id: ReignId(random()?), fsync: SyncMode::Always, given_up: Vec::new() };
    let begun = Operation::Epoch { address: "import".into(), mark: Some(mark) };
    encode(&begun, seq, epoch, Seq(0), &mut line);
    writer.write_all(&line).with_context(context)?;
    let Walk { position, verdict } = walk(source, CrashKind::SameBoot, line_max, |record, _| {
        ensure!(
            matches!(record.body, Body::Write(_) | Body::Delete(_) | Body::Apply(_)),
            "it is already a log with trailers"
        );
        seq = seq.next();
        line.clear();
        encode(&record.to_operation(), seq, epoch, Seq(0), &mut line);
        ensure!(line.len() <= line_max, "record {} is too long, see --max-value", record.seq);
        writer.write_all(&line).with_context(context)
    })
    .with_context(|| format!("cannot import {}", legacy.display()))?;
    if verdict.is_some() {
        let (line, offset) = (position.line + 1, position.offset);
        bail!(
            "cannot import {}: line {line} (byte {offset}) is not of the original program",
            legacy.display()
        );
    }
    // The file gets its final name only when it is on disk, so the mark is true for every reader.
    line.clear();
    encode(&Operation::Synced, seq, epoch, seq, &mut line);
    writer.write_all(&line).and_then(|()| writer.flush()).with_context(context)?;
    drop(writer);
    file.sync_all().with_context(|| format!("cannot sync {}", draft.display()))?;
    Ok(position.seq.0)
}

/// A random number, for an id.
fn random() -> anyhow::Result<u64> {
    let mut random = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.context("cannot read /dev/urandom")?;
    Ok(u64::from_le_bytes(random))
}

// Files and locks.

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn sync_directory(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.with_context(|| format!("cannot sync directory {}", parent.display()))
}

/// Takes the lock of the log's writer, without waiting.
fn lock_beside(path: &Path) -> anyhow::Result<File> {
    let lock_path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY);
    let open = options.open(&lock_path);
    let file = open.with_context(|| format!("cannot open {}", lock_path.display()))?;
    lock(&file, path)?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> anyhow::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let holder = lock_text(path, "pid").map_or(String::new(), |pid| format!(" (pid {pid})"));
            bail!("{} is in use by a master{holder}: stop it first", path.display())
        }
        Err(error) => Err(error).context(format!("cannot lock {}", path.display())),
    }
}

/// One value of the lock file's text.
fn lock_text(path: &Path, key: &str) -> Option<String> {
    let mut text = String::new();
    File::open(beside(path, ".lock")).ok()?.take(LOCK_TEXT_MAX as u64).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
}

fn crash_kind(crash: Crash, path: &Path) -> CrashKind {
    let same_boot = || {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        boot.is_some_and(|boot| lock_text(path, "log_boot").as_deref() == Some(boot.trim()))
    };
    match crash {
        Crash::Process => CrashKind::SameBoot,
        Crash::Auto if same_boot() => CrashKind::SameBoot,
        Crash::Auto | Crash::Power => CrashKind::MayHaveLostPower,
    }
}
