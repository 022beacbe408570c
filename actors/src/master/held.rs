//! What a master holds in its role: the lock, what follows the log, the log itself.
//!
//! Owns how each of them is had: the tailer is started, the log recovered, its writer begun. When is for the machine of the
//! reign to say.

use super::{noted_file, MasterActor};
use crate::env::{Env, File, LockGuard, Post};
use crate::journal::shared_file::log_scan::LogPlace;
use crate::journal::shared_file::log_tailer::{self, LogTailer};
use crate::journal::shared_file::log_writer::{self, LogWriter};
use crate::journal::shared_file::recovery::{Recovered, Recovery};
use crate::node_error::NodeError;
use crate::supervision::PanicGuard;
use actix::prelude::*;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::reign::{Event, FileAtPath};
use dsm_protocol::planted;
use dsm_protocol::record::{CrashKind, Operation};
use dsm_protocol::witness_file::WitnessText;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// What a master holds. Each is there as long as the machine's role wants it.
#[derive(Default)]
pub(super) struct Held {
    /// The lock, from when it is won until it is given back.
    pub(super) guard: Option<Box<dyn LockGuard>>,
    /// Follows the log of a standby.
    pub(super) tailer: Option<Addr<LogTailer>>,
    /// The log, locked and read, until it is written.
    pub(super) opened: Option<OpenLog>,
    /// The log that is written.
    pub(super) log: Option<WrittenLog>,
}

/// The log as a reign needs it.
pub(super) struct OpenLog {
    recovered: Recovered,
    values: Rc<dyn File>,
    sync_file: Rc<dyn File>,
}

/// The log of a reign.
pub(super) struct WrittenLog {
    pub(super) writer: Addr<LogWriter>,
    /// For reads of values.
    pub(super) values: Rc<dyn File>,
    pub(super) cluster: ClusterId,
    reign: Reign,
}

impl Held {
    /// Says that the holder of the lock makes progress: the standby kills one that does not.
    pub(super) fn advance(&self) {
        if let Some(guard) = &self.guard {
            guard.advance();
        }
    }
}

impl MasterActor {
    /// Follows the log from where what was replayed ends.
    pub(super) fn follow(&mut self, ctx: &mut Context<Self>) {
        let tailer = Self::tailer(&self.env, &self.config, &self.replayed, &self.fate, &self.turns, ctx);
        self.held.tailer = Some(tailer);
    }

    /// Locks the log, makes it whole and reads it; one is made first, if there is none and `makes_file` says so.
    pub(super) fn recover(&mut self, makes_file: bool, ctx: &mut Context<Self>) {
        let Some(guard) = &self.held.guard else { return };
        let same_boot =
            guard.previous().log_boot.as_deref() == Some(&self.env.boot_id()) || planted!(EveryCrashSameBoot);
        let same_boot = same_boot && !planted!(EveryCrashPowerCut);
        let recovery = Recovery {
            env: Rc::clone(&self.env),
            path: self.config.log.clone(),
            line_bytes_max: Self::line_bytes_max(&self.config),
            fsync: self.config.fsync,
            crash: if same_boot { CrashKind::SameBoot } else { CrashKind::MayHaveLostPower },
            from: self.replayed.clone(),
            replayed: ctx.address().recipient(),
            makes_file,
        };
        let path = self.config.log.clone();
        let (env, witness_path) = (Rc::clone(&self.env), self.config.witness_path());
        let opening = async move {
            let noted = noted_file::noted(&env, &witness_path).await?;
            let Some(recovered) = recovery.run().await? else { return Ok((None, noted)) };
            let error = |error: io::Error| NodeError::file(&path, error);
            // Of the file that is locked, whatever stands at the path by now.
            let values = recovered.file.duplicate().await.map_err(error)?;
            let sync_file = recovered.file.duplicate().await.map_err(error)?;
            Ok((Some(OpenLog { recovered, values, sync_file }), noted))
        };
        ctx.spawn(opening.into_actor(self).map(
            |opened: Result<(Option<OpenLog>, WitnessText), NodeError>, master, ctx| match opened {
                Ok((opened, noted)) => master.recovered(opened, noted, ctx),
                Err(error) => master.fail(error),
            },
        ));
    }

    /// The file is locked and read, or there is none: from now on it is asked whether a reign may begin on it.
    fn recovered(&mut self, opened: Option<OpenLog>, noted: WitnessText, ctx: &mut Context<Self>) {
        let now = self.env.now();
        let recovered = opened.as_ref().map(|opened| &opened.recovered);
        let event = Event::Recovered {
            log: recovered.map(|recovered| (&recovered.position).into()),
            read: recovered.map(|recovered| FileAtPath {
                device: recovered.identity.device,
                inode: recovered.identity.inode,
                bytes: recovered.position.offset,
            }),
            noted,
        };
        self.held.opened = opened;
        self.step_reign(now, event);
        self.hear(now);
        self.perform_reign(now, ctx);
    }

    /// Begins to write the log, with an EPOCH record.
    pub(super) fn write_epoch(&mut self, epoch: Epoch, given_up: Vec<Reign>, ctx: &mut Context<Self>) {
        let Some(OpenLog { recovered, values, sync_file }) = self.held.opened.take() else { return };
        let Recovered { file, position, identity } = recovered;
        let reign = Reign { epoch, id: ReignId(self.env.random()) };
        let (cluster, head) = match position.cluster {
            Some(id) => (id, None),
            None => {
                let id = ClusterId(self.env.random());
                log::info!("new log path={} cluster={id}", self.config.log.display());
                (id, Some(Operation::Cluster(id)))
            }
        };
        for reign in &given_up {
            self.machine.replay_given_up(*reign);
        }
        self.replayed = log_tailer::Start { place: LogPlace::durable(position), file: Some(identity) };
        let writer = LogWriter::new(
            log_writer::Start {
                file,
                sync_file,
                post: Post { path: self.config.log.as_path().into(), identity },
                position,
                reign,
                given_up,
                head,
                address: self.address.clone(),
                fsync: self.config.fsync,
            },
            log_writer::Ports {
                written: ctx.address().recipient(),
                epoch: ctx.address().recipient(),
                failed: ctx.address().recipient(),
                displaced: ctx.address().recipient(),
                abandoned: ctx.address().recipient(),
                synced: ctx.address().recipient(),
                closed: ctx.address().recipient(),
                reopened: ctx.address().recipient(),
            },
            PanicGuard::new("LogWriter", self.fate.clone()),
        )
        .counting(Rc::clone(&self.turns))
        .start();
        self.held.log = Some(WrittenLog { writer, values, cluster, reign });
    }

    /// Says in the lock file, for people and for fencing, whose reign this is and that the log is whole.
    pub(super) fn write_lock_text(&mut self, serves: bool) {
        let (Some(guard), Some(log)) = (&self.held.guard, &self.held.log) else { return };
        let mut text = LockText {
            pid: Some(self.env.pid()),
            address: Some(self.address.clone()),
            log_boot: Some(self.env.boot_id()),
            ..guard.held()
        };
        if serves {
            text.cluster = self.cluster.get();
            text.epoch = Some(log.reign.epoch);
            text.reign = Some(log.reign.id);
        }
        guard.write_text(text);
    }

    /// Looks at the path, beside this thread.
    pub(super) fn look_at_path(&mut self, ctx: &mut Context<Self>) {
        let looking = look(Rc::clone(&self.env), self.config.log.clone());
        ctx.spawn(looking.into_actor(self).map(|seen, master, ctx| {
            let now = master.env.now();
            // What cannot be seen now may be at the next look.
            master.step_reign(now, Event::PathSeen(seen.unwrap_or_default()));
            master.perform_reign(now, ctx);
        }));
    }

    /// The identity of the reign whose log is written.
    pub(super) fn written_reign(&self) -> Option<Reign> {
        self.held.log.as_ref().map(|log| log.reign)
    }
}

async fn look(env: Env, path: PathBuf) -> io::Result<Option<FileAtPath>> {
    let Some(identity) = env.disk().identity(&path).await? else { return Ok(None) };
    let file = env.disk().open(&path, crate::env::OpenMode::Read).await?;
    if file.identity().await? != identity {
        return Ok(None);
    }
    let bytes = file.length().await?;
    Ok(Some(FileAtPath { device: identity.device, inode: identity.inode, bytes }))
}
