//! The kinds of logs, each with a way to break it.

use actix::Actor as _;
use dsm::config::{Fence, Fsync};
use dsm::env::sim::{DiskFault, Machine, World};
use dsm::journal::memory::MemoryLog;
use dsm::journal::raft::{FromMember, MemberLinks, MemberSaid, RaftJournal, RaftSetup};
use dsm::journal::shared_file::{SharedFile, SharedFileSetup};
use dsm::journal::{Journal, LogEvent, LogRequest};
use dsm::supervision::Fate;
use dsm::testing::virtual_time;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::rc::Rc;

const LOG: &str = "kv_store.log";
const ELSEWHERE: &str = "elsewhere";
const DRAFT: &str = "kv_store.log.compact";

/// One kind of log, which masters share.
pub(crate) trait Rig: Sized + 'static {
    /// Runs a test of a new log, in virtual time.
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F);

    /// Another master's part in the log.
    fn join(&self, address: &str, events: actix::Recipient<LogEvent>) -> Box<dyn Journal>;

    /// Lets the next append be refused.
    fn refuse(&self);

    /// Lets what is refused be written again.
    fn mend(&self);

    /// Takes the leadership from whoever has it.
    fn depose(&self);
}

/// A file on the disk of a simulated machine.
pub(crate) struct OneFile {
    world: World,
    machine: Machine,
}

impl Rig for OneFile {
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        World::run(7, |world| {
            let machine = world.machine("host");
            test(OneFile { world, machine })
        });
    }

    fn join(&self, address: &str, events: actix::Recipient<LogEvent>) -> Box<dyn Journal> {
        let setup = SharedFileSetup {
            env: self.world.env(&self.machine, address),
            path: LOG.into(),
            lock_path: format!("{LOG}.lock").into(),
            witness_path: format!("{LOG}.witness").into(),
            line_bytes_max: 1 << 20,
            fsync: Fsync::Always,
            compact_min_bytes: 4 << 10,
            fence: Fence::None,
            address: address.to_owned(),
            fate: Fate::default(),
            events,
        };
        Box::new(SharedFile::begin(setup))
    }

    fn refuse(&self) {
        self.machine.fail(1, DiskFault::WriteFull);
    }

    fn mend(&self) {
        self.machine.mend();
    }

    fn depose(&self) {
        // Nobody who starts anew would find what is written there.
        assert!(self.machine.rename(Path::new(LOG), Path::new(ELSEWHERE)), "there is a log");
    }
}

impl OneFile {
    /// Lets the `nth` operation from now on go wrong.
    pub(crate) fn fail(&self, nth: u64, fault: DiskFault) {
        self.machine.fail(nth, fault);
    }

    /// Lets everything at the disk take its time, so that a test can come between any two steps.
    pub(crate) fn slow_disk(&self) {
        self.machine.change_disk(|disk| {
            disk.write_ms = 1..=2;
            disk.sync_ms = 1..=3;
        });
    }

    /// What the log would hold if the power failed now, and nothing of what was not synced were kept.
    pub(crate) fn durable(&self) -> Vec<u8> {
        self.machine.read_durable(Path::new(LOG), <[u8]>::to_vec).unwrap_or_default()
    }

    /// Moves the log away and puts another file in its place.
    pub(crate) fn replace(&self, text: &[u8]) {
        assert!(self.machine.rename(Path::new(LOG), Path::new(ELSEWHERE)), "there is a log");
        self.machine.edit(Path::new(LOG), |bytes| bytes.extend_from_slice(text));
    }

    /// What stands where the log was moved to.
    pub(crate) fn elsewhere(&self) -> Vec<u8> {
        self.machine.content(Path::new(ELSEWHERE)).unwrap_or_default()
    }

    /// What stands beside the log as its unfinished copy.
    pub(crate) fn draft(&self) -> Option<Vec<u8>> {
        self.machine.content(Path::new(DRAFT))
    }

    /// Leaves such a copy.
    pub(crate) fn leave_draft(&self) {
        self.machine.edit(Path::new(DRAFT), |bytes| bytes.extend_from_slice(b"CLUSTER"));
    }

    /// What the log holds by now; `None` when there is none.
    pub(crate) fn content(&self) -> Option<Vec<u8>> {
        self.machine.content(Path::new(LOG))
    }
}

/// A log in memory.
pub(crate) struct InMemory(MemoryLog);

impl Rig for InMemory {
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        virtual_time(test(InMemory(MemoryLog::default())));
    }

    fn join(&self, address: &str, events: actix::Recipient<LogEvent>) -> Box<dyn Journal> {
        Box::new(self.0.join(address, events))
    }

    fn refuse(&self) {
        self.0.set_full(true);
    }

    fn mend(&self) {
        self.0.set_full(false);
    }

    fn depose(&self) {
        self.0.depose();
    }
}

/// Three members of a replicated log, each on a machine of its own, with links in memory. A master that joins becomes the master of
/// the next member; the log of a member without a master goes on, and never leads for long.
pub(crate) struct ThreeMembers {
    world: World,
    machines: Vec<Machine>,
    compact_min_bytes: u64,
    links: Rc<RefCell<Links>>,
    /// The parts of members that no master has yet.
    idle: RefCell<Vec<Option<RaftJournal>>>,
    ports: Vec<Rc<RefCell<Option<actix::Recipient<LogEvent>>>>>,
}

/// The addresses of the members, as the rules name them.
const MEMBERS: [&str; 3] = ["one:1", "two:1", "three:1"];

/// Who may reach whom.
#[derive(Default)]
struct Links {
    ports: BTreeMap<String, actix::Recipient<FromMember>>,
    /// Nobody hears this one, and it hears nobody.
    cut: Option<String>,
}

/// The links of one member. What it says arrives a moment later.
struct LinksOf {
    own: String,
    links: Rc<RefCell<Links>>,
}

impl MemberLinks for LinksOf {
    fn send(&mut self, to: &str, said: MemberSaid) {
        let links = self.links.borrow();
        let is_cut = [&self.own[..], to].iter().any(|end| links.cut.as_deref() == Some(*end));
        if let Some(port) = links.ports.get(to).filter(|_| !is_cut) {
            port.do_send(FromMember::Said(vec![said]));
        }
    }

    fn reach(&mut self, _: BTreeSet<String>) {}
}

impl ThreeMembers {
    /// Members that compact their logs when so much is superseded.
    pub(crate) fn run_compacting<F: Future<Output = ()>>(
        compact_min_bytes: u64,
        test: impl FnOnce(Self) -> F,
    ) {
        World::run(7, |world| async move { test(ThreeMembers::begin(world, compact_min_bytes)).await });
    }

    /// What the log of a member holds by now.
    pub(crate) fn content(&self, member: usize) -> Vec<u8> {
        self.machines[member].content(Path::new(LOG)).expect("each has a log")
    }

    /// Nobody hears this member, and it hears nobody.
    pub(crate) fn cut(&self, member: Option<usize>) {
        self.links.borrow_mut().cut = member.map(|member| MEMBERS[member].to_owned());
    }

    fn begin(world: World, compact_min_bytes: u64) -> Self {
        let machines = MEMBERS.iter().map(|address| world.machine(address)).collect();
        let rig = ThreeMembers {
            world,
            machines,
            compact_min_bytes,
            links: Rc::default(),
            idle: RefCell::default(),
            ports: MEMBERS.iter().map(|_| Rc::default()).collect(),
        };
        for (at, address) in MEMBERS.iter().enumerate() {
            // Until a master comes nobody hears what the log tells; then it is told anew.
            let port = Rc::clone(&rig.ports[at]);
            let events = Relay(port).start().recipient();
            let setup = RaftSetup {
                env: rig.world.env(&rig.machines[at], address),
                path: LOG.into(),
                line_bytes_max: 1 << 20,
                compact_min_bytes: rig.compact_min_bytes,
                address: (*address).to_owned(),
                named: MEMBERS.map(str::to_owned).to_vec(),
                fate: Fate::default(),
                events,
            };
            let own = LinksOf { own: (*address).to_owned(), links: Rc::clone(&rig.links) };
            let journal = RaftJournal::begin(setup, Box::new(own));
            rig.links.borrow_mut().ports.insert((*address).to_owned(), journal.port());
            rig.idle.borrow_mut().push(Some(journal));
        }
        rig
    }
}

/// Passes on what a member's log tells, once there is a master.
struct Relay(Rc<RefCell<Option<actix::Recipient<LogEvent>>>>);

impl actix::Actor for Relay {
    type Context = actix::Context<Self>;
}

impl actix::Handler<LogEvent> for Relay {
    type Result = ();

    fn handle(&mut self, event: LogEvent, _: &mut Self::Context) {
        match &*self.0.borrow() {
            Some(port) => port.do_send(event),
            None => assert!(!matches!(event, LogEvent::Failed(_)), "{event:?}"),
        }
    }
}

impl Rig for ThreeMembers {
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        World::run(7, |world| async move { test(ThreeMembers::begin(world, 0)).await });
    }

    fn join(&self, address: &str, events: actix::Recipient<LogEvent>) -> Box<dyn Journal> {
        let at = MEMBERS.iter().position(|member| *member == address).expect("it is a member");
        *self.ports[at].borrow_mut() = Some(events);
        let journal = self.idle.borrow_mut()[at].take();
        let mut journal = journal.expect("nobody has joined as this member");
        journal.ask(LogRequest::FollowAnew);
        Box::new(journal)
    }

    fn refuse(&self) {
        panic!("a full disk refuses nothing here");
    }

    fn mend(&self) {}

    fn depose(&self) {
        // Cut off from the others, it hears no majority any more.
        self.links.borrow_mut().cut = Some(MEMBERS[0].to_owned());
    }
}
