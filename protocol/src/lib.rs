//! The deterministic half of dsm: formats, wire messages, and the rules of replication and failover.
//!
//! Bytes and events in, bytes and effects out. Nothing here does IO, reads a clock, draws a random number of its own,
//! starts a thread or logs; time is an argument ([`ids::Millis`]) and randomness a seed. So every rule can be tested
//! alone, and the same events always give the same effects. The half that touches the world is the crate `dsm`; it
//! depends on this one and never the other way round. `docs/ARCHITECTURE.md` tells how the two work together,
//! `docs/FORMATS.md` has the byte tables, `docs/SEMANTICS.md` the promises.
//!
//! # Code map
//!
//! | module | owns |
//! |---|---|
//! | [`ids`] | the newtypes: epochs, seqs, versions, links, sessions, slave ids, points in time |
//! | [`command`] | the commands and replies of clients, and the words that begin an error answer |
//! | [`info`] | the fields of INFO and STATUS |
//! | [`serving_view`] | who serves, as one master sees it, in the words of Redis |
//! | [`message`] | all messages between nodes |
//! | [`frame`] | the bytes of a message; the only module that uses bincode |
//! | [`handshake`] | the first bytes of a new connection, until each side knows the other |
//! | [`secret`] | the secrets of nodes and of native clients, and how they are proved |
//! | [`pieces`] | queues of encoded bytes that wait for a socket |
//! | [`record`] | a line of the log, a whole log line by line, and how a torn tail differs from corruption |
//! | [`stored_key`] | a key at rest |
//! | [`lock_file`] | the text of the lock file |
//! | [`resp`] | the front door for Redis clients: requests, answers, what a connection answers by itself |
//! | [`machine`] | the rules as state machines: master, reign, slave, link, front, client, self-doubt |
//!
//! # Glossary
//!
//! The life of a write; each word has this one meaning everywhere:
//!
//! * **accepted**: the active master has admitted it and queued it for the log. It can still end *not executed*.
//! * **written**: its whole line is in the log: under `--fsync always` synced too, else handed to the kernel.
//! * **synced**: an `fdatasync` that began after its line was written has returned, so it survives a power cut. A
//!   line's SYNCED field gives the seq through which that was known when the line's group was formed.
//! * **committed**: no crash that the fsync policy covers can take it back, and reads may see it. With a log that is
//!   the moment when it is written.
//! * **replicated**: it has been sent to the slaves that were chosen for it.
//! * **applied**: a slave holds that version of the key, or a higher one. An ACK says so.
//! * **done**: as many slaves as it needs have applied it, and the client has its OK.
//!
//! Who and where:
//!
//! * **primary**, **backup**: which of the two masters a process was started as (`dsm-master`, `dsm-backup-master`).
//!   **active**, **standby**: what it is at the moment. STATUS calls the active one `dsm_role:primary`.
//! * **reign**: the time during which one master is active; its number is the **epoch**, higher with every takeover.
//! * **seq**: a record's place in the log, counted from 1. **version**: (epoch, seq); higher wins.
//! * **place**: offset and length of a record's line in the log's file.
//! * **group**: the lines that are written and synced together. **mark**: a line `SYNCED % %`, which is no record.
//! * **directory**: the active master's table from key to version, place and holders.
//! * **holder**: a slave that is known to hold the directory's version of a key. **copy**: what it holds.
//! * **incarnation**: one life of a slave's process. **link**: one life of a connection between two nodes; what an
//!   older link says is ignored. **slot**: a number below 64 that stands for an active slave's link in sets of holders.
//! * **session**: one client's connection at a master. **stream**: such a session as the other master knows it, when
//!   its requests are forwarded; its **generation** is raised when refused requests are sent again.
//! * **beat**: the progress counter that the holder of the lock publishes. **fence**: to make sure that a holder that
//!   makes no progress no longer runs.
//! * **takeover**: coming to reign because the lock is free. **handover**: giving the lock away on request.
//!   **failback**: the handover that a returned primary asks for.
//! * **torn**: what a crash left after the last durable line; it may be cut. **corrupt**: damage that no crash
//!   explains, or damage to what was known to be on disk; it is cut only when an operator asks for it.

#![deny(clippy::disallowed_methods)]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod acl;
mod checksum;
pub mod command;
pub mod frame;
mod glob;
pub mod handshake;
pub mod ids;
pub mod info;
mod integer;
pub mod lock_file;
pub mod machine;
pub mod message;
#[doc(hidden)]
pub mod mutant;
pub mod pieces;
pub mod record;
pub mod resp;
mod script;
pub mod secret;
pub mod serving_view;
pub mod stored_key;
pub mod witness_file;
