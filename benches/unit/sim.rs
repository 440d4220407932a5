//! The simulated unit as a child process: commands to its stdin, lines from its stdout with the
//! time at which they were read.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::{Outcome, PATIENCE};

const PROGRAM: &str = env!("CARGO_BIN_EXE_aos_unit_sim");

/// Lines that may wait to be looked at.
const QUEUE: usize = 65_536;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

#[derive(Debug)]
pub(crate) struct Sim {
    child: Child,
    input: ChildStdin,
    incoming: Receiver<Line>,
    lines: Vec<Line>,
    /// First line that was not looked at for the end of a command.
    next_answer: usize,
}

impl Sim {
    /// Starts a unit in `dir`; `settings` are members of the daemon's configuration. It shares
    /// `libraries` with the daemon, as the other programs of a unit do.
    pub(crate) fn start(dir: &Path, libraries: &Path, settings: &[String]) -> Outcome<Self> {
        let mut command = Command::new(PROGRAM);
        command.env("LD_LIBRARY_PATH", libraries);
        command.arg("--dir").arg(dir).args(["--quiet", "--keep-going"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the unit has no pipes".into());
        };
        let (sender, incoming) = sync_channel(QUEUE);
        std::thread::Builder::new().name("sim-output".to_owned()).spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(Line { at: Instant::now(), text }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { child, input, incoming, lines: Vec::new(), next_answer: 0 })
    }

    /// Where the lines go on that are not there yet.
    pub(crate) fn position(&mut self) -> usize {
        self.lines.extend(self.incoming.try_iter());
        self.lines.len()
    }

    /// First line from `from` on that is wanted; waits for it.
    pub(crate) fn find(
        &mut self,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<Line> {
        let at = self.find_at(from, limit, wanted)?;
        self.lines.get(at).cloned()
    }

    /// Sends commands without waiting for their end.
    pub(crate) fn write(&mut self, commands: &str) -> Outcome<()> {
        Ok(self.input.write_all(format!("{commands}\n").as_bytes())?)
    }

    /// Waits for the end of the next command; returns when it was read.
    pub(crate) fn answered(&mut self) -> Outcome<Instant> {
        let is_answer = |line: &str| matches!(tag(line), "ok" | "FAILED");
        let Some(at) = self.find_at(self.next_answer, 2 * PATIENCE, is_answer) else {
            return Err(format!("the unit does not answer; it said:\n{}", self.tail()).into());
        };
        self.next_answer = at + 1;
        let line = self.lines[at].clone();
        if tag(&line.text) == "FAILED" {
            self.position();
            return Err(format!("{}\n{}", line.text, self.tail()).into());
        }
        Ok(line.at)
    }

    /// Runs one command to its end.
    pub(crate) fn command(&mut self, command: &str) -> Outcome<Instant> {
        self.write(command)?;
        self.answered()
    }

    fn find_at(
        &mut self,
        from: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<usize> {
        let end = Instant::now() + limit;
        let mut next = from;
        loop {
            let unseen = self.lines.get(next..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|line| wanted(&line.text)) {
                return Some(next + at);
            }
            next = next.max(self.lines.len());
            match self.incoming.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.lines.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(20);
        let lines: Vec<_> = self.lines[from..].iter().map(|line| line.text.as_str()).collect();
        lines.join("\n")
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who speaks: the second word of a line that begins with a time.
fn tag(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if time.contains(':') => {
            rest.split_ascii_whitespace().next().unwrap_or_default()
        }
        _ => "",
    }
}
