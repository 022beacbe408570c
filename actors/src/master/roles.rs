//! How a master comes to reign and ceases to: takeover, handover, stop.

use super::opening::{self, Opened};
use super::{MasterActor, Phase, Reign, Role, CLOSE_MS, ENLIST_MS, STOP_MAX_MS, STOP_MS, SYNCS_MAX, SYNC_MS};
use crate::env::{LockGuard, Post};
use crate::journal::shared_file::failover_watcher::LeadershipChanged;
use crate::journal::shared_file::log_scan::LogPlace;
use crate::journal::shared_file::log_tailer::{self, Halted, Look};
use crate::journal::shared_file::log_writer::{
    self, Close, Closed, EpochWritten, LogFailed, LogWriter, Reopen, Reopened, Sync, Synced,
};
use crate::journal::shared_file::recovery::Recovery;
use crate::node_error::NodeError;
use crate::supervision::PanicGuard;
use actix::prelude::*;
use dsm_protocol::command::{ErrorWord, Reply};
use dsm_protocol::ids::{ClusterId, Epoch, Millis, Reign as ReignName, ReignId};
use dsm_protocol::lock_file::LockText;
use dsm_protocol::machine::front;
use dsm_protocol::machine::master;
use dsm_protocol::machine::reign::start::Lack;
use dsm_protocol::machine::reign::takeover;
use dsm_protocol::planted;
use dsm_protocol::record::{CrashKind, Operation, Position};
use dsm_protocol::witness_file::WitnessText;
use std::io;
use std::rc::Rc;

impl MasterActor {
    /// The lock is won: have the log looked at, before anything is done to it.
    fn lock_won(&mut self, guard: Box<dyn LockGuard>) {
        if self.is_leaving() {
            // It was on its way when this master gave the queue up: the other one gets it with the guard's drop.
            return;
        }
        log::info!("lock won, taking over epoch_seen={}", self.known_epoch);
        self.role = match std::mem::replace(&mut self.role, Role::Ended) {
            Role::Standby { tailer } => {
                tailer.do_send(Look);
                let told_at = self.env.now();
                Role::Barred { guard, tailer, told_at }
            }
            // The node is ending: the guard's drop gives the lock to the other master.
            other => other,
        };
    }

    /// Locks the log, makes it whole and reads it; one is made first, if there is none and `makes_file` says so.
    pub(super) fn recover(
        &mut self,
        guard: Box<dyn LockGuard>,
        makes_file: bool,
        told: Option<(Lack, Millis)>,
        ctx: &mut Context<Self>,
    ) {
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
        self.role = Role::Recovering { guard, told };
        let path = self.config.log.clone();
        let (env, witness_path) = (Rc::clone(&self.env), self.config.witness_path());
        let opening = async move {
            let noted = opening::noted(&env, &witness_path).await?;
            let Some(recovered) = recovery.run().await? else { return Ok((None, noted)) };
            let error = |error: io::Error| NodeError::file(&path, error);
            // Of the file that is locked, whatever stands at the path by now.
            let values = recovered.file.duplicate().await.map_err(error)?;
            let sync_file = recovered.file.duplicate().await.map_err(error)?;
            Ok((Some(Opened { recovered, values, sync_file }), noted))
        };
        ctx.spawn(opening.into_actor(self).map(
            |opened: Result<(Option<Opened>, WitnessText), NodeError>, master, ctx| match opened {
                Ok((opened, noted)) => master.opened(opened, noted, ctx),
                Err(error) => master.fail(error),
            },
        ));
    }

    /// The log is whole and the right one: begin the reign with an EPOCH record above every epoch that anybody has seen.
    pub(super) fn begin_reign(
        &mut self,
        guard: Box<dyn LockGuard>,
        opened: Opened,
        noted: WitnessText,
        ctx: &mut Context<Self>,
    ) {
        let position = opened.recovered.position;
        let file = opened.recovered.file;
        let seen = [self.known_epoch, position.epoch, guard.previous().epoch.unwrap_or_default()];
        let highest = seen.into_iter().max().unwrap_or_default();
        let epoch = if planted!(EpochNotRaised) { highest.max(Epoch(1)) } else { highest.next() };
        let name = ReignName { epoch, id: ReignId(self.env.random()) };
        let (cluster, head) = match position.cluster {
            Some(id) => (id, None),
            None => {
                let id = ClusterId(self.env.random());
                log::info!("new log path={} cluster={id}", self.config.log.display());
                (id, Some(Operation::Cluster(id)))
            }
        };
        let given_up = noted.accepted.clone();
        for reign in &given_up {
            self.machine.replay_given_up(*reign);
        }
        let place = LogPlace::durable(position);
        self.replayed = log_tailer::Start { place, file: Some(opened.recovered.identity) };
        let writer = LogWriter::new(
            log_writer::Start {
                file,
                sync_file: opened.sync_file,
                post: Post { path: self.config.log.as_path().into(), identity: opened.recovered.identity },
                position,
                reign: name,
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
        .counting(Rc::clone(&self.turns));
        let log = writer.start();
        let is_noted = !noted.is_empty();
        let values = opened.values;
        let reign = Reign { guard, log, values, cluster, reign: name, is_noted, phase: Phase::Opening };
        self.role = Role::Reigning(reign);
    }

    /// What is due in the role by now.
    pub(super) fn tick_role(&mut self, now: Millis) {
        self.expire_failover(now);
        self.tick_stop(now);
        self.tick_barred(now);
        let all_enlisted = self.slaves.values().all(|slave| slave.link.borrow().has_accepted());
        let closing_since = self.closing_since();
        let yield_ms = self.yield_ms();
        let may_be_forwarded_to = self.may_be_forwarded_to(now);
        let Role::Reigning(reign) = &mut self.role else { return };
        if self.stopping_since.is_some_and(|since| now.since(since) >= STOP_MAX_MS) {
            self.end_unclosed();
            return;
        }
        match reign.phase {
            Phase::Announcing { since } if all_enlisted || now.since(since) >= ENLIST_MS => self.serve(now),
            Phase::Opening
            | Phase::Announcing { .. }
            | Phase::Doubting
            | Phase::Stopping
            | Phase::Departing
            | Phase::Ending => {}
            Phase::Serving | Phase::Preparing { .. } => {
                if let Some(since) = closing_since {
                    let is_done = self.machine.in_flight() == 0 && !may_be_forwarded_to;
                    if is_done || now.since(since) >= STOP_MS {
                        self.close_log(now);
                    }
                }
            }
            Phase::Yielding { since, .. } => {
                self.finish_yield(now);
                if now.since(since) >= yield_ms {
                    if self.stopping_since.is_some() {
                        self.begin_closing(now);
                    }
                    self.abort_yield(now, "requests in flight were not done in time");
                }
            }
            Phase::Closing { since, to, asked_back: false }
                if now.since(since) >= CLOSE_MS && self.stopping_since.is_none() =>
            {
                log::debug!("asking for the log back at={now}");
                reign.log.do_send(Reopen);
                reign.phase = Phase::Closing { since, to, asked_back: true };
            }
            Phase::Closing { .. } => {}
        }
    }

    fn serve(&mut self, now: Millis) {
        if !matches!(self.role, Role::Reigning(_)) {
            return;
        }
        self.enlist_all(now);
        // Until now nobody was served in this reign, and nothing is missing if its log is put aside.
        self.write_lock_text(true);
        let Role::Reigning(reign) = &mut self.role else { return };
        reign.phase = Phase::Serving;
        let epoch = reign.reign.epoch;
        self.takeovers += 1;
        self.has_been_served = true;
        self.slave_of = None;
        self.front.set_active_address(None);
        let keys = self.machine.directory().len();
        let slaves = self.machine.slave_count();
        log::info!("serving epoch={epoch} keys={keys} slaves={slaves} address={}", self.address);
        if !self.is_closing() {
            self.release(now);
        }
        self.notice(takeover::Event::ReignBegan);
        self.tell_state();
        self.flush();
    }

    /// Lets the requests that the front holds back be served, each in its turn: there may be thousands.
    fn release(&mut self, now: Millis) {
        self.releasing = true;
        self.step_front(now, front::Event::ServingBegan);
        self.releasing = false;
    }

    fn begin_yield(&mut self, now: Millis) {
        let Some(to) = self.handover_to.take() else { return };
        let is_closing = self.is_closing();
        let Role::Reigning(reign) = &mut self.role else { return };
        if !self.peers.contains_key(&to) {
            log::info!("handover dropped cause=\"the standby that asked is gone\"");
            return;
        }
        if !matches!(reign.phase, Phase::Serving) || is_closing {
            self.handover_to = Some(to);
            self.refuse_handover("this master does not serve, or hands over already");
            return;
        }
        log::debug!("syncing the log for a handover at={now}");
        reign.phase = Phase::Preparing { since: now, to, syncs: 1 };
        reign.log.do_send(Sync);
    }

    /// The log is synced: with little left to sync, requests may be held.
    fn synced(&mut self, now: Millis) {
        let is_closing = self.is_closing();
        let Role::Reigning(reign) = &mut self.role else { return };
        let Phase::Preparing { since, to, syncs } = reign.phase else { return };
        if is_closing {
            // The log is closed for good as soon as nothing is in flight.
            return;
        }
        let took_ms = now.since(since);
        if took_ms > SYNC_MS && syncs < SYNCS_MAX {
            log::info!("handover waits, the log was slow to sync took_ms={took_ms} syncs={syncs}");
            reign.phase = Phase::Preparing { since: now, to, syncs: syncs + 1 };
            reign.log.do_send(Sync);
            return;
        }
        log::info!("handing over in_flight={}", self.machine.in_flight());
        reign.phase = Phase::Yielding { since: now, to };
        if !planted!(HandoverHoldsNothing) {
            self.step_front(now, front::Event::HoldingBegan);
        }
        self.flush();
        self.finish_yield(now);
    }

    /// Goes on with a handover once nothing is in flight.
    pub(super) fn finish_yield(&mut self, now: Millis) {
        if self.is_behind() {
            return;
        }
        if let Role::Reigning(reign) = &self.role {
            let yielding = matches!(reign.phase, Phase::Yielding { .. });
            let serving = matches!(reign.phase, Phase::Serving | Phase::Preparing { .. });
            let stopping = self.is_closing() && serving;
            let waits_not = if yielding { planted!(HandoverDoesNotWait) } else { planted!(StopDoesNotWait) };
            let is_done = self.machine.in_flight() == 0 && !self.may_be_forwarded_to(now) || waits_not;
            if (yielding || stopping) && is_done {
                log::debug!("nothing in flight, closing the log at={now}");
                self.close_log(now);
            }
        }
    }

    fn close_log(&mut self, now: Millis) {
        let Role::Reigning(reign) = &mut self.role else { return };
        reign.phase = if let Phase::Yielding { to, .. } = reign.phase {
            Phase::Closing { since: now, to, asked_back: false }
        } else {
            Phase::Stopping
        };
        reign.log.do_send(Close);
    }

    /// Gives a handover up and goes on serving.
    pub(super) fn abort_yield(&mut self, now: Millis, reason: &str) {
        let Role::Reigning(reign) = &mut self.role else { return };
        let (Phase::Preparing { to, .. } | Phase::Yielding { to, .. } | Phase::Closing { to, .. }) =
            reign.phase
        else {
            return;
        };
        log::warn!("handover aborted cause={reason:?}");
        reign.phase = Phase::Serving;
        self.handover_to = Some(to);
        self.refuse_handover(reason);
        self.answer_failover(&Reply::error(ErrorWord::Busy, format!("the handover was aborted: {reason}")));
        if !self.is_closing() {
            self.release(now);
        }
        self.flush();
    }

    /// The log is closed: give the locks away and follow the other master from here on, or end.
    fn closed(&mut self, closed: &Closed, ctx: &mut Context<Self>) {
        // Nothing may be answered once the locks are free.
        self.flush();
        let Role::Reigning(reign) = std::mem::replace(&mut self.role, Role::Ended) else { return };
        let (name, epoch) = (reign.reign, reign.reign.epoch);
        let is_doubted = matches!(reign.phase, Phase::Doubting);
        if self.machine.in_flight() == 0 {
            let now = self.env.now();
            self.step(now, master::Event::ReignEnded);
        }
        for slave in self.slaves.values() {
            slave.link.borrow_mut().end_reign();
        }
        self.known_epoch = self.known_epoch.max(epoch);
        self.log_bytes = closed.position.offset;
        self.replayed.place = LogPlace::durable(closed.position);
        if is_doubted && !self.is_closing() {
            self.doubted(reign.guard, &closed.position);
            return;
        }
        self.remember(&LogPlace::durable(Position {
            reign: name,
            cluster: self.cluster.get(),
            ..closed.position
        }));
        self.log_seq = closed.position.seq;
        // The locks are free with this drop: the standby that waits for them wakes up.
        drop(reign);
        if self.is_closing() {
            self.end();
            return;
        }
        self.handovers += 1;
        log::info!("standby, the reign is handed over epoch={epoch}");
        self.replay_caught_up = false;
        self.answer_failover(&Reply::Done);
        self.notice(takeover::Event::ReignEnded);
        let tailer = Self::tailer(&self.env, &self.config, &self.replayed, &self.fate, &self.turns, ctx);
        self.role = Role::Standby { tailer };
        let now = self.env.now();
        self.step_front(now, front::Event::StandbyBegan);
        self.tell_state();
        self.tick_stop(now);
        self.flush();
    }

    /// Ends the node cleanly.
    pub(super) fn end(&mut self) {
        self.flush();
        self.role = Role::Ended;
        self.end_links();
        self.fate.decide(Ok(()));
    }

    /// Closes every link once what is said is sent.
    pub(super) fn end_links(&self) {
        for session in self.sessions.values() {
            session.close();
        }
        for slave in self.slaves.values() {
            slave.outbox.finish();
        }
        for peer in self.peers.values() {
            peer.outbox.finish();
        }
    }

    /// Ends the node although the log is not closed: the disk has had its time. What is acknowledged stands in the log,
    /// only the mark may be missing. The locks are kept until the process, or the embedded node, is gone.
    fn end_unclosed(&mut self) {
        let Role::Reigning(reign) = &mut self.role else { return };
        if matches!(reign.phase, Phase::Departing | Phase::Ending) {
            return;
        }
        reign.phase = Phase::Ending;
        log::warn!("stopped without closing the log cause=disk-slow waited_ms={STOP_MAX_MS}");
        self.end_links();
        self.fate.decide(Ok(()));
    }

    /// Says in the lock file, for people and for fencing, whose reign this is and that the log is whole.
    fn write_lock_text(&mut self, serves: bool) {
        let Role::Reigning(reign) = &self.role else { return };
        let mut text = LockText {
            pid: Some(self.env.pid()),
            address: Some(self.address.clone()),
            log_boot: Some(self.env.boot_id()),
            ..reign.guard.held()
        };
        if serves {
            text.cluster = self.cluster.get();
            text.epoch = Some(reign.reign.epoch);
            text.reign = Some(reign.reign.id);
        }
        reign.guard.write_text(text);
    }
}

impl Handler<LeadershipChanged> for MasterActor {
    type Result = ();

    fn handle(&mut self, changed: LeadershipChanged, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        let now = self.env.now();
        match changed {
            LeadershipChanged::LockWon(guard) => self.lock_won(guard),
            LeadershipChanged::AskHandover { forced } => self.ask_handover(forced),
            LeadershipChanged::GrantHandover => self.begin_yield(now),
            LeadershipChanged::RefuseHandover(refusal) => {
                log::info!("handover refused cause=\"{refusal}\"");
                self.refuse_handover(&refusal.to_string());
                let why = format!("the handover was refused: {refusal}");
                self.answer_failover(&Reply::error(ErrorWord::Busy, why));
            }
        }
    }
}

impl Handler<Halted> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Halted, ctx: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        match std::mem::replace(&mut self.role, Role::Ended) {
            Role::Halting { guard } => self.recover(guard, false, None, ctx),
            other => self.role = other,
        }
    }
}

impl Handler<EpochWritten> for MasterActor {
    type Result = ();

    fn handle(&mut self, written: EpochWritten, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        let now = self.env.now();
        let Role::Reigning(reign) = &mut self.role else { return };
        let version = written.version;
        reign.phase = Phase::Announcing { since: now };
        // Nobody hears of a new cluster before it is on disk.
        self.cluster.set(Some(reign.cluster));
        let id = reign.reign.id;
        self.known_epoch = self.known_epoch.max(version.epoch);
        self.log_seq = version.seq;
        self.log_bytes = written.offset;
        if std::mem::take(&mut reign.is_noted) {
            // What was noted is in the log, or given up in it.
            self.noted_file.write(&self.env, &self.config, String::new());
        }
        self.write_lock_text(false);
        self.step(now, master::Event::ReignBegan { version, id });
        self.announce(now);
        self.flush();
        self.tick_role(now);
    }
}

impl Handler<LogFailed> for MasterActor {
    type Result = ();

    fn handle(&mut self, failed: LogFailed, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        // What was in flight stays unanswered: to the clients a lost connection during a write is *unknown*, which
        // is the truth. The process must not live on with a log of which nothing is known.
        self.fail(NodeError::LogFailed { step: failed.step, cause: failed.cause });
    }
}

impl Handler<Closed> for MasterActor {
    type Result = ();

    fn handle(&mut self, closed: Closed, ctx: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        self.closed(&closed, ctx);
    }
}

impl Handler<Synced> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Synced, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        let now = self.env.now();
        self.synced(now);
    }
}

impl Handler<Reopened> for MasterActor {
    type Result = ();

    fn handle(&mut self, _: Reopened, _: &mut Self::Context) {
        let _turn = self.turns.begin("role");
        let now = self.env.now();
        self.abort_yield(now, "the log could not be closed in time");
        self.tick_role(now);
    }
}
