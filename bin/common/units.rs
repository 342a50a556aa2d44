//! Numbers for readers.
#![allow(dead_code, reason = "each program uses its part")]

/// With commas between thousands.
pub(crate) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The sum, or the largest number there is.
pub(crate) fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// `count` of a thing, in words: "1 round", "2 rounds".
pub(crate) fn counted(count: u64, one: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {one}{plural}", thousands(count))
}

/// A duration with three digits, in ns, µs, ms or s.
pub(crate) fn duration(ns: u64) -> String {
    if ns < 1000 {
        return format!("{ns} ns");
    }
    let mut value = ns as f64 / 1e3;
    let mut units = ["µs", "ms", "s"].into_iter().peekable();
    while let Some(unit) = units.next() {
        if value < 999.5 {
            return format!("{} {unit}", three_digits(value));
        }
        if units.peek().is_some() {
            value /= 1e3;
        }
    }
    format!("{} s", thousands(value.round() as u64))
}

/// The same of seconds. What no clock can show is a dash.
pub(crate) fn seconds(value: f64) -> String {
    match value.is_finite() && value >= 0.0 {
        true => duration((value * 1e9).round() as u64),
        false => "-".to_owned(),
    }
}

/// The same with a sign.
pub(crate) fn offset(value: f64) -> String {
    match value {
        value if !value.is_finite() => "-".to_owned(),
        value if value < 0.0 => format!("−{}", seconds(-value)),
        0.0 => "0".to_owned(),
        _ => format!("+{}", seconds(value)),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        ..999.5 => format!("{value:.0}"),
        _ => thousands(value.round() as u64),
    }
}

/// `count` in each of `total`, such as seconds or faults; a dash if that has no meaning.
pub(crate) fn per(count: u64, total: f64) -> String {
    let value = count as f64 / total;
    match total > 0.0 && value.is_finite() {
        false => "-".to_owned(),
        true if count == 0 => "0".to_owned(),
        true if value < 0.005 => "< 0.01".to_owned(),
        true => three_digits(value),
    }
}

/// A number on an axis or in a hint, with k, M, or G.
pub(crate) fn short(value: f64) -> String {
    let (scaled, suffix) = match value {
        ..999.5 => (value, ""),
        ..999.5e3 => (value / 1e3, " k"),
        ..999.5e6 => (value / 1e6, " M"),
        _ => (value / 1e9, " G"),
    };
    format!("{}{suffix}", trimmed(&three_digits(scaled)))
}

/// Digits without the zeros that end a fraction.
pub(crate) fn trimmed(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_have_separators() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (12_345, "12,345"), (1_000_000, "1,000,000")];
        for (count, text) in cases {
            assert_eq!(thousands(count), text);
        }
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(counted(1, "round"), "1 round");
        assert_eq!(counted(0, "round"), "0 rounds");
    }

    #[test]
    fn durations_have_three_digits_and_the_unit_that_suits() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (12_345_678, "12.3 ms"),
            (999_999_999, "1.00 s"),
            (60_000_000_000, "60.0 s"),
            (1_800_000_000_000, "1,800 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text, "{ns}");
        }
        assert!(duration(u64::MAX).ends_with(" s"));
    }

    #[test]
    fn seconds_and_offsets() {
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(f64::NAN), "-");
        assert_eq!(seconds(-1.0), "-");
        assert_eq!(offset(-0.000_012_3), "−12.3 µs");
        assert_eq!(offset(0.0), "0");
        assert_eq!(offset(2.0), "+2.00 s");
        assert_eq!(offset(f64::NAN), "-");
    }

    #[test]
    fn rates_of_nothing_are_dashes() {
        assert_eq!(per(5, 0.0), "-");
        assert_eq!(per(0, 0.0), "-");
        assert_eq!(per(0, 2.0), "0");
        assert_eq!(per(5, f64::NAN), "-");
        assert_eq!(per(3_000_000, 2.0), "1,500,000");
        assert_eq!(per(1, 2.0), "0.50");
        assert_eq!(per(1, 1e6), "< 0.01");
    }

    #[test]
    fn short_numbers() {
        let cases =
            [(0.0, "0"), (0.5, "0.5"), (20.0, "20"), (999.6, "1 k"), (1500.0, "1.5 k"), (2e6, "2 M"), (3e9, "3 G")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
