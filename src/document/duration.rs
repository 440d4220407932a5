//! The one duration parser: Go notation, ISO 8601 (canonical and alternative form) and numbers.
//!
//! Pure; any thread. All amounts are signed nanoseconds, because the peers' documents may hold
//! negative ones and only the user of a value knows whether that is wrong.

use super::value::Value;

const NANO: i128 = 1;
const MICRO: i128 = 1_000;
const MILLI: i128 = 1_000_000;
const SECOND: i128 = 1_000_000_000;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;
const DAY: i128 = 24 * HOUR;
const WEEK: i128 = 7 * DAY;
/// 365 days and 6 hours.
const YEAR: i128 = 365 * DAY + 6 * HOUR;
const MONTH: i128 = YEAR / 12;

/// Numbers from here on are nanoseconds under `NumberUnit::Auto`.
const AUTO_NANOSECONDS_FROM: f64 = 1_000_000.0;
/// Digits of a fraction that are looked at; more cannot change a nanosecond of an hour.
const FRACTION_DIGITS: usize = 18;

/// What a bare number means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NumberUnit {
    /// Documents of v4 and later.
    Seconds,
    /// The configuration file and documents of v3: 1 000 000 and more are nanoseconds (what the
    /// Go release of 7.x wrote), less are seconds (what people and the cloud's schema mean).
    Auto,
}

/// Parses a duration text into nanoseconds. `None` = malformed or out of the range of `i64`.
pub fn parse_text(text: &str) -> Option<i64> {
    let amount = match text.strip_prefix('P') {
        Some(rest) if rest.contains(['-', ':']) => parse_alternative(rest),
        Some(rest) => parse_canonical(rest),
        None => parse_go(text),
    };
    amount.and_then(|ns| i64::try_from(ns).ok())
}

/// Nanoseconds of a JSON value: text or number.
pub(super) fn parse_value(value: &Value, unit: NumberUnit) -> Option<i64> {
    match value {
        Value::Text(text) => parse_text(text),
        Value::Unsigned(number) => parse_integer(i128::from(*number), unit),
        Value::Negative(number) => parse_integer(i128::from(*number), unit),
        Value::Float(number) => parse_float(*number, unit),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn parse_integer(number: i128, unit: NumberUnit) -> Option<i64> {
    let nanoseconds = unit == NumberUnit::Auto && number >= 1_000_000;
    let factor = if nanoseconds { NANO } else { SECOND };
    i64::try_from(number.checked_mul(factor)?).ok()
}

fn parse_float(number: f64, unit: NumberUnit) -> Option<i64> {
    let nanoseconds = unit == NumberUnit::Auto && number >= AUTO_NANOSECONDS_FROM;
    let ns = if nanoseconds { number.trunc() } else { (number * 1e9 + 0.5).floor() };
    // 2^63 is exact in f64, and the largest f64 below it fits.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
    (-LIMIT..LIMIT).contains(&ns).then_some(ns as i64)
}

/// `[+-]` and pairs of a decimal number and a unit, or the bare `0`.
fn parse_go(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (amount, after) = go_pair(rest)?;
        total = total.checked_add(amount)?;
        rest = after;
    }
    Some(sign * total)
}

fn go_pair(text: &str) -> Option<(i128, &str)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let unit = match name {
        "ns" => NANO,
        "us" | "\u{b5}s" | "\u{3bc}s" => MICRO,
        "ms" => MILLI,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        // Not in Go; the successor's files have them.
        "d" => DAY,
        "w" => WEEK,
        _ => return None,
    };
    let whole = if whole.is_empty() { 0 } else { number(whole)? };
    let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
    let mut part = 0;
    if !fraction.is_empty() {
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        part = number(fraction)? * unit / scale;
    }
    Some((whole.checked_mul(unit)?.checked_add(part)?, rest))
}

/// After the `P`: `[nY][nM][nW][nD][T[nH][nM][nS]]`.
fn parse_canonical(text: &str) -> Option<i128> {
    let (date, time) = text.split_once('T').unwrap_or((text, ""));
    let date = designated(date, &[('Y', YEAR), ('M', MONTH), ('W', WEEK), ('D', DAY)])?;
    let time = designated(time, &[('H', HOUR), ('M', MINUTE), ('S', SECOND)])?;
    date.checked_add(time)
}

/// Numbers with designators, each at most once and in this order.
fn designated(text: &str, units: &[(char, i128)]) -> Option<i128> {
    let mut rest = text;
    let mut units = units.iter();
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (amount, after) = digits(rest);
        let designator = after.chars().next()?;
        let (_, unit) = units.by_ref().find(|(name, _)| *name == designator)?;
        total = total.checked_add(number(amount)?.checked_mul(*unit)?)?;
        rest = &after[designator.len_utf8()..];
    }
    Some(total)
}

/// After the `P`: `[y-m-d][Th:m:s]`.
fn parse_alternative(text: &str) -> Option<i128> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut total = 0;
    if !date.is_empty() {
        total = separated(date, '-', [YEAR, MONTH, DAY])?;
    }
    if let Some(time) = time {
        total = separated(time, ':', [HOUR, MINUTE, SECOND])?.checked_add(total)?;
    }
    Some(total)
}

fn separated(text: &str, separator: char, units: [i128; 3]) -> Option<i128> {
    let mut fields = text.split(separator);
    let mut total: i128 = 0;
    for unit in units {
        let amount = number(fields.next()?)?.checked_mul(unit)?;
        total = total.checked_add(amount)?;
    }
    fields.next().is_none().then_some(total)
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Decimal digits only. What does not fit into 64 bits is out of range in every unit.
fn number(text: &str) -> Option<i128> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let significant = text.trim_start_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    significant.parse::<u64>().ok().map(i128::from)
}

/// The written form: as Go prints a duration, such as `1h0m0s`, `1.5s`, `100ms`, `0s`.
pub fn format_ns(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let amount = ns.unsigned_abs();
    if amount < 1_000_000_000 {
        return match amount {
            0 => "0s".to_owned(),
            1..1_000 => format!("{sign}{amount}ns"),
            1_000..1_000_000 => format!("{sign}{}\u{b5}s", decimal(amount, 1_000)),
            _ => format!("{sign}{}ms", decimal(amount, 1_000_000)),
        };
    }
    let minutes = amount / 60_000_000_000;
    let seconds = decimal(amount % 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(amount: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let text = format!("{}.{:0width$}", amount / unit, amount % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn texts() {
        let check = |text: &str, expect: Option<i64>| {
            assert_eq!(parse_text(text), expect, "{text:?}");
        };
        for (text, seconds) in [
            ("10s", 10),
            ("1m30s", 90),
            ("1.5h", 5400),
            ("-1s", -1),
            ("+1s", 1),
            ("0", 0),
            ("-0", 0),
            ("PT10S", 10),
            ("PT1M30S", 90),
            ("PT00:01:30", 90),
            ("P10Y", 315_576_000),
            ("P10M", 26_298_000),
            ("P2W", 1_209_600),
            ("P2D", 172_800),
            ("P1Y1M1W1DT1H1M1S", 34_882_261),
            ("P0001-01-01T01:01:01", 34_277_461),
            ("P0000-00-01T02:00:00", 93_600),
            ("P0-0-1", 86_400),
            ("P", 0),
            ("PT", 0),
            ("P1DT", 86_400),
            ("30d", 2_592_000),
            ("1w1d", 691_200),
            (".5h", 1800),
            ("1.h", 3600),
        ] {
            check(text, Some(seconds * S));
        }
        for (text, ns) in [
            ("1ns", 1),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("1.5ms", 1_500_000),
            ("0.0000000019s", 1),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.33333333333333333333h", 1_199_999_999_999),
        ] {
            check(text, Some(ns));
        }
        for text in [
            "T1H1M1S",
            "P0001-01T01:01:01",
            "P0001-01-01T01:01",
            "P0001-01-01T",
            "P1-1-1-1",
            "PT1.5S",
            "P-1D",
            "PT1S1M",
            "P1M1M",
            "PT1",
            "PS",
            "PTT",
            "pt1s",
            "10",
            "",
            "-",
            "+",
            ".",
            ".s",
            "--1s",
            "1 s",
            "1s ",
            "1x",
            "1D",
            "9223372036854775808ns",
            "99999999999999999999999999999999999999999999999999h",
            "P99999999999Y",
            "2562048h",
            "١s",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn numbers() {
        let check = |value: Value, unit, expect| assert_eq!(parse_value(&value, unit), expect);
        check(Value::Float(1.5), NumberUnit::Seconds, Some(1_500_000_000));
        check(Value::Float(1.5), NumberUnit::Auto, Some(1_500_000_000));
        check(Value::Unsigned(5), NumberUnit::Auto, Some(5 * S));
        check(Value::Unsigned(999_999), NumberUnit::Auto, Some(999_999 * S));
        check(Value::Unsigned(1_000_000), NumberUnit::Auto, Some(1_000_000));
        check(Value::Float(1e9), NumberUnit::Auto, Some(S));
        check(Value::Unsigned(1_000_000), NumberUnit::Seconds, Some(1_000_000 * S));
        check(Value::Negative(-1), NumberUnit::Seconds, Some(-S));
        check(Value::Unsigned(u64::MAX), NumberUnit::Seconds, None);
        check(Value::Float(1e300), NumberUnit::Seconds, None);
        check(Value::Null, NumberUnit::Seconds, None);
        check(Value::Bool(true), NumberUnit::Seconds, None);
        check(Value::Array(Vec::new()), NumberUnit::Seconds, None);
    }

    #[test]
    fn written_form_reads_back() {
        for (ns, expect) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5\u{b5}s"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (1800 * S, "30m0s"),
            (86_400 * S, "24h0m0s"),
            (-90 * S, "-1m30s"),
            (3_600 * S + 1, "1h0m0.000000001s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(format_ns(ns), expect);
            assert_eq!(parse_text(expect), Some(ns), "{expect}");
        }
    }
}
