//! The lower half of the script language: words, options, durations.

use std::collections::VecDeque;
use std::time::Duration;

use super::script::{Choice, Error, Selector, Switch};

/// Words of a command: arguments in order, options by key.
pub(super) struct Args {
    command: String,
    positional: VecDeque<String>,
    options: Vec<(String, String)>,
}

impl Args {
    pub(super) fn new(command: &str, words: &[String]) -> Self {
        let is_key =
            |k: &str| !k.is_empty() && k.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        let mut args =
            Self { command: command.to_owned(), positional: VecDeque::new(), options: Vec::new() };
        for word in words {
            match word.split_once('=') {
                Some((key, value)) if is_key(key) => {
                    args.options.push((key.to_owned(), value.to_owned()));
                }
                _ => args.positional.push_back(word.clone()),
            }
        }
        args
    }

    pub(super) fn next(&mut self) -> Option<String> {
        self.positional.pop_front()
    }

    pub(super) fn required(&mut self, what: &'static str) -> Result<String, Error> {
        self.next().ok_or_else(|| self.missing(what))
    }

    pub(super) fn options(&mut self, key: &str) -> Vec<String> {
        let (found, rest) =
            std::mem::take(&mut self.options).into_iter().partition(|(k, _)| k == key);
        self.options = rest;
        let found: Vec<(String, String)> = found;
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// The last value of a key.
    pub(super) fn option(&mut self, key: &str) -> Option<String> {
        self.options(key).pop()
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.option(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.invalid(&text, "a number in range"))
    }

    pub(super) fn choice(&mut self, key: &str) -> Choice {
        match self.option(key).as_deref() {
            None | Some("auto") => Choice::Auto,
            Some("none" | "") => Choice::None,
            Some(value) => Choice::Given(value.to_owned()),
        }
    }

    pub(super) fn plain(&mut self) -> Result<bool, Error> {
        match self.option("compression").as_deref() {
            None | Some("gzip") => Ok(false),
            Some("plain") => Ok(true),
            Some(other) => Err(self.invalid(other, "`gzip` or `plain`")),
        }
    }

    pub(super) fn switch(&mut self) -> Result<Switch, Error> {
        match self.required("`up` or `down`")?.as_str() {
            "up" => Ok(Switch::Up),
            "down" => Ok(Switch::Down),
            other => Err(self.invalid(other, "`up` or `down`")),
        }
    }

    pub(super) fn selector(&mut self) -> Result<Option<Selector>, Error> {
        self.next().map(|text| self.selector_of(&text)).transpose()
    }

    /// A selector that may be left out before the limit: a duration starts with a digit.
    pub(super) fn condition_selector(&mut self) -> Result<Selector, Error> {
        let is_limit = |text: &String| duration(text).is_some();
        if self.positional.len() == 1 && self.positional.front().is_some_and(is_limit) {
            return Ok(Selector::default());
        }
        Ok(self.selector()?.unwrap_or_default())
    }

    pub(super) fn selector_of(&self, text: &str) -> Result<Selector, Error> {
        Selector::parse(text).ok_or_else(|| self.invalid(text, "service[/subject[/index]]"))
    }

    pub(super) fn duration(&self, text: &str) -> Result<Duration, Error> {
        duration(text).ok_or_else(|| self.invalid(text, "a duration such as 500ms, 30s or 2m"))
    }

    pub(super) fn missing(&self, what: &'static str) -> Error {
        Error::Missing { command: self.command.clone(), what }
    }

    pub(super) fn invalid(&self, word: &str, expected: &'static str) -> Error {
        Error::Invalid { command: self.command.clone(), word: word.to_owned(), expected }
    }

    /// Everything must have been used.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let option = self.options.pop().map(|(key, value)| format!("{key}={value}"));
        match option.or_else(|| self.next()) {
            Some(word) => Err(Error::Unexpected { command: self.command, word }),
            None => Ok(()),
        }
    }
}

/// Splits a line into words.
pub fn words(line: &str) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_none() => break,
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => loop {
                match chars.next().ok_or(Error::OpenQuote)? {
                    '\'' => break,
                    c => word.get_or_insert_default().push(c),
                }
            },
            '"' => loop {
                match chars.next().ok_or(Error::OpenQuote)? {
                    '"' => break,
                    '\\' => {
                        let c = chars.next().ok_or(Error::OpenQuote)?;
                        word.get_or_insert_default().push(c);
                    }
                    c => word.get_or_insert_default().push(c),
                }
            },
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
        if c == '\'' || c == '"' {
            word.get_or_insert_default(); // an empty pair of quotes is a word
        }
    }
    words.extend(word);
    Ok(words)
}

/// `500ms`, `30s`, `2m`, `1h`, `0`.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "" if number == 0 => Some(Duration::ZERO),
        _ => None,
    }
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_words() {
        let check =
            |line: &str, expect: &[&str]| assert_eq!(words(line).unwrap(), expect, "{line}");
        check("", &[]);
        check("  # nothing", &[]);
        check("a  b\tc", &["a", "b", "c"]);
        check("a#b # c", &["a#b"]);
        check(r#"cmd='a b'"c \" d" e\ f"#, &["cmd=a bc \" d", "e f"]);
        check("'' a", &["", "a"]);
        assert_eq!(words("'a"), Err(Error::OpenQuote));
        assert_eq!(words("\"a\\"), Err(Error::OpenQuote));
    }

    #[test]
    fn durations() {
        let check = |text: &str, millis: Option<u64>| {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        };
        check("0", Some(0));
        check("15ms", Some(15));
        check("3s", Some(3000));
        check("2m", Some(120_000));
        check("1h", Some(3_600_000));
        for bad in ["", "5", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            check(bad, None);
        }
    }
}
