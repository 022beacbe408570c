//! What slaves have seen and the log lacks, in a file beside the log (`kv_store.log.witness`): so a restart without those
//! slaves does not serve either.
//!
//! Owns how that file is read and written. What it means is `machine/reign/may_begin.rs`; its text is `witness_file.rs`.

use crate::env::{Env, Group, OpenMode};
use crate::node_error::NodeError;
use dsm_protocol::witness_file::WitnessText;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;

/// The longest text that is read, in bytes.
const NOTED_BYTES_MAX: usize = 64 * 1024;

/// What the file of witnesses says.
///
/// # Errors
/// When it is there and cannot be read: it may say that the log must not be served.
pub(super) async fn read(env: &Env, path: &Path) -> Result<WitnessText, NodeError> {
    let read = async {
        let file = match env.disk().open(path, OpenMode::Read).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.read_at(0, NOTED_BYTES_MAX).await
    };
    let bytes: io::Result<Vec<u8>> = read.await;
    let bytes = bytes.map_err(|error| NodeError::file(path, error))?;
    Ok(WitnessText::parse(&String::from_utf8_lossy(&bytes)))
}

/// The file of witnesses, which is written beside the actor: one text at a time, and the last one in the end.
#[derive(Debug, Default)]
pub(super) struct NotedFile {
    next: RefCell<Option<String>>,
    is_writing: Cell<bool>,
}

impl NotedFile {
    /// Writes a text; an empty one when all of it is settled.
    pub(super) fn write(self: &Rc<Self>, env: &Env, path: &Path, text: String) {
        self.next.replace(Some(text));
        if self.is_writing.replace(true) {
            return;
        }
        let (noted, env, path) = (Rc::clone(self), Rc::clone(env), path.to_owned());
        actix::spawn(async move {
            loop {
                let next = noted.next.take();
                let Some(text) = next else { break };
                if let Err(error) = write_noted(&env, &path, text).await {
                    log::warn!("what slaves have seen is not noted path={} error={error}", path.display());
                }
            }
            noted.is_writing.set(false);
        });
    }
}

/// Writes the text over the one that is there. Nothing is cut before it stands: a full disk, or the end of this process, leaves
/// what was noted before.
async fn write_noted(env: &Env, path: &Path, text: String) -> io::Result<()> {
    if text.is_empty() {
        let file = env.disk().open(path, OpenMode::Existing).await?;
        file.truncate(0).await?;
        return file.sync().await;
    }
    let file = env.disk().open(path, OpenMode::Write).await?;
    let length = text.len();
    let mut bytes = text.into_bytes();
    let before = usize::try_from(file.length().await?).unwrap_or(usize::MAX).min(NOTED_BYTES_MAX);
    // Blank lines say nothing.
    bytes.resize(length.max(before), b'\n');
    let appended = file.append(Group { bytes, sync: true, ..Group::default() }).await;
    if let Some(error) = appended.write_error.or(appended.sync_error) {
        return Err(error);
    }
    file.truncate(length as u64).await?;
    env.disk().sync_directory(path).await
}
