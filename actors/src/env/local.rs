//! The real world with a network inside one process: the nodes of a cluster in one program reach each other by name, and
//! are not reachable from outside.
//!
//! Owns the listeners by name. Everything but the network is the real environment.

use super::net::{Listener, LocalListener, OsStream, Stream, UnixConnection};
use super::{Disk, Env, Environment, Locks};
use dsm_protocol::ids::{Millis, UnixMillis};
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The listeners by name, of all nodes of one program's cluster. They share a thread.
#[derive(Clone, Default)]
pub(crate) struct LocalNet(Rc<RefCell<BTreeMap<String, mpsc::Sender<UnixConnection>>>>);

impl LocalNet {
    /// `env` for one more node of this network.
    pub(crate) fn env(&self, env: Env) -> Env {
        Rc::new(LocalEnv { env, net: self.clone() })
    }

    fn listen(&self, address: &str) -> io::Result<Listener> {
        let mut listening = self.0.borrow_mut();
        if listening.get(address).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, listener) = LocalListener::new(address);
        listening.insert(address.to_owned(), sender);
        Ok(Listener::Local(listener))
    }

    fn connect(&self, address: &str) -> io::Result<Stream> {
        let listening = self.0.borrow();
        let listener = listening.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, far) = UnixConnection::pair(address)?;
        listener.try_send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Stream::Os(OsStream::Unix(near)))
    }
}

struct LocalEnv {
    env: Env,
    net: LocalNet,
}

impl Environment for LocalEnv {
    fn now(&self) -> Millis {
        self.env.now()
    }

    fn clock_us(&self) -> u64 {
        self.env.clock_us()
    }

    fn computed_us(&self) -> Option<u64> {
        self.env.computed_us()
    }

    fn cpu_time(&self) -> Option<fn() -> Duration> {
        self.env.cpu_time()
    }

    fn waited_us(&self) -> Option<u64> {
        self.env.waited_us()
    }

    fn pause(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        self.env.pause(time)
    }

    fn random(&self) -> u64 {
        self.env.random()
    }

    fn listen<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move { self.net.listen(address) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> LocalBoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move { self.net.connect(address) })
    }

    fn disk(&self) -> Rc<dyn Disk> {
        self.env.disk()
    }

    fn locks(&self) -> Rc<dyn Locks> {
        self.env.locks()
    }

    fn wall_clock(&self) -> UnixMillis {
        self.env.wall_clock()
    }

    fn uptime(&self) -> Millis {
        self.env.uptime()
    }

    fn boot_id(&self) -> String {
        self.env.boot_id()
    }

    fn pid(&self) -> u32 {
        self.env.pid()
    }

    fn resident_bytes(&self) -> u64 {
        self.env.resident_bytes()
    }

    fn private_bytes(&self) -> u64 {
        self.env.private_bytes()
    }

    fn processor_time_us(&self) -> Option<(u64, u64)> {
        self.env.processor_time_us()
    }
}
