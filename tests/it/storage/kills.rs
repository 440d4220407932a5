//! SIGKILL at random fault points of install, update and removal.
//!
//! The daemon under test is built with debug assertions, which makes `AOS_FAULT_AT` work. After
//! each death a new daemon must reach what was asked for: every wanted package installed once,
//! every row with its directory and every directory with its row, nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rusqlite::{Connection, OpenFlags};

use crate::common::image::{self, Member, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::{host, wait_until};

/// Deaths of one test; there are four of them.
const KILLS: usize = 50;
/// Rounds without a death are for nothing; they are rare.
const MAX_ROUNDS: usize = 4 * KILLS;
/// About as many points as one life passes.
const POINTS: u64 = 36;

/// What the CM asks for in turn, as (service, version).
const STEPS: [&[(&str, &str)]; 5] = [
    &[("a", "1.0.0"), ("b", "1.0.0")],
    &[("a", "2.0.0"), ("b", "1.0.0"), ("c", "1.0.0")],
    &[("c", "1.0.0")],
    &[("a", "1.0.0"), ("c", "2.0.0")],
    &[("b", "2.0.0"), ("c", "2.0.0")],
];

/// What the database says.
#[derive(Debug)]
struct Rows {
    /// Ids and versions of the installed services.
    keys: BTreeSet<(String, String)>,
    paths: BTreeSet<PathBuf>,
    /// Number of packages that are still to be installed.
    wanted: i64,
}

struct Store {
    unit: Unit,
}

impl Store {
    fn new() -> Self {
        // What is not wanted any more goes at once.
        let setup = Setup::new().set("serviceTtlDays", "0").set("layerTtlDays", "0");
        let unit = setup.start();
        for (service, version) in STEPS.concat() {
            let text = format!("{service} {version}");
            let package = Package::with_root(&[
                Member::file("name", text.as_bytes()),
                Member::symlink("link", "name"),
            ]);
            image::write(
                &unit.path("packages"),
                &format!("{service}-{version}.tar"),
                &package.bytes(),
            );
        }
        Self { unit }
    }

    fn ask(&mut self, step: &[(&str, &str)]) -> bool {
        self.unit.say("clear");
        for (service, version) in step {
            let path = self.unit.path("packages").join(format!("{service}-{version}.tar"));
            self.unit
                .say(&format!("service {service} version={version} package={}", path.display()));
        }
        self.unit.try_say("run")
    }

    fn rows(&self) -> Option<Rows> {
        let path = self.unit.path("sm/work/servicemanager.db");
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
        let mut statement = db.prepare("SELECT id, version, path FROM services").ok()?;
        let rows = statement
            .query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })
            .ok()?
            .collect::<Result<Vec<_>, _>>()
            .ok()?;
        let keys = rows.iter().map(|(id, version, _)| (id.clone(), version.clone())).collect();
        let paths = rows.into_iter().map(|(_, _, path)| path.into()).collect();
        let wanted = db.query_row("SELECT count(*) FROM wanted", [], |row| row.get(0)).ok()?;
        Some(Rows { keys, paths, wanted })
    }

    /// What is asked for is there, and nothing else.
    fn is_settled(&self, step: &[(&str, &str)]) -> bool {
        let Some(Rows { keys, paths, wanted }) = self.rows() else { return false };
        let expect: BTreeSet<_> =
            step.iter().map(|(id, version)| ((*id).to_owned(), (*version).to_owned())).collect();
        let services = self.unit.path("sm/work/services");
        let found: BTreeSet<PathBuf> =
            host::names(&services).iter().map(|name| services.join(name)).collect();
        keys == expect && wanted == 0 && paths == found
    }

    fn state(&self) -> String {
        format!("{:?} {:?}", self.rows(), self.unit.installed())
    }

    /// One life that may end at a fault point; true if it did.
    fn risky_life(&mut self, point: u64, step: &[(&str, &str)]) -> bool {
        self.unit.look();
        self.unit.start_daemon_with(&[("AOS_FAULT_AT", &point.to_string())]);
        let mut asked = false;
        wait_until("a death or the end of the work", || {
            if self.unit.daemon_is_dead() {
                return true;
            }
            if !asked {
                let registered = self.unit.seen().iter().any(|line| line.contains("full status"));
                asked = registered && self.ask(step);
                return false;
            }
            self.is_settled(step)
        });
        if self.unit.daemon_is_dead() {
            self.unit.bury_daemon();
            return true;
        }
        self.unit.kill_daemon();
        false
    }

    /// A life without faults brings everything in order.
    fn good_life(&mut self, step: &[(&str, &str)], after: &str) {
        self.unit.start_daemon();
        self.unit.say("wait registered");
        assert!(self.ask(step));
        let mut last = String::new();
        let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("order", || {
                last = self.state();
                self.is_settled(step)
            });
        }));
        assert!(settled.is_ok(), "{after}: {step:?} is not reached: {last}");
        let left = host::tree(&self.unit.path("sm/work/download"));
        assert!(left.is_empty(), "{after}: {left:?}");
        // Every package can be read and is what it claims to be.
        for (service, version) in step {
            let named = self.unit.installed().into_iter().any(|name| {
                let file = self.unit.path("sm/work/services").join(name).join("rootfs/name");
                std::fs::read_to_string(file).is_ok_and(|t| t == format!("{service} {version}"))
            });
            assert!(named, "{after}: {service} {version} has lost its content");
        }
        self.unit.kill_daemon();
        self.unit.say("wait disconnected");
    }
}

/// A small generator, good enough to choose points: xorshift64*.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

fn kills(seed: u64) {
    require!(root, memory, runc, busybox);
    let mut store = Store::new();
    let mut random = seed * 0x9E37_79B9 + 1;
    let (mut deaths, mut rounds) = (0, 0);
    while deaths < KILLS {
        let step = STEPS[rounds % STEPS.len()];
        let point = 1 + next_random(&mut random) % POINTS;
        deaths += usize::from(store.risky_life(point, step));
        store.unit.try_say("wait disconnected");
        rounds += 1;
        store.good_life(step, &format!("seed {seed}, round {rounds}, point {point}"));
        assert!(rounds < MAX_ROUNDS, "only {deaths} deaths in {rounds} rounds");
    }
}

#[test]
fn killed_at_random_points_1() {
    kills(1);
}

#[test]
fn killed_at_random_points_2() {
    kills(2);
}

#[test]
fn killed_at_random_points_3() {
    kills(3);
}

#[test]
fn killed_at_random_points_4() {
    kills(4);
}
