//! Up to where messages have become alerts: a cursor of the journal, a number of the kernel's. Pure.
//!
//! The text is what the database keeps between two lives of the daemon: the cursor as journald
//! writes it (so one that the Go service manager has left is good too) or the time from which on to
//! read, then a line for the kernel.

use crate::logs::id_bytes;

const KERNEL: &str = "kmsg=";
const SINCE: &str = "since=";

/// How far both sources have been read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    pub(crate) journal: Option<Cursor>,
    /// Where there is no cursor: to be read from this time on, Unix time in microseconds.
    pub(crate) since_us: Option<i64>,
    pub(crate) kernel: Option<Sequence>,
}

/// The number of a kernel message, which counts within a boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sequence {
    pub(crate) boot: [u8; 16],
    pub(crate) number: u64,
}

/// Place of an entry in the journal, as text and in parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    pub(crate) text: Box<str>,
    /// Names the journal in which `number` counts.
    source: Box<str>,
    number: u64,
    boot: [u8; 16],
    mono_us: u64,
    pub(crate) real_us: i64,
}

impl Cursor {
    /// `None` = no cursor of an entry.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'=' | b';');
        if !text.bytes().all(is_plain) {
            return None;
        }
        let part = |name: &str| text.split(';').find_map(|part| part.strip_prefix(name));
        let number = |name| u64::from_str_radix(part(name)?, 16).ok();
        Some(Self {
            text: text.into(),
            source: part("s=")?.into(),
            number: number("i=")?,
            boot: id_bytes(part("b=")?),
            mono_us: number("m=")?,
            real_us: i64::try_from(number("t=")?).ok()?,
        })
    }

    /// Is this not later than `other`? By the best order that both have in common: their number in
    /// one journal, the time since one boot, else the wall clock.
    pub(crate) fn is_up_to(&self, other: &Self) -> bool {
        if self.source == other.source {
            return self.number <= other.number;
        }
        if self.boot == other.boot {
            return self.mono_us <= other.mono_us;
        }
        self.real_us <= other.real_us
    }
}

impl Position {
    pub(crate) fn parse(text: &str) -> Self {
        let kernel = |line: &str| {
            let (boot, number) = line.strip_prefix(KERNEL)?.split_once(':')?;
            Some(Sequence { boot: id_bytes(boot), number: number.parse().ok()? })
        };
        Self {
            journal: text.lines().find_map(Cursor::parse),
            since_us: text.lines().find_map(|line| line.strip_prefix(SINCE)?.parse().ok()),
            kernel: text.lines().find_map(kernel),
        }
    }

    pub(crate) fn to_text(&self) -> Box<str> {
        let mut lines: Vec<String> =
            self.journal.iter().map(|cursor| cursor.text.to_string()).collect();
        if let Some(us) = self.since_us.filter(|_| lines.is_empty()) {
            lines.push(format!("{SINCE}{us}"));
        }
        lines.extend(self.kernel.map(|kernel| {
            let boot: String = kernel.boot.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{KERNEL}{boot}:{}", kernel.number)
        }));
        lines.join("\n").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "s=fbd1e3471f1f4dc3a9b07dbe6aad295d;i=1f;\
        b=d4c65a08b2044f79b8e5d421ff00eea6;m=2c2ad10cb;t=6611d5c7c3a97;x=fb63e050a22b4ea4";

    #[test]
    fn texts() {
        let check = |text: &str, journal: bool, kernel: Option<u64>| {
            let position = Position::parse(text);
            assert_eq!(position.journal.is_some(), journal, "{text}");
            assert_eq!(position.kernel.map(|kernel| kernel.number), kernel, "{text}");
            if journal || kernel.is_some() {
                assert_eq!(Position::parse(&position.to_text()), position);
            }
        };
        check("", false, None);
        let since = Position::parse("since=17\nkmsg=01:5");
        assert_eq!((since.since_us, since.kernel.map(|kernel| kernel.number)), (Some(17), Some(5)));
        assert_eq!(Position::parse(&since.to_text()), since);
        check(CURSOR, true, None);
        check("kmsg=d4c65a08b2044f79b8e5d421ff00eea6:17", false, Some(17));
        check(&format!("{CURSOR}\nkmsg=d4c65a08b2044f79b8e5d421ff00eea6:17"), true, Some(17));
        for broken in ["garbage", "s=1;i=2", "s=1;i=2;b=3;m=x;t=5", "kmsg=", "kmsg=1:x", "--help"] {
            check(broken, false, None);
        }
        check(&CURSOR.replace("t=", "t=ffff"), false, None);
        let cursor = Cursor::parse(CURSOR).unwrap();
        assert_eq!((cursor.number, cursor.real_us), (0x1f, 0x0006_611d_5c7c_3a97));
        assert_eq!(&*cursor.text, CURSOR);
    }

    #[test]
    fn order() {
        let at = |source: &str, number: u64, boot: u64, mono: u64, real: u64| {
            let text = format!("s={source};i={number:x};b={boot:032x};m={mono:x};t={real:x};x=0");
            Cursor::parse(&text).unwrap()
        };
        let place = at("a", 5, 1, 100, 1000);
        let check = |other: Cursor, is_up_to| assert_eq!(other.is_up_to(&place), is_up_to);
        check(at("a", 4, 9, 999, 9999), true);
        check(at("a", 5, 9, 999, 9999), true);
        check(at("a", 6, 1, 1, 1), false); // the clock was set back
        check(at("b", 1, 1, 99, 9999), true);
        check(at("b", 1, 1, 101, 1), false);
        check(at("b", 1, 2, 1, 999), true);
        check(at("b", 1, 2, 1, 1001), false);
    }
}
