//! The half of dsm that touches the world: actors, environment, client library.

mod acceptor;
mod batch;
pub mod client;
pub mod client_actor;
pub mod config;
pub mod embed;
pub mod env;
pub mod failover_watcher;
pub mod launcher;
pub mod log_tailer;
pub mod log_writer;
pub mod master;
pub mod node;
mod peer_link;
mod recovery;
mod session;
pub mod slave;
pub mod slave_proxy;
pub mod supervision;
#[cfg(feature = "testing")]
pub mod testing;
