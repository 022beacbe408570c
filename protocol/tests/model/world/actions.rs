//! The possible actions of a world, and their effects on what is not a machine.

use super::*;

/// One step of the world. `m` is a master, `s` a slave, `c` a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Send { c: usize, m: usize },
    LogWrite { m: usize },
    LogSync { m: usize },
    LogRead { m: usize },
    ToSlave { m: usize, s: usize },
    ToMaster { m: usize, s: usize },
    ToPeer { m: usize },
    FromPeer { m: usize },
    Connect { m: usize, s: usize },
    Dial { m: usize },
    CatchUp { m: usize },
    Look { m: usize },
    WinLock { m: usize },
    Recover { m: usize },
    Hear { m: usize },
    Suspect { m: usize },
    EnlistTimeout { m: usize },
    SyncForHandover { m: usize },
    Close { m: usize },
    Reopen { m: usize },
    FrontTick { m: usize },
    YieldTimeout { m: usize },
    CloseTimeout { m: usize },
    Resume { m: usize },
    Restart { m: usize },
    RestartSlave { s: usize },
    Crash { m: usize },
    Power { kept: usize },
    Pause { m: usize },
    CrashSlave { s: usize },
    AckTimeout { m: usize, s: usize },
    ReadTimeout { m: usize },
    Handover { m: usize },
    Leave { c: usize },
    Stray { c: usize, m: usize },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Action::Send { c, m } => write!(f, "client {c} asks master {m}"),
            Action::LogWrite { m } => write!(f, "master {m}: what waits for the log is written"),
            Action::LogSync { m } => write!(f, "master {m}: the log is synced"),
            Action::LogRead { m } => write!(f, "master {m}: a value is read from the log"),
            Action::ToSlave { m, s } => write!(f, "slave {s} takes in a message of master {m}"),
            Action::ToMaster { m, s } => write!(f, "master {m} takes in a message of slave {s}"),
            Action::ToPeer { m } => write!(f, "master {} takes in what master {m} asked", 1 - m),
            Action::FromPeer { m } => write!(f, "master {m} takes in an answer of master {}", 1 - m),
            Action::Connect { m, s } => write!(f, "slave {s} connects to master {m}"),
            Action::Dial { m } => write!(f, "master {m} connects to master {}", 1 - m),
            Action::CatchUp { m } => write!(f, "master {m} has replayed the log"),
            Action::Look { m } => write!(f, "master {m} looks at the lock"),
            Action::WinLock { m } => write!(f, "master {m} gets the lock"),
            Action::Recover { m } => write!(f, "master {m} reads the log to its end and syncs it"),
            Action::Hear { m } => write!(f, "master {m} has waited for what others know of the log"),
            Action::Suspect { m } => write!(f, "master {m} sees the counter of the other stand still"),
            Action::EnlistTimeout { m } => write!(f, "FAULT master {m} waits no longer for slaves"),
            Action::SyncForHandover { m } => write!(f, "master {m}: the log is synced for a handover"),
            Action::Close { m } => write!(f, "master {m}: the log is closed"),
            Action::Reopen { m } => write!(f, "master {m} has the log back"),
            Action::FrontTick { m } => write!(f, "master {m}: time passes for what is held"),
            Action::YieldTimeout { m } => write!(f, "FAULT master {m} gives the handover up"),
            Action::CloseTimeout { m } => write!(f, "FAULT master {m} asks for the log back"),
            Action::Resume { m } => write!(f, "master {m} runs again"),
            Action::Restart { m } => write!(f, "master {m} is started"),
            Action::RestartSlave { s } => write!(f, "slave {s} is started"),
            Action::Crash { m } => write!(f, "FAULT master {m} dies"),
            Action::Power { kept } => write!(f, "FAULT power loss, {kept} records remain"),
            Action::Pause { m } => write!(f, "FAULT master {m} is stopped"),
            Action::CrashSlave { s } => write!(f, "FAULT slave {s} dies"),
            Action::AckTimeout { m, s } => write!(f, "FAULT master {m} waited too long for slave {s}"),
            Action::ReadTimeout { m } => write!(f, "FAULT master {m} waited too long for a value"),
            Action::Handover { m } => write!(f, "FAULT an operator wants master {m} to serve"),
            Action::Leave { c } => write!(f, "FAULT client {c} waits no longer"),
            Action::Stray { c, m } => write!(f, "FAULT client {c} asks master {m}, which does not serve"),
        }
    }
}

impl World {
    /// The actions without a fault, including recovery from faults.
    pub(super) fn progress_actions(&self) -> Vec<Action> {
        let mut all = Vec::new();
        for m in 0..2 {
            let node = &self.masters[m];
            let shell = &node.shell;
            match shell.life {
                Life::Down => all.push(Action::Restart { m }),
                Life::Paused => all.push(Action::Resume { m }),
                Life::Running => self.actions_of_master(m, &mut all),
            }
        }
        for s in 0..self.slaves.len() {
            if !self.slaves[s].up {
                all.push(Action::RestartSlave { s });
                continue;
            }
            for m in 0..2 {
                let link = &self.links[m][s];
                if link.slave_up && !link.to_slave.is_empty() {
                    all.push(Action::ToSlave { m, s });
                }
                if !link.slave_up && self.masters[m].runs() {
                    all.push(Action::Connect { m, s });
                }
            }
        }
        self.client_actions(false, &mut all);
        all
    }

    fn actions_of_master(&self, m: usize, all: &mut Vec<Action>) {
        let node = &self.masters[m];
        let shell = &node.shell;
        for s in 0..self.slaves.len() {
            let link = &self.links[m][s];
            if link.master_up && (!link.to_master.is_empty() || !link.slave_up) {
                all.push(Action::ToMaster { m, s });
            }
        }
        if !shell.group.is_empty() {
            all.push(Action::LogSync { m });
        } else if !shell.queue.is_empty() {
            all.push(Action::LogWrite { m });
        }
        if !shell.log_reads.is_empty() {
            all.push(Action::LogRead { m });
        }
        let (mine, theirs) = (&self.peers[m], &self.peers[1 - m]);
        if mine.dialer_up && (!mine.from.is_empty() || !mine.other_up) {
            all.push(Action::FromPeer { m });
        }
        if theirs.other_up && (!theirs.to.is_empty() || !theirs.dialer_up) {
            all.push(Action::ToPeer { m: 1 - m });
        }
        if self.setup.peers && !mine.dialer_up && !mine.other_up && self.masters[1 - m].runs() {
            all.push(Action::Dial { m });
        }
        self.actions_of_role(m, all);
        if self.front_ticks < FRONT_TICKS_MAX && self.front_tick_matters(m) {
            all.push(Action::FrontTick { m });
        }
    }

    /// What a master waits for in its role.
    fn actions_of_role(&self, m: usize, all: &mut Vec<Action>) {
        let (node, lock) = (&self.masters[m], self.disk.lock);
        match node.reign.role() {
            ReignRole::Standby { queue: Queue::Replaying } => all.push(Action::CatchUp { m }),
            ReignRole::Standby { queue: Queue::Courting { .. } } => {
                // The second of a cold start does not pass while a running master waits for a free lock.
                let other = &self.masters[1 - m];
                if lock.is_some() || !other.runs() || !other.waits_for_lock() {
                    all.push(Action::Look { m });
                }
            }
            ReignRole::Standby { queue: Queue::Queued { .. } } => {
                if lock.is_none() || self.bug(Bug::LockNotAwaited) {
                    all.push(Action::WinLock { m });
                } else if lock == Some(1 - m) && self.masters[1 - m].shell.life == Life::Paused {
                    all.push(Action::Suspect { m });
                }
            }
            ReignRole::Recovering { .. } => all.push(Action::Recover { m }),
            ReignRole::Waiting(_) if node.shell.now < Millis(HEAR_MS) => all.push(Action::Hear { m }),
            ReignRole::Preparing { .. } => all.push(Action::SyncForHandover { m }),
            ReignRole::Closing { asked_back, .. } => {
                if node.shell.group.is_empty() && node.shell.queue.is_empty() {
                    all.push(Action::Close { m });
                }
                if *asked_back {
                    all.push(Action::Reopen { m });
                }
            }
            ReignRole::Doubting { .. } | ReignRole::Stopping { .. } => all.push(Action::Close { m }),
            ReignRole::Barred { .. }
            | ReignRole::Halting
            | ReignRole::Waiting(_)
            | ReignRole::Opening { .. }
            | ReignRole::Announcing { .. }
            | ReignRole::Serving { .. }
            | ReignRole::Yielding { .. }
            | ReignRole::Losing { .. }
            | ReignRole::Departing { .. }
            | ReignRole::Ended => {}
        }
    }

    /// Whether a tick would move anything that is held.
    pub(super) fn front_tick_matters(&self, m: usize) -> bool {
        let node = &self.masters[m];
        if node.front.waiting() == 0 {
            return false;
        }
        let (mut front, mut effects) = (Front::clone(&node.front), Vec::new());
        front.step(node.shell.now, node.reign.stance(), front::Event::Tick, &mut effects);
        !effects.is_empty()
    }

    /// Requests of clients, at the master that will serve them, or (`stray`) at the other one.
    pub(super) fn client_actions(&self, stray: bool, all: &mut Vec<Action>) {
        for (c, client) in self.clients.all.iter().enumerate() {
            let Some(plan) = self.setup.clients.get(c) else { continue };
            let Some(next) = client.requests.iter().position(|r| r.progress == Progress::Waiting) else {
                continue;
            };
            let asked = client.requests.iter().any(|r| r.progress == Progress::Asked);
            if asked && !plan.pipelines {
                continue;
            }
            // A request that was refused in the middle of a pipeline is asked again once the rest is answered.
            if client.requests[next + 1..].iter().any(|r| r.progress == Progress::Asked) {
                continue;
            }
            for m in 0..2 {
                if !self.masters[m].runs() || (asked && client.at != Some(m)) {
                    continue;
                }
                let waits_there = match plan.kind {
                    Kind::Native => self.masters[m].serves(),
                    Kind::Forwardable | Kind::Forwarded { .. } => client.at.is_none_or(|at| at == m),
                };
                if waits_there != stray {
                    all.push(if stray { Action::Stray { c, m } } else { Action::Send { c, m } });
                }
            }
        }
    }

    /// The faults that the world still allows.
    pub(super) fn fault_actions(&self, all: &mut Vec<Action>) {
        let (spent, limits) = (&self.spent, &self.setup.faults);
        for m in (0..2).filter(|m| self.masters[*m].runs()) {
            let role = self.masters[m].reign.role();
            if matches!(role, ReignRole::Announcing { .. }) && limits.enlist_timeout {
                all.push(Action::EnlistTimeout { m });
            }
            if matches!(role, ReignRole::Yielding { .. }) && limits.yield_timeout {
                all.push(Action::YieldTimeout { m });
            }
            if matches!(role, ReignRole::Closing { asked_back: false, .. }) && limits.yield_timeout {
                all.push(Action::CloseTimeout { m });
            }
        }
        if spent.stray < limits.stray {
            self.client_actions(true, all);
        }
        if spent.total >= limits.total {
            return;
        }
        for m in 0..2 {
            let node = &self.masters[m];
            if node.shell.life == Life::Down {
                continue;
            }
            if spent.crash < limits.crash {
                all.push(Action::Crash { m });
            }
            if !node.runs() {
                continue;
            }
            if spent.pause < limits.pause {
                all.push(Action::Pause { m });
            }
            for s in 0..self.slaves.len() {
                let link = &self.links[m][s];
                let owes = !node.core.is_idle(link.id);
                if spent.ack_timeout < limits.ack_timeout && link.master_up && owes {
                    all.push(Action::AckTimeout { m, s });
                }
            }
            let asked = self.links[m].iter().any(|link| link.count.is_some()) && node.core.in_flight() > 0;
            if spent.read_timeout < limits.read_timeout && asked {
                all.push(Action::ReadTimeout { m });
            }
            let standby = node.waits_for_lock() && self.peers[m].dialer_up;
            if spent.handover < limits.handover && standby && self.masters[1 - m].serves() {
                all.push(Action::Handover { m });
            }
        }
        if spent.power < limits.power {
            all.extend((self.disk.synced..=self.disk.log.len()).map(|kept| Action::Power { kept }));
        }
        if spent.slave_crash < limits.slave_crash {
            let up = (0..self.slaves.len()).filter(|s| self.slaves[*s].up);
            all.extend(up.map(|s| Action::CrashSlave { s }));
        }
        if spent.leave < limits.leave {
            let asked = |client: &&Client| client.requests.iter().any(|r| r.progress == Progress::Asked);
            let all_clients = self.clients.all.iter().enumerate();
            all.extend(all_clients.filter(|(_, c)| asked(c)).map(|(c, _)| Action::Leave { c }));
        }
    }

    /// Takes a step, followed by what masters do by themselves.
    #[expect(clippy::too_many_lines, reason = "one arm for each action, each short")]
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Send { c, m } => self.send(c, m),
            Action::Stray { c, m } => {
                self.spent.stray += 1;
                self.send(c, m);
            }
            Action::LogWrite { m } => self.log_write(m),
            Action::LogSync { m } => self.log_sync(m),
            Action::LogRead { m } => self.log_read(m),
            Action::ToSlave { m, s } => self.slave_takes(m, s),
            Action::ToMaster { m, s } => self.master_takes(m, s),
            Action::ToPeer { m } => self.peer_asks(m),
            Action::FromPeer { m } => self.peer_answers(m),
            Action::Connect { m, s } => self.connect(m, s),
            Action::Dial { m } => self.dial(m),
            Action::CatchUp { m } => {
                self.replay(m);
                self.reign(m, reign::Event::CaughtUp);
            }
            Action::Look { m } => self.look(m),
            Action::WinLock { m } => self.win_lock(m),
            Action::Recover { m } => self.recover(m),
            Action::Hear { m } => {
                while self.masters[m].shell.now < Millis(HEAR_MS) {
                    let shell = self.masters[m].shell.change();
                    shell.now = shell.now.plus(200);
                    self.tick(m, 0);
                }
                self.hear(m);
            }
            Action::Suspect { m } => self.suspect(m),
            Action::EnlistTimeout { m } | Action::YieldTimeout { m } | Action::CloseTimeout { m } => {
                self.tick(m, TIMEOUT_MS);
            }
            Action::SyncForHandover { m } => {
                self.reign(m, reign::Event::Synced);
            }
            Action::Close { m } => self.close(m),
            Action::Reopen { m } => {
                self.reign(m, reign::Event::Reopened);
            }
            Action::FrontTick { m } => {
                self.front_ticks += 1;
                self.front(m, front::Event::Tick);
            }
            Action::Resume { m } => self.masters[m].shell.change().life = Life::Running,
            Action::Restart { m } => {
                self.masters[m] = Node::new(m, Life::Running);
            }
            Action::RestartSlave { s } => self.slaves[s].change().up = true,
            Action::Crash { m } => {
                self.spent.crash += 1;
                self.spent.total += 1;
                self.crash(m);
            }
            Action::Power { kept } => {
                self.spent.power += 1;
                self.spent.total += 1;
                for m in 0..2 {
                    if self.masters[m].shell.life != Life::Down {
                        self.crash(m);
                    }
                }
                self.disk.change().log.truncate(kept);
            }
            Action::Pause { m } => {
                self.spent.pause += 1;
                self.spent.total += 1;
                self.masters[m].shell.change().life = Life::Paused;
            }
            Action::CrashSlave { s } => {
                self.spent.slave_crash += 1;
                self.spent.total += 1;
                let node = self.slaves[s].change();
                node.up = false;
                node.machine = Slave::new(None, 1);
                for m in 0..2 {
                    if self.links[m][s].slave_up {
                        let link = self.links[m][s].change();
                        link.slave_up = false;
                        link.to_slave.clear();
                    }
                }
            }
            Action::AckTimeout { m, s } => {
                self.spent.ack_timeout += 1;
                self.spent.total += 1;
                self.slave_ended(m, s);
            }
            Action::ReadTimeout { m } => {
                self.spent.read_timeout += 1;
                self.spent.total += 1;
                let shell = self.masters[m].shell.change();
                shell.now = shell.now.plus(200);
                self.core(m, master::Event::Tick);
            }
            Action::Handover { m } => {
                self.spent.handover += 1;
                self.spent.total += 1;
                let link = LinkId(self.peers[m].generation);
                self.reign(m, reign::Event::HandoverOffered { link });
            }
            Action::Leave { c } => {
                self.spent.leave += 1;
                self.spent.total += 1;
                self.tell(|| format!("client {c} goes away"));
                let at = self.clients.all[c].at;
                let session = self.session_of(c);
                self.session_lost(c, true);
                if let Some(m) = at.filter(|m| self.masters[*m].shell.life != Life::Down) {
                    self.front(m, front::Event::SessionClosed { session });
                }
            }
        }
        for m in 0..2 {
            if self.masters[m].runs() {
                self.after_turn(m);
            }
        }
        self.check_state();
    }

    /// What a master checks after every event.
    pub(super) fn after_turn(&mut self, m: usize) {
        let reign = &self.masters[m].reign;
        if reign.is_waiting() {
            self.hear(m);
        } else if reign.holds_places_back() {
            self.tick(m, 0);
        } else if reign.waits_for_requests() {
            let around = self.surroundings(m);
            self.reign(m, reign::Event::TurnEnded(around));
        }
    }
}
