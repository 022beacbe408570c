//! An operator whose machines lose their disks, one at a time: each takes its place again as a new member.
//!
//! A disk is lost only while nothing else is being changed, as the leader says: then the other two have all that was acknowledged.

use crate::client::Connection;
use crate::cluster::{address, Cluster, MASTERS};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{timeout, Instant};

/// How long an answer to a change may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a machine is away whose disk is lost.
const RESTART: Duration = Duration::from_millis(1200);

/// How long the last change may take once nothing is wrong any more.
const LIMIT: Duration = Duration::from_secs(60);

/// The operator, while he works.
pub(crate) struct Operator {
    is_over: Rc<Cell<bool>>,
    replaced: Rc<Cell<u64>>,
    working: JoinHandle<()>,
}

/// What a leader says of the members: their numbers and addresses, and what changes.
struct Told {
    members: Vec<(u64, String)>,
    change: String,
}

impl Operator {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let (is_over, replaced) = (Rc::<Cell<bool>>::default(), Rc::<Cell<u64>>::default());
        let (cluster, over, count) = (cluster.clone(), Rc::clone(&is_over), Rc::clone(&replaced));
        let working = tokio::task::spawn_local(async move {
            let mut ids: Vec<u64> = (1..=MASTERS as u64).collect();
            while !over.get() {
                let pause = cluster.world().random_within(200..=2500);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if over.get() || !is_settled(&cluster, &ids).await {
                    continue;
                }
                let machine = cluster.world().random_within(0..=MASTERS as u64 - 1) as usize;
                lose_disk(&cluster, machine);
                ids = replace(&cluster, machine, &ids, &over).await;
                count.set(count.get() + 1);
            }
        });
        Operator { is_over, replaced, working }
    }

    /// Loses no more disks, and replaces what is lost; gives how many were.
    pub(crate) async fn finish(self) -> u64 {
        self.is_over.set(true);
        self.working.await.expect("the operator has panicked");
        self.replaced.get()
    }
}

/// What the one that leads says. One that was stopped may believe so, too: it knows other members then.
async fn told(cluster: &Cluster) -> Vec<Told> {
    let mut all = Vec::new();
    for master in 0..MASTERS {
        let Some(info) = cluster.info(master).await else { continue };
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|text| text.trim().to_owned())
        };
        let part = |text: &str, name: &str| {
            text.split(',').find_map(|part| part.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let lines = (0..).map_while(|number| field(&format!("member{number}")));
        let members = lines.map(|line| (part(&line, "id=").parse().unwrap(), part(&line, "address=")));
        all.push(Told { members: members.collect(), change: field("members_change").unwrap_or_default() });
    }
    all
}

async fn is_settled(cluster: &Cluster, ids: &[u64]) -> bool {
    let told = told(cluster).await;
    let is_it =
        |told: &Told| told.change == "no" && told.members.iter().map(|(id, _)| *id).eq(ids.iter().copied());
    told.iter().any(is_it)
}

/// The machine's process dies, and its disk is another one, which is empty.
fn lose_disk(cluster: &Cluster, machine: usize) {
    cluster.world().say(|| format!("master{} loses its disk", machine + 1));
    if let Some(process) = cluster.process(machine) {
        cluster.world().kill(&process);
    }
    for file in ["kv_store.log", "kv_store.log.vote"] {
        cluster.machine(machine).remove(Path::new(file));
    }
    let later = cluster.clone();
    cluster.world().later(RESTART, move |_| later.launch_all());
}

/// Asks for the change until it is done; gives the numbers of the members then.
async fn replace(cluster: &Cluster, machine: usize, ids: &[u64], over: &Cell<bool>) -> Vec<u64> {
    let place = address(machine);
    let mut over_since = None;
    loop {
        if over.get() {
            let over_since = *over_since.get_or_insert_with(Instant::now);
            assert!(over_since.elapsed() < LIMIT, "master{} is not replaced", machine + 1);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut is_free = false;
        for told in told(cluster).await {
            let at_place: Vec<u64> =
                told.members.iter().filter(|(_, address)| *address == place).map(|(id, _)| *id).collect();
            let now: Vec<u64> = told.members.iter().map(|(id, _)| *id).collect();
            if told.change == "no" && now.len() == MASTERS && at_place.iter().all(|id| !ids.contains(id)) {
                return now;
            }
            is_free |= told.change == "no" && at_place.is_empty();
        }
        // A newcomer that has started anew before it took its number is taken back first: then nobody may be there for a moment.
        if is_free {
            order(cluster, &[b"MEMBERS", b"ADD", place.as_bytes()]).await;
        } else {
            order(cluster, &[b"MEMBERS", b"REPLACE", place.as_bytes(), place.as_bytes()]).await;
        }
    }
}

/// Asks any master for a change. Whether it was refused does not matter: what the members are says INFO.
async fn order(cluster: &Cluster, words: &[&[u8]]) {
    let master = cluster.world().random_within(0..=MASTERS as u64 - 1) as usize;
    if let Some(mut connection) = Connection::open(cluster, master).await {
        let answer = timeout(ANSWER_TIMEOUT, connection.ask(words)).await;
        cluster.world().say(|| format!("the operator hears {answer:?}"));
    }
}
