//! The requests of a load's clients, of one key and of several, alone and in pipelines, and the checks of their
//! answers. Sends nothing and reads no clock.

use super::resp::{encoded, Answer};
use bytes::Bytes;
use dsm_history::{Action, Begun, History, OperationOutcome};
use rand::rngs::StdRng;
use rand::RngExt as _;

/// The most requests in one pipeline.
const PIPELINE_MAX: usize = 8;

/// The text that fills a value up to its length. It is so long that a shifted or repeated piece is noticed.
const FILLER: &[u8] = b"a value that is longer than it needs to be: \x00\r\n%25\xff ";

/// A value to write. Its name is unique and represents it in histories; the rest only makes it long.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    name: Bytes,
    bytes: usize,
}

impl Value {
    fn text(&self) -> Vec<u8> {
        if self.bytes <= self.name.len() {
            return self.name.to_vec();
        }
        let mut text = self.name.to_vec();
        text.extend_from_slice(format!("#{}#", self.bytes).as_bytes());
        text.extend(FILLER.iter().copied().cycle().take(self.bytes));
        text
    }
}

/// The name of a value, if every byte is as it was written; else the whole value, which no request has written.
pub(crate) fn name_of(value: Vec<u8>) -> Bytes {
    let mut parts = value.splitn(3, |byte| *byte == b'#');
    let (name, bytes, filler) = (parts.next(), parts.next(), parts.next());
    let bytes: Option<usize> =
        bytes.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    match (name, bytes, filler) {
        (Some(name), Some(bytes), Some(filler))
            if filler.len() == bytes && filler.iter().eq(FILLER.iter().cycle().take(bytes)) =>
        {
            Bytes::copy_from_slice(name)
        }
        _ => value.into(),
    }
}

#[derive(Clone, Debug)]
enum Ask {
    Get(Bytes),
    GetMany(Vec<Bytes>),
    Set(Bytes, Value),
    /// Whether the keys are this request's alone.
    SetMany(Vec<Bytes>, Value, bool),
    Delete(Bytes),
    /// Whether only to a key that is there; else only to one that is not.
    SetIf(Bytes, Value, bool),
    /// The answer is what was there.
    Swap(Bytes, Value),
    /// The same; then it is deleted.
    Take(Bytes),
}

/// Keys that one request wrote together and that no other request writes, with the outcome.
#[derive(Clone, Debug)]
pub(crate) struct Together {
    /// The keys.
    pub(crate) keys: Vec<Bytes>,
    /// The value of each of them.
    pub(crate) value: Bytes,
    /// Whether it happened.
    pub(crate) outcome: OperationOutcome,
}

/// A request, from its draw to its answer.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    ask: Ask,
    begun: Vec<Begun>,
    /// How it ended; unknown until it has.
    outcome: OperationOutcome,
    /// What was read, in the order of the keys.
    read: Vec<Option<Bytes>>,
}

impl Request {
    fn new(ask: Ask) -> Request {
        Request { ask, begun: Vec::new(), outcome: OperationOutcome::Unknown, read: Vec::new() }
    }

    fn keys(&self) -> &[Bytes] {
        match &self.ask {
            Ask::Get(key) | Ask::Set(key, _) | Ask::Delete(key) => std::slice::from_ref(key),
            Ask::SetIf(key, ..) | Ask::Swap(key, _) | Ask::Take(key) => std::slice::from_ref(key),
            Ask::GetMany(keys) | Ask::SetMany(keys, _, _) => keys,
        }
    }

    /// Whether it changes something.
    pub(crate) fn is_write(&self) -> bool {
        match &self.ask {
            Ask::Set(..) | Ask::SetMany(..) | Ask::Delete(_) => true,
            Ask::SetIf(..) | Ask::Swap(..) | Ask::Take(_) => true,
            Ask::Get(_) | Ask::GetMany(_) => false,
        }
    }

    fn written(&self) -> Option<&Bytes> {
        match &self.ask {
            Ask::Set(_, value) | Ask::SetMany(_, value, _) => Some(&value.name),
            Ask::SetIf(_, value, _) | Ask::Swap(_, value) => Some(&value.name),
            Ask::Get(_) | Ask::GetMany(_) | Ask::Delete(_) | Ask::Take(_) => None,
        }
    }

    /// Notes in the history that it is about to be sent: one operation for each key.
    pub(crate) fn begin(&mut self, client: u64, now_ns: u64, history: &mut History) {
        let action = match &self.ask {
            Ask::Get(_) | Ask::GetMany(_) => Action::Read(None),
            Ask::Set(_, value) | Ask::SetMany(_, value, _) => Action::Write(value.name.clone()),
            Ask::Delete(_) => Action::Delete { existed: None },
            Ask::SetIf(_, value, if_present) => {
                Action::WriteIf { value: value.name.clone(), if_present: *if_present, done: false }
            }
            Ask::Swap(_, value) => Action::Swap { value: Some(value.name.clone()), seen: None },
            Ask::Take(_) => Action::Swap { value: None, seen: None },
        };
        let keys = self.keys().iter();
        self.begun = keys.map(|key| history.begin(client, key.clone(), action.clone(), now_ns)).collect();
    }

    /// Appends it as it travels.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let request = match &self.ask {
            Ask::Get(key) => encoded(&[b"GET", key]),
            Ask::Delete(key) => encoded(&[b"DEL", key]),
            Ask::Set(key, value) => encoded(&[b"SET", key, &value.text()]),
            Ask::SetIf(key, value, true) => encoded(&[b"SET", key, &value.text(), b"XX"]),
            Ask::SetIf(key, value, false) => encoded(&[b"SET", key, &value.text(), b"NX"]),
            Ask::Swap(key, value) => encoded(&[b"SET", key, &value.text(), b"GET"]),
            Ask::Take(key) => encoded(&[b"GETDEL", key]),
            Ask::GetMany(keys) => {
                let mut words: Vec<&[u8]> = vec![b"MGET"];
                words.extend(keys.iter().map(|key| &**key));
                encoded(&words)
            }
            Ask::SetMany(keys, value, _) => {
                let text = value.text();
                let mut words: Vec<&[u8]> = vec![b"MSET"];
                words.extend(keys.iter().flat_map(|key| [&**key, &*text]));
                encoded(&words)
            }
        };
        out.extend(request);
    }

    /// Records its outcome, for all of its keys.
    pub(crate) fn finish(&mut self, outcome: OperationOutcome, now_ns: u64, history: &mut History) {
        self.outcome = outcome;
        for begun in &self.begun {
            history.finish(*begun, outcome, now_ns);
        }
    }

    /// Records its answer.
    ///
    /// # Errors
    /// The answer, when it does not fit this request.
    pub(crate) fn finish_with(
        &mut self,
        answer: Answer,
        now_ns: u64,
        history: &mut History,
    ) -> Result<(), Answer> {
        match (&self.ask, answer) {
            (Ask::Set(..) | Ask::SetMany(..), Answer::Simple(ok)) if ok == "OK" => {
                self.finish(OperationOutcome::Done, now_ns, history);
            }
            (Ask::Delete(_), Answer::Integer(count @ 0..=1)) => {
                self.outcome = OperationOutcome::Done;
                history.finish_delete(self.begun[0], count == 1, now_ns);
            }
            (Ask::SetIf(..), answer @ (Answer::Simple(_) | Answer::Null)) => {
                let done = answer != Answer::Null;
                // What was not written has overwritten nothing.
                self.outcome = if done { OperationOutcome::Done } else { OperationOutcome::NotExecuted };
                history.finish_write_if(self.begun[0], done, now_ns);
            }
            (Ask::Swap(..) | Ask::Take(_), answer @ (Answer::Bulk(_) | Answer::Null)) => {
                let seen = if let Answer::Bulk(value) = answer { Some(name_of(value)) } else { None };
                self.outcome = OperationOutcome::Done;
                history.finish_swap(self.begun[0], seen, now_ns);
            }
            (Ask::Get(_), answer @ (Answer::Bulk(_) | Answer::Null)) => {
                self.finish_reads(vec![answer], now_ns, history)?
            }
            (Ask::GetMany(keys), Answer::Array(answers)) if answers.len() == keys.len() => {
                self.finish_reads(answers, now_ns, history)?;
            }
            (_, other) => return Err(other),
        }
        Ok(())
    }

    fn finish_reads(
        &mut self,
        answers: Vec<Answer>,
        now_ns: u64,
        history: &mut History,
    ) -> Result<(), Answer> {
        for (begun, answer) in self.begun.iter().zip(answers) {
            let value = match answer {
                Answer::Bulk(value) => Some(name_of(value)),
                Answer::Null => None,
                other => return Err(other),
            };
            history.finish_read(*begun, value.clone(), now_ns);
            self.read.push(value);
        }
        self.outcome = OperationOutcome::Done;
        Ok(())
    }

    /// What it wrote together, if no other request writes these keys.
    pub(crate) fn together(&self) -> Option<Together> {
        match &self.ask {
            Ask::SetMany(keys, value, true) => {
                Some(Together { keys: keys.clone(), value: value.name.clone(), outcome: self.outcome })
            }
            Ask::Get(_) | Ask::GetMany(_) | Ask::Set(..) | Ask::SetMany(..) | Ask::Delete(_) => None,
            Ask::SetIf(..) | Ask::Swap(..) | Ask::Take(_) => None,
        }
    }
}

/// What is wrong with the values that the request at place `at` of a pipeline has read: one that a later request of the
/// pipeline writes, or one that an earlier request of it had overwritten.
pub(crate) fn order_of(pipeline: &[Request], at: usize) -> Option<String> {
    let reader = &pipeline[at];
    for (key, value) in reader.keys().iter().zip(&reader.read) {
        let Some(value) = value else { continue };
        let wrote_it = |request: &Request| request.written() == Some(value) && request.keys().contains(key);
        if pipeline[at..].iter().any(wrote_it) {
            return Some(format!("{key:?} reads {value:?}, which its pipeline writes later: {pipeline:?}"));
        }
        let Some(writer) = pipeline[..at].iter().position(wrote_it) else { continue };
        let overwrites = |request: &Request| {
            request.is_write() && request.outcome == OperationOutcome::Done && request.keys().contains(key)
        };
        if pipeline[writer + 1..at].iter().any(overwrites) {
            return Some(format!(
                "{key:?} reads {value:?}, which its pipeline had overwritten: {pipeline:?}"
            ));
        }
    }
    None
}

/// The random requests of one client.
pub(crate) struct Requests {
    client: u64,
    shared_keys: u64,
    /// No value is filled up to more than this.
    value_bytes_max: usize,
    random: StdRng,
    written: u64,
}

impl Requests {
    /// The requests of `client` on `shared_keys` keys that all clients use, and on keys of its own.
    pub(crate) fn new(client: u64, shared_keys: u64, value_bytes_max: usize, random: StdRng) -> Requests {
        Requests { client, shared_keys, value_bytes_max, random, written: 0 }
    }

    /// The next pipeline: in three of five a single request.
    pub(crate) fn pipeline(&mut self) -> Vec<Request> {
        let length =
            if self.random.random_bool(0.6) { 1 } else { self.random.random_range(2..=PIPELINE_MAX) };
        (0..length).map(|_| Request::new(self.ask())).collect()
    }

    /// Some writes go to keys that are never written again, so that nothing can hide their loss.
    fn ask(&mut self) -> Ask {
        match self.random.random_range(0..24) {
            0..=6 => Ask::Get(self.shared()),
            7..=8 => Ask::GetMany(self.several()),
            9..=10 => Ask::Delete(self.shared()),
            11..=12 => {
                let value = self.value();
                let key = format!("once-{}-{}", self.client, self.written);
                Ask::Set(key.into(), value)
            }
            13 => {
                let value = self.value();
                let keys = (0..3).map(|n| Bytes::from(format!("with-{}-{}-{n}", self.client, self.written)));
                Ask::SetMany(keys.collect(), value, true)
            }
            14 => Ask::SetMany(self.several(), self.value(), false),
            15..=16 => Ask::SetIf(self.shared(), self.value(), self.random.random_bool(0.5)),
            17 => Ask::Swap(self.shared(), self.value()),
            18 => Ask::Take(self.shared()),
            _ => Ask::Set(self.shared(), self.value()),
        }
    }

    fn shared(&mut self) -> Bytes {
        format!("key-{}", self.random.random_range(0..self.shared_keys)).into()
    }

    /// Two to four different keys that all clients use.
    fn several(&mut self) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> = (0..self.random.random_range(2..=4)).map(|_| self.shared()).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Every value is unique. Most are short.
    fn value(&mut self) -> Value {
        self.written += 1;
        let bytes = match self.random.random_range(0..200) {
            0 => 300_000,
            1..=6 => 20_000,
            7..=30 => 1_000,
            _ => 0,
        };
        let bytes = bytes.min(self.value_bytes_max);
        Value { name: format!("{}.{}", self.client, self.written).into(), bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &'static str, bytes: usize) -> Value {
        Value { name: name.into(), bytes }
    }

    fn read(key: &'static str, value: &'static str) -> Request {
        Request { read: vec![Some(value.into())], ..Request::new(Ask::Get(key.into())) }
    }

    fn set(key: &'static str, name: &'static str) -> Request {
        Request { outcome: OperationOutcome::Done, ..Request::new(Ask::Set(key.into(), value(name, 0))) }
    }

    #[test]
    fn a_value_is_known_by_its_name_only_when_every_byte_is_right() {
        for bytes in [0, 1, 1000, 20_000] {
            assert_eq!(name_of(value("1.7", bytes).text()), "1.7");
        }
        let whole = value("1.7", 1000).text();
        for place in [0, 4, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            assert_ne!(name_of(damaged), "1.7", "byte {place}");
        }
        assert_ne!(name_of(whole[..whole.len() - 1].to_vec()), "1.7");
    }

    #[test]
    fn a_read_that_shows_a_later_write_of_its_pipeline_is_found() {
        assert!(order_of(&[read("k", "new"), set("k", "new")], 0).is_some());
        assert_eq!(order_of(&[set("k", "new"), read("k", "new")], 1), None);
        assert_eq!(order_of(&[read("k", "new"), set("other", "new")], 0), None);
    }

    #[test]
    fn a_read_that_shows_what_its_pipeline_had_overwritten_is_found() {
        assert!(order_of(&[set("k", "old"), set("k", "new"), read("k", "old")], 2).is_some());
        assert_eq!(order_of(&[set("k", "old"), read("k", "old"), set("k", "new")], 1), None);
    }
}
