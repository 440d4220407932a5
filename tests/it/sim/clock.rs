//! The wall clock is set to 1970 and beyond 2038 while instances run, restart and are judged.

use std::time::Duration;

use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::desired::{EnvOverride, EnvVariable, InstanceFilter};
use aos_servicemanager::model::event::{Event, Exit};

use super::unit::{Unit, request};

/// Unix times in milliseconds.
const EPOCH: i64 = 0;
const BEFORE_EPOCH: i64 = -86_400_000;
const AFTER_2038: i64 = (1 << 31) * 1000 + 5;
const FAR: i64 = 253_402_300_800_000;

const JUMPS: [i64; 4] = [EPOCH, BEFORE_EPOCH, AFTER_2038, FAR];

fn jump(unit: &mut Unit, to: i64) {
    unit.now.wall_ms = to;
    unit.event(Event::ClockChanged);
}

#[test]
fn a_clock_step_is_no_event_for_what_runs() {
    for to in JUMPS {
        let mut unit = Unit::started(1);
        unit.run(request(&[("a", "1"), ("b", "1")]));
        unit.settle();
        unit.reports.clear();
        let pids = unit.host.pids();
        let back = unit.now.wall_ms;
        for time in [to, back, to] {
            jump(&mut unit, time);
            unit.settle();
        }
        assert_eq!(unit.host.pids(), pids, "{to}");
        assert!(unit.reports.is_empty(), "{to}: {:?}", unit.reports);
        // A start of the daemon at that time adopts them.
        unit.boot();
        unit.connect();
        unit.settle();
        assert_eq!(unit.host.pids(), pids, "{to}");
        assert_eq!(unit.full_status()["a"], "active 1");
    }
}

#[test]
fn pauses_and_verdicts_do_not_depend_on_the_wall_clock() {
    for to in JUMPS {
        let mut unit = Unit::started(2);
        unit.run(request(&[("a", "1")]));
        while unit.step() {}
        let begin = unit.now.mono;
        jump(&mut unit, to);
        while unit.step() {}
        assert_eq!(unit.full_statuses(), 0, "{to}: the verdict is held");
        unit.settle();
        assert_eq!(unit.full_status()["a"], "active 1", "{to}");
        assert_eq!(unit.now.mono - begin, Duration::from_secs(5), "{to}");

        unit.host.exit(&unit.id_of("a"), Exit::Code(1));
        unit.host_events();
        while unit.step() {}
        let begin = unit.now.mono;
        jump(&mut unit, to + 1_000_000);
        while unit.step() {}
        assert!(unit.host.running().is_empty(), "{to}: it waits for its restart");
        while unit.host.running().is_empty() {
            assert!(unit.step() || unit.pass(Duration::from_secs(60)));
        }
        assert_eq!(unit.now.mono - begin, Duration::from_secs(1), "{to}");
    }
}

#[test]
fn offline_time_is_counted_without_the_wall_clock() {
    for to in JUMPS {
        let mut unit = Unit::started(3);
        unit.patience = Duration::from_secs(10);
        unit.host.configure("t", |i| i.service.offline_ttl = Some(Duration::from_secs(600)));
        unit.command(CmCommand::ConnectionStatus { online: true });
        unit.run(request(&[("t", "1")]));
        unit.settle();
        unit.command(CmCommand::ConnectionStatus { online: false });
        unit.advance(Duration::from_secs(300));
        jump(&mut unit, to);
        unit.settle();
        assert_eq!(unit.host.running().len(), 1, "{to}");
        unit.advance(Duration::from_secs(280));
        unit.settle();
        assert_eq!(unit.host.running().len(), 1, "{to}");
        unit.advance(Duration::from_secs(25));
        unit.settle();
        assert!(unit.host.running().is_empty(), "{to}");
        assert_eq!(unit.deltas().last().unwrap(), "t failed 1 offline timeout");
    }
}

#[test]
fn a_clock_that_is_set_after_the_boot_does_not_count_as_time_without_power() {
    for crash_first in [true, false] {
        let mut unit = Unit::new(5);
        let set_ms = unit.now.wall_ms;
        unit.now.wall_ms = 1_000;
        unit.boot();
        unit.connect();
        unit.host.configure("t", |i| i.service.offline_ttl = Some(Duration::from_secs(7200)));
        unit.run(request(&[("t", "1")]));
        unit.settle();
        assert_eq!(unit.full_status()["t"], "active 1");
        unit.advance(Duration::from_secs(300));
        if crash_first {
            unit.kill();
            unit.now.wall_ms = set_ms;
        } else {
            jump(&mut unit, set_ms);
            unit.kill();
        }
        unit.boot();
        unit.connect();
        while unit.step() {}
        assert_eq!(unit.full_status()["t"], "active 1", "{crash_first}");
        // What has passed since it was set counts.
        unit.event(Event::ClockChanged);
        unit.kill();
        unit.now.wall_ms += 7_200_000;
        unit.boot();
        unit.connect();
        unit.settle();
        assert_eq!(unit.full_status()["t"], "failed 1 offline timeout", "{crash_first}");
    }
}

#[test]
fn a_variable_that_never_ends_is_no_deadline() {
    let mut unit = Unit::started(6);
    unit.run(request(&[("a", "1")]));
    jump(&mut unit, BEFORE_EPOCH);
    let variable = EnvVariable { name: "X".into(), value: "1".into(), ttl_ms: Some(i64::MAX) };
    let list = vec![EnvOverride { filter: InstanceFilter::default(), variables: vec![variable] }];
    unit.command(CmCommand::OverrideEnvVars(list));
    unit.settle();
    assert_eq!(unit.rows.env_overrides.len(), 1);
}

#[test]
fn a_variable_ends_by_the_wall_clock_when_that_passes_its_end() {
    for (to, expired) in [(EPOCH, false), (BEFORE_EPOCH, false), (AFTER_2038, true), (FAR, true)] {
        let mut unit = Unit::started(4);
        unit.run(request(&[("a", "1"), ("b", "1")]));
        unit.settle();
        let ttl_ms = Some(unit.now.wall_ms + 86_400_000);
        let variable = EnvVariable { name: "X".into(), value: "1".into(), ttl_ms };
        let filter = InstanceFilter { service_id: Some("a".into()), ..Default::default() };
        let list = vec![EnvOverride { filter, variables: vec![variable] }];
        unit.command(CmCommand::OverrideEnvVars(list));
        unit.settle();
        assert_eq!(unit.host.starts(), 3);
        jump(&mut unit, to);
        unit.settle();
        assert_eq!(unit.host.starts(), 3 + u64::from(expired), "{to}");
        assert_eq!(unit.rows.env_overrides.is_empty(), expired, "{to}");
        assert_eq!(unit.host.running().len(), 2);
    }
}
