//! Lua's patterns, matched in bounded steps: a pattern may take time without end, and the interpreter's own matcher cannot be
//! stopped.
//!
//! Source: `lstrlib.c` of Lua 5.1.

/// How deep items may nest.
const DEPTH_MAX: usize = 200;

/// The most captures.
const CAPTURES_MAX: usize = 32;

/// What a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capture {
    /// From here so many bytes.
    Text(usize, usize),
    /// A place, counted from 0.
    Place(usize),
}

/// Where a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) captures: Vec<Capture>,
}

/// Why nothing was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmatched {
    /// The pattern is none.
    Malformed(&'static str),
    /// The steps are used up.
    Steps,
}

#[derive(Clone, Copy)]
enum Open {
    Yes,
    Place,
    Closed(usize),
}

struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    captures: Vec<(usize, Open)>,
    depth: usize,
    steps: u64,
}

type Matched = Result<Option<usize>, Unmatched>;

/// The first match from `init` on, counted from 0. What that takes is taken off `steps`.
pub(super) fn search(
    text: &[u8],
    pattern: &[u8],
    init: usize,
    steps: &mut u64,
) -> Result<Option<Match>, Unmatched> {
    let (is_anchored, pattern) = match pattern.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut matcher = Matcher { text, pattern, captures: Vec::new(), depth: 0, steps: *steps };
    let mut start = init;
    let found = loop {
        matcher.captures.clear();
        match matcher.matches(start, 0) {
            Ok(Some(end)) => break matcher.taken().map(|captures| Some(Match { start, end, captures })),
            Ok(None) => {}
            Err(why) => break Err(why),
        }
        start += 1;
        if is_anchored || start > text.len() {
            break Ok(None);
        }
    };
    *steps = matcher.steps;
    found
}

impl Matcher<'_> {
    fn step(&mut self) -> Result<(), Unmatched> {
        self.steps = self.steps.checked_sub(1).ok_or(Unmatched::Steps)?;
        Ok(())
    }

    fn taken(&self) -> Result<Vec<Capture>, Unmatched> {
        let taken = self.captures.iter().map(|(start, open)| match open {
            Open::Closed(length) => Ok(Capture::Text(*start, *length)),
            Open::Place => Ok(Capture::Place(*start)),
            Open::Yes => Err(Unmatched::Malformed("unfinished capture")),
        });
        taken.collect()
    }

    fn matches(&mut self, at: usize, p: usize) -> Matched {
        self.depth += 1;
        let matched = if self.depth > DEPTH_MAX {
            Err(Unmatched::Malformed("pattern too complex"))
        } else {
            self.matches_here(at, p)
        };
        self.depth -= 1;
        matched
    }

    fn matches_here(&mut self, mut at: usize, mut p: usize) -> Matched {
        loop {
            self.step()?;
            let Some(&item) = self.pattern.get(p) else { return Ok(Some(at)) };
            match (item, self.pattern.get(p + 1)) {
                (b'(', Some(b')')) => return self.open(at, p + 2, Open::Place),
                (b'(', _) => return self.open(at, p + 1, Open::Yes),
                (b')', _) => return self.close(at, p + 1),
                (b'%', Some(b'b')) => match self.balance(at, p + 2)? {
                    Some(end) => (at, p) = (end, p + 4),
                    None => return Ok(None),
                },
                (b'%', Some(b'f')) => {
                    p += 2;
                    if self.pattern.get(p) != Some(&b'[') {
                        return Err(Unmatched::Malformed("missing '[' after '%f' in pattern"));
                    }
                    let end = self.class_end(p)?;
                    let before = at.checked_sub(1).map_or(0, |before| self.text[before]);
                    let here = self.text.get(at).copied().unwrap_or(0);
                    if self.is_in_set(before, p, end - 1) || !self.is_in_set(here, p, end - 1) {
                        return Ok(None);
                    }
                    p = end;
                }
                (b'%', Some(digit @ b'0'..=b'9')) => match self.again(at, *digit)? {
                    Some(end) => (at, p) = (end, p + 2),
                    None => return Ok(None),
                },
                (b'$', None) => return Ok((at == self.text.len()).then_some(at)),
                _ => {
                    let end = self.class_end(p)?;
                    let fits = at < self.text.len() && self.fits(at, p, end);
                    match self.pattern.get(end) {
                        Some(b'?') => {
                            if fits {
                                if let Some(matched) = self.matches(at + 1, end + 1)? {
                                    return Ok(Some(matched));
                                }
                            }
                            p = end + 1;
                        }
                        Some(b'*') => return self.most(at, p, end),
                        Some(b'+') => return if fits { self.most(at + 1, p, end) } else { Ok(None) },
                        Some(b'-') => return self.least(at, p, end),
                        Some(_) | None if fits => (at, p) = (at + 1, end),
                        Some(_) | None => return Ok(None),
                    }
                }
            }
        }
    }

    fn open(&mut self, at: usize, p: usize, open: Open) -> Matched {
        if self.captures.len() >= CAPTURES_MAX {
            return Err(Unmatched::Malformed("too many captures"));
        }
        self.captures.push((at, open));
        let count = self.captures.len();
        let matched = self.matches(at, p)?;
        if matched.is_none() {
            self.captures.truncate(count - 1);
        }
        Ok(matched)
    }

    fn close(&mut self, at: usize, p: usize) -> Matched {
        let last = self.captures.iter().rposition(|(_, open)| matches!(open, Open::Yes));
        let Some(last) = last else { return Err(Unmatched::Malformed("invalid pattern capture")) };
        self.captures[last].1 = Open::Closed(at - self.captures[last].0);
        let matched = self.matches(at, p)?;
        if matched.is_none() {
            self.captures[last].1 = Open::Yes;
        }
        Ok(matched)
    }

    fn most(&mut self, at: usize, p: usize, end: usize) -> Matched {
        let mut count = 0;
        while at + count < self.text.len() && self.fits(at + count, p, end) {
            self.step()?;
            count += 1;
        }
        loop {
            if let Some(matched) = self.matches(at + count, end + 1)? {
                return Ok(Some(matched));
            }
            let Some(less) = count.checked_sub(1) else { return Ok(None) };
            count = less;
        }
    }

    fn least(&mut self, mut at: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(matched) = self.matches(at, end + 1)? {
                return Ok(Some(matched));
            }
            if at >= self.text.len() || !self.fits(at, p, end) {
                return Ok(None);
            }
            at += 1;
        }
    }

    fn balance(&mut self, at: usize, p: usize) -> Matched {
        let (Some(&open), Some(&close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err(Unmatched::Malformed("unbalanced pattern"));
        };
        if self.text.get(at) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for next in at + 1..self.text.len() {
            self.step()?;
            let letter = self.text[next];
            if letter == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(next + 1));
                }
            } else if letter == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    fn again(&mut self, at: usize, digit: u8) -> Matched {
        let index = usize::from(digit).checked_sub(usize::from(b'1'));
        let capture = index.and_then(|index| self.captures.get(index));
        let Some((start, Open::Closed(length))) = capture.copied() else {
            return Err(Unmatched::Malformed("invalid capture index"));
        };
        self.steps = self.steps.checked_sub(length as u64 / 16).ok_or(Unmatched::Steps)?;
        let rest = &self.text[at..];
        Ok(rest.starts_with(&self.text[start..start + length]).then_some(at + length))
    }

    /// Where the item ends that begins at `p`.
    fn class_end(&self, p: usize) -> Result<usize, Unmatched> {
        let unended = Unmatched::Malformed("malformed pattern (missing ']')");
        match self.pattern[p] {
            b'%' if p + 1 < self.pattern.len() => Ok(p + 2),
            b'%' => Err(Unmatched::Malformed("malformed pattern (ends with '%')")),
            b'[' => {
                let mut at = p + 1;
                if self.pattern.get(at) == Some(&b'^') {
                    at += 1;
                }
                loop {
                    let letter = *self.pattern.get(at).ok_or(unended)?;
                    at += 1;
                    if letter == b'%' {
                        at += 1;
                    }
                    // The first one may be a bracket.
                    match self.pattern.get(at) {
                        Some(b']') => return Ok(at + 1),
                        Some(_) => {}
                        None => return Err(unended),
                    }
                }
            }
            _ => Ok(p + 1),
        }
    }

    fn fits(&self, at: usize, p: usize, end: usize) -> bool {
        let letter = self.text[at];
        match self.pattern[p] {
            b'.' => true,
            b'%' => is_of_class(letter, self.pattern[p + 1]),
            b'[' => self.is_in_set(letter, p, end - 1),
            same => same == letter,
        }
    }

    /// Whether a letter is in the set from `p` to the bracket at `last`.
    fn is_in_set(&self, letter: u8, p: usize, last: usize) -> bool {
        let is_inverse = self.pattern.get(p + 1) == Some(&b'^');
        let mut at = if is_inverse { p + 2 } else { p + 1 };
        while at < last {
            if self.pattern[at] == b'%' {
                at += 1;
                if is_of_class(letter, self.pattern[at]) {
                    return !is_inverse;
                }
                at += 1;
            } else if self.pattern.get(at + 1) == Some(&b'-') && at + 2 < last {
                if (self.pattern[at]..=self.pattern[at + 2]).contains(&letter) {
                    return !is_inverse;
                }
                at += 3;
            } else {
                if self.pattern[at] == letter {
                    return !is_inverse;
                }
                at += 1;
            }
        }
        is_inverse
    }
}

fn is_of_class(letter: u8, class: u8) -> bool {
    let is = match class.to_ascii_lowercase() {
        b'a' => letter.is_ascii_alphabetic(),
        b'c' => letter.is_ascii_control(),
        b'd' => letter.is_ascii_digit(),
        b'l' => letter.is_ascii_lowercase(),
        b'p' => letter.is_ascii_punctuation(),
        b's' => letter.is_ascii_whitespace() || letter == 0x0b,
        b'u' => letter.is_ascii_uppercase(),
        b'w' => letter.is_ascii_alphanumeric(),
        b'x' => letter.is_ascii_hexdigit(),
        b'z' => letter == 0,
        _ => return class == letter,
    };
    is != class.is_ascii_uppercase()
}
