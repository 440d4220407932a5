//! The wall clock jumps while instances run, which they and their supervision must not notice. Only
//! where the clock belongs to nobody else.

use std::collections::BTreeSet;
use std::time::Duration;

use aos_servicemanager::sys::pidfd;
use aos_servicemanager::sys::time::monotonic;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::common::need::{on_platform, require};
use crate::common::unit::{Setup, Unit};
use crate::common::wait_until;

/// Sets the clock right in the end.
struct WallClock {
    wall: Duration,
    mono: Duration,
}

impl WallClock {
    fn new() -> Self {
        let wall = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).unwrap());
        Self { wall, mono: monotonic() }
    }

    fn set(since_1970: Duration) {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_1970)).unwrap();
    }

    fn right(&self) -> Duration {
        self.wall + (monotonic() - self.mono)
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        Self::set(self.right());
    }
}

/// Instances are supervised and requests obeyed; what runs is not touched.
fn all_is_well(unit: &mut Unit, round: usize) {
    let (victim, witness) = (unit.pid_of("victim/subject/0"), unit.pid_of("witness/subject/0"));
    let id = unit.id_of("victim/subject/0");
    pidfd::kill(victim).unwrap();
    let alive = |pids: &BTreeSet<u32>| !pids.is_empty() && !pids.contains(&victim);
    wait_until("the restart", || unit.groups().iter().any(|(of, pids)| *of == id && alive(pids)));
    unit.say("wait active victim");
    unit.sleeper(&format!("new{round}"));
    unit.say("run");
    unit.say(&format!("wait active new{round}"));
    unit.say("stats");
    unit.say("wait stats");
    assert_eq!(unit.pid_of("witness/subject/0"), witness);
    assert_eq!(unit.groups().len(), 3 + round);
}

#[test]
fn the_wall_clock_jumps_to_1970_and_to_2038_while_instances_run() {
    on_platform!(own_clock);
    require!(root, memory, crun, busybox);
    let clock = WallClock::new();
    let mut unit = Setup::crun().set("monitoring.pollPeriod", "1s").registered();
    unit.sleeper("victim");
    unit.sleeper("witness");
    unit.say("run");
    unit.say("wait active");
    // The kernel allows no time before its own start.
    let in_1970 = || monotonic() + Duration::from_secs(60);
    // The last second of a signed 32-bit number is passed while this goes on.
    let end_of_32_bits = Duration::from_secs(u64::from(i32::MAX.unsigned_abs()) - 2);
    let right = || clock.right();
    let times: [&dyn Fn() -> Duration; 4] = [&in_1970, &|| end_of_32_bits, &in_1970, &right];
    for (round, time) in times.into_iter().enumerate() {
        WallClock::set(time());
        all_is_well(&mut unit, round);
    }
    // Another life adopts what an earlier one started in another time.
    WallClock::set(end_of_32_bits);
    let witness = unit.pid_of("witness/subject/0");
    unit.kill_daemon();
    WallClock::set(clock.right());
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("wait active");
    assert_eq!(unit.pid_of("witness/subject/0"), witness);
    unit.stop_daemon();
    unit.nothing_left();
}
