//! Seeded disorder: random requests, faults of every port, the daemon killed in any port call.
//! Whatever happened, the next life reaches the desired state and leaves nothing else.

use std::collections::{BTreeMap, BTreeSet};

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

#[test]
fn killed_at_each_port_call_of_a_run() {
    quiet_crashes();
    for call in 1..80 {
        let mut unit = Unit::started(call);
        let wanted = [("a", "1.0.0"), ("b", "1.0.0")];
        unit.host.crash_in(call);
        unit.run(request(&wanted));
        unit.settle();
        if !unit.is_alive() {
            unit.boot();
            unit.connect();
            unit.settle();
        }
        check(&unit, &wanted, call);
    }
}
