//! What requests carry and what answers must be: keys, values of any length, and the check of each answer as it comes.
//!
//! A value names its key and its write in its first [`STAMP_BYTES`] bytes and again every [`STAMP_DISTANCE`] bytes; between
//! these stamps is filler, whose content is not looked at. So the check of a long value costs next to nothing beside the copy
//! that brings it here, and still finds a value of another key, of another length, shifted, or put together from two writes.
//!
//! It does no IO.

/// Length of the number of a key, and of that of a write.
pub(crate) const DIGITS: usize = 8;

/// The numbers of the key and of the write, eight hexadecimal digits each; the length of the shortest value.
pub(crate) const STAMP_BYTES: usize = 2 * DIGITS;

/// From the beginning of a stamp to that of the next.
const STAMP_DISTANCE: usize = 4096;

/// Text, as the log of a store keeps it as it is.
const FILLER: u8 = b'x';

/// The most of a wrong answer that is shown.
const SHOWN_BYTES_MAX: usize = 120;

const WRITE_ANSWER: &[u8] = b"+OK\r\n";

/// Eight hexadecimal digits.
pub(crate) fn digits(number: u32) -> [u8; DIGITS] {
    let mut digits = [0; DIGITS];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * place)) as usize & 15];
    }
    digits
}

/// Appends the value that write number `write` gives to `key`.
pub(crate) fn put_value(output: &mut Vec<u8>, key: u32, write: u32, value_bytes: usize) {
    let mut stamp = [0; STAMP_BYTES];
    stamp[..DIGITS].copy_from_slice(&digits(key));
    stamp[DIGITS..].copy_from_slice(&digits(write));
    let end = output.len() + value_bytes;
    while output.len() < end {
        let block = STAMP_DISTANCE.min(end - output.len());
        let filled = output.len() + block;
        output.extend_from_slice(&stamp[..STAMP_BYTES.min(block)]);
        output.resize(filled, FILLER);
    }
}

/// An answer that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpectedAnswer {
    /// A value of this key.
    Value { key: u32 },
    /// The write is done.
    Done,
    /// At least so many replicas have it.
    Replicas { wanted: u32 },
}

/// What is at the front of what was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnswerFront {
    /// The rest of the answer, of this length.
    Right(usize),
    /// So many bytes of an answer that goes on.
    Part(usize),
    /// Too little to tell.
    Incomplete,
    /// Something else.
    Wrong,
}

/// The form of the answers of one load.
#[derive(Debug)]
pub(crate) struct AnswerForm {
    value_head: Vec<u8>,
    value_bytes: usize,
}

impl AnswerForm {
    /// Of values of this length.
    pub(crate) fn new(value_bytes: usize) -> AnswerForm {
        AnswerForm { value_head: format!("${value_bytes}\r\n").into_bytes(), value_bytes }
    }

    /// The line before a value, in an answer as in a request.
    pub(crate) fn value_head(&self) -> &[u8] {
        &self.value_head
    }
}

/// Checks the answers of one connection, in whatever pieces they come.
#[derive(Debug, Default)]
pub(crate) struct AnswerCheck {
    /// Of the value that is coming: how much of it has been checked, and its first stamp.
    begun: Option<(usize, [u8; STAMP_BYTES])>,
}

impl AnswerCheck {
    /// Looks at the front of `input`, which begins with the answer that is expected, or with what is missing of it.
    pub(crate) fn front(&mut self, expected: ExpectedAnswer, input: &[u8], form: &AnswerForm) -> AnswerFront {
        match expected {
            ExpectedAnswer::Value { key } => self.value(key, input, form),
            ExpectedAnswer::Done => {
                let begins = input.len().min(WRITE_ANSWER.len());
                if input[..begins] != WRITE_ANSWER[..begins] {
                    return whole_line(input);
                }
                if begins == WRITE_ANSWER.len() {
                    AnswerFront::Right(begins)
                } else {
                    AnswerFront::Incomplete
                }
            }
            ExpectedAnswer::Replicas { wanted } => {
                let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
                    return whole_line(input);
                };
                let line = std::str::from_utf8(&input[..end]).unwrap_or_default().trim_end();
                match line.strip_prefix(':').and_then(|count| count.parse::<u32>().ok()) {
                    Some(count) if count >= wanted => AnswerFront::Right(end + 1),
                    Some(_) | None => AnswerFront::Wrong,
                }
            }
        }
    }

    fn value(&mut self, key: u32, input: &[u8], form: &AnswerForm) -> AnswerFront {
        let mut taken = 0;
        let (mut at, mut stamp) = match self.begun {
            Some(begun) => begun,
            None => {
                let begins = input.len().min(form.value_head.len());
                if input[..begins] != form.value_head[..begins] {
                    return whole_line(input);
                }
                if begins < form.value_head.len() {
                    return AnswerFront::Incomplete;
                }
                taken = begins;
                (0, [0; STAMP_BYTES])
            }
        };
        while at < form.value_bytes {
            let rest = &input[taken..];
            let within = at % STAMP_DISTANCE;
            let block = (STAMP_DISTANCE - within).min(form.value_bytes - at);
            let step = if within == 0 {
                let Some(found) = rest.get(..block.min(STAMP_BYTES)) else { break };
                if at == 0 {
                    stamp.copy_from_slice(found);
                }
                if !stamp.starts_with(found) || !stamp.starts_with(&digits(key)) {
                    return AnswerFront::Wrong;
                }
                found.len()
            } else {
                block.min(rest.len())
            };
            if step == 0 {
                break;
            }
            at += step;
            taken += step;
        }
        match input.get(taken..taken + 2) {
            Some(end) if at == form.value_bytes => {
                self.begun = None;
                if end == b"\r\n" {
                    AnswerFront::Right(taken + 2)
                } else {
                    AnswerFront::Wrong
                }
            }
            _ if taken == 0 => AnswerFront::Incomplete,
            _ => {
                self.begun = Some((at, stamp));
                AnswerFront::Part(taken)
            }
        }
    }
}

/// What to say of an answer that is not the one that was expected: it is shown with its first line, when that is there.
fn whole_line(input: &[u8]) -> AnswerFront {
    if input.contains(&b'\n') || input.len() >= SHOWN_BYTES_MAX {
        AnswerFront::Wrong
    } else {
        AnswerFront::Incomplete
    }
}

/// The first line of an answer, as far as it is shown.
pub(crate) fn shown(input: &[u8]) -> String {
    let line = input.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_eight_digits() {
        assert_eq!(&digits(0x1f3), b"000001f3");
        assert_eq!(&digits(u32::MAX), b"ffffffff");
    }

    fn front(expected: ExpectedAnswer, input: &[u8]) -> AnswerFront {
        AnswerCheck::default().front(expected, input, &AnswerForm::new(16))
    }

    #[test]
    fn an_answer_is_right_when_it_names_its_key() {
        let expected = ExpectedAnswer::Value { key: 7 };
        let right = b"$16\r\n0000000700000001\r\n+OK\r\n";
        assert_eq!(front(expected, right), AnswerFront::Right(23));
        for end in 0..5 {
            assert_eq!(front(expected, &right[..end]), AnswerFront::Incomplete, "{end}");
        }
        assert_eq!(front(expected, b"$16\r\n0000000800000001\r\n"), AnswerFront::Wrong);
        assert_eq!(front(expected, b"$16\r\n0000000700000001+OK"), AnswerFront::Wrong);
        assert_eq!(front(expected, b"$-1\r\n"), AnswerFront::Wrong);
        assert_eq!(front(expected, b"-STANDBY"), AnswerFront::Incomplete, "it is shown whole");
    }

    #[test]
    fn writes_are_done_and_have_their_replicas() {
        assert_eq!(front(ExpectedAnswer::Done, b"+OK\r\n+OK\r\n"), AnswerFront::Right(5));
        assert_eq!(front(ExpectedAnswer::Done, b"+O"), AnswerFront::Incomplete);
        assert_eq!(front(ExpectedAnswer::Done, b"-ERR no\r\n"), AnswerFront::Wrong);
        let expected = ExpectedAnswer::Replicas { wanted: 1 };
        assert_eq!(front(expected, b":2\r\n"), AnswerFront::Right(4));
        assert_eq!(front(expected, b":2"), AnswerFront::Incomplete);
        assert_eq!(front(expected, b":0\r\n"), AnswerFront::Wrong);
    }

    /// Feeds an answer in pieces of `piece` new bytes each; how much was taken until it was right, `None` if it is wrong.
    fn in_pieces(answer: &[u8], piece: usize, value_bytes: usize) -> Option<usize> {
        let (mut check, form) = (AnswerCheck::default(), AnswerForm::new(value_bytes));
        let (mut taken, mut filled) = (0, 0);
        loop {
            match check.front(ExpectedAnswer::Value { key: 3 }, &answer[taken..filled], &form) {
                AnswerFront::Right(length) => return Some(taken + length),
                AnswerFront::Part(length) => taken += length,
                AnswerFront::Incomplete if filled < answer.len() => filled = answer.len().min(filled + piece),
                AnswerFront::Incomplete | AnswerFront::Wrong => return None,
            }
        }
    }

    fn answer(value_bytes: usize) -> Vec<u8> {
        let mut answer = format!("${value_bytes}\r\n").into_bytes();
        put_value(&mut answer, 3, 0xabc, value_bytes);
        answer.extend_from_slice(b"\r\n");
        answer
    }

    #[test]
    fn a_value_of_any_length_is_checked_in_any_pieces() {
        for value_bytes in [16, 17, 1000, 4096, 4097, 4100, 4112, 65_536, 70_001] {
            let answer = answer(value_bytes);
            for piece in [1, 15, 16, 17, 4096, 100_000] {
                assert_eq!(
                    in_pieces(&answer, piece, value_bytes),
                    Some(answer.len()),
                    "{value_bytes} {piece}"
                );
            }
        }
    }

    #[test]
    fn a_value_that_is_shifted_mixed_or_of_another_length_is_wrong() {
        let value_bytes = 10_000;
        let right = answer(value_bytes);
        let mut shifted = right.clone();
        shifted.remove(500);
        shifted.insert(5000, b'x');
        let mut mixed = right.clone();
        // Of the same key's next write, from the second stamp on.
        let second = right.len() - 2 - value_bytes + STAMP_DISTANCE;
        mixed[second + STAMP_BYTES - 1] = b'd';
        let mut long = right.clone();
        long.insert(right.len() - 2, b'x');
        let other_head = answer(value_bytes - 1);
        for wrong in [shifted, mixed, long, other_head] {
            assert_eq!(in_pieces(&wrong, 700, value_bytes), None);
        }
    }
}
