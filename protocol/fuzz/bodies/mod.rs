//! What each fuzz target does with its bytes. Shared by the targets in `fuzz_targets/`, which libFuzzer drives, and by
//! `protocol/tests/fuzz_corpus.rs`, which runs the same bodies over the corpus and over random bytes in every test run.
//!
//! A body takes any bytes, derives inputs for its subject from them, and panics when the subject breaks a promise. It
//! knows no clock and no randomness: the same bytes always do the same.

pub(crate) mod client;
pub(crate) mod frame;
pub(crate) mod front;
pub(crate) mod handshake;
pub(crate) mod lock_file;
pub(crate) mod master;
pub(crate) mod record;
pub(crate) mod resp;
pub(crate) mod slave;
pub(crate) mod takeover;

/// A target: its name, its body, and inputs to begin with.
pub(crate) struct Target {
    /// The name of the target and of its folder in the corpus.
    pub(crate) name: &'static str,
    /// Takes any bytes; panics when a promise is broken.
    pub(crate) body: fn(&[u8]),
    /// Inputs made from real encodings.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
#[allow(dead_code, reason = "a fuzz target needs its own body alone")]
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "client", body: client::run, seeds: client::seeds },
    Target { name: "frame", body: frame::run, seeds: frame::seeds },
    Target { name: "front", body: front::run, seeds: front::seeds },
    Target { name: "handshake", body: handshake::run, seeds: handshake::seeds },
    Target { name: "lock_file", body: lock_file::run, seeds: lock_file::seeds },
    Target { name: "master", body: master::run, seeds: master::seeds },
    Target { name: "record", body: record::run, seeds: record::seeds },
    Target { name: "resp", body: resp::run, seeds: resp::seeds },
    Target { name: "slave", body: slave::run, seeds: slave::seeds },
    Target { name: "takeover", body: takeover::run, seeds: takeover::seeds },
];

/// Takes decisions off the front of the bytes. After their end everything is zero.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Input(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    /// A number: mostly small, now and then near the maximum.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            255 => u64::MAX,
            254 => u64::MAX - u64::from(self.u8()),
            253 => u64::from(self.u16()) << 40,
            small => u64::from(small),
        }
    }

    /// So many bytes, or what is left.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Some bytes, preceded by their number.
    pub(crate) fn sized(&mut self) -> &'a [u8] {
        let length = usize::from(self.u8());
        self.take(length)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Bytes that look random but are the same in every run: an input for machines, which are driven by any bytes.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}
