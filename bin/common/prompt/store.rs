//! The client on a thread of its own, for callers that block.

use dsm::client::{Client, ClientConfig, Serving};
use dsm_protocol::command::KEY_MAX;
use std::future::Future;
use std::io;
use tokio::runtime::Handle;

/// Bytes of a line in addition to a key and a value.
const LINE_BYTES_MORE: usize = 64;

/// The client on a thread of its own, for callers that block.
pub struct Store {
    pub(super) handle: Handle,
    pub(super) client: Client,
    /// The longest line that names a key and a value, in bytes.
    pub(super) line_bytes_max: usize,
    // Dropping it ends the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Store {
    /// Starts the thread and the client.
    pub fn start(config: ClientConfig) -> io::Result<Store> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new().name("client".to_owned()).spawn(move || {
            // The drop of the sender is the message.
            let _ = runtime.block_on(stopped);
        })?;
        let line_bytes_max = config.value_max.saturating_add(KEY_MAX + LINE_BYTES_MORE);
        let client = handle.block_on(async { Client::connect(config) }).map_err(io::Error::other)?;
        Ok(Store { handle, client, line_bytes_max, _stop: stop })
    }

    /// Runs one call to its end.
    pub fn run<'a, T, F>(&'a self, call: impl FnOnce(&'a Client) -> F) -> T
    where
        F: Future<Output = T>,
    {
        self.handle.block_on(call(&self.client))
    }

    /// The master that serves, as far as is known.
    pub fn serving(&self) -> Option<Serving> {
        self.client.serving()
    }
}
