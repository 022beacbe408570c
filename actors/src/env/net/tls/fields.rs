//! What is read of a certificate's bytes: until when it is valid, and whose names it has.
//!
//! Written by hand: rustls checks these fields and does not tell them, and a parser of whole certificates would bring a dozen
//! crates for them. Whatever is not as it must be is `None`.
//!
//! Source: RFC 5280, 4.1.

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// Whose certificate it is, and who has issued it: the contents of both fields.
pub(super) struct Names<'a> {
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
}

/// The names of a certificate.
pub(super) fn names(certificate: &[u8]) -> Option<Names<'_>> {
    let (issuer, rest) = field(from_issuer(certificate)?, SEQUENCE)?;
    // Between them is the validity.
    let (subject, _) = field(skip(rest)?, SEQUENCE)?;
    Some(Names { issuer, subject })
}

/// Seconds since 1970 of a certificate's `notAfter`.
pub(super) fn valid_until(certificate: &[u8]) -> Option<u64> {
    let (validity, _) = field(skip(from_issuer(certificate)?)?, SEQUENCE)?;
    let until = skip(validity)?;
    match *until.first()? {
        UTC_TIME => {
            let text = std::str::from_utf8(field(until, UTC_TIME)?.0).ok()?;
            let century = if number(text, 0, 2)? < 50 { 2000 } else { 1900 };
            seconds(century + number(text, 0, 2)?, text.get(2..)?)
        }
        GENERALIZED_TIME => {
            let text = std::str::from_utf8(field(until, GENERALIZED_TIME)?.0).ok()?;
            seconds(number(text, 0, 4)?, text.get(4..)?)
        }
        _ => None,
    }
}

/// A certificate's fields from the issuer on: before it are version, serial number and algorithm.
fn from_issuer(certificate: &[u8]) -> Option<&[u8]> {
    let (body, _) = field(certificate, SEQUENCE)?;
    let (mut rest, _) = field(body, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = skip(rest)?;
    }
    skip(skip(rest)?)
}

/// The content of the first field, which has this tag, and what follows it.
fn field(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    if *found != tag {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long => {
            let (digits, rest) =
                rest.split_at_checked(usize::from(long & 0x7f)).filter(|_| long & 0x7f <= 4)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    rest.split_at_checked(length)
}

fn skip(bytes: &[u8]) -> Option<&[u8]> {
    field(bytes, *bytes.first()?).map(|(_, rest)| rest)
}

fn number(text: &str, from: usize, digits: usize) -> Option<u64> {
    let digits = text.get(from..from + digits)?;
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The seconds since 1970 of `MMDDHHMMSSZ` in that year; 0 before.
fn seconds(year: u64, rest: &str) -> Option<u64> {
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|place| number(rest, place, 2));
    let (month, day) = (month?, day?);
    if !rest.ends_with('Z') || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leap_days = (1970..year).filter(|year| is_leap(*year)).count() as u64;
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let leap_day = u64::from(month > 2 && is_leap(year));
    let days = 365 * (year - 1970) + leap_days + before + leap_day + day - 1;
    Some(((days * 24 + hour?) * 60 + minute?) * 60 + second?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of nothing but what is read, with this as its end.
    fn certificate(tag: u8, until: &str) -> Vec<u8> {
        let field = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
        let begin = field(UTC_TIME, b"260101000000Z");
        let validity = field(SEQUENCE, &[begin, field(tag, until.as_bytes())].concat());
        let names = [field(VERSION, &[2, 1, 2]), field(2, &[7]), field(SEQUENCE, &[]), field(SEQUENCE, &[])];
        field(SEQUENCE, &field(SEQUENCE, &[names.concat(), validity].concat()))
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_spellings() {
        for (tag, text, until) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "261129215245Z", Some(1_795_989_165)),
            (UTC_TIME, "240229235959Z", Some(1_709_251_199)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "261329215245Z", None),
            (UTC_TIME, "2611292152", None),
            (UTC_TIME, "26112921524x", None),
            (SEQUENCE, "", None),
        ] {
            assert_eq!(valid_until(&certificate(tag, text)), until, "{text}");
        }
    }

    #[test]
    fn a_certificate_that_is_cut_off_or_damaged_has_no_end() {
        let whole = certificate(UTC_TIME, "261129215245Z");
        for length in 0..whole.len() {
            assert_eq!(valid_until(&whole[..length]), None, "{length} bytes");
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 0xff;
            // Whatever it says: no panic.
            let _ = valid_until(&damaged);
        }
    }
}
