//! The half of dsm that touches the world: actors, their environment, the client library.
//!
//! The rules live in `dsm-protocol`, as machines without IO; the actors here turn what arrives into events, and carry
//! out what the machines want done. `docs/ARCHITECTURE.md` is the account of how a cluster works; the glossary stands
//! at the top of `dsm-protocol`.
//!
//! # In a program of yours
//!
//! | module | is | example |
//! |---|---|---|
//! | [`client`] | the client library: plain tokio, no actor; finds the active master by itself | `examples/tokio_client.rs` |
//! | [`client_actor`] | `ClientActor`: the same behind an actor's address, asked by [`embed`]'s messages | |
//! | [`embed`] | masters and slaves as actors in your own process, asked by [`Put`], [`Get`], [`Delete`] and [`Status`]; a whole cluster by [`embed::start_local`] | `examples/embed_in_actix_web.rs`, `examples/one_process_cluster.rs` |
//! | `testing` | (feature `testing`) stand-ins for collaborators, a world in memory, virtual time | `actors/tests/actors.rs` |
//!
//! A result is of one of three kinds: done, *not executed*, *unknown*; see [`client::ClientError`].
//!
//! # Code map
//!
//! | module | is |
//! |---|---|
//! | [`node`] | [`node::run_node`] runs one node, master or slave, on the current `LocalSet` until it is told to stop |
//! | [`mod@address`] | addresses as people type them |
//! | [`config`] | the settings of a node, with the command line's defaults and help texts |
//! | [`mod@env`] | the seam to the world (network, disk, locks, file notice, clock, randomness); [`env::real`] is the real one |
//! | [`launcher`] | starts, signals and reaps the processes of a local cluster |
//!
//! The actors, one file or folder each:
//!
//! | module | actor | one per |
//! |---|---|---|
//! | [`master`] | `MasterActor`: directory, membership, requests in flight, the node's role | master |
//! | [`slave_proxy`] | `SlaveProxy`: ACK deadlines and end of one link | connected slave |
//! | [`journal::shared_file::log_writer`] | `LogWriter`: appends records in groups | reign |
//! | [`journal::shared_file::log_tailer`] | `LogTailer`: follows the log | time as a standby |
//! | [`journal::shared_file::failover_watcher`] | `FailoverWatcher`: queues for the lock, looks at it, fences | master |
//! | [`journal`] | the port between a master and its log; `LogKeeper` behind it brings a master's part in a shared file from following to a reign and back | master |
//! | [`slave`] | `SlaveActor`: holds the values | slave |
//! | [`client_actor`] | `ClientActor`: a client library | embedding program |
//!
//! Around them: `door` (the listening socket, its connections' tasks, and the sessions of those who ask), `dial` (how a link to
//! a master is dialed, greeted and kept), `http` (health, status and metrics), `service` (what the manager of services is told), `timings` and `turns` (how long things take), `secrets` (where secrets come from), `batch` (how bytes travel between tasks and actors), [`journal::shared_file`] (what a new holder of
//! the lock does to the log), [`supervision`] (how a node ends) and [`node_error`] (why).
//!
//! **Invariant:** everything of one node runs on one thread. Threads belong to [`env::real`] alone, and to
//! [`launcher`]'s callers.
//!
//! [`Put`]: embed::Put
//! [`Get`]: embed::Get
//! [`Delete`]: embed::Delete
//! [`Status`]: embed::Status

#![deny(clippy::disallowed_methods)]

pub mod address;
mod batch;
mod certificates;
pub mod client;
pub mod client_actor;
mod client_error;
pub mod config;
mod dial;
mod door;
pub mod embed;
pub mod env;
mod flusher;
mod http;
pub mod journal;
pub mod launcher;
pub mod master;
pub mod node;
pub mod node_error;
mod process_info;
mod reading;
mod reload;
pub mod salvage;
mod secrets;
mod service;
mod shown;
pub mod slave;
pub mod slave_proxy;
pub mod supervision;
mod timings;
mod told;
mod turns;

#[cfg(test)]
#[path = "../../tests/common/certificates.rs"]
mod test_certificates;
#[cfg(feature = "testing")]
mod test_hooks;
#[cfg(feature = "testing")]
pub mod testing;
