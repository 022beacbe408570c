//! `dsm-log` as an operator runs it: the real binary on files in a temporary directory.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use dsm_protocol::ids::{ClusterId, Epoch, ReignId, Seq};
use dsm_protocol::record::{encode, encode_with, Operation, ReignMark, SyncMode, Trailer};
use rustix::fs::{flock, FlockOperation};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// The result of one run of the tool.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Directory(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn get(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_dsm-log"));
        tool.args(args);
        self.run_command(tool)
    }

    /// The same with a limit on file sizes, in blocks of 512 bytes. The output of `dsm-log` goes to a file if one is named.
    fn run_limited(&self, blocks: u32, args: &[&str], output: Option<&str>) -> Run {
        let mut shell = Command::new("sh");
        let output = output.map_or(String::new(), |name| format!(" >{name}"));
        shell.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\"{output}"));
        shell.arg(env!("CARGO_BIN_EXE_dsm-log")).args(args);
        self.run_command(shell)
    }

    fn run_command(&self, mut command: Command) -> Run {
        let output = command.current_dir(self.0.path()).output().unwrap();
        Run {
            code: output.status.code().unwrap_or_else(|| panic!("{command:?}: {}", output.status)),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn write(key: &[u8], value: &[u8]) -> Operation {
    Operation::Write(vec![(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))])
}

/// A log of eight lines, each synced before the next, and the offsets at which they begin.
fn log() -> (Vec<u8>, Vec<usize>) {
    let operations = [
        Operation::Cluster(ClusterId(0xabc)),
        Operation::Epoch { address: "127.0.0.1:12345".into(), mark: None },
        write(b"user1", b"Alice"),
        write(b"user 2", "Bj\u{f6}rn \"x\"\n".as_bytes()),
        write(b"\xff\0", b""),
        write(b"user1", b"Bob"),
        Operation::Delete(vec![Bytes::from("user 2")]),
        Operation::Synced,
    ];
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (index, operation) in operations.iter().enumerate() {
        starts.push(bytes.len());
        let (seq, synced) = if index == 7 { (7, 7) } else { (index as u64 + 1, index as u64) };
        encode(operation, Seq(seq), Epoch(1), Seq(synced), &mut bytes);
    }
    (bytes, starts)
}

/// The value after a name in the output of `check`.
fn shown<'a>(run: &'a Run, name: &str) -> &'a str {
    let line = run.stdout.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {}", run.stdout)).trim()
}

#[test]
fn check_counts_a_clean_log() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    dir.put("a.log", &bytes);
    let run = dir.run(&["check", "a.log"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(shown(&run, "cluster"), "0000000000000abc");
    assert_eq!(shown(&run, "good lines"), "8");
    assert_eq!(shown(&run, "records"), "7 (original program: 0)");
    assert_eq!(shown(&run, "last seq"), "7 (synced through 7)");
    assert_eq!(shown(&run, "keys"), "2");
    let line = |index: usize| starts[index + 1] - starts[index];
    let kept = line(0) + line(4) + line(5);
    assert_eq!(shown(&run, "superseded bytes"), (bytes.len() - kept).to_string());
    assert_eq!(shown(&run, "state"), "clean");
    assert!(!dir.path("a.log.lock").exists(), "check changes nothing");
}

#[test]
fn a_torn_tail_is_distinguished_from_corruption_by_place_and_exit_code() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    dir.put("torn.log", &bytes[..starts[7] + 5]);
    let torn = dir.run(&["check", "torn.log"]);
    assert_eq!(torn.code, 1, "{}", torn.stderr);
    assert_eq!(shown(&torn, "state"), format!("torn tail at byte {}: 5 bytes, 1 lines", starts[7]));

    let mut damaged = bytes.clone();
    damaged[starts[3] + 8] ^= 1;
    dir.put("damaged.log", &damaged);
    for command in ["check", "dump"] {
        let corrupt = dir.run(&[command, "damaged.log"]);
        assert_eq!(corrupt.code, 2);
        let place = format!("corrupt at byte {}, line 4: the checksum does not match", starts[3]);
        assert!(corrupt.stderr.contains(&place), "{}", corrupt.stderr);
        assert!(corrupt.stderr.contains("line 5 says that seq 4 had been synced"), "{}", corrupt.stderr);
        assert_eq!(corrupt.stderr.lines().count(), 1);
    }
    let missing = dir.run(&["check", "missing.log"]);
    assert_eq!((missing.code, missing.stderr.lines().count()), (2, 1), "{}", missing.stderr);
}

#[test]
fn the_boot_in_the_lock_file_decides_what_can_be_torn() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let mut garbled = bytes.clone();
    garbled[starts[7] + 3] ^= 1;
    dir.put("a.log", &garbled);
    assert_eq!(dir.run(&["check", "a.log"]).code, 1);
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    dir.put("a.log.lock", format!("pid=1\nlog_boot={boot}").as_bytes());
    assert_eq!(dir.run(&["check", "a.log"]).code, 2);
    assert_eq!(dir.run(&["check", "a.log", "--crash", "power"]).code, 1);
    dir.put("a.log.lock", b"log_boot=another\n");
    assert_eq!(dir.run(&["check", "a.log"]).code, 1);
    assert_eq!(dir.run(&["check", "a.log", "--crash", "process"]).code, 2);
}

#[test]
fn dump_prints_one_record_a_line() {
    let dir = Directory::new();
    let (mut bytes, starts) = log();
    let fields = [("client", &b"12"[..])];
    let trailer = Trailer { fields: &fields, ..Trailer::new(Seq(8), Epoch(1), Seq(7)) };
    encode_with(&write(b"k", b"v"), trailer, &mut bytes);
    dir.put("a.log", &bytes);
    let run = dir.run(&["dump", "a.log"]);
    let expected = r#"1 1 CLUSTER 0000000000000abc
2 1 EPOCH "127.0.0.1:12345"
3 1 WRITE "user1" "Alice"
4 1 WRITE "user 2" "Björn \"x\"\n"
5 1 WRITE "\xff\u{0}" ""
6 1 WRITE "user1" "Bob"
7 1 DELETE "user 2"
7 1 SYNCED 7
8 1 WRITE "k" "v"
"#;
    assert_eq!((run.code, run.stdout.as_str()), (0, expected));

    let run = dir.run(&["dump", "a.log", "--key", "user 2"]);
    assert_eq!(run.stdout, "4 1 WRITE \"user 2\" \"Björn \\\"x\\\"\\n\"\n7 1 DELETE \"user 2\"\n");

    let run = dir.run(&["dump", "a.log", "--json"]);
    let lines: Vec<_> = run.stdout.lines().collect();
    let (offset, length) = (starts[3], starts[4] - starts[3]);
    assert_eq!(
        lines[3],
        format!(
            r#"{{"offset":{offset},"bytes":{length},"seq":4,"epoch":1,"synced":3,"operation":"WRITE","pairs":[{{"key":"user 2","value":"Björn \"x\"\u000a"}}]}}"#
        )
    );
    assert!(lines[4].ends_with(r#""pairs":[{"key_hex":"ff00","value":""}]}"#), "{}", lines[4]);
    assert!(lines[6].ends_with(r#""operation":"DELETE","keys":[{"key":"user 2"}]}"#), "{}", lines[6]);
    assert!(lines[8].ends_with(r#""fields":{"client":"12"}}"#), "{}", lines[8]);
}

#[test]
fn repair_cuts_a_torn_tail_and_keeps_what_it_cut() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let cut_name = format!("a.log.cut-{}", starts[7]);
    dir.put("a.log", &bytes[..starts[7] + 5]);
    let run = dir.run(&["repair", "a.log"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(dir.get("a.log"), &bytes[..starts[7]]);
    assert_eq!(dir.get(&cut_name), b"SYNCE");
    assert_eq!(dir.run(&["check", "a.log"]).code, 0);

    // A second cut at the same place does not replace what the first one saved.
    dir.put("a.log", &bytes[..starts[7] + 2]);
    assert_eq!(dir.run(&["repair", "a.log"]).code, 0);
    assert_eq!((dir.get(&cut_name), dir.get(&format!("{cut_name}.2"))), (b"SYNCE".to_vec(), b"SY".to_vec()));

    let clean = dir.run(&["repair", "a.log"]);
    assert!(clean.code == 0 && clean.stdout.contains("nothing to repair"), "{}", clean.stdout);
}

#[test]
fn repair_keeps_every_line_that_checks_and_lists_what_is_lost() {
    let (bytes, starts) = log();
    let lines = |log: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(log).lines().map(|line| line.split(" ;").next().unwrap().to_owned()).collect()
    };
    for (damaged_line, start) in starts.iter().copied().enumerate().skip(1) {
        for at in [start, start + 8] {
            let dir = Directory::new();
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            dir.put("a.log", &damaged);
            let done = dir.run(&["repair", "--crash", "process", "a.log"]);
            assert_eq!(done.code, 0, "line {damaged_line}: {}", done.stderr);
            let repaired = dir.get("a.log");
            let is_mark = damaged_line == 7;
            // All lines but the damaged one, in their order. Marks are written again.
            let mut expected = lines(&bytes);
            if !is_mark {
                expected.remove(damaged_line);
            }
            assert_eq!(lines(&repaired), expected, "line {damaged_line}: {}", done.stdout);
            assert_eq!(dir.run(&["check", "a.log"]).code, 0, "{}", String::from_utf8_lossy(&repaired));
            if !is_mark {
                let told = format!("byte {start}, line {}", damaged_line + 1);
                assert!(done.stdout.contains(&told), "{}", done.stdout);
                assert!(
                    done.stdout.contains(&format!("seq {} is lost", damaged_line + 1)),
                    "{}",
                    done.stdout
                );
            }
            let kept: Vec<PathBuf> = fs::read_dir(dir.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.to_string_lossy().contains("a.log.damaged-"))
                .collect();
            assert_eq!(kept.len(), 1, "the damaged file stays");
            assert_eq!(fs::read(&kept[0]).unwrap(), damaged);
            assert!(!dir.path("a.log.repair").exists());
            assert_eq!(dir.run(&["repair", "a.log"]).stdout, "a.log is clean, nothing to repair\n");
        }
    }
}

#[test]
fn repair_that_cannot_name_the_damaged_log_leaves_it_where_it_is() {
    let dir = Directory::new();
    let (mut damaged, starts) = log();
    damaged[starts[3]] ^= 1;
    // The longest name for which the draft's name is allowed; that of the damaged log would be too long.
    let name = "a".repeat(248);
    dir.put(&name, &damaged);
    let refused = dir.run(&["repair", "--crash", "process", &name]);
    assert_eq!(refused.code, 2, "{}", refused.stdout);
    assert!(refused.stderr.contains("File name too long"), "{}", refused.stderr);
    assert_eq!(dir.get(&name), damaged);
    let mut left: Vec<_> =
        fs::read_dir(dir.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [name.clone(), format!("{name}.lock")].map(std::ffi::OsString::from));
}

#[test]
fn repair_follows_a_link_to_the_log_and_leaves_the_link() {
    let dir = Directory::new();
    let (mut damaged, starts) = log();
    damaged[starts[3]] ^= 1;
    fs::create_dir(dir.path("disk")).unwrap();
    dir.put("disk/real.log", &damaged);
    std::os::unix::fs::symlink("disk/real.log", dir.path("a.log")).unwrap();
    let done = dir.run(&["repair", "--crash", "process", "a.log"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(fs::symlink_metadata(dir.path("a.log")).unwrap().is_symlink());
    assert_eq!(dir.run(&["check", "disk/real.log"]).code, 0);
    let names = fs::read_dir(dir.path("disk")).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = names.filter(|path| path.to_string_lossy().contains("real.log.damaged-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(&kept[0]).unwrap(), damaged);
}

#[test]
fn repair_names_the_keys_of_a_damaged_line_and_saves_the_line_after_a_damaged_newline() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let mut damaged = bytes.clone();
    damaged[starts[4] - 1] = b'x';
    dir.put("a.log", &damaged);
    let done = dir.run(&["repair", "a.log"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("it is about \"user%202\""), "{}", done.stdout);
    let text = String::from_utf8_lossy(&dir.get("a.log")).into_owned();
    assert!(
        !text.contains("WRITE user%202") && text.contains("\nWRITE \u{fffd}%00 % ;5 1 3 After=3 lost=1 "),
        "{text}"
    );
    assert!(!done.stdout.contains("EPOCH line"), "{}", done.stdout);
    let mut damaged = bytes.clone();
    damaged[starts[1] + 2] ^= 1;
    dir.put("c.log", &damaged);
    let done = dir.run(&["repair", "c.log"]);
    assert!(done.stdout.contains("\nepoch 1 has lost its EPOCH line"), "{}", done.stdout);
    // An EPOCH line behind lost ones keeps its fields, each once.
    let mut two_reigns = bytes.clone();
    let mark = ReignMark { id: ReignId(9), fsync: SyncMode::Always, given_up: Vec::new() };
    let reign = Operation::Epoch { address: "h:1".to_owned(), mark: Some(mark) };
    encode(&write(b"last", b"x"), Seq(8), Epoch(1), Seq(7), &mut two_reigns);
    let lost_at = bytes.len() + 8;
    encode(&reign, Seq(9), Epoch(2), Seq(8), &mut two_reigns);
    two_reigns[lost_at] ^= 1;
    dir.put("d.log", &two_reigns);
    assert_eq!(dir.run(&["repair", "d.log"]).code, 0);
    let text = String::from_utf8_lossy(&dir.get("d.log")).into_owned();
    assert!(text.contains(" ;9 2 7 After=7 Reign=0000000000000009 Fsync=always lost=1 "), "{text}");
    // The id of the cluster is in the lock file, too.
    let mut damaged = bytes.clone();
    damaged[10] ^= 1;
    dir.put("b.log", &damaged);
    assert_eq!(dir.run(&["repair", "b.log"]).code, 2);
    assert_eq!(dir.get("b.log"), damaged);
    dir.put("b.log.lock", b"cluster=0000000000000abc\n");
    let done = dir.run(&["repair", "b.log"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(shown(&dir.run(&["check", "b.log"]), "cluster"), "0000000000000abc");
    assert_eq!(shown(&dir.run(&["check", "b.log"]), "keys"), "2");
}

#[test]
fn repair_keeps_the_good_line_after_a_hole_that_is_longer_than_a_line_may_be() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let hole = 300 << 20;
    dir.put("a.log", &bytes[..starts[3]]);
    let file = File::options().write(true).open(dir.path("a.log")).unwrap();
    let behind = starts[3] as u64 + hole;
    // Two lines of the log are lost, and no newline precedes the next one.
    file.write_all_at(&bytes[starts[5]..], behind).unwrap();
    let done = dir.run(&["repair", "--crash", "process", "a.log"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let place =
        format!("byte {}, line 4: {hole} bytes (1 lines) cannot be read: seqs 4 to 5 are lost", starts[3]);
    assert!(done.stdout.contains(&place), "{}", done.stdout);
    let text = String::from_utf8_lossy(&dir.get("a.log")).into_owned();
    assert!(text.contains("\nWRITE user1 Bob ;6 1 3 After=3 lost=2 "), "{text}");
    assert_eq!(shown(&dir.run(&["check", "a.log"]), "good lines"), "6");
    assert!(!done.stdout.contains("accept-loss"), "nothing is lost at the end: {}", done.stdout);
}

#[test]
fn repair_says_when_slaves_may_know_what_is_lost() {
    let (bytes, starts) = log();
    let mut longer = bytes.clone();
    let epoch = longer.len();
    encode(&Operation::Epoch { address: "b".into(), mark: None }, Seq(8), Epoch(2), Seq(7), &mut longer);
    let first_write = longer.len();
    for seq in 9..12 {
        encode(&write(b"k", b"v"), Seq(seq), Epoch(2), Seq(seq - 1), &mut longer);
    }
    let last = longer.len() - 20;
    for (place, is_said) in [(starts[3] + 8, false), (first_write + 8, false), (epoch + 8, true)] {
        let dir = Directory::new();
        let mut damaged = longer.clone();
        damaged[place] ^= 1;
        dir.put("a.log", &damaged);
        let done = dir.run(&["repair", "--crash", "process", "a.log"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(done.stdout.contains("`dsm-log accept-loss a.log`"), is_said, "{place}: {}", done.stdout);
    }
    // Two places: the second is the last line, after which no line proves the loss.
    let dir = Directory::new();
    let mut damaged = longer.clone();
    (damaged[starts[3] + 8], damaged[last]) = (damaged[starts[3] + 8] ^ 1, damaged[last] ^ 1);
    dir.put("a.log", &damaged);
    let done = dir.run(&["repair", "--crash", "process", "a.log"]);
    assert!(done.stdout.contains("`dsm-log accept-loss a.log`"), "{}", done.stdout);
    dir.put("a.log", &damaged);
    let cut = dir.run(&["repair", "--cut-at-corruption", "a.log"]);
    assert!(cut.stdout.contains("`dsm-log accept-loss a.log`"), "{}", cut.stdout);
    dir.put("a.log", &longer[..last]);
    let torn = dir.run(&["repair", "--crash", "process", "a.log"]);
    assert!(torn.stdout.starts_with("cut ") && !torn.stdout.contains("accept-loss"), "{}", torn.stdout);
}

#[test]
fn repair_of_a_file_that_is_no_log_or_of_a_newer_version_touches_nothing() {
    let dir = Directory::new();
    dir.put("passwd", b"root:x:0:0\n");
    assert_eq!(dir.run(&["repair", "passwd"]).code, 2);
    assert_eq!(dir.get("passwd"), b"root:x:0:0\n");
    let (mut newer, _) = log();
    let fields = [("Type", &b"x"[..])];
    let trailer = Trailer { fields: &fields, ..Trailer::new(Seq(8), Epoch(1), Seq(7)) };
    encode_with(&write(b"a", b"b"), trailer, &mut newer);
    dir.put("newer.log", &newer);
    let refused = dir.run(&["repair", "newer.log"]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("Type is not known"), "{}", refused.stderr);
    assert_eq!(dir.get("newer.log"), newer);
    let left = fs::read_dir(dir.0.path()).unwrap().count();
    assert_eq!(left, 4, "two logs and their lock files");
}

#[test]
fn repair_cuts_at_corruption_only_when_told() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let mut damaged = bytes.clone();
    damaged[starts[3] + 8] ^= 1;
    dir.put("a.log", &damaged);
    assert_eq!(dir.run(&["repair", "a.log", "--cut-at-corruption"]).code, 0);
    assert_eq!(dir.get("a.log"), &bytes[..starts[3]]);
    assert_eq!(dir.get(&format!("a.log.cut-{}", starts[3])), &damaged[starts[3]..]);

    dir.put("passwd", b"root:x:0:0\n");
    let refused = dir.run(&["repair", "passwd", "--cut-at-corruption"]);
    assert_eq!((refused.code, dir.get("passwd")), (2, b"root:x:0:0\n".to_vec()), "{}", refused.stderr);
}

#[test]
fn compact_leaves_the_latest_values_and_the_log_is_one_like_any_other() {
    let dir = Directory::new();
    let (log, _) = log();
    dir.put("kv.log", &log);
    let before = dir.run(&["dump", "kv.log", "--key", "user1"]);
    let run = dir.run(&["compact", "kv.log"]);
    assert_eq!((run.code, &run.stderr[..]), (0, ""), "{}", run.stdout);
    let after = dir.get("kv.log");
    let told = format!("compacted kv.log: {} bytes before, {} now, 2 keys\n", log.len(), after.len());
    assert_eq!(run.stdout, told);
    let lines = after.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned());
    let without_checksums: Vec<_> =
        lines.filter_map(|line| line.rsplit_once(' ').map(|(line, _)| line.to_owned())).collect();
    assert_eq!(
        without_checksums,
        [
            "CLUSTER 0000000000000abc % ;1 1 0",
            "EPOCH 1 127.0.0.1:12345 ;2 1 1",
            "WRITE \u{fffd}%00 % ;5 1 1 After=2",
            "WRITE user1 Bob ;6 1 1",
            "SYNCED % % ;7 1 1 After=6",
            "SYNCED % % ;7 1 7",
        ]
    );
    assert_eq!(dir.run(&["check", "kv.log"]).code, 0);
    let last = |run: &Run| run.stdout.lines().last().map(str::to_owned);
    assert_eq!(last(&dir.run(&["dump", "kv.log", "--key", "user1"])), last(&before));
    let again = dir.run(&["compact", "kv.log"]);
    assert_eq!((again.code, dir.get("kv.log")), (0, after), "nothing more is left out");
    assert!(!dir.path("kv.log.compact").exists());
}

#[test]
fn compact_touches_no_log_that_is_damaged_or_in_use() {
    let dir = Directory::new();
    let (mut log, begins) = log();
    dir.put("kv.log", &log);
    let held = File::open(dir.path("kv.log")).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let run = dir.run(&["compact", "kv.log"]);
    assert!(run.code == 2 && run.stderr.contains("is in use by a master"), "{}", run.stderr);
    drop(held);
    log[begins[3] + 7] ^= 1;
    dir.put("kv.log", &log);
    let run = dir.run(&["compact", "kv.log"]);
    assert!(run.code == 2 && run.stderr.contains("is corrupt at byte"), "{}", run.stderr);
    assert_eq!(dir.get("kv.log"), log);
    assert!(!dir.path("kv.log.compact").exists());
}

#[test]
fn a_copied_log_gets_a_cluster_of_its_own_and_keeps_the_rest() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    dir.put("a.log", &bytes);
    dir.put("a.log.lock", b"pid=4711\ncluster=0000000000000abc\nepoch=1\nlog_boot=b\n");
    let run = dir.run(&["new-cluster", "a.log"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(run.stdout.contains("cluster 0000000000000abc is cluster "), "{}", run.stdout);
    let changed = dir.get("a.log");
    assert_ne!(changed[..starts[1]], bytes[..starts[1]], "another id");
    assert_eq!(changed[starts[1]..], bytes[starts[1]..], "nothing else");
    assert_eq!(dir.run(&["check", "a.log"]).code, 0);
    assert_eq!(dir.get("a.log.lock"), b"pid=4711\nlog_boot=b\n");
    // A run that was interrupted before it changed the lock file is repeated; or `forget` is used, as a start suggests.
    for again in ["new-cluster", "forget"] {
        dir.put("a.log.lock", b"pid=4711\ncluster=0000000000000abc\nepoch=1\nlog_boot=b\n");
        let run = dir.run(&[again, "a.log"]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{}", run.stdout);
        assert_eq!(dir.get("a.log.lock"), b"pid=4711\nlog_boot=b\n");
        assert_eq!(dir.run(&["check", "a.log"]).code, 0);
    }
    // A torn log is refused.
    dir.put("b.log", &bytes[..starts[7] + 3]);
    assert_eq!(dir.run(&["new-cluster", "b.log"]).code, 1);
    assert_eq!(dir.get("b.log"), &bytes[..starts[7] + 3]);
}

#[test]
fn repair_and_import_refuse_while_a_master_holds_a_lock() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    let torn = &bytes[..starts[7] + 5];
    dir.put("a.log", torn);
    dir.put("old.log", b"WRITE a b\n");
    dir.put("a.log.lock", b"pid=4711\n");
    for held in ["a.log.lock", "a.log"] {
        let file = File::open(dir.path(held)).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let refused = dir.run(&["repair", "a.log"]);
        assert_eq!(refused.code, 2, "{held} is held");
        assert_eq!(refused.stderr, "error: a.log is in use by a master (pid 4711): stop it first\n");
        assert_eq!(dir.get("a.log"), torn);
        assert_eq!(dir.run(&["check", "a.log"]).code, 1, "check only reads");
    }
    dir.put("new.log.lock", b"");
    let file = File::open(dir.path("new.log.lock")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(dir.run(&["import", "old.log", "new.log"]).code, 2);
    assert!(!dir.path("new.log").exists());
}

#[test]
fn import_writes_a_synced_log_with_trailers_and_overwrites_nothing() {
    let dir = Directory::new();
    dir.put("old.log", b"WRITE user1 Alice B.\nREAD user1\nWRITE user2 %x\nDELETE user1\nWRITE user3 last");
    let run = dir.run(&["import", "old.log", "new.log"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let check = dir.run(&["check", "new.log", "--crash", "process"]);
    assert_eq!(check.code, 0);
    assert_eq!(shown(&check, "records"), "6 (original program: 0)");
    assert_eq!(shown(&check, "last seq"), "6 (synced through 6)");
    assert_eq!(shown(&check, "keys"), "2");
    let dump = dir.run(&["dump", "new.log"]);
    let records: Vec<_> = dump.stdout.lines().skip(2).collect();
    let expected = [
        r#"3 1 WRITE "user1" "Alice B.""#,
        r#"4 1 WRITE "user2" "%x""#,
        r#"5 1 DELETE "user1""#,
        r#"6 1 WRITE "user3" "last""#,
        "6 1 SYNCED 6",
    ];
    assert_eq!(records, expected);

    let before = dir.get("new.log");
    let again = dir.run(&["import", "old.log", "new.log"]);
    assert!(again.code == 2 && again.stderr.contains("exists"), "{}", again.stderr);
    assert_eq!(dir.get("new.log"), before);

    dir.put("strange.log", b"WRITE a b\nUPDATE a c\nWRITE d e\n");
    let strange = dir.run(&["import", "strange.log", "x.log"]);
    assert!(strange.code == 2 && strange.stderr.contains("line 2 (byte 10)"), "{}", strange.stderr);
    let trailers = dir.run(&["import", "new.log", "x.log"]);
    assert!(trailers.code == 2 && trailers.stderr.contains("already"), "{}", trailers.stderr);
    assert!(!dir.path("x.log").exists() && !dir.path("x.log.import").exists());
}

/// Checks that one line says what could not be written, that only lock files are new, and that nothing has changed.
fn changes_nothing(dir: &Directory, blocks: u32, args: &[&str], told: &str) {
    let files = || -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(dir.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let is_lock = |path: &PathBuf| path.extension().is_some_and(|name| name == "lock");
        entries
            .filter(|path| !is_lock(path) || fs::metadata(path).unwrap().len() > 0)
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    };
    let before = files();
    let run = dir.run_limited(blocks, args, None);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.stderr);
    let is_told = run.stderr.starts_with("error: ")
        && run.stderr.contains(told)
        && run.stderr.contains("File too large");
    assert!(is_told && run.stderr.lines().count() == 1, "{args:?}: {}", run.stderr);
    assert_eq!(files(), before, "{args:?}");
}

#[test]
fn a_file_that_may_not_grow_is_one_line_and_leaves_the_original_as_it_was() {
    let dir = Directory::new();
    let (mut bytes, starts) = log();
    let lock = b"pid=4711\ncluster=0000000000000abc\nlog_boot=b\n";
    dir.put("whole.log", &bytes);
    dir.put("whole.log.lock", lock);
    changes_nothing(&dir, 0, &["new-cluster", "whole.log"], "cannot write the CLUSTER line");

    // The limit is in the middle of the line that is overwritten.
    let old: String = (0..32).map(|number| format!("WRITE key{number:03} {}\n", "x".repeat(17))).collect();
    dir.put("old.log", old.as_bytes());
    dir.run(&["import", "old.log", "longer.log"]);
    let mut continued = old.into_bytes();
    let cluster_at = continued.len();
    assert!((480..500).contains(&(cluster_at % 512)), "{cluster_at}");
    encode(&Operation::Cluster(ClusterId(0xabc)), Seq(33), Epoch(1), Seq(0), &mut continued);
    let begun = Operation::Epoch { address: "127.0.0.1:12345".into(), mark: None };
    encode(&begun, Seq(34), Epoch(1), Seq(32), &mut continued);
    dir.put("continued.log", &continued);
    dir.put("continued.log.lock", lock);
    let blocks = (cluster_at / 512 + 1) as u32;
    changes_nothing(&dir, blocks, &["new-cluster", "continued.log"], "cannot write the CLUSTER line");
    assert_eq!(dir.run(&["new-cluster", "continued.log"]).code, 0, "it would have been written");

    changes_nothing(&dir, 1, &["import", "old.log", "new.log"], "cannot write new.log.import: ");

    for seq in 8..12 {
        encode(&write(b"long", &[b'%'; 70_000]), Seq(seq), Epoch(1), Seq(7), &mut bytes);
    }
    let torn = [&bytes[..], &[b'x'; 7000]].concat();
    dir.put("torn.log", &torn);
    changes_nothing(&dir, 3, &["repair", "torn.log"], "cannot save to torn.log.cut-");
    let mut damaged = bytes.clone();
    damaged[starts[3] + 8] ^= 1;
    dir.put("damaged.log", &damaged);
    // In the middle of the draft, and when its last buffer is written.
    let last = (bytes.len() as u32 - 2000) / 512;
    for (blocks, told) in [(3, "the repaired log"), (last, "damaged.log.repair")] {
        changes_nothing(&dir, blocks, &["repair", "damaged.log"], &format!("cannot write {told}: "));
    }
    let at_corruption = ["repair", "--cut-at-corruption", "damaged.log"];
    let run = dir.run_limited(3, &at_corruption, None);
    assert_eq!((run.code, run.stderr.lines().count()), (2, 1), "{}", run.stderr);
    assert_eq!(dir.get("damaged.log"), damaged);

    // The output is a file, too.
    let dump = dir.run_limited(1, &["dump", "torn.log"], Some("dump.txt"));
    assert_eq!((dump.code, dump.stderr.lines().count()), (2, 1), "{}", dump.stderr);
    assert!(dump.stderr.contains("File too large"), "{}", dump.stderr);
}

#[test]
fn a_backup_is_a_file_of_its_owner_that_is_whole_or_not_there() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    // The last line is being written.
    dir.put("a.log", &[&bytes[..], b"WRITE half"].concat());
    // What a run that was killed has left.
    dir.put("b.log.partial", &[b'x'; 100_000]);
    let run = dir.run(&["backup", "--log", "a.log", "--to", "b.log", "--count-keys"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("the last line of a.log is not finished (10 bytes)"), "{}", run.stderr);
    assert_eq!(dir.get("b.log"), bytes);
    for (name, value) in [
        ("cluster", "0000000000000abc"),
        ("last epoch", "1"),
        ("last seq", "7"),
        ("records", "7"),
        ("keys", "2"),
    ] {
        assert_eq!(shown(&run, name), value);
    }
    assert_eq!(shown(&run, "bytes"), bytes.len().to_string());
    let mode = fs::metadata(dir.path("b.log")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    assert!(!dir.path("b.log.partial").exists() && !dir.path("a.log.lock").exists());
    let again = dir.run(&["backup", "--log", "a.log", "--to", "b.log"]);
    assert!(
        again.code == 2 && again.stderr.contains("b.log exists, it is not overwritten"),
        "{}",
        again.stderr
    );

    let part = dir.run(&["backup", "--log", "a.log", "--to", "c.log", "--until", "4"]);
    assert_eq!((part.code, shown(&part, "last seq")), (0, "4"), "{}", part.stderr);
    assert!(dir.get("c.log").starts_with(&bytes[..starts[4]]));
    for (until, told) in
        [("8", "--until: it ends with seq 7"), ("1", "--until: it was compacted through seq 2")]
    {
        let run = dir.run(&["backup", "--log", "a.log", "--to", "d.log", "--until", until]);
        assert!(run.code == 2 && run.stderr.contains(told), "{}", run.stderr);
    }
    let mut damaged = bytes.clone();
    damaged[starts[3] + 8] ^= 1;
    dir.put("damaged.log", &damaged);
    let run = dir.run(&["backup", "--log", "damaged.log", "--to", "d.log"]);
    assert!(run.code == 2 && run.stderr.contains("damaged.log is corrupt at byte"), "{}", run.stderr);
    dir.put("member.log", &bytes);
    dir.put("member.log.vote", b"");
    let run = dir.run(&["backup", "--log", "member.log", "--to", "d.log"]);
    assert!(run.code == 2 && run.stderr.contains("is no backup"), "{}", run.stderr);
    dir.put("d.log.partial", b"");
    let other = File::open(dir.path("d.log.partial")).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    let run = dir.run(&["backup", "--log", "a.log", "--to", "d.log"]);
    assert!(run.code == 2 && run.stderr.contains("is being written by another process"), "{}", run.stderr);
    drop(other);
    changes_nothing(&dir, 0, &["backup", "--log", "b.log", "--to", "e.log"], "cannot write the new file");
    assert!(!dir.path("d.log").exists());
}

#[test]
fn a_torn_tail_is_not_in_a_backup_and_a_damaged_mark_neither() {
    let dir = Directory::new();
    let (bytes, starts) = log();
    // A page that was never written, as after the crash of a process.
    let hole = [&bytes[..starts[6]], &vec![0; 4096 - starts[6] % 512]].concat();
    dir.put("torn.log", &hole);
    let run = dir.run(&["backup", "--log", "torn.log", "--to", "b.log"]);
    assert!(run.code == 0 && run.stderr.contains("torn tail"), "{}", run.stderr);
    assert!(dir.get("b.log").starts_with(&bytes[..starts[6]]));
    assert_eq!(dir.run(&["check", "b.log"]).code, 0);

    let mut damaged = bytes.clone();
    damaged[starts[7] + 3] ^= 1;
    encode(&write(b"more", b"1"), Seq(8), Epoch(1), Seq(7), &mut damaged);
    dir.put("mark.log", &damaged);
    let run = dir.run(&["backup", "--log", "mark.log", "--to", "c.log"]);
    assert!(run.code == 0 && run.stderr.contains("SYNCED mark at byte"), "{}", run.stderr);
    let check = dir.run(&["check", "c.log"]);
    assert_eq!((check.code, check.stderr.as_str(), shown(&check, "keys")), (0, "", "3"));
}

#[test]
fn a_backup_is_restored_where_no_log_is_for_a_new_cluster_unless_it_is_to_be_kept() {
    let dir = Directory::new();
    let (bytes, _) = log();
    dir.put("backup.log", &bytes);
    let lock = b"pid=4711\ncluster=0000000000000999\nepoch=12\nreign=00000000000000aa\nlog_boot=b\n";
    dir.put("a.log.lock", lock);
    dir.put("a.log.witness", b"cluster=0000000000000999\n");
    let kept = ["restore", "--from", "backup.log", "--to", "a.log", "--keep-cluster"];
    let run = dir.run(&kept);
    assert!(run.code == 2 && run.stderr.contains("names cluster 0000000000000999"), "{}", run.stderr);
    assert!(!dir.path("a.log").exists() && !dir.path("a.log.restore").exists());

    // An empty file is no log.
    dir.put("a.log", b"");
    let run = dir.run(&["restore", "--from", "backup.log", "--to", "a.log", "--count-keys"]);
    assert_eq!((run.code, shown(&run, "keys")), (0, "2"), "{}", run.stderr);
    let (new, old) = shown(&run, "cluster").split_once(" (before: ").unwrap();
    assert_eq!(old, "0000000000000abc)");
    let restored = dir.get("a.log");
    assert!(restored.starts_with(format!("CLUSTER {new} % ;1 1 0 ").as_bytes()) && new != "0000000000000abc");
    let second = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n').unwrap();
    assert_eq!(restored[second(&restored)..], bytes[second(&bytes)..]);
    assert_eq!(String::from_utf8(dir.get("a.log.lock")).unwrap(), "pid=4711\nlog_boot=b\n");
    assert!(!dir.path("a.log.witness").exists());

    let again = dir.run(&["restore", "--from", "backup.log", "--to", "a.log"]);
    assert!(again.code == 2 && again.stderr.contains("it is not overwritten"), "{}", again.stderr);
    assert_eq!(dir.get("a.log"), restored);
    let both = dir.run(&[&kept[..], &["--until", "5"]].concat());
    assert!(both.code == 2 && both.stderr.contains("--until"), "{}", both.stderr);

    // In the place of the same cluster's log the lock file stays: it knows of epochs that the backup lacks.
    let lock = b"cluster=0000000000000abc\nepoch=12\n";
    dir.put("c.log.lock", lock);
    let run = dir.run(&["restore", "--from", "backup.log", "--to", "c.log", "--keep-cluster"]);
    assert_eq!((run.code, shown(&run, "cluster")), (0, "0000000000000abc"), "{}", run.stderr);
    assert_eq!((dir.get("c.log"), dir.get("c.log.lock")), (bytes.clone(), lock.to_vec()));

    dir.put("corrupt.log", &bytes[20..]);
    let run = dir.run(&["restore", "--from", "corrupt.log", "--to", "d.log"]);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    dir.put("d.log.vote", b"");
    let run = dir.run(&["restore", "--from", "backup.log", "--to", "d.log"]);
    assert!(run.code == 2 && run.stderr.contains("is the log of a member"), "{}", run.stderr);
    assert!(!dir.path("d.log").exists());
    changes_nothing(
        &dir,
        0,
        &["restore", "--from", "backup.log", "--to", "e.log"],
        "cannot write the new file",
    );
}

#[test]
fn long_lines_and_logs_longer_than_a_buffer_are_streamed() {
    let dir = Directory::new();
    let (mut bytes, _) = log();
    let value = vec![b'%'; 700_000];
    for seq in 8..12 {
        encode(&write(b"long", &value), Seq(seq), Epoch(1), Seq(7), &mut bytes);
    }
    dir.put("a.log", &bytes);
    let run = dir.run(&["check", "a.log"]);
    assert_eq!((run.code, shown(&run, "good lines")), (0, "12"));
    assert_eq!(shown(&run, "good bytes"), bytes.len().to_string());
}

#[test]
fn a_record_of_several_of_the_longest_values_is_good() {
    let dir = Directory::new();
    let (mut bytes, _) = log();
    let value = Bytes::from(vec![b'%'; 9 << 20]);
    let pairs = [(Bytes::from_static(b"a"), value.clone()), (Bytes::from_static(b"b"), value)];
    encode(&Operation::Write(pairs.to_vec()), Seq(8), Epoch(1), Seq(7), &mut bytes);
    dir.put("a.log", &bytes);
    let run = dir.run(&["check", "a.log"]);
    assert_eq!((run.code, shown(&run, "good lines")), (0, "9"), "{}", run.stderr);
}

#[test]
fn a_bad_flag_exits_with_a_message_and_help_shows_examples() {
    let dir = Directory::new();
    let bad = dir.run(&["check", "--nonsense"]);
    assert!(bad.code == 2 && bad.stderr.contains("--nonsense"), "{}", bad.stderr);
    let help = dir.run(&["--help"]);
    assert!(help.code == 0 && help.stdout.contains("dsm-log repair kv_store.log"), "{}", help.stdout);
}
