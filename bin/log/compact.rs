//! `dsm-log compact`: writes a log anew without what was overwritten and deleted, as a master does while it serves.

use crate::mend::{create_draft, place_of};
use crate::{beside, explain, lock, lock_beside, read_more, sync_directory, walk, CHUNK_BYTES, EXIT_CLEAN};
use anyhow::{ensure, Context as _};
use dsm_protocol::ids::Version;
use dsm_protocol::record::{
    encode, Body, CrashKind, Encoded, EncodedEffect, Operation, Record, Rewriter, Scanner, Step,
};
use rustix::fs::{renameat_with, RenameFlags, CWD};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::path::Path;

/// The latest version of each key that exists.
type Latest = HashMap<Box<[u8]>, Version>;

fn version(record: &Record<'_>) -> Version {
    Version { epoch: record.epoch, seq: record.seq }
}

/// Compacts the log at `path`, which nobody may have open for writing.
pub(crate) fn compact(
    path: &Path,
    crash: CrashKind,
    line_max: usize,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let _held = lock_beside(path)?;
    let open = OpenOptions::new().read(true).write(true).open(path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    lock(&file, path)?;
    let mut latest = Latest::new();
    let walked = walk(&file, crash, line_max, |record, _| {
        match record.body {
            Body::Write(pairs) => {
                latest.extend(pairs.map(|(key, _)| (key.decode().into(), version(record))));
            }
            Body::Delete(keys) => keys.for_each(|key| {
                latest.remove(&*key.decode());
            }),
            Body::Apply(effects) => effects.for_each(|effect| match effect {
                EncodedEffect::Set { key, .. } => {
                    latest.insert(key.decode().into(), version(record));
                }
                EncodedEffect::Del { key } => {
                    latest.remove(&*key.decode());
                }
            }),
            Body::Cluster(_) | Body::Epoch { .. } | Body::Members(_) | Body::Synced => {}
        }
        Ok(())
    })?;
    // What was put back says which version it was, and the copy would not.
    ensure!(
        !walked.position.is_half_repaired,
        "a repair of {} from slaves has not come to its end: run `dsm-log repair --from-slaves` again first",
        path.display()
    );
    if walked.verdict.is_some() {
        return Ok(explain(path, walked.verdict.as_ref()));
    }
    ensure!(
        walked.position.cluster.is_some(),
        "{} names no cluster: no master has served it yet",
        path.display()
    );
    let place = place_of(path)?;
    let draft_path = beside(&place, ".compact");
    let before = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let written = write(&file, path, &draft_path, &latest, line_max).and_then(|after| {
        renameat_with(CWD, &draft_path, CWD, &place, RenameFlags::EXCHANGE)
            .with_context(|| format!("cannot put the new log in the place of {}", path.display()))?;
        sync_directory(&place)?;
        Ok(after)
    });
    // It is the log as it was, or a copy that has come to nothing.
    let removed = fs::remove_file(&draft_path);
    let after = written?;
    removed.with_context(|| format!("cannot remove {}", draft_path.display()))?;
    writeln!(out, "compacted {}: {before} bytes before, {after} now, {} keys", path.display(), latest.len())?;
    out.flush()?;
    Ok(EXIT_CLEAN)
}

/// Writes the new log, all of it on disk, and gives its length.
fn write(
    file: &File,
    path: &Path,
    draft_path: &Path,
    latest: &Latest,
    line_max: usize,
) -> anyhow::Result<u64> {
    let context = || format!("cannot write {}", draft_path.display());
    let output = create_draft(file, draft_path)?;
    lock(&output, path)?;
    let mut writer = BufWriter::with_capacity(CHUNK_BYTES, &output);
    let (mut rewriter, mut scanner) = (Rewriter::new(line_max), Scanner::new(line_max));
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut start, mut end, mut at_end) = (0, 0, false);
    while !at_end {
        let mut source = file;
        read_more(&mut source, &mut buffer, &mut start, &mut end, &mut at_end)?;
        let Some(last) = memchr::memrchr(b'\n', &buffer[start..end]) else { continue };
        let lines = &buffer[start..=start + last];
        let mut rest = lines;
        let mut live = Vec::new();
        while !rest.is_empty() {
            let before = scanner.position().offset;
            match scanner.next(rest) {
                Step::Record { record, .. } => {
                    let version = version(&record);
                    let is_live = |key: Encoded<'_>| latest.get(&*key.decode()) == Some(&version);
                    match record.body {
                        Body::Write(pairs) => live.extend(pairs.map(|(key, _)| is_live(key))),
                        Body::Apply(effects) => {
                            let set = effects.filter(|effect| effect.value().is_some());
                            live.extend(set.map(|effect| is_live(effect.key())));
                        }
                        Body::Delete(_)
                        | Body::Cluster(_)
                        | Body::Epoch { .. }
                        | Body::Members(_)
                        | Body::Synced => {}
                    }
                }
                Step::Ignored => {}
                Step::Partial | Step::Bad(_) => {
                    anyhow::bail!("the SYNCED mark at byte {before} is damaged: run `dsm-log repair` first")
                }
            }
            rest = &rest[usize::try_from(scanner.position().offset - before)?..];
        }
        let mut rewritten = Vec::new();
        let done = rewriter.rewrite(lines, &[], live.into_iter(), &mut rewritten);
        done.map_err(|bad| anyhow::anyhow!("line {} cannot be read: {}", bad.line, bad.cause))?;
        writer.write_all(&rewritten).with_context(context)?;
        start += last + 1;
    }
    ensure!(start == end, "the last line of {} has no end", path.display());
    let mut joint = Vec::new();
    rewriter.join(&mut joint);
    // Everything is on disk before the file gets its final name, so the mark is true for every reader.
    let position = scanner.position();
    encode(&Operation::Synced, position.seq, position.epoch, position.seq, &mut joint);
    writer.write_all(&joint).and_then(|()| writer.flush()).with_context(context)?;
    output.sync_all().with_context(context)?;
    Ok(output.metadata()?.len())
}
