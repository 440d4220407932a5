//! `StopSignal` of an image: name with or without `SIG`, or a number.

/// Numbers as on x86_64 and aarch64 (the generic ones of the kernel).
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// Highest real-time signal.
const MAX_SIGNAL: i32 = 64;

/// The signal's number; `None` when the text is empty, unknown or SIGKILL, that is when the
/// instance is to be killed at once.
pub fn number(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    let number = match text.parse::<i32>() {
        Ok(number) => Some(number),
        Err(_) => {
            let name = text.strip_prefix("SIG").unwrap_or(&text);
            NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
        }
    };
    number.filter(|n| (1..=MAX_SIGNAL).contains(n) && *n != 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, expect) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGQUIT", Some(3)),
            ("37", Some(37)),
            ("", None),
            ("SIGKILL", None),
            ("9", None),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGNONSENSE", None),
        ] {
            assert_eq!(number(text), expect, "{text}");
        }
    }
}
