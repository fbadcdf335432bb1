//! Numbers as people read them. The record keeps the exact values.

use std::time::{SystemTime, UNIX_EPOCH};

/// "12.4 GB": decimal units, three significant digits.
pub fn bytes(count: u64) -> String {
    scaled(count as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// "85.1 M": parameters, operations.
pub fn count(value: f64) -> String {
    scaled(value, &["", "k", "M", "G", "T", "P"]).trim_end().to_string()
}

fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would print as "1000".
    while value.abs() >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value.abs() {
        _ if unit == 0 && value.fract() == 0.0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// "0.42 s", "12.3 s", "3 min 05 s", "2 h 14 min".
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 0.000_995 => format!("{:.0} µs", v * 1e6),
        v if v < 0.0995 => format!("{:.1} ms", v * 1e3),
        v if v < 9.995 => format!("{v:.2} s"),
        v if v < 59.95 => format!("{v:.1} s"),
        v if v < 3599.5 => {
            let whole = v.round() as u64;
            format!("{} min {:02} s", whole / 60, whole % 60)
        }
        v => {
            let minutes = (v / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// "59.97 %".
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", fraction * 100.0)
}

/// A whole number with thin groups of three: "3 668".
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A metric: four decimals below 10, two above; "undefined" where it is NaN (the correlation of a constant).
pub fn metric(value: f64) -> String {
    if value.is_nan() {
        return "undefined".into();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    if value.abs() < 10.0 { format!("{value:.4}") } else { format!("{value:.2}") }
}

/// Now, as "2026-11-22T07:31:00Z".
pub fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// A Unix time in the same form. Days to a date by the proleptic Gregorian calendar, counted from 1 March of the year 0
/// so that the leap day comes last.
pub fn utc(unix_seconds: u64) -> String {
    let (days, rest) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// An argument as a POSIX shell reads it back.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_change_before_four_digits_show() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(bytes(1_420_000_000), "1.42 GB");
        assert_eq!(count(85_054_464.0), "85.1 M");
        assert_eq!(count(144.0), "144");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(59.96), "1 min 00 s");
        assert_eq!(seconds(185.2), "3 min 05 s");
        assert_eq!(seconds(8040.0), "2 h 14 min");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(percent(0.59967), "59.97 %");
        assert_eq!((metric(0.87012).as_str(), metric(f64::NAN).as_str()), ("0.8701", "undefined"));
    }

    #[test]
    fn dates_match_known_ones() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_763_797_860), "2025-11-22T07:51:00Z");
        assert_eq!(utc(4_102_444_799), "2099-12-31T23:59:59Z");
    }
}
