//! Tests that change or observe the whole process get one of their own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::sys::time::monotonic;

/// Longest wait of a test for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Set in the process that runs one test alone.
const MARK: &str = "AOS_TEST_ALONE";

/// Runs `body` in a new process of this test program, which runs nothing but the test with this
/// full name. Needed where signals, all children, or the process's own state matter.
pub(crate) fn in_own_process(name: &str, body: impl FnOnce()) {
    in_own_process_with(name, &[], body);
}

/// `in_own_process` with additional environment variables.
pub(crate) fn in_own_process_with(name: &str, env: &[(&str, &Path)], body: impl FnOnce()) {
    if std::env::var_os(MARK).is_some_and(|alone| alone == name) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(MARK, name);
    command.envs(env.iter().copied());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = child.unwrap().wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}\n{errors}");
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
    for line in text.lines().filter(|line| line.starts_with("SKIP")) {
        println!("{line}");
    }
}

/// How often a test kills: `AOS_KILLS`, as the integration tests read it, or what is usual.
pub(crate) fn kills(usual: u32) -> u32 {
    std::env::var("AOS_KILLS").map_or(usual, |text| text.parse().unwrap())
}

/// From here on the calling thread, and what it starts, cannot make a process or run a program: the
/// kernel ends this process if it tries to.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn forbid_processes() {
    let step =
        |code: u32, k: u32, jump: u8| libc::sock_filter { code: code as u16, jt: jump, jf: 0, k };
    let mut forbidden =
        vec![libc::SYS_clone, libc::SYS_clone3, libc::SYS_execve, libc::SYS_execveat];
    #[cfg(target_arch = "x86_64")]
    forbidden.extend([libc::SYS_fork, libc::SYS_vfork]);
    // The number of the call is the first word of what the program sees.
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (left, call) in (1u8..).zip(&forbidden).map(|(at, call)| (forbidden.len() as u8 - at, call))
    {
        let number = u32::try_from(*call).unwrap();
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, left + 1));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0));
    let length = u16::try_from(program.len()).unwrap();
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the call has numbers as arguments only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: `program` and the instructions it points to live until the call returns.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}

/// Lines that the calling thread logs, from `info` on, while `body` runs.
pub(crate) fn logged(body: impl FnOnce()) -> Vec<String> {
    static COLLECTOR: Collector = Collector;
    // Another test was faster, with the same one.
    let _ = log::set_logger(&COLLECTOR);
    log::set_max_level(log::LevelFilter::Info);
    LINES.set(Some(Vec::new()));
    body();
    LINES.take().unwrap_or_default()
}

thread_local! {
    static LINES: std::cell::RefCell<Option<Vec<String>>> = const { std::cell::RefCell::new(None) };
}

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(record.args().to_string());
            }
        });
    }

    fn flush(&self) {}
}

/// Waits for a state of the kernel that nothing announces.
pub(crate) fn wait_until(what: &str, reached: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, reached);
}

/// `wait_until` for what is much work.
pub(crate) fn wait_within(limit: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let end = monotonic() + limit;
    while !reached() {
        assert!(monotonic() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// Feeds the committed corpus of each fuzz target to its entrance once more.
pub(crate) fn replay(targets: &[(&str, impl Fn(&[u8]))]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, entrance) in targets {
        let dir = corpus.join(name);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            // The name of the file is in the output if the entrance panics.
            println!("{}", path.display());
            entrance(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", dir.display());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const NAME: &str = "sys::testing::tests::forbidden_processes_are_not_made";
    const FORBID: &str = "AOS_TEST_FORBID";

    #[test]
    fn forbidden_processes_are_not_made() {
        if std::env::var_os(FORBID).is_some() {
            forbid_processes();
            let _ = Command::new("true").status();
            return;
        }
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", NAME]).env(FORBID, "1").stdout(Stdio::null());
        let status = alone.spawn().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}");
    }
}
