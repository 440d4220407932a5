//! Output: one line for each thing that happens, with its time (UTC); details are indented.

use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(crate) enum Printer {
    /// When nobody reads it any more, the program ends.
    Stdout,
    #[cfg(test)]
    Nowhere,
}

impl Printer {
    /// `14:03:21.120 tag    text`.
    pub(crate) fn line(&self, tag: &str, text: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = now.as_secs() % 86_400;
        self.write(&format!(
            "{:02}:{:02}:{:02}.{:03} {tag:<6} {text}\n",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            now.subsec_millis()
        ));
    }

    /// A line that belongs to the one before.
    pub(crate) fn detail(&self, text: &str) {
        self.write(&format!("{:21}{text}\n", ""));
    }

    /// A table that takes the place of the one before, where that is possible.
    pub(crate) fn table(&self, lines: &[String]) {
        const HOME_AND_CLEAR: &str = "\x1b[H\x1b[2J";
        if matches!(self, Self::Stdout) && io::stdout().is_terminal() {
            self.write(HOME_AND_CLEAR);
        }
        // The columns stand below each other.
        self.line("table", &format!(" {}", lines.first().map_or("", String::as_str)));
        for line in lines.iter().skip(1) {
            self.detail(line);
        }
    }

    /// Text as it is.
    pub(crate) fn text(&self, text: &str) {
        self.write(text);
    }

    fn write(&self, text: &str) {
        match self {
            Self::Stdout => {}
            #[cfg(test)]
            Self::Nowhere => return,
        }
        let mut out = io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}
