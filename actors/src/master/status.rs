//! What a master says of itself in STATUS and INFO. The fields, their names and their order are
//! [`dsm_protocol::info`]'s; here is where each is taken from.

use super::slave_link::SlaveLink;
use super::MasterActor;
use crate::config::{Fsync, MasterKind};
use crate::door::admission::Pool;
use crate::journal::{Sight, Wording};
use crate::process_info::{cpu_info, memory_info};
use crate::told::{AskNode, NodeFacts, NodeTold};
use actix::prelude::Handler;
use dsm_protocol::acl::IncidentKind;
use dsm_protocol::command::ErrorWord;
use dsm_protocol::ids::SlaveId;
use dsm_protocol::info::{
    ActiveSlave, ClientsInfo, ConnectedSlave, DatabaseInfo, ErrorsInfo, KeyspaceInfo, LogInfo, MasterInfo,
    MasterRole, OrEmpty, OrUnlimited, PeerInfo, PersistenceInfo, QuarantinedSlave, RedisRole,
    ReplicationInfo, RequestsInfo, ServerInfo, SlaveInfo, SlavesInfo, StartedAs, StatsInfo,
};
use dsm_protocol::machine::master::{Lacking, Slot};
use dsm_protocol::resp::REDIS_VERSION;
use dsm_protocol::serving_view::host_and_port;

impl MasterActor {
    /// The text of STATUS.
    pub(super) fn status(&self) -> String {
        self.info().print()
    }

    fn info(&self) -> MasterInfo {
        MasterInfo {
            server: self.server_info(),
            memory: memory_info(&self.env),
            persistence: self.persistence_info(),
            stats: self.stats_info(),
            replication: self.replication_info(),
            cpu: cpu_info(&self.env),
            slaves: self.slaves_info(),
            keyspace: self.keyspace_info(),
            log: self.log_info(),
            requests: self.requests_info(),
            turns: self.switchboard.turns.info(),
            errors: self.errors_info(),
            clients: self.clients_info(),
        }
    }

    fn server_info(&self) -> ServerInfo {
        ServerInfo {
            dsm_version: env!("CARGO_PKG_VERSION").to_owned(),
            redis_version: REDIS_VERSION.to_owned(),
            redis_mode: "standalone".to_owned(),
            tcp_port: host_and_port(&self.address).1.into(),
            process_id: self.env.pid(),
            started_as: match self.kind {
                MasterKind::Primary => StartedAs::Primary,
                MasterKind::Backup => StartedAs::Backup,
            },
            address: self.address.clone(),
            uptime_in_seconds: self.env.now().0 / 1000,
            uptime_in_days: self.env.now().0 / 1000 / (24 * 60 * 60),
            log_lines_lost: self.env.log_lines_lost(),
            tls: self.env.certificate_expires().is_some(),
            tls_certificate_expires: OrEmpty(self.env.certificate_expires()),
            secret: self.config.secret.is_some(),
            client_secret: self.config.client_secret.is_some(),
            cluster_id: self.log.cluster(),
        }
    }

    fn persistence_info(&self) -> PersistenceInfo {
        let known = self.log.compactions();
        PersistenceInfo {
            loading: self.master_role() == MasterRole::Recovering,
            rdb_bgsave_in_progress: false,
            aof_enabled: true,
            aof_rewrite_in_progress: known.running.is_some(),
            aof_last_bgrewrite_status: if known.hindrance.is_none() { "ok" } else { "err" }.to_owned(),
            aof_current_size: self.log.bytes(),
        }
    }

    fn stats_info(&self) -> StatsInfo {
        let counters = &self.switchboard.gate.counters;
        StatsInfo {
            total_connections_received: counters.connections_total.get(),
            total_commands_processed: counters.commands.get(),
            instantaneous_ops_per_sec: self.ops.per_second(),
            rejected_connections: counters.connections_refused.get(),
            evicted_keys: 0,
            total_error_replies: self.errors_info().errors.iter().map(|(_, answered)| answered).sum(),
        }
    }

    /// The databases that have keys.
    fn databases(&self) -> Vec<DatabaseInfo> {
        let keys = self.machine.directory().len() as u64;
        let (expiring, mean) = self.machine.directory().expiring();
        let time = self.machine.cluster_time(self.env.now());
        let avg_ttl = mean.map_or(0, |mean| mean.since(time));
        let database = DatabaseInfo { keys, expires: expiring as u64, avg_ttl };
        Some(database).filter(|database| database.keys > 0).into_iter().collect()
    }

    fn master_role(&self) -> MasterRole {
        if self.reign.is_standby() {
            MasterRole::Standby
        } else if self.serves() {
            MasterRole::Primary
        } else {
            MasterRole::Recovering
        }
    }

    fn replication_info(&self) -> ReplicationInfo {
        let waiting_for = self.waiting_for();
        let lag_ms = if self.serves() { self.peers.lag_ms(self.env.now()) } else { None };
        let view = self.serving_view();
        let is_slave = view.role == RedisRole::Slave;
        let (member, members_change) = self.log.members();
        let (host, port) = host_and_port(view.followed());
        let link = if view.is_linked() { "up" } else { "down" };
        ReplicationInfo {
            role: view.role,
            dsm_role: self.master_role(),
            master_host: is_slave.then(|| host.to_owned()),
            master_port: is_slave.then(|| port.into()),
            master_link_status: is_slave.then(|| link.to_owned()),
            slave_repl_offset: is_slave.then_some(view.seq.0),
            slave_read_only: is_slave.then_some(false),
            connected_slaves: view.followers().count() as u64,
            master_repl_offset: view.seq.0,
            epoch: self.reign.epoch(),
            active_master: self.state().active_address.unwrap_or_default(),
            peer_connected: self.peers.has_dialed(),
            peer: self.peer_infos(),
            member,
            members_change,
            standby_lag_ms: OrEmpty(lag_ms),
            degraded: if waiting_for.is_empty() { self.health.degraded() } else { waiting_for.clone() },
            waiting_for,
            takeovers: self.moves.takeovers(),
            handovers: self.moves.handovers(),
            reign_id: self.machine.reigns().last().map(|last| last.reign.id).unwrap_or_default(),
            reigns: self.machine.reigns().len() as u64,
        }
    }

    /// The other masters, in the order of the settings.
    fn peer_infos(&self) -> Vec<PeerInfo> {
        let info = |address: &String| {
            let dialed = self.peers.dialed_at(address);
            PeerInfo {
                address: address.clone(),
                connected: dialed.is_some(),
                serves: dialed.is_some_and(|dialed| dialed.state().active),
                seq: dialed.map(|dialed| dialed.state().seq).unwrap_or_default(),
            }
        };
        self.peers.addresses().iter().map(info).collect()
    }

    fn slaves_info(&self) -> SlavesInfo {
        let slave = if self.serves() {
            let active = self.active_slaves().into_iter().map(SlaveInfo::Active);
            active.chain(self.quarantined_slaves().into_iter().map(SlaveInfo::Quarantined)).collect()
        } else {
            let mut ids: Vec<_> = self.slaves.iter().map(|slave| slave.id().clone()).collect();
            ids.sort();
            ids.into_iter().map(|id| SlaveInfo::Connected(ConnectedSlave { id })).collect()
        };
        let (slowest, ack_ms) = self.slaves.slowest(self.env.now()).unwrap_or(("", 0));
        SlavesInfo {
            active_slaves: if self.serves() { self.machine.slave_count() } else { self.slaves.len() } as u64,
            slave,
            slaves_quarantined: self.slaves.quarantined().count() as u64,
            slaves_full: self.machine.full_slaves().count() as u64,
            slowest_slave: slowest.to_owned(),
            slowest_slave_ack_ms: ack_ms,
            slaves_removed: self.slaves.removed(),
            slaves_refused: self.slaves.refused(),
            slaves_disputing: self.slaves.disputing() as u64,
            slaves_leaving: self.machine.draining().map(SlaveId::as_str).collect::<Vec<_>>().join(","),
            keys_to_drain: self.machine.keys_to_drain(),
            slaves_let_go: self.machine.slaves_let_go() as u64,
            substitutions: self.machine.counters().substitutions,
            reads_waited_for_slave_window: self.slaves.reads_waited(),
        }
    }

    /// The slaves that count, by name.
    fn active_slaves(&self) -> Vec<ActiveSlave> {
        let mut slaves: Vec<_> = self.machine.slaves().collect();
        slaves.sort_by_key(|(id, ..)| *id);
        let info = |(id, slot, copies, room): (&SlaveId, Slot, u64, u64)| ActiveSlave {
            id: id.clone(),
            slot: slot.0.into(),
            copies,
            writes_acked: self.machine.writes_acked(slot),
            room_bytes: OrUnlimited((room != u64::MAX).then_some(room)),
        };
        slaves.into_iter().map(info).collect()
    }

    /// The slaves that are connected and do not count, by name.
    fn quarantined_slaves(&self) -> Vec<QuarantinedSlave> {
        let now = self.env.now();
        let info = |slave: &SlaveLink| {
            let record = self.slaves.failures(slave)?;
            Some(QuarantinedSlave {
                id: slave.id().clone(),
                failures: record.failures.into(),
                cause: record.cause.to_string(),
                ms_left: record.ms_left(now),
            })
        };
        let mut waiting: Vec<_> = self.slaves.quarantined().filter_map(info).collect();
        waiting.sort_by(|one, other| one.id.cmp(&other.id));
        waiting
    }

    fn keyspace_info(&self) -> KeyspaceInfo {
        let now = self.env.now();
        let (counted_at, lacking) = self.health.last_count().unwrap_or((now, Lacking::default()));
        let held = self.machine.slaves().map(|(_, _, copies, _)| copies);
        let (repaired_keys, repaired_bytes) = self.machine.repaired();
        let moved = self.machine.moved();
        KeyspaceInfo {
            db: self.databases(),
            keys: self.machine.directory().len() as u64,
            copies: if self.serves() { held.sum() } else { 0 },
            keys_without_copy: lacking.without_copy,
            keys_under_replicated: self.machine.keys_under_replicated(self.health.last_count()),
            copies_counted_ms_ago: now.since(counted_at),
            copies_setting: self.config.copies.to_string(),
            copies_wanted: self.machine.copies_wanted() as u64,
            repair_state: self.machine.repair_state(),
            repaired_keys,
            repaired_bytes,
            rebalance_state: self.machine.rebalance_state(),
            keys_misplaced: self.machine.keys_misplaced(),
            moved_keys: moved.keys,
            moved_bytes: moved.bytes,
            surplus_copies_dropped: moved.surplus,
        }
    }

    fn log_info(&self) -> LogInfo {
        let is_standby = self.reign.is_standby();
        let fsync = match self.config.fsync {
            Fsync::Always => "always",
            Fsync::Everysec => "everysec",
            Fsync::Never => "never",
        };
        let known = self.log.compactions();
        let sight = match self.log.sight() {
            _ if !is_standby && !self.reign.is_barred() => "",
            Sight::Follows if !self.log.is_caught_up() => "replaying",
            sight => sight.word(),
        };
        LogInfo {
            log_path: self.log.words(Wording::Place),
            log_bytes: self.log.bytes(),
            log_live_bytes: self.machine.directory().live_bytes(),
            log_seq: self.log.seq(),
            fsync: fsync.to_owned(),
            replay_lag_seq: if is_standby { self.peers.seqs_behind(self.log.seq()) } else { 0 },
            standby_log: sight.to_owned(),
            compaction: match known.running {
                Some((bytes, of)) => format!("{}%", bytes * 100 / of.max(1)),
                None => "no".to_owned(),
            },
            compactions: known.done,
            compactions_failed: known.failed,
            compaction_hindrance: known.hindrance.clone().unwrap_or_default(),
            compaction_last_ms: known.took_ms,
            compaction_last_pause_us: known.held_us,
            compaction_paces_writes: known.paces,
        }
    }

    fn requests_info(&self) -> RequestsInfo {
        let counters = self.machine.counters();
        let (gate, jumps) = (&self.switchboard.gate, self.silence.jumps());
        RequestsInfo {
            reads_total: counters.reads,
            writes_total: counters.writes,
            unknown_total: counters.unknown,
            expired_keys: counters.expired,
            writes_without_copy: counters.without_copy,
            read_retries: counters.read_retries,
            reads_hedged: counters.hedges,
            reads_hedged_won: counters.hedges_won,
            reads_from_log: counters.log_reads,
            reads_waited_for_log_window: counters.log_reads_waited,
            log_read_bytes: self.machine.log_read_bytes(),
            reads_of_all_slaves: counters.asked_all,
            requests_in_flight: gate.requests() as u64,
            request_bytes_in_flight: gate.request_bytes() as u64,
            requests_waiting_for_master: self.front.waiting() as u64,
            own_pauses: jumps.paused,
            own_stalls: jumps.busy,
            own_waits_for_processor: jumps.starved,
            computed_between_ticks_most_ms: self.silence.computed_between_ticks_ms(),
        }
    }

    fn errors_info(&self) -> ErrorsInfo {
        let words = ErrorWord::ALL.into_iter().filter(|word| !word.is_reserved());
        ErrorsInfo { errors: words.map(|word| (word, self.switchboard.errors.of(word))).collect() }
    }

    fn clients_info(&self) -> ClientsInfo {
        let gate = &self.switchboard.gate;
        let (counters, answers) = (&gate.counters, &self.switchboard.answers);
        let requests = [&gate.unfinished_requests, &gate.unfinished_of_strangers];
        let frames = [&gate.unfinished_frames, &gate.unfinished_handshakes];
        let bytes = |pools: [&Pool; 2]| pools.iter().map(|pool| pool.bytes() as u64).sum();
        let cut = |pools: [&Pool; 2]| pools.iter().map(|pool| pool.cut()).sum();
        let accounts = &self.switchboard.accounts;
        ClientsInfo {
            connected_clients: self.clients.len() as u64,
            blocked_clients: 0,
            maxclients: self.config.max_connections as u64,
            connections: gate.connections() as u64,
            connections_total: counters.connections_total.get(),
            connections_refused: counters.connections_refused.get(),
            connections_denied: counters.denied.get(),
            strangers: gate.strangers() as u64,
            strangers_cut: counters.strangers_cut.get(),
            requests_busy: counters.busy.get(),
            reads_paused: counters.reads_paused.get(),
            requests_parked: counters.parked.get(),
            answer_bytes: answers.len() as u64,
            clients_waiting_for_answer_room: answers.waiting() as u64,
            unfinished_request_bytes: bytes(requests),
            uploads_cut: cut(requests),
            unfinished_link_bytes: bytes(frames),
            links_cut: cut(frames),
            slow_readers_cut: counters.slow_readers_cut.get(),
            logins_failed: accounts.count(IncidentKind::Auth),
            commands_denied: accounts.count(IncidentKind::Command),
            keys_denied: accounts.count(IncidentKind::Key),
            proofs_refused: counters.proofs_refused.get(),
            handshakes_timed_out: counters.handshakes_timed_out.get(),
            protocol_errors: counters.protocol_errors.get(),
            idle_closed: counters.idle_closed.get(),
            accept_errors: counters.accept_errors.get(),
        }
    }
}

impl Handler<AskNode> for MasterActor {
    type Result = NodeTold;

    fn handle(&mut self, _: AskNode, _: &mut Self::Context) -> NodeTold {
        let _turn = self.switchboard.turns.begin("look");
        NodeTold {
            node: NodeFacts::Master {
                info: Box::new(self.info()),
                removed_by: self.slaves.removed_by().clone(),
            },
            wall_clock_ms: self.env.wall_clock().0,
        }
    }
}
