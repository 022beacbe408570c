//! Scripts in a real cluster: at both masters, while masters are killed, and those that libraries bring.

mod common;

use common::cluster::{Setup, TestCluster, MASTERS};
use common::resp::{Answer, Connection};
use common::{seconds, wait_for};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// `redis.lock.Lock` of redis-py 5: release, extend and reacquire.
const RELEASE: &str = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('del', KEYS[1])
        return 1
    ";
const EXTEND: &str = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        local expiration = redis.call('pttl', KEYS[1])
        if not expiration then
            expiration = 0
        end
        if expiration < 0 then
            return 0
        end

        local newttl = ARGV[2]
        if ARGV[3] == \"0\" then
            newttl = ARGV[2] + expiration
        end
        redis.call('pexpire', KEYS[1], newttl)
        return 1
    ";
const REACQUIRE: &str = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        redis.call('pexpire', KEYS[1], ARGV[2])
        return 1
    ";

/// So many tokens in a bucket, and so many more each second, by the time of the server.
const TOKEN_BUCKET: &str = "
    local capacity, rate, asked = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local time = redis.call('TIME')
    local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
    local state = redis.call('GET', KEYS[1])
    local tokens, last = capacity, now
    if state then
        local known = cjson.decode(state)
        tokens, last = known.tokens, known.last
    end
    tokens = math.min(capacity, tokens + math.max(0, now - last) * rate)
    local allowed = tokens >= asked
    if allowed then tokens = tokens - asked end
    redis.call('SET', KEYS[1], cjson.encode({tokens = tokens, last = now}), 'PX', math.ceil(capacity / rate * 1000) + 1000)
    return {allowed and 1 or 0, tostring(tokens)}
";

/// So many in a window that slides: of two windows of fixed length, the one before counts in part.
const SLIDING_WINDOW: &str = "
    local limit, length, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local window = math.floor(now / length)
    local this, before = KEYS[1] .. ':' .. window, KEYS[1] .. ':' .. (window - 1)
    local weight = 1 - (now % length) / length
    local count = (tonumber(redis.call('GET', before)) or 0) * weight + (tonumber(redis.call('GET', this)) or 0)
    if count >= limit then return 0 end
    redis.call('INCR', this)
    redis.call('EXPIRE', this, 2 * length)
    return 1
";

/// Moves an amount, if there is as much.
const TRANSFER: &str = "
    local from, to, amount = tonumber(redis.call('GET', KEYS[1])), tonumber(redis.call('GET', KEYS[2])), tonumber(ARGV[1])
    if from < amount then return redis.error_reply('POOR too little') end
    redis.call('SET', KEYS[1], from - amount)
    redis.call('SET', KEYS[2], to + amount, 'EX', 100000)
    return {from - amount, to + amount}
";

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

fn call(connection: &mut Connection, words: &[&str]) -> Answer {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    connection.call(&words).expect("it serves")
}

fn load(connection: &mut Connection, script: &str) -> Result<String, String> {
    match connection.call(&[b"SCRIPT", b"LOAD", script.as_bytes()]).map_err(|error| error.to_string())? {
        Answer::Bulk(digest) => Ok(String::from_utf8_lossy(&digest).into_owned()),
        other => Err(format!("{other:?}")),
    }
}

/// As `register_script` of redis-py does it: by the digest, and with the text once that is not known.
fn evaluate(
    connection: &mut Connection,
    script: &str,
    digest: &str,
    words: &[&str],
) -> Result<Answer, String> {
    let mut asked: Vec<&[u8]> = vec![b"EVALSHA", digest.as_bytes()];
    asked.extend(words.iter().map(|word| word.as_bytes()));
    let answer = connection.call(&asked).map_err(|error| error.to_string())?;
    match answer.error_word() {
        None | Some("POOR") => Ok(answer),
        Some("NOSCRIPT") => {
            assert_eq!(load(connection, script)?, digest);
            connection.call(&asked).map_err(|error| error.to_string())
        }
        Some(word) => Err(word.to_owned()),
    }
}

/// All balances, as they are at one moment.
fn sum(cluster: &TestCluster) -> i64 {
    let script =
        "local sum = 0 for i = 0, 7 do sum = sum + redis.call('GET', 'account-' .. i) end return sum";
    let answer = wait_for("a sight of all accounts", seconds(20), || {
        let (primary, _) = cluster.primary()?;
        let mut connection = Connection::open(cluster.address(primary), seconds(5)).ok()?;
        let answer = connection.call(&[b"EVAL_RO", script.as_bytes(), b"0"]).ok()?;
        answer.error_word().is_none().then_some(answer)
    });
    match answer {
        Answer::Integer(sum) => sum,
        other => panic!("{other:?} is no sum"),
    }
}

fn work(client: usize, addresses: &[SocketAddr], digest: &str, is_over: &AtomicBool, done: &AtomicU64) {
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
            match evaluate(&mut connection, TRANSFER, digest, &["2", &from, &to, "1"]) {
                Ok(Answer::Array(_)) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Ok(answer) => assert!(answer.error_word().is_some(), "{answer:?}"),
                // Whatever became of it: all of it, or nothing.
                Err(_) => break,
            }
        }
    }
}

#[test]
fn transfers_by_script_keep_the_sum_at_both_masters_while_masters_are_killed() {
    let mut cluster = Setup::slaves(3).start();
    for number in 0..ACCOUNTS {
        let opened = cluster.ask(&[b"SET", account(number).as_bytes(), EACH.to_string().as_bytes()]);
        assert_eq!(opened, Answer::ok());
    }
    let addresses = cluster.addresses();
    let mut first = Connection::open(addresses[0], seconds(5)).expect("it serves");
    let digest = load(&mut first, TRANSFER).expect("it is a script");
    let (is_over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Whatever fails: the clients come to an end.
        let end = EndsAtDrop(&is_over);
        for client in 0..4_usize {
            let (addresses, digest, is_over, done) = (&addresses, &digest, &is_over, &done);
            scope.spawn(move || work(client, addresses, digest, is_over, done));
        }
        for _ in 0..3 {
            let before = done.load(Ordering::Relaxed);
            wait_for("some transfers more", seconds(30), || {
                (done.load(Ordering::Relaxed) >= before + 20).then_some(())
            });
            assert_eq!(sum(&cluster), EACH * ACCOUNTS as i64);
            let (primary, _) = cluster.wait_for_primary(seconds(20));
            cluster.kill(primary);
            cluster.start(primary);
        }
        drop(end);
    });
    assert_eq!(sum(&cluster), EACH * ACCOUNTS as i64);
    cluster.kill_at_once(&MASTERS);
    MASTERS.into_iter().for_each(|master| cluster.start(master));
    assert_eq!(sum(&cluster), EACH * ACCOUNTS as i64);
}

#[test]
fn the_lock_of_redis_py_is_held_released_and_extended_at_both_masters() {
    let cluster = Setup::slaves(2).start();
    for address in cluster.addresses() {
        let mut connection = Connection::open(address, seconds(5)).expect("it serves");
        let digests =
            [RELEASE, EXTEND, REACQUIRE].map(|script| load(&mut connection, script).expect("a script"));
        let [release, extend, reacquire] = digests;
        let mut run = |script: &str, digest: &str, words: &[&str]| {
            evaluate(&mut connection, script, digest, words).expect("it serves")
        };
        let (yes, no) = (Answer::Integer(1), Answer::Integer(0));
        assert_eq!(run(EXTEND, &extend, &["1", "lock", "mine", "1000", "0"]), no, "nobody holds it");
        let mut other = Connection::open(address, seconds(5)).expect("it serves");
        assert_eq!(call(&mut other, &["SET", "lock", "mine", "NX", "PX", "30000"]), Answer::ok());
        assert_eq!(call(&mut other, &["SET", "lock", "theirs", "NX", "PX", "30000"]), Answer::Null);
        assert_eq!(run(EXTEND, &extend, &["1", "lock", "theirs", "1000", "0"]), no, "it is another's");
        assert_eq!(run(EXTEND, &extend, &["1", "lock", "mine", "100000", "0"]), yes);
        let Answer::Integer(left) = call(&mut other, &["PTTL", "lock"]) else { panic!("no time") };
        assert!((100_000..=130_000).contains(&left), "{left} ms");
        assert_eq!(run(REACQUIRE, &reacquire, &["1", "lock", "mine", "5000"]), yes);
        let Answer::Integer(left) = call(&mut other, &["PTTL", "lock"]) else { panic!("no time") };
        assert!((1..=5000).contains(&left), "{left} ms");
        assert_eq!(run(RELEASE, &release, &["1", "lock", "theirs"]), no);
        assert_eq!(run(RELEASE, &release, &["1", "lock", "mine"]), yes);
        assert_eq!(call(&mut other, &["EXISTS", "lock"]), no);
    }
}

#[test]
fn rate_limiters_let_through_as_many_as_they_should_from_both_masters_at_once() {
    const ASKED: usize = 40;
    let cluster = Setup::slaves(2).start();
    let addresses = cluster.addresses();
    // In an hour no token comes.
    let bucket = ["EVAL", TOKEN_BUCKET, "1", "bucket", "25", "0.0001", "1"];
    // In the middle of a window.
    let window = ["EVAL", SLIDING_WINDOW, "1", "window", "30", "60", "1000000030"];
    let allowed = |words: &[&str]| {
        let counts: Vec<usize> = thread::scope(|scope| {
            let ask = |address: SocketAddr| {
                let words = words.to_vec();
                scope.spawn(move || {
                    let mut connection = Connection::open(address, seconds(10)).expect("it serves");
                    let is_allowed = |_: &usize| match call(&mut connection, &words) {
                        Answer::Integer(allowed) => allowed == 1,
                        Answer::Array(answer) => answer[0] == Answer::Integer(1),
                        other => panic!("{other:?}"),
                    };
                    (0..ASKED).filter(is_allowed).count()
                })
            };
            let asking: Vec<_> = addresses.iter().map(|address| ask(*address)).collect();
            asking.into_iter().map(|asking| asking.join().expect("it has asked")).collect()
        });
        counts.iter().sum::<usize>()
    };
    assert_eq!(allowed(&bucket), 25);
    assert_eq!(allowed(&window), 30);
}

#[test]
fn a_script_that_takes_too_long_or_too_much_is_refused_and_the_master_goes_on() {
    let cluster = Setup::slaves(1).start();
    let mut connection = Connection::open(cluster.addresses()[0], seconds(10)).expect("it serves");
    for script in [
        "redis.call('SET', 'k', 'v') while true do end",
        "redis.call('SET', 'k', 'v') while true do pcall(function() while true do end end) end",
        "redis.call('SET', 'k', 'v') local s = 'x' while true do s = s .. s end",
        "redis.call('SET', 'k', 'v') return ('a'):rep(3000):find(('a?'):rep(30) .. ('.-'):rep(30) .. 'b')",
        "redis.call('SET', 'k', 'v') local t = {} for i = 1, 100000 do t[i] = i end for i = 1, 100000 do t[i] = nil end \
         while true do next(t) end",
    ] {
        let answer = call(&mut connection, &["EVAL", script, "0"]);
        let Answer::Error(why) = &answer else { panic!("{answer:?} to {script}") };
        assert!(why.starts_with("ERR the script is cut off: it takes too"), "{why}");
        assert_eq!(call(&mut connection, &["EXISTS", "k"]), Answer::Integer(0), "it has no effect");
    }
    let half = "redis.call('SET', 'k', 'v') error('half')";
    assert_eq!(call(&mut connection, &["EVAL", half, "0"]).error_word(), Some("ERR"));
    assert_eq!(call(&mut connection, &["EXISTS", "k"]), Answer::Integer(0), "all or nothing");
}

#[test]
fn a_new_primary_knows_no_script_until_it_is_sent_again() {
    let mut cluster = Setup::slaves(2).start();
    let addresses = cluster.addresses();
    let mut connections = addresses.map(|address| Connection::open(address, seconds(5)).expect("it serves"));
    let digest = load(&mut connections[0], "return 7").expect("a script");
    for connection in &mut connections {
        assert_eq!(call(connection, &["EVALSHA", &digest, "0"]), Answer::Integer(7), "at either master");
        assert_eq!(call(connection, &["SCRIPT", "EXISTS", &digest]), Answer::Array(vec![Answer::Integer(1)]));
    }
    let (primary, _) = cluster.wait_for_primary(seconds(10));
    cluster.kill(primary);
    let (primary, _) = cluster.wait_for_primary(seconds(20));
    let mut connection = Connection::open(cluster.address(primary), seconds(5)).expect("it serves");
    assert_eq!(call(&mut connection, &["EVALSHA", &digest, "0"]).error_word(), Some("NOSCRIPT"));
    assert_eq!(call(&mut connection, &["EVAL", "return 7", "0"]), Answer::Integer(7));
    assert_eq!(call(&mut connection, &["EVALSHA", &digest, "0"]), Answer::Integer(7));
}

#[test]
fn a_script_uses_values_that_no_master_holds_and_the_commands_of_its_user() {
    let cluster = Setup::slaves(2).start();
    let long = "x".repeat(100_000);
    for (key, value) in [("a", "1"), ("b", "2"), ("long", long.as_str())] {
        assert_eq!(cluster.ask(&[b"SET", key.as_bytes(), value.as_bytes()]), Answer::ok());
    }
    for address in cluster.addresses() {
        let mut connection = Connection::open(address, seconds(5)).expect("it serves");
        // Each is fetched in its turn: which one is next only the one before tells.
        let chained = "local key, sum = KEYS[1], 0 for _ = 1, 2 do sum = sum + redis.call('GET', key) key = 'b' end return sum";
        assert_eq!(call(&mut connection, &["EVAL", chained, "1", "a"]), Answer::Integer(3));
        let length = "return #redis.call('GET', 'long')";
        assert_eq!(call(&mut connection, &["EVAL", length, "0"]), Answer::Integer(100_000));
        let echoed = call(&mut connection, &["EVAL", "return redis.call('GET', KEYS[1])", "1", "long"]);
        assert_eq!(echoed, Answer::bulk(long.as_str()));
    }
}
