//! Sizes, times and counts: all code parses and prints them here.

use std::time::Duration;

use bytesize::ByteSize;

/// The longest time that is accepted; clocks overflow beyond it.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Parses a size: `4096`, `64KiB`, `10MB`.
///
/// A unit ends with `B`: a bare `64K` is refused, because it means 64,000 to some and 65,536 to
/// others.
///
/// # Errors
///
/// Says in one line what is wrong and how to mend it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refused = || format!("`{text}` is not a size: write 4096, 64KiB or 10MB");
    let is_whole = text.ends_with(|last: char| last.is_ascii_digit() || matches!(last, 'B' | 'b'));
    if !is_whole || !text.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(refused());
    }
    let size = text.parse::<ByteSize>().map_err(|_| refused())?.as_u64();
    // What overflows is clamped by bytesize.
    if size == u64::MAX {
        return Err(format!("`{text}` is too large a size: write less than 16EiB"));
    }
    Ok(size)
}

/// Parses a share, as `2%` or `0.5%`, to millionths.
///
/// # Errors
///
/// Says in one line what is wrong and how to mend it.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let share = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    match share {
        Some(percent) if (0.01..=100.0).contains(&percent) => {
            Ok((percent * 10_000.0).round() as u32)
        }
        Some(_) => Err(format!("`{text}` is out of range: write 0.01% to 100%")),
        None => Err(format!("`{text}` is not a share: write 2% or 0.5%")),
    }
}

/// Millionths as a percentage for people: `2 %`, `0.5 %`.
pub fn format_ppm(ppm: u64) -> String {
    let percent = ppm as f64 / 10_000.0;
    let text = if percent < 10.0 { format!("{percent:.2}") } else { format!("{percent:.1}") };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

/// Parses a time: `500ms`, `5s`, `5m`, `1h30m`.
///
/// # Errors
///
/// Says in one line what is wrong and how to mend it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("`{text}` is not a time: write 500ms, 5s, 5m or 1h");
    // humantime takes a bare 0.
    if !text.ends_with(|last: char| last.is_ascii_alphabetic()) {
        return Err(refused());
    }
    let time = humantime::parse_duration(text).map_err(|_| refused())?;
    if time > LONGEST {
        return Err(format!("`{text}` is too long a time: write at most 100years"));
    }
    Ok(time)
}

/// A size for people: `912 B`, `1.2 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would print as 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or("EiB"))
}

/// A count for people: `12,345`.
pub fn format_count(count: u64) -> String {
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

/// A time for people, from milliseconds: `120 ms`, `3.4 s`, `2 min 5 s`, `3 h 2 min`.
pub fn format_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        3_600_000..86_400_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("10MB"), Ok(10_000_000));
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("1.5KiB"), Ok(1536));
        assert_eq!(parse_bytes("912 B"), Ok(912));
        for bad in ["", "x", "-1", "5 potatoes", "1e", "64K", " 5", "B"] {
            assert_eq!(
                parse_bytes(bad),
                Err(format!("`{bad}` is not a size: write 4096, 64KiB or 10MB"))
            );
        }
        assert_eq!(
            parse_bytes("16EiB"),
            Err("`16EiB` is too large a size: write less than 16EiB".into())
        );
    }

    #[test]
    fn times_are_parsed() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["5", "0", "", "s", "-5s", "5 potatoes", "5s 3"] {
            assert_eq!(
                parse_duration(bad),
                Err(format!("`{bad}` is not a time: write 500ms, 5s, 5m or 1h"))
            );
        }
        assert_eq!(
            parse_duration("1000years"),
            Err("`1000years` is too long a time: write at most 100years".into())
        );
    }

    #[test]
    fn shares_are_parsed() {
        for (text, ppm) in [("2%", 20_000), ("0.5 %", 5_000), ("100%", 1_000_000), ("0.01%", 100)] {
            assert_eq!(parse_percent(text), Ok(ppm));
        }
        for bad in ["", "2", "%", "x%", "2%%", "NaN", "two%"] {
            assert_eq!(
                parse_percent(bad),
                Err(format!("`{bad}` is not a share: write 2% or 0.5%"))
            );
        }
        for far in ["0%", "-1%", "101%", "inf%", "NaN%", "0.001%"] {
            assert_eq!(
                parse_percent(far),
                Err(format!("`{far}` is out of range: write 0.01% to 100%"))
            );
        }
        for (ppm, text) in [(20_000, "2 %"), (5_000, "0.5 %"), (123_456, "12.3 %"), (0, "0 %")] {
            assert_eq!(format_ppm(ppm), text);
        }
    }

    #[test]
    fn figures_are_short() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (912, "912 B"),
            (1_258_291, "1.2 MiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(format_bytes(bytes), text);
        }
        assert_eq!(format_bytes(u64::MAX), "16.0 EiB");
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(format_count(count), text);
        }
        for (ms, text) in [
            (120, "120 ms"),
            (3_450, "3.4 s"),
            (125_000, "2 min 5 s"),
            (10_920_000, "3 h 2 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(format_ms(ms), text);
        }
    }
}
