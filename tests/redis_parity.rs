//! Compares the RESP protocol with Redis, byte by byte: the bytes that were sent to Redis are sent to the primary and
//! to the standby, and the answers must be the same. Where they differ, [`DIFFERENCES`] gives the reason and the other
//! answer.
//!
//! The answers of Redis 7.0 are in `tests/redis_parity/recorded.txt`, so that no Redis is needed. If one is installed, the
//! record is compared with it; `UPDATE_GOLDENFILES=1` writes the record anew. Redis ran with this server's settings where
//! it has them. Values that must differ (ids, versions) are masked by name.

mod common;

use common::cluster::{free_ports, Node, Process, Setup, TestCluster, MASTERS};
use common::resp::{encoded, Info};
use common::skip::{need_program, skip, Lack};
use common::{millis, seconds, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Where this server's answers differ from those of Redis 7.0 on purpose: the scripts, the answers, and the reason. The
/// table in `docs/SEMANTICS.md` has a line for each reason.
const DIFFERENCES: &[Difference] = &[
    Difference {
        why: "COMMAND INFO has no notes on keys",
        answers: &[
            (
                "COMMAND INFO set",
                "*1^*10^$3^set^:-3^*2^+write^+denyoom^:1^:1^:1^*3^+@write^+@string^+@slow^*0^*1^*6^$5^flags^*4^+RW^\
                 +access^+update^+variable_flags^$12^begin_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4^type^$5^\
                 range^$4^spec^*6^$7^lastkey^:0^$7^keystep^:1^$5^limit^:0^*0^",
            ),
            (
                "COMMAND INFO getex",
                "*1^*10^$5^getex^:-2^*2^+write^+fast^:1^:1^:1^*3^+@write^+@string^+@fast^*0^*1^*6^$5^flags^*3^+RW^\
                 +access^+update^$12^begin_search^*4^$4^type^$5^index^$4^spec^*2^$5^index^:1^$9^find_keys^*4^$4^type^$5^range^$4^spec^*6^\
                 $7^lastkey^:0^$7^keystep^:1^$5^limit^:0^*0^",
            ),
        ],
    },
    Difference {
        why: "GETEX of a key that is not there checks its options too",
        answers: &[("GETEX k EX 0", "-ERR invalid expire time in 'getex' command^")],
    },
    Difference {
        why: "No other types, no functions, no subscriptions",
        answers: &[
            ("LPUSH k v", "-ERR unknown command 'LPUSH', with args beginning with: 'k' 'v' ^"),
            (
                "EVAL \"return redis.call('SUBSCRIBE','x')\" 0",
                "-ERR Unknown Redis command called from script script: 29e26abf7d6c5f139b1a70728e41ec7c6997fe5a, on @user_script:1.^",
            ),
            ("PUBLISH x y", "-ERR unknown command 'PUBLISH', with args beginning with: 'x' 'y' ^"),
        ],
    },
    Difference {
        why: "A script that ends with an error has no effect",
        answers: &[(
            "EVAL \"redis.call('SET','k','v') error('x')\" 0; EXISTS k",
            "-ERR user_script:1: x script: f8e3ff3577946967d0882abf69aee2a6381b7f43, on @user_script:1.^:0^",
        )],
    },
    Difference {
        why: "A script calls commands on keys that it names, and PING, ECHO, SELECT, TIME",
        answers: &[(
            "EVAL \"return redis.call('DBSIZE')\" 0",
            "-ERR This Redis command is not allowed from script script: d1df1372d92f8e6fa0a2fd40c3baa73fe325f647, on @user_script:1.^",
        )],
    },
    // `tests/scripts.rs`: a_script_that_takes_too_long_or_too_much_is_refused_and_the_master_goes_on.
    Difference { why: "A script has a million steps, and the memory of three values and 8 MiB", answers: &[] },
    Difference {
        why: "Scripts have no `cmsgpack` and no `struct`",
        answers: &[(
            "EVAL \"return cmsgpack.pack(1)\" 0",
            "-ERR user_script:1: Script attempted to access nonexistent global variable 'cmsgpack' script: 43b26a55c844c1bea5d58ec163f7a4235e51a18e, on \
             @user_script:1.^",
        )],
    },
    // How many that are: `protocol/tests/resp.rs`.
    Difference { why: "WAIT answers at once how many standbys are connected", answers: &[] },
    Difference {
        why: "SCRIPT DEBUG is unknown",
        answers: &[("SCRIPT DEBUG x", "-ERR unknown subcommand 'DEBUG'. Try SCRIPT HELP.^")],
    },
    Difference {
        why: "An error in a tail call of a function of a library has no place",
        answers: &[
            (
                "EVAL \"return load('return 1')\" 0",
                "-ERR bad argument #1 to 'load' (function expected, got string) script: 311925b1490955a8f8c4ba46f2dea77f20c31b4e^",
            ),
            (
                "EVAL \"return redis.acl_check_cmd('nosuch')\" 0",
                "-ERR Invalid command passed to redis.acl_check_cmd() script: d2491587bab5149c93be0dce4426f7a06ba9e1a1^",
            ),
        ],
    },
    Difference {
        why: "Inside MULTI: commands on keys that they name, and short answers of the connection",
        answers: &[(
            "MULTI; DBSIZE; EXEC",
            "+OK^-ERR Command not allowed inside a transaction^-EXECABORT Transaction discarded because of previous \
             errors.^",
        )],
    },
    Difference {
        why: "After a WATCH that was refused EXEC is, too",
        answers: &[(
            "WATCH; MULTI; EXEC",
            "-ERR wrong number of arguments for 'watch' command^+OK^-EXECABORT Transaction discarded because of previous \
             errors.^",
        )],
    },
    Difference {
        why: "READ, WRITE and STATUS are GET, SET and INFO",
        answers: &[
            ("WRITE k v; READ k", "+OK^$1^v^"),
            ("READ", "-ERR wrong number of arguments for 'read' command^"),
            ("STATUS", "$15^<a bulk string>^"),
            ("FAILOVER x", "-ERR wrong number of arguments for 'failover' command^"),
        ],
    },
    Difference {
        why: "CLIENT SETINFO and CLIENT NO-TOUCH are there, as in Redis 7.2",
        answers: &[
            ("CLIENT SETINFO LIB-NAME x", "+OK^"),
            ("CLIENT SETINFO lib-ver 1.0", "+OK^"),
            ("CLIENT SETINFO LIB-NAME grün", "-ERR LIB-NAME cannot contain spaces, newlines or special characters.^"),
            ("CLIENT SETINFO NOSUCH x", "-ERR Unrecognized option 'NOSUCH'^"),
            ("CLIENT NO-TOUCH on", "+OK^"),
        ],
    },
    Difference {
        why: "Every request is answered",
        answers: &[("CLIENT REPLY ON", "-ERR CLIENT REPLY is not supported: every request is answered^")],
    },
    Difference {
        why: "Settings and counters stay as they are from the start",
        answers: &[
            (
                "CONFIG SET timeout 0",
                "-ERR CONFIG SET is not supported: settings are given when the server starts^",
            ),
            ("CONFIG RESETSTAT", "-ERR CONFIG RESETSTAT is not supported^"),
        ],
    },
    // What they do: `tests/resp_basic.rs`.
    Difference {
        why: "SET with IFEQ and IFNE, DELEX and DELIFEQ are there, as in Redis 8.4 and Valkey 9",
        answers: &[
            ("SET k v IFEQ w", "$-1^"),
            ("DELEX k", ":0^"),
            ("DELIFEQ k v", ":0^"),
        ],
    },
    Difference {
        why: "DSM.GETV, DSM.SETV and DSM.DELV compare versions",
        answers: &[
            ("DSM.GETV k", "*2^$-1^$3^0.0^"),
            ("DSM.SETV k v 1.1", "$-1^"),
            ("DSM.DELV k 1.1", ":0^"),
        ],
    },
    Difference {
        why: "OBJECT ENCODING knows the value, not how it was made",
        answers: &[(
            "SET k a; APPEND k b; OBJECT ENCODING k; SETRANGE l 0 7; OBJECT ENCODING l",
            "+OK^:2^$6^embstr^:1^$3^int^",
        )],
    },
    Difference {
        why: "OBJECT REFCOUNT is 1, OBJECT IDLETIME an error",
        answers: &[
            ("SET k 7; OBJECT REFCOUNT k", "+OK^:1^"),
            ("SET k v; OBJECT IDLETIME k", "+OK^-ERR idle time is not tracked: nothing is evicted^"),
        ],
    },
    Difference {
        why: "MEMORY USAGE counts as `--max-memory` does, and MEMORY has nothing else",
        answers: &[
            ("SET k v; MEMORY USAGE k; MEMORY USAGE k SAMPLES 0", "+OK^:106^:106^"),
            ("MEMORY PURGE", "-ERR unknown subcommand 'PURGE'. Try MEMORY HELP.^"),
        ],
    },
    Difference {
        why: "A cursor is what the last SCAN said",
        answers: &[(
            "SCAN 17; SCAN 1",
            "-ERR invalid cursor: it is of another order of the keys, begin again with 0^-ERR invalid cursor: it is of another \
             order of the keys, begin again with 0^",
        )],
    },
    Difference {
        why: "A pattern has at most 1,024 bytes, and 64 in each part after a star",
        answers: &[(
            "KEYS *0123456789012345678901234567890123456789012345678901234567890123456789",
            "-ERR pattern is too long: the limit is 1024 bytes, and 64 in each part after a star^",
        )],
    },
    // What others see meanwhile: tests of the machine (`keyspace.rs`).
    Difference { why: "FLUSHALL and FLUSHDB delete key by key, in the end all that were there", answers: &[] },
    // KEYS with more than 65,536 keys: a test of the machine (`keyspace.rs`).
    Difference { why: "KEYS shows at most 65,536 keys of 32 MiB in all", answers: &[] },
    Difference {
        why: "A key has at most 64 KiB, a client's name 256 bytes",
        answers: &[
            ("a key over 64 KiB", "-ERR key is too long: 65537 bytes, the limit is 65536 bytes^"),
            (
                "a client's name of 300 bytes",
                "-ERR client name is too long: 300 bytes, the limit is 256 bytes^$-1^",
            ),
        ],
    },
    Difference {
        why: "A request has at most 65,536 keys, 1,048,576 words and 64 MiB",
        answers: &[
            ("65,537 keys", "-ERR the request names more than 65536 keys^"),
            ("1,048,577 words", "-ERR Protocol error: invalid multibulk length^<closed>"),
            ("a request over 64 MiB", "-ERR Protocol error: too big request^<closed>"),
        ],
    },
    // Differences that need long values or clients that do not read are in `tests/pipelines.rs` and `tests/limits.rs`.
    Difference { why: "The values of an MGET have at most 32 MiB in all", answers: &[] },
    Difference { why: "Answers that a client does not take wait up to 32 MiB", answers: &[] },
    Difference {
        why: "COMMAND INFO and COMMAND DOCS take at most 256 names",
        answers: &[
            ("257 names in COMMAND INFO", "-ERR too many names: 257, the limit is 256^"),
            ("257 names in COMMAND DOCS", "-ERR too many names: 257, the limit is 256^"),
        ],
    },
    Difference {
        why: "A zero byte hides no end of a line",
        answers: &[
            ("a zero in an inline request", "-ERR unknown command 'PING', with args beginning with: ^"),
            (
                "a zero in place of a bulk string",
                "-ERR Protocol error: expected '$', got '\\x00'^<closed>",
            ),
        ],
    },
    Difference {
        why: "An error shows at most 128 bytes of a client's word",
        answers: &[
            (
                "unknown: an option of HELLO of 200 bytes",
                "-ERR Syntax error in HELLO option 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
                 nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn'^",
            ),
        ],
    },
];

/// One reason for different answers.
struct Difference {
    /// Also in `docs/SEMANTICS.md`.
    why: &'static str,
    /// Scripts by name, with this server's answers, as [`shown`].
    answers: &'static [(&'static str, &'static str)],
}

/// How long an answer may take.
const PATIENCE: Duration = seconds(20);

/// Every key that a script sets. They are deleted before the next script.
const KEYS: [&str; 10] = ["k", "a", "b", "c", "l", "n", "x", "lst", "undeclared", "\"\""];

/// The last request of a script that does not end the connection.
const SENTINEL: &[u8] = b"the end of the script";

/// What is not compared.
#[derive(Clone, Copy, Debug)]
enum Mask {
    /// The values that follow these names.
    Fields(&'static [&'static str]),
    /// Any integer.
    Integers,
    /// How much less than a number of tens it is: what is left of a lifetime falls while a script runs.
    Tens,
    /// The order of the pairs of a map.
    PairOrder,
    /// Everything except the type of the answer.
    All,
    /// All texts except these names, so that only the shape is compared.
    TextsBut(&'static [&'static str]),
}

/// Bytes to send, and what may happen to the connection.
struct Script {
    name: String,
    bytes: Vec<u8>,
    closes: bool,
    redis_waits: bool,
    masks: Vec<Mask>,
}

impl Script {
    fn raw(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Script {
        Script {
            name: name.into(),
            bytes: bytes.into(),
            closes: false,
            redis_waits: false,
            masks: Vec::new(),
        }
    }

    /// Requests, one per line, their words separated by single spaces. The text is also the script's name. `""` is an
    /// empty word.
    fn of(lines: &str) -> Script {
        let mut bytes = Vec::new();
        for line in lines.split('\n') {
            let words: Vec<&[u8]> =
                line.split(' ').map(|word| if word == "\"\"" { &b""[..] } else { word.as_bytes() }).collect();
            bytes.extend(encoded(&words));
        }
        Script::raw(lines.replace('\n', "; "), bytes)
    }

    /// The same, where a word in quotation marks may have spaces, and line ends as `\\n`.
    fn quoted(lines: &str) -> Script {
        let mut bytes = Vec::new();
        let plain = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        for line in lines.split('\n') {
            let words: Vec<String> = match line.split_once('"') {
                None => plain(line),
                Some((before, rest)) => {
                    let (text, after) = rest.rsplit_once('"').expect("two marks");
                    let mut words: Vec<String> = plain(before);
                    words.push(text.replace("\\n", "\n"));
                    words.extend(plain(after));
                    words
                }
            };
            let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            bytes.extend(encoded(&words));
        }
        Script::raw(lines.replace('\n', "; "), bytes)
    }

    fn named(mut self, name: &str) -> Script {
        self.name = name.to_string();
        self
    }

    /// The server ends the connection by itself.
    fn closes(mut self) -> Script {
        self.closes = true;
        self
    }

    /// Redis never answers: it waits for more.
    fn redis_waits(mut self) -> Script {
        self.redis_waits = true;
        self
    }

    fn mask(mut self, mask: Mask) -> Script {
        self.masks.push(mask);
        self
    }
}

#[test]
fn both_masters_answer_as_redis_does_but_where_a_reason_is_written_down() {
    let record = Record::read();
    let cluster = Setup::slaves(2).beside_others().start();
    let mut problems = String::new();
    let mut used = BTreeSet::new();
    let mut compared = 0;
    for script in scripts() {
        let Some(theirs) = record.answers(&script) else {
            writeln!(problems, "{:?} is not in the record, or with other bytes", script.name)
                .expect("a string takes all");
            continue;
        };
        let listed = DIFFERENCES
            .iter()
            .flat_map(|difference| difference.answers)
            .find(|(name, _)| *name == script.name)
            .map(|(name, answer)| {
                used.insert(*name);
                *answer
            });
        for master in MASTERS {
            talk(cluster.address(master), &Script::of(&format!("DEL {}", KEYS.join(" "))), PATIENCE);
            let answers = answers_of(cluster.address(master), &script, PATIENCE);
            let ours = escaped(&answers);
            compared += 1;
            let problem = match listed {
                None if ours == theirs => continue,
                None => "is answered otherwise than by Redis",
                Some(_) if ours == theirs => "is answered as by Redis, so it is no difference",
                Some(listed) if shown(&answers) == listed => continue,
                Some(_) => "is answered neither as by Redis nor as the table of differences says",
            };
            writeln!(problems, "{master:?}: {:?} {problem}\n  Redis {theirs}\n  ours  {ours}", script.name)
                .expect("a string takes all");
        }
    }
    println!("{compared} answers compared");
    assert!(problems.is_empty(), "\n{problems}");
    let listed = DIFFERENCES.iter().flat_map(|difference| difference.answers).map(|(name, _)| *name);
    let stale: Vec<_> = listed.filter(|name| !used.contains(name)).collect();
    assert!(stale.is_empty(), "differences of scripts that do not exist: {stale:?}");
    cluster_is_whole(&cluster);
}

#[test]
fn the_record_is_what_redis_answers() {
    match Redis::start() {
        Ok(redis) => {
            let mut record = Record::of(&redis);
            if is_to_be_updated() {
                record.write();
            }
            // Another 7.0 may have changed its texts; the answers must be the same.
            let recorded = Record::read();
            record.redis.clone_from(&recorded.redis);
            for (name, said) in &record.said {
                assert_eq!(recorded.said.get(name), Some(said), "{name}; UPDATE_GOLDENFILES=1 records anew");
            }
            assert!(record == recorded, "the record has scripts that are gone");
        }
        Err(lack) => {
            assert!(!is_to_be_updated(), "no Redis 7.0 to record: {lack:?}");
            skip(the_record_is_what_redis_answers, "", &lack);
        }
    }
}

/// The file of Redis' answers.
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis_parity/recorded.txt");

fn is_to_be_updated() -> bool {
    std::env::var_os("UPDATE_GOLDENFILES").is_some_and(|value| value == "1")
}

/// Redis' answers to each script.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    /// Its version.
    redis: String,
    /// By a script's name: what was sent, what came back, both [`escaped`].
    said: BTreeMap<String, (String, String)>,
}

impl Record {
    /// Asks a Redis.
    fn of(redis: &Redis) -> Record {
        let mut said = BTreeMap::new();
        for script in scripts() {
            talk(redis.address, &Script::of("FLUSHALL"), PATIENCE);
            let patience = if script.redis_waits { millis(300) } else { PATIENCE };
            let answers = answers_of(redis.address, &script, patience);
            let before = said.insert(script.name.clone(), (escaped(&script.bytes), escaped(&answers)));
            assert!(before.is_none(), "two scripts are named {}", script.name);
        }
        Record { redis: redis.version.clone(), said }
    }

    fn write(&self) {
        let mut text = format!(
            "# What Redis {} answers, for tests/redis_parity.rs. A script's name, the bytes that were sent, the bytes\n\
             # that came back, all on a line each; of long ones the beginning, the length and the CRC32C. Written by\n\
             # UPDATE_GOLDENFILES=1 cargo test --test redis_parity the_record\n",
            self.redis
        );
        for (name, (sent, answered)) in &self.said {
            assert!(!name.contains('\n'), "a name is one line");
            write!(text, "\nscript {name}\n  sent {sent}\n  answered {answered}\n")
                .expect("a string takes all");
        }
        std::fs::write(RECORD, text).expect("the record can be written");
    }

    /// Reads the file.
    fn read() -> Record {
        let text = std::fs::read_to_string(RECORD).expect("the record is there");
        let redis = text.split_whitespace().nth(3).expect("a version").to_string();
        let said = text.split("\nscript ").skip(1).map(|part| {
            let mut lines = part.lines();
            let mut line = |prefix| lines.next().and_then(|line| line.strip_prefix(prefix)).expect(RECORD);
            let name = line("").to_string();
            (name, (line("  sent ").to_string(), line("  answered ").to_string()))
        });
        Record { redis, said: said.collect() }
    }

    /// The answers, if the script is in the record in its present form.
    fn answers(&self, script: &Script) -> Option<&str> {
        let (sent, answered) = self.said.get(&script.name)?;
        (*sent == escaped(&script.bytes)).then_some(answered)
    }
}

/// Bytes as one line of text, unambiguously.
fn escaped(bytes: &[u8]) -> String {
    const LONGEST: usize = 2000;
    const HEAD: usize = 200;
    if bytes.len() <= LONGEST {
        return bytes.escape_ascii().to_string();
    }
    let head = bytes[..HEAD].escape_ascii();
    format!("{head} ... ({} bytes, crc32c {:08x})", bytes.len(), crc32c::crc32c(bytes))
}

#[test]
fn every_difference_stands_in_the_document_too() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SEMANTICS.md");
    let document = std::fs::read_to_string(path).expect("the document");
    let flat = document.split_whitespace().collect::<Vec<_>>().join(" ");
    for Difference { why, .. } in DIFFERENCES {
        assert!(flat.contains(why), "docs/SEMANTICS.md does not say: {why}");
    }
    let section =
        document.split("\n## ").find(|section| section.starts_with("Against Redis\n")).expect("a section");
    let rows = section.lines().filter(|line| line.starts_with("| ")).count() - 1;
    assert_eq!(rows, DIFFERENCES.len(), "a line for each reason, and no other");
}

fn cluster_is_whole(cluster: &TestCluster) {
    for master in MASTERS {
        let info = cluster.info(master).expect("INFO is always answered");
        assert_eq!(info.number("takeovers"), u64::from(master == Node::Master), "nobody had to take over");
    }
}

/// A Redis of its own.
struct Redis {
    address: SocketAddr,
    version: String,
    _process: Process,
    _dir: TempDir,
}

impl Redis {
    /// Starts one with the settings that our masters have by default.
    ///
    /// # Errors
    /// That there is no Redis, or one of another version.
    fn start() -> Result<Redis, Lack> {
        need_program("redis-server", &["--version"], "redis-server")?;
        for _ in 0..20 {
            let dir = TempDir::with_prefix("dsm-redis-").expect("a directory for temporary files");
            let [address, _] = free_ports();
            let mut command = Command::new("redis-server");
            command
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--dir"])
                .arg(dir.path())
                .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--databases", "1"])
                .args(["--proto-max-bulk-len", "16777216", "--maxclients", "10000", "--daemonize", "no"])
                // A machine that is busy makes its commands slow, and that would be among its answers.
                .args(["--slowlog-log-slower-than", "-1"])
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let mut process = Process(command.spawn().expect("it could be started just now"));
            let id = process.0.id();
            let up = wait_for("redis-server serves or ends", seconds(20), || {
                if process.0.try_wait().expect("a child can be asked").is_some() {
                    return Some(None);
                }
                let info = Info::of(address, seconds(2)).ok()?;
                // Another process may have taken the port meanwhile.
                (info.get("process_id") == Some(&id.to_string())).then_some(Some(info))
            });
            let Some(info) = up else { continue };
            let version = info.get("redis_version").unwrap_or_default().to_string();
            if !version.starts_with("7.0.") {
                let why = format!("the record is of Redis 7.0, redis-server is {version}");
                return Err(Lack::Refused(why));
            }
            return Ok(Redis { address, version, _process: process, _dir: dir });
        }
        panic!("redis-server does not start on any port");
    }
}

/// A server's answers to a script, masked, over a new connection.
fn answers_of(address: SocketAddr, script: &Script, patience: Duration) -> Vec<u8> {
    let mut answers = talk(address, script, patience);
    for mask in &script.masks {
        answers = masked(&answers, *mask);
    }
    answers
}

/// Sends a script and reads until nothing arrives for `patience`.
fn talk(address: SocketAddr, script: &Script, patience: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts connections");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(patience)).expect("a socket option");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
    let mut bytes = script.bytes.clone();
    let end = [format!("${}\r\n", SENTINEL.len()).as_bytes(), SENTINEL, b"\r\n"].concat();
    if !script.closes {
        bytes.extend(encoded(&[b"ECHO", SENTINEL]));
    }
    // The server may close before it has read everything; its answers until then are read below.
    let _ = stream.write_all(&bytes);
    let mut answers = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => answers.extend_from_slice(&chunk[..read]),
            Ok(0) => break answers.extend_from_slice(b"<closed>"),
            // Not all that was sent has been read.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                break answers.extend_from_slice(b"<closed>");
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                break answers.extend_from_slice(b"<waits>");
            }
            Err(error) => panic!("{}: {error} after {}", script.name, shown(&answers)),
        }
        if answers.ends_with(&end) {
            answers.truncate(answers.len() - end.len());
            break;
        }
    }
    answers
}

/// Bytes on one line, CR LF as `^`.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\r\\n", "^").replace("\\'", "'").replace("\\\"", "\"")
}

/// Leaves out of an answer what is not compared.
fn masked(answer: &[u8], mask: Mask) -> Vec<u8> {
    let mut values = Vec::new();
    let mut rest = answer;
    while !rest.is_empty() {
        match Value::take(&mut rest) {
            Some(value) => values.push(value),
            // The mark of an end, or not RESP: it stays unchanged.
            None => {
                values.push(Value::Other(rest.to_vec()));
                rest = &[];
            }
        }
    }
    let mut out = Vec::new();
    for mut value in values {
        value.mask(mask);
        value.encode(&mut out);
    }
    out
}

/// One value of either version of RESP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    /// `+OK`, `-ERR`, `_`, and the mark of an end.
    Other(Vec<u8>),
    Integer(Vec<u8>),
    /// `$` or `=`, and the content.
    Bulk(u8, Vec<u8>),
    /// `*`, `%` or `~`, and the elements; a map's are keys and values in turn.
    Many(u8, Vec<Value>),
}

impl Value {
    fn take(rest: &mut &[u8]) -> Option<Value> {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let (line, behind) = (&rest[..end], &rest[end + 2..]);
        let number = || std::str::from_utf8(&line[1..]).ok()?.parse::<i64>().ok();
        match line.first()? {
            b':' => {
                *rest = behind;
                Some(Value::Integer(line[1..].to_vec()))
            }
            kind @ (b'$' | b'=') if number()? >= 0 => {
                let length = usize::try_from(number()?).ok()?;
                let content = behind.get(..length)?.to_vec();
                *rest = behind.get(length + 2..)?;
                Some(Value::Bulk(*kind, content))
            }
            kind @ (b'*' | b'%' | b'~') if number()? >= 0 => {
                let length = usize::try_from(number()?).ok()? * if *kind == b'%' { 2 } else { 1 };
                *rest = behind;
                let elements = (0..length).map(|_| Value::take(rest)).collect::<Option<Vec<_>>>()?;
                Some(Value::Many(*kind, elements))
            }
            _ => {
                *rest = behind;
                Some(Value::Other([line, b"\r\n"].concat()))
            }
        }
    }

    fn mask(&mut self, mask: Mask) {
        match (self, mask) {
            (Value::Many(_, elements), Mask::Fields(names)) => {
                for at in 1..elements.len() {
                    let is_named = |name: &&str| matches!(&elements[at - 1], Value::Bulk(_, text) if text == name.as_bytes());
                    if names.iter().any(is_named) {
                        elements[at].hide();
                    }
                }
                elements.iter_mut().for_each(|element| element.mask(mask));
            }
            (Value::Many(_, elements), Mask::PairOrder) => {
                let mut pairs: Vec<Vec<Value>> = elements.chunks(2).map(<[Value]>::to_vec).collect();
                pairs.sort();
                *elements = pairs.concat();
            }
            (Value::Many(_, elements), Mask::All) => elements.clear(),
            (value @ (Value::Integer(_) | Value::Bulk(..)), Mask::All) => value.hide(),
            (Value::Many(_, elements), Mask::Integers | Mask::Tens | Mask::TextsBut(_)) => {
                elements.iter_mut().for_each(|element| element.mask(mask));
            }
            (value @ Value::Integer(_), Mask::Integers) => value.hide(),
            (Value::Integer(digits), Mask::Tens) => {
                let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok());
                if let Some(number @ 20..1000) = number {
                    *digits = number.next_multiple_of(10).to_string().into_bytes();
                }
            }
            (Value::Bulk(_, text), Mask::TextsBut(names)) => {
                if !names.iter().any(|name| text == name.as_bytes()) {
                    *text = b"...".to_vec();
                }
            }
            (
                Value::Other(_) | Value::Integer(_) | Value::Bulk(..),
                Mask::Fields(_)
                | Mask::Integers
                | Mask::Tens
                | Mask::PairOrder
                | Mask::TextsBut(_)
                | Mask::All,
            ) => {}
        }
    }

    /// Keeps only the type of the value.
    fn hide(&mut self) {
        match self {
            Value::Other(bytes) => *bytes = b"<masked>\r\n".to_vec(),
            Value::Integer(digits) => *digits = b"<masked>".to_vec(),
            Value::Bulk(_, text) => *text = b"<a bulk string>".to_vec(),
            Value::Many(..) => {}
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Other(bytes) => out.extend_from_slice(bytes),
            Value::Integer(digits) => out.extend_from_slice(&[b":", &digits[..], b"\r\n"].concat()),
            Value::Bulk(kind, text) => {
                out.extend_from_slice(format!("{}{}\r\n", char::from(*kind), text.len()).as_bytes());
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            Value::Many(kind, elements) => {
                let length = elements.len() / if *kind == b'%' { 2 } else { 1 };
                out.extend_from_slice(format!("{}{length}\r\n", char::from(*kind)).as_bytes());
                elements.iter().for_each(|element| element.encode(out));
            }
        }
    }
}

fn scripts() -> Vec<Script> {
    let mut scripts = Vec::new();
    scripts.extend(data());
    scripts.extend(transactions());
    scripts.extend(lua());
    scripts.extend(objects());
    scripts.extend(transfers_and_diagnoses());
    scripts.extend(connection());
    scripts.extend(framing());
    scripts.extend(unknown());
    scripts.extend(arities());
    scripts.extend(introspection());
    scripts.extend(users());
    scripts
}

#[expect(clippy::too_many_lines, reason = "a list of scripts")]
fn lua() -> Vec<Script> {
    let all = [
        "EVAL \"return 1\" 0",
        "EVAL \"return 3.99\" 0",
        "EVAL \"return true\" 0",
        "EVAL \"return false\" 0",
        "EVAL \"return nil\" 0",
        "EVAL \"return 'a'\" 0",
        "EVAL \"return {1,2,nil,4}\" 0",
        "EVAL \"return {1,{2,{3}}}\" 0",
        "EVAL \"return {ok='fine'}\" 0",
        "EVAL \"return {err='x'}\" 0",
        "EVAL \"return -0.5\" 0",
        "EVAL \"return 1e300\" 0",
        "EVAL \"return {double=3.5}\" 0",
        "EVAL \"return {map={a=1}}\" 0",
        "EVAL \"return {set={a=true}}\" 0",
        "EVAL \"return {big_number='1234'}\" 0",
        "EVAL \"return {verbatim_string={format='txt',string='hi'}}\" 0",
        "EVAL \"return function() end\" 0",
        "EVAL \"return redis.error_reply('x')\" 0",
        "EVAL \"return redis.error_reply('MY x')\" 0",
        "EVAL \"return redis.error_reply()\" 0",
        "EVAL \"return redis.status_reply('x')\" 0",
        "EVAL \"return redis.status_reply(1)\" 0",
        "EVAL \"return redis.sha1hex('')\" 0",
        "EVAL \"return redis.call('SET','a','1')\" 0",
        "EVAL \"return redis.call('GET','nokey')\" 0",
        "EVAL \"redis.setresp(3) return redis.call('GET','nokey')\" 0",
        "EVAL \"redis.setresp(3) local x = redis.call('get','nokey') return tostring(x)\" 0",
        "EVAL \"local x = redis.call('get','nokey') return tostring(x)\" 0",
        "EVAL \"return redis.call('GET')\" 0",
        "EVAL \"return redis.call('NOSUCH')\" 0",
        "EVAL \"return redis.pcall('NOSUCH')\" 0",
        "EVAL \"return redis.call()\" 0",
        "EVAL \"return redis.call({})\" 0",
        "EVAL \"return redis.call('get',nil)\" 0",
        "EVAL \"return redis.call('set','k',123456789012)..''\" 0",
        "EVAL \"redis.call('set','k',123456789012) return redis.call('get','k')\" 0",
        "EVAL \"redis.call('set','k',1.5) return redis.call('get','k')\" 0",
        "EVAL \"redis.call('set','k',1e20) return redis.call('get','k')\" 0",
        "EVAL \"return redis.call('MULTI')\" 0",
        "EVAL \"return redis.call('WATCH','a')\" 0",
        "EVAL \"return redis.call('EVAL','return 1','0')\" 0",
        "EVAL \"return redis.call('SUBSCRIBE','x')\" 0",
        "EVAL \"return redis.call('config','get','x')\" 0",
        "EVAL \"return redis.call('client','id')\" 0",
        "EVAL \"error('boom')\" 0",
        "EVAL \"error({err='ERR tab'})\" 0",
        "EVAL \"error({err='x'})\" 0",
        "EVAL \"error()\" 0",
        "EVAL \"error('x',0)\" 0",
        "EVAL \"return error('x')\" 0",
        "EVAL \"assert(false)\" 0",
        "EVAL \"assert(false,'msg')\" 0",
        "EVAL \"return xx\" 0",
        "EVAL \"x=1\" 0",
        "EVAL \"return )\" 0",
        "EVAL \"string.x=1\" 0",
        "EVAL \"_G.x=1\" 0",
        "EVAL \"redis.call=1\" 0",
        "EVAL \"setmetatable(_G,{})\" 0",
        "EVAL \"rawset(_G,'x',1)\" 0",
        "EVAL \"print(1)\" 0",
        "EVAL \"local function f() return f() + 1 end return f()\" 0",
        "EVAL \"redis.log(redis.LOG_NOTICE,'x')\" 0",
        "EVAL \"redis.log(1)\" 0",
        "EVAL \"redis.log('a','b')\" 0",
        "EVAL \"return redis.replicate_commands()\" 0",
        "EVAL \"return redis.set_repl(redis.REPL_ALL)\" 0",
        "EVAL \"redis.set_repl()\" 0",
        "EVAL \"redis.set_repl(9)\" 0",
        "EVAL \"redis.setresp(4)\" 0",
        "EVAL \"redis.setresp()\" 0",
        "EVAL \"redis.sha1hex()\" 0",
        "EVAL \"redis.breakpoint()\" 0",
        "EVAL \"return redis.acl_check_cmd('get','k')\" 0",
        "EVAL \"return redis.acl_check_cmd('nosuch')\" 0",
        "EVAL \"return redis.call('echo','x')\" 0",
        "EVAL \"return redis.call('ping')\" 0",
        "EVAL \"return redis.call('select',0)\" 0",
        "EVAL \"return redis.call('select',7)\" 0",
        "EVAL \"local e=redis.pcall('nosuch') return {type(e),e.err,tostring(e.ok)}\" 0",
        "EVAL \"local ok,e=pcall(redis.call,'nosuch') return {tostring(ok),type(e),e.err}\" 0",
        "EVAL \"local ok,e=pcall(error,'e') return e\" 0",
        "EVAL \"return loadstring('return 1')()\" 0",
        "EVAL \"return load('return 1')\" 0",
        "EVAL \"return unpack({1,2})\" 0",
        "EVAL \"return coroutine.wrap(function() coroutine.yield(7) end)()\" 0",
        "EVAL \"return type(redis.call('set','a','1'))..redis.call('set','a','1').ok\" 0",
        "EVAL \"return cjson.encode({1,2,'x',{a=true}})\" 0",
        "EVAL \"return cjson.decode('[1,[2,3]]')[2]\" 0",
        "EVAL \"return cjson.encode({1.5,-0.1,1e20})\" 0",
        "EVAL \"return cjson.encode('a/b')\" 0",
        "EVAL \"local t = cjson.decode('[1,') return t\" 0",
        "EVAL \"local t = cjson.encode(function() end) return t\" 0",
        "EVAL \"return {bit.band(255,15),bit.bor(1,2,4),bit.bxor(5,1),bit.lshift(1,4),bit.bnot(0),bit.arshift(-16,2),bit.rol(1,31)}\" 0",
        "EVAL \"return bit.tohex(255,4)\" 0",
        "EVAL \"return {string.find('hello','(l)(l)')}\" 0",
        "EVAL \"return {string.gsub('hello world','(%w+) (%w+)','%2 %1')}\" 0",
        "EVAL \"return string.format('%5.2f|%s|%d',1.234,'x',7)\" 0",
        "EVAL \"local a = string.find('x','[a') return a\" 0",
        "EVAL \"return {string.gsub('abc','','-')}\" 0",
        "EVAL \"return string.rep('ab',3)\" 0",
        "EVAL \"return ('x'):upper()\" 0",
        "EVAL \"return #KEYS\" 0",
        "EVAL \"return tostring(ARGV[1])\" 0",
        "EVAL \"math.randomseed(7) return {math.random(1000000),math.random(1000000)}\" 0",
        "EVAL \"return {math.floor(3.7),math.max(1,5,3),math.fmod(7,3)}\" 0",
        "EVAL \"local t={3,1,2} table.sort(t) return t\" 0",
        "EVAL \"return table.concat({1,2,3},',')\" 0",
        "EVAL \"local t={1,2} table.insert(t,1,9) return t\" 0",
        "EVAL \"return redis.call('set','a','b','c')\" 0",
        "EVAL \"return redis.call('expire','a','x')\" 0",
        "EVAL \"redis.call('set','lst','abc') redis.call('incr','lst')\" 0",
        "EVAL \"return redis.pcall('set','a','b','c')\" 0",
        "EVAL \"local t = {} t.err = 'x' t[1]=1 return t\" 0",
        "EVAL \"return collectgarbage('count') > 0\" 0",
        "EVAL \"return redis.call('set','a','1','GET')\" 0",
        "EVAL \"return {KEYS[1],KEYS[2],ARGV[1],#ARGV}\" 2 k1 k2 a1 a2",
        "EVAL \"redis.call('SET',KEYS[1],ARGV[1]) return redis.call('INCRBY',KEYS[1],5)\" 1 n 10\nGET n",
        "EVAL \"return redis.call('SET','undeclared','v')\" 0\nGET undeclared",
        "EVAL \"return 1\" x\nEVAL \"return 1\" -1\nEVAL \"return 1\" 2 a\nEVAL \"return 1\"\nEVAL",
        "EVAL_RO \"return redis.call('set','a',1)\" 0\nEVAL_RO \"return redis.call('get','nokey')\" 0\nEVAL_RO \"return redis.pcall('del','a')\" 0",
        "EVALSHA ffff 0\nEVALSHA abcdefabcdefabcdefabcdefabcdefabcdefabcd 0\nEVALSHA_RO ffff 0",
        "SCRIPT FLUSH\nSCRIPT LOAD \"return )\"\nSCRIPT LOAD \"return 77\"\nEVALSHA 2f769f654f08d29e246d971112563bd01abfe584 0\nSCRIPT EXISTS a e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
        "EVAL \"return 1\" 0\nSCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db\nEVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0\nEVALSHA E0E1F9FABFC9D4800C877A703B823AC0578FF8DB 0\nSCRIPT FLUSH\nEVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0",
        "SCRIPT FLUSH x\nSCRIPT FLUSH async\nSCRIPT FLUSH SYNC\nSCRIPT nosuch\nSCRIPT\nSCRIPT KILL\nSCRIPT EXISTS\nSCRIPT LOAD\nSCRIPT KILL x",
        "EVAL \"#!lua\\nreturn 1\" 0\nEVAL \"#!lua flags=no-writes\\nreturn redis.call('set','a',1)\" 0\nEVAL \"#!lua flags=nosuch\\nreturn 1\" 0\nEVAL \"#!py\\nreturn 1\" 0\nEVAL \"#!lua name=x\\nreturn 1\" 0\nEVAL \"#!lua flags=allow-stale,no-writes\\nreturn 1\" 0\nEVAL \"#!lua\" 0",
        "HELLO 3\nEVAL \"return {true,false,1,'x'}\" 0\nEVAL \"return {double=3.5}\" 0\nEVAL \"return {map={a=1}}\" 0\nEVAL \"return {set={a=true}}\" 0\nEVAL \"return {big_number='12'}\" 0\nEVAL \"return {verbatim_string={format='txt',string='hi'}}\" 0\nEVAL \"redis.setresp(3) return {true,false}\" 0\nEVAL \"return nil\" 0",
        "EVAL \"redis.setresp(3) return {true,false}\" 0",
        "MULTI\nEVAL \"return redis.call('SET','a','1')\" 0\nEVAL \"return redis.call('INCR','a')\" 0\nEVALSHA ffff 0\nGET a\nEXEC\nGET a",
        "MULTI\nEVAL \"error('x')\" 0\nSET b 1\nEXEC\nGET b",
        "COMMAND INFO evalsha evalsha_ro time",
        "COMMAND GETKEYS eval x 2 a b c\nCOMMAND GETKEYS eval x 5 a\nCOMMAND GETKEYS eval x 0\nCOMMAND GETKEYSANDFLAGS evalsha_ro x 1 a\nCOMMAND GETKEYS script load x",
        "EVAL \"redis.call('SET','k','v') error('x')\" 0\nEXISTS k",
        "EVAL \"return redis.call('DBSIZE')\" 0",
        "EVAL \"return cmsgpack.pack(1)\" 0",
        "SCRIPT DEBUG x",
        "TIME x\nEVAL \"return #redis.call('TIME')\" 0",
        "EVAL \"redis.call('SET','x','abc')\\nredis.call('INCR','x')\" 0",
    ];
    let masked = |lines: &str| {
        let script = Script::quoted(lines);
        if lines.starts_with("HELLO") {
            script.mask(HELLO)
        } else {
            script
        }
    };
    all.into_iter().map(masked).collect()
}

/// What is told of keys without their values.
fn objects() -> Vec<Script> {
    let values = [
        "0",
        "-1",
        "007",
        "+7",
        "-0",
        "1.0",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "12345678901234567890",
        "123456789012345678901",
        &"e".repeat(44),
        &"r".repeat(45),
        "\"\"",
    ];
    let set = |value| {
        format!("SET k {value}\nOBJECT ENCODING k\nMSET a {value}\nGETSET a {value}\nOBJECT encoding a")
    };
    let all = [
        "OBJECT ENCODING k\nOBJECT REFCOUNT k\nOBJECT IDLETIME k\nOBJECT FREQ k\nMEMORY USAGE k\nHELLO 3\nOBJECT ENCODING k",
        "INCR k\nOBJECT ENCODING k\nAPPEND a 12\nOBJECT ENCODING a\nAPPEND l v\nOBJECT ENCODING l\nCOPY k b\nOBJECT ENCODING b",
        "SET k v\nOBJECT REFCOUNT k\nOBJECT FREQ k\nSET k 10000\nOBJECT REFCOUNT k",
        "SET k v EX 100\nOBJECT ENCODING k\nEXPIRE k -1\nOBJECT ENCODING k\nMEMORY USAGE k",
        "OBJECT\nOBJECT ENCODING\nOBJECT ENCODING a b\nOBJECT NOSUCH k\nOBJECT FREQ\nOBJECT HELP x",
        "MEMORY\nMEMORY USAGE\nMEMORY NOSUCH\nMEMORY HELP x",
        "SET k v\nMEMORY USAGE k SAMPLES\nMEMORY USAGE k SAMPLES -1\nMEMORY USAGE k SAMPLES x\nMEMORY USAGE k FOO 5",
        "MEMORY USAGE nosuch FOO\nMEMORY USAGE nosuch samples 5 SAMPLES 0",
        "MULTI\nSET k 5\nOBJECT ENCODING k\nSET k v\nOBJECT ENCODING k\nOBJECT ENCODING b\nEXEC",
        "SET k v\nEVAL return{redis.call('OBJECT','ENCODING',KEYS[1]),redis.call('OBJECT','REFCOUNT',KEYS[1])} 1 k",
        "COMMAND INFO object|encoding object|freq object|idletime object|refcount object|help memory|usage memory|help",
        "COMMAND GETKEYS OBJECT ENCODING k\nCOMMAND GETKEYS MEMORY USAGE k SAMPLES 5\nCOMMAND GETKEYS OBJECT HELP",
        "COMMAND GETKEYSANDFLAGS OBJECT FREQ k\nCOMMAND GETKEYSANDFLAGS MEMORY USAGE k\nCOMMAND GETKEYS OBJECT ENCODING",
    ];
    let masked = |lines: &str| Script::of(lines).mask(HELLO);
    values.into_iter().map(|value| Script::of(&set(value))).chain(all.into_iter().map(masked)).collect()
}

fn transfers_and_diagnoses() -> Vec<Script> {
    let all = [
        "RENAME k l\nSET k v EX 100\nRENAME k l\nGET l\nTTL l\nEXISTS k\nRENAME l l\nRENAMENX l l\nRENAMENX k a",
        "SET k v\nSET l w\nRENAMENX k l\nRENAME k l\nGET l\nMGET k l\nRENAME k",
        "COPY k l\nCOPY k k\nSET k v PX 100000\nCOPY k l\nGET l\nTTL l\nCOPY k l\nSET k w\nCOPY k l REPLACE\nMGET k l\nTTL l",
        "SET k v\nCOPY k l DB 0\nCOPY k a DB x\nCOPY k a DB 99\nCOPY k a DB\nCOPY k a FOO\nCOPY k a DB 0 REPLACE\nCOPY k",
        "SET k v\nMOVE k 0\nMOVE k 99\nMOVE k x\nMOVE b 0\nMOVE k",
        "MULTI\nSET k v\nRENAME k l\nCOPY l a\nRENAMENX a l\nRENAME b c\nMGET k l a\nEXEC\nMGET k l a",
        "WAIT x 0\nWAIT 0 x\nWAIT 0 -1\nWAIT 0",
        "SLOWLOG LEN\nSLOWLOG RESET\nSLOWLOG GET\nSLOWLOG GET 3\nSLOWLOG GET x\nSLOWLOG GET -2\nSLOWLOG\nSLOWLOG nosuch\nSLOWLOG LEN x",
        "LATENCY LATEST\nLATENCY HISTORY x\nLATENCY RESET\nLATENCY RESET x\nLATENCY",
        "COMMAND INFO rename renamenx copy move wait",
        "COMMAND GETKEYSANDFLAGS rename a b\nCOMMAND GETKEYS copy a b REPLACE\nCOMMAND GETKEYSANDFLAGS renamenx a b",
    ];
    all.map(Script::of).into()
}

fn transactions() -> Vec<Script> {
    let all = [
        "MULTI\nEXEC",
        "MULTI\nSET k v\nGET k\nDEL k\nEXEC\nGET k",
        "HELLO 3\nMULTI\nSET k v\nGET x\nMGET k x\nEXISTS k x\nSTRLEN k\nTTL k\nTYPE k\nEXEC",
        "MULTI\nINCR n\nINCRBY n 5\nDECR n\nAPPEND n x\nINCR n\nGETRANGE n 0 0\nGETDEL n\nGET n\nEXEC\nGET n",
        "SET k v\nMULTI\nSETNX k w\nSET k w NX\nSET k w XX GET\nSETRANGE k 2 zz\nGETSET k y\nMSETNX a 1 k 2\nMSETNX a 1 b 2\nEXEC",
        "MULTI\nSET k v PX 100000\nPERSIST k\nTTL k\nPEXPIRE k 200000\nGETEX k PERSIST\nTTL k\nEXEC\nTTL k",
        "MULTI\nSET k v EX 100\nSET l w\nDEL k\nEXPIRE l -1\nEXEC\nEXISTS k l",
        "MULTI\nMSET a 1 b 2 a 3\nUNLINK b c\nTOUCH a b\nEXEC\nMGET a b",
        "MULTI\nSET k v\nDISCARD\nGET k\nEXEC\nDISCARD",
        "EXEC\nDISCARD\nUNWATCH\nEXEC x\nMULTI x\nWATCH\nUNWATCH x",
        "MULTI\nMULTI\nWATCH k\nSET k v\nEXEC",
        "MULTI\nSET k v\nGET\nSET k w\nEXEC\nGET k",
        "MULTI\nNONSENSE\nPING\nEXEC\nPING",
        "MULTI\nSET k v BAD\nSET k v EX 0\nINCRBY k x\nMSET a\nEXEC",
        "MULTI\nPING\nPING x\nECHO y\nCLIENT GETNAME\nUNWATCH\nEXEC",
        "MULTI\nSET k v\nEXEC x\nEXEC\nGET k",
        "WATCH\nMULTI\nEXEC",
        "WATCH k\nMULTI\nSET k v\nEXEC\nGET k",
        "WATCH k\nSET k w\nMULTI\nSET k v\nEXEC\nGET k",
        "HELLO 3\nWATCH k l\nSET l w\nMULTI\nSET k v\nEXEC\nMULTI\nGET l\nEXEC",
        "SET k v\nWATCH k\nSET k v\nMULTI\nPING\nEXEC",
        "SET k v\nWATCH k\nUNWATCH\nSET k w\nMULTI\nGET k\nEXEC",
        "SET k v\nWATCH k\nMULTI\nDISCARD\nSET k w\nMULTI\nGET k\nEXEC",
        "SET k v\nWATCH k\nEXPIRE k 100\nMULTI\nGET k\nEXEC",
        "SET k v\nWATCH k\nDEL k\nMULTI\nGET k\nEXEC",
        "SET k v\nWATCH k k\nGET k\nMULTI\nGET k\nEXEC",
        "WATCH k\nSET k v\nRESET\nMULTI\nGET k\nEXEC",
        "MULTI\nSET k v\nRESET\nEXEC\nGET k",
        "MULTI\nDBSIZE\nEXEC",
    ];
    let masked = |lines: &str| {
        let script = Script::of(lines);
        if lines.starts_with("HELLO") {
            script.mask(HELLO)
        } else {
            script
        }
    };
    let mut all: Vec<Script> = all.into_iter().map(masked).collect();
    all.push(Script::of("MULTI\nSET k v\nQUIT").closes());
    all
}

#[expect(clippy::too_many_lines, reason = "a list of scripts")]
fn data() -> Vec<Script> {
    let mut all: Vec<Script> = [
        "PING",
        "PING hello",
        "PING \"\"",
        "ping",
        "PiNg x",
        "ECHO hello",
        "ECHO \"\"",
        "GET k",
        "SET k v\nGET k\nSET k w\nGET k",
        "SET k \"\"\nGET k\nEXISTS k",
        "SET \"\" v\nGET \"\"\nDEL \"\"",
        "set k v\nget k\ngEt k\ndel k\nget k",
        "SET k NOT_FOUND\nGET k",
        "DEL k",
        "SET k v\nDEL k\nDEL k\nGET k",
        "SET a 1\nSET b 2\nDEL a b a c\nEXISTS a b",
        "SET a 1\nUNLINK a b\nUNLINK a",
        "SET a 1\nEXISTS a\nEXISTS b\nEXISTS a a a b",
        "SET a 1\nTOUCH a\nTOUCH b\nTOUCH a a a b",
        "SET a 1\nTYPE a\nTYPE b",
        "SET k a\nAPPEND k b\nOBJECT ENCODING k\nSETRANGE l 0 7\nOBJECT ENCODING l",
        "SET k 7\nOBJECT REFCOUNT k",
        "SET k v\nOBJECT IDLETIME k",
        "SET k v\nMEMORY USAGE k\nMEMORY USAGE k SAMPLES 0",
        "MEMORY PURGE",
        "SET k v IFEQ w",
        "DELEX k",
        "DELIFEQ k v",
        "DSM.GETV k",
        "DSM.SETV k v 1.1",
        "DSM.DELV k 1.1",
        "SET a \"\"\nSTRLEN a\nSTRLEN b\nSET a 12345\nSTRLEN a",
        "GETRANGE k 0 -1\nSUBSTR k 0 0",
        "GETRANGE k 0 x\nGETRANGE k x 0\nSUBSTR k 1.0 2\nGETRANGE k 0 9223372036854775808",
        "SET k v\nGETRANGE k -9223372036854775808 9223372036854775807\nGETRANGE k 9223372036854775807 \
         -9223372036854775808",
        "READONLY",
        "READWRITE",
        "MSET a 1 b 2\nMGET a b c a\nMGET c",
        "MSET a 1 a 2 a 3\nGET a\nDBSIZE",
        "SCAN 0\nSET k v\nSCAN 0\nSCAN 0 MATCH k*\nSCAN 0 MATCH x*\nSCAN 0 COUNT 100 MATCH [a-k]\nSCAN \"\"",
        "SET k v\nSCAN 0 TYPE string\nSCAN 0 type STRING\nSCAN 0 TYPE list\nSCAN 0 TYPE none",
        "SET a 1\nSET b 2\nHELLO 3\nSCAN 0 MATCH a COUNT 100\nSCAN 0 MATCH * COUNT 100 MATCH b\nKEYS a\nKEYS c",
        "SCAN x\nSCAN 0x\nSCAN 18446744073709551616\nSCAN 0 COUNT 0\nSCAN 0 COUNT -1\nSCAN 0 COUNT x\nSCAN 0 COUNT",
        "SCAN 0 MATCH\nSCAN 0 TYPE\nSCAN 0 FOO\nSCAN 0 FOO bar\nSCAN 0 MATCH a b",
        "SCAN 17\nSCAN 1",
        "KEYS *0123456789012345678901234567890123456789012345678901234567890123456789",
        "KEYS *\nSET k v\nKEYS *\nKEYS k\nKEYS ?\nKEYS [^k]\nKEYS \\k\nKEYS \"\"\nDEL k\nKEYS *",
        "SET \"\" v\nKEYS *\nKEYS \"\"\nSCAN 0\nRANDOMKEY\nDEL \"\"\nRANDOMKEY",
        "SET a 1\nSET b 2\nFLUSHALL\nDBSIZE\nFLUSHALL\nSET k v\nFLUSHALL ASYNC\nGET k\nSET k v\nFLUSHDB\nGET k\nFLUSHDB SYNC",
        "FLUSHALL x\nFLUSHALL ASYNC SYNC\nFLUSHDB x\nFLUSHDB a b c",
        "RANDOMKEY\nSET k v\nRANDOMKEY\nHELLO 3\nRANDOMKEY\nDEL k\nRANDOMKEY",
        "DBSIZE\nSET a 1\nDBSIZE\nMSET a 2 b 2\nDBSIZE\nDEL a\nDBSIZE",
        "SET a 1 b",
        "SET a 1 b 2",
        "SET a 1\nSET a 2 foo\nGET a",
        "SET k v EX 10\nGET k",
        "SET k v NX PXAT 9999999999999\nGET k",
        "SET k v nx\nGET k\nSET k w NX\nGET k\nSET k w nx nx",
        "SET k v xx\nGET k\nSET k v\nSET k w XX\nGET k",
        "SET k v GET\nGET k\nSET k w get\nGET k",
        "SET k v NX GET\nSET k w GET NX\nGET k\nSET a v XX GET\nGET a\nSET k x XX GET\nGET k",
        "SET k v NX XX\nSET k v XX NX\nSET k v KEEPTTL EX 10\nSET k v GET x\nSET k v NX 1\nGET k",
        "SET k v KEEPTTL\nGET k\nSET k w NX KEEPTTL\nSET k w keepttl XX\nGET k",
        "SETNX k v\nSETNX k w\nGET k\nDEL k\nSETNX k w\nGET k",
        "GETSET k v\nGETSET k w\nGET k\nGETSET k \"\"\nGET k",
        "GETDEL k\nSET k v\nGETDEL k\nGET k\nGETDEL k\nEXISTS k",
        "MSETNX a 1 b 2\nMGET a b\nMSETNX b 3 c 4\nMGET a b c\nMSETNX c 5 c 6\nGET c",
        "INCR k\nINCR k\nGET k\nDECR k\nINCRBY k 40\nDECRBY k 50\nGET k\nSTRLEN k",
        "SET k 9223372036854775807\nINCR k\nINCRBY k -1\nINCRBY k 2\nGET k",
        "SET k -9223372036854775808\nDECR k\nDECRBY k 1\nINCRBY k -1\nGET k",
        "INCRBY k 9223372036854775807\nDECRBY k 9223372036854775807\nDECRBY k -9223372036854775808\nGET k",
        "INCRBY k 9223372036854775808\nINCRBY k x\nINCRBY k 1.5\nDECRBY k \"\"\nINCRBY k 01\nGET k",
        "SET k v\nINCR k\nDECRBY k 2\nSET k 01\nINCR k\nSET k +1\nINCR k\nSET k \"\"\nINCR k\nSET k -0\nINCR k\nGET k",
        "APPEND k a\nAPPEND k bc\nGET k\nAPPEND k \"\"\nAPPEND a \"\"\nEXISTS a\nSTRLEN a",
        "SETRANGE k 0 ab\nSETRANGE k 1 XY\nGET k\nSETRANGE k 6 z\nGET k\nSETRANGE k 3 \"\"\nSETRANGE a 3 \"\"\nEXISTS a",
        "SETRANGE k -1 a\nSETRANGE k x a\nSETRANGE k 16777216 a\nSETRANGE k 9223372036854775807 ab\nEXISTS k",
        "SETRANGE k 16777215 a\nSTRLEN k\nAPPEND k b\nSTRLEN k\nGETRANGE k 16777214 -1",
        "SET k 1\nINCR k\nAPPEND k 0\nINCR k\nGETSET k 5\nDECR k\nSETRANGE k 1 9\nGETDEL k\nINCR k",
        "SET k v EX 100\nTTL k\nGET k\nPERSIST k\nTTL k\nPTTL k\nPERSIST k\nTTL a\nPTTL a\nPERSIST a",
        "SET k v EXAT 33177117420\nEXPIRETIME k\nPEXPIRETIME k\nSET k w KEEPTTL\nEXPIRETIME k\nSET k x\nEXPIRETIME k\nEXPIRETIME a",
        "SET k v PXAT 33177117420567\nEXPIRETIME k\nPEXPIRETIME k\nGETSET k w\nPEXPIRETIME k\nSET k v PXAT 33177117420567 GET",
        "SETEX k 100 v\nTTL k\nGET k\nPSETEX k 100000 w\nTTL k\nSETEX k 0 v\nSETEX k -1 v\nPSETEX k 0 v\nSETEX k x v\nGET k",
        "SETEX k 9223372036854775 v\nSETEX k 9223372036854775807 v\nPSETEX k 9223372036854775807 v\nEXISTS k",
        "SET k v EX 0\nSET k v PX -1\nSET k v EX x\nSET k v EX 1.5\nSET k v EXAT 0\nSET k v PXAT -5\nSET k v EX\nGET k",
        "SET k v EX 100 PX 100\nSET k v EX 100 KEEPTTL\nSET k v KEEPTTL PX 5\nSET k v EX 100 EX 200\nTTL k\nSET k v EX 10 PERSIST",
        "SET k v EX 9223372036854775807\nSET k v PX 9223372036854775807\nSET k v EXAT 9223372036854775807\nGET k",
        "SET k v EX 100 NX\nTTL k\nSET k w EX 200 NX\nTTL k\nSET k w XX EX 300\nTTL k\nSET k x GET EX 400\nTTL k",
        "SET k v EXAT 1\nGET k\nEXISTS k\nTTL k\nSTRLEN k\nTYPE k\nINCR k\nTTL k",
        "SET k v PXAT 1\nSET k w NX\nGET k\nSET a v PXAT 1\nSET a w XX\nGET a\nMGET k a",
        "SET k 5 EX 100\nINCR k\nTTL k\nAPPEND k 1\nTTL k\nSETRANGE k 0 9\nTTL k\nMSET k 1\nTTL k",
        "SET k v EX 100\nDEL k\nSET k w\nTTL k\nSET k v EX 100\nGETDEL k\nTTL k",
        "EXPIRE k 10\nSET k v\nEXPIRE k 100\nTTL k\nEXPIRE k 0\nEXISTS k\nSET k v\nEXPIRE k -1\nEXISTS k",
        "SET k v\nPEXPIRE k 100000\nTTL k\nPEXPIRE k -7\nGET k\nSET k v\nEXPIREAT k 33177117420\nEXPIRETIME k\nEXPIREAT k 1\nGET k",
        "SET k v\nPEXPIREAT k 33177117420567\nPEXPIRETIME k\nPEXPIREAT k 0\nGET k\nPEXPIREAT k 33177117420567",
        "SET k v\nEXPIRE k 100 XX\nEXPIRE k 100 NX\nEXPIRE k 200 NX\nTTL k\nEXPIRE k 50 GT\nTTL k\nEXPIRE k 150 GT\nTTL k",
        "SET k v\nEXPIRE k 100 GT\nTTL k\nEXPIRE k 100 LT\nTTL k\nEXPIRE k 150 LT\nEXPIRE k 50 lt\nTTL k\nEXPIRE k 60 xx gt\nTTL k",
        "SET k v\nEXPIRE k 100 NX XX\nEXPIRE k 100 GT LT\nEXPIRE k 100 NX GT\nEXPIRE k 100 XX GT GT\nEXPIRE k 1 foo\nEXPIRE k x NX\nEXPIRE k",
        "SET k v\nEXPIRE k x\nEXPIRE k 1.5\nEXPIRE k 9223372036854775807\nPEXPIRE k 9223372036854775807\nEXPIRE k -9223372036854775808",
        "SET k v\nEXPIREAT k 9223372036854775807\nTTL k\nPEXPIRE a x\nEXPIRE a 5 NX XX",
        "SET k v EX 100\nGETEX k\nTTL k\nGETEX k PERSIST\nTTL k\nGETEX k EX 100\nTTL k\nGETEX k PXAT 33177117420567\nPEXPIRETIME k",
        "GETEX k\nGETEX k EX 100\nSET k v\nGETEX k EX\nGETEX k EX 10 PX 10\nGETEX k PERSIST EX 10\nGETEX k KEEPTTL\nGETEX k NX",
        "SET k v\nGETEX k EX 0\nGETEX k EX -1\nGETEX k PX x\nGETEX k EXAT 1\nGET k\nGETEX k PERSIST PERSIST\nGETEX k EX 10 EX 20",
        "GETEX k EX 0",
        "TTL\nTTL k k\nEXPIRE\nPERSIST\nGETEX\nSETEX k 1\nPSETEX k\nPTTL\nEXPIRETIME\nPEXPIRETIME k 1\nEXPIREAT k\nPEXPIREAT",
        "LPUSH k v",
        "WATCH k",
        "PUBLISH x y",
        "KEYS *",
        "FLUSHALL",
        "WRITE k v\nREAD k",
        "READ",
        "FAILOVER x",
    ]
    .into_iter()
    .map(|lines| {
        let script = Script::of(lines);
        if lines.contains("TTL") {
            script.mask(Mask::Tens)
        } else if lines.contains("HELLO 3") {
            script.mask(HELLO)
        } else {
            script
        }
    })
    .collect();
    let binary: Vec<u8> = (0..=255).collect();
    let mut every_byte = encoded(&[b"SET", b"k", &binary]);
    every_byte.extend(encoded(&[b"GET", b"k"]));
    every_byte.extend(encoded(&[b"PING", &binary]));
    every_byte.extend(encoded(&[b"ECHO", &binary]));
    all.push(Script::raw("a value of every byte", every_byte));
    let mut ranges = Vec::new();
    for value in ["", "v", "abcde"] {
        ranges.extend(encoded(&[b"SET", b"k", value.as_bytes()]));
        for (first, last) in (-7..=7).flat_map(|first| (-7..=7).map(move |last| (first, last))) {
            ranges.extend(encoded(&[
                b"GETRANGE",
                b"k",
                first.to_string().as_bytes(),
                last.to_string().as_bytes(),
            ]));
        }
    }
    all.push(Script::raw("every range of short values", ranges));
    let mut nulls = encoded(&[b"HELLO", b"3"]);
    for request in
        [&[&b"GET"[..], b"k"][..], &[b"MGET", b"k", b"a"], &[b"SET", b"k", b"v"], &[b"MGET", b"k", b"a"]]
    {
        nulls.extend(encoded(request));
    }
    all.push(Script::raw("answers without a value in RESP3", nulls).mask(HELLO));
    all.push(Script::of("STATUS").mask(Mask::All));
    all.push(Script::raw("a key over 64 KiB", encoded(&[b"SET", &[b'k'; 65_537], b"v"])));
    all.push(Script::raw("a key of 64 KiB", encoded(&[b"GET", &[b'k'; 65_536]])));
    for (name, count) in [("65,536 keys", 65_536), ("65,537 keys", 65_537)] {
        let words: Vec<&[u8]> = [&b"MGET"[..]].into_iter().chain([&b"k"[..]].repeat(count)).collect();
        all.push(Script::raw(name, encoded(&words)));
    }
    let long = vec![b'v'; 100_000];
    let mut deep = Vec::new();
    for round in 0..200 {
        deep.extend(encoded(&[b"SET", b"k", &long[..round * 50]]));
        deep.extend(encoded(&[b"GET", b"k"]));
        deep.extend(encoded(&[b"MSET", b"a", b"1", b"b", &long[..round]]));
        deep.extend(encoded(&[b"MGET", b"b", b"a", b"c"]));
        deep.extend(encoded(&[b"DEL", b"k", b"a"]));
        deep.extend(encoded(&[b"EXISTS", b"k", b"a", b"b"]));
    }
    all.push(Script::raw("a pipeline of 1200 requests", deep));
    all
}

/// Facts of a server about itself, which must differ.
const HELLO: Mask = Mask::Fields(&["server", "version", "id", "role"]);

#[expect(clippy::too_many_lines, reason = "a list of scripts")]
fn connection() -> Vec<Script> {
    let mut all: Vec<Script> = [
        "SELECT 0",
        "SELECT 1",
        "SELECT 16",
        "SELECT -1",
        "SELECT 00",
        "SELECT +1",
        "SELECT x",
        "SELECT \"\"",
        "SELECT 1.0",
        "SELECT 2147483647",
        "SELECT 2147483648",
        "SELECT -2147483648",
        "SELECT -2147483649",
        "SELECT 9223372036854775807",
        "SELECT 9223372036854775808",
        "SELECT 99999999999999999999",
        "HELLO 1",
        "HELLO 4",
        "HELLO -3",
        "HELLO x",
        "HELLO \"\"",
        "HELLO 03",
        "HELLO 3.0",
        "HELLO 99999999999999999999",
        "HELLO 3 AUTH",
        "HELLO 3 AUTH default",
        "HELLO 3 AUTH nobody x",
        "HELLO 3 SETNAME",
        "HELLO 3 NOSUCHOPTION",
        "HELLO 3 SETNAME x y",
        "HELLO 3 SETNAME x SETNAME",
        "HELLO 3 AUTH nobody x SETNAME x\nCLIENT GETNAME\nGET k",
        "HELLO 9 SETNAME x\nCLIENT GETNAME\nGET k",
        "AUTH x",
        "AUTH default x",
        "AUTH default \"\"",
        "AUTH nobody x",
        "AUTH \"\" x",
        "AUTH a b c",
        "RESET",
        "CLIENT SETNAME x\nRESET\nCLIENT GETNAME",
        "CLIENT GETNAME",
        "CLIENT SETNAME x\nCLIENT GETNAME",
        "CLIENT SETNAME x\nCLIENT SETNAME y\nCLIENT GETNAME",
        "CLIENT SETNAME x\nCLIENT SETNAME \"\"\nCLIENT GETNAME",
        "client setname X\nclient getname",
        "CLIENT SETNAME !~\nCLIENT GETNAME",
        "CLIENT NO-EVICT on",
        "CLIENT NO-EVICT OFF",
        "CLIENT NO-EVICT maybe",
    ]
    .into_iter()
    .map(Script::of)
    .collect();
    for lines in [
        "HELLO",
        "HELLO 2",
        "HELLO 3",
        "hello 3",
        "HELLO 2\nHELLO 3\nHELLO\nGET k\nHELLO 2\nGET k",
        "HELLO 3 AUTH default x",
        "HELLO 3 AUTH default x SETNAME someone\nCLIENT GETNAME",
        "HELLO 3 setname x auth default y\nCLIENT GETNAME",
        "HELLO 3\nRESET\nGET k\nCLIENT GETNAME",
        "HELLO 3\nCLIENT GETNAME\nSELECT 0\nDBSIZE\nMGET k",
    ] {
        all.push(Script::of(lines).mask(HELLO));
    }
    all.push(Script::of("CLIENT ID").mask(Mask::Integers));
    for (what, name) in [
        ("a space", &b"a b"[..]),
        ("a line end", b"a\nb"),
        ("a zero", b"a\0b"),
        ("a delete", b"a\x7f"),
        ("a tab", b"\t"),
        ("UTF-8", "grün".as_bytes()),
        ("a high byte", b"\xff"),
    ] {
        let mut bytes = encoded(&[b"CLIENT", b"SETNAME", name]);
        bytes.extend(encoded(&[b"CLIENT", b"GETNAME"]));
        all.push(Script::raw(format!("a client's name with {what}"), bytes));
        all.push(Script::raw(
            format!("a client's name with {what} in HELLO"),
            encoded(&[b"HELLO", b"3", b"SETNAME", name]),
        ));
    }
    let long = vec![b'n'; 300];
    let mut bytes = encoded(&[b"CLIENT", b"SETNAME", &long]);
    bytes.extend(encoded(&[b"CLIENT", b"GETNAME"]));
    all.push(Script::raw("a client's name of 300 bytes", bytes));
    for lines in [
        "CLIENT SETINFO LIB-NAME x",
        "CLIENT SETINFO lib-ver 1.0",
        "CLIENT SETINFO LIB-NAME grün",
        "CLIENT SETINFO NOSUCH x",
        "CLIENT NO-TOUCH on",
        "CLIENT REPLY ON",
    ] {
        all.push(Script::of(lines));
    }
    for (name, lines) in [
        ("QUIT", "QUIT"),
        ("quit", "quit"),
        ("QUIT with arguments", "QUIT now please"),
        ("QUIT after others", "SET k v\nGET k\nQUIT"),
        ("requests after QUIT", "SET k v\nQUIT\nSET k w\nGET k"),
        ("QUIT in RESP3", "HELLO 3\nGET k\nQUIT"),
    ] {
        all.push(Script::of(lines).closes().mask(HELLO).named(name));
    }
    all
}

#[expect(clippy::too_many_lines, reason = "a list of scripts")]
fn framing() -> Vec<Script> {
    let mut all = Vec::new();
    // Inline requests and what is skipped.
    for text in [
        "PING\r\n",
        "PING\n",
        "ping hello\r\n",
        "  PING  \r\n",
        "\tPING\t\r\n",
        "PING\x0b\r\n",
        "\r\n",
        "\n",
        "   \r\n",
        "\r\n\r\nPING\r\n",
        "\r\nPING\n\nPING\r\n",
        "SET k v\r\nGET k\r\n",
        "SET k \"v w\"\r\nGET k\r\n",
        "SET k 'v w'\r\nGET k\r\n",
        "SET k \"\"\r\nGET k\r\n",
        "SET k ''\r\nGET k\r\n",
        "SET k \"\\n\\r\\t\\b\\a\\x41\\xfg\\\\\\\"\\q\"\r\nGET k\r\n",
        "SET k '\\n\\x41\\\\\\''\r\nGET k\r\n",
        "SET k v\"w\"\r\nGET k\r\n",
        "SET k 'v' \r\nGET k\r\n",
        "\"PING\"\r\n",
        "'PI'\r\n",
        "ECHO \"\\x00\\xff\"\r\n",
        "NOSUCH \"a b\" 'c'\r\n",
        "PING *1\r\n",
        "$4\r\n",
        ":1\r\n",
        "+OK\r\n",
        "-ERR\r\n",
        "PING\r\r\n",
        "PI\rNG\r\n",
        // Arrays.
        "*0\r\n",
        "*-1\r\n",
        "*-10\r\n",
        "*0\r\n*1\r\n$4\r\nPING\r\n",
        "*-1\r\n*0\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
        "*1\r\n$0\r\n\r\n",
        "*2\r\n$0\r\n\r\n$1\r\nx\r\n",
        "*2\r\n$4\r\nPING\r\n$0\r\n\r\n",
        "*1\r\n$4\r\nPINGxx",
        "*1\rx$4\r\nPING\r\n",
        "*1\r\n$4\rxPING\r\n",
    ] {
        all.push(Script::raw(shown(text.as_bytes()), text));
    }
    all.push(Script::raw("a zero in an inline request", "PING\0\r\n").redis_waits());
    all.push(Script::raw("a zero in place of a bulk string", "*1\r\n\0\r\n").redis_waits());
    all.push(Script::raw("1,048,577 words", "*1048577\r\n").redis_waits());
    let mut long = b"*9\r\n$4\r\nMSET\r\n".to_vec();
    let value = vec![b'v'; 16 << 20];
    for key in [&b"a"[..], b"b", b"c"] {
        long.extend([&b"$1\r\n"[..], key, b"\r\n$16777216\r\n", &value, b"\r\n"].concat());
    }
    long.extend(b"$1\r\nd\r\n$16777216\r\n");
    all.push(Script::raw("a request over 64 MiB", long).redis_waits());
    // What ends the connection.
    for text in [
        "*x\r\n",
        "*\r\n",
        "*+1\r\n",
        "* 1\r\n",
        "*1 \r\n",
        "*01\r\n",
        "*-0\r\n",
        "*1.0\r\n",
        "*-x\r\n",
        "*2147483648\r\n",
        "*99999999999\r\n",
        "*99999999999999999999999\r\n",
        "*9223372036854775807\r\n",
        "*-9223372036854775809\r\n",
        "*1\n$4\nPING\n\r\n",
        "*1\r\n!4\r\nPING\r\n",
        "*1\r\n\r\n",
        "*1\r\n*1\r\n$4\r\nPING\r\n",
        "*2\r\n$3\r\nGET\r\n*1\r\n$1\r\nk\r\n",
        "*2\r\n$3\r\nGET\r\n:1\r\n",
        "*2\r\n$3\r\nGET\r\n+k\r\n",
        "*1\r\n\n\r\n",
        "*1\r\n'\r\n",
        "*1\r\nPING\r\n",
        "*1\r\n$\r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n$-7\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$4x\r\nPING\r\n",
        "*1\r\n$ 4\r\nPING\r\n",
        "*1\r\n$04\r\nPING\r\n",
        "*1\r\n$+4\r\nPING\r\n",
        "*1\r\n$16777217\r\n",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777217\r\n",
        "*1\r\n$99999999999\r\n",
        "*1\r\n$99999999999999999999999\r\n",
        "SET k \"v\r\n",
        "SET k 'v\r\n",
        "SET k \"v\"w\r\n",
        "SET k 'v'w\r\n",
        "SET k \"v\\\"\r\n",
        "\"\r\n",
        "SET k v\r\nGET k\r\n*x\r\nGET k\r\n",
    ] {
        all.push(Script::raw(shown(text.as_bytes()), text).closes());
    }
    let mut high = b"*1\r\n".to_vec();
    high.extend(b"\xff4\r\n");
    all.push(Script::raw("a high byte in place of a bulk string", high).closes());
    // Of 64 KiB and one byte: more would be sent after the end of the connection.
    let line = "x".repeat(64 * 1024 + 1);
    all.push(Script::raw("an inline request that does not end", line.clone()).closes());
    all.push(Script::raw("a count that does not end", format!("*{line}")).closes());
    all.push(Script::raw("a length that does not end", format!("*1\r\n${line}")).closes());
    all
}

fn unknown() -> Vec<Script> {
    let mut all: Vec<Script> = [
        "nosuch",
        "NOSUCH a",
        "NoSuch a b c",
        "nosuch \"\"",
        "gett k",
        "get\x7f k",
        "GE",
        "client|id",
        "CLIENT nosuch",
        "CLIENT \"\"",
        "CONFIG nosuch",
        "COMMAND nosuch",
        "client NoSuch a b",
    ]
    .into_iter()
    .map(Script::of)
    .collect();
    let long = "n".repeat(200);
    for (what, words) in [
        ("a line end in the name", vec![&b"no\r\nsuch"[..]]),
        ("a line end at the end of the name", vec![b"nosuch\r\n"]),
        ("a line end in an argument", vec![b"nosuch", b"a\r\nb", b"c\n", b"\r"]),
        ("a zero in the name", vec![b"no\0such", b"a"]),
        ("a zero in an argument", vec![b"nosuch", b"a\0b", b"c"]),
        ("high bytes", vec![b"\xff\xfe", b"\x80\x81"]),
        ("control characters", vec![b"\x01\x02\x1b[31m", b"\x07\x08\t"]),
        ("quotes", vec![b"no'such", b"a'b", b"\"c\""]),
        ("a name of 200 bytes", vec![long.as_bytes(), b"a"]),
        ("an argument of 200 bytes", vec![b"nosuch", long.as_bytes(), b"a"]),
        (
            "arguments of 130 bytes in all",
            vec![b"nosuch", &long.as_bytes()[..60], &long.as_bytes()[..70], b"a"],
        ),
        ("a name with a zero after a command", vec![b"get\0", b"k"]),
        ("a subcommand with a line end", vec![b"CLIENT", b"no\r\nsuch"]),
        ("a subcommand with a zero", vec![b"CLIENT", b"no\0such"]),
        ("a subcommand of 200 bytes", vec![b"CLIENT", long.as_bytes()]),
        ("an option of HELLO with a line end", vec![b"HELLO", b"3", b"no\r\nsuch"]),
        ("an option of HELLO of 200 bytes", vec![b"HELLO", b"3", long.as_bytes()]),
        ("a type of CLIENT LIST with a line end", vec![b"CLIENT", b"LIST", b"TYPE", b"no\r\nsuch"]),
    ] {
        all.push(Script::raw(format!("unknown: {what}"), encoded(&words)));
    }
    let many: Vec<&[u8]> = [&b"nosuch"[..]].into_iter().chain([&b"argument"[..]; 50]).collect();
    all.push(Script::raw("unknown: 50 arguments", encoded(&many)));
    for first in ["POST", "post", "Host:", "host:"] {
        let text = format!("{first} / HTTP/1.1\r\nPING\r\n");
        all.push(Script::raw(format!("a browser's {first}"), text).closes());
    }
    all.push(Script::raw("a browser's GET", "GET / HTTP/1.1\r\n"));
    all
}

/// Every command with zero to six arguments, where that number is wrong for Redis; right numbers are in other scripts.
fn arities() -> Vec<Script> {
    let mut all = Vec::new();
    // Redis' arity: the number of words, at least that many if negative.
    for (name, arity) in [
        ("get", 2),
        ("set", -3),
        ("del", -2),
        ("unlink", -2),
        ("exists", -2),
        ("touch", -2),
        ("append", 3),
        ("decr", 2),
        ("decrby", 3),
        ("getdel", 2),
        ("getset", 3),
        ("incr", 2),
        ("incrby", 3),
        ("msetnx", -3),
        ("setnx", 3),
        ("setrange", 4),
        ("type", 2),
        ("strlen", 2),
        ("getrange", 4),
        ("substr", 4),
        ("readonly", 1),
        ("readwrite", 1),
        ("mget", -2),
        ("mset", -3),
        ("dbsize", 1),
        ("role", 1),
        ("echo", 2),
        ("select", 2),
        ("reset", 1),
        ("auth", -2),
        ("client", -2),
        ("config", -2),
        ("client getname", 2),
        ("client help", 2),
        ("client id", 2),
        ("client info", 2),
        ("client list", -2),
        ("client no-evict", 3),
        ("client reply", 3),
        ("client setname", 3),
        ("command count", 2),
        ("command help", 2),
        ("config get", -3),
        ("config help", 2),
        ("config resetstat", 2),
        ("config rewrite", 2),
        ("config set", -4),
    ] {
        let words = name.split(' ').count() as i32;
        for count in words..words + 7 {
            let wrong = if arity < 0 { count < -arity } else { count != arity };
            // A word after a container is a subcommand.
            let container = matches!(name, "client" | "config") && count > 1;
            if wrong && !container {
                let arguments = " x".repeat((count - words) as usize);
                all.push(Script::of(&format!("{name}{arguments}")));
            }
        }
    }
    all.extend(["PING a b", "PING a b c", "MSET a 1 b", "MSET a 1 b 2 c"].map(Script::of));
    all
}

/// What ACL says that does not depend on the users.
fn users() -> Vec<Script> {
    let lines = [
        "ACL HELP",
        "HELLO 3\nACL HELP",
        "ACL HELP x",
        "ACL GENPASS 0",
        "ACL GENPASS -1",
        "ACL GENPASS 4097",
        "ACL GENPASS x",
        "ACL genpass 1 2",
        "COMMAND INFO acl|genpass",
    ];
    lines.into_iter().map(|lines| Script::of(lines).mask(HELLO)).collect()
}

#[expect(clippy::too_many_lines, reason = "a list of scripts")]
fn introspection() -> Vec<Script> {
    let mut all = vec![Script::of("COMMAND COUNT").mask(Mask::Integers)];
    for lines in [
        "COMMAND INFO get",
        "COMMAND INFO GET nosuch",
        "COMMAND INFO set",
        "COMMAND INFO getex",
        "COMMAND INFO setex psetex expire pexpire expireat pexpireat persist",
        "COMMAND INFO ttl pttl expiretime pexpiretime",
        "COMMAND INFO mset del exists mget",
        "COMMAND INFO setnx getset getdel msetnx",
        "COMMAND INFO incr decr incrby decrby append setrange",
        "COMMAND INFO touch type strlen getrange substr readonly readwrite",
        "COMMAND INFO ping echo select dbsize",
        "COMMAND INFO client|id client|setname config|get",
        "COMMAND INFO nosuch",
        "COMMAND INFO role command|getkeys command|getkeysandflags",
        "COMMAND GETKEYS GET k",
        "COMMAND GETKEYS SET k v nosuch GET",
        "COMMAND GETKEYS mset a 1 b 2",
        "COMMAND GETKEYS MSET a 1 b",
        "COMMAND GETKEYS DEL a b a",
        "COMMAND GETKEYS PING x",
        "COMMAND GETKEYS CLIENT ID",
        "COMMAND GETKEYS CLIENT NOSUCH",
        "COMMAND GETKEYS nosuch x",
        "COMMAND GETKEYS GET a b",
        "COMMAND GETKEYS MSET a",
        "COMMAND GETKEYS GET",
        "COMMAND GETKEYSANDFLAGS MGET a b",
        "COMMAND GETKEYSANDFLAGS SET k v",
        "COMMAND GETKEYSANDFLAGS SET k v get",
        "COMMAND GETKEYSANDFLAGS INCR k",
        "HELLO 3\nCOMMAND GETKEYSANDFLAGS SET k v",
        "COMMAND DOCS nosuch",
        "COMMAND LIST FILTERBY PATTERN mge*",
        "COMMAND LIST FILTERBY NOSUCH x",
        "COMMAND LIST x",
        "CONFIG GET nosuch",
        "CONFIG GET maxmemory",
        "CONFIG GET MAXMEMORY",
        "CONFIG GET maxmemory-po*",
        "CONFIG GET appendonly",
        "CONFIG GET appendfsync",
        "CONFIG GET databases",
        "CONFIG GET maxclients",
        "CONFIG GET proto-max-bulk-le?",
        "CONFIG GET save",
        "CONFIG GET timeout",
        "CONFIG GET time[o]ut timeout",
        "HELLO 3\nCONFIG GET nosuch",
        "HELLO 3\nCONFIG GET timeout",
        "CONFIG REWRITE",
        "CONFIG SET timeout 0",
        "CONFIG RESETSTAT",
        "CLIENT LIST NOSUCH",
        "CLIENT LIST TYPE",
        "CLIENT LIST TYPE nosuch",
        "CLIENT LIST TYPE pubsub",
        "CLIENT LIST ID",
        "CLIENT LIST ID x",
        "CLIENT LIST ID 999999999",
        "INFO nosuch",
    ] {
        let mut script = Script::of(lines);
        if lines.starts_with("HELLO") {
            script = script.mask(HELLO);
        }
        all.push(script);
    }
    // The order depends on a hash.
    all.push(Script::of("CONFIG GET timeout save databases").mask(Mask::PairOrder));
    all.push(Script::of("CONFIG GET SAVE Save save").mask(Mask::PairOrder));
    all.push(Script::of(&format!("CONFIG GET{}", " timeout".repeat(257))).named("257 names in CONFIG GET"));
    for request in ["COMMAND INFO", "COMMAND DOCS"] {
        let script = Script::of(&format!("{request}{}", " get".repeat(257)));
        all.push(script.named(&format!("257 names in {request}")));
    }
    // Each server describes itself.
    for lines in [
        "INFO",
        "INFO server",
        "INFO replication clients",
        "COMMAND",
        "COMMAND INFO",
        "COMMAND DOCS",
        "COMMAND LIST",
        "COMMAND HELP",
        "CLIENT HELP",
        "CONFIG HELP",
        "CLIENT INFO",
        "CLIENT LIST",
        "CLIENT LIST TYPE normal",
        "ROLE",
    ] {
        all.push(Script::of(lines).mask(Mask::All));
        all.push(Script::of(&format!("HELLO 3\n{lines}")).mask(Mask::All));
    }
    // The fields of these answers, not their texts.
    let fields: &[&str] = &[
        "get",
        "mset",
        "ping",
        "summary",
        "since",
        "group",
        "complexity",
        "arguments",
        "name",
        "type",
        "flags",
        "key_spec_index",
        "token",
        "key",
        "string",
        "block",
        "key_value",
        "connection",
        "O(1)",
        "message",
    ];
    for lines in
        ["COMMAND DOCS get", "COMMAND DOCS ping", "COMMAND DOCS mset nosuch", "HELLO 3\nCOMMAND DOCS get"]
    {
        all.push(Script::of(lines).mask(HELLO).mask(Mask::TextsBut(fields)));
    }
    all
}
