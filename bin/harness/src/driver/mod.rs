//! Connections to the stores that can be measured, one variant for each way to talk to one.
//!
//! A driver sends a batch and hands each answer, with the instant at which it was read, to a [`ResponseSink`]. Owns bytes
//! and buffers. It never looks into a value, counts nothing, has no timeouts and does not reconnect: [`super::load`] does
//! all of that, the same way for each store.

#[cfg(feature = "peers")]
pub(crate) mod etcd;
pub(crate) mod resp;
mod stream;
#[cfg(feature = "peers")]
pub(crate) mod zookeeper;

use super::access::StoreAccess;
use super::clock::Clock;
use super::value::{Texts, WriteNumber};
use std::fmt;
use std::io;
use std::sync::Arc;

/// How to talk to a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreProtocol {
    /// The Redis protocol: dsm and many other stores
    #[default]
    Resp,
    /// etcd, version 3
    #[cfg(feature = "peers")]
    Etcd,
    /// ZooKeeper, with a sync before each read
    #[cfg(feature = "peers")]
    Zookeeper,
    /// ZooKeeper, without a sync: a read may return an old value
    #[cfg(feature = "peers")]
    ZookeeperLocal,
}

impl fmt::Display for StoreProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // None of them is hidden, so each has a name.
        let value = clap::ValueEnum::to_possible_value(self);
        f.write_str(value.as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

impl StoreProtocol {
    /// Whether the requests of a batch are executed in their order. etcd's are independent streams.
    pub(crate) fn keeps_order(self) -> bool {
        match self {
            StoreProtocol::Resp => true,
            #[cfg(feature = "peers")]
            StoreProtocol::Zookeeper | StoreProtocol::ZookeeperLocal => true,
            #[cfg(feature = "peers")]
            StoreProtocol::Etcd => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadRequest {
    /// Number of the key in [`Texts::keys`].
    pub key: u32,
    /// What to do with it.
    pub action: Access,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Writes [`Texts::push_value`] of this version.
    Write(WriteNumber),
}

/// What became of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Execution {
    /// It was not executed and never will be.
    NotExecuted,
    /// It may or may not be executed.
    Unknown,
}

/// What came back for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// The value that was read.
    Value(&'a [u8]),
    /// The key that was read has no value.
    Missing,
    /// A write was executed.
    Done,
    /// Something that does not answer such a request. The outcome is unknown.
    Odd,
    /// The store answered with an error, or not what was asked.
    Error {
        /// Its kind in one lower case word.
        class: &'a str,
        /// What is known of the request.
        fate: Execution,
        /// Whether another target should be asked from now on.
        leave: bool,
    },
}

/// Takes the answers to a batch.
pub(crate) trait ResponseSink {
    /// The answer to request `index` of the batch, read at `at_ns` of the run's [`Clock`]. Each index comes at most
    /// once; what never comes has an unknown outcome.
    fn answer(&mut self, index: usize, answer: Answer<'_>, at_ns: u64);
}

/// What all connections of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// `host:port`, in the order in which they are tried.
    pub targets: Vec<String>,
    /// What a RESP connection begins with.
    pub access: StoreAccess,
    pub texts: Arc<Texts>,
    /// What a RESP connection sends.
    pub script: Arc<resp::Script>,
    pub clock: Clock,
    pub protocol: StoreProtocol,
}

impl Dialer {
    /// Connects to the target with this number, modulo the number of targets.
    ///
    /// # Errors
    /// What the connection ended with. It has no time limit of its own.
    pub(crate) async fn dial(&self, target: usize) -> io::Result<StoreConnection> {
        let address = &self.targets[target % self.targets.len()];
        Ok(match self.protocol {
            StoreProtocol::Resp => StoreConnection::Resp(
                resp::RespConnection::open(address, &self.access, Arc::clone(&self.script), self.clock)
                    .await?,
            ),
            #[cfg(feature = "peers")]
            StoreProtocol::Etcd => StoreConnection::Etcd(
                etcd::EtcdConnection::open(address, Arc::clone(&self.texts), self.clock).await?,
            ),
            #[cfg(feature = "peers")]
            StoreProtocol::Zookeeper | StoreProtocol::ZookeeperLocal => {
                let syncs = self.protocol == StoreProtocol::Zookeeper;
                let texts = Arc::clone(&self.texts);
                StoreConnection::Zookeeper(
                    zookeeper::ZookeeperConnection::open(address, texts, self.clock, syncs).await?,
                )
            }
        })
    }
}

/// A connection of one of the kinds.
#[derive(Debug)]
pub(crate) enum StoreConnection {
    /// To `dsm`, or anything else that speaks Redis' protocol.
    Resp(resp::RespConnection),
    #[cfg(feature = "peers")]
    Etcd(etcd::EtcdConnection),
    #[cfg(feature = "peers")]
    Zookeeper(zookeeper::ZookeeperConnection),
}

impl StoreConnection {
    /// Sends `batch` and gives each answer to `sink`, until all are there. Not to be used again once it failed or
    /// was dropped half way.
    ///
    /// # Errors
    /// What the connection ended with; `InvalidData` for an answer that makes no sense.
    pub(crate) async fn exchange(
        &mut self,
        batch: &[LoadRequest],
        sink: &mut impl ResponseSink,
    ) -> io::Result<()> {
        match self {
            StoreConnection::Resp(connection) => connection.exchange(batch, sink).await,
            #[cfg(feature = "peers")]
            StoreConnection::Etcd(connection) => connection.exchange(batch, sink).await,
            #[cfg(feature = "peers")]
            StoreConnection::Zookeeper(connection) => connection.exchange(batch, sink).await,
        }
    }
}
