//! Sizes and rates as people write them, and as haul writes them back.
//!
//! Leaves to others: which sizes make sense where. Invariant: a unit that
//! could be read two ways ("256K", "10Mb") is refused, never guessed.

use std::time::Duration;

/// One KiB in bytes.
const KIB: u64 = 1024;
/// The suffixes that are understood, and their bytes.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KiB", KIB),
    ("MiB", KIB * KIB),
    ("GiB", KIB * KIB * KIB),
    ("TiB", KIB * KIB * KIB * KIB),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads a size: a number, with decimals if need be, and a suffix; a bare
/// number is bytes.
///
/// # Errors
/// A clause that says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let suffix = suffix.trim_start();
    let unit = unit_bytes(suffix)?;
    scale(number, unit).ok_or_else(|| {
        format!("\"{text}\" is not a size; write a number and KiB, MiB, GiB, kB, MB or GB")
    })
}

/// Reads a rate in bytes per second: a size, with or without "/s".
///
/// # Errors
/// A clause that says what is wrong with the text.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if lower.contains("bit") || lower.ends_with("bps") {
        return Err(format!(
            "\"{text}\" counts bits; rates are bytes per second, as in 125MB"
        ));
    }
    let size = text.strip_suffix("/s").unwrap_or(text);
    match parse_size(size)? {
        0 => Err("a rate of 0 would move nothing; leave the option out for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Reads a duration in seconds: a number, with or without "s", "ms" or "min".
///
/// # Errors
/// A clause that says what is wrong with the text.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, unit) = if let Some(number) = text.strip_suffix("ms") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix("min") {
        (number, 60.0)
    } else {
        (text.strip_suffix('s').unwrap_or(text), 1.0)
    };
    let seconds =
        number.trim_end().parse::<f64>().map_err(|_| {
            format!("\"{text}\" is not a time; write seconds, as in 10, 0.5 or 500ms")
        })? * unit;
    if seconds.is_finite() && seconds > 0.0 && seconds <= 86_400.0 * 365.0 {
        Ok(seconds)
    } else {
        Err(format!(
            "\"{text}\" is out of range; write more than 0 seconds and at most a year"
        ))
    }
}

/// Reads an age: a number with s, min, h or d.
///
/// # Errors
/// A clause that says what is wrong with the text.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not an age; write it as in 90s, 30min, 12h or 7d");
    let digits = text
        .trim()
        .trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text.trim()[digits.len()..] {
        "s" => 1,
        "min" | "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number = digits.trim_end().parse::<u64>().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

/// The bytes that `suffix` stands for.
fn unit_bytes(suffix: &str) -> Result<u64, String> {
    // The binary suffixes have one reading in any case; of the decimal ones
    // only the k has, since a small b is a bit.
    let known = UNITS.iter().find(|(name, _)| {
        *name == suffix
            || (name.ends_with("iB") && name.eq_ignore_ascii_case(suffix))
            || (*name == "kB" && suffix == "KB")
    });
    match known {
        Some((_, bytes)) => Ok(*bytes),
        None => Err(match suffix.to_ascii_uppercase().as_str() {
            "K" | "M" | "G" | "T" => format!(
                "the unit \"{suffix}\" could be two things; write {}iB for powers of 1024 or {}B for powers of 1000",
                suffix.to_ascii_uppercase(),
                if suffix.eq_ignore_ascii_case("k") {
                    "k".to_owned()
                } else {
                    suffix.to_ascii_uppercase()
                },
            ),
            _ => format!("\"{suffix}\" is not a unit; write KiB, MiB, GiB, kB, MB or GB"),
        }),
    }
}

/// `number` × `unit` in whole bytes; `None` unless it is a number that fits.
fn scale(number: &str, unit: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let (whole, fraction) = number.split_once('.')?;
    // Eighteen decimals are more than any byte count tells apart.
    if fraction.is_empty() || fraction.len() > 18 || whole.is_empty() {
        return None;
    }
    let tenths = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits = whole.parse::<u128>().ok()? * tenths + fraction.parse::<u128>().ok()?;
    u64::try_from(digits.checked_mul(u128::from(unit))? / tenths).ok()
}

/// `bytes` for a person: exact below 1 KiB, else one decimal of a binary unit.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (name, unit) = UNITS[2..6]
        .iter()
        .rev()
        .find(|(_, unit)| bytes >= *unit)
        .copied()
        .unwrap_or(("B", 1));
    if unit == 1 {
        format!("{bytes} {}", if bytes == 1 { "byte" } else { "bytes" })
    } else if bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        format!("{:.1} {name}", ratio(bytes, unit))
    }
}

/// A count of connections for a person.
#[must_use]
pub fn format_connections(count: u32) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

/// A rate for a person, in both families of units.
#[must_use]
pub fn format_rate(bytes_per_second: f64) -> String {
    if bytes_per_second < 1e3 {
        return format!("{bytes_per_second:.0} bytes/s");
    }
    let (letter, decimal, binary) = if bytes_per_second < 1e5 {
        (["k", "K"], 1e3, 1024.0)
    } else {
        (["M", "M"], 1e6, 1024.0 * 1024.0)
    };
    format!(
        "{} {}B/s ({} {}iB/s)",
        three_digits(bytes_per_second / decimal),
        letter[0],
        three_digits(bytes_per_second / binary),
        letter[1]
    )
}

/// Seconds for a person: what is left of a transfer, or what it took.
#[must_use]
pub fn format_seconds(seconds: f64) -> String {
    if seconds < 100.0 {
        return format!("{} s", three_digits(seconds));
    }
    let whole = seconds.round().max(0.0) as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min")
    } else {
        format!("{minutes} min {rest:02} s")
    }
}

/// About three significant digits, without an exponent.
fn three_digits(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else if value >= 0.1 || value == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Bytes over a unit; the loss of precision is below what is printed.
fn ratio(bytes: u64, unit: u64) -> f64 {
    bytes as f64 / unit as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_unit() {
        let seconds = |text| parse_age(text).map(|age| age.as_secs());
        for (text, want) in [
            ("90s", 90),
            ("30min", 1_800),
            ("30m", 1_800),
            ("12h", 43_200),
            ("7d", 604_800),
            ("0s", 0),
        ] {
            assert_eq!(seconds(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "7 weeks",
            "99999999999999999999d",
            "300000000000000000d",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_in_every_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("7B", 7),
            ("256KiB", 262_144),
            ("256kib", 262_144),
            ("1 MiB", 1_048_576),
            ("1.5MiB", 1_572_864),
            ("2GiB", 2_147_483_648),
            ("587MB", 587_000_000),
            ("1kB", 1_000),
            ("1KB", 1_000),
            ("0.5GB", 500_000_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_could_be_two_things_are_refused() {
        for text in [
            "",
            "x",
            "-1",
            "256K",
            "256k",
            "1M",
            "1G",
            "10Mb",
            "10mb",
            "1..5MiB",
            ".5MiB",
            "5.MiB",
            "1e6",
            "1 000",
            "99999999999999999999",
            "18446744073709551615KiB",
            "17000000TiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        let told = parse_size("256K").expect_err("ambiguous");
        assert!(told.contains("KiB") && told.contains("kB"), "{told}");
    }

    #[test]
    fn rates_are_bytes_per_second() {
        assert_eq!(parse_rate("10MB"), Ok(10_000_000));
        assert_eq!(parse_rate("10MiB/s"), Ok(10_485_760));
        for text in ["100Mbit", "100Mbit/s", "100mbps", "0", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_with_and_without_a_unit() {
        assert_eq!(parse_seconds("10"), Ok(10.0));
        assert_eq!(parse_seconds("0.5s"), Ok(0.5));
        assert_eq!(parse_seconds("250ms"), Ok(0.25));
        assert_eq!(parse_seconds("2min"), Ok(120.0));
        for text in ["0", "-1", "inf", "nan", "soon", "1e300"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_for_a_person() {
        assert_eq!(format_size(0), "0 bytes");
        assert_eq!(format_size(1), "1 byte");
        assert_eq!(format_size(1_023), "1023 bytes");
        assert_eq!(format_size(1_024), "1 KiB");
        assert_eq!(format_size(1_536), "1.5 KiB");
        assert_eq!(format_size(615_514_112), "587 MiB");
        assert_eq!(format_rate(1_234_567_890.0), "1235 MB/s (1177 MiB/s)");
        assert_eq!(format_rate(0.0), "0 bytes/s");
        assert_eq!(format_rate(12_345.0), "12.3 kB/s (12.1 KiB/s)");
        assert_eq!(format_rate(234_567.0), "0.23 MB/s (0.22 MiB/s)");
        assert_eq!(format_seconds(0.5213), "0.52 s");
        assert_eq!(format_seconds(12.34), "12.3 s");
        assert_eq!(format_seconds(125.0), "2 min 05 s");
        assert_eq!(format_seconds(7_260.0), "2 h 01 min");
    }
}
