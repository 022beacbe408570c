//! `LogKeeper`: brings one master's part in a shared log from following to a reign and back.
//!
//! Owns who of the folder's actors runs: the `LogTailer` of a standby, recovery, the `LogWriter` of a reign; the lock
//! between its win and its loss; the looks at the log's path while the right log is not there; in `compacting.rs` the
//! compaction of a reign's log. Decides nothing that a master must decide: it does what is asked by [`KeeperErrand`]s, and passes
//! on what the others tell.

mod compacting;

use super::failover_watcher::{
    self, FailoverWatcher, FenceHolder, LockLooked, LockWon, WaitForLock, WatchLock,
};
use super::log_tailer::{self, Halt, Halted, LogTailer, Look, Replayed, Sighted};
use super::log_writer::{
    self, Abandoned, Closed, EpochWritten, Handoff, LogDisplaced, LogFailed, LogWriter, Reopened, Synced,
};
use super::recovery::{Recovered, Recovery};
use super::witness_notes::{self, NotedFile};
use super::{Hot, OpenLog, SharedFileSetup};
use crate::env::{Env, FileIdentity, LockSeen, Locks, OpenMode, Post};
use crate::journal::copying::GivenUp;
use crate::journal::{LogEvent, LogId, ReplayPart};
use crate::node_error::NodeError;
use crate::supervision::{PanicGuard, Stop};
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::ids::{ClusterId, Epoch, Reign, ReignId, UnixMillis};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::compaction::{Compaction, LogSizes};
use dsm_protocol::machine::log_scan::LogPlace;
use dsm_protocol::planted;
use dsm_protocol::record::{ClockMark, CrashKind, Operation};
use dsm_protocol::witness_file::WitnessText;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What a keeper is asked to do. The words are those of `LogRequest`.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) enum KeeperErrand {
    Watch,
    Queue,
    Oust {
        beat: Option<u64>,
    },
    LeaveQueue,
    GiveUp,
    WhoLeads,
    Follow,
    FollowAnew,
    Look,
    Halt,
    Open {
        makes: bool,
    },
    PutAside,
    Find,
    Note(WitnessText),
    Begin {
        epoch: Epoch,
        given_up: Vec<Reign>,
        time: UnixMillis,
    },
    Declare {
        serves: bool,
    },
    /// Compact the log, if it is time.
    Weigh(LogSizes),
    /// The log is about to be handed over.
    StopCompacting,
    /// Give everything back: the master is gone.
    End,
}

/// How far this master has come with the log.
enum KeeperStage {
    /// Follows it, with the lock or without it.
    Following { tailer: Addr<LogTailer> },
    /// The tailer is told to stop.
    Halting,
    /// Nothing is followed, and no log is open.
    Idle,
    /// Recovery is at work.
    Opening,
    /// The log is whole, locked and replayed; `Hot` has it.
    Open,
    /// A reign's writer has the log.
    Reigning { file: FileIdentity, cluster: ClusterId, reign: Reign },
}

/// The actor. See the module.
pub(super) struct LogKeeper {
    setup: Rc<SharedFileSetup>,
    turns: Rc<TurnLengths>,
    hot: Rc<Hot>,
    watcher: Addr<FailoverWatcher>,
    stage: KeeperStage,
    /// How far the master has taken the log in.
    replayed: log_tailer::Start,
    /// Parts of the log that the master has not taken in yet.
    under_way: usize,
    /// Whether the tailer that was told to stop has.
    has_halted: bool,
    /// Whether no lock is wanted any more.
    has_left: bool,
    notes: Rc<NotedFile>,
    /// When the log is compacted.
    rule: Rc<RefCell<Compaction>>,
    sizes: Rc<Cell<LogSizes>>,
    /// By which a compaction under way is told to stop.
    compacting: Option<Rc<GivenUp>>,
    /// Whether it is looked for a copy that somebody else has left.
    is_tidying: bool,
    /// The one who tells the master where values stand since the last one.
    relocating: Option<SpawnHandle>,
    guard: PanicGuard,
}

impl LogKeeper {
    /// A keeper of a master that has read nothing yet, and follows.
    pub(super) fn new(
        setup: SharedFileSetup,
        turns: Rc<TurnLengths>,
        hot: Rc<Hot>,
        ctx: &mut Context<Self>,
    ) -> Self {
        let setup = Rc::new(setup);
        let watcher = FailoverWatcher::new(
            Rc::clone(&setup.env),
            setup.lock_path.clone(),
            setup.fence,
            failover_watcher::Ports { looked: ctx.address().recipient(), won: ctx.address().recipient() },
            setup.fate.clone(),
        )
        .start();
        let replayed = log_tailer::Start::default();
        let tailer = tailer(&setup, &turns, &replayed, &hot, ctx);
        LogKeeper {
            rule: Rc::new(RefCell::new(Compaction::new(setup.compact_min_bytes))),
            sizes: Rc::default(),
            compacting: None,
            is_tidying: false,
            relocating: None,
            guard: PanicGuard::new("LogKeeper", setup.fate.clone()),
            setup,
            turns,
            hot,
            watcher,
            stage: KeeperStage::Following { tailer },
            replayed,
            under_way: 0,
            has_halted: false,
            has_left: false,
            notes: Rc::default(),
        }
    }

    fn tell(&self, event: LogEvent) {
        self.setup.events.do_send(event);
    }

    fn halt(&mut self) {
        if let KeeperStage::Following { tailer } = &self.stage {
            tailer.do_send(Halt);
            self.has_halted = false;
            self.stage = KeeperStage::Halting;
        }
    }

    /// Tells that nothing more is replayed, once the master has taken in what the tailer had sent.
    fn tell_if_halted(&mut self) {
        if matches!(self.stage, KeeperStage::Halting) && self.has_halted && self.under_way == 0 {
            self.stage = KeeperStage::Idle;
            self.tell(LogEvent::Halted);
        }
    }

    fn open(&mut self, makes: bool, ctx: &mut Context<Self>) {
        // Without the lock it was given up since this was asked for, and the errand that says so comes next.
        if let (KeeperStage::Idle | KeeperStage::Open, true) = (&self.stage, self.hot.has_lock()) {
            self.hot.put_aside();
            self.stage = KeeperStage::Opening;
            self.recover(makes, ctx);
        }
    }

    /// Locks the log, makes it whole and reads it; one is made first, if there is none and `makes` says so.
    fn recover(&mut self, makes: bool, ctx: &mut Context<Self>) {
        let setup = Rc::clone(&self.setup);
        let log_boot = self.hot.with_guard(|guard| guard.previous().log_boot.clone()).flatten();
        let same_boot = log_boot.as_deref() == Some(&setup.env.boot_id()) || planted!(EveryCrashSameBoot);
        let same_boot = same_boot && !planted!(EveryCrashPowerCut);
        let recovery = Recovery {
            env: Rc::clone(&setup.env),
            path: setup.path.clone(),
            line_bytes_max: setup.line_bytes_max,
            fsync: setup.fsync,
            crash: if same_boot { CrashKind::SameBoot } else { CrashKind::MayHaveLostPower },
            from: self.replayed.clone(),
            replayed: ctx.address().recipient(),
            makes_file: makes,
            volumes: Rc::clone(&self.hot.volumes),
        };
        let opening = async move {
            let noted = witness_notes::read(&setup.env, &setup.witness_path).await?;
            let Some(recovered) = recovery.run().await? else { return Ok((None, noted)) };
            let error = |error: io::Error| NodeError::file(&setup.path, error);
            // Of the file that is locked, whatever is at the path by now.
            let values = recovered.file.duplicate().await.map_err(error)?;
            let sync_file = recovered.file.duplicate().await.map_err(error)?;
            Ok((Some(OpenLog { recovered, values, sync_file }), noted))
        };
        ctx.spawn(opening.into_actor(self).map(
            |opened: Result<(Option<OpenLog>, WitnessText), NodeError>, keeper, _| match opened {
                Ok((open, noted)) => keeper.opened(open, noted),
                Err(error) => keeper.tell(LogEvent::Failed(error)),
            },
        ));
    }

    fn opened(&mut self, open: Option<OpenLog>, noted: WitnessText) {
        // Given up meanwhile, be it that the errand that says so is still on its way: with the drop of the log its lock is free.
        if !matches!(self.stage, KeeperStage::Opening) || !self.hot.has_lock() {
            return;
        }
        let log = open.as_ref().map(|open| {
            let Recovered { identity, position, .. } = &open.recovered;
            (log_id(*identity), *position)
        });
        self.stage = match open {
            None => KeeperStage::Idle,
            Some(open) => {
                self.hot.hold_opened(open);
                KeeperStage::Open
            }
        };
        self.tell(LogEvent::Opened { log, noted });
    }

    fn put_aside(&mut self) {
        if let KeeperStage::Open = self.stage {
            self.hot.put_aside();
            self.stage = KeeperStage::Idle;
        }
    }

    /// Begins the reign with an EPOCH record.
    fn begin(&mut self, epoch: Epoch, given_up: Vec<Reign>, time: UnixMillis, ctx: &mut Context<Self>) {
        // As with `open`: nothing is written without the lock, with which the opened log is given up.
        let (KeeperStage::Open, Some(open)) = (&self.stage, self.hot.take_opened()) else { return };
        let setup = Rc::clone(&self.setup);
        let Recovered { file, position, identity, number } = open.recovered;
        let reign = Reign { epoch, id: ReignId(setup.env.random()) };
        let (cluster, head) = match position.cluster {
            Some(id) => (id, None),
            None => {
                let id = ClusterId(setup.env.random());
                log::info!("new log path={} cluster={id}", setup.path.display());
                (id, Some(Operation::Cluster(id)))
            }
        };
        self.replayed =
            log_tailer::Start { place: LogPlace::durable(position), file: Some(identity), number };
        let handoff = Rc::<RefCell<Handoff>>::default();
        self.remove_draft(ctx);
        let writer = LogWriter::new(
            log_writer::Start {
                env: Rc::clone(&setup.env),
                file,
                sync_file: open.sync_file,
                post: Post { path: setup.path.as_path().into(), identity },
                number,
                handoff: Rc::clone(&handoff),
                position,
                reign,
                given_up,
                clock: ClockMark { time, uptime: setup.env.uptime(), boot: setup.env.boot_id() },
                head,
                address: setup.address.clone(),
                fsync: setup.fsync,
            },
            log_writer::Ports {
                written: setup.events.clone(),
                epoch: ctx.address().recipient(),
                failed: ctx.address().recipient(),
                displaced: ctx.address().recipient(),
                abandoned: ctx.address().recipient(),
                synced: ctx.address().recipient(),
                closed: ctx.address().recipient(),
                reopened: ctx.address().recipient(),
            },
            PanicGuard::new("LogWriter", setup.fate.clone()),
        )
        .counting(Rc::clone(&self.turns));
        self.hot.hold_log(writer.start(), handoff, open.values);
        self.stage = KeeperStage::Reigning { file: identity, cluster, reign };
    }

    /// Says in the lock file, for people and for fencing, whose reign this is and that the log is whole.
    fn write_lock_text(&self, serves: bool) {
        let KeeperStage::Reigning { cluster, reign, .. } = self.stage else { return };
        let setup = &self.setup;
        self.hot.with_guard(|guard| {
            let mut text = LockText {
                pid: Some(setup.env.pid()),
                address: Some(setup.address.clone()),
                log_boot: Some(setup.env.boot_id()),
                ..guard.held()
            };
            if serves {
                text.cluster = Some(cluster);
                text.epoch = Some(reign.epoch);
                text.reign = Some(reign.id);
            }
            guard.write_text(text);
        });
    }

    fn follow(&mut self, ctx: &mut Context<Self>) {
        if let KeeperStage::Idle = self.stage {
            self.stage = KeeperStage::Following {
                tailer: tailer(&self.setup, &self.turns, &self.replayed, &self.hot, ctx),
            };
        }
    }

    fn follow_anew(&mut self, ctx: &mut Context<Self>) {
        if let KeeperStage::Following { tailer: old } = &self.stage {
            let path = self.setup.path.display();
            log::info!(
                "what was replayed was never served, following what another master serves path={path}"
            );
            old.do_send(Halt);
            self.replayed = log_tailer::Start::default();
            self.stage = KeeperStage::Following {
                tailer: tailer(&self.setup, &self.turns, &self.replayed, &self.hot, ctx),
            };
        }
    }

    /// Gives the locks away: whoever waits for them wakes up with this.
    fn give_up(&mut self, ctx: &mut Context<Self>) {
        self.stop_compacting();
        if let KeeperStage::Reigning { .. } = self.stage {
            // It was not closed: what is known of it is from before the reign, and each handle of it keeps it locked.
            self.stop_relocating(ctx);
            self.replayed = log_tailer::Start::default();
        }
        self.hot.let_go();
        self.stage = match std::mem::replace(&mut self.stage, KeeperStage::Idle) {
            KeeperStage::Following { tailer } => KeeperStage::Following { tailer },
            KeeperStage::Halting
            | KeeperStage::Idle
            | KeeperStage::Opening
            | KeeperStage::Open
            | KeeperStage::Reigning { .. } => KeeperStage::Idle,
        };
    }

    fn leave_queue(&mut self) {
        self.has_left = true;
        self.watcher.do_send(Stop);
    }

    /// Looks which file is at the path, beside this thread.
    fn find(&self) {
        let (env, path, events) =
            (Rc::clone(&self.setup.env), self.setup.path.clone(), self.setup.events.clone());
        actix::spawn(async move {
            // What cannot be seen now may be at the next look.
            let found = look(env, path).await.unwrap_or_default();
            events.do_send(LogEvent::Found(found));
        });
    }

    fn note(&self, text: WitnessText) {
        let text = if text.is_empty() { String::new() } else { text.to_string() };
        self.notes.write(&self.setup.env, &self.setup.witness_path, text);
    }

    fn who_leads(&self) {
        let (locks, path) = (self.setup.env.locks(), self.setup.lock_path.clone());
        let events = self.setup.events.clone();
        actix::spawn(async move {
            let holder = lock_holder(&*locks, &path).await;
            events.do_send(LogEvent::Leader(holder));
        });
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        // Tailer and writer end with their last address.
        self.give_up(ctx);
        self.watcher.do_send(Stop);
        ctx.stop();
    }
}

fn tailer(
    setup: &SharedFileSetup,
    turns: &Rc<TurnLengths>,
    from: &log_tailer::Start,
    hot: &Hot,
    ctx: &mut Context<LogKeeper>,
) -> Addr<LogTailer> {
    LogTailer::new(
        Rc::clone(&setup.env),
        setup.path.clone(),
        setup.line_bytes_max,
        from.clone(),
        log_tailer::Ports {
            replayed: ctx.address().recipient(),
            sighted: ctx.address().recipient(),
            halted: ctx.address().recipient(),
        },
        setup.fate.clone(),
    )
    .counting(Rc::clone(turns))
    .keeping(Rc::clone(&hot.volumes))
    .start()
}

fn log_id(file: FileIdentity) -> LogId {
    (file.device, file.inode)
}

/// Which file is at the path, and how long it is in bytes.
async fn look(env: Env, path: PathBuf) -> io::Result<Option<(LogId, u64)>> {
    let Some(identity) = env.disk().identity(&path).await? else { return Ok(None) };
    let file = env.disk().open(&path, OpenMode::Read).await?;
    if file.identity().await? != identity {
        return Ok(None);
    }
    Ok(Some((log_id(identity), file.length().await?)))
}

/// Who holds the lock, if somebody does: pid and address from the lock file's text.
async fn lock_holder(locks: &dyn Locks, path: &Path) -> Option<String> {
    match locks.look(path).await {
        Ok(LockSeen::Held { .. }) => {}
        Ok(LockSeen::Free) | Err(_) => return None,
    }
    let text = locks.text(path).await.ok()?;
    let pid = text.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    Some(format!("pid={pid} address={}", text.address.as_deref().unwrap_or("unknown")))
}

impl Actor for LogKeeper {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.guard.stopped_cleanly();
    }
}

impl Handler<KeeperErrand> for LogKeeper {
    type Result = ();

    fn handle(&mut self, errand: KeeperErrand, ctx: &mut Self::Context) {
        let turns = Rc::clone(&self.turns);
        let _turn = turns.begin("log keeper");
        match errand {
            KeeperErrand::Watch => self.watcher.do_send(WatchLock),
            KeeperErrand::Oust { beat } => self.watcher.do_send(FenceHolder { beat }),
            KeeperErrand::Queue => self.watcher.do_send(WaitForLock),
            KeeperErrand::LeaveQueue => self.leave_queue(),
            KeeperErrand::GiveUp => self.give_up(ctx),
            KeeperErrand::WhoLeads => self.who_leads(),
            KeeperErrand::Follow => self.follow(ctx),
            KeeperErrand::FollowAnew => self.follow_anew(ctx),
            KeeperErrand::Look => {
                if let KeeperStage::Following { tailer } = &self.stage {
                    tailer.do_send(Look);
                }
            }
            KeeperErrand::Halt => self.halt(),
            KeeperErrand::Open { makes } => self.open(makes, ctx),
            KeeperErrand::PutAside => self.put_aside(),
            KeeperErrand::Find => self.find(),
            KeeperErrand::Note(text) => self.note(text),
            KeeperErrand::Begin { epoch, given_up, time } => self.begin(epoch, given_up, time, ctx),
            KeeperErrand::Declare { serves } => self.write_lock_text(serves),
            KeeperErrand::Weigh(sizes) => self.weigh(sizes, ctx),
            KeeperErrand::StopCompacting => self.stop_compacting(),
            KeeperErrand::End => self.end(ctx),
        }
    }
}

impl Handler<Replayed> for LogKeeper {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, replayed: Replayed, ctx: &mut Self::Context) -> Self::Result {
        let Replayed { from_start, changes, more, place, file, number, caught_up, moved_to } = replayed;
        if from_start {
            self.stop_relocating(ctx);
        }
        if let Some(moved_to) = moved_to {
            self.relocate(moved_to, None, ctx);
        }
        let (end, durable, log) = (place.position, place.durable, file.map(log_id));
        let part = ReplayPart { from_start, changes, more, end, durable, log, caught_up };
        self.under_way += 1;
        let taking_in = self.setup.events.send(LogEvent::Replayed(part));
        Box::pin(taking_in.into_actor(self).map(move |taken, keeper, _| {
            keeper.under_way -= 1;
            // A master that is gone takes nothing in, and needs nothing.
            if taken.is_ok() {
                keeper.replayed = log_tailer::Start { place, file, number };
            }
            keeper.tell_if_halted();
        }))
    }
}

impl Handler<Sighted> for LogKeeper {
    type Result = ();

    fn handle(&mut self, sighted: Sighted, _: &mut Self::Context) {
        self.tell(LogEvent::Sighted(sighted.0));
    }
}

impl Handler<Halted> for LogKeeper {
    type Result = ();

    fn handle(&mut self, _: Halted, _: &mut Self::Context) {
        self.has_halted = true;
        self.tell_if_halted();
    }
}

impl Handler<LockLooked> for LogKeeper {
    type Result = ();

    fn handle(&mut self, looked: LockLooked, _: &mut Self::Context) {
        self.tell(LogEvent::Looked(looked.0));
    }
}

impl Handler<LockWon> for LogKeeper {
    type Result = ();

    fn handle(&mut self, won: LockWon, _: &mut Self::Context) {
        if self.has_left {
            // It was on its way when this master left the queue: the next one gets it with this drop.
            return;
        }
        let guard = won.0;
        let text = guard.previous();
        let (cluster, epoch) = (text.cluster, text.epoch);
        self.hot.hold_guard(guard);
        self.tell(LogEvent::Won { cluster, epoch });
    }
}

impl Handler<EpochWritten> for LogKeeper {
    type Result = ();

    fn handle(&mut self, written: EpochWritten, _: &mut Self::Context) {
        let KeeperStage::Reigning { cluster, reign, .. } = self.stage else { return };
        let EpochWritten { version, offset: bytes } = written;
        self.tell(LogEvent::Begun { cluster, version, id: reign.id, bytes });
    }
}

impl Handler<LogFailed> for LogKeeper {
    type Result = ();

    fn handle(&mut self, failed: LogFailed, _: &mut Self::Context) {
        let LogFailed { step, cause } = failed;
        self.tell(LogEvent::Failed(NodeError::LogFailed { step, cause }));
    }
}

impl Handler<LogDisplaced> for LogKeeper {
    type Result = ();

    fn handle(&mut self, displaced: LogDisplaced, _: &mut Self::Context) {
        let path = self.setup.path.clone();
        log::error!(
            "log is not at its path, this master ends path={} cause=\"{}\"",
            path.display(),
            displaced.found
        );
        self.tell(LogEvent::Deposed(NodeError::LogDisplaced { path, found: displaced.found }));
    }
}

impl Handler<Abandoned> for LogKeeper {
    type Result = ();

    fn handle(&mut self, _: Abandoned, _: &mut Self::Context) {
        self.tell(LogEvent::Abandoned);
    }
}

impl Handler<Synced> for LogKeeper {
    type Result = ();

    fn handle(&mut self, _: Synced, _: &mut Self::Context) {
        self.tell(LogEvent::Synced);
    }
}

impl Handler<Reopened> for LogKeeper {
    type Result = ();

    fn handle(&mut self, _: Reopened, _: &mut Self::Context) {
        self.tell(LogEvent::Reopened);
    }
}

impl Handler<Closed> for LogKeeper {
    type Result = ();

    fn handle(&mut self, closed: Closed, _: &mut Self::Context) {
        let KeeperStage::Reigning { file, .. } = self.stage else { return };
        let Closed { position: end, tail } = closed;
        self.hot.let_log_go();
        self.replayed.place = LogPlace { tail, ..LogPlace::durable(end) };
        self.stage = KeeperStage::Idle;
        self.tell(LogEvent::Closed { log: log_id(file), end });
    }
}
