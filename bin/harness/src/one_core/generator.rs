//! The load: requests in Redis' protocol over connections that one thread serves, in a closed loop.
//!
//! It shares one core with the store that it measures, and so does as little as it can: requests are copied from what was
//! made beforehand, answers have known lengths. Each answer is looked at all the same: a wrong one ends the measurement.
//! [`super::super::load`] verifies more, and costs more.

use super::super::stop::StopSignal;
use super::plan::{LoadShape, KEYS};
use anyhow::{bail, ensure, Context as _};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Length of a value: the number of its key and of its write, eight hexadecimal digits each.
pub(crate) const VALUE_BYTES: usize = 16;

/// How long an answer, or a connect, may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks at the clock while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The most of a wrong answer that is shown.
const SHOWN_BYTES_MAX: usize = 120;

/// Requests in a batch that writes all keys.
const FILL_PIPELINE: u32 = 50;

/// The latencies that are told apart: up to a minute, in nanoseconds, with two digits.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

const READ_HEAD: &[u8] = b"$16\r\n";
const WRITE_ANSWER: &[u8] = b"+OK\r\n";
const READ_ANSWER_BYTES: usize = READ_HEAD.len() + VALUE_BYTES + 2;

/// What a load did.
#[derive(Clone, Debug)]
pub(crate) struct Driven {
    /// Requests that were answered.
    pub operations: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// From the sending of each batch to its last answer, in nanoseconds.
    pub latency_ns: Histogram<u64>,
}

/// An answer that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Value { key: u32 },
    Done,
    Replicas { wanted: u32 },
}

/// What is at the front of what was read.
#[derive(Debug, PartialEq, Eq)]
enum Front {
    /// The answer, of this length.
    Right(usize),
    /// Not yet all of it.
    Incomplete,
    /// Something else.
    Wrong,
}

/// A connection: what it has sent, and what has come back.
#[derive(Debug)]
struct Lane {
    stream: TcpStream,
    output: Vec<u8>,
    /// Of the batch that is in flight, those before `answered` have come.
    expected: Vec<Expected>,
    answered: usize,
    input: Box<[u8]>,
    filled: usize,
    sent_at: Instant,
}

/// The connections of a load to one store.
#[derive(Debug)]
pub(crate) struct Generator {
    poller: OwnedFd,
    lanes: Vec<Lane>,
    shape: LoadShape,
    wait: Option<u32>,
    random: SmallRng,
    /// Number of the next write; it makes each value differ from the one before.
    next_write: u32,
}

impl Generator {
    /// Connects to `target`. With `wait`, each SET is followed by a WAIT for so many replicas; both are one operation.
    ///
    /// # Errors
    /// When a connection cannot be opened.
    pub(crate) fn connect(
        target: &str,
        shape: LoadShape,
        wait: Option<u32>,
        seed: u64,
    ) -> anyhow::Result<Generator> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        let address = target.parse().with_context(|| format!("not an address: {target}"))?;
        let mut lanes = Vec::new();
        for number in 0..shape.connections {
            let stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)
                .with_context(|| format!("cannot connect to {target}"))?;
            stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
            stream.set_nonblocking(true).context("cannot make a socket non-blocking")?;
            let data = epoll::EventData::new_u64(u64::from(number));
            epoll::add(&poller, &stream, data, epoll::EventFlags::IN).context("cannot watch a socket")?;
            // Room for two batches of the longest answers, so that no read ends in the middle of one.
            let room =
                2 * shape.pipeline as usize * (READ_ANSWER_BYTES + WRITE_ANSWER.len()) + SHOWN_BYTES_MAX;
            lanes.push(Lane {
                stream,
                output: Vec::new(),
                expected: Vec::new(),
                answered: 0,
                input: vec![0; room].into_boxed_slice(),
                filled: 0,
                sent_at: Instant::now(),
            });
        }
        let random = SmallRng::seed_from_u64(seed);
        Ok(Generator { poller, lanes, shape, wait, random, next_write: 0 })
    }

    /// Writes every key once.
    ///
    /// # Errors
    /// When an answer is wrong, or does not come.
    pub(crate) fn fill(target: &str, stop: &StopSignal) -> anyhow::Result<()> {
        let shape = LoadShape { write_pct: 100, connections: 1, pipeline: FILL_PIPELINE };
        let mut generator = Generator::connect(target, shape, None, 0)?;
        for first in (0..KEYS).step_by(FILL_PIPELINE as usize) {
            let until = KEYS.min(first + FILL_PIPELINE);
            generator.send(0, |generator| {
                for key in first..until {
                    generator.put_write(0, key);
                }
            })?;
            let limit = Instant::now() + ANSWER_LIMIT;
            while !generator.lanes[0].is_idle() {
                ensure!(!stop.is_set(), "interrupted");
                ensure!(Instant::now() < limit, "a write was not answered within {ANSWER_LIMIT:?}");
                generator.wait_and_take(&mut |_| {})?;
            }
        }
        Ok(())
    }

    /// Loads the store for `duration`; the answers to what was sent by then are waited for.
    ///
    /// # Errors
    /// When an answer is wrong or does not come in time, a connection ends, or `stop` is set.
    pub(crate) fn run(&mut self, duration: Duration, stop: &StopSignal) -> anyhow::Result<Driven> {
        let mut latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).context("wrong bounds")?;
        let started = Instant::now();
        let (mut operations, mut last) = (0, started);
        for lane in 0..self.lanes.len() {
            self.send_batch(lane)?;
        }
        let mut busy = self.lanes.len();
        while busy > 0 {
            let mut idle = Vec::new();
            self.wait_and_take(&mut |lane| idle.push(lane))?;
            let now = Instant::now();
            if idle.is_empty() {
                ensure!(!stop.is_set(), "interrupted");
                ensure!(now - last < ANSWER_LIMIT, "a request was not answered within {ANSWER_LIMIT:?}");
                continue;
            }
            last = now;
            operations += idle.len() as u64 * u64::from(self.shape.pipeline);
            let over = now - started >= duration;
            for lane in idle {
                let took = now.duration_since(self.lanes[lane].sent_at).as_nanos();
                latency_ns.saturating_record(u64::try_from(took).unwrap_or(LATENCY_NS_MAX));
                if over || stop.is_set() {
                    busy -= 1;
                } else {
                    self.send_batch(lane)?;
                }
            }
        }
        ensure!(!stop.is_set(), "interrupted");
        Ok(Driven { operations, elapsed: started.elapsed(), latency_ns })
    }

    fn send_batch(&mut self, lane: usize) -> anyhow::Result<()> {
        self.send(lane, |generator| {
            for _ in 0..generator.shape.pipeline {
                let key = generator.random.random_range(0..KEYS);
                if generator.random.random_range(0..100) < generator.shape.write_pct {
                    generator.put_write(lane, key);
                } else {
                    generator.put_read(lane, key);
                }
            }
        })
    }

    /// Sends what `put` puts into the lane's output.
    fn send(&mut self, lane: usize, put: impl FnOnce(&mut Generator)) -> anyhow::Result<()> {
        self.lanes[lane].output.clear();
        self.lanes[lane].expected.clear();
        self.lanes[lane].answered = 0;
        put(self);
        let Lane { stream, output, sent_at, .. } = &mut self.lanes[lane];
        *sent_at = Instant::now();
        // All before it was answered: a batch finds room in the socket.
        stream.write_all(output).context("cannot send")
    }

    fn put_read(&mut self, lane: usize, key: u32) {
        let Lane { output, expected, .. } = &mut self.lanes[lane];
        output.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$8\r\n");
        output.extend_from_slice(&digits(key));
        output.extend_from_slice(b"\r\n");
        expected.push(Expected::Value { key });
    }

    fn put_write(&mut self, lane: usize, key: u32) {
        let Lane { output, expected, .. } = &mut self.lanes[lane];
        output.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$8\r\n");
        output.extend_from_slice(&digits(key));
        output.extend_from_slice(b"\r\n$16\r\n");
        output.extend_from_slice(&digits(key));
        output.extend_from_slice(&digits(self.next_write));
        output.extend_from_slice(b"\r\n");
        expected.push(Expected::Done);
        self.next_write = self.next_write.wrapping_add(1);
        if let Some(wanted) = self.wait {
            output.extend_from_slice(
                format!("*3\r\n$4\r\nWAIT\r\n$1\r\n{wanted}\r\n$4\r\n1000\r\n").as_bytes(),
            );
            expected.push(Expected::Replicas { wanted });
        }
    }

    /// Waits for answers, for a moment at most, and takes them; `idle` hears of each lane whose batch is answered.
    fn wait_and_take(&mut self, idle: &mut dyn FnMut(usize)) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(self.lanes.len());
        let limit = rustix::event::Timespec::try_from(LOOK_INTERVAL).ok();
        match epoll::wait(&self.poller, rustix::buffer::spare_capacity(&mut events), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for answers"),
        }
        for event in events {
            // The numbers are ours.
            let lane = event.data.u64() as usize;
            if self.lanes[lane].take()? {
                idle(lane);
            }
        }
        Ok(())
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.answered == self.expected.len()
    }

    /// Reads once and takes the answers; whether that completes the batch.
    fn take(&mut self) -> anyhow::Result<bool> {
        let read = match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => bail!("the store closed a connection"),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false)
            }
            Err(error) => return Err(error).context("cannot read"),
        };
        self.filled += read;
        let mut taken = 0;
        loop {
            let rest = &self.input[taken..self.filled];
            let Some(expected) = self.expected.get(self.answered) else {
                ensure!(rest.is_empty(), "the store sent what nobody asked for: {}", shown(rest));
                break;
            };
            match expected.front(rest) {
                Front::Right(length) => taken += length,
                Front::Incomplete => break,
                Front::Wrong => bail!("a wrong answer: {} instead of {expected:?}", shown(rest)),
            }
            self.answered += 1;
        }
        self.input.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        Ok(self.is_idle())
    }
}

impl Expected {
    fn front(self, input: &[u8]) -> Front {
        match self {
            Expected::Value { key } => {
                let begins = input.len().min(READ_HEAD.len());
                if input[..begins] != READ_HEAD[..begins] {
                    return whole_line(input);
                }
                let Some(value) = input.get(READ_HEAD.len()..READ_ANSWER_BYTES) else {
                    return Front::Incomplete;
                };
                let right = value.starts_with(&digits(key)) && value.ends_with(b"\r\n");
                if right {
                    Front::Right(READ_ANSWER_BYTES)
                } else {
                    Front::Wrong
                }
            }
            Expected::Done => {
                let begins = input.len().min(WRITE_ANSWER.len());
                if input[..begins] != WRITE_ANSWER[..begins] {
                    return whole_line(input);
                }
                if begins == WRITE_ANSWER.len() {
                    Front::Right(begins)
                } else {
                    Front::Incomplete
                }
            }
            Expected::Replicas { wanted } => {
                let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
                    return Front::Incomplete;
                };
                let line = std::str::from_utf8(&input[..end]).unwrap_or_default().trim_end();
                match line.strip_prefix(':').and_then(|count| count.parse::<u32>().ok()) {
                    Some(count) if count >= wanted => Front::Right(end + 1),
                    Some(_) | None => Front::Wrong,
                }
            }
        }
    }
}

/// What to say of an answer that is certainly wrong: it is shown with its first line, when that is there.
fn whole_line(input: &[u8]) -> Front {
    if input.contains(&b'\n') || input.len() >= SHOWN_BYTES_MAX {
        Front::Wrong
    } else {
        Front::Incomplete
    }
}

/// Eight hexadecimal digits.
fn digits(number: u32) -> [u8; 8] {
    let mut digits = [0; 8];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * place)) as usize & 15];
    }
    digits
}

/// The first line of an answer, as far as it is shown.
fn shown(input: &[u8]) -> String {
    let line = input.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::net::TcpListener;

    #[test]
    fn numbers_have_eight_digits() {
        assert_eq!(&digits(0x1f3), b"000001f3");
        assert_eq!(&digits(u32::MAX), b"ffffffff");
    }

    #[test]
    fn an_answer_is_right_when_it_names_its_key() {
        let expected = Expected::Value { key: 7 };
        let right = b"$16\r\n0000000700000001\r\n+OK\r\n";
        assert_eq!(expected.front(right), Front::Right(23));
        for end in 0..23 {
            assert_eq!(expected.front(&right[..end]), Front::Incomplete, "{end}");
        }
        assert_eq!(expected.front(b"$16\r\n0000000800000001\r\n"), Front::Wrong);
        assert_eq!(expected.front(b"$-1\r\n"), Front::Wrong);
        assert_eq!(expected.front(b"-STANDBY"), Front::Incomplete, "it is shown whole");
    }

    #[test]
    fn writes_are_done_and_have_their_replicas() {
        assert_eq!(Expected::Done.front(b"+OK\r\n+OK\r\n"), Front::Right(5));
        assert_eq!(Expected::Done.front(b"+O"), Front::Incomplete);
        assert_eq!(Expected::Done.front(b"-ERR no\r\n"), Front::Wrong);
        let expected = Expected::Replicas { wanted: 1 };
        assert_eq!(expected.front(b":2\r\n"), Front::Right(4));
        assert_eq!(expected.front(b":2"), Front::Incomplete);
        assert_eq!(expected.front(b":0\r\n"), Front::Wrong);
    }

    /// A store for one connection that answers each request with what `answer` makes of its words, `None` ends it.
    fn store(answer: impl Fn(&[String]) -> Option<String> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            loop {
                let mut words = Vec::new();
                line.clear();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let count: usize = line.trim_end()[1..].parse().unwrap();
                for _ in 0..count {
                    for _ in 0..2 {
                        line.clear();
                        reader.read_line(&mut line).unwrap();
                    }
                    words.push(line.trim_end().to_owned());
                }
                let Some(text) = answer(&words) else { return };
                if stream.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
        });
        address
    }

    fn honest(words: &[String]) -> Option<String> {
        Some(match words[0].as_str() {
            "GET" => format!("$16\r\n{}00000000\r\n", words[1]),
            "SET" => "+OK\r\n".to_owned(),
            _ => ":2\r\n".to_owned(),
        })
    }

    const SHAPE: LoadShape = LoadShape { write_pct: 50, connections: 1, pipeline: 4 };

    fn drive(target: &str, wait: Option<u32>) -> anyhow::Result<Driven> {
        let mut generator = Generator::connect(target, SHAPE, wait, 1)?;
        generator.run(Duration::from_millis(50), &StopSignal::default())
    }

    #[test]
    fn answered_operations_are_counted_and_a_wait_is_part_of_its_write() {
        let driven = drive(&store(honest), Some(1)).unwrap();
        assert!(driven.operations >= 4 && driven.operations.is_multiple_of(4), "{driven:?}");
        assert_eq!(driven.latency_ns.len() * 4, driven.operations);
        assert!(driven.elapsed >= Duration::from_millis(50), "{driven:?}");
    }

    #[test]
    fn all_keys_are_written() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let target = store(move |words| {
            sender.send(words.to_vec()).unwrap();
            honest(words)
        });
        Generator::fill(&target, &StopSignal::default()).unwrap();
        let words: Vec<Vec<String>> = receiver.try_iter().collect();
        assert_eq!(words.len(), KEYS as usize);
        assert!(words.iter().all(|words| words[0] == "SET" && words[2].starts_with(&words[1])));
        assert_eq!(words[999][1], "000003e7");
    }

    #[test]
    fn a_wrong_answer_is_shown_and_ends_the_load() {
        let refusing = |words: &[String]| match words[0].as_str() {
            "SET" => Some("-STANDBY not me\r\n".to_owned()),
            _ => honest(words),
        };
        let error = drive(&store(refusing), None).unwrap_err().to_string();
        assert!(error.contains("-STANDBY not me"), "{error}");
        let chatty = |words: &[String]| Some(honest(words)? + "+OK\r\n");
        let error = drive(&store(chatty), None).unwrap_err().to_string();
        assert!(error.contains("instead of") || error.contains("nobody asked"), "{error}");
        let error = drive(&store(|_| None), None).unwrap_err();
        assert!(
            format!("{error:#}").contains("connection") || format!("{error:#}").contains("read"),
            "{error:#}"
        );
    }

    #[test]
    fn a_stop_ends_the_load_with_all_answered() {
        let stop = StopSignal::default();
        let stopper = stop.clone();
        let mut generator = Generator::connect(&store(honest), SHAPE, None, 1).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            stopper.stop_for_test();
        });
        let error = generator.run(Duration::from_secs(60), &stop).unwrap_err().to_string();
        assert_eq!(error, "interrupted");
        assert!(generator.lanes.iter().all(Lane::is_idle));
    }
}
