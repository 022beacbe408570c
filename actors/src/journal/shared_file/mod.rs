//! The log as one file that the masters of one machine share: whoever holds its locks may append.
//!
//! [`SharedFile`] is the journal that a master holds. What is asked often goes straight to the one who does it: appends to
//! [`log_writer`], reads of values to the file itself. The rest goes to `keeper`, which brings this master's part in the
//! log from following to a reign and back, by the other actors here: [`log_tailer`] follows the log for a standby,
//! [`failover_watcher`] queues for the lock. `recovery` is what a new holder of the lock does to the file, `same_log` says whether a file is the log that was replayed, and `witness_notes` keeps beside it what
//! slaves have seen and it lacks; `words` is what people are told of all that.
//!
//! Any number of masters could follow the file and queue, but the kernel gives the lock to the one that has waited longest, and
//! no master can name the next: so two share it (`PEERS_MAX`).

mod compactor;
pub mod failover_watcher;
mod keeper;
pub mod log_tailer;
pub mod log_writer;
pub(crate) mod recovery;
pub(super) mod relocator;
pub(crate) mod same_log;
pub(crate) mod volumes;
mod witness_notes;
pub(super) mod words;

use super::{no_members, Journal, LogEvent, LogRequest, MakesJournal, Unread, ValueAnswer, Wording};
use crate::config::{Fence, Fsync, MasterConfig};
use crate::env::{Env, File, LockGuard, OpenMode};
use crate::node_error::NodeError;
use crate::supervision::Fate;
use crate::turns::TurnLengths;
use actix::prelude::*;
use dsm_protocol::ids::Version;
use dsm_protocol::machine::compaction::LogSizes;
use dsm_protocol::record::Place;
use keeper::{KeeperErrand, LogKeeper};
use log_writer::{Abandon, Append, Close, Handoff, LogWriter, Reopen, Sync};
use recovery::Recovered;
use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use volumes::Volumes;

/// So many other masters may share the file. The lock goes to whoever has waited for it longest: with three masters a reign
/// that one asks for would go to the other.
pub(super) const PEERS_MAX: usize = 1;

/// What a [`SharedFile`] is made from.
pub struct SharedFileSetup {
    /// The world that it runs in.
    pub env: Env,
    /// The path of the log.
    pub path: PathBuf,
    /// The file whose lock says who may append.
    pub lock_path: PathBuf,
    /// The file in which it is noted what slaves have seen and the log lacks.
    pub witness_path: PathBuf,
    /// The longest line, in bytes.
    pub line_bytes_max: usize,
    /// When a record counts as written.
    pub fsync: Fsync,
    /// The log is compacted when so many bytes of it, and half, are superseded; never, if this is 0.
    pub compact_min_bytes: u64,
    /// What is done about a holder of the lock that hangs.
    pub fence: Fence,
    /// The address at which others reach this master.
    pub address: String,
    /// How the node ends.
    pub fate: Fate,
    /// Who hears what happens.
    pub events: Recipient<LogEvent>,
}

/// A master's part in a log that is one file.
pub struct SharedFile {
    keeper: Addr<LogKeeper>,
    hot: Rc<Hot>,
    /// The path of the log.
    path: PathBuf,
    events: Recipient<LogEvent>,
}

impl SharedFile {
    /// Begins to follow the log.
    pub fn begin(setup: SharedFileSetup) -> Self {
        let turns = TurnLengths::new(Rc::clone(&setup.env));
        Self::counting(setup, turns)
    }

    /// The same, and counts its actors' turns among those of their node.
    pub(crate) fn counting(setup: SharedFileSetup, turns: Rc<TurnLengths>) -> Self {
        let hot = Rc::<Hot>::default();
        let for_keeper = Rc::clone(&hot);
        let (path, events) = (setup.path.clone(), setup.events.clone());
        let keeper = LogKeeper::create(move |ctx| LogKeeper::new(setup, turns, for_keeper, ctx));
        SharedFile { keeper, hot, path, events }
    }
}

/// Makes the log of a master that is reached at `address`, with lines of so many bytes.
pub(crate) fn of_master(
    env: &Env,
    config: &MasterConfig,
    (address, line_bytes_max): (&str, usize),
    fate: &Fate,
) -> MakesJournal {
    let (env, fate, address) = (Rc::clone(env), fate.clone(), address.to_owned());
    let (path, lock_path, witness_path) = (config.log.clone(), config.lock_path(), config.witness_path());
    let (fsync, fence, compact_min_bytes) = (config.fsync, config.fence, config.compact_min.as_u64());
    Box::new(move |events, turns| {
        let setup = SharedFileSetup {
            env,
            path,
            lock_path,
            witness_path,
            line_bytes_max,
            fsync,
            compact_min_bytes,
            fence,
            address,
            fate,
            events,
        };
        Box::new(SharedFile::counting(setup, turns))
    })
}

/// The identity of the lock file: only one that both can lock keeps two masters from serving at once.
pub(super) async fn identity(env: &Env, config: &MasterConfig) -> io::Result<String> {
    env.locks().identity(&config.lock_path()).await
}

/// Finds out early whether log and lock file can be used at all, so that a wrong path is one clear line at the start.
pub(crate) async fn check(env: &Env, config: &MasterConfig) -> Result<(), NodeError> {
    let lock_path = config.lock_path();
    let unusable = |error: io::Error| NodeError::file(&lock_path, error);
    env.locks().identity(&lock_path).await.map_err(unusable)?;
    env.locks().try_kinds(&lock_path).await.map_err(unusable)?;
    // Whether one may be begun is decided later, when others could say what they know.
    let opened = env.disk().open(&config.log, OpenMode::Existing).await;
    let error = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(_) => {
            // Not to know is no reason to say anything.
            if let Ok(Some(mode)) = env.disk().others_may_read(&config.log).await {
                let path = config.log.display();
                log::warn!(
                    "others than its owner may read the log path={path} mode={mode:03o}: chmod 600 {path}"
                );
            }
            return Ok(());
        }
        Err(error) => error,
    };
    Err(NodeError::file(&config.log, error))
}

impl Journal for SharedFile {
    fn ask(&mut self, request: LogRequest) {
        let errand = match request {
            // Admission has counted these requests, so the mailbox is bounded by the permits.
            // Nobody asks.
            LogRequest::Confirm { .. } => return,
            LogRequest::ChangeMembers { asker, .. } => {
                let result = Err(no_members());
                return self.events.do_send(LogEvent::MembersChanged { asker, result });
            }
            LogRequest::Append { changes } => return self.hot.write(Append { changes }),
            LogRequest::Read { place, version, answer } => return self.hot.read(place, version, answer),
            LogRequest::Sync => {
                self.keeper.do_send(KeeperErrand::StopCompacting);
                return self.hot.write(Sync);
            }
            // Whoever waits for the lock leads next.
            LogRequest::Close { to: _ } => {
                self.keeper.do_send(KeeperErrand::StopCompacting);
                return self.hot.write(Close);
            }
            LogRequest::Weigh { log_bytes, live_bytes } => {
                KeeperErrand::Weigh(LogSizes { log_bytes, live_bytes })
            }
            LogRequest::Reopen => return self.hot.write(Reopen),
            LogRequest::Abandon => return self.hot.write(Abandon),
            LogRequest::Watch => KeeperErrand::Watch,
            LogRequest::Queue => KeeperErrand::Queue,
            LogRequest::Oust { beat } => KeeperErrand::Oust { beat },
            LogRequest::LeaveQueue => KeeperErrand::LeaveQueue,
            LogRequest::GiveUp => {
                // At once: another master may wait for the lock, or whoever ends this node for its end.
                self.hot.let_go();
                KeeperErrand::GiveUp
            }
            LogRequest::WhoLeads => KeeperErrand::WhoLeads,
            LogRequest::Follow => KeeperErrand::Follow,
            LogRequest::FollowAnew => KeeperErrand::FollowAnew,
            LogRequest::Look => KeeperErrand::Look,
            LogRequest::Halt => KeeperErrand::Halt,
            LogRequest::Open { makes } => KeeperErrand::Open { makes },
            LogRequest::PutAside => KeeperErrand::PutAside,
            LogRequest::Find => KeeperErrand::Find,
            LogRequest::Note(text) => KeeperErrand::Note(text),
            LogRequest::Begin { epoch, given_up, time } => KeeperErrand::Begin { epoch, given_up, time },
            LogRequest::Declare { serves } => KeeperErrand::Declare { serves },
        };
        self.keeper.do_send(errand);
    }

    fn advance(&self) {
        self.hot.with_guard(|guard| guard.advance());
    }

    /// Who holds the lock leads, whether he knows it or not.
    fn confirms(&self) -> bool {
        false
    }

    fn words(&self, wording: Wording<'_>) -> String {
        words::of(&self.path, wording)
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        self.hot.let_go();
        self.keeper.do_send(KeeperErrand::End);
    }
}

/// What a master and its keeper both reach: the master in its own turn, the keeper when that changes.
#[derive(Default)]
pub(super) struct Hot {
    /// The lock, as long as it is held.
    guard: RefCell<Option<Box<dyn LockGuard>>>,
    /// The log before a reign, whole and locked.
    opened: RefCell<Option<OpenLog>>,
    /// The log of a reign.
    log: RefCell<Option<HeldLog>>,
    /// Where the values are.
    volumes: Rc<RefCell<Volumes>>,
}

/// The log as a reign needs it.
struct OpenLog {
    recovered: Recovered,
    /// For reads of values.
    values: Rc<dyn File>,
    /// For syncs beside writes.
    sync_file: Rc<dyn File>,
}

/// The log of a reign: who writes it, and how another file is handed to him.
struct HeldLog {
    writer: Addr<LogWriter>,
    handoff: Rc<RefCell<Handoff>>,
}

impl Hot {
    fn hold_guard(&self, guard: Box<dyn LockGuard>) {
        self.guard.replace(Some(guard));
    }

    fn hold_log(&self, writer: Addr<LogWriter>, handoff: Rc<RefCell<Handoff>>, values: Rc<dyn File>) {
        self.volumes.borrow_mut().read_by(values);
        self.log.replace(Some(HeldLog { writer, handoff }));
    }

    /// Who writes the log of a reign, and how another file is handed to him.
    fn writer(&self) -> Option<(Addr<LogWriter>, Rc<RefCell<Handoff>>)> {
        let log = self.log.borrow();
        log.as_ref().map(|log| (log.writer.clone(), Rc::clone(&log.handoff)))
    }

    fn hold_opened(&self, open: OpenLog) {
        self.opened.replace(Some(open));
    }

    /// Takes the opened log, if it was not given up with the lock.
    fn take_opened(&self) -> Option<OpenLog> {
        self.opened.take()
    }

    /// Lets the opened log go, and its lock with it.
    fn put_aside(&self) {
        self.opened.take();
    }

    fn let_log_go(&self) {
        self.log.take();
    }

    /// Lets the log go, and then the lock: another master has it with that, and finds the log free.
    fn let_go(&self) {
        self.log.take();
        self.volumes.borrow_mut().let_go();
        self.opened.take();
        self.guard.take();
    }

    fn has_lock(&self) -> bool {
        self.guard.borrow().is_some()
    }

    fn with_guard<T>(&self, see: impl FnOnce(&dyn LockGuard) -> T) -> Option<T> {
        self.guard.borrow().as_deref().map(see)
    }

    /// Sends a message to the writer of the log, if there is one: nobody asks for anything before he has heard of a reign.
    fn write<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        LogWriter: Handler<M>,
    {
        if let Some(log) = &*self.log.borrow() {
            log.writer.do_send(message);
        }
    }

    /// Reads a value beside the caller's turn.
    fn read(&self, place: Place, version: Version, answer: ValueAnswer) {
        let is_held = self.log.borrow().is_some();
        let values = self.volumes.borrow().file(place.file).filter(|_| is_held);
        let Some(values) = values else {
            answer.give(Err(Unread::Closed));
            return;
        };
        actix::spawn(async move {
            let answer = answer;
            #[cfg(feature = "testing")]
            crate::test_hooks::pass(|place| *place == crate::test_hooks::PanicPlace::LogRead);
            answer.give(values.read_value(place, version.epoch).await.map_err(Unread::Failed));
        });
    }
}
