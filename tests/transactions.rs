//! Transactions in a real cluster, while its masters are killed.

mod common;

use common::cluster::{Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::{seconds, wait_for};
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const ACCOUNTS: usize = 8;
const EACH: i64 = 100;

struct EndsAtDrop<'a>(&'a AtomicBool);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn account(number: usize) -> String {
    format!("account-{}", number % ACCOUNTS)
}

/// What EXEC answered: the answers to the commands, `None` if a watched key had changed.
fn executed(connection: &mut Connection, commands: &[&[&[u8]]]) -> Result<Option<Vec<Answer>>, String> {
    let call = |connection: &mut Connection, request: &[&[u8]]| {
        let answer = connection.call(request).map_err(|error| error.to_string())?;
        match answer.error_word() {
            Some(word) => Err(word.to_owned()),
            None => Ok(answer),
        }
    };
    call(connection, &[b"MULTI"])?;
    for command in commands {
        call(connection, command)?;
    }
    match call(connection, &[b"EXEC"])? {
        Answer::Null => Ok(None),
        Answer::Array(answers) => Ok(Some(answers)),
        other => panic!("EXEC answers {other:?}"),
    }
}

/// Moves an amount from one account to another, if neither has changed meanwhile.
fn transfer(connection: &mut Connection, from: &str, to: &str, amount: i64) -> Result<bool, String> {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let watched = connection.call(&[b"WATCH", from, to]).map_err(|error| error.to_string())?;
    if let Some(word) = watched.error_word() {
        return Err(word.to_owned());
    }
    let read = connection.call(&[b"MGET", from, to]).map_err(|error| error.to_string())?;
    let balances: Vec<i64> = match &read {
        Answer::Array(values) => values
            .iter()
            .map(|value| match value {
                Answer::Bulk(text) => String::from_utf8_lossy(text).parse().expect("a balance"),
                other => panic!("{other:?} is no balance"),
            })
            .collect(),
        other => return Err(format!("{other:?}")),
    };
    // With a time that is far away on one of both: such a change is a record of its own kind.
    let (less, more) = ((balances[0] - amount).to_string(), (balances[1] + amount).to_string());
    let commands: [&[&[u8]]; 2] =
        [&[b"SET", from, less.as_bytes()], &[b"SET", to, more.as_bytes(), b"EX", b"100000"]];
    Ok(executed(connection, &commands)?.is_some())
}

/// All balances, as they are at one moment.
fn balances(cluster: &TestCluster) -> Vec<i64> {
    let names: Vec<String> = (0..ACCOUNTS).map(account).collect();
    let commands: Vec<[&[u8]; 2]> = names.iter().map(|name| [&b"GET"[..], name.as_bytes()]).collect();
    let commands: Vec<&[&[u8]]> = commands.iter().map(|command| &command[..]).collect();
    let answers = wait_for("a sight of all accounts", seconds(20), || {
        let (primary, _) = cluster.primary()?;
        let mut connection = Connection::open(cluster.address(primary), seconds(5)).ok()?;
        executed(&mut connection, &commands).ok().flatten()
    });
    let balance = |answer: &Answer| match answer {
        Answer::Bulk(text) => String::from_utf8_lossy(text).parse().expect("a balance"),
        other => panic!("{other:?} is no balance"),
    };
    answers.iter().map(balance).collect()
}

/// Works at one master after the other until it is over.
fn work(client: usize, addresses: &[SocketAddr], is_over: &AtomicBool, done: &AtomicU64) {
    let mut at = client;
    while !is_over.load(Ordering::Relaxed) {
        at += 1;
        let Ok(mut connection) = Connection::open(addresses[at % 2], seconds(3)) else {
            thread::yield_now();
            continue;
        };
        while !is_over.load(Ordering::Relaxed) {
            at += 1;
            let (from, to) = (account(at), account(at * 3 + 1 + client));
            if from == to {
                continue;
            }
            match transfer(&mut connection, &from, &to, 1) {
                Ok(is_done) => drop(done.fetch_add(u64::from(is_done), Ordering::Relaxed)),
                // Whatever became of it: all of it, or nothing.
                Err(_) => break,
            }
        }
    }
}

#[test]
fn the_sum_of_all_accounts_is_constant_while_transfers_are_made_and_masters_are_killed() {
    let mut cluster = Setup::slaves(3).start();
    for number in 0..ACCOUNTS {
        let opened = cluster.ask(&[b"SET", account(number).as_bytes(), EACH.to_string().as_bytes()]);
        assert_eq!(opened, Answer::ok());
    }
    let addresses = cluster.addresses();
    let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Whatever fails: the clients come to an end.
        let end = EndsAtDrop(&is_over);
        for client in 0..4_usize {
            let (addresses, is_over, done) = (&addresses, &is_over, &done);
            scope.spawn(move || work(client, addresses, is_over, done));
        }
        for _ in 0..4 {
            let before = done.load(Ordering::Relaxed);
            wait_for("some transfers more", seconds(30), || {
                (done.load(Ordering::Relaxed) >= before + 20).then_some(())
            });
            assert_eq!(balances(&cluster).iter().sum::<i64>(), EACH * ACCOUNTS as i64);
            let (primary, _) = cluster.wait_for_primary(seconds(20));
            cluster.kill(primary);
            cluster.start(primary);
        }
        drop(end);
    });
    assert_eq!(balances(&cluster).iter().sum::<i64>(), EACH * ACCOUNTS as i64);
    let log = fs::read_to_string(cluster.log()).expect("it is text");
    let whole = log.lines().filter(|line| line.starts_with("APPLY SET ") && line.contains(" SET@")).count();
    assert!(whole > 0, "each transfer is one line");
    cluster.kill_at_once(&MASTERS);
    MASTERS.into_iter().for_each(|master| cluster.start(master));
    assert_eq!(balances(&cluster).iter().sum::<i64>(), EACH * ACCOUNTS as i64);
}

#[test]
fn a_counter_by_watch_counts_each_increment_at_both_masters() {
    const CLIENTS: usize = 4;
    const EACH_DOES: usize = 40;
    let cluster = Setup::slaves(2).start();
    assert_eq!(cluster.ask(&[b"SET", b"counter", b"0"]), Answer::ok());
    let addresses = cluster.addresses();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let address = addresses[client % 2];
            scope.spawn(move || {
                let mut connection = Connection::open(address, seconds(10)).expect("it serves");
                let mut left = EACH_DOES;
                while left > 0 {
                    assert_eq!(connection.call(&[b"WATCH", b"counter"]).expect("an answer"), Answer::ok());
                    let Answer::Bulk(text) = connection.call(&[b"GET", b"counter"]).expect("an answer")
                    else {
                        panic!("no counter");
                    };
                    let number: u64 = String::from_utf8_lossy(&text).parse().expect("a number");
                    let next = (number + 1).to_string();
                    let commands: [&[&[u8]]; 1] = [&[b"SET", b"counter", next.as_bytes()]];
                    left -= usize::from(executed(&mut connection, &commands).expect("it serves").is_some());
                }
            });
        }
    });
    assert_eq!(cluster.ask(&[b"GET", b"counter"]), Answer::bulk((CLIENTS * EACH_DOES).to_string()));
}

#[test]
fn a_transaction_of_a_connection_that_ends_is_not_executed_and_what_it_queued_is_bounded() {
    let cluster = Setup::slaves(1).masters_with(&["--max-request-bytes", "4MiB"]).start();
    let (primary, _) = cluster.wait_for_primary(seconds(10));
    let address = cluster.address(primary);
    let mut gone = Connection::open(address, seconds(5)).expect("it serves");
    assert_eq!(gone.call(&[b"MULTI"]).expect("an answer"), Answer::ok());
    assert_eq!(gone.call(&[b"SET", b"k", b"v"]).expect("an answer"), Answer::Simple("QUEUED".into()));
    drop(gone);
    assert_eq!(cluster.ask(&[b"EXISTS", b"k"]), Answer::Integer(0));
    // Two who queue without end: what all of them hold is bounded, and one of them is cut.
    let mut hoarders: Vec<Connection> =
        (0..2).map(|_| Connection::open(address, seconds(5)).expect("it serves")).collect();
    let value = vec![b'x'; 512 * 1024];
    for hoarder in &mut hoarders {
        assert_eq!(hoarder.call(&[b"MULTI"]).expect("an answer"), Answer::ok());
    }
    let mut queued = 0;
    let is_cut = (0..64).any(|number| {
        let answer = hoarders[number % 2].call(&[b"SET", b"k", &value]);
        let is_queued = matches!(&answer, Ok(Answer::Simple(_)));
        queued += usize::from(is_queued);
        !is_queued
    });
    assert!(is_cut && queued <= 10, "{queued} of half a MiB are queued");
    assert_eq!(cluster.ask(&[b"SET", b"k", b"v"]), Answer::ok());
}
