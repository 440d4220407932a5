//! A running program: its input, its lines of output, its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use aos_servicemanager::sys::pidfd;
use aos_servicemanager::sys::time::monotonic;

use super::space::Space;
use super::{patience, wait_until};

/// Lines that a program has written, from both of its outputs.
#[derive(Debug, Default)]
pub struct Output {
    lines: Mutex<Vec<String>>,
    grew: Condvar,
}

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn all(&self) -> Vec<String> {
        self.lock().clone()
    }

    pub fn from(&self, start: usize) -> Vec<String> {
        self.lock()[start..].to_vec()
    }

    /// Number of the first line from `start` on that is wanted; waits for it.
    pub fn find(
        &self,
        start: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<usize> {
        let end = monotonic() + limit;
        let mut lines = self.lock();
        let mut next = start;
        loop {
            if let Some(at) = lines.get(next..)?.iter().position(|line| wanted(line)) {
                return Some(next + at);
            }
            next = lines.len();
            let rest = end.checked_sub(monotonic())?;
            let waited = self.grew.wait_timeout(lines, rest);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(self: &Arc<Self>, source: impl Read + Send + 'static) {
        let output = self.clone();
        let reader = move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                output.lock().push(String::from_utf8_lossy(&line).into_owned());
                output.grew.notify_all();
            }
        };
        std::thread::Builder::new().name("output".to_owned()).spawn(reader).unwrap();
    }
}

#[derive(Debug)]
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    pub output: Arc<Output>,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts the program in the namespaces of `space`.
    pub fn start(space: &Space, command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = space.inside(|| command.spawn()).unwrap();
        let output = Arc::new(Output::default());
        output.read(child.stdout.take().unwrap());
        output.read(child.stderr.take().unwrap());
        Self { input: child.stdin.take(), child, output, ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn write(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap_or_else(|e| panic!("{line}: {e}"));
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: i32) {
        let descriptor = pidfd::open(self.pid()).unwrap();
        pidfd::send_signal(descriptor.as_fd(), signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_some()
    }

    /// Waits for the end.
    pub fn end(&mut self) -> ExitStatus {
        wait_until("the end of a program", || self.has_ended());
        self.ended.unwrap()
    }

    /// Ends it at once, whatever it does.
    pub fn kill(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait().map(|status| self.ended = Some(status));
        }
    }

    /// Waits for a line from `start` on; returns its number.
    pub fn expect(&self, start: usize, text: &str) -> usize {
        let found = self.output.find(start, patience(), |line| line.contains(text));
        found.unwrap_or_else(|| panic!("no line with {text:?}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Exit code, standard output and standard error of a program that ends by itself.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let [out, err] = [Arc::new(Output::default()), Arc::new(Output::default())];
    out.read(child.stdout.take().unwrap());
    err.read(child.stderr.take().unwrap());
    // Killed if it does not end in time.
    let mut program = Program { child, input: None, output: out.clone(), ended: None };
    let status = program.end();
    drop(program);
    // Whoever still has the pipes is not waited for.
    wait_until("the end of its output", || Arc::strong_count(&out) + Arc::strong_count(&err) == 2);
    (status.code(), out.all().join("\n"), err.all().join("\n"))
}
