//! The text of INFO and STATUS: sections of `field:value` lines, as Redis' INFO has them.
//!
//! Owns every field that a master shows: its name, type, unit and place. A master prints [`MasterInfo`], and its clients
//! parse it. [`Info`] reads the same lines, or those of a Redis, without knowing the fields. `docs/FORMATS.md`, *INFO*,
//! explains each field to users; a test below holds the two together.

mod lines;
mod value;
mod verdict;

pub use lines::{Info, Sections};
pub use value::{
    human_bytes, ActiveSlave, ConnectedSlave, CpuSeconds, DatabaseInfo, InfoError, MasterLinkInfo,
    MasterRole, MemberInfo, OrEmpty, OrUnlimited, PeerInfo, QuarantinedSlave, RebalanceState, RedisRole,
    RepairState, SlaveInfo, StartedAs,
};
pub use verdict::{NodeState, NodeVerdict};

use crate::command::ErrorWord;
use crate::ids::{ClusterId, Epoch, ReignId, Seq, SlaveId};
use serde_json::{Map, Value};
use value::InfoField;

/// What is fixed about a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldFacts {
    /// The heading of its section: `Server`.
    pub section: &'static str,
    /// Its name. A numbered field (`peer0`, `slave0`, `db0`) has it without the number, `errors_busy` and its like are `errors`.
    pub name: &'static str,
    /// The unit of its number; empty if it is a plain count or no number.
    pub unit: &'static str,
}

/// Makes the struct of a section.
macro_rules! section {
    (
        $(#[$section_doc:meta])*
        $type:ident = $heading:literal {
            $( $(#[$doc:meta])* $field:ident: $value:ty, )*
        }
    ) => {
        $(#[$section_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $type {
            $( $(#[$doc])* pub $field: $value, )*
        }

        impl $type {
            /// Adds its lines to a text.
            fn print(&self, text: &mut String) {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(concat!("# ", $heading, "\n"));
                $( self.$field.print(stringify!($field), text); )*
            }

            fn parse(lines: &Info) -> Result<Self, InfoError> {
                Ok($type { $( $field: InfoField::parse(stringify!($field), lines)?, )* })
            }

            /// Its fields as an object of JSON.
            fn json(&self) -> Value {
                let mut object = Map::new();
                $( self.$field.add_json(stringify!($field), &mut object); )*
                Value::Object(object)
            }
        }
    };
}

/// Makes a struct of each section, [`MasterInfo`] of all of them, and the lists of both. Fields are printed in the order
/// of their declaration.
macro_rules! sections {
    ($(
        $(#[$section_doc:meta])*
        $section:ident: $type:ident = $heading:literal {
            $( $(#[$doc:meta])* $field:ident: $value:ty $(= $unit:literal)?, )*
        }
    )*) => {
        $(
            section! {
                $(#[$section_doc])*
                $type = $heading {
                    $( $(#[$doc])* $field: $value, )*
                }
            }
        )*

        /// All that a master shows of itself.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct MasterInfo {
            $( $(#[$section_doc])* pub $section: $type, )*
        }

        impl MasterInfo {
            /// Every field, in the order in which they are printed.
            pub const FIELDS: &[FieldFacts] = &[
                $( $( FieldFacts {
                    section: $heading,
                    name: stringify!($field),
                    unit: concat!($($unit)?),
                }, )* )*
            ];

            /// The text, its lines ended by LF, with an empty line between sections.
            pub fn print(&self) -> String {
                let mut text = String::with_capacity(4096);
                $( self.$section.print(&mut text); )*
                text
            }

            /// The same as an object of JSON: an object for each section, by the name by which it can be asked for.
            pub fn json(&self) -> Value {
                let mut object = Map::new();
                $( object.insert(stringify!($section).to_owned(), self.$section.json()); )*
                Value::Object(object)
            }

            /// Reads the text of a master of this version, with either kind of line ends. Lines that are not fields are
            /// skipped.
            ///
            /// # Errors
            /// The field that is missing or has a value of another kind.
            pub fn parse(text: &str) -> Result<MasterInfo, InfoError> {
                let lines = Info::parse(text);
                Ok(MasterInfo { $( $section: $type::parse(&lines)?, )* })
            }
        }

        /// The sections by the names by which they can be asked for. A name of Redis that is none of them
        /// (`modules`, `commandstats`) shows nothing, as any other.
        pub const SECTIONS: [&str; [$($heading),*].len()] = [$( stringify!($section) ),*];
    };
}

sections! {
    /// The process.
    server: ServerInfo = "Server" {
        /// Version of the program.
        dsm_version: String,
        /// The version of Redis whose clients may expect what they know: [`REDIS_VERSION`](crate::resp::REDIS_VERSION).
        redis_version: String,
        /// `standalone`, in Redis' words: no cluster of Redis and no Sentinel.
        redis_mode: String,
        /// The port of `address`.
        tcp_port: u64,
        /// The process, as the system numbers it.
        process_id: u32,
        /// Which of the two programs it is.
        started_as: StartedAs,
        /// Where others reach it.
        address: String,
        /// Since its start.
        uptime_in_seconds: u64 = "s",
        /// The same in whole days.
        uptime_in_days: u64 = "days",
        /// Log lines that standard error did not take in time, and that are dropped.
        log_lines_lost: u64,
        /// Whether this master speaks TLS.
        tls: bool = "0, 1",
        /// Until when its certificate is valid, in seconds since 1970; empty without TLS.
        tls_certificate_expires: OrEmpty<u64> = "s",
        /// Whether slaves and masters must prove a secret.
        secret: bool = "0, 1",
        /// Whether native clients must.
        client_secret: bool = "0, 1",
        /// The log's cluster; missing until the log is known.
        cluster_id: Option<ClusterId>,
    }

    /// What the process has in memory.
    memory: MemoryInfo = "Memory" {
        /// Resident memory that no file stands behind: what it has allocated and written to.
        used_memory: u64 = "bytes",
        /// The same in short.
        used_memory_human: String,
        /// Resident memory of this process; 0 if the system does not tell.
        used_memory_rss: u64 = "bytes",
        /// The same in short.
        used_memory_rss_human: String,
        /// 0: without a limit.
        maxmemory: u64 = "bytes",
        /// `noeviction`: no key is ever given up for room.
        maxmemory_policy: String,
    }

    /// The log, in the words of Redis' append-only file.
    persistence: PersistenceInfo = "Persistence" {
        /// Whether it has the lock and does not serve yet.
        loading: bool = "0, 1",
        /// 0: there are no dumps.
        rdb_bgsave_in_progress: bool = "0, 1",
        /// 1: there is always a log.
        aof_enabled: bool = "0, 1",
        /// Whether the log is compacted now.
        aof_rewrite_in_progress: bool = "0, 1",
        /// `ok`; `err` if the last try to compact the log came to nothing.
        aof_last_bgrewrite_status: String,
        /// As `log_bytes`.
        aof_current_size: u64 = "bytes",
    }

    /// What was done since the start, by the names of Redis.
    stats: StatsInfo = "Stats" {
        /// As `connections_total`.
        total_connections_received: u64,
        /// Requests of its own clients, whichever way they ended.
        total_commands_processed: u64,
        /// How many of them a second in the last two seconds.
        instantaneous_ops_per_sec: u64,
        /// As `connections_refused`.
        rejected_connections: u64,
        /// 0: no key is ever given up for room.
        evicted_keys: u64,
        /// The sum of `errors_…`.
        total_error_replies: u64,
    }

    /// Who reigns, and how the masters stand to one another.
    replication: ReplicationInfo = "Replication" {
        /// What it is to clients of Redis.
        role: RedisRole,
        /// Whether it serves.
        dsm_role: MasterRole,
        /// Of a slave: the host of the master that serves; where nobody is known to, of the last one that did, or of another
        /// one.
        master_host: Option<String>,
        /// The port of that one.
        master_port: Option<u64>,
        /// `up` if its own link to a master that serves stands, or else `down`.
        master_link_status: Option<String>,
        /// Of a slave: the last record that it has replayed.
        slave_repl_offset: Option<u64>,
        /// Of a slave: 0, for it forwards writes.
        slave_read_only: Option<bool> = "0, 1",
        /// Of a master: other masters that follow it over a link of its own; 0 at a slave.
        connected_slaves: u64,
        /// The last record that is written or replayed.
        master_repl_offset: u64,
        /// The highest epoch that it knows.
        epoch: Epoch,
        /// The address of the master that serves; empty if unknown.
        active_master: String,
        /// Whether its own link to another master stands.
        peer_connected: bool = "0, 1",
        /// Each other master that `--peer` names, in the order of the settings.
        peer: Vec<PeerInfo>,
        /// Each master that keeps the log with others on machines of their own, by its number.
        member: Vec<MemberInfo>,
        /// What changes of them: `no`, `add N`, `replace N by M`; `settling` until a majority knows the last change for good, and
        /// `unknown` at a master that does not lead. Empty where one file is the log.
        members_change: String,
        /// Of a master that serves: since when its standby lacks something or is silent; 0 when it keeps up, empty when
        /// none is connected.
        standby_lag_ms: OrEmpty<u64> = "ms",
        /// What this master's cluster is short of, in words, separated by `; `; empty when nothing is.
        degraded: String,
        /// What keeps this master from serving although it has the lock, in words; empty when nothing does.
        waiting_for: String,
        /// How often it began to serve.
        takeovers: u64,
        /// How often it gave the reign away.
        handovers: u64,
        /// The identity of the last reign in the log; zeros before the first.
        reign_id: ReignId,
        /// EPOCH records in the log.
        reigns: u64,
    }

    /// The slaves, and how writes and reads went there.
    slaves: SlavesInfo = "Slaves" {
        /// Slaves that count for writes; at a standby: connected ones.
        active_slaves: u64,
        /// The active ones by name, then those in quarantine by name; at a standby the connected ones.
        slave: Vec<SlaveInfo> = "bytes, ms",
        /// Slaves that are connected and have failed too lately to count.
        slaves_quarantined: u64,
        /// Active slaves that lately had no room for a value.
        slaves_full: u64,
        /// The active slave that takes longest to acknowledge; empty without any.
        slowest_slave: String,
        /// How long that one takes; 0 without any.
        slowest_slave_ack_ms: u64 = "ms",
        /// Active slaves whose link has ended.
        slaves_removed: u64,
        /// Slaves whose hello was refused.
        slaves_refused: u64,
        /// Slaves that are connected and have seen records which this log lacks.
        slaves_disputing: u64,
        /// The names of slaves that are drained, separated by commas.
        slaves_leaving: String,
        /// Keys that have not all their copies elsewhere yet, while slaves are drained.
        keys_to_drain: u64,
        /// Slaves that were drained and let go in this reign.
        slaves_let_go: u64,
        /// Keys of writes that another slave got in the place of one that left or was full.
        substitutions: u64,
        /// Reads that waited for `--slave-window`.
        reads_waited_for_slave_window: u64,
    }

    /// The time that all threads of the process have computed.
    cpu: CpuInfo = "CPU" {
        /// In the kernel; missing if the system does not tell.
        used_cpu_sys: Option<CpuSeconds> = "s",
        /// In the program.
        used_cpu_user: Option<CpuSeconds> = "s",
    }

    /// The keys and their copies.
    keyspace: KeyspaceInfo = "Keyspace" {
        /// Each database that has keys: there is one.
        db: Vec<DatabaseInfo>,
        /// Keys that exist.
        keys: u64,
        /// The sum over the active slaves; 0 at a standby.
        copies: u64,
        /// Keys that only the log has, at the last count.
        keys_without_copy: u64,
        /// Keys with fewer copies than `copies_wanted`, as far as counted.
        keys_under_replicated: u64,
        /// When the last whole count began; 0 before the first.
        copies_counted_ms_ago: u64 = "ms",
        /// `--copies` of this master: `half` or a number.
        copies_setting: String,
        /// How many copies each key is to have.
        copies_wanted: u64,
        /// What repair is doing.
        repair_state: RepairState,
        /// Keys that repair has given copies.
        repaired_keys: u64,
        /// These copies, with their keys.
        repaired_bytes: u64 = "bytes",
        /// What rebalancing is doing.
        rebalance_state: RebalanceState,
        /// Keys with copies at other slaves than they should be, or with too many, as far as counted.
        keys_misplaced: u64,
        /// Keys of which rebalancing has moved a copy.
        moved_keys: u64,
        /// These copies, with their keys.
        moved_bytes: u64 = "bytes",
        /// Copies that were too many, and are dropped.
        surplus_copies_dropped: u64,
    }

    /// The log, as this master sees it.
    log: LogInfo = "Log" {
        /// Where it is.
        log_path: String,
        /// How far it is written or replayed.
        log_bytes: u64 = "bytes",
        /// How long a log of nothing but the latest versions would be, about.
        log_live_bytes: u64 = "bytes",
        /// The last record that is written or replayed.
        log_seq: Seq,
        /// When it is synced: `always`, `everysec` or `never`.
        fsync: String,
        /// What a standby has yet to replay of what the active master told of; 0 at other masters.
        replay_lag_seq: u64 = "records",
        /// What a standby sees at the log's path: `replaying`, `follows`, `gone`, `short` or `other`; empty at other masters.
        standby_log: String,
        /// Whether the log is compacted: `no`, or how far it is, in percent.
        compaction: String,
        /// How often it was since this process started.
        compactions: u64,
        /// How often that came to nothing.
        compactions_failed: u64,
        /// Why the last try came to nothing, in words; empty after one that did not.
        compaction_hindrance: String,
        /// How long the last one took.
        compaction_last_ms: u64 = "ms",
        /// How long writes waited for it.
        compaction_last_pause_us: u64 = "microseconds",
        /// Whether writes wait for one now, as the log grows faster than it is copied.
        compaction_paces_writes: bool = "0, 1",
    }

    /// What was asked and how it ended, and whether this process got to run.
    requests: RequestsInfo = "Requests" {
        /// Reads that this master answered.
        reads_total: u64,
        /// Writes that were done.
        writes_total: u64,
        /// Writes that are in the log and ended UNKNOWN.
        unknown_total: u64,
        /// Keys that this master has deleted because their time had come.
        expired_keys: u64,
        /// Keys of writes that are done and stand in the log alone.
        writes_without_copy: u64,
        /// Reads that went on to a further slave.
        read_retries: u64,
        /// Reads that a second slave was asked about, because the first one took unusually long.
        reads_hedged: u64,
        /// Those of them that the second one answered first.
        reads_hedged_won: u64,
        /// Reads that took the value from the log.
        reads_from_log: u64,
        /// Those of them that waited for `--log-read-window`.
        reads_waited_for_log_window: u64,
        /// Values on their way from the log.
        log_read_bytes: u64 = "bytes",
        /// Reads without a known holder, asked of all slaves that had not reported everything.
        reads_of_all_slaves: u64,
        /// Requests that are not answered yet; the one that asks for INFO counts.
        requests_in_flight: u64,
        /// Their keys and values.
        request_bytes_in_flight: u64 = "bytes",
        /// Those of them that are held or forwarded.
        requests_waiting_for_master: u64,
        /// How often this process noticed that it had been paused.
        own_pauses: u64,
        /// How often it noticed that its own work had taken as long as such a pause.
        own_stalls: u64,
        /// How often it noticed that it had waited for a processor for as long.
        own_waits_for_processor: u64,
        /// The most that its thread computed from one tick of its clock to the next.
        computed_between_ticks_most_ms: u64 = "ms",
    }

    /// Turns: what runs without a break on the node's one thread.
    turns: TurnsInfo = "Turns" {
        /// Turns that took less than a millisecond.
        turns_below_1ms: u64,
        /// From 1 ms to less than 10 ms.
        turns_1ms_to_10ms: u64,
        /// From 10 ms to less than 100 ms.
        turns_10ms_to_100ms: u64,
        /// From 100 ms to less than a second.
        turns_100ms_to_1s: u64,
        /// A second or longer.
        turns_above_1s: u64,
        /// The longest turn since the start.
        turn_longest_us: u64 = "microseconds",
        /// What it did; `none` before the first.
        turn_longest_in: String,
        /// Turns in which the thread itself computed for 10 ms or longer.
        turns_computing_above_10ms: u64,
        /// The most that one turn computed, of those that took a millisecond or longer.
        turn_longest_computing_us: u64 = "microseconds",
        /// What that turn did; `none` before the first.
        turn_longest_computing_in: String,
        /// The same of each kind of turn, sorted by kind; a space in its name is printed as `-`.
        turn_longest_computing_by_kind: Vec<(String, u64)> = "microseconds",
    }

    /// Requests that were answered with an error.
    errors: ErrorsInfo = "Errors" {
        /// How many by each word, in the order of [`ErrorWord::ALL`] without the reserved ones.
        errors: Vec<(ErrorWord, u64)>,
    }

    /// Connections, and what they hold.
    clients: ClientsInfo = "Clients" {
        /// Sessions: clients, and those that another master forwards.
        connected_clients: u64,
        /// 0: no command waits for other clients.
        blocked_clients: u64,
        /// `--max-connections`.
        maxclients: u64,
        /// Open connections of clients, slaves and other masters.
        connections: u64,
        /// Connections that were accepted, or refused with an error.
        connections_total: u64,
        /// Connections over `--max-connections`.
        connections_refused: u64,
        /// Connections from other machines that protected mode has refused.
        connections_denied: u64,
        /// Open connections that have not said yet who they are, where they must.
        strangers: u64,
        /// Such connections that were closed because others needed their places.
        strangers_cut: u64,
        /// Requests that were answered BUSY because too much was in flight.
        requests_busy: u64,
        /// How often reading from a connection paused because it had too much in flight.
        reads_paused: u64,
        /// Requests that waited until earlier answers had left.
        requests_parked: u64,
        /// Values on their way from slaves, and answers that wait to be taken.
        answer_bytes: u64 = "bytes",
        /// Clients whose next request waits for answers of others to leave.
        clients_waiting_for_answer_room: u64,
        /// Clients' long requests that have not arrived whole.
        unfinished_request_bytes: u64 = "bytes",
        /// Connections cut because these were too many.
        uploads_cut: u64,
        /// The same of handshakes and of slaves' and masters' long frames.
        unfinished_link_bytes: u64 = "bytes",
        /// Links cut because these were too many.
        links_cut: u64,
        /// Connections cut because they took no bytes for too long.
        slow_readers_cut: u64,
        /// Passwords that were wrong, or of users that there are not.
        logins_failed: u64,
        /// Commands that their users may not use.
        commands_denied: u64,
        /// Commands on keys that their users may not use so.
        keys_denied: u64,
        /// Connections refused because they did not prove a secret.
        proofs_refused: u64,
        /// Connections closed because they did not say in time who they are.
        handshakes_timed_out: u64,
        /// Connections closed because of bytes that make no sense.
        protocol_errors: u64,
        /// Clients closed after `--idle-timeout`.
        idle_closed: u64,
        /// Errors of `accept`.
        accept_errors: u64,
    }
}

section! {
    /// What a slave shows of itself, beside its memory and its turns.
    HolderInfo = "Slave" {
        /// Version of the program.
        dsm_version: String,
        /// The process, as the system numbers it.
        process_id: u32,
        /// The name by which masters know it.
        id: SlaveId,
        /// Since its start, in seconds.
        uptime_in_seconds: u64,
        /// Until when its certificate is valid, in seconds since 1970; empty without TLS.
        tls_certificate_expires: OrEmpty<u64>,
        /// Log lines that standard error did not take in time, and that are dropped.
        log_lines_lost: u64,
        /// The cluster to which its values belong; missing until a master has named one.
        cluster_id: Option<ClusterId>,
        /// The epoch of the reign in which it has a place, or had last; 0 before the first.
        epoch: Epoch,
        /// Whether the master that it obeys has given it a place, and it is connected to that one.
        admitted: bool,
        /// Each of `--masters`, in the order of the settings.
        master: Vec<MasterLinkInfo>,
        /// Keys that it holds.
        keys: u64,
        /// What they take, keys and values and their entries, in bytes.
        held_bytes: u64,
        /// For how many more bytes it has room.
        room_bytes: OrUnlimited,
        /// Values that it has taken from masters since its start.
        writes_taken: u64,
        /// Values that it has given to masters since its start.
        reads_answered: u64,
        /// Values for which it had no room.
        writes_refused: u64,
    }
}

/// All that a slave shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlaveNodeInfo {
    /// What it is and holds.
    pub slave: HolderInfo,
    /// What its process has in memory.
    pub memory: MemoryInfo,
    /// The time that its process has computed.
    pub cpu: CpuInfo,
    /// Its turns.
    pub turns: TurnsInfo,
}

impl SlaveNodeInfo {
    /// The text, in the form of [`MasterInfo::print`].
    pub fn print(&self) -> String {
        let mut text = String::with_capacity(1024);
        self.slave.print(&mut text);
        self.memory.print(&mut text);
        self.cpu.print(&mut text);
        self.turns.print(&mut text);
        text
    }

    /// The same as an object of JSON.
    pub fn json(&self) -> Value {
        let sections = [
            ("slave", self.slave.json()),
            ("memory", self.memory.json()),
            ("cpu", self.cpu.json()),
            ("turns", self.turns.json()),
        ];
        Value::Object(sections.into_iter().map(|(name, section)| (name.to_owned(), section)).collect())
    }

    /// Reads the text of a slave of this version.
    ///
    /// # Errors
    /// The field that is missing or has a value of another kind.
    pub fn parse(text: &str) -> Result<SlaveNodeInfo, InfoError> {
        let lines = Info::parse(text);
        Ok(SlaveNodeInfo {
            slave: HolderInfo::parse(&lines)?,
            memory: MemoryInfo::parse(&lines)?,
            cpu: CpuInfo::parse(&lines)?,
            turns: TurnsInfo::parse(&lines)?,
        })
    }
}

impl MasterInfo {
    /// Whether this master serves.
    pub fn is_primary(&self) -> bool {
        self.replication.dsm_role == MasterRole::Primary
    }
}

#[cfg(test)]
mod tests;
