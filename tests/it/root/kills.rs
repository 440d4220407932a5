//! SIGKILL of the daemon at random steps of starting, changing and stopping instances, and of its
//! runtimes at random moments.
//!
//! The daemon under test is built with debug assertions, which makes `AOS_FAULT_AT` work: it dies
//! after an effect of core or between two steps of a script. After each death another daemon
//! must bring what was asked for, every instance exactly once, and nothing else. `AOS_KILLS` is the
//! number of deaths of each test, `AOS_KILL_SEED` what its choices begin with; a failure names both.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use aos_servicemanager::sys::pidfd;
use aos_servicemanager::sys::time::monotonic;

use crate::common::chance::{self, chance};
use crate::common::host;
use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// What the CM asks for, as service and number of instances.
type Request = &'static [(&'static str, u32)];

/// What one test asks for in turn, and where its daemons die.
struct Course {
    requests: &'static [Request],
    /// Points by name, and about as many as the work for one request passes, the start of the
    /// daemon included.
    points: [(&'static str, u64); 3],
    /// Deaths of one test.
    kills: usize,
}

/// A few instances and many deaths.
const FEW: Course = Course {
    requests: &[
        &[("a", 2), ("b", 1)],
        &[("a", 2), ("b", 2)],
        &[],
        &[("b", 2)],
        &[("a", 1), ("secret", 2)],
        &[("secret", 1), ("b", 1)],
    ],
    points: [("effect", 70), ("start step", 24), ("stop step", 16)],
    kills: 25,
};

/// As many instances as a large unit has.
const MANY: Course = Course {
    requests: &[
        &[("a", 64)],
        &[("a", 32), ("b", 32)],
        &[],
        &[("b", 64)],
        &[("secret", 64)],
        &[("a", 16), ("b", 16), ("secret", 32)],
    ],
    points: [("effect", 1000), ("start step", 384), ("stop step", 256)],
    kills: 3,
};

/// Rounds without a death are for nothing; they are rare.
const ROUNDS_PER_KILL: usize = 4;
/// Every so many rounds all instances are started anew.
const FORCED: u64 = 4;

/// Of a service that may be killed more often at once than others: its limit of starts is not what is
/// tried here.
fn config(more: &str) -> String {
    let run = r#"{"startInterval":"500ms","startBurst":100,"restartInterval":"100ms"}"#;
    format!("config='{{\"runParameters\":{run}{more}}}'")
}

/// Tells the unit what its CM wants. What stays is wanted with the same parameters as before.
fn declare(unit: &mut Unit, request: Request) {
    unit.say("clear");
    unit.service("a", "exec /busybox sleep 10000", &config(""));
    let polite = "trap \"exit 0\" TERM; while :; do /busybox sleep 1000 & wait $!; done";
    unit.service("b", polite, &format!("stop-signal=SIGTERM {}", config("")));
    let busybox = need::program("busybox").unwrap();
    unit.say(&format!(
        "service secret {busybox} entrypoint=/busybox cmd=sleep cmd=10000 \
         {}",
        config(r#","permissions":{"vis":{"*":"rw"}}"#)
    ));
    for (service, count) in request {
        unit.say(&format!("instance {service} count={count} uid=5000"));
    }
}

/// Every wanted instance runs exactly once, and there is nothing else.
fn is_in_order(unit: &Unit, request: Request) -> bool {
    let count = request.iter().map(|(_, count)| *count as usize).sum::<usize>();
    let groups: BTreeMap<_, _> = unit.groups().into_iter().collect();
    let states = host::names(&unit.path("run/oci"));
    let counts = [groups.len(), states.len(), unit.space.network_namespaces().len()];
    if counts != [count; 3] || unit.bundles().len() != count {
        return false;
    }
    let ids = unit.ids();
    let runs_once = |ident: String| {
        let pids = ids.get(&ident).and_then(|id| groups.get(id));
        pids.is_some_and(|pids| pids.iter().filter(|pid| is_init(**pid)).count() == 1)
    };
    let mut idents = request.iter().flat_map(|(service, count)| {
        (0..*count).map(move |index| format!("{service}/subject/{index}"))
    });
    idents.all(runs_once)
}

/// The first process of a container.
fn is_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find(|line| line.starts_with("NSpid:"));
    numbers.is_some_and(|line| line.split_whitespace().last() == Some("1"))
}

/// One life that may end at a step; true if it did.
fn risky_life(unit: &mut Unit, point: &str, request: Request, force: bool) -> bool {
    let run = if force { "run force" } else { "run" };
    unit.look();
    unit.start_daemon_with(&[("AOS_FAULT_AT", point)]);
    let mut asked = false;
    wait_until("a death or the end of the work", || {
        if unit.daemon_is_dead() {
            return true;
        }
        if !asked {
            let registered = unit.seen().iter().any(|line| line.contains("full status"));
            asked = registered && unit.try_say(run);
            return false;
        }
        let reported = request.is_empty() || unit.try_say("wait active 1s");
        reported && is_in_order(unit, request)
    });
    let dead = unit.daemon_is_dead();
    if dead {
        unit.bury_daemon();
    } else {
        unit.kill_daemon();
    }
    dead
}

/// A life without faults brings everything in order.
fn good_life(unit: &mut Unit, request: Request, after: &str) {
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    if !request.is_empty() {
        unit.say("wait active 120s");
    }
    wait_until(after, || is_in_order(unit, request));
    unit.kill_daemon();
}

fn kills(setup: Setup, course: &Course, nth: u64) {
    let kills = chance::kills(course.kills);
    let mut unit = setup.start();
    let mut random = chance(nth);
    let (mut deaths, mut rounds) = (0, 0);
    while deaths < kills {
        assert!(rounds < kills * ROUNDS_PER_KILL, "only {deaths} deaths in {rounds} rounds");
        let request = course.requests[rounds % course.requests.len()];
        rounds += 1;
        let (name, count) = course.points[usize::try_from(random.below(3)).unwrap()];
        let point = format!("{name}:{}", 1 + random.below(count));
        let force = random.below(FORCED) == 0;
        declare(&mut unit, request);
        deaths += usize::from(risky_life(&mut unit, &point, request, force));
        let seed = chance::seed();
        good_life(&mut unit, request, &format!("AOS_KILL_SEED={seed}, round {rounds}, {point}"));
    }
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
    println!("deaths={deaths} rounds={rounds}");
}

#[test]
fn killed_at_random_steps_1() {
    require!(root, memory, runc, busybox);
    kills(Setup::new(), &FEW, 1);
}

#[test]
fn killed_at_random_steps_2() {
    require!(root, memory, runc, busybox);
    kills(Setup::new(), &FEW, 2);
}

#[test]
fn killed_at_random_steps_3() {
    require!(root, memory, crun, busybox);
    kills(Setup::crun(), &FEW, 3);
}

#[test]
fn killed_at_random_steps_4() {
    require!(root, memory, crun, busybox);
    kills(Setup::crun(), &FEW, 4);
}

#[test]
fn killed_at_random_steps_of_sixty_four() {
    require!(root, memory, crun, busybox);
    kills(Setup::crun(), &MANY, 5);
}

#[test]
fn killed_at_random_steps_of_sixty_four_with_runc() {
    require!(root, memory, runc, busybox);
    kills(Setup::new(), &MANY, 6);
}

/// Runtimes of a test that are killed.
const RUNTIMES: usize = 10;
/// So many one after the other, at most.
const KILLS_PER_ROUND: u64 = 4;
/// What a call of a runtime may take on a busy machine, in microseconds.
const CALL_US: u64 = 30_000;

/// Calls of the runtime that the daemon waits for.
fn calls(unit: &mut Unit) -> Vec<u32> {
    let is_call = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.any(|word| word == b"create" || word == b"start")
    };
    // The main thread alone makes children.
    let pid = unit.daemon().pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_call).collect()
}

/// Kills one call of the runtime, with what it has started, some time after it was seen. False =
/// all work is done.
fn kill_a_call(unit: &mut Unit, request: Request, after: Duration) -> bool {
    let mut seen = None;
    wait_until("a call or the end of the work", || {
        seen = calls(unit).pop();
        seen.is_some() || is_in_order(unit, request)
    });
    let Some(pid) = seen else { return false };
    let begin = monotonic();
    while monotonic() < begin + after {
        std::thread::yield_now();
    }
    // It may have ended by itself, which is as good.
    pidfd::kill_group(pid).is_ok()
}

/// After each round another request brings every instance exactly once, and nothing is left.
fn runtimes_are_killed(setup: Setup, nth: u64) {
    let wanted = chance::kills(RUNTIMES);
    let mut unit = setup.registered();
    let mut random = chance(nth);
    unit.look();
    let (mut killed, mut rounds) = (0, 0);
    while killed < wanted {
        assert!(rounds < wanted * ROUNDS_PER_KILL, "only {killed} kills in {rounds} rounds");
        let request = FEW.requests[rounds % FEW.requests.len()];
        rounds += 1;
        declare(&mut unit, request);
        unit.say(if random.below(2) == 0 { "run force" } else { "run" });
        for _ in 0..=random.below(KILLS_PER_ROUND) {
            let after = Duration::from_micros(random.below(CALL_US));
            killed += usize::from(kill_a_call(&mut unit, request, after));
        }
        unit.say("run");
        if !request.is_empty() {
            unit.say("wait active");
        }
        let seed = chance::seed();
        wait_until(&format!("order, AOS_KILL_SEED={seed}, round {rounds}"), || {
            is_in_order(&unit, request)
        });
    }
    let told = unit.seen().iter().filter(|line| line.contains("killed by signal 9")).count();
    assert!(told > 0, "no kill was noticed");
    unit.stop_daemon();
    unit.nothing_left();
    println!("killed={killed} rounds={rounds} told={told}");
}

#[test]
fn runtimes_killed_at_random_moments_with_crun() {
    require!(root, memory, crun, busybox);
    runtimes_are_killed(Setup::crun(), 7);
}

#[test]
fn runtimes_killed_at_random_moments_with_runc() {
    require!(root, memory, runc, busybox);
    runtimes_are_killed(Setup::new(), 8);
}
