//! SIGKILL of the daemon at random steps of starting, changing and stopping instances.
//!
//! The daemon under test is built with debug assertions, which makes `AOS_FAULT_AT` work: it dies
//! after an effect of core or between two steps of a script. After each death another daemon
//! must bring what was asked for, every instance exactly once, and nothing else.

use std::collections::BTreeSet;

use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Deaths of one test; there are four of them.
const KILLS: usize = 25;
/// Rounds without a death are for nothing; they are rare.
const MAX_ROUNDS: usize = 4 * KILLS;
/// Points by name, and about as many as the work for one request passes, the start of the daemon
/// included.
const POINTS: [(&str, u64); 3] = [("effect", 70), ("start step", 24), ("stop step", 16)];

/// What the CM asks for in turn, as `service` and number of instances.
const REQUESTS: [&[(&str, u32)]; 6] = [
    &[("a", 2), ("b", 1)],
    &[("a", 2), ("b", 2)],
    &[],
    &[("b", 2)],
    &[("a", 1), ("secret", 2)],
    &[("secret", 1), ("b", 1)],
];

fn declare(unit: &mut Unit) {
    unit.service("a", "exec /busybox sleep 10000", "");
    let polite = "trap \"exit 0\" TERM; while :; do /busybox sleep 1 & wait $!; done";
    unit.service("b", polite, "stop-signal=SIGTERM");
    let busybox = crate::common::need::program("busybox").unwrap();
    unit.say(&format!(
        "service secret {busybox} entrypoint=/busybox cmd=sleep cmd=10000 \
         config='{{\"permissions\":{{\"vis\":{{\"*\":\"rw\"}}}}}}'"
    ));
}

fn ask(unit: &mut Unit, request: &[(&str, u32)], force: bool) -> bool {
    unit.say("clear");
    declare(unit);
    for (service, count) in request {
        unit.say(&format!("instance {service} count={count}"));
    }
    unit.try_say(if force { "run force" } else { "run" })
}

/// Idents of the instances that have a living process, as the environment in the bundle tells.
fn living(unit: &Unit, request: &[(&str, u32)]) -> BTreeSet<String> {
    let groups = unit.groups();
    let lives = |id: &String| groups.iter().any(|(of, pids)| of == id && !pids.is_empty());
    let idents = request.iter().flat_map(|(service, count)| {
        (0..*count).map(move |index| format!("{service}/subject/{index}"))
    });
    idents.filter(|ident| unit.find_id(ident).is_some_and(|id| lives(&id))).collect()
}

/// Every wanted instance runs exactly once, and there is nothing else.
fn is_in_order(unit: &Unit, request: &[(&str, u32)]) -> bool {
    let count = request.iter().map(|(_, count)| *count as usize).sum::<usize>();
    let groups = unit.groups();
    groups.len() == count
        && unit.bundles().len() == count
        && unit.space.network_namespaces().len() == count
        && living(unit, request).len() == count
}

/// One life that may end at a step; true if it did.
fn risky_life(unit: &mut Unit, point: &str, request: &[(&str, u32)], force: bool) -> bool {
    unit.look();
    unit.start_daemon_with(&[("AOS_FAULT_AT", point)]);
    let mut asked = false;
    wait_until("a death or the end of the work", || {
        if unit.daemon_is_dead() {
            return true;
        }
        if !asked {
            let registered = unit.seen().iter().any(|line| line.contains("full status"));
            asked = registered && ask(unit, request, force);
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
    unit.try_say("wait disconnected");
    dead
}

/// A life without faults brings everything in order.
fn good_life(unit: &mut Unit, request: &[(&str, u32)], after: &str) {
    unit.start_daemon();
    unit.say("wait registered");
    assert!(ask(unit, request, false));
    if !request.is_empty() {
        unit.say("wait active");
    }
    wait_until(after, || is_in_order(unit, request));
    unit.kill_daemon();
    unit.say("wait disconnected");
}

/// A small generator, good enough to choose steps: xorshift64*.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

fn kills(setup: Setup, seed: u64) {
    let mut unit = setup.start();
    let mut random = seed * 0x9E37_79B9 + 1;
    let (mut deaths, mut rounds) = (0, 0);
    while deaths < KILLS {
        let request = REQUESTS[rounds % REQUESTS.len()];
        let (name, count) = POINTS[rounds % POINTS.len()];
        let point = format!("{name}:{}", 1 + next_random(&mut random) % count);
        let force = next_random(&mut random).is_multiple_of(4);
        deaths += usize::from(risky_life(&mut unit, &point, request, force));
        rounds += 1;
        good_life(&mut unit, request, &format!("order after round {rounds}, {point}"));
        assert!(rounds < MAX_ROUNDS, "only {deaths} deaths in {rounds} rounds");
    }
    let (code, out, err) = unit.run_to_end(&["-stop-instances"]);
    assert_eq!(code, Some(0), "{out} {err}");
    unit.nothing_left();
}

#[test]
fn killed_at_random_steps_1() {
    require!(root, memory, runc, busybox);
    kills(Setup::new(), 1);
}

#[test]
fn killed_at_random_steps_2() {
    require!(root, memory, runc, busybox);
    kills(Setup::new(), 2);
}

#[test]
fn killed_at_random_steps_3() {
    require!(root, memory, crun, busybox);
    kills(Setup::crun(), 3);
}

#[test]
fn killed_at_random_steps_4() {
    require!(root, memory, crun, busybox);
    kills(Setup::crun(), 4);
}
