//! `dsm-log backup` and `restore`: a copy of a log that a master may be writing and compacting, and a log from such a copy.
//!
//! Reads the log without any lock. That is enough: the file at the log's path holds every record that was acknowledged before it
//! was opened, nobody changes a whole line in it, and one that compaction has replaced stays as it was for whoever has it open.
//! Memory is bounded by the longest line. What is in the copy is decided by `dsm_protocol::record::LogCopier`.

use crate::mend::place_of;
use crate::{
    beside, cli, crash_kind, explain, lock_beside, open, random, read_more, sync_directory, text_of, walk,
    write_lock_text, Census, Crash, Walk, CHUNK_BYTES, EXIT_CLEAN, OWNER_ONLY,
};
use anyhow::{bail, ensure, Context as _};
use dsm_protocol::ids::{ClusterId, Seq};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::record::{Body, CopiedLog, CrashKind, Judge, LogCopier, NotCopied, Scanner, Step, Verdict};
use rustix::fs::{fadvise, renameat_with, Advice, RenameFlags, CWD};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// So much is left to be synced at most, in bytes: one sync of all would hold up those of a master on the same disk.
const SYNC_BYTES: u64 = 16 << 20;

/// What is copied, and where.
#[derive(clap::Args)]
pub(crate) struct BackupArgs {
    /// The log, which a master may be writing
    #[arg(long, value_name = "FILE", default_value = "kv_store.log")]
    pub(crate) log: PathBuf,
    /// The backup; the file must not exist
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The last record to copy; without it, all that there are
    #[arg(long, value_name = "SEQ")]
    until: Option<u64>,
    /// Count the keys, too; they must fit into memory
    #[arg(long)]
    count_keys: bool,
}

/// What is restored, and where.
#[derive(clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup, or another copy of a log
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The log; the file must not exist, or be empty
    #[arg(long, value_name = "FILE", default_value = "kv_store.log")]
    pub(crate) to: PathBuf,
    /// The last record to restore; without it, all that there are
    #[arg(long, value_name = "SEQ")]
    until: Option<u64>,
    /// Keep the cluster id, so that `repair --from-slaves` can fetch newer records from slaves that still run
    #[arg(long, conflicts_with = "until")]
    keep_cluster: bool,
    /// Count the keys, too; they must fit into memory
    #[arg(long)]
    count_keys: bool,
}

/// Copies the log as it is now.
pub(crate) fn backup(
    args: &BackupArgs,
    crash: Crash,
    line_max: usize,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let (log, to) = (args.log.as_path(), args.to.as_path());
    ensure!(fs::symlink_metadata(to).is_err(), "{} exists, it is not overwritten", to.display());
    // What is acknowledged by now is in the file that is opened next.
    let begun = SystemTime::now();
    let mut source = Source::open(log, crash_kind(crash, log), line_max)?;
    let draft = NewFile::create(beside(to, ".partial"))?;
    let made = source
        .copy_to(&draft, LogCopier::new(args.until.map(Seq), None))
        .and_then(|copied| finish(log, &draft, copied, (args.count_keys, line_max)));
    let made = made.and_then(|made| made.map(|done| draft.name(to).map(|()| done)).transpose());
    let Some((copied, checked)) = removing(&draft, made)? else {
        return Ok(explain(log, source.verdict.as_ref()));
    };
    writeln!(out, "file              {}", to.display())?;
    writeln!(out, "log               {}", log.display())?;
    writeln!(out, "begun             {}", humantime::format_rfc3339_seconds(begun))?;
    writeln!(out, "cluster           {}", copied.cluster)?;
    say(&copied, &checked, out)?;
    Ok(EXIT_CLEAN)
}

/// Makes a log of a backup.
pub(crate) fn restore(
    args: &RestoreArgs,
    crash: Crash,
    line_max: usize,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let (from, path) = (args.from.as_path(), args.to.as_path());
    let mut source = Source::open(from, crash_kind(crash, from), line_max)?;
    let mut lock_file = lock_beside(path)?;
    let place = free_place(path)?;
    let text = LockText::parse(&text_of(&mut lock_file)?);
    let new = if args.keep_cluster { None } else { Some(ClusterId(random()?)) };
    let draft = NewFile::create(beside(&place, ".restore"))?;
    let made = source
        .copy_to(&draft, LogCopier::new(args.until.map(Seq), new))
        .and_then(|copied| finish(from, &draft, copied, (args.count_keys, line_max)));
    let made = made.and_then(|made| {
        let Some(done) = made else { return Ok(None) };
        let old = done.0.cluster;
        if let Some(named) = text.cluster.filter(|named| args.keep_cluster && *named != old) {
            bail!(
                "the lock file beside {} names cluster {named}, and the backup is of cluster {old}: restore it without \
                 --keep-cluster",
                path.display()
            );
        }
        // An empty file is replaced. Only masters keep to the lock, so it is looked at once more.
        if fs::symlink_metadata(&free_place(path)?).is_ok() {
            fs::remove_file(&place).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        draft.name(&place).map(|()| Some(done))
    });
    let Some((copied, checked)) = removing(&draft, made)? else {
        return Ok(explain(from, source.verdict.as_ref()));
    };
    writeln!(out, "file              {}", path.display())?;
    writeln!(out, "backup            {}", from.display())?;
    match new {
        Some(new) => {
            // Both are about what was here before.
            let _ = fs::remove_file(beside(path, ".witness"));
            let text = LockText { cluster: None, epoch: None, reign: None, ..text };
            write_lock_text(&lock_file, &text).with_context(|| {
                format!(
                    "{0} is restored, but its lock file still names another cluster: run `dsm-log forget {0}`",
                    path.display()
                )
            })?;
            writeln!(out, "cluster           {new} (before: {})", copied.cluster)?;
        }
        None => writeln!(out, "cluster           {}", copied.cluster)?,
    }
    say(&copied, &checked, out)?;
    Ok(EXIT_CLEAN)
}

fn say(copied: &CopiedLog, checked: &Checked, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "last epoch        {}", copied.epoch)?;
    writeln!(out, "last seq          {}", copied.seq)?;
    writeln!(out, "records           {}", copied.records)?;
    if let Some(keys) = checked.keys {
        writeln!(out, "keys              {keys}")?;
    }
    writeln!(out, "bytes             {}", checked.bytes)?;
    writeln!(out, "state             on disk, and read back")?;
    out.flush()
}

/// Where a log may be restored to: nothing is there, or an empty file.
fn free_place(path: &Path) -> anyhow::Result<PathBuf> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(path.to_owned());
    }
    let place = place_of(path)?;
    let there = fs::metadata(&place).with_context(|| format!("cannot look at {}", path.display()))?;
    let is_empty = there.is_file() && there.len() == 0;
    ensure!(is_empty, "{} exists, it is not overwritten: move it away first", path.display());
    Ok(place)
}

/// Removes the new file where there is no result.
fn removing<T>(draft: &NewFile, made: anyhow::Result<Option<T>>) -> anyhow::Result<Option<T>> {
    if !matches!(made, Ok(Some(_))) {
        let _ = fs::remove_file(&draft.path);
    }
    made
}

/// The new file under its temporary name.
struct NewFile {
    path: PathBuf,
    file: File,
}

impl NewFile {
    /// Takes the name, or what a run has left there that was killed.
    fn create(path: PathBuf) -> anyhow::Result<NewFile> {
        let context = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(OWNER_ONLY);
        let file = options.open(&path).with_context(context)?;
        // Another run may be writing it, or have given it its name just now.
        let is_ours = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok();
        let named = fs::metadata(&path).map(|named| (named.dev(), named.ino())).ok();
        let ours = file.metadata().map(|ours| (ours.dev(), ours.ino())).ok();
        ensure!(is_ours && named == ours, "{} is being written by another process", path.display());
        // What is left there may have been another's.
        file.set_permissions(fs::Permissions::from_mode(OWNER_ONLY)).with_context(context)?;
        file.set_len(0).with_context(context)?;
        Ok(NewFile { path, file })
    }

    /// Gives the file its name, at which there must be none.
    fn name(&self, to: &Path) -> anyhow::Result<()> {
        let named = match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // A file system of a network may not know how.
            Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
                fs::rename(&self.path, to)
            }
            named => named.map_err(io::Error::from),
        };
        named.with_context(|| format!("cannot take the name {}", to.display()))?;
        sync_directory(to)
    }
}

/// A log that may be written while it is read.
struct Source<'p> {
    path: &'p Path,
    file: File,
    /// Bytes beyond this came later.
    end: u64,
    crash: CrashKind,
    line_max: usize,
    /// What is wrong with it.
    verdict: Option<Verdict>,
}

/// The bytes of the source that are read and not copied yet.
struct Window {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
}

impl Window {
    fn new() -> Window {
        Window { buffer: vec![0; CHUNK_BYTES], start: 0, end: 0, at_end: false }
    }
}

impl<'p> Source<'p> {
    fn open(path: &'p Path, crash: CrashKind, line_max: usize) -> anyhow::Result<Source<'p>> {
        let file = open(path)?;
        let end = file.metadata()?.len();
        Ok(Source { path, file, end, crash, line_max, verdict: None })
    }

    /// Copies all good lines. Gives nothing if the log is corrupt.
    fn copy_to(&mut self, draft: &NewFile, copier: LogCopier) -> anyhow::Result<Option<(CopiedLog, u64)>> {
        self.copy(draft, copier).with_context(|| format!("cannot copy {}", self.path.display()))
    }

    fn copy(&mut self, draft: &NewFile, mut copier: LogCopier) -> anyhow::Result<Option<(CopiedLog, u64)>> {
        let mut scanner = Scanner::new(self.line_max);
        let mut window = Window::new();
        let mut reread_at = None;
        let mut output = Output::new(&draft.file);
        while !copier.is_done() {
            let before = scanner.position().offset;
            let rest = &window.buffer[window.start..window.end];
            match scanner.next(rest) {
                Step::Record { record, span } => {
                    copier.take(&record, &rest[..span.bytes as usize], &mut output.waiting)?;
                    output.write_some()?;
                }
                // What the original program has read.
                Step::Ignored => {}
                Step::Partial if window.at_end => {
                    self.leave_out(rest.len());
                    break;
                }
                Step::Partial => {
                    self.read(&mut window, before)?;
                    continue;
                }
                Step::Bad(bad) => match scanner.pass_damaged_mark(rest) {
                    Some(true) => {
                        cli::tell(&format!(
                            "warning: the SYNCED mark at byte {before} is damaged, and left out"
                        ));
                    }
                    None if !window.at_end => {
                        self.read(&mut window, before)?;
                        continue;
                    }
                    // A new master may just have cut the torn tail of the one before, and written on.
                    Some(false) | None if reread_at != Some(before) => {
                        reread_at = Some(before);
                        window = Window::new();
                        continue;
                    }
                    Some(false) | None => {
                        let verdict = self.judge(Judge::new(bad, self.crash, self.line_max), before)?;
                        let is_torn = matches!(verdict, Verdict::Torn { .. });
                        if is_torn {
                            explain(self.path, Some(&verdict));
                            break;
                        }
                        self.verdict = Some(verdict);
                        return Ok(None);
                    }
                },
            }
            window.start += usize::try_from(scanner.position().offset - before)?;
        }
        let copied = copier.end(&mut output.waiting).map_err(|why| self.not_copied(why))?;
        Ok(Some((copied, output.end()?)))
    }

    /// Reads more behind what the window has of the bytes from `offset` on.
    fn read(&self, window: &mut Window, offset: u64) -> io::Result<()> {
        let Window { buffer, start, end, at_end } = window;
        let from = offset + (*end - *start) as u64;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(from))?;
        read_more(&mut file.take(self.end.saturating_sub(from)), buffer, start, end, at_end)
    }

    /// What everything from a bad line on says about it.
    fn judge(&self, mut judge: Judge, offset: u64) -> io::Result<Verdict> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        let mut buffer = vec![0; CHUNK_BYTES];
        while !judge.is_decided() {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            judge.push(&buffer[..read]);
        }
        Ok(judge.finish())
    }

    fn leave_out(&self, bytes: usize) {
        if bytes > 0 {
            cli::tell(&format!(
                "the last line of {} is not finished ({bytes} bytes): it is left out",
                self.path.display()
            ));
        }
    }

    fn not_copied(&self, why: NotCopied) -> anyhow::Error {
        match why {
            NotCopied::TooShort(_) | NotCopied::Compacted(_) => anyhow::anyhow!("--until: {why}"),
            NotCopied::NoCluster | NotCopied::ClusterLine => anyhow::Error::new(why),
        }
    }
}

/// What is written to the new file.
struct Output<'f> {
    file: &'f File,
    waiting: Vec<u8>,
    bytes: u64,
    synced: u64,
}

impl Output<'_> {
    fn new(file: &File) -> Output<'_> {
        Output { file, waiting: Vec::new(), bytes: 0, synced: 0 }
    }

    fn write_some(&mut self) -> anyhow::Result<()> {
        if self.waiting.len() >= CHUNK_BYTES {
            self.write().context("cannot write the new file")?;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.waiting)?;
        self.bytes += self.waiting.len() as u64;
        self.waiting.clear();
        if self.bytes - self.synced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.synced = self.bytes;
        }
        Ok(())
    }

    /// All of it is on disk after this. Gives its length.
    fn end(mut self) -> anyhow::Result<u64> {
        self.write().and_then(|()| self.file.sync_all()).context("cannot write the new file")?;
        Ok(self.bytes)
    }
}

/// What was found when the new file was read back.
struct Checked {
    bytes: u64,
    keys: Option<usize>,
}

/// Reads the new file back, from the disk as far as the system allows, and compares it with what was meant to be written.
fn finish(
    source: &Path,
    draft: &NewFile,
    copied: Option<(CopiedLog, u64)>,
    (count_keys, line_max): (bool, usize),
) -> anyhow::Result<Option<(CopiedLog, Checked)>> {
    let Some((copied, bytes)) = copied else { return Ok(None) };
    let context = || format!("cannot read {} back", draft.path.display());
    let file = File::open(&draft.path).with_context(context)?;
    // It is only asked to forget what it has in memory; it may decline.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let (mut census, mut records) = (Census::default(), 0);
    let Walk { position, verdict } = walk(&file, CrashKind::MayHaveLostPower, line_max, |record, span| {
        records += u64::from(!matches!(record.body, Body::Synced));
        if count_keys {
            census.count(record, span);
        }
        Ok(())
    })
    .with_context(context)?;
    let found = (verdict, position.offset, position.seq, position.epoch, records);
    ensure!(
        found == (None, bytes, copied.seq, copied.epoch, copied.records) && position.ends_with_mark,
        "{} is not what was written to it: look at its disk",
        draft.path.display()
    );
    ensure!(
        !position.is_half_repaired,
        "a repair of {} from slaves has not come to its end: run `dsm-log repair --from-slaves` again first",
        source.display()
    );
    let keys = count_keys.then_some(census.live.len());
    Ok(Some((copied, Checked { bytes, keys })))
}
