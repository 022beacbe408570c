//! Masters that refuse one another for as long as both live, which the test plays one of: what the log tells of that.

use crate::logged;
use crate::master::{Alone, ADDRESS};
use crate::peer::{Link, CLUSTER, LIMIT};
use dsm::env::sim::World;
use dsm::env::Listener;
use dsm_protocol::ids::{ClusterId, Epoch, Seq};
use dsm_protocol::message::{Control, Hello, HelloRole, MasterState, Message, Welcome};

/// How often the other master asks again.
const TIMES: usize = 10;

/// The other master's address, as in the settings of the one that is tested.
const OTHER: &str = "nobody:12346";

const REFUSED: &str = "ERROR other master refused";

/// Takes the next link that the master dials, and what it says of itself.
async fn dialed(listener: &Listener) -> (Link, Hello) {
    let (stream, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let mut link = Link::accepted(stream).await;
    match link.message().await {
        Some(Message::Control(Control::Hello(hello))) => (link, hello),
        other => panic!("{other:?}"),
    }
}

/// Says to a master that dials of which cluster the other one is.
async fn welcome(link: &Link, cluster: ClusterId) {
    let state = MasterState { active: false, epoch: Epoch(0), seq: Seq(0), active_address: None };
    let welcome = Welcome { cluster: Some(cluster), value_max: 1 << 20, state };
    link.send(&Message::Control(Control::Welcome(welcome))).await;
}

#[test]
fn a_refused_master_is_logged_once_until_it_is_admitted() {
    World::run(1, |world| async move {
        logged::keep();
        let alone = Alone::start(&world);
        let (master, other) = (alone.env.clone(), world.env(&world.machine("nobody"), "nobody"));
        let listener = other.listen(OTHER).await.unwrap();
        let _slave = alone.slave("one", 1).await;
        let (_, hello) = dialed(&listener).await;
        let HelloRole::Master { log_identity, .. } = hello.role else { panic!("{hello:?}") };
        let call = async |log_identity: &str| {
            let mut link = Link::dial(&master, ADDRESS).await;
            let role = HelloRole::Master { address: OTHER.to_owned(), log_identity: log_identity.to_owned() };
            link.send(&Message::Control(Control::Hello(Hello { cluster: None, role }))).await;
            link.message().await.expect("an answer")
        };
        for told in [1, 2] {
            for _ in 0..TIMES {
                let answer = call("another log").await;
                assert!(matches!(answer, Message::Control(Control::Reject { .. })), "{answer:?}");
            }
            assert_eq!(logged::count(REFUSED), told);
            let answer = call(&log_identity).await;
            assert!(matches!(answer, Message::Control(Control::Welcome(_))), "{answer:?}");
        }
    });
}

#[test]
fn a_dialed_master_of_another_cluster_is_logged_once_until_it_belongs_to_this_one() {
    World::run(1, |world| async move {
        logged::keep();
        let alone = Alone::start(&world);
        let other = world.env(&world.machine("nobody"), "nobody");
        let listener = other.listen(OTHER).await.unwrap();
        let _slave = alone.slave("one", 1).await;
        let cluster = loop {
            if let Some(cluster) = dialed(&listener).await.1.cluster {
                break cluster;
            }
        };
        assert_ne!(cluster, CLUSTER);
        for told in [1, 2] {
            for _ in 0..TIMES {
                let (mut link, _) = dialed(&listener).await;
                welcome(&link, CLUSTER).await;
                assert!(link.message().await.is_none(), "the link stands");
            }
            assert_eq!(logged::count(REFUSED), told);
            let (link, _) = dialed(&listener).await;
            welcome(&link, cluster).await;
            alone.wait_for("peer_connected", 1).await;
        }
    });
}
