//! What the keeper does for the length of its log: it has it compacted, gives its compacted part to members that lack it, and takes a
//! leader's.
//!
//! Owns no rule: `machine/compaction.rs` says when, `dsm-consensus` how far and for whom.

use super::{Member, RaftKeeper, RaftPart, RaftStage};
use crate::journal::copying::{check, GivenUp, MasterAsked, NotCompacted};
use crate::journal::raft::arriving::StreamJob;
use crate::journal::raft::compactor::MemberCompactor;
use crate::journal::raft::disk::swaps::{CompactedCopy, SharedRoom, Survey, SwapOutcome, SwappedLog};
use crate::journal::raft::disk::InstalledLog;
use crate::journal::raft::disk_task::{DiskDone, DiskJob};
use crate::journal::shared_file::relocator::Relocator;
use crate::journal::{CompactionNews, LogEvent, ReplayPart};
use crate::node_error::NodeError;
use actix::prelude::*;
use bytes::Bytes;
use dsm_consensus::ids::MemberId;
use dsm_consensus::Event;
use dsm_protocol::ids::{Millis, Seq, Version};
use dsm_protocol::machine::compaction::{Advice, Compaction, LogSizes};
use dsm_protocol::machine::log_scan::{LogPlace, LogScan};
use dsm_protocol::record::Position;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Beside so much a log keeps as entries a part of what is live: a member that was away for a while needs no whole file then.
const KEPT_OF_LIVE: u64 = 4;

/// While another member gets the compacted part, the log may become so many times as long as what is live and what it keeps.
const GIVEN_TIMES: u64 = 4;

/// Where nothing is to be gained yet it is looked at again after so long, in milliseconds.
const LOOK_AGAIN_MS: u64 = 10_000;

/// How far a compaction is.
#[derive(Default)]
enum CopyStage {
    #[default]
    None,
    /// It is asked how far the log may be compacted, or whether the disk has room.
    Asking,
    Copying(Rc<GivenUp>),
    /// The disk makes the copy the log.
    Swapping,
}

/// What is known of compactions.
pub(super) struct LogCopying {
    rule: Rc<RefCell<Compaction>>,
    sizes: Rc<Cell<LogSizes>>,
    /// How long the log is.
    log_bytes: Rc<Cell<u64>>,
    least_kept_bytes: u64,
    kept_bytes: u64,
    stage: CopyStage,
    /// Nothing is looked at before this.
    not_before: Millis,
    room: Rc<SharedRoom>,
    begun: Millis,
    began_us: u64,
    /// What was live when the copy was begun, and how much of it that has become, in bytes.
    copied: (u64, u64),
    /// Whoever tells the master where the values stand by now.
    relocating: Option<SpawnHandle>,
    /// Whoever tells it the log from its start.
    replaying: Option<SpawnHandle>,
}

impl LogCopying {
    pub(super) fn new(compact_min_bytes: u64) -> Self {
        LogCopying {
            rule: Rc::new(RefCell::new(Compaction::new(compact_min_bytes))),
            sizes: Rc::default(),
            log_bytes: Rc::default(),
            least_kept_bytes: compact_min_bytes,
            kept_bytes: 0,
            stage: CopyStage::None,
            not_before: Millis(0),
            room: Rc::default(),
            begun: Millis(0),
            began_us: 0,
            copied: (0, 0),
            relocating: None,
            replaying: None,
        }
    }

    /// A disk has the log, and its room.
    pub(super) fn of_disk(&mut self, room: Rc<SharedRoom>) {
        self.room = room;
    }

    /// The log is so long.
    pub(super) fn is_long(&self, bytes: u64) {
        self.log_bytes.set(bytes);
    }

    /// Tells a copy that is under way to stop. One that the disk has by now is judged already.
    fn give_up(&self) {
        if let CopyStage::Copying(copying) = &self.stage {
            copying.give_up();
        }
    }
}

impl RaftKeeper {
    /// Looks whether it is time to compact the log.
    pub(super) fn weigh(&mut self, live_bytes: u64, ctx: &mut Context<Self>) {
        let is_its_time = matches!(self.stage, RaftStage::Following | RaftStage::Reigning);
        let log_bytes = self.appends.log_bytes;
        let copying = &mut self.copying;
        let is_busy = copying.relocating.is_some()
            || copying.replaying.is_some()
            || !matches!(copying.stage, CopyStage::None)
            || self.setup.env.now() < copying.not_before;
        if !is_its_time || is_busy || !matches!(self.membership, RaftPart::Member(_)) {
            return;
        }
        let live = copying.rule.borrow().live_bytes(LogSizes { log_bytes, live_bytes });
        copying.kept_bytes = copying.least_kept_bytes + live / KEPT_OF_LIVE;
        // What it keeps is no reason to compact it.
        let sizes = LogSizes { log_bytes: log_bytes.saturating_sub(copying.kept_bytes), live_bytes };
        copying.sizes.set(sizes);
        let env = Rc::clone(&self.setup.env);
        if copying.rule.borrow_mut().weigh(env.now(), sizes) != Advice::LookForRoom {
            return;
        }
        copying.stage = CopyStage::Asking;
        let path = self.setup.path.clone();
        let looking = async move { env.disk().free_bytes(&path).await };
        ctx.spawn(looking.into_actor(self).map(|free, keeper, _| {
            keeper.copying.stage = CopyStage::None;
            match free {
                Ok(free) => keeper.decide(free),
                Err(error) => log::debug!("room of the log's disk is not known error={error}"),
            }
        }));
    }

    fn decide(&mut self, free_bytes: u64) {
        let copying = &mut self.copying;
        let (sizes, kept_bytes) = (copying.sizes.get(), copying.kept_bytes);
        let advice = copying.rule.borrow_mut().decide(sizes, free_bytes.saturating_sub(kept_bytes));
        match advice {
            Advice::Wait | Advice::LookForRoom => {}
            Advice::NoRoom { needed_bytes, .. } => {
                let needed_bytes = needed_bytes + kept_bytes;
                log::warn!(
                    "log is not compacted, the disk has no room for a copy needed_bytes={needed_bytes} free_bytes={free_bytes}"
                );
                self.tell(LogEvent::Compaction(CompactionNews::NoRoom { needed_bytes, free_bytes }));
            }
            Advice::Begin => {
                copying.stage = CopyStage::Asking;
                self.ask_disk(DiskJob::Survey { kept_bytes });
            }
        }
    }

    /// The disk says how far the log may be compacted, the machine whether that is too far.
    pub(super) fn surveyed(&mut self, survey: io::Result<Option<Survey>>, ctx: &mut Context<Self>) {
        let survey = match survey {
            Ok(survey) => survey,
            Err(error) => return self.not_compacted(error.into()),
        };
        let RaftPart::Member(member) = &self.membership else { return };
        let LogSizes { log_bytes, live_bytes } = self.copying.sizes.get();
        // One that is given to others would end with the next one, unless it takes too long.
        let is_given = member.machine.progress().iter().any(|other| other.gets_file)
            && log_bytes < GIVEN_TIMES * (live_bytes + self.copying.kept_bytes);
        let may = |survey: &Survey| {
            let base = survey.base.seq;
            let is_purgeable = base <= member.machine.purgeable(base.next()).seq;
            !is_given && is_purgeable && base <= member.machine.committed()
        };
        let Some(survey) = survey.filter(may) else {
            self.copying.stage = CopyStage::None;
            // What is not committed yet may be later.
            self.copying.not_before = self.setup.env.now().plus(LOOK_AGAIN_MS);
            return self.copying.rule.borrow_mut().given_up();
        };
        let (env, path, copying) = (Rc::clone(&self.setup.env), self.setup.path.clone(), &mut self.copying);
        let bytes = copying.log_bytes.get();
        log::info!(
            "log is compacted path={} bytes={bytes} live_bytes={live_bytes} through={}",
            path.display(),
            survey.base
        );
        let given_up = Rc::<GivenUp>::default();
        copying.stage = CopyStage::Copying(Rc::clone(&given_up));
        (copying.begun, copying.copied.0) = (env.now(), live_bytes);
        let compactor = MemberCompactor {
            env,
            path,
            line_bytes_max: self.setup.line_bytes_max,
            asked: MasterAsked { events: self.setup.events.clone(), given_up },
            survey,
            rule: Rc::clone(&copying.rule),
            sizes: Rc::clone(&copying.sizes),
            log_bytes: Rc::clone(&copying.log_bytes),
            room: Rc::clone(&copying.room),
            kept_bytes: copying.kept_bytes,
        };
        ctx.spawn(compactor.run().into_actor(self).map(|copy, keeper, _| keeper.copied(copy)));
    }

    fn copied(&mut self, copy: Result<CompactedCopy, NotCompacted>) {
        match copy {
            Ok(copy) => {
                self.copying.stage = CopyStage::Swapping;
                self.copying.copied.1 = copy.base.end;
                self.copying.began_us = self.setup.env.clock_us();
                *self.copying.room.copy.borrow_mut() = Some(Box::new(copy));
                self.ask_disk(DiskJob::Swap);
            }
            Err(why) => self.not_compacted(why),
        }
    }

    /// The copy is the log, or not.
    pub(super) fn swapped(&mut self, outcome: SwapOutcome, ctx: &mut Context<Self>) {
        let swapped = match outcome {
            Ok(swapped) => swapped,
            Err(why) => return self.not_compacted(why),
        };
        let SwappedLog { reader, number, base, bytes, moved_from } = swapped;
        let RaftPart::Member(member) = &mut self.membership else { return };
        let given = member.values.go_on_in(reader, None);
        debug_assert_eq!(given, number);
        member.base = base;
        if member.follower.told().seq < base.version.seq {
            // It was about to be told anew what has become the compacted part.
            self.begin_anew(ctx);
        }
        let RaftPart::Member(member) = &mut self.membership else { return };
        // What is not committed may be cut, so nobody is told of it here.
        member.lines.iter_mut().chain(member.follower.waiting()).for_each(|line| {
            line.moves(number, (moved_from, base.end));
        });
        let through = member.lines.front().map_or(bytes, |line| line.offset);
        let (log, settled) = (member.log, member.machine.committed());
        self.pending.push_back(Event::Compacted(base.version));
        let (copying, now) = (&mut self.copying, self.setup.env.now());
        copying.stage = CopyStage::None;
        copying.rule.borrow_mut().done(copying.copied.0, copying.copied.1);
        copying.is_long(bytes);
        self.appends.log_bytes = bytes;
        let held_us = self.setup.env.clock_us().saturating_sub(copying.began_us);
        let took_ms = now.since(copying.begun);
        log::info!(
            "log was compacted path={} bytes={bytes} through={} took_ms={took_ms} writes_waited_us={held_us}",
            self.setup.path.display(),
            base.version
        );
        self.tell(LogEvent::Replaced { log, bytes });
        self.tell(LogEvent::Compaction(CompactionNews::Done { took_ms, held_us }));
        self.relocate((through, settled), ctx);
    }

    fn not_compacted(&mut self, why: NotCompacted) {
        let (path, now) = (self.setup.path.display(), self.setup.env.now());
        self.copying.stage = CopyStage::None;
        let mut rule = self.copying.rule.borrow_mut();
        let news = match why {
            NotCompacted::GivenUp => {
                log::info!("compaction of the log given up path={path}");
                rule.given_up();
                CompactionNews::GivenUp
            }
            NotCompacted::Failed(error) | NotCompacted::Unknown(error) => {
                log::warn!("log not compacted, it goes on as it is path={path} error={error}");
                rule.failed(now);
                CompactionNews::Failed(error.to_string())
            }
        };
        drop(rule);
        self.tell(LogEvent::Compaction(news));
    }

    /// Tells the master where the values stand that the old file had, and lets that go.
    fn relocate(&mut self, (through, settled): (u64, Seq), ctx: &mut Context<Self>) {
        let RaftPart::Member(member) = &self.membership else { return };
        let Some(file) = member.values.current() else { return };
        let old = member.values.old();
        let relocator = Relocator {
            env: Rc::clone(&self.setup.env),
            events: self.setup.events.clone(),
            file,
            number: member.values.number(),
            through,
            settled: Some(settled),
            line_bytes_max: self.setup.line_bytes_max,
            old: old.clone(),
            hot: None,
            with_members: true,
            rule: Rc::clone(&self.copying.rule),
            sizes: Rc::clone(&self.copying.sizes),
        };
        let relocating = relocator.run().into_actor(self).map(move |relocated, keeper, _| match relocated {
            Ok(()) => {
                keeper.copying.relocating = None;
                let Some(member) = keeper.member() else { return };
                old.into_iter().for_each(|number| member.values.forget(number));
            }
            // The old file stays open, and the log is not compacted again before a restart, which reads the whole log.
            Err(error) => {
                log::error!("compacted log not read, the old one stays open error={error}");
                keeper.tell(LogEvent::Compaction(CompactionNews::Failed(error.to_string())));
            }
        });
        self.copying.relocating = Some(ctx.spawn(relocating));
    }

    /// The master forgets what it was told, and is told it again.
    pub(super) fn begin_anew(&mut self, ctx: &mut Context<Self>) {
        self.forget_telling(ctx);
        match &mut self.membership {
            RaftPart::Member(member) => member.follower.begin_anew(member.base.version.seq),
            RaftPart::Opening | RaftPart::Joining { .. } | RaftPart::Over => self.is_anew = true,
        }
    }

    /// A directory that is about to be emptied cannot say what is live.
    fn forget_telling(&mut self, ctx: &mut Context<Self>) {
        self.copying.give_up();
        if let Some(replaying) = self.copying.replaying.take() {
            ctx.cancel_future(replaying);
            self.member().into_iter().for_each(|member| member.follower.taken_in());
        }
    }

    /// Tells the master the compacted part of the log from its start.
    pub(super) fn replay_base(&mut self, ctx: &mut Context<Self>) {
        let RaftPart::Member(member) = &self.membership else { return };
        let Some(file) = member.values.current() else { return };
        let (number, log, events) = (member.values.number(), member.log, self.setup.events.clone());
        let base_end = member.base.end;
        let scan = LogScan::new(&LogPlace::default(), self.setup.line_bytes_max).up_to(base_end);
        let mut scan = scan.with_members().in_file(number);
        let path = self.setup.path.clone();
        let replaying = async move {
            let file = file.duplicate().await?;
            let mut from_start = true;
            loop {
                let (then, part) = file.scan(scan).await?;
                scan = then;
                check(&part, &scan, base_end)?;
                let end = scan.position();
                let part = ReplayPart {
                    from_start: std::mem::take(&mut from_start),
                    changes: part.changes,
                    more: 0,
                    end,
                    durable: end,
                    log: Some(log),
                    caught_up: false,
                };
                // A master that is gone takes nothing in.
                let _ = events.send(LogEvent::Replayed(part)).await;
                if end.offset >= base_end {
                    return Ok::<Position, io::Error>(end);
                }
            }
        };
        let replaying = replaying.into_actor(self).map(move |replayed, keeper, ctx| {
            keeper.copying.replaying = None;
            match replayed {
                Ok(end) => {
                    keeper.member().into_iter().for_each(|member| member.follower.replayed(end));
                    keeper.replay(ctx);
                }
                Err(error) => keeper.fail(NodeError::file(&path, error)),
            }
        });
        self.copying.replaying = Some(ctx.spawn(replaying));
    }

    /// A leader's file is the log.
    pub(super) fn installed(&mut self, installed: InstalledLog, ctx: &mut Context<Self>) {
        self.forget_telling(ctx);
        if let Some(relocating) = self.copying.relocating.take() {
            ctx.cancel_future(relocating);
        }
        let Some(member) = self.member() else { return };
        let InstalledLog { reader, number, base, .. } = installed;
        member.lines.clear();
        let given = member.values.begin_anew();
        debug_assert_eq!(given, number);
        member.values.read_by(reader);
        member.base = base;
        log::info!("log is the leader's from now on through={} bytes={}", base.version, base.end);
    }

    /// What is committed is what the leader's file says.
    pub(super) fn restored(&mut self, base: Version) {
        if let Some(member) = self.member() {
            member.follower.restored(base.seq);
        }
        self.members_are_others();
    }

    /// Reads a chunk of the compacted part, for another member. Of another file than that nothing is said.
    pub(super) fn read_chunk(&mut self, to: MemberId, base: Version, (offset, bytes_max): (u64, u64)) {
        let RaftPart::Member(member) = &self.membership else { return };
        let Member { base: own, values, done, .. } = &**member;
        let (Some(file), true) = (values.current(), own.version == base && offset < own.end) else { return };
        let (length, end, done) = (bytes_max.min(own.end - offset), own.end, done.clone());
        actix::spawn(async move {
            match file.read_at(offset, usize::try_from(length).unwrap_or(usize::MAX)).await {
                Ok(data) if !data.is_empty() => {
                    let is_last = offset + data.len() as u64 >= end;
                    done.tell(DiskDone::ChunkRead { to, base, offset, data: Bytes::from(data), is_last });
                }
                Ok(_) => log::warn!("log is shorter than it was, and is not sent to member {to}"),
                Err(error) => log::warn!("log not read for member {to} error={error}"),
            }
        });
    }

    /// Gives work to the task of leaders' files.
    pub(super) fn ask_stream(&mut self, job: StreamJob) {
        if let Some(member) = self.member() {
            // Without a task the disk has failed, and that is told.
            let _ = member.streams.send(job);
        }
    }
}
