//! The load: requests in Redis' protocol over connections that one thread serves, in a closed loop.
//!
//! It shares one core with the store that it measures, and so does as little as it can: requests are copied from what was
//! made beforehand, answers have known lengths. Each answer is looked at all the same: a wrong one ends the measurement.
//! [`super::super::load`] verifies more, and costs more.

use super::super::access::StoreAccess;
use super::super::stop::StopSignal;
use super::super::tls::TlsSession;
use super::answer::{digits, put_value, shown, AnswerCheck, AnswerForm, AnswerFront, ExpectedAnswer};
use super::plan::{LoadData, LoadShape};
use anyhow::{bail, ensure, Context as _};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long an answer, or a connect, may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks at the clock while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The most requests in a batch of those that write all keys, and about the most bytes.
const FILL_PIPELINE_MAX: usize = 500;
const FILL_BYTES_MAX: usize = 4 << 20;

/// What is read at once: it stays in the processor's cache. One is enough for all connections, as a value is checked piece
/// by piece.
const INPUT_BYTES: usize = 128 << 10;

/// Requests are made ahead of the socket up to this length, and one more.
const OUTPUT_BYTES: usize = 64 << 10;

/// The latencies that are told apart: up to a minute, in nanoseconds, with two digits.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

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

/// The bytes of a connection, be it over TLS.
#[derive(Debug)]
struct LaneStream {
    socket: TcpStream,
    session: Option<TlsSession>,
}

impl LaneStream {
    /// Connects, the handshake of TLS included; after that it does not block.
    ///
    /// # Errors
    /// When it cannot.
    fn open(target: &str, access: &StoreAccess) -> anyhow::Result<LaneStream> {
        let address = target.parse().with_context(|| format!("not an address: {target}"))?;
        let mut socket = TcpStream::connect_timeout(&address, ANSWER_LIMIT)
            .with_context(|| format!("cannot connect to {target}"))?;
        socket.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        let mut session = None;
        if let Some(tls) = access.tls() {
            for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
                limit(&socket, Some(ANSWER_LIMIT)).context("cannot limit a socket's time")?;
            }
            let mut begun = TlsSession::new(tls.session(target)?);
            begun.shake_hands(&mut socket).with_context(|| format!("no TLS with {target}"))?;
            session = Some(begun);
        }
        socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        Ok(LaneStream { socket, session })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.session {
            None => self.socket.write(bytes),
            Some(session) => session.write(&mut self.socket, bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.session {
            None => self.socket.read(bytes),
            Some(session) => session.read(&mut self.socket, bytes),
        }
    }

    /// Gives the system what was written; whether it has all of it.
    fn flush(&mut self) -> io::Result<bool> {
        let Some(session) = &mut self.session else { return Ok(true) };
        match session.flush(&mut self.socket) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A connection: what it has sent, and what has come back.
#[derive(Debug)]
struct Lane {
    stream: LaneStream,
    /// Requests; what is before `sent` is in the socket.
    output: Vec<u8>,
    sent: usize,
    /// Requests of the batch that are still to be made.
    unmade: u32,
    /// Whether it waits for room in the socket.
    is_full: bool,
    /// Of the batch that is in flight, those before `answered` have come.
    expected: Vec<ExpectedAnswer>,
    answered: usize,
    check: AnswerCheck,
    /// What was read and is too little to be checked: the beginning of a line or of a stamp.
    rest: Vec<u8>,
    sent_at: Instant,
}

/// The connections of a load to one store.
#[derive(Debug)]
pub(crate) struct Generator {
    poller: OwnedFd,
    lanes: Vec<Lane>,
    shape: LoadShape,
    data: LoadData,
    form: AnswerForm,
    wait: Option<u32>,
    random: SmallRng,
    /// The next key, while all are written in order.
    filling: Option<u32>,
    /// Number of the next write; it makes each value differ from the one before.
    next_write: u32,
    input: Box<[u8]>,
}

impl Generator {
    /// Connects to `target`. With `wait`, each SET is followed by a WAIT for so many replicas; both are one operation.
    ///
    /// # Errors
    /// When a connection cannot be opened.
    pub(crate) fn connect(
        (target, access): (&str, &StoreAccess),
        shape: LoadShape,
        data: LoadData,
        wait: Option<u32>,
        seed: u64,
    ) -> anyhow::Result<Generator> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
        let mut lanes = Vec::new();
        for number in 0..shape.connections {
            let stream = LaneStream::open(target, access)?;
            let data = epoll::EventData::new_u64(u64::from(number));
            epoll::add(&poller, &stream.socket, data, epoll::EventFlags::IN)
                .context("cannot watch a socket")?;
            lanes.push(Lane {
                stream,
                output: Vec::new(),
                sent: 0,
                unmade: 0,
                is_full: false,
                expected: Vec::new(),
                answered: 0,
                check: AnswerCheck::default(),
                rest: Vec::new(),
                sent_at: Instant::now(),
            });
        }
        Ok(Generator {
            poller,
            lanes,
            shape,
            data,
            form: AnswerForm::new(data.value_bytes),
            wait,
            random: SmallRng::seed_from_u64(seed),
            filling: None,
            next_write: 0,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
        })
    }

    /// Writes every key once.
    ///
    /// # Errors
    /// When an answer is wrong, or does not come.
    pub(crate) fn fill(store: (&str, &StoreAccess), data: LoadData, stop: &StopSignal) -> anyhow::Result<()> {
        let pipeline = (FILL_BYTES_MAX / data.value_bytes).clamp(1, FILL_PIPELINE_MAX) as u32;
        let shape = LoadShape { write_pct: 100, connections: 1, pipeline };
        let mut generator = Generator::connect(store, shape, data, None, 0)?;
        for first in (0..data.keys).step_by(pipeline as usize) {
            generator.filling = Some(first);
            generator.begin(0, pipeline.min(data.keys - first))?;
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
            self.begin(lane, self.shape.pipeline)?;
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
                    self.begin(lane, self.shape.pipeline)?;
                }
            }
        }
        ensure!(!stop.is_set(), "interrupted");
        Ok(Driven { operations, elapsed: started.elapsed(), latency_ns })
    }

    /// Sends a batch of so many requests, or as much of it as has room in the socket.
    fn begin(&mut self, lane: usize, requests: u32) -> anyhow::Result<()> {
        let Lane { expected, answered, unmade, sent_at, .. } = &mut self.lanes[lane];
        expected.clear();
        (*answered, *unmade, *sent_at) = (0, requests, Instant::now());
        self.send(lane)
    }

    /// Makes requests and sends them, until the batch is sent or the socket is full.
    fn send(&mut self, lane: usize) -> anyhow::Result<()> {
        loop {
            if self.lanes[lane].sent == self.lanes[lane].output.len() {
                self.make(lane);
            }
            let Lane { stream, output, sent, .. } = &mut self.lanes[lane];
            if output.is_empty() {
                let is_full = !stream.flush().context("cannot send")?;
                return self.watch_room(lane, is_full);
            }
            match stream.write(&output[*sent..]) {
                Ok(0) => bail!("the store takes nothing"),
                Ok(length) => *sent += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.watch_room(lane, true),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
    }

    /// Has the poller tell, or no longer tell, when the socket has room.
    fn watch_room(&mut self, number: usize, is_full: bool) -> anyhow::Result<()> {
        let lane = &mut self.lanes[number];
        if lane.is_full == is_full {
            return Ok(());
        }
        lane.is_full = is_full;
        let room = if is_full { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        let data = epoll::EventData::new_u64(number as u64);
        epoll::modify(&self.poller, &lane.stream.socket, data, epoll::EventFlags::IN | room)
            .context("cannot watch a socket")
    }

    /// Fills the empty output with the next requests of the batch.
    fn make(&mut self, lane: usize) {
        self.lanes[lane].output.clear();
        self.lanes[lane].sent = 0;
        while self.lanes[lane].unmade > 0 && self.lanes[lane].output.len() < OUTPUT_BYTES {
            self.lanes[lane].unmade -= 1;
            if let Some(key) = self.filling {
                self.filling = Some(key + 1);
                self.put_write(lane, key);
                continue;
            }
            let key = self.random.random_range(0..self.data.keys);
            if self.random.random_range(0..100) < self.shape.write_pct {
                self.put_write(lane, key);
            } else {
                self.put_read(lane, key);
            }
        }
    }

    fn put_read(&mut self, lane: usize, key: u32) {
        let Lane { output, expected, .. } = &mut self.lanes[lane];
        output.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$8\r\n");
        output.extend_from_slice(&digits(key));
        output.extend_from_slice(b"\r\n");
        expected.push(ExpectedAnswer::Value { key });
    }

    fn put_write(&mut self, lane: usize, key: u32) {
        let Lane { output, expected, .. } = &mut self.lanes[lane];
        output.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$8\r\n");
        output.extend_from_slice(&digits(key));
        output.extend_from_slice(b"\r\n");
        output.extend_from_slice(self.form.value_head());
        put_value(output, key, self.next_write, self.data.value_bytes);
        output.extend_from_slice(b"\r\n");
        expected.push(ExpectedAnswer::Done);
        self.next_write = self.next_write.wrapping_add(1);
        if let Some(wanted) = self.wait {
            output.extend_from_slice(
                format!("*3\r\n$4\r\nWAIT\r\n$1\r\n{wanted}\r\n$4\r\n1000\r\n").as_bytes(),
            );
            expected.push(ExpectedAnswer::Replicas { wanted });
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
            if self.lanes[lane].is_full {
                self.send(lane)?;
            }
            if self.lanes[lane].take(&mut self.input, &self.form)? {
                idle(lane);
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Whether all of the batch has been made and answered.
    fn is_idle(&self) -> bool {
        self.unmade == 0 && self.answered == self.expected.len()
    }

    /// Reads once, by way of `input`, and takes the answers; whether that completes the batch.
    fn take(&mut self, input: &mut [u8], form: &AnswerForm) -> anyhow::Result<bool> {
        let kept = self.rest.len();
        let read = match self.stream.read(&mut input[kept..]) {
            Ok(0) => bail!("the store closed a connection"),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false)
            }
            Err(error) => return Err(error).context("cannot read"),
        };
        input[..kept].copy_from_slice(&self.rest);
        let mut rest = &input[..kept + read];
        loop {
            let Some(expected) = self.expected.get(self.answered) else {
                ensure!(rest.is_empty(), "the store sent what nobody asked for: {}", shown(rest));
                break;
            };
            match self.check.front(*expected, rest, form) {
                AnswerFront::Right(length) => {
                    rest = &rest[length..];
                    self.answered += 1;
                }
                AnswerFront::Part(length) => rest = &rest[length..],
                AnswerFront::Incomplete => break,
                AnswerFront::Wrong => bail!("a wrong answer: {} instead of {expected:?}", shown(rest)),
            }
        }
        self.rest.clear();
        self.rest.extend_from_slice(rest);
        Ok(self.is_idle())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::net::TcpListener;

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
    const DATA: LoadData = LoadData { keys: 1000, value_bytes: 16 };

    fn drive(target: &str, wait: Option<u32>) -> anyhow::Result<Driven> {
        let mut generator = Generator::connect((target, &StoreAccess::default()), SHAPE, DATA, wait, 1)?;
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
        Generator::fill((&target, &StoreAccess::default()), DATA, &StopSignal::default()).unwrap();
        let words: Vec<Vec<String>> = receiver.try_iter().collect();
        assert_eq!(words.len(), 1000);
        assert!(words.iter().all(|words| words[0] == "SET" && words[2].starts_with(&words[1])));
        assert_eq!(words[999][1], "000003e7");
    }

    #[test]
    fn values_longer_than_the_socket_has_room_for_are_written_and_read() {
        let written = std::sync::Mutex::new(std::collections::BTreeMap::<String, String>::new());
        let target = store(move |words| match words[0].as_str() {
            "GET" => {
                let written = written.lock().unwrap();
                let value = written.get(&words[1]).unwrap();
                Some(format!("${}\r\n{value}\r\n", value.len()))
            }
            _ => {
                written.lock().unwrap().insert(words[1].clone(), words[2].clone());
                Some("+OK\r\n".to_owned())
            }
        });
        let data = LoadData { keys: 10, value_bytes: 3_000_001 };
        let shape = LoadShape { pipeline: 8, ..SHAPE };
        let stop = StopSignal::default();
        let mut generator =
            Generator::connect((&target, &StoreAccess::default()), shape, data, None, 1).unwrap();
        generator.filling = Some(0);
        generator.begin(0, data.keys).unwrap();
        assert!(generator.lanes[0].is_full, "or this test shows nothing");
        while !generator.lanes[0].is_idle() {
            generator.wait_and_take(&mut |_| {}).unwrap();
        }
        generator.filling = None;
        let driven = generator.run(Duration::from_millis(10), &stop).unwrap();
        assert!(driven.operations >= 8, "{driven:?}");
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
        let mut generator =
            Generator::connect((&store(honest), &StoreAccess::default()), SHAPE, DATA, None, 1).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            stopper.stop_for_test();
        });
        let error = generator.run(Duration::from_secs(60), &stop).unwrap_err().to_string();
        assert_eq!(error, "interrupted");
        assert!(generator.lanes.iter().all(Lane::is_idle));
    }
}
