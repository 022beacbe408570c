//! An operator who removes slaves, at any moment, and starts those anew that were let go.
//!
//! Looks into the machine of the master that serves whenever that has looked at its clock, in the moment in which it lets a slave
//! go. Whom it counts on it says itself; what those hold the witness has heard from them.

use crate::clients::{insist, Answer, Connection};
use crate::cluster::{Cluster, Node};
use crate::seed::{Check, Failure};
use crate::witness::Witness;
use bytes::Bytes;
use dsm::env::Env;
use dsm_protocol::ids::{Epoch, SlaveId};
use dsm_protocol::machine::master::{Leaving, Master};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a drain may take in a cluster in which everything is mended: one that finds no room tries again after ten seconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(40);

/// So long after it was asked for in vain a removal may still begin.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// The operator. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Operator(Rc<State>);

struct State {
    cluster: Cluster,
    witness: Witness,
    /// The slaves whose removal was asked for, and the processes that can be meant: numbers rise.
    removals: RefCell<Vec<(Node, std::ops::RangeInclusive<u32>)>>,
    /// Those that the present reign has let go.
    gone: RefCell<BTreeSet<(Epoch, SlaveId)>>,
    asking: Cell<usize>,
    let_go: Cell<u64>,
}

impl Operator {
    /// One who looks at this cluster from now on, until the end of the seed.
    pub(crate) fn watch(cluster: &Cluster, witness: &Witness) -> Self {
        let operator = Operator(Rc::new(State {
            cluster: cluster.clone(),
            witness: witness.clone(),
            removals: RefCell::default(),
            gone: RefCell::default(),
            asking: Cell::default(),
            let_go: Cell::default(),
        }));
        let looking = operator.clone();
        dsm::testing::look_at_masters(Some(Box::new(move |master| looking.look(master))));
        operator
    }

    /// How many slaves were let go.
    pub(crate) fn let_go(&self) -> u64 {
        self.0.let_go.get()
    }

    /// The number of the latest process of the cluster.
    fn latest_pid(&self) -> u32 {
        let nodes = self.0.cluster.nodes();
        let pids = nodes.into_iter().filter_map(|node| self.0.cluster.process(node)).map(|p| p.pid());
        pids.max().unwrap_or(0)
    }

    /// Asks for the removal of a slave. Whether that was granted.
    pub(crate) async fn remove(&self, env: &Env, node: Node, master: &str) -> bool {
        let first = self.0.cluster.process(node).map_or(0, |process| process.pid());
        // Until it is known which process was meant, it may be any.
        let number = self.0.removals.borrow().len();
        self.0.removals.borrow_mut().push((node, first..=u32::MAX));
        self.0.asking.set(self.0.asking.get() + 1);
        let mut answer = None;
        if let Some(mut connection) = Connection::open(env, master).await {
            let words = vec![Bytes::from_static(b"REMOVE-SLAVE"), Bytes::from(node.host())];
            if connection.send(&[words]).await.is_ok() {
                answer = connection.answer().await.ok();
            }
        }
        self.0.cluster.world().say(|| format!("removal of {} asked at {master}: {answer:?}", node.host()));
        self.0.asking.set(self.0.asking.get() - 1);
        if answer.is_some() {
            self.0.removals.borrow_mut()[number].1 = first..=self.latest_pid();
        } else {
            let operator = self.clone();
            self.0.cluster.world().later(BEGINS_WITHIN, move |_| {
                operator.0.removals.borrow_mut()[number].1 = first..=operator.latest_pid();
            });
        }
        answer == Some(Answer::Ok)
    }

    /// Starts all those anew whose removal was asked for: they are to stay.
    pub(crate) async fn take_back(&self) {
        while self.0.asking.get() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (node, pids) in self.0.removals.borrow().iter() {
            if let Some(process) =
                self.0.cluster.process(*node).filter(|process| pids.contains(&process.pid()))
            {
                self.0.cluster.world().kill(&process);
            }
        }
    }

    /// A master has looked at its clock: whom it has let go is not needed any more, and is started anew after a while.
    fn look(&self, master: &Master) {
        let Some(epoch) = master.reigns().last().map(|last| last.reign.epoch) else { return };
        let mut gone = self.0.gone.borrow_mut();
        gone.retain(|(of, id)| *of > epoch || (*of == epoch && master.removal(id) == Some(Leaving::LetGo)));
        for (id, ..) in master.slaves() {
            if master.removal(id) != Some(Leaving::LetGo) || !gone.insert((epoch, id.clone())) {
                continue;
            }
            self.0.let_go.set(self.0.let_go.get() + 1);
            self.0.cluster.world().say(|| format!("{id} is let go"));
            self.judge(master, id);
            self.start_anew(id);
        }
    }

    fn judge(&self, master: &Master, id: &SlaveId) {
        let witness = &self.0.witness;
        if let Some(needed) = witness.needs(master, id) {
            witness.hear(Check::LetGo, needed);
        }
        let Some(pid) = witness.member(id) else { return };
        let removals = self.0.removals.borrow();
        let is_meant = |(node, pids): &(Node, std::ops::RangeInclusive<u32>)| {
            node.host() == id.as_str() && pids.contains(&pid)
        };
        if !removals.iter().any(is_meant) {
            witness.hear(Check::LetGo, format!("{id} is let go, which was started after its removal"));
        }
    }

    fn start_anew(&self, id: &SlaveId) {
        let cluster = &self.0.cluster;
        let node = cluster.nodes().into_iter().find(|node| node.host() == id.as_str());
        let Some(process) = node.and_then(|node| cluster.process(node)) else { return };
        let ms = cluster.world().random_within(100..=4000);
        cluster.world().later(Duration::from_millis(ms), move |world| world.kill(&process));
    }

    /// Removes a slave of a cluster in which everything is mended, until it is let go.
    pub(crate) async fn strike(&self, env: &Env) -> Result<(), Failure> {
        let world = self.0.cluster.world();
        let node = Node::Slave(world.random_within(1..=self.0.cluster.shape().slaves as u64) as usize);
        let before = self.let_go();
        let deadline = Instant::now() + DRAIN_LIMIT;
        let words = [Bytes::from_static(b"REMOVE-SLAVE"), Bytes::from(node.host())];
        while self.let_go() == before {
            if Instant::now() >= deadline {
                return Check::LetGo.failed(format!("{} is not let go within {DRAIN_LIMIT:?}", node.host()));
            }
            // Again and again: the next reign knows of no removal.
            self.0.removals.borrow_mut().push((node, 0..=u32::MAX));
            if insist(env, &words, DRAIN_LIMIT).await != Some(Answer::Ok) {
                return Check::LetGo.failed(format!("{} cannot be removed", node.host()));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
}
