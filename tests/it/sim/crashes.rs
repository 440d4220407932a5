//! Seeded disorder: random requests, faults of every port, the daemon killed in any port call.
//! Whatever happened, the next life reaches the desired state and leaves nothing else.

use std::collections::{BTreeMap, BTreeSet};

use aos_servicemanager::model::desired::RunRequest;
use aos_servicemanager::model::event::{Event, Exit, IamEvent};
use aos_servicemanager::model::job::Permissions;

use super::host::next_random;
use super::unit::{Unit, request};

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "2.0.0"];

fn random_request(random: &mut u64) -> Vec<(&'static str, &'static str)> {
    let mut list = Vec::new();
    for service in SERVICES {
        let pick = next_random(random) % 4;
        if let Some(version) = VERSIONS.get(usize::try_from(pick).unwrap()) {
            list.push((service, *version));
        }
    }
    list
}

/// Some steps in random order, with exits and passing time between them.
fn some_steps(unit: &mut Unit, random: &mut u64) {
    for _ in 0..next_random(random) % 40 {
        if next_random(random).is_multiple_of(10) {
            let running = unit.host.running();
            if let Some(id) = running.keys().next().filter(|_| unit.is_alive()) {
                unit.host.exit(id, Exit::Code(1));
                unit.host_events();
            }
        }
        if !unit.step() && !unit.pass(unit.patience) {
            return;
        }
    }
}

fn check(unit: &Unit, wanted: &[(&str, &str)], seed: u64) {
    let running: BTreeSet<(String, String)> = unit
        .host
        .running()
        .into_iter()
        .map(|(id, version)| {
            let row =
                unit.rows.instances.iter().find(|r| r.id == id).expect("running ones are wanted");
            (row.instance.ident.service_id.to_string(), version)
        })
        .collect();
    let expect: BTreeSet<(String, String)> =
        wanted.iter().map(|(s, v)| ((*s).to_owned(), (*v).to_owned())).collect();
    assert_eq!(running, expect, "seed {seed}: {:?}", unit.full_status());
    let present = unit.host.present();
    let rows: BTreeSet<_> = unit.rows.instances.iter().map(|r| r.id.clone()).collect();
    assert_eq!(present, rows, "seed {seed}: nothing but the wanted instances is on the host");
    let named: BTreeSet<_> = unit.rows.services.iter().map(|r| r.path.clone()).collect();
    assert_eq!(
        unit.host.images(),
        named,
        "seed {seed}: every image has a row and every row an image"
    );
    unit.check_running();
    let idents: BTreeSet<_> = unit.rows.instances.iter().map(|r| &r.instance.ident).collect();
    let known: BTreeSet<_> = unit.iam.keys().collect();
    assert!(known.is_subset(&idents), "seed {seed}: IAM knows too much: {known:?}");
    assert!(unit.rows.leaving.is_empty(), "seed {seed}: {:?}", unit.rows.leaving);
    assert!(
        unit.full_status().values().all(|s| s.starts_with("active")),
        "seed {seed}: {:?}",
        unit.full_status()
    );
}

fn permissions() -> Permissions {
    Permissions::from([("server".to_owned(), BTreeMap::new())])
}

/// A made-up crash is no failure of the test: nothing is printed about it.
fn quiet_crashes() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<super::host::Crash>() {
                hook(info);
            }
        }));
    });
}

#[test]
fn crashes_and_faults_converge() {
    quiet_crashes();
    for seed in 1..=400 {
        let mut random = seed * 7919;
        let mut unit = Unit::started(seed);
        // IAM hears of half of the services.
        for service in ["b", "d"] {
            unit.host.configure(service, |image| image.service.permissions = Some(permissions()));
        }
        for _ in 0..4 {
            unit.host.fail_per_mille(next_random(&mut random) % 100);
            unit.run(request(&random_request(&mut random)));
            unit.host.crash_in(1 + next_random(&mut random) % 60);
            some_steps(&mut unit, &mut random);
            if next_random(&mut random).is_multiple_of(5) && unit.is_alive() {
                unit.iam.clear();
                unit.event(Event::Iam(IamEvent::Up { restarted: true }));
            }
            if !unit.is_alive() {
                unit.boot();
                unit.connect();
            }
        }
        unit.host.fail_per_mille(0);
        unit.host.crash_in(u64::MAX / 2);
        let wanted = random_request(&mut random);
        unit.run(request(&wanted));
        unit.settle();
        // Two installs that crashed the daemon are not tried by themselves.
        unit.run(request(&wanted));
        unit.settle();
        check(&unit, &wanted, seed);
    }
}

/// What is done to a unit, from where, and what is wanted in the end.
struct Scenario {
    name: &'static str,
    before: &'static [(&'static str, &'static str)],
    wanted: &'static [(&'static str, &'static str)],
    act: fn(&mut Unit, RunRequest),
}

fn ask(unit: &mut Unit, wanted: RunRequest) {
    unit.run(wanted);
}

fn force(unit: &mut Unit, wanted: RunRequest) {
    unit.run(RunRequest { force_restart: true, ..wanted });
}

/// An instance ends by itself and is started again.
fn end(unit: &mut Unit, _: RunRequest) {
    unit.host.exit(&unit.id_of("a"), Exit::Code(1));
    unit.host_events();
}

fn stop(unit: &mut Unit, _: RunRequest) {
    unit.event(Event::Stop);
}

/// Service `b` is known to IAM, `s` has a stop signal.
const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "start",
        before: &[],
        wanted: &[("a", "1"), ("b", "1"), ("s", "1")],
        act: ask,
    },
    Scenario { name: "stop", before: &[("a", "1"), ("b", "1"), ("s", "1")], wanted: &[], act: ask },
    Scenario {
        name: "change",
        before: &[("a", "1"), ("b", "1"), ("s", "1")],
        wanted: &[("a", "2"), ("b", "2"), ("s", "2")],
        act: ask,
    },
    Scenario {
        name: "exchange",
        before: &[("a", "1"), ("b", "1")],
        wanted: &[("b", "1"), ("c", "1")],
        act: ask,
    },
    Scenario {
        name: "force",
        before: &[("a", "1"), ("b", "1")],
        wanted: &[("a", "1"), ("b", "1")],
        act: force,
    },
    Scenario {
        name: "end",
        before: &[("a", "1"), ("b", "1")],
        wanted: &[("a", "1"), ("b", "1")],
        act: end,
    },
    Scenario {
        name: "shutdown",
        before: &[("a", "1"), ("b", "1"), ("s", "1")],
        wanted: &[("a", "1"), ("b", "1"), ("s", "1")],
        act: stop,
    },
];

/// Carries a scenario out with a daemon that dies at a point set by `arm`, lets another one come
/// and checks what it makes of it. False = that point was not reached.
fn killed_once(scenario: &Scenario, seed: u64, arm: impl FnOnce(&mut Unit)) -> bool {
    let mut unit = Unit::started(seed);
    unit.host.configure("b", |image| image.service.permissions = Some(permissions()));
    unit.host.configure("s", |image| image.image.stop_signal = "SIGTERM".into());
    unit.run(request(scenario.before));
    unit.settle();
    arm(&mut unit);
    (scenario.act)(&mut unit, request(scenario.wanted));
    unit.settle();
    let reached = unit.dies_after_effects.is_none() && !unit.host.is_crash_due();
    unit.dies_after_effects = None;
    unit.host.crash_in(u64::MAX / 2);
    if !unit.is_alive() {
        unit.boot();
        unit.connect();
        unit.settle();
    }
    // A daemon that died before it stored the request does not know of it.
    let stored: BTreeSet<_> =
        unit.rows.instances.iter().map(|r| r.instance.ident.service_id.to_string()).collect();
    if stored != scenario.wanted.iter().map(|(s, _)| (*s).to_owned()).collect() {
        unit.run(request(scenario.wanted));
        unit.settle();
    }
    check(&unit, scenario.wanted, seed);
    reached
}

#[test]
fn killed_after_each_effect() {
    for scenario in &SCENARIOS {
        let mut count = 0;
        while killed_once(scenario, count, |unit| unit.dies_after_effects = Some(count + 1)) {
            count += 1;
        }
        assert!(count >= 4, "{}: only {count} effects", scenario.name);
    }
}

#[test]
fn killed_in_each_port_call() {
    quiet_crashes();
    for scenario in &SCENARIOS {
        let mut count = 0;
        while killed_once(scenario, count, |unit| unit.host.crash_in(count + 1)) {
            count += 1;
        }
        assert!(count >= 4, "{}: only {count} calls", scenario.name);
    }
}
