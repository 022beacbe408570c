//! Numbers for people: thousands separators, percentages, durations. It never rounds what a file holds, only what is shown.

/// `v` with `decimals` digits after the point and a comma between thousands: `12,345.6`.
pub(crate) fn thousands(v: f64, decimals: usize) -> String {
    if !v.is_finite() {
        return "–".to_owned();
    }
    let plain = format!("{:.decimals$}", v.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut text = String::with_capacity(plain.len() + plain.len() / 3 + 1);
    if v < 0.0 && plain.bytes().any(|digit| (b'1'..=b'9').contains(&digit)) {
        text.push('-');
    }
    for (at, digit) in whole.char_indices() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// A count with a comma between thousands.
pub(crate) fn count(v: u64) -> String {
    let digits = v.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 slave`, `1,200 clients`.
pub(crate) fn counted(v: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(v), if v == 1 { "" } else { "s" })
}

/// As many decimals as show three digits: `0.123`, `12.3`, `1,234`. Whole numbers have none.
pub(crate) fn short(v: f64) -> String {
    let size = v.abs();
    let decimals = match size {
        _ if v == v.trunc() || size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    thousands(v, decimals)
}

/// A share in per cent: `0 %`, `0.02 %`, `12.3 %`, and `<0.001 %` for what would round to nothing.
pub(crate) fn per_cent(v: f64) -> String {
    if v > 0.0 && v < 0.001 {
        return "<0.001 %".to_owned();
    }
    format!("{} %", short(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated_and_a_rounded_zero_has_no_sign() {
        let shown: Vec<String> =
            [(0.0, 0), (999.0, 0), (1000.0, 0), (1_234_567.89, 1), (-4321.0, 0), (-0.01, 1), (f64::NAN, 0)]
                .map(|(v, decimals)| thousands(v, decimals))
                .into();
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567.9", "-4,321", "0.0", "–"]);
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(
            (counted(1, "slave"), counted(1800, "client")),
            ("1 slave".into(), "1,800 clients".into())
        );
    }

    #[test]
    fn a_short_number_shows_three_digits() {
        assert_eq!([0.1234, 1.234, 12.34, 1234.5, 7.0].map(short), ["0.123", "1.23", "12.3", "1,234", "7"]);
        assert_eq!([0.0, 0.0001, 2.5].map(per_cent), ["0 %", "<0.001 %", "2.50 %"]);
    }
}
