//! Whom entries are about, and a real journald that is followed.

use mio::Poll;

use super::*;
use crate::logs::testing::{Journald, RealProcesses};
use crate::logs::tests::{isolated, settings};
use crate::ports::Clock;
use crate::sys::testing::wait_until;
use crate::sys::time::SystemClock;

/// An entry: level, unit, group, the unit it is about.
fn entry(level: Option<u8>, unit: &str, cgroup: &str, object: &str) -> Entry {
    Entry {
        priority: level,
        unit: unit.to_owned(),
        cgroup: cgroup.to_owned(),
        object: object.to_owned(),
        ..Entry::default()
    }
}

#[test]
fn subjects() {
    let root = tempfile::tempdir().unwrap();
    let mut settings = settings(root.path());
    settings.cgroup_parent = r"/system.slice/system-aos\x2dservice.slice".to_owned();
    let slice = settings.cgroup_parent.clone();
    let known = |id: &InstanceId| id.as_str() == "known";
    let check = |entry: Entry, expect: Option<Subject>| {
        assert_eq!(subject(&entry, &settings, known), expect, "{entry:?}");
    };
    let instance = |id: &str| Some(Subject::Instance(InstanceId::new(id)));
    let system = Some(Subject::System);
    // PID 1 speaks about a unit: by the level for services, about others by that for the system.
    check(entry(Some(4), "init.scope", "/init.scope", "aos-service@i1.service"), instance("i1"));
    check(entry(Some(5), "init.scope", "/init.scope", "aos-service@i1.service"), None);
    check(entry(None, "init.scope", "/init.scope", "aos-service@i1.service"), None);
    check(entry(Some(4), "init.scope", "", "cron.service"), None);
    check(entry(Some(3), "init.scope", "", "cron.service"), system.clone());
    check(entry(Some(3), "init.scope", "/init.scope", ""), None);
    let own = "aos-servicemanager.service";
    check(entry(Some(4), "init.scope", "", own), Some(Subject::Core("aos-servicemanager")));
    // Nobody: the kernel.
    check(entry(Some(0), "", "", ""), None);
    // Instances, by unit or by either form of the group.
    check(entry(Some(3), "aos-service@i1.service", "/x", ""), instance("i1"));
    check(entry(Some(3), "", &format!("{slice}/aos-service@i1.service/sub"), ""), instance("i1"));
    check(entry(Some(3), "", &format!("{slice}/i1"), ""), instance("i1"));
    check(entry(Some(3), "", &format!("{slice}/i1/sub"), ""), instance("i1"));
    check(entry(Some(3), r"system-aos\x2dservice.slice", &format!("{slice}/"), ""), system.clone());
    for unit in COMPONENTS {
        check(entry(Some(3), &format!("{unit}.service"), "/x", ""), Some(Subject::Core(unit)));
    }
    check(entry(Some(3), "", "/system.slice/aos-vis.service", ""), Some(Subject::Core("aos-vis")));
    check(entry(Some(3), "cron.service", "/system.slice/cron.service", ""), system.clone());
    check(entry(Some(3), "", "/system.slice/cron.service", ""), system.clone());
    // The stream of a process that was gone too soon.
    let stream = |name: &str, transport: &str| Entry {
        identifier: name.to_owned(),
        transport: transport.to_owned(),
        ..entry(Some(3), "x.service", "", "")
    };
    check(stream("known", "stdout"), instance("known"));
    check(stream("unknown", "stdout"), system.clone());
    check(stream("known", "journal"), system);
    let muted = Entry { is_muted: true, ..entry(Some(0), "cron.service", "", "") };
    check(muted, None);
}

/// A follower with the loop that its thread would run.
struct Bench<'a> {
    poll: Poll,
    follower: Follower<'a>,
    seen: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(
        settings: &'a LogSettings,
        processes: &'a RealProcesses,
        place: Option<Cursor>,
        since_us: i64,
    ) -> Self {
        let now = SystemClock.now();
        let follower = Follower::new(settings, processes, Token(0), (place, since_us), now);
        Self { poll: Poll::new().unwrap(), follower, seen: Vec::new() }
    }

    fn turn(&mut self) {
        let now = SystemClock.now().mono;
        self.follower.start_if_due(self.poll.registry(), now);
        let seen = &mut self.seen;
        self.follower.read(self.poll.registry(), now, |entry| {
            seen.push(String::from_utf8(entry.message.unwrap()).unwrap());
        });
    }

    /// Reads until this message is there; all that have come since the last time.
    fn until(&mut self, message: &str) -> Vec<String> {
        wait_until(message, || {
            self.turn();
            self.seen.last().is_some_and(|seen| seen == message)
        });
        std::mem::take(&mut self.seen)
    }
}

#[test]
fn rotation_vacuum_and_restarts_lose_and_double_nothing() {
    let name = "rotation_vacuum_and_restarts_lose_and_double_nothing";
    isolated(name, |root| {
        let Some(mut journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        let since_us = SystemClock.now().wall_ms * 1000;
        let error = |text: &str| format!("PRIORITY=3\nMESSAGE={text}\n");
        let mut bench = Bench::new(&settings, &processes, None, since_us);
        journald.say("PRIORITY=4\nMESSAGE=only a warning\n");
        journald.say(&error("one"));
        assert_eq!(bench.until("one"), ["one"]);
        journald.control(&["--rotate"]);
        journald.say(&error("two"));
        journald.control(&["--rotate", "--vacuum-files=1"]);
        journald.say(&error("three"));
        assert_eq!(bench.until("three"), ["two", "three"]);
        // journald dies and comes back, under the eyes of the follower.
        journald.stop();
        journald.restart();
        journald.say(&error("four"));
        assert_eq!(bench.until("four"), ["four"]);
        // The follower dies; what comes while there is none is not lost.
        processes.kill_last();
        journald.say(&error("five"));
        assert_eq!(bench.until("five"), ["five"]);
        let place = bench.follower.place.clone();
        drop(bench);

        journald.say(&error("six"));
        let mut bench = Bench::new(&settings, &processes, place.clone(), 0);
        assert_eq!(bench.until("six"), ["six"]);
        drop(bench);
        // The entry of the cursor is gone: the first one after it is not skipped for it.
        journald.control(&["--rotate"]);
        journald.control(&["--vacuum-files=1"]);
        journald.say(&error("seven"));
        let mut bench = Bench::new(&settings, &processes, place, 0);
        assert_eq!(bench.until("seven").last().unwrap(), "seven");
    });
}

#[test]
fn a_cursor_of_another_journal_is_no_obstacle() {
    let name = "a_cursor_of_another_journal_is_no_obstacle";
    isolated(name, |root| {
        let Some(journald) = Journald::start(name) else { return };
        let settings = journald.settings(root);
        let processes = RealProcesses::default();
        journald.say("PRIORITY=3\nMESSAGE=old\n");
        wait_until("an entry", || journald.control(&["-o", "cat"]).contains("old"));
        let now_us = SystemClock.now().wall_ms * 1000 + 1000;
        let foreign = format!("s={:032x};i=5;b={:032x};m=7;t={now_us:x};x=1", 1, 2);
        let place = Cursor::parse(&foreign);
        let mut bench = Bench::new(&settings, &processes, place, 0);
        bench.turn();
        wait_until("the time of the cursor", || SystemClock.now().wall_ms * 1000 > now_us);
        journald.say("PRIORITY=3\nMESSAGE=new\n");
        assert_eq!(bench.until("new"), ["new"], "what is older than the cursor is skipped");
    });
}

#[test]
fn without_journalctl_it_is_tried_again_and_again() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    struct Nobody;
    impl Processes for Nobody {
        fn run(
            &self,
            _: Command,
        ) -> Result<crate::ports::CommandEnd, crate::model::failure::Failure> {
            unreachable!()
        }
        fn start(&self, _: Command) -> Result<(), crate::model::failure::Failure> {
            Ok(()) // and drops the output at once
        }
        fn watch(&self, _: crate::ports::Watch) -> Result<(), crate::model::failure::Failure> {
            unreachable!()
        }
    }
    let poll = Poll::new().unwrap();
    let mut follower = Follower::new(&settings, &Nobody, Token(0), (None, 0), Now::default());
    let mut now = Duration::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        follower.start_if_due(poll.registry(), now);
        assert_eq!(follower.next_start(), None);
        follower.read(poll.registry(), now, |_| {});
        let next = follower.next_start().unwrap();
        pauses.push((next - now).as_secs());
        // Not before its time.
        follower.start_if_due(poll.registry(), next - Duration::from_nanos(1));
        assert_eq!(follower.next_start(), Some(next));
        now = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}

/// Runs nothing: its children end at once.
struct NoChildren;

impl Processes for NoChildren {
    fn run(&self, _: Command) -> Result<crate::ports::CommandEnd, crate::model::failure::Failure> {
        unreachable!("a follower waits for nothing")
    }

    fn start(&self, _: Command) -> Result<(), crate::model::failure::Failure> {
        Ok(())
    }

    fn watch(&self, _: crate::ports::Watch) -> Result<(), crate::model::failure::Failure> {
        unreachable!("a follower is no instance")
    }
}

#[test]
fn a_follower_at_the_end_of_its_life_is_replaced_at_once() {
    let root = tempfile::tempdir().unwrap();
    let settings = settings(root.path());
    let now = SystemClock.now();
    let poll = Poll::new().unwrap();
    let mut follower = Follower::new(&settings, &NoChildren, Token(0), (None, 0), now);
    let mut ends_at = |begun: Duration, ended: Duration, expect: Option<Duration>| {
        follower.start_if_due(poll.registry(), begun);
        assert_eq!(follower.next_start(), None);
        follower.read(poll.registry(), ended, |entry| panic!("{entry:?}"));
        assert_eq!(follower.next_start(), expect);
        expect.unwrap()
    };
    let second = Duration::from_secs(1);
    let begun = now.mono;
    let next = ends_at(begun, begun + 5 * second, Some(begun + 6 * second));
    let next = ends_at(next, next, Some(next + 2 * second));
    let next = ends_at(next, next + LIFE, Some(next + LIFE));
    // Not as after several failures.
    ends_at(next, next, Some(next + second));
}
