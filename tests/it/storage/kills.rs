//! SIGKILL of the real daemon at its fault points during install, update and removal, while
//! instances run: first at every point in turn, then at random ones, also twice in a row.
//!
//! The daemon under test is built with debug assertions, which makes `AOS_FAULT_AT` work. After
//! the deaths a daemon without faults must reach what was asked for; `scene.rs` says what that
//! means. `AOS_KILLS` (default 50) is the number of deaths of each random test, `AOS_KILL_SEED` what
//! its choices begin with; a failure names both.

use std::collections::BTreeSet;
use std::path::Path;

use super::scene::{STEPS, Scene, Unused, Wanted};
use crate::common::chance::{self, Random, chance};
use crate::common::need::require;
use crate::common::unit::Setup;

/// A fault point as the sources name it, and how often a life may pass it.
type Point = (&'static str, u64);

/// All points. Those that are passed once for each step of a job have as many as there are steps,
/// so that each of them is met.
const POINTS: [Point; 22] = [
    ("adopting", 2),
    ("attach step", 10),
    ("before commit", 10),
    ("before confirming", 3),
    ("before flushing", 4),
    ("before hiding", 3),
    ("before publishing", 2),
    ("charge", 12),
    ("committed", 10),
    ("detach step", 6),
    ("effect", 40),
    ("evicted", 2),
    ("fetch job", 6),
    ("fetch job done", 6),
    ("hidden", 3),
    ("layer described", 2),
    ("layer replaced", 2),
    ("orphan", 1),
    ("published", 2),
    ("start step", 16),
    ("stop step", 8),
    ("tree entry", 20),
];

/// Points that other tests are about: this one is passed while the node configuration is written
/// (`daemon::node_file`), and where the account of a package is made afterwards.
const ELSEWHERE: [&str; 1] = ["file step"];

/// Passes of one attach, detach, start and stop; every other point is one place in the sources.
const STEPS_OF_JOBS: [Point; 4] =
    [("attach step", 5), ("detach step", 3), ("start step", 8), ("stop step", 5)];

/// Deaths of one random test; there are four of them.
const KILLS: usize = 50;
/// Lives that reach no point are for nothing; they are rare.
const ROUNDS_PER_KILL: usize = 4;
/// One death in so many is followed by a life with a fault.
const TWICE: u64 = 4;

/// The names that the sources give to points.
fn names_in(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            names_in(&path, found);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            let calls = text.split("fault::point(\"").skip(1);
            found.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn every_point_of_the_sources_is_known() {
    let mut found = BTreeSet::new();
    names_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let known = POINTS.iter().map(|(name, _)| *name).chain(ELSEWHERE);
    let known: BTreeSet<_> = known.map(str::to_owned).collect();
    assert_eq!(found, known);
}

/// Dies at each of these points.
fn each(mut scene: Scene, points: impl Iterator<Item = (&'static str, u64)>) {
    let mut steps = STEPS.iter().cycle();
    scene.declare(STEPS[4]);
    scene.good_life(STEPS[4], "the first life");
    for (name, number) in points {
        let point = format!("{name}:{number}");
        let reached = (0..2 * STEPS.len()).any(|_| {
            let step = steps.next().copied().unwrap_or_default();
            scene.declare(step);
            if name == "orphan" {
                // It needs something that was left.
                scene.risky_life("charge:2", step);
            }
            let died = scene.risky_life(&point, step);
            scene.good_life(step, &format!("a death at {point}"));
            died
        });
        assert!(reached, "{point} is never passed");
    }
}

/// Every place of the sources; `part` of two.
fn each_point(part: usize) {
    require!(root, memory, crun, busybox);
    let places = POINTS.iter().filter(|(name, _)| *name != "evicted").flat_map(|(name, _)| {
        let steps = STEPS_OF_JOBS.iter().find(|(job, _)| job == name);
        (1..=steps.map_or(1, |(_, count)| *count)).map(move |number| (*name, number))
    });
    let places = places.enumerate().filter(|(nth, _)| nth % 2 == part).map(|(_, place)| place);
    each(Scene::new(Setup::crun(), Unused::Removed), places);
}

#[test]
fn killed_at_every_point_1() {
    each_point(0);
}

#[test]
fn killed_at_every_point_2() {
    each_point(1);
}

#[test]
fn killed_while_evicting() {
    require!(root, memory, crun, busybox);
    let points = [("evicted", 1), ("before hiding", 1), ("hidden", 1), ("tree entry", 2)];
    each(Scene::new(Setup::crun(), Unused::Evicted), points.into_iter());
}

fn random_point(random: &mut Random) -> String {
    let (name, most) = POINTS[usize::try_from(random.below(POINTS.len() as u64)).unwrap()];
    format!("{name}:{}", 1 + random.below(most))
}

fn at_random(setup: Setup, unused: Unused, nth: u64) {
    let (seed, kills) = (chance::seed(), chance::kills(KILLS));
    let mut random = chance(nth);
    let mut scene = Scene::new(setup, unused);
    let (mut deaths, mut rounds, mut places) = (0, 0, BTreeSet::new());
    while deaths < kills {
        let step: &[Wanted] = STEPS[rounds % STEPS.len()];
        rounds += 1;
        assert!(rounds < kills * ROUNDS_PER_KILL, "only {deaths} deaths in {rounds} rounds");
        scene.declare(step);
        let mut points = Vec::new();
        loop {
            let point = random_point(&mut random);
            let died = scene.risky_life(&point, step);
            points.push(point.clone());
            if died {
                deaths += 1;
                places.insert(point);
            }
            if !died || random.below(TWICE) > 0 {
                break;
            }
        }
        scene.good_life(step, &format!("AOS_KILL_SEED={seed}, round {rounds}, {points:?}"));
    }
    println!("seed={seed} deaths={deaths} places={} rounds={rounds}", places.len());
}

#[test]
fn killed_at_random_points_1() {
    require!(root, memory, crun, busybox);
    at_random(Setup::crun(), Unused::Removed, 1);
}

#[test]
fn killed_at_random_points_2() {
    require!(root, memory, crun, busybox);
    at_random(Setup::crun(), Unused::Removed, 2);
}

#[test]
fn killed_at_random_points_with_runc() {
    require!(root, memory, runc, busybox);
    at_random(Setup::new(), Unused::Removed, 3);
}

#[test]
fn killed_at_random_points_with_little_room() {
    require!(root, memory, crun, busybox);
    at_random(Setup::crun(), Unused::Evicted, 4);
}
