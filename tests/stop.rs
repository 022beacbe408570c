//! A requested stop: the serving master hands over, connections of clients are closed between their requests, and no
//! request fails.

mod common;

use common::cluster::{Node, Setup};
use common::load::Load;
use common::resp::{encoded, Answer};
use common::{millis, seconds, stays, wait_for};
use dsm::client::{Client, ClientConfig};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Clients that use the client library, and count their failures.
struct Natives {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Natives {
    fn start(masters: Vec<String>, clients: usize) -> Natives {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_all, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..clients {
                    let (masters, stop, done) = (masters.clone(), Arc::clone(&stop_all), Arc::clone(&count));
                    tasks.spawn(async move {
                        let client = Client::connect(ClientConfig { masters, ..ClientConfig::default() })
                            .expect("masters and a runtime");
                        let key = format!("native-{number}");
                        let mut failures = Vec::new();
                        for round in 0_u64.. {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            let value = round.to_string();
                            if let Err(error) = client.put(key.clone(), value.clone()).await {
                                failures.push(format!("put: {error}"));
                                continue;
                            }
                            match client.get(key.clone()).await {
                                Ok(Some(read)) if read == value.as_bytes() => {}
                                other => failures.push(format!("get: {other:?}, not {value}")),
                            }
                            done.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(millis(2)).await;
                        }
                        failures
                    });
                }
                tasks.join_all().await.concat()
            })
        });
        Natives { stop, done, thread }
    }

    fn ended(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().expect("no client panics");
        (self.done.load(Ordering::Relaxed), failures)
    }
}

#[test]
fn a_rolling_restart_of_every_process_under_load_fails_no_request() {
    let mut cluster = Setup::slaves(3).start();
    let load = Load::start(&cluster, 50, 40);
    let natives = Natives::start(cluster.addresses().map(|address| address.to_string()).to_vec(), 8);
    for node in [Node::Slave(0), Node::Slave(1), Node::Slave(2), Node::Backup, Node::Master] {
        let begun = Instant::now();
        let status = cluster.terminate(node);
        assert_eq!(status.code(), Some(0), "{node:?}: {status}");
        println!("{node:?} ended after {:?}, longest request {:?}", begun.elapsed(), load.longest());
        load.wait_for_writes(100, seconds(5));
        cluster.start(node);
        cluster.settle_under_load();
    }
    // The primary takes its place again, which fails no request, either.
    cluster.wait_until_serves(Node::Master, seconds(10));
    load.wait_for_writes(200, seconds(5));
    assert_eq!(load.failed_requests(), Vec::<String>::new());
    let (done, failures) = natives.ended();
    assert_eq!(failures, Vec::<String>::new(), "of {done}");
    assert!(done > 100, "{done} rounds of native clients");
    load.prove(&mut cluster);
}

#[test]
fn the_reign_goes_to_the_other_master_when_its_master_stops() {
    let mut cluster = Setup::slaves(2).masters_with(&["--no-failback"]).start();
    let load = Load::start(&cluster, 12, 20);
    for (serving, other) in [(Node::Master, Node::Backup), (Node::Backup, Node::Master)] {
        cluster.wait_until_serves(serving, seconds(10));
        assert_eq!(cluster.terminate(serving).code(), Some(0));
        let info = cluster.wait_until_serves(other, seconds(1));
        assert!(cluster.stderr(serving).contains("the reign is handed over"), "{info:?}");
        cluster.start(serving);
        cluster.settle_under_load();
    }
    assert_eq!(load.failed_requests(), Vec::<String>::new());
    load.prove(&mut cluster);
}

#[test]
fn a_connection_is_closed_between_two_requests_and_what_crosses_is_not_executed() {
    let mut cluster = Setup::slaves(2).masters_with(&["--no-failback"]).start();
    let mut silent = cluster.connect(Node::Master);
    assert_eq!(silent.call(&[b"SET", b"k", b"before"]).expect("an answer"), Answer::ok());
    let mut busy = cluster.connect(Node::Master);
    let pipeline: Vec<u8> =
        (0..500).flat_map(|n| encoded(&[b"SET", b"busy", n.to_string().as_bytes()])).collect();
    busy.send(&pipeline).expect("it is connected");
    assert_eq!(cluster.terminate(Node::Master).code(), Some(0));
    for number in 0..500 {
        assert_eq!(busy.answer().expect("each that was sent before is answered"), Answer::ok(), "{number}");
    }
    busy.wait_for_close().expect("then it ends");
    // As a client that has not noticed.
    let sent = silent.send(&encoded(&[b"SET", b"k", b"crossed"]));
    let answer = sent.and_then(|()| silent.answer());
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("before"));
    assert_eq!(cluster.ask(&[b"GET", b"busy"]), Answer::bulk("499"));
}

#[test]
fn without_a_standby_a_stop_answers_what_is_in_flight_and_ends() {
    let mut cluster = Setup::slaves(2).start();
    assert_eq!(cluster.terminate(Node::Backup).code(), Some(0));
    let mut connection = cluster.connect(Node::Master);
    assert_eq!(connection.call(&[b"SET", b"k", b"v"]).expect("an answer"), Answer::ok());
    let begun = Instant::now();
    assert_eq!(cluster.terminate(Node::Master).code(), Some(0));
    assert!(
        begun.elapsed() < seconds(2),
        "it waited {:?}, though nobody was left to wait for",
        begun.elapsed()
    );
    connection.wait_for_close().expect("it ends");
    cluster.start_all();
    cluster.settle();
    assert_eq!(cluster.ask(&[b"GET", b"k"]), Answer::bulk("v"));
}

#[test]
fn answers_leave_before_the_end_however_long_they_are() {
    let mut cluster = Setup::slaves(2).masters_with(&["--no-failback"]).start();
    let value = vec![b'x'; 16 << 20];
    assert_eq!(cluster.ask(&[b"SET", b"long", &value]), Answer::ok());
    // With a standby, where silent clients are dismissed after half a second, and then without one.
    for (serving, patience) in [(Node::Master, millis(1000)), (Node::Backup, millis(400))] {
        let mut slow = cluster.connect(serving);
        slow.send(&[encoded(&[b"GET", b"long"]), encoded(&[b"SET", b"k", b"done"])].concat()).expect("sent");
        wait_for("both are executed", seconds(5), || {
            (cluster.info(serving)?.number("requests_in_flight") <= 1).then_some(())
        });
        wait_for("the answers wait for the socket", seconds(5), || {
            (cluster.info(serving)?.number("answer_bytes") > 1 << 20).then_some(())
        });
        cluster.signal(serving, Signal::TERM);
        std::thread::sleep(patience);
        assert!(slow.answer().expect("all of it") == Answer::bulk(&value), "{serving:?}");
        assert_eq!(slow.answer().expect("it was executed"), Answer::ok(), "{serving:?}");
        slow.wait_for_close().expect("then it ends");
        assert_eq!(cluster.wait_for_exit(serving, seconds(5)).code(), Some(0));
        if serving == Node::Master {
            cluster.wait_until_serves(Node::Backup, seconds(2));
        }
    }
}

#[test]
fn a_hangup_ends_no_role_that_was_not_started_at_a_terminal() {
    let cluster = Setup::slaves(2).beside_others().start();
    for node in cluster.nodes() {
        cluster.signal(node, Signal::HUP);
    }
    for node in cluster.nodes() {
        wait_for("it says that it has heard", seconds(5), || {
            cluster.stderr(node).contains("SIGHUP ignored").then_some(())
        });
    }
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
}

#[test]
fn a_second_signal_ends_a_role_at_once() {
    let mut cluster = Setup::slaves(2).start();
    // A client that has sent half a request makes the stopping master wait.
    let mut half = cluster.connect(Node::Master);
    half.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100\r\n").expect("it is connected");
    cluster.signal(Node::Master, Signal::TERM);
    wait_for("it stops", seconds(5), || {
        cluster.stderr(Node::Master).contains("dismissing clients").then_some(())
    });
    stays("it waits for the rest", millis(700), || match cluster.exited(Node::Master) {
        None => Ok(()),
        Some(status) => Err(status),
    });
    let begun = Instant::now();
    cluster.signal(Node::Master, Signal::INT);
    let status = cluster.wait_for_exit(Node::Master, seconds(5));
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(begun.elapsed() < millis(500), "{:?}", begun.elapsed());
    assert!(cluster.stderr(Node::Master).contains("second signal"));
    cluster.wait_until_serves(Node::Backup, seconds(2));
}
