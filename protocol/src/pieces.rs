//! Bytes on their way out, in pieces: what is short is gathered, a long value is shared with whoever holds it.
//!
//! Owns how encoded bytes stand in memory until a socket takes them. Copies no long value and never moves what it has
//! gathered, so that a queue of many long answers costs the same few steps as one of short ones.

use bytes::Bytes;
use std::collections::VecDeque;

/// A value of at least so many bytes is shared, not copied: each piece is a write of its own.
const SHARED_BYTES_MIN: usize = 32 * 1024;

/// A gathered piece is not grown beyond this.
const GATHERED_BYTES_MAX: usize = 64 * 1024;

/// What an encoder writes to.
pub trait Sink {
    /// Where short things are appended.
    fn tail(&mut self) -> &mut Vec<u8>;

    /// Appends a value.
    fn value(&mut self, value: &Bytes);
}

impl Sink for Vec<u8> {
    fn tail(&mut self) -> &mut Vec<u8> {
        self
    }

    fn value(&mut self, value: &Bytes) {
        self.extend_from_slice(value);
    }
}

/// A gathered piece of at most this size is used again.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// A part of [`Pieces`].
#[derive(Debug)]
pub enum Piece {
    /// Short things.
    Gathered(Vec<u8>),
    /// A long value.
    Shared(Bytes),
}

impl Piece {
    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Gathered(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }
}

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Pieces {
    /// All but the last one.
    earlier: VecDeque<Piece>,
    /// Bytes in `earlier`.
    earlier_bytes: usize,
    /// The last one, which grows.
    tail: Vec<u8>,
}

impl Pieces {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.earlier_bytes + self.tail.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes off everything.
    pub fn clear(&mut self) {
        *self = Pieces::default();
    }

    /// Appends everything of `later`, which is left empty.
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

    /// Takes the first piece off, which is never empty.
    pub fn pop(&mut self) -> Option<Piece> {
        match self.earlier.pop_front() {
            Some(piece) => {
                self.earlier_bytes -= piece.bytes().len();
                Some(piece)
            }
            None if self.tail.is_empty() => None,
            None => Some(Piece::Gathered(std::mem::take(&mut self.tail))),
        }
    }

    /// Uses the memory of a piece again that was popped.
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
            self.earlier.push_back(Piece::Gathered(std::mem::take(&mut self.tail)));
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
        self.earlier.push_back(Piece::Shared(value.clone()));
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
