//! Redis' glob patterns, for `CONFIG GET`, `COMMAND LIST` and the keys of users. Owns the matching, never what is matched.
//!
//! Written by hand, in sixty lines: the available crates match shell globs, with braces and paths, not Redis' patterns.

/// Whether `text` matches `pattern`, ignoring the case of ASCII letters: `*`, `?`, `[abc]`, `[^a-c]`, and `\` before a
/// byte that is taken literally.
///
/// Goes back only to the last star, so it takes at most `pattern` times `text` steps.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    matches_folded(pattern, text, |byte| byte.to_ascii_lowercase(), &mut 0)
}

/// The same with the case of letters. Adds the steps that it takes to `steps`.
pub(crate) fn matches_exactly(pattern: &[u8], text: &[u8], steps: &mut usize) -> bool {
    matches_folded(pattern, text, |byte| byte, steps)
}

/// What all texts begin with that match `pattern`, if that and perhaps a star at its end is all that it is; whether it has the star.
pub(crate) fn plain_prefix(pattern: &[u8]) -> Option<(&[u8], bool)> {
    let (prefix, has_star) = match pattern.strip_suffix(b"*") {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    (!prefix.iter().any(|byte| b"*?[\\".contains(byte))).then_some((prefix, has_star))
}

/// How long the longest part of `pattern` after a star is, in bytes: a text of `n` bytes takes at most that times `n` steps, beside
/// those for the part before the first star.
pub(crate) fn longest_sought(pattern: &[u8]) -> usize {
    let (mut at, mut sought, mut longest) = (0, None, 0);
    while let Some(byte) = pattern.get(at) {
        at += match byte {
            b'[' => read_set(&pattern[at..], 0, |byte| byte).1,
            b'\\' => 2,
            _ => 1,
        };
        if *byte == b'*' {
            sought = Some(at);
        }
        longest = sought.map_or(0, |sought| at - sought).max(longest);
    }
    longest
}

/// The same with bytes that are equal when `fold` makes them so.
fn matches_folded(pattern: &[u8], text: &[u8], fold: impl Fn(u8) -> u8 + Copy, steps: &mut usize) -> bool {
    let (mut p, mut t) = (0, 0);
    // The pattern after the last star, and the text that the star does not cover yet.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        *steps += 1;
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let step = match text.get(t) {
            Some(&byte) => match_one(&pattern[p..], byte, fold),
            None if p == pattern.len() => return true,
            None => return false,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after_star, covered))) => {
                p = after_star;
                t = covered + 1;
                retry = Some((after_star, t));
            }
            (None, None) => return false,
        }
    }
}

/// Matches one byte with the head of `pattern`; gives how many bytes of the pattern were used, if it matches.
fn match_one(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => Some(1),
        b'[' => match_set(pattern, byte, fold),
        b'\\' if pattern.len() > 1 => (fold(pattern[1]) == fold(byte)).then_some(2),
        literal => (fold(literal) == fold(byte)).then_some(1),
    }
}

fn match_set(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> Option<usize> {
    let (is_in, length) = read_set(pattern, byte, fold);
    is_in.then_some(length)
}

/// Whether a byte is in the set at the head of `pattern`, and how many bytes of the pattern that is. One that is never closed ends
/// with the pattern, as in Redis.
fn read_set(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> (bool, usize) {
    let byte = fold(byte);
    let negated = pattern.get(1) == Some(&b'^');
    let mut at = if negated { 2 } else { 1 };
    let mut found = false;
    loop {
        match *pattern.get(at..).unwrap_or_default() {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= fold(escaped) == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [low, b'-', high, ..] => {
                let (low, high) = (fold(low), fold(high));
                found |= (low.min(high)..=low.max(high)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= fold(literal) == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::{longest_sought, matches, plain_prefix};

    #[test]
    fn the_part_that_is_sought_is_measured_with_its_sets_and_escapes() {
        for (pattern, longest) in [
            ("", 0),
            ("abc", 0),
            ("abc*", 0),
            ("abc*de*f", 2),
            ("*a?c", 3),
            ("*\\*\\*", 4),
            ("*[*]b*", 4),
            ("*[*", 2),
            ("a\\*bcd", 0),
            ("**\\", 2),
        ] {
            assert_eq!(longest_sought(pattern.as_bytes()), longest, "{pattern}");
        }
    }

    fn matches_exactly(pattern: &[u8], text: &[u8]) -> bool {
        super::matches_exactly(pattern, text, &mut 0)
    }

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "abc", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("*b*", "abc", true),
            ("a*a*b", "aaab", true),
            ("a*a*c", "aaab", false),
            ("a?c", "abc", true),
            ("a?", "a", false),
            ("ABC", "abc", true),
            ("[ab]c", "bc", true),
            ("[^ab]c", "bc", false),
            ("[a-c]x", "bx", true),
            ("[c-a]x", "bx", true),
            ("[a-", "-", true),
            ("[abc", "c", true),
            ("[\\]]", "]", true),
            ("[]", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\", "\\", true),
            ("maxm*", "maxmemory", true),
            ("maxm*", "maxclients", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} on {text}");
            let has_capitals = pattern.bytes().any(|byte| byte.is_ascii_uppercase());
            let exactly = matches_exactly(pattern.as_bytes(), text.as_bytes());
            assert_eq!(exactly, expected && !has_capitals, "{pattern} on {text}");
            if let Some((prefix, has_star)) = plain_prefix(pattern.as_bytes()) {
                let text = text.as_bytes();
                assert_eq!(
                    if has_star { text.starts_with(prefix) } else { text == prefix },
                    exactly,
                    "{pattern}"
                );
            }
        }
        assert!(
            matches(b"[A-C]", b"b") && !matches_exactly(b"[A-C]", b"b") && matches_exactly(b"[A-C]", b"B")
        );
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let pattern = "*a".repeat(1000) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(1000).as_bytes()));
    }
}
