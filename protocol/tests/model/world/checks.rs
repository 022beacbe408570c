//! The checks of every state, and of the healed world.

use super::*;

impl World {
    /// Whether master `m` holds the lock. Not checked in a world whose bug is about the lock: there the consequences
    /// must be found.
    pub(super) fn may_serve(&self, m: usize) -> bool {
        self.disk.lock == Some(m) || self.bug(Bug::LockNotAwaited) || self.bug(Bug::FenceWithoutKill)
    }

    pub(super) fn check_state(&mut self) {
        let serving: Vec<usize> = (0..2).filter(|m| self.masters[*m].serves()).collect();
        if serving.len() > 1 {
            self.wrong("two masters serve".to_owned());
        }
        if let [m] = serving[..] {
            if !self.may_serve(m) {
                self.wrong(format!("master {m} serves without the lock"));
            }
        }
        let synced = self.disk.synced.min(self.disk.log.len());
        if let Some(lost) = self.clients.acknowledged.iter().find(|place| **place > synced) {
            self.wrong(format!("place {lost} of the log is acknowledged and not durable"));
        }
    }

    /// Takes steps that are not faults until nothing is left to do.
    pub(super) fn settle(&mut self, booting: bool) {
        self.front_ticks = 0;
        for _ in 0..SETTLE_STEPS_MAX {
            let all = self.progress_actions();
            let may = |action: &&Action| match action {
                // The first reign is master 0's.
                Action::Restart { .. } => !booting || self.masters[0].serves(),
                Action::FrontTick { .. } => false,
                _ => true,
            };
            // Time passes when nothing else happens.
            let tick = |action: &&Action| matches!(action, Action::FrontTick { .. });
            let next = all.iter().find(may).or_else(|| all.iter().find(tick)).copied();
            let Some(action) = next else { return };
            if matches!(action, Action::FrontTick { .. }) {
                self.front_ticks = 0;
            }
            self.tell(|| format!("healing: {action}"));
            self.perform(action);
            if self.violation.is_some() {
                return;
            }
        }
        let next: Vec<String> = self.progress_actions().iter().map(Action::to_string).collect();
        self.wrong(format!("the world does not come to rest, there is always: {}", next.join("; ")));
    }

    /// Checks the world when it has healed and nothing is under way.
    pub(super) fn check_at_rest(&mut self) {
        let Some(m) = (0..2).find(|m| self.masters[*m].serves()) else {
            self.wrong("nobody serves although all has healed".to_owned());
            return;
        };
        let open = |r: &Request| matches!(r.progress, Progress::Waiting | Progress::Asked);
        if self.clients.all.iter().any(|client| client.requests.iter().any(open)) {
            self.wrong("a request never gets an answer".to_owned());
        }
        if (0..2).any(|m| self.masters[m].core.in_flight() > 0 || self.masters[m].front.waiting() > 0) {
            self.wrong("a request hangs in a master".to_owned());
        }
        if !self.masters[1 - m].waits_for_lock() {
            self.wrong("the standby does not wait for the lock".to_owned());
        }
        self.replay(1 - m);
        let mut latest: Option<(Version, Bytes)> = None;
        for record in &self.disk.log {
            if let Some(value) = value_in(record, &key()) {
                latest = value.map(|value| (record.version, value));
            }
        }
        let version = latest.as_ref().map(|(version, _)| *version);
        for m in 0..2 {
            let named = self.masters[m].core.directory().get(&key()).map(|entry| entry.version);
            if named != version {
                self.wrong(format!("the directory of master {m} names {named:?}, the log {version:?}"));
            }
        }
        let holders = self.masters[m].core.directory().get(&key()).map(|entry| entry.holders);
        for s in 0..self.slaves.len() {
            let Some(slot) = self.masters[m].core.slot_of(self.links[m][s].id) else {
                self.wrong(format!("slave {s} is not active although all has healed"));
                continue;
            };
            let (named, held) = (holders.is_some_and(|holders| holders.contains(slot)), self.held(s));
            if held.is_some() && held != latest {
                self.wrong(format!("slave {s} holds {held:?}, the log {latest:?}"));
            }
            if named != held.is_some() {
                self.wrong(format!("slave {s} holds {held:?}, as a holder it is named: {named}"));
            }
            if !self.masters[m].core.is_idle(self.links[m][s].id) {
                self.wrong(format!("slave {s} owes acknowledgements at rest"));
            }
        }
    }

    /// Heals everything, and checks that a write and a read of a new client succeed.
    pub(super) fn heals(&self) -> Option<String> {
        let wrong = self.healed(false).violation?;
        let way = self.healed(true).told.unwrap_or_default();
        let last = &way[way.len().saturating_sub(TOLD_MAX)..];
        Some(format!("after healing: {wrong}\n         {}", last.join("\n         ")))
    }

    pub(super) fn healed(&self, narrates: bool) -> World {
        let mut world = self.clone();
        world.told = narrates.then(Vec::new);
        world.settle(false);
        if world.violation.is_none() {
            world.check_at_rest();
        }
        if world.violation.is_none() {
            let wishes = vec![Wish::Write, Wish::Read];
            let plan = crate::setup::Plan { kind: Kind::Native, pipelines: false, wishes };
            let mut setup = (*world.setup).clone();
            setup.clients.push(plan);
            world.setup = Rc::new(setup);
            let request = Request { progress: Progress::Waiting, floor: None, overtaken: false };
            let client = Client { at: None, session: 0, requests: vec![request.clone(), request] };
            world.clients.change().all.push(client);
            world.settle(false);
            let last = world.clients.all.last().unwrap();
            if last.requests.iter().any(|request| request.progress != Progress::Answered) {
                world.wrong("a write and a read after all faults have no result".to_owned());
            }
        }
        if world.violation.is_none() {
            world.check_at_rest();
        }
        world
    }
}
