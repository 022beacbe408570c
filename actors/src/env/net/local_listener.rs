//! A listener on a name within this process: connections wait here until they are accepted.

use super::unix_connection::UnixConnection;
use std::cell::RefCell;
use std::future::{pending, poll_fn};

use tokio::sync::mpsc;

/// The most connections that wait to be accepted at one name; further connects are refused.
const BACKLOG: usize = 64;

/// A listener on a name. Once it is dropped, connects are refused.
#[derive(Debug)]
pub struct LocalListener {
    address: String,
    incoming: RefCell<mpsc::Receiver<UnixConnection>>,
}

impl LocalListener {
    /// Listens at `address`; connections come through the sender.
    pub(in crate::env) fn new(address: &str) -> (mpsc::Sender<UnixConnection>, Self) {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        (sender, LocalListener { address: address.to_owned(), incoming: RefCell::new(incoming) })
    }

    pub(super) async fn accept(&self) -> UnixConnection {
        // The network holds the sender. Once the network is gone, no connection will come.
        match poll_fn(|context| self.incoming.borrow_mut().poll_recv(context)).await {
            Some(stream) => stream,
            None => pending().await,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}
