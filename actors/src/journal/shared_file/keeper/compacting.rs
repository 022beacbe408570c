//! What the keeper does for the log of a reign that is to be compacted, and after that.
//!
//! Owns no state of its own and no rule: `machine/compaction.rs` says when, [`Compactor`] does it, and [`Relocator`] tells the
//! master where the values are since then.

use super::{log_id, KeeperStage, LogKeeper};
use crate::env::{File, FileIdentity};
use crate::journal::copying::{draft_path, GivenUp, MasterAsked, NotCompacted};
use crate::journal::shared_file::compactor::{Compacted, Compactor};
use crate::journal::shared_file::log_tailer;
use crate::journal::shared_file::log_writer::{GoOn, Handoff, LogWriter};
use crate::journal::shared_file::relocator::Relocator;
use crate::journal::{CompactionNews, LogEvent};
use crate::node_error::{LogStep, NodeError};
use actix::prelude::*;
use dsm_protocol::ids::{Millis, Seq};
use dsm_protocol::machine::compaction::{Advice, LogSizes};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::oneshot;

impl LogKeeper {
    /// A master that ended while it compacted the log has left its copy, or the log as it was before. What is at the path is
    /// whole: it is replayed.
    pub(super) fn remove_draft(&mut self, ctx: &mut Context<Self>) {
        let (disk, path) = (self.setup.env.disk(), self.setup.path.clone());
        let removing = async move {
            let draft = draft_path(&disk.resolve(&path).await?);
            let Some(identity) = disk.identity(&draft).await? else { return Ok(None) };
            Ok::<_, io::Error>(disk.remove(&draft, identity).await?.then_some(draft))
        };
        // Until then no copy is begun, which would have the same name.
        self.is_tidying = true;
        ctx.spawn(removing.into_actor(self).map(|removed, keeper, _| {
            keeper.is_tidying = false;
            match removed {
                Ok(Some(draft)) => log::info!("unfinished copy of the log removed path={}", draft.display()),
                Ok(None) => {}
                Err(error) => log::warn!("unfinished copy of the log not removed error={error}"),
            }
        }));
    }

    /// Looks whether it is time to compact the log.
    pub(super) fn weigh(&mut self, sizes: LogSizes, ctx: &mut Context<Self>) {
        self.sizes.set(sizes);
        let is_moving = self.relocating.is_some() || self.compacting.is_some() || self.is_tidying;
        if is_moving || !matches!(self.stage, KeeperStage::Reigning { .. }) {
            return;
        }
        let env = Rc::clone(&self.setup.env);
        if self.rule.borrow_mut().weigh(env.now(), sizes) != Advice::LookForRoom {
            return;
        }
        let path = self.setup.path.clone();
        let looking = async move { env.disk().free_bytes(&path).await };
        ctx.spawn(looking.into_actor(self).map(|free, keeper, ctx| match free {
            Ok(free) => keeper.decide(free, ctx),
            Err(error) => log::debug!("room of the log's disk is not known error={error}"),
        }));
    }

    fn decide(&mut self, free_bytes: u64, ctx: &mut Context<Self>) {
        let KeeperStage::Reigning { file, .. } = self.stage else { return };
        let Some((writer, handoff)) = self.hot.writer() else { return };
        let sizes = self.sizes.get();
        let advice = self.rule.borrow_mut().decide(sizes, free_bytes);
        match advice {
            Advice::Wait | Advice::LookForRoom => {}
            Advice::NoRoom { needed_bytes, free_bytes } => {
                log::warn!(
                    "log is not compacted, the disk has no room for a copy needed_bytes={needed_bytes} free_bytes={free_bytes}"
                );
                self.tell(LogEvent::Compaction(CompactionNews::NoRoom { needed_bytes, free_bytes }));
            }
            Advice::Begin => {
                let values = self.hot.volumes.borrow().current();
                let Some(values) = values else { return self.rule.borrow_mut().given_up() };
                self.compact(file, (writer, handoff), values, ctx);
            }
        }
    }

    fn compact(
        &mut self,
        old_identity: FileIdentity,
        (writer, handoff): (Addr<LogWriter>, Rc<RefCell<Handoff>>),
        values: Rc<dyn File>,
        ctx: &mut Context<Self>,
    ) {
        let sizes = self.sizes.get();
        log::info!(
            "log is compacted path={} bytes={} live_bytes={}",
            self.setup.path.display(),
            sizes.log_bytes,
            sizes.live_bytes
        );
        let given_up = Rc::<GivenUp>::default();
        self.compacting = Some(Rc::clone(&given_up));
        let (setup, rule, sizes) = (Rc::clone(&self.setup), Rc::clone(&self.rule), Rc::clone(&self.sizes));
        let number = self.hot.volumes.borrow().number().next();
        let (begun, writer) = (setup.env.now(), writer.downgrade());
        let compacting = async move {
            // Reads of values do not wait for the copy.
            let old = values.duplicate().await?;
            let compactor = Compactor {
                env: Rc::clone(&setup.env),
                path: setup.path.clone(),
                line_bytes_max: setup.line_bytes_max,
                asked: MasterAsked { events: setup.events.clone(), given_up },
                writer,
                handoff,
                old,
                old_identity,
                number,
                rule,
                sizes,
            };
            compactor.run().await
        };
        // Not as a part of this actor, with which it would end between two steps: while the files are exchanged nobody else
        // may have the log.
        let (answer, answered) = oneshot::channel();
        actix::spawn(async move { drop(answer.send(compacting.await)) });
        ctx.spawn(answered.into_actor(self).map(move |compacted, keeper, ctx| {
            keeper.compacting = None;
            match compacted {
                Ok(compacted) => keeper.compacted(compacted, begun, ctx),
                Err(_) => keeper.compaction_panicked(),
            }
        }));
    }

    fn compacted(
        &mut self,
        compacted: Result<Compacted, NotCompacted>,
        begun: Millis,
        ctx: &mut Context<Self>,
    ) {
        let now = self.setup.env.now();
        let path = self.setup.path.display();
        let news = match compacted {
            Ok(compacted) => {
                let Compacted { values, identity, number, moved_to, bytes, .. } = compacted;
                let Compacted { live_bytes, copied_bytes, held_us, writer, through, .. } = compacted;
                self.rule.borrow_mut().done(live_bytes, copied_bytes);
                let took_ms = now.since(begun);
                log::info!("log was compacted path={path} bytes={bytes} took_ms={took_ms} writes_waited_us={held_us}");
                let reigns = if self.hot.has_lock() { Some(&mut self.stage) } else { None };
                if let Some(KeeperStage::Reigning { file, .. }) = reigns {
                    *file = identity;
                    let given = self.hot.volumes.borrow_mut().go_on_in(values, None);
                    debug_assert_eq!(given, number);
                    (self.replayed.file, self.replayed.number) = (Some(identity), number);
                    self.tell(LogEvent::Replaced { log: log_id(identity), bytes });
                    self.relocate(moved_to, Some(through), ctx);
                } else {
                    // The reign has ended meanwhile: whoever follows the log next reads it from its start.
                    self.replayed = log_tailer::Start::default();
                }
                writer.do_send(GoOn { grown: 0 });
                CompactionNews::Done { took_ms, held_us }
            }
            Err(NotCompacted::GivenUp) => {
                log::info!("compaction of the log given up path={path}");
                self.rule.borrow_mut().given_up();
                CompactionNews::GivenUp
            }
            Err(NotCompacted::Failed(error)) => {
                log::warn!("log not compacted, it goes on as it is path={path} error={error}");
                self.rule.borrow_mut().failed(now);
                CompactionNews::Failed(error.to_string())
            }
            Err(NotCompacted::Unknown(error)) => {
                log::error!("log failed error=\"the log cannot be {}: {error}\"", LogStep::Exchange);
                let cause = Arc::new(error);
                self.tell(LogEvent::Failed(NodeError::LogFailed { step: LogStep::Exchange, cause }));
                return;
            }
        };
        self.tell(LogEvent::Compaction(news));
    }

    /// Nothing is known of what it has done to the files.
    fn compaction_panicked(&self) {
        let cause = Arc::new(io::Error::other("the compaction has panicked"));
        self.tell(LogEvent::Failed(NodeError::LogFailed { step: LogStep::Exchange, cause }));
    }

    pub(super) fn stop_compacting(&mut self) {
        if let Some(compacting) = &self.compacting {
            compacting.give_up();
        }
    }

    /// Tells the master where the values stand that the log had when it went on in this file, and lets the old one go. First it
    /// must have taken in all records through `settled`.
    pub(super) fn relocate(&mut self, through: u64, settled: Option<Seq>, ctx: &mut Context<Self>) {
        self.stop_relocating(ctx);
        let volumes = self.hot.volumes.borrow();
        let Some(file) = volumes.current() else { return };
        let old = volumes.old();
        let relocator = Relocator {
            env: Rc::clone(&self.setup.env),
            events: self.setup.events.clone(),
            file,
            number: volumes.number(),
            through,
            settled,
            line_bytes_max: self.setup.line_bytes_max,
            old: old.clone(),
            hot: Some(Rc::clone(&self.hot)),
            with_members: false,
            rule: Rc::clone(&self.rule),
            sizes: Rc::clone(&self.sizes),
        };
        drop(volumes);
        let relocating = relocator.run().into_actor(self).map(move |relocated, keeper, _| {
            match relocated {
                Ok(()) => {
                    keeper.relocating = None;
                    old.into_iter().for_each(|number| keeper.hot.volumes.borrow_mut().forget(number));
                }
                // The old file stays open, and the log is not compacted again before a restart, which reads the whole log.
                Err(error) => {
                    log::error!("compacted log not read, the old one stays open error={error}");
                    keeper.tell(LogEvent::Compaction(CompactionNews::Failed(error.to_string())));
                }
            }
        });
        self.relocating = Some(ctx.spawn(relocating));
    }

    pub(super) fn stop_relocating(&mut self, ctx: &mut Context<Self>) {
        if let Some(relocating) = self.relocating.take() {
            ctx.cancel_future(relocating);
        }
    }
}
