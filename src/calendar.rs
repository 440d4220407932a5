//! Unix time in milliseconds and its text forms: RFC 3339, the time stamps in a database of the
//! Go service manager, and the time of a log line. All dates are UTC (proleptic Gregorian).
//!
//! Pure, any thread. No clock is read here and no time zone file: an offset counts only where the
//! text itself carries one.

/// Days from 0001-01-01 to 1970-01-01.
const DAYS_BEFORE_1970: i64 = 719_162;
const MS_PER_DAY: i64 = 86_400_000;
/// The end of the year 9999: a later time has no text form that can be read.
pub const LAST_MS: i64 = 253_402_300_799_999;
/// Days of a common year before each month.
const DAYS_BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// A moment as calendar fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Civil {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
    pub millisecond: i64,
}

impl Civil {
    /// The calendar fields of a Unix time in milliseconds.
    pub fn from_unix_ms(ms: i64) -> Self {
        let days = ms.div_euclid(MS_PER_DAY) + DAYS_BEFORE_1970;
        let rest = ms.rem_euclid(MS_PER_DAY);
        // 146 097 days are 400 years; the estimate is at most one year off.
        let mut year = (days * 400).div_euclid(146_097) + 1;
        while days < days_before_year(year) {
            year -= 1;
        }
        while days >= days_before_year(year + 1) {
            year += 1;
        }
        let day_of_year = days - days_before_year(year);
        let mut month = 12;
        while day_of_year < days_before_month(year, month) {
            month -= 1;
        }
        Self {
            year,
            month,
            day: day_of_year - days_before_month(year, month) + 1,
            hour: rest / 3_600_000,
            minute: rest / 60_000 % 60,
            second: rest / 1000 % 60,
            millisecond: rest % 1000,
        }
    }

    /// The Unix time in milliseconds; the fields must be in range.
    pub fn to_unix_ms(self) -> i64 {
        let days =
            days_before_year(self.year) + days_before_month(self.year, self.month) + self.day - 1;
        (days - DAYS_BEFORE_1970) * MS_PER_DAY
            + ((self.hour * 60 + self.minute) * 60 + self.second) * 1000
            + self.millisecond
    }

    fn is_valid(&self) -> bool {
        (1..=12).contains(&self.month)
            && (1..=days_of_month(self.year, self.month)).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
    }
}

/// `2026-11-22T11:54:32.832Z`; the fraction is left out when it is zero.
pub fn to_rfc3339(ms: i64) -> String {
    let t = Civil::from_unix_ms(ms);
    let seconds = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    );
    match t.millisecond {
        0 => format!("{seconds}Z"),
        fraction => format!("{seconds}.{fraction:03}Z"),
    }
}

/// `2026-11-22 11:54:32.832`, the time of a log line.
pub fn to_log_time(ms: i64) -> String {
    let t = Civil::from_unix_ms(ms);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        t.year, t.month, t.day, t.hour, t.minute, t.second, t.millisecond
    )
}

/// Reads `YYYY-MM-DD` `T` or blank `hh:mm:ss[.f…][Z|±hh:mm]`; without an offset the time is UTC,
/// digits of the fraction below one millisecond are cut. `None` = anything else.
pub fn parse(text: &str) -> Option<i64> {
    let mut rest = Rest(text.as_bytes());
    let year = rest.digits(4)?;
    rest.one_of(b"-")?;
    let month = rest.digits(2)?;
    rest.one_of(b"-")?;
    let day = rest.digits(2)?;
    rest.one_of(b"Tt ")?;
    let hour = rest.digits(2)?;
    rest.one_of(b":")?;
    let minute = rest.digits(2)?;
    rest.one_of(b":")?;
    let second = rest.digits(2)?;
    let millisecond = match rest.one_of(b".") {
        Some(_) => rest.fraction_ms()?,
        None => 0,
    };
    let offset_minutes = rest.offset_minutes()?;
    let civil = Civil { year, month, day, hour, minute, second, millisecond };
    let is_valid = rest.0.is_empty() && civil.is_valid();
    let ms = is_valid.then(|| civil.to_unix_ms() - offset_minutes * 60_000)?;
    // The offset may lead out of the years that can be written with four digits.
    (0..=9999).contains(&Civil::from_unix_ms(ms).year).then_some(ms)
}

/// The unread part of a time text.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn one_of(&mut self, allowed: &[u8]) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        allowed.contains(&first).then(|| {
            self.0 = rest;
            first
        })
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        (0..count).try_fold(0, |value, _| {
            Some(value * 10 + i64::from(self.one_of(b"0123456789")? - b'0'))
        })
    }

    /// One digit or more after the point.
    fn fraction_ms(&mut self) -> Option<i64> {
        let mut value = self.digits(1)? * 100;
        let mut weight = 10;
        while let Some(digit) = self.one_of(b"0123456789") {
            value += i64::from(digit - b'0') * weight;
            weight /= 10;
        }
        Some(value)
    }

    fn offset_minutes(&mut self) -> Option<i64> {
        let sign = match self.one_of(b"Zz+-") {
            None | Some(b'Z' | b'z') => return Some(0),
            Some(b'-') => -1,
            Some(_) => 1,
        };
        let hours = self.digits(2)?;
        self.one_of(b":")?;
        let minutes = self.digits(2)?;
        (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days from 0001-01-01 to the first day of the year.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)
}

fn days_before_month(year: i64, month: i64) -> i64 {
    let index = usize::try_from(month - 1).unwrap_or(0).min(11);
    DAYS_BEFORE_MONTH[index] + i64::from(month > 2 && is_leap(year))
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read() {
        #[rustfmt::skip]
        let cases: &[(&str, Option<i64>)] = &[
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01 00:00:00", Some(0)),
            ("1970-01-01 00:00:00.9999999+00:00", Some(999)),
            ("1969-12-31T23:59:59.5Z", Some(-500)),
            ("2026-11-22 11:54:32.832909792+00:00", Some(1_795_348_472_832)),
            ("2026-11-22 14:54:32.832909792+03:00", Some(1_795_348_472_832)),
            ("2026-11-22T06:24:32.832-05:30", Some(1_795_348_472_832)),
            ("2026-11-22 11:55:05.78+00:00", Some(1_795_348_505_780)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("2000-02-29T12:00:00Z", Some(951_825_600_000)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800_000)),
            ("9999-12-31T23:59:59Z", Some(253_402_300_799_000)),
            ("2023-02-29T00:00:00Z", None),
            ("2100-02-29T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-00-01T00:00:00Z", None),
            ("2026-04-31T00:00:00Z", None),
            ("2026-01-01T24:00:00Z", None),
            ("2026-01-01T00:60:00Z", None),
            ("2026-01-01T00:00:00.Z", None),
            ("2026-01-01T00:00:00+0300", None),
            ("2026-01-01T00:00:00Zx", None),
            ("2026-01-01", None),
            ("0000-01-01 00:00:00+01:00", None),
            ("9999-12-31T23:59:59-00:01", None),
            ("", None),
            ("2026-1-01T00:00:00Z", None),
        ];
        for (text, expect) in cases {
            assert_eq!(parse(text), *expect, "{text}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_survives_the_way_to_text_and_back() {
        for day in -200_000..100_000 {
            let ms = day * MS_PER_DAY + 3_723_004;
            assert_eq!(Civil::from_unix_ms(ms).to_unix_ms(), ms);
            assert_eq!(parse(&to_rfc3339(ms)), Some(ms));
        }
    }

    #[test]
    fn forms() {
        assert_eq!(to_rfc3339(LAST_MS), "9999-12-31T23:59:59.999Z");
        assert_eq!(parse("9999-12-31T23:59:59.999Z"), Some(LAST_MS));
        assert_eq!(to_rfc3339(1_795_348_472_832), "2026-11-22T11:54:32.832Z");
        assert_eq!(to_rfc3339(1_795_348_472_000), "2026-11-22T11:54:32Z");
        assert_eq!(to_log_time(1_795_348_472_007), "2026-11-22 11:54:32.007");
        assert_eq!(to_log_time(-1), "1969-12-31 23:59:59.999");
    }
}
