//! The scene of the kill tests: services that share layers, each with one running instance, and
//! what must be true of disk, database and host whatever happened to the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::common::need;
use crate::common::unit::{Setup, Unit};
use crate::common::{host, wait_until};

/// A service and its version.
pub(super) type Wanted = (&'static str, &'static str);

/// Everything that is ever asked for, with its layers.
const SERVICES: [(&str, &str, &[&str]); 6] = [
    ("a", "1.0.0", &["base1"]),
    ("a", "2.0.0", &["base2"]),
    ("b", "1.0.0", &["base1", "extra"]),
    ("b", "2.0.0", &["base1"]),
    ("c", "1.0.0", &["base2", "extra"]),
    ("c", "2.0.0", &["base2"]),
];
const LAYERS: [&str; 3] = ["base1", "base2", "extra"];

/// What the CM asks for in turn: installs, updates, removals, and what stays as it is.
pub(super) const STEPS: [&[Wanted]; 5] = [
    &[("a", "1.0.0"), ("b", "1.0.0")],
    &[("a", "2.0.0"), ("b", "1.0.0"), ("c", "1.0.0")],
    &[("c", "1.0.0")],
    &[("a", "1.0.0"), ("c", "2.0.0")],
    &[("b", "2.0.0"), ("c", "2.0.0")],
];

/// Content of each service, so that a few of them fill a small file system.
const PADDING_BYTES: usize = 5 << 20;
/// Room for about four of them, the layers and the reserve.
const SMALL_BYTES: u64 = 44 << 20;

/// What is done with packages that nobody wants any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unused {
    /// They go at once.
    Removed,
    /// They stay until their room is needed, and there is little of it.
    Evicted,
}

/// An instance as it was last seen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Running {
    version: &'static str,
    id: String,
    pid: u32,
}

/// What the database says.
#[derive(Debug, Default)]
struct Rows {
    services: BTreeMap<(String, String), PathBuf>,
    layers: BTreeMap<String, PathBuf>,
    instances: BTreeSet<String>,
    /// Packages that are still to be installed.
    wanted: i64,
}

#[derive(Debug)]
pub(super) struct Scene {
    pub(super) unit: Unit,
    unused: Unused,
    /// By service, after the last life without a fault.
    running: BTreeMap<&'static str, Running>,
    /// Blocks on disk of each package when it was first there.
    sizes: BTreeMap<String, u64>,
}

impl Scene {
    pub(super) fn new(setup: Setup, unused: Unused) -> Self {
        let setup = match unused {
            Unused::Removed => setup.set("serviceTtlDays", "0").set("layerTtlDays", "0"),
            Unused::Evicted => setup.small("sm/work", SMALL_BYTES),
        };
        let unit = setup.start();
        let mut scene = Self { unit, unused, running: BTreeMap::new(), sizes: BTreeMap::new() };
        scene.build_packages();
        scene
    }

    fn build_packages(&mut self) {
        let roots = self.unit.path("roots");
        let busybox = need::program("busybox").unwrap();
        for layer in LAYERS {
            let dir = roots.join(layer);
            fs::create_dir_all(&dir).unwrap();
            write(&dir.join(layer), layer.as_bytes());
            if layer.starts_with("base") {
                fs::copy(&busybox, dir.join("busybox")).unwrap();
            }
            self.offer_layer(layer);
        }
        for (service, version, layers) in SERVICES {
            let dir = roots.join(format!("{service}-{version}"));
            fs::create_dir_all(dir.join("deep/er")).unwrap();
            write(&dir.join("name"), format!("{service} {version}").as_bytes());
            write(&dir.join("deep/er/file"), b"content");
            std::os::unix::fs::symlink("name", dir.join("link")).unwrap();
            if self.unused == Unused::Evicted {
                write(&dir.join("padding"), &vec![0; PADDING_BYTES]);
            }
            let layers: String = layers.iter().map(|layer| format!(" layer={layer}")).collect();
            self.unit.say(&format!(
                "service {service} {} version={version} provider=p entrypoint=/busybox cmd=sleep \
                 cmd=100000{layers}",
                dir.display()
            ));
        }
    }

    fn offer_layer(&mut self, layer: &str) {
        let dir = self.unit.path("roots").join(layer);
        self.unit.say(&format!("layer {layer} {} compression=plain", dir.display()));
    }

    /// Makes the unit want this; it is asked for later.
    pub(super) fn declare(&mut self, step: &[Wanted]) {
        self.unit.say("clear");
        self.unit.say("network p 10.213.0.0/24 10.213.0.1");
        for layer in layers_of(step) {
            self.offer_layer(layer);
        }
        for (service, version) in step {
            let package =
                self.unit.path("packages").join(format!("service-{service}-{version}.tar"));
            let package = package.display();
            self.unit
                .say(&format!("service {service} package={package} version={version} provider=p"));
            // As a real CM: the same address and user every time.
            let number = 2 + u32::from(service.as_bytes()[0] - b'a');
            self.unit
                .say(&format!("instance {service} ip=10.213.0.{number} uid={}", 5000 + number));
        }
    }

    /// One life that ends when the fault point is passed, or else when everything is done; true if
    /// it was the point.
    pub(super) fn risky_life(&mut self, point: &str, step: &[Wanted]) -> bool {
        self.unit.look();
        self.unit.start_daemon_with(&[("AOS_FAULT_AT", point)]);
        let mut asked = false;
        wait_until("a death or the end of the work", || {
            if self.unit.daemon_is_dead() {
                return true;
            }
            if !asked {
                let registered = self.unit.seen().iter().any(|line| line.contains("full status"));
                asked = registered && self.unit.try_say("run");
                return false;
            }
            self.complaint(step).is_none() && self.unit.try_say("wait active 200ms")
        });
        let dead = self.unit.daemon_is_dead();
        if dead {
            self.unit.bury_daemon();
        } else {
            self.unit.kill_daemon();
        }
        dead
    }

    /// A life without faults brings everything in order; `after` says what came before it.
    pub(super) fn good_life(&mut self, step: &[Wanted], after: &str) {
        self.unit.start_daemon();
        self.unit.say("wait registered");
        self.unit.say("run");
        assert!(self.unit.try_say("wait active 60s"), "{after}: {step:?} does not run");
        let mut last = None;
        let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("order", || {
                last = self.complaint(step);
                last.is_none()
            });
        }));
        assert!(settled.is_ok(), "{after}: {step:?} is not reached: {last:?}");
        self.instances_are_right(step, after);
        self.unit.kill_daemon();
    }

    /// What is not as it should be: what is asked for is there once, and nothing else.
    fn complaint(&mut self, step: &[Wanted]) -> Option<String> {
        let Some(rows) = self.rows() else { return Some("the database cannot be read".to_owned()) };
        self.wrong_rows(&rows, step)
            .or_else(|| self.wrong_files(&rows))
            .or_else(|| self.wrong_sizes(&rows))
            .or_else(|| self.wrong_host(&rows))
    }

    fn wrong_rows(&self, rows: &Rows, step: &[Wanted]) -> Option<String> {
        let expect: BTreeSet<_> =
            step.iter().map(|(id, version)| ((*id).to_owned(), (*version).to_owned())).collect();
        let services: BTreeSet<_> = rows.services.keys().cloned().collect();
        let layers: BTreeSet<_> = rows.layers.keys().map(String::as_str).collect();
        let expect_layers = layers_of(step);
        let only_these = services == expect && layers == expect_layers;
        let these = services.is_superset(&expect) && layers.is_superset(&expect_layers);
        let right = (only_these || self.unused == Unused::Evicted && these)
            && rows.instances.len() == step.len()
            && rows.wanted == 0;
        (!right).then(|| format!("rows: {rows:?}"))
    }

    /// Each row has its directory, each directory its row.
    fn wrong_files(&self, rows: &Rows) -> Option<String> {
        let work = self.unit.path("sm/work");
        let (services, layers) = (work.join("services"), work.join("layers"));
        let (found_services, above_layers, found_layers, downloads) =
            self.unit.space.inside(|| {
                (
                    host::names(&services),
                    host::names(&layers),
                    host::names(&layers.join("sha256")),
                    host::names(&work.join("download")),
                )
            });
        let names = |paths: Vec<&PathBuf>| -> Vec<String> {
            let name = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            paths.iter().map(name).collect()
        };
        let mut expect_services = names(rows.services.values().collect());
        expect_services.sort();
        let layer_names = names(rows.layers.values().collect());
        let mut expect_layers: Vec<_> = layer_names
            .iter()
            .flat_map(|name| [name.clone(), format!(".package-{name}")])
            .collect();
        expect_layers.sort();
        let staging = above_layers.iter().any(|name| name != "sha256");
        let right = found_services == expect_services
            && found_layers == expect_layers
            && !staging
            && downloads.is_empty();
        (!right).then(|| {
            format!(
                "files: {found_services:?} {above_layers:?} {found_layers:?} {downloads:?} {rows:?}"
            )
        })
    }

    /// No package takes more or less room than when it was first installed.
    fn wrong_sizes(&mut self, rows: &Rows) -> Option<String> {
        let services =
            rows.services.iter().map(|((id, version), path)| (format!("{id} {version}"), path));
        let layers = rows.layers.iter().map(|(name, path)| (name.clone(), path));
        for (name, path) in services.chain(layers) {
            let blocks = self.unit.space.inside(|| blocks(path));
            let first = *self.sizes.entry(name.clone()).or_insert(blocks);
            if blocks != first {
                return Some(format!("{name} takes {blocks} blocks, at first it took {first}"));
            }
        }
        None
    }

    /// Every trace of an instance on the host belongs to one that is wanted.
    fn wrong_host(&self, rows: &Rows) -> Option<String> {
        let ids = &rows.instances;
        let run = self.unit.path("run");
        let places = ["runtime", "oci", "log"].map(|name| (name, host::names(&run.join(name))));
        for (place, found) in places {
            if found.iter().cloned().collect::<BTreeSet<_>>() != *ids {
                return Some(format!("{place}: {found:?}, wanted are {ids:?}"));
            }
        }
        let groups = self.unit.groups();
        let alive: BTreeSet<_> =
            groups.iter().filter(|(_, pids)| !pids.is_empty()).map(|(id, _)| id.clone()).collect();
        if groups.len() != ids.len() || alive != *ids {
            return Some(format!("control groups: {groups:?}, wanted are {ids:?}"));
        }
        let namespaces = self.unit.space.network_namespaces();
        if namespaces.len() != ids.len() {
            return Some(format!("network namespaces: {namespaces:?}, wanted are {ids:?}"));
        }
        let links = self.unit.space.links();
        if links.iter().filter(|name| name.starts_with("ve")).count() != ids.len() {
            return Some(format!("links: {links:?}, wanted are {ids:?}"));
        }
        if let Some(counted) = self.unit.space.counted_instances().filter(|found| found != ids) {
            return Some(format!("rules are for {counted:?}, wanted are {ids:?}"));
        }
        let bundles = run.join("runtime");
        let stray = |point: &String| {
            let below = Path::new(point).strip_prefix(&bundles).ok();
            below.is_some_and(|below| !ids.iter().any(|id| below.starts_with(id)))
        };
        let mounts = self.unit.space.mount_points();
        mounts.iter().find(|point| stray(point)).map(|point| format!("mounted: {point}"))
    }

    /// The right content runs, and what did not change has run all the time.
    fn instances_are_right(&mut self, step: &[Wanted], after: &str) {
        let mut now = BTreeMap::new();
        for &(service, version) in step {
            let ident = format!("{service}/subject/0");
            let (id, pid) = (self.unit.id_of(&ident), self.unit.pid_of(&ident));
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
            assert_eq!(read("name"), format!("{service} {version}"), "{after}");
            for layer in layers_of(&[(service, version)]) {
                assert_eq!(read(layer), layer, "{after}: {service} {version}");
            }
            let running = Running { version, id, pid };
            if let Some(before) = self.running.get(service) {
                assert_eq!(before.id, running.id, "{after}: {service} has a new instance id");
                if before.version == version {
                    assert_eq!(before.pid, running.pid, "{after}: {service} was restarted");
                }
            }
            now.insert(service, running);
        }
        self.running = now;
    }

    fn rows(&self) -> Option<Rows> {
        let path = self.unit.path("sm/work/servicemanager.db");
        self.unit.space.inside(|| read_rows(&path).ok())
    }
}

fn read_rows(path: &Path) -> rusqlite::Result<Rows> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let text = |row: &rusqlite::Row<'_>, at| row.get::<_, String>(at);
    let services = db
        .prepare("SELECT id, version, path FROM services")?
        .query_map([], |row| Ok(((text(row, 0)?, text(row, 1)?), text(row, 2)?.into())))?
        .collect::<Result<_, _>>()?;
    let layers = db
        .prepare("SELECT layer_id, path FROM layers")?
        .query_map([], |row| Ok((text(row, 0)?, text(row, 1)?.into())))?
        .collect::<Result<_, _>>()?;
    let instances = db
        .prepare("SELECT id FROM instances")?
        .query_map([], |row| text(row, 0))?
        .collect::<Result<_, _>>()?;
    let wanted = db.query_row("SELECT count(*) FROM wanted", [], |row| row.get(0))?;
    Ok(Rows { services, layers, instances, wanted })
}

/// Names of the layers that these services need.
fn layers_of(step: &[Wanted]) -> BTreeSet<&'static str> {
    let needed = SERVICES.iter().filter(|(id, version, _)| step.contains(&(*id, *version)));
    needed.flat_map(|(_, _, layers)| layers.iter().copied()).collect()
}

/// Blocks of a tree on disk.
fn blocks(dir: &Path) -> u64 {
    let names = host::tree(dir);
    let paths = names.iter().map(|name| dir.join(name)).chain([dir.to_owned()]);
    paths.filter_map(|path| fs::symlink_metadata(path).ok()).map(|meta| meta.blocks()).sum()
}

fn write(path: &Path, content: &[u8]) {
    use std::io::Write;
    fs::File::create(path).and_then(|mut file| file.write_all(content)).unwrap();
}
