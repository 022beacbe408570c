//! Queues of encoded bytes that wait for a socket, in pieces. Short parts are gathered; a long value is shared with its
//! other owners, not copied.
//!
//! Owns how encoded bytes are kept in memory until a socket takes them. Never copies a long value and never moves
//! gathered bytes, so that a queue of many long answers costs as few steps as one of short ones. The checksum of long
//! bytes is computed in steps, just before they leave: [`Pieces::sum_on`].

use bytes::Bytes;
use std::collections::VecDeque;

/// A value of at least this many bytes is shared, not copied. Shorter ones are copied because each piece is a write of
/// its own.
pub(crate) const SHARED_BYTES_MIN: usize = 32 * 1024;

/// A gathered piece is not grown beyond this.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// The checksum of at least this many bytes is computed later, not when they are appended.
const SUMMED_LATER_MIN: usize = 1 << 20;

/// Bytes of a checksum.
const CHECKSUM_BYTES: usize = 4;

/// What an encoder writes to.
pub trait Sink {
    /// The buffer to which short parts are appended.
    fn tail(&mut self) -> &mut Vec<u8>;

    /// Appends a value; a long one is shared, not copied.
    fn value(&mut self, value: &Bytes);

    /// Appends a value and adds it to `checksum`, a CRC-32C. The result is written to the four bytes at `at` of the tail,
    /// little endian.
    fn summed_value(&mut self, at: usize, checksum: u32, value: &Bytes) {
        put_checksum(self.tail(), at, crc32c::crc32c_append(checksum, value));
        self.value(value);
    }
}

/// Writes a checksum to the four bytes at `at`, little endian.
pub(crate) fn put_checksum(bytes: &mut [u8], at: usize, checksum: u32) {
    bytes[at..at + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

impl Sink for Vec<u8> {
    fn tail(&mut self) -> &mut Vec<u8> {
        self
    }

    fn value(&mut self, value: &Bytes) {
        self.extend_from_slice(value);
    }
}

/// The memory of a gathered piece of at most this size is reused.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// A part of [`Pieces`].
#[derive(Debug)]
pub enum Piece {
    /// Short parts, one after the other.
    Gathered(Vec<u8>),
    /// One long value, which others may hold too.
    Shared(Bytes),
}

impl Piece {
    /// The bytes of this piece.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Gathered(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }
}

/// A piece in the queue.
#[derive(Debug)]
struct Queued {
    piece: Piece,
    unsummed: Option<Unsummed>,
}

impl From<Piece> for Queued {
    fn from(piece: Piece) -> Self {
        Queued { piece, unsummed: None }
    }
}

/// A checksum that is still to be written into a gathered piece.
#[derive(Debug)]
struct Unsummed {
    /// Where in the piece it goes.
    at: usize,
    /// The checksum so far.
    checksum: u32,
    /// How many of the following pieces it covers.
    pieces: usize,
    /// How many of them are in it already.
    done: usize,
    /// How many bytes of the next one are in it already.
    bytes: usize,
}

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Pieces {
    /// All but the last one.
    earlier: VecDeque<Queued>,
    /// Bytes in `earlier`.
    earlier_bytes: usize,
    /// The last one, which grows.
    tail: Vec<u8>,
}

impl Pieces {
    /// How many bytes there are in all.
    pub fn len(&self) -> usize {
        self.earlier_bytes + self.tail.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frees up to `pieces` pieces, and returns whether some are left.
    pub fn free(&mut self, pieces: usize) -> bool {
        self.tail = Vec::new();
        let freed = pieces.min(self.earlier.len());
        self.earlier_bytes -=
            self.earlier.drain(..freed).map(|queued| queued.piece.bytes().len()).sum::<usize>();
        !self.earlier.is_empty()
    }

    /// Moves everything from `later` to the end.
    pub fn append(&mut self, later: &mut Pieces) {
        if later.earlier.is_empty() {
            // Most answers are short ones.
            self.tail().append(&mut later.tail);
            return;
        }
        self.close_tail();
        self.earlier_bytes += later.earlier_bytes;
        self.earlier.append(&mut later.earlier);
        self.tail = std::mem::take(&mut later.tail);
        *later = Pieces::default();
    }

    /// Puts `head` before everything, and adds everything to `checksum`. The result is written to the four bytes at
    /// `at` of `head`.
    #[must_use]
    pub fn headed(mut self, head: Vec<u8>, at: usize, checksum: u32) -> Pieces {
        self.close_tail();
        let unsummed = Unsummed { at, checksum, pieces: self.earlier.len(), done: 0, bytes: 0 };
        self.earlier_bytes += head.len();
        self.earlier.push_front(Queued { piece: Piece::Gathered(head), unsummed: Some(unsummed) });
        self
    }

    /// Goes on with the checksum of what leaves next, for up to `bytes` bytes. Returns whether it is unfinished: then call
    /// this again before [`Pieces::pop`], which would otherwise compute the rest at once.
    pub fn sum_on(&mut self, bytes: usize) -> bool {
        let mut left = bytes;
        loop {
            let Some(unsummed) = self.earlier.front_mut().and_then(|front| front.unsummed.as_mut()) else {
                return false;
            };
            if unsummed.done == unsummed.pieces {
                let (at, checksum) = (unsummed.at, unsummed.checksum);
                if let Some(Queued { piece: Piece::Gathered(head), unsummed }) = self.earlier.front_mut() {
                    put_checksum(head, at, checksum);
                    *unsummed = None;
                }
                return false;
            }
            if left == 0 {
                return true;
            }
            let (done, from, checksum) = (unsummed.done, unsummed.bytes, unsummed.checksum);
            let Some(next) = self.earlier.get(1 + done) else { return false };
            let all = next.piece.bytes();
            let to = from.saturating_add(left).min(all.len());
            let checksum = crc32c::crc32c_append(checksum, &all[from..to]);
            let is_done = to == all.len();
            left -= to - from;
            if let Some(unsummed) = self.earlier.front_mut().and_then(|front| front.unsummed.as_mut()) {
                unsummed.checksum = checksum;
                unsummed.done += usize::from(is_done);
                unsummed.bytes = if is_done { 0 } else { to };
            }
        }
    }

    /// Takes the first piece off, which is never empty.
    pub fn pop(&mut self) -> Option<Piece> {
        while self.sum_on(usize::MAX) {}
        match self.earlier.pop_front() {
            Some(Queued { piece, .. }) => {
                self.earlier_bytes -= piece.bytes().len();
                Some(piece)
            }
            None if self.tail.is_empty() => None,
            None => Some(Piece::Gathered(std::mem::take(&mut self.tail))),
        }
    }

    /// Reuses the memory of a piece that was popped.
    pub fn recycle(&mut self, piece: Piece) {
        match piece {
            Piece::Gathered(mut bytes) if self.tail.capacity() == 0 && bytes.capacity() <= KEPT_BYTES_MAX => {
                bytes.clear();
                self.tail = bytes;
            }
            Piece::Gathered(_) | Piece::Shared(_) => {}
        }
    }

    /// Ends the tail, so that something else can follow.
    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.earlier_bytes += self.tail.len();
            self.earlier.push_back(Piece::Gathered(std::mem::take(&mut self.tail)).into());
        }
    }
}

impl Sink for Pieces {
    fn tail(&mut self) -> &mut Vec<u8> {
        if self.tail.len() >= GATHERED_BYTES_MAX {
            self.close_tail();
        }
        &mut self.tail
    }

    fn value(&mut self, value: &Bytes) {
        if value.len() < SHARED_BYTES_MIN {
            self.tail().extend_from_slice(value);
            return;
        }
        self.close_tail();
        self.earlier_bytes += value.len();
        self.earlier.push_back(Piece::Shared(value.clone()).into());
    }

    fn summed_value(&mut self, at: usize, checksum: u32, value: &Bytes) {
        if value.len() < SUMMED_LATER_MIN {
            put_checksum(&mut self.tail, at, crc32c::crc32c_append(checksum, value));
            self.value(value);
            return;
        }
        let unsummed = Unsummed { at, checksum, pieces: 1, done: 0, bytes: 0 };
        self.value(value);
        let behind_head = self.earlier.len().checked_sub(2).and_then(|head| self.earlier.get_mut(head));
        let head =
            behind_head.expect("a long value is a piece of its own, and the tail before it was not empty");
        head.unsummed = Some(unsummed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(pieces: &mut Pieces) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = pieces.pop() {
            assert!(!piece.bytes().is_empty());
            all.extend_from_slice(piece.bytes());
            pieces.recycle(piece);
        }
        assert!(pieces.is_empty());
        all
    }

    #[test]
    fn a_long_value_is_shared_and_a_short_one_is_not() {
        let long = Bytes::from(vec![b'x'; SHARED_BYTES_MIN]);
        let mut pieces = Pieces::default();
        pieces.tail().extend_from_slice(b"$");
        pieces.value(&long);
        pieces.value(&Bytes::from_static(b"short"));
        assert_eq!(pieces.len(), 1 + long.len() + 5);
        assert_eq!(pieces.pop().unwrap().bytes(), b"$");
        assert_eq!(pieces.pop().unwrap().bytes().as_ptr(), long.as_ptr());
        assert_eq!(taken(&mut pieces), b"short");
    }

    /// The bytes of `pieces` when their checksums are computed `step` bytes at a time.
    fn taken_in_steps(pieces: &mut Pieces, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !pieces.is_empty() {
            let mut steps = 0;
            while pieces.sum_on(step) {
                steps += 1;
            }
            assert!(
                step == 0 || steps <= 1 + pieces.len() / step,
                "{steps} steps for {} bytes",
                pieces.len()
            );
            all.extend_from_slice(pieces.pop().expect("there are bytes").bytes());
        }
        all
    }

    /// Something like a frame, with something after it.
    fn frame(value: &Bytes, out: &mut impl Sink) {
        let tail = out.tail();
        let start = tail.len();
        tail.extend_from_slice(b"head....kind");
        out.summed_value(start + 4, crc32c::crc32c(b"kind"), value);
        out.tail().extend_from_slice(b"behind");
    }

    #[test]
    fn the_checksum_of_a_long_value_is_computed_in_steps_when_it_leaves() {
        for length in
            [0, 10, SHARED_BYTES_MIN, SUMMED_LATER_MIN - 1, SUMMED_LATER_MIN, 3 * SUMMED_LATER_MIN + 5]
        {
            let value: Bytes = (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
            let (mut at_once, mut pieces) = (b"before".to_vec(), Pieces::default());
            pieces.tail().extend_from_slice(b"before");
            frame(&value, &mut at_once);
            frame(&value, &mut pieces);
            assert_eq!(pieces.sum_on(1000), length >= SUMMED_LATER_MIN, "{length}");
            assert!(taken_in_steps(&mut pieces, 64 * 1024) == at_once, "{length} bytes");
        }
    }

    #[test]
    fn an_abandoned_value_is_freed_in_steps_without_a_checksum() {
        let mut pieces = Pieces::default();
        let value = Bytes::from(vec![b'x'; SUMMED_LATER_MIN]);
        for _ in 0..10 {
            let at = pieces.tail().len();
            pieces.tail().extend_from_slice(b"????");
            pieces.summed_value(at, 0, &value);
        }
        assert!(pieces.free(7));
        assert_eq!(pieces.earlier.len(), 13);
        assert!(pieces.free(12));
        assert!(!pieces.free(7));
        assert_eq!((pieces.len(), pieces.pop().is_none()), (0, true));
        assert!(value.is_unique(), "something holds the value");
    }

    #[test]
    fn the_checksum_in_a_header_covers_all_pieces_and_is_computed_in_steps() {
        let mut body = Pieces::default();
        for length in [3, 100_000, 5, 40_000] {
            body.tail().extend_from_slice(b"short");
            body.value(&Bytes::from(vec![length as u8; length]));
        }
        let mut whole = Pieces::default();
        whole.tail().extend_from_slice(b"before");
        whole.append(&mut body.headed(b"????".to_vec(), 0, 7));
        let all = taken_in_steps(&mut whole, 1000);
        let (front, content) = all.split_at(10);
        assert_eq!(&front[..6], b"before");
        assert_eq!(front[6..], crc32c::crc32c_append(7, content).to_le_bytes());
        assert_eq!(content.len(), 4 * 5 + 140_008);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Short(usize),
        Value(usize),
        Append(Vec<usize>),
        Pop,
    }

    fn op() -> impl Strategy<Value = Op> {
        let length = prop_oneof![0..40_usize, SHARED_BYTES_MIN - 2..SHARED_BYTES_MIN + 2, Just(70_000)];
        prop_oneof![
            4 => (0..3000_usize).prop_map(Op::Short),
            3 => length.clone().prop_map(Op::Value),
            1 => prop::collection::vec(length, 0..5).prop_map(Op::Append),
            1 => Just(Op::Pop),
        ]
    }

    proptest! {
        #[test]
        fn what_is_appended_comes_out_in_its_order(ops in prop::collection::vec(op(), 0..60)) {
            let (mut pieces, mut expected, mut out) = (Pieces::default(), Vec::new(), Vec::new());
            for (mark, op) in ops.into_iter().enumerate() {
                let some = |length: usize| vec![mark as u8; length];
                match op {
                    Op::Short(length) => {
                        pieces.tail().extend_from_slice(&some(length));
                        expected.extend_from_slice(&some(length));
                    }
                    Op::Value(length) => {
                        pieces.value(&Bytes::from(some(length)));
                        expected.extend_from_slice(&some(length));
                    }
                    Op::Append(lengths) => {
                        let mut later = Pieces::default();
                        for length in lengths {
                            later.value(&Bytes::from(some(length)));
                            later.tail().push(b'.');
                            expected.extend_from_slice(&some(length));
                            expected.push(b'.');
                        }
                        pieces.append(&mut later);
                        prop_assert!(later.is_empty());
                    }
                    Op::Pop => {
                        if let Some(piece) = pieces.pop() {
                            out.extend_from_slice(piece.bytes());
                            pieces.recycle(piece);
                        }
                    }
                }
                prop_assert_eq!(out.len() + pieces.len(), expected.len());
            }
            out.extend_from_slice(&taken(&mut pieces));
            prop_assert_eq!(out, expected);
        }
    }
}
