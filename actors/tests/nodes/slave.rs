//! `SlaveActor` against masters that the test plays.

use crate::peer::{text, Link, CLUSTER, LIMIT};
use bytes::Bytes;
use dsm::config::SlaveConfig;
use dsm::env::sim::{Loss, Machine, Process, World};
use dsm::env::{Env, Listener};
use dsm::node::{run_node, NodeConfig};
use dsm_protocol::ids::{ClusterId, Epoch, Reign, Seq, SlaveId, Version};
use dsm_protocol::message::{Control, HelloRole, MasterState, Message, Seen, Welcome};
use std::time::Duration;
use tokio::time::Instant;

struct FakeMaster {
    machine: Machine,
    listener: Listener,
    address: String,
}

impl FakeMaster {
    async fn new(world: &World, name: &str) -> FakeMaster {
        let machine = world.machine(name);
        let env = world.env(&machine, name);
        Self::listen(&env, machine, &format!("{name}:12345")).await
    }

    async fn listen(env: &Env, machine: Machine, address: &str) -> FakeMaster {
        let listener = env.listen(address).await.unwrap();
        FakeMaster { machine, listener, address: address.to_owned() }
    }

    /// Takes the slave's link and welcomes it to `cluster`.
    async fn accept(&self, cluster: ClusterId) -> Link {
        let (stream, _) = tokio::time::timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap();
        let mut link = Link::accepted(stream).await;
        let Some(Message::Control(Control::Hello(hello))) = link.message().await else { panic!("no HELLO") };
        let HelloRole::Slave { id, .. } = hello.role else { panic!("{hello:?}") };
        assert_eq!(id.as_str(), "one");
        let state = MasterState {
            active: true,
            epoch: Epoch(1),
            seq: dsm_protocol::ids::Seq(1),
            active_address: None,
        };
        let welcome = Welcome { cluster: Some(cluster), value_max: 1 << 20, state };
        link.send(&Message::Control(Control::Welcome(welcome))).await;
        link
    }
}

fn reign_of(epoch: u64) -> Reign {
    Reign::new(epoch, 100 + epoch)
}

impl Link {
    /// Announces a reign and gives what the slave reports to hold.
    async fn announce(&mut self, epoch: u64) -> Vec<(Bytes, Version)> {
        let (reign, seq) = (reign_of(epoch), Seq(1));
        self.send(&Message::Control(Control::Announce { cluster: CLUSTER, reign, seq, durable: true })).await;
        let enlisted = self.message().await.unwrap();
        assert!(
            matches!(&enlisted, Message::Control(Control::Enlisted { reign: r, .. }) if *r == reign),
            "{enlisted:?}"
        );
        self.send(&Message::Control(Control::Admitted { reign })).await;
        match self.message().await.unwrap() {
            Message::Control(Control::Holdings { entries, last: true }) => {
                entries.into_iter().map(|(key, stamp)| (key, stamp.version)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn write(&mut self, version: Version, key: &'static str, value: &'static str) {
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(value.as_bytes()));
        let reign = reign_of(version.epoch.0).id;
        self.send(&Message::Write { version, reign, key, value }).await;
    }
}

/// Starts the slave on a machine of its own.
fn slave(world: &World, masters: &[&FakeMaster], max_memory: Option<u64>) -> Process {
    let config = SlaveConfig {
        masters: masters.iter().map(|master| master.address.clone()).collect(),
        id: Some(SlaveId::new("one").unwrap()),
        max_memory: max_memory.map(bytesize::ByteSize),
        ..SlaveConfig::default()
    };
    let machine = world.machine("slave-machine");
    let never = std::future::pending();
    world.start(&machine, "slave", |env| run_node(NodeConfig::Slave(config), env, never)).0
}

#[test]
fn writes_are_acknowledged_by_their_number_and_read_at_their_version() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        slave(&world, &[&master], None);
        let mut link = master.accept(CLUSTER).await;
        assert_eq!(link.announce(1).await, []);
        link.write(Version::new(1, 5), "k", "new").await;
        link.write(Version::new(1, 4), "k", "old").await;
        link.send(&Message::Ping).await;
        let mut through = 0;
        while through < 3 {
            match link.message().await.unwrap() {
                Message::Ack { through: now, room_bytes } => {
                    assert!(now > through && room_bytes == u64::MAX);
                    through = now;
                }
                other => panic!("{other:?}"),
            }
        }
        let key = Bytes::from_static(b"k");
        link.send(&Message::Read {
            tag: 9,
            version: Version::new(1, 5),
            reign: reign_of(1).id,
            key: key.clone(),
        })
        .await;
        let value = Bytes::from_static(b"new");
        assert_eq!(
            link.message().await,
            Some(Message::Value { tag: 9, version: Version::new(1, 5), reign: reign_of(1).id, value })
        );
        link.send(&Message::Read { tag: 10, version: Version::new(1, 6), reign: reign_of(1).id, key }).await;
        assert_eq!(link.message().await, Some(Message::Missing { tag: 10, held: Some(Version::new(1, 5)) }));
    });
}

#[test]
fn a_write_that_does_not_fit_is_refused_before_it_is_acknowledged() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        slave(&world, &[&master], Some(120));
        let mut link = master.accept(CLUSTER).await;
        link.announce(1).await;
        link.write(Version::new(1, 2), "k", "0123456789012345678901234567890123456789").await;
        assert_eq!(link.message().await, Some(Message::Control(Control::Full { number: 1 })));
        assert_eq!(link.message().await, Some(Message::Ack { through: 1, room_bytes: 120 }));
    });
}

#[test]
fn the_master_of_the_latest_reign_is_obeyed_and_the_other_is_told() {
    World::run(1, |world| async move {
        let (old, new) = (FakeMaster::new(&world, "first").await, FakeMaster::new(&world, "second").await);
        slave(&world, &[&old, &new], None);
        let mut old_link = old.accept(CLUSTER).await;
        let mut new_link = new.accept(CLUSTER).await;
        old_link.announce(1).await;
        old_link.write(Version::new(1, 2), "k", "v").await;
        assert!(matches!(old_link.message().await, Some(Message::Ack { through: 1, .. })));
        assert_eq!(new_link.announce(2).await, [(Bytes::from_static(b"k"), Version::new(1, 2))]);
        old_link.write(Version::new(1, 3), "k", "late").await;
        assert_eq!(
            old_link.message().await,
            Some(Message::Control(Control::Outdated {
                seen: Seen { reign: reign_of(2), seq: Seq(1), durable: true }
            }))
        );
        let key = Bytes::from_static(b"k");
        new_link
            .send(&Message::Read { tag: 1, version: Version::new(1, 2), reign: reign_of(1).id, key })
            .await;
        let value = Bytes::from_static(b"v");
        assert_eq!(
            new_link.message().await,
            Some(Message::Value { tag: 1, version: Version::new(1, 2), reign: reign_of(1).id, value })
        );
    });
}

#[test]
fn a_master_of_another_cluster_is_left() {
    World::run(1, |world| async move {
        let (first, second) =
            (FakeMaster::new(&world, "first").await, FakeMaster::new(&world, "second").await);
        slave(&world, &[&first, &second], None);
        let mut link = first.accept(CLUSTER).await;
        link.announce(1).await;
        let mut stranger = second.accept(ClusterId(8)).await;
        assert_eq!(stranger.message().await, None, "the link to another cluster stands");
    });
}

#[test]
fn a_master_that_lost_power_is_noticed_and_dialed_again() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        slave(&world, &[&master], None);
        let mut link = master.accept(CLUSTER).await;
        link.announce(1).await;
        // A machine without power closes nothing.
        world.power_off(&master.machine, Loss::All);
        let lost = Instant::now();
        world.power_on(&master.machine);
        let again = tokio::time::timeout(LIMIT, master.accept(CLUSTER)).await;
        assert!(again.is_ok(), "the slave waits for ever");
        let took = lost.elapsed();
        assert!(took >= Duration::from_secs(4), "a master is given time for a sign of life: {took:?}");
        assert!(took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn a_silent_master_that_gives_a_sign_of_life_is_kept() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        slave(&world, &[&master], None);
        let mut link = master.accept(CLUSTER).await;
        link.announce(1).await;
        for _ in 0..5 {
            let begun = Instant::now();
            assert_eq!(link.message().await, Some(Message::Control(Control::Probe)));
            assert!(begun.elapsed() >= Duration::from_millis(1900), "it is not asked all the time");
            link.send(&Message::Control(Control::Alive)).await;
        }
    });
}

#[test]
fn a_slave_that_was_paused_leaves_no_master() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        let slave = slave(&world, &[&master], None);
        let mut link = master.accept(CLUSTER).await;
        link.announce(1).await;
        assert_eq!(link.message().await, Some(Message::Control(Control::Probe)));
        slave.pause();
        link.send(&Message::Control(Control::Alive)).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        slave.resume();
        // The sign of life has arrived long ago, and is read before the time is judged.
        link.write(Version::new(1, 2), "k", "v").await;
        loop {
            match link.message().await {
                Some(Message::Ack { through: 1, .. }) => break,
                Some(Message::Control(Control::Probe)) => link.send(&Message::Control(Control::Alive)).await,
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn drops_remove_that_version_or_lower_and_never_a_newer_one() {
    World::run(1, |world| async move {
        let master = FakeMaster::new(&world, "master").await;
        slave(&world, &[&master], None);
        let mut link = master.accept(CLUSTER).await;
        link.announce(1).await;
        link.write(Version::new(1, 5), "k", "v").await;
        assert!(matches!(link.message().await, Some(Message::Ack { through: 1, .. })));
        link.send(&Message::Drop { version: Version::new(1, 4), reign: reign_of(1).id, key: text("k") })
            .await;
        link.send(&Message::Read {
            tag: 1,
            version: Version::new(1, 5),
            reign: reign_of(1).id,
            key: text("k"),
        })
        .await;
        assert!(matches!(link.message().await, Some(Message::Value { tag: 1, .. })));
        link.send(&Message::Drop { version: Version::new(1, 5), reign: reign_of(1).id, key: text("k") })
            .await;
        link.send(&Message::Read {
            tag: 2,
            version: Version::new(1, 5),
            reign: reign_of(1).id,
            key: text("k"),
        })
        .await;
        assert_eq!(link.message().await, Some(Message::Missing { tag: 2, held: None }));
    });
}
