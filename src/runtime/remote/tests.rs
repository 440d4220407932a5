//! Errands of processes that answer, fail, or never come back.

use std::fs;

use super::*;
use crate::model::event::Exit;
use crate::ports::{CommandEnd, Watch};

/// Starts programs without supervising them; a test ends those that would not.
#[derive(Default)]
struct Unsupervised {
    pids: Mutex<Vec<u32>>,
}

impl Processes for Unsupervised {
    fn run(&self, _: Command) -> Result<CommandEnd, Failure> {
        Ok(CommandEnd { exit: Exit::Lost, timed_out: false })
    }

    fn start(&self, command: Command) -> Result<(), Failure> {
        let pid = crate::sys::command::spawn(&command.argv, command.stdout, command.stderr);
        let pid = pid.map_err(|error| Failure::text(error.to_string()))?;
        self.pids.lock().unwrap().push(pid);
        Ok(())
    }

    fn watch(&self, _: Watch) -> Result<(), Failure> {
        Ok(())
    }
}

impl Unsupervised {
    fn started(&self) -> usize {
        self.pids.lock().unwrap().len()
    }

    fn end_all(&self) {
        for pid in self.pids.lock().unwrap().iter() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
    }
}

/// With a program that is this script.
fn with_script(script: &str, patience: Duration, check: impl FnOnce(&RemoteData, &Unsupervised)) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    crate::sys::fs::write_plain(&program, format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755)
        .unwrap();
    let processes = Arc::new(Unsupervised::default());
    let bundles = Arc::new(bundle::tests::store(dir.path()));
    let remote = RemoteData { program, patience, ..RemoteData::new(bundles, processes.clone()) };
    check(&remote, &processes);
    processes.end_all();
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn words_of_an_errand() {
    let check = |script: &str, expect: Result<u64, &str>| {
        with_script(script, LONG, |remote, _| {
            let used = remote.used_bytes(Path::new("/some/where"));
            assert_eq!(used.map_err(|failure| failure.message), expect.map_err(str::to_owned));
        });
    };
    check(r#"echo -n "ok 42""#, Ok(42));
    check(r#"[ "$*" = "-errand used /some/where" ] && echo -n "ok 1""#, Ok(1));
    check(r#"echo -n "failed no such place""#, Err("no such place"));
    let wordless = "/some/where: the process that looks after it has ended without a word";
    check("exit 1", Err(wordless));
    check("echo -n ok", Err(wordless));
    check("echo -n 'ok many'", Err(wordless));
    // No more of its words than fit are kept.
    with_script("head -c 100000 /dev/zero | tr '\\0' ' '", LONG, |remote, _| {
        let failure = remote.used_bytes(Path::new("/some/where")).unwrap_err();
        assert_eq!(failure.message.len(), WORDS_MAX - 1);
    });
}

#[test]
fn of_a_silent_server_one_process_is_out() {
    let script = r#"case "$3" in /proc*) echo -n "ok 7";; *) exec sleep 10000;; esac"#;
    with_script(script, Duration::from_millis(50), |remote, processes| {
        let silent = |path: &str| {
            let failure = remote.used_bytes(Path::new(path)).unwrap_err();
            let expect = format!("{path}: the server of its file system is silent");
            assert_eq!(failure.message, expect);
            assert!(failure.transient);
        };
        silent("/some/where");
        silent("/some/where");
        silent("/another/place");
        assert_eq!(processes.started(), 1);
        // It has ended: the next one may go.
        processes.end_all();
        silent("/some/where");
        assert_eq!(processes.started(), 2);
    });
    // Another file system has a process of its own.
    with_script(script, LONG, |remote, processes| {
        assert_eq!(remote.used_bytes(Path::new("/proc/self")).unwrap(), 7);
        assert_eq!(processes.started(), 1);
    });
}

#[test]
fn errands_survive_the_command_line() {
    let owner = Owner { uid: 5, gid: 6 };
    let place = Place { root: "/root dir".into(), relative: "a/b c".to_owned(), owner };
    for errand in
        [Errand::Used("/x y".into()), Errand::State(place.clone()), Errand::Storage(place)]
    {
        assert_eq!(Errand::parse(&errand.to_arguments()), Some(errand));
    }
    for words in ["", "used", "used a b", "state a b 1", "state a b 1 x", "other a b 1 2"] {
        let words: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        assert_eq!(Errand::parse(&words), None, "{words:?}");
    }
}

#[test]
fn errands_are_done() {
    let dir = tempfile::tempdir().unwrap();
    // A file system may be empty.
    crate::sys::fs::write_plain(&dir.path().join("file"), &[1; 8192], 0o600).unwrap();
    assert!(Errand::Used(dir.path().into()).run().unwrap() >= 8192);
    assert!(Errand::Used("/no/such/place".into()).run().unwrap_err().contains("No such file"));
    let owner = Owner {
        uid: nix::unistd::Uid::effective().as_raw(),
        gid: nix::unistd::Gid::effective().as_raw(),
    };
    let root = dir.path().to_owned();
    let place = |relative: &str| Place { root: root.clone(), relative: relative.into(), owner };
    let state = |relative: &str| Errand::State(place(relative));
    let storage = Errand::Storage(place("storage"));
    assert_eq!((state("a/state").run(), storage.run()), (Ok(0), Ok(0)));
    assert!(fs::metadata(root.join("a/state")).unwrap().is_file());
    assert!(fs::metadata(root.join("storage")).unwrap().is_dir());
    assert!(state("storage").run().unwrap_err().contains("is no state file"));
    assert!(!run_errand([OsString::from("-c"), "x".into()]));
    assert!(!run_errand([]));
}
