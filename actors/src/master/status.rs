//! The text of STATUS and INFO: sections of `key:value` lines, as Redis' INFO has them. `docs/FORMATS.md`, *INFO*,
//! explains each; a test holds the two together.

use super::MasterActor;
use crate::config::{Fsync, MasterKind};
use dsm_protocol::command::ErrorWord;
use dsm_protocol::machine::master::Lacking;
use std::fmt::Write as _;

impl MasterActor {
    /// Describes this node.
    pub(super) fn status(&self) -> String {
        let mut text = String::with_capacity(1024);
        // Writing to a string cannot fail.
        let _ = self.write_status(&mut text);
        text
    }

    fn role_name(&self) -> &'static str {
        if self.reign.is_standby() {
            "standby"
        } else if self.serves() {
            "primary"
        } else {
            "recovering"
        }
    }

    /// The other masters, in the order of the settings.
    fn write_peers(&self, text: &mut String) -> std::fmt::Result {
        for (index, address) in self.peers.addresses().iter().enumerate() {
            let dialed = self.peers.dialed_at(address);
            let connected = u8::from(dialed.is_some());
            let serves = u8::from(dialed.is_some_and(|dialed| dialed.state().active));
            let seq = dialed.map_or(0, |dialed| dialed.state().seq.0);
            writeln!(text, "peer{index}:address={address},connected={connected},serves={serves},seq={seq}")?;
        }
        Ok(())
    }

    /// The slaves that are connected and do not count, numbered from `first` on.
    fn write_quarantined(&self, text: &mut String, first: usize) -> std::fmt::Result {
        let now = self.env.now();
        for (index, (id, record)) in self.slaves.quarantined().into_iter().enumerate() {
            let Some(record) = record else { continue };
            let left = record.ms_left(now);
            write!(text, "slave{}:id={id},state=quarantined,", first + index)?;
            writeln!(text, "failures={},cause={},ms_left={left}", record.failures, record.cause)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "one line for each field, in the order of INFO")]
    fn write_status(&self, text: &mut String) -> std::fmt::Result {
        let state = self.state();
        let gate = &self.switchboard.gate;
        let kind = match self.kind {
            MasterKind::Primary => "primary",
            MasterKind::Backup => "backup",
        };
        writeln!(text, "# Server")?;
        writeln!(text, "dsm_version:{}", env!("CARGO_PKG_VERSION"))?;
        writeln!(text, "process_id:{}", self.env.pid())?;
        writeln!(text, "started_as:{kind}")?;
        writeln!(text, "address:{}", self.address)?;
        let now = self.env.now();
        writeln!(text, "uptime_in_seconds:{}", now.0 / 1000)?;
        writeln!(text, "used_memory_rss:{}", self.env.resident_bytes())?;
        writeln!(text, "log_lines_lost:{}", self.env.log_lines_lost())?;
        if let Some(cluster) = self.log.cluster() {
            writeln!(text, "cluster_id:{cluster}")?;
        }

        writeln!(text, "\n# Replication")?;
        writeln!(text, "role:{}", self.role_name())?;
        writeln!(text, "epoch:{}", self.reign.epoch())?;
        writeln!(text, "active_master:{}", state.active_address.as_deref().unwrap_or(""))?;
        writeln!(text, "peer_connected:{}", u8::from(self.peers.has_dialed()))?;
        self.write_peers(text)?;
        let lag = if self.serves() { self.peers.lag_ms(now) } else { None };
        writeln!(text, "standby_lag_ms:{}", lag.map_or_else(String::new, |ms| ms.to_string()))?;
        let waiting_for = self.waiting_for();
        let degraded = if waiting_for.is_empty() { self.health.degraded() } else { waiting_for.clone() };
        writeln!(text, "degraded:{degraded}")?;
        writeln!(text, "waiting_for:{waiting_for}")?;
        writeln!(text, "takeovers:{}", self.moves.takeovers())?;
        writeln!(text, "handovers:{}", self.moves.handovers())?;

        let counters = self.machine.counters();
        let mut copies = 0;
        let reign = self.machine.reigns().last().map(|last| last.reign.id).unwrap_or_default();
        writeln!(text, "reign_id:{reign}")?;
        writeln!(text, "reigns:{}", self.machine.reigns().len())?;

        writeln!(text, "\n# Slaves")?;
        if self.serves() {
            writeln!(text, "active_slaves:{}", self.machine.slave_count())?;
            let mut slaves: Vec<_> = self.machine.slaves().collect();
            slaves.sort_by_key(|(id, ..)| *id);
            for (index, (id, slot, held, room)) in slaves.into_iter().enumerate() {
                copies += held;
                let room = if room == u64::MAX { "unlimited".to_owned() } else { room.to_string() };
                let acked = self.machine.writes_acked(slot);
                write!(text, "slave{index}:id={id},slot={},state=active,copies={held},", slot.0)?;
                writeln!(text, "writes_acked={acked},room_bytes={room}")?;
            }
            self.write_quarantined(text, self.machine.slave_count())?;
        } else {
            writeln!(text, "active_slaves:{}", self.slaves.len())?;
            let mut ids: Vec<_> = self.slaves.iter().map(|slave| slave.id()).collect();
            ids.sort();
            for (index, id) in ids.into_iter().enumerate() {
                writeln!(text, "slave{index}:id={id},state=connected")?;
            }
        }
        let waiting = self.slaves.iter().filter(|slave| slave.is_in_quarantine()).count();
        writeln!(text, "slaves_quarantined:{waiting}")?;
        writeln!(text, "slaves_full:{}", self.machine.full_slaves().count())?;
        let (slowest, ack_ms) = self.slaves.slowest(now).unwrap_or(("", 0));
        writeln!(text, "slowest_slave:{slowest}")?;
        writeln!(text, "slowest_slave_ack_ms:{ack_ms}")?;
        writeln!(text, "slaves_removed:{}", self.slaves.removed())?;
        writeln!(text, "slaves_refused:{}", self.slaves.refused())?;
        writeln!(text, "slaves_disputing:{}", self.slaves.disputing())?;
        writeln!(text, "substitutions:{}", counters.substitutions)?;
        writeln!(text, "reads_waited_for_slave_window:{}", self.slaves.reads_waited())?;

        writeln!(text, "\n# Keyspace")?;
        writeln!(text, "keys:{}", self.machine.directory().len())?;
        writeln!(text, "copies:{copies}")?;
        let (counted_at, lacking) = self.health.last_count().unwrap_or((now, Lacking::default()));
        writeln!(text, "keys_without_copy:{}", lacking.without_copy)?;
        writeln!(text, "keys_below_copies:{}", lacking.below_copies)?;
        writeln!(text, "copies_counted_ms_ago:{}", now.since(counted_at))?;

        writeln!(text, "\n# Log")?;
        writeln!(text, "log_path:{}", self.config.log.display())?;
        writeln!(text, "log_bytes:{}", self.log.bytes())?;
        writeln!(text, "log_seq:{}", self.log.seq())?;
        let fsync = match self.config.fsync {
            Fsync::Always => "always",
            Fsync::Everysec => "everysec",
            Fsync::Never => "never",
        };
        writeln!(text, "fsync:{fsync}")?;
        let is_standby = self.reign.is_standby();
        let lag = if is_standby { self.peers.seqs_behind(self.log.seq()) } else { 0 };
        writeln!(text, "replay_lag_seq:{lag}")?;
        let sight = if is_standby || self.reign.is_barred() { self.log.sight().word() } else { "" };
        writeln!(text, "standby_log:{sight}")?;

        writeln!(text, "\n# Requests")?;
        writeln!(text, "reads_total:{}", counters.reads)?;
        writeln!(text, "writes_total:{}", counters.writes)?;
        writeln!(text, "unknown_total:{}", counters.unknown)?;
        writeln!(text, "writes_without_copy:{}", counters.without_copy)?;
        writeln!(text, "read_retries:{}", counters.read_retries)?;
        writeln!(text, "reads_from_log:{}", counters.log_reads)?;
        writeln!(text, "reads_waited_for_log_window:{}", counters.log_reads_waited)?;
        writeln!(text, "log_read_bytes:{}", self.machine.log_read_bytes())?;
        writeln!(text, "reads_of_all_slaves:{}", counters.asked_all)?;
        writeln!(text, "requests_in_flight:{}", self.switchboard.gate.requests())?;
        writeln!(text, "request_bytes_in_flight:{}", self.switchboard.gate.request_bytes())?;
        writeln!(text, "requests_waiting_for_master:{}", self.front.waiting())?;
        writeln!(text, "own_pauses:{}", self.silence.jumps().paused)?;
        writeln!(text, "own_stalls:{}", self.silence.jumps().busy)?;
        writeln!(text, "own_waits_for_processor:{}", self.silence.jumps().starved)?;
        writeln!(text, "computed_between_ticks_most_ms:{}", self.silence.computed_between_ticks_ms())?;

        writeln!(text, "\n# Turns")?;
        for (class, turns) in self.switchboard.turns.classes() {
            writeln!(text, "{class}:{turns}")?;
        }
        let longest = self.switchboard.turns.longest();
        writeln!(text, "turn_longest_us:{}", longest.us)?;
        writeln!(text, "turn_longest_in:{}", longest.name)?;
        writeln!(text, "turns_computing_above_10ms:{}", self.switchboard.turns.computing_long())?;
        let longest = self.switchboard.turns.longest_computing();
        writeln!(text, "turn_longest_computing_us:{}", longest.us)?;
        writeln!(text, "turn_longest_computing_in:{}", longest.name)?;
        writeln!(
            text,
            "turn_longest_computing_by_kind:{}",
            self.switchboard.turns.longest_computing_by_kind()
        )?;

        writeln!(text, "\n# Errors")?;
        for word in ErrorWord::ALL.into_iter().filter(|word| !word.is_reserved()) {
            let answered = self.switchboard.errors.of(word);
            writeln!(text, "errors_{}:{answered}", word.as_str().to_ascii_lowercase())?;
        }

        writeln!(text, "\n# Clients")?;
        writeln!(text, "connected_clients:{}", self.clients.len())?;
        writeln!(text, "connections:{}", gate.connections())?;
        writeln!(text, "connections_total:{}", gate.counters.connections_total.get())?;
        writeln!(text, "connections_refused:{}", gate.counters.connections_refused.get())?;
        writeln!(text, "requests_busy:{}", gate.counters.busy.get())?;
        writeln!(text, "reads_paused:{}", gate.counters.reads_paused.get())?;
        writeln!(text, "requests_parked:{}", gate.counters.parked.get())?;
        writeln!(text, "answer_bytes:{}", self.switchboard.answers.len())?;
        writeln!(text, "clients_waiting_for_answer_room:{}", self.switchboard.answers.waiting())?;
        let (requests, frames) = (&gate.unfinished_requests, &gate.unfinished_frames);
        writeln!(text, "unfinished_request_bytes:{}", requests.bytes())?;
        writeln!(text, "uploads_cut:{}", requests.cut())?;
        writeln!(text, "unfinished_link_bytes:{}", frames.bytes())?;
        writeln!(text, "links_cut:{}", frames.cut())?;
        writeln!(text, "slow_readers_cut:{}", gate.counters.slow_readers_cut.get())?;
        writeln!(text, "handshakes_timed_out:{}", gate.counters.handshakes_timed_out.get())?;
        writeln!(text, "protocol_errors:{}", gate.counters.protocol_errors.get())?;
        writeln!(text, "idle_closed:{}", gate.counters.idle_closed.get())?;
        writeln!(text, "accept_errors:{}", gate.counters.accept_errors.get())
    }
}
