//! The stores that the Go service manager 7.2.3 and 8.0.1 really left behind, taken over by the
//! daemon with everything in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use rusqlite::Connection;
use serde_json::Value;

use crate::common::image::{self, Package};
use crate::common::need::require;
use crate::common::unit::{Setup, Unit};
use crate::common::{host, wait_until};

/// Where the stores were made.
const OLD_DIR: &str = "/var/aos/workdirs/sm";

/// What a release left.
struct Release {
    database: &'static [u8],
    content: &'static [u8],
    /// Versions of svc-a, svc-b and the one of svc-a that is only cached.
    versions: [&'static str; 3],
}

const GO_8: Release = Release {
    database: include_bytes!("../../data/store/go-8.0.1.db"),
    content: include_bytes!("../../data/store/go-8.0.1.content.tar.gz"),
    versions: ["2.0.0", "1.0.0", "1.0.0"],
};

const GO_7: Release = Release {
    database: include_bytes!("../../data/store/go-7.2.3.db"),
    content: include_bytes!("../../data/store/go-7.2.3.content.tar.gz"),
    versions: ["2", "1", "1"],
};

/// The node configuration under which the instances ran.
const NODE_CONFIG: &str = r#"{"nodeId":"node0","nodeType":"main","version":"1.0.0",
    "devices":[{"name":"random","sharedCount":2,"groups":["video"],"hostDevices":["/dev/random"]}],
    "resources":[{"name":"fxres","env":["FX_RES=1"],"mounts":[{"destination":"/run/fx",
    "type":"bind","source":"/run/fx","options":["bind","ro"]}]}]}"#;

struct Taken {
    unit: Unit,
    release: &'static Release,
    /// Instance id by `service/subject/index`, as the reference gave them.
    ids: BTreeMap<String, String>,
}

/// A unit in whose working directory the reference has worked.
fn unit_of(release: &'static Release) -> Taken {
    // A fixed time to live would end some day; the counters are those of today.
    let setup = Setup::new().set("serviceTtlDays", "3650").set("layerTtlDays", "3650");
    let unit = setup.set("network.trafficPeriod", "year").start();
    let work = unit.path("sm/work");
    let mut content = tar::Archive::new(GzDecoder::new(release.content));
    content.set_preserve_ownerships(true);
    content.set_preserve_permissions(true);
    content.unpack(&work).unwrap();
    let database = work.join("servicemanager.db");
    File::create(&database).and_then(|mut file| file.write_all(release.database)).unwrap();
    let ids = move_to(&database, &work);
    let config = work.join("aos_node.cfg");
    File::create(config).and_then(|mut file| file.write_all(NODE_CONFIG.as_bytes())).unwrap();
    for (ident, uid) in
        [("svc-a_subj0_0", 10000), ("svc-a_subj0_1", 10001), ("svc-b_subj1_0", 10100)]
    {
        let storage = unit.path("sm/storages").join(ident).join("storage");
        let state = unit.path("sm/states").join(ident).join("state.dat");
        fs::create_dir_all(&storage).unwrap();
        fs::create_dir_all(state.parent().unwrap()).unwrap();
        for file in [storage.join("kept"), state] {
            File::create(&file).and_then(|mut file| file.write_all(ident.as_bytes())).unwrap();
            chown(&file, Some(uid), None).unwrap();
        }
    }
    unit.space.inside(|| fs::create_dir("/run/fx")).unwrap();
    Taken { unit, release, ids }
}

/// The database names absolute paths; this is what moving the store means for it.
fn move_to(database: &Path, work: &Path) -> BTreeMap<String, String> {
    let db = Connection::open(database).unwrap();
    let new = work.to_str().unwrap();
    for (table, column) in [("services", "imagePath"), ("layers", "path")] {
        let sql = format!("UPDATE {table} SET {column} = replace({column}, ?1, ?2)");
        assert!(db.execute(&sql, [OLD_DIR, new]).unwrap() > 0);
    }
    db.execute("UPDATE trafficmonitor SET time = datetime('now') || '+00:00'", []).unwrap();
    // No VLAN on the machine of the recording, so this row was never there.
    let row = "INSERT INTO network VALUES ('prov0', '172.19.0.1', '172.19.0.0/16', 0, '')";
    db.execute(row, []).unwrap();
    let mut rows = db
        .prepare(
            "SELECT serviceID || '/' || subjectID || '/' || instance, instanceID FROM instances",
        )
        .unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

impl Taken {
    fn database(&self) -> PathBuf {
        self.unit.path("sm/work/servicemanager.db")
    }

    /// Values of one query, as texts.
    fn query(&self, sql: &str) -> Vec<String> {
        let db = Connection::open(self.database()).unwrap();
        let mut statement = db.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Waits until all three instances of the reference are reported as active.
    fn all_active(&mut self) {
        let unit = &mut self.unit;
        wait_until("all instances", || {
            let lines = unit.statuses();
            lines.len() == 3 && lines.iter().all(|line| line.contains(" active"))
        });
    }

    fn configs(&self) -> BTreeMap<String, Value> {
        let config = |(ident, id): (&String, &String)| {
            let file = self.unit.path("run/runtime").join(id).join("config.json");
            (ident.clone(), serde_json::from_slice(&fs::read(file).unwrap()).unwrap())
        };
        self.ids.iter().map(config).collect()
    }

    fn daemon_log(&mut self) -> Vec<String> {
        self.unit.daemon().output.all()
    }

    /// Announces what is installed, with packages that nobody could install.
    fn announce(&mut self) {
        let [a, b, _] = self.release.versions;
        let path = image::write(&self.unit.path("packages"), "none.tar", b"not a package");
        let path = path.display();
        self.unit.say(&format!("service svc-a package={path} version={a} provider=prov0 gid=5001"));
        self.unit.say(&format!("service svc-b package={path} version={b} provider=prov1 gid=5002"));
        self.unit.say("instance svc-a subject=subj0 count=2");
        self.unit.say("instance svc-b subject=subj1");
    }
}

fn variables(config: &Value) -> BTreeSet<&str> {
    config["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

fn check_rows(taken: &Taken) {
    let ids: BTreeSet<String> = taken.ids.values().cloned().collect();
    assert_eq!(taken.query("SELECT id FROM instances").into_iter().collect::<BTreeSet<_>>(), ids);
    let services = taken.query("SELECT id || ' ' || version FROM services ORDER BY 1");
    let [a, b, old] = taken.release.versions;
    assert_eq!(services, [format!("svc-a {old}"), format!("svc-a {a}"), format!("svc-b {b}")]);
    let unused = taken.query("SELECT version FROM services WHERE unused_since IS NOT NULL");
    assert_eq!(unused, [old]);
    for path in taken.query("SELECT path FROM services UNION ALL SELECT path FROM layers") {
        assert!(Path::new(&path).is_dir(), "{path}");
    }
    assert_eq!(taken.query("SELECT layer_id FROM layers"), ["layer0"]);
    assert_eq!(
        taken.query("SELECT id || ip || subnet FROM networks")[0],
        "prov0172.19.0.1172.19.0.0/16"
    );
    // Eight counters, none of which has fallen back.
    let traffic = taken.query("SELECT chain FROM traffic WHERE value >= 500");
    assert_eq!(traffic.len(), 6, "{traffic:?}");
    let old_tables = "SELECT name FROM sqlite_schema WHERE name IN
        ('config', 'network', 'trafficmonitor', 'schema_migrations')";
    assert!(taken.query(old_tables).is_empty());
}

/// What runs is what ran under the reference.
fn check_instances(taken: &mut Taken) {
    let mut ids: Vec<String> = taken.ids.values().cloned().collect();
    ids.sort();
    assert_eq!(taken.unit.bundles(), ids, "the ids of the reference");
    let configs = taken.configs();
    let (a0, a1, b) =
        (&configs["svc-a/subj0/0"], &configs["svc-a/subj0/1"], &configs["svc-b/subj1/0"]);
    for (config, uid) in [(a0, 10000), (a1, 10001), (b, 10100)] {
        assert_eq!(config["process"]["user"]["uid"], uid);
    }
    for config in [a0, a1] {
        let variables = variables(config);
        assert!(variables.contains("OVR=yes") && variables.contains("FOREVER=x"), "{variables:?}");
        assert!(!variables.contains("ONLY0=1"));
    }
    let of_b = variables(b);
    assert!(of_b.contains("ONLY0=1") && of_b.contains("FX_RES=1") && !of_b.contains("OVR=yes"));
    let addresses = [("svc-a/subj0/0", "172.19.0.2"), ("svc-b/subj1/0", "172.20.0.2")];
    for (ident, address) in addresses {
        let bundle = taken.unit.path("run/runtime").join(&taken.ids[ident]);
        let hosts = taken.unit.space.inside(|| fs::read_to_string(bundle.join("mounts/etc/hosts")));
        assert!(hosts.unwrap().contains(address), "{ident}");
    }
    for ident in ["svc-a_subj0_0", "svc-a_subj0_1", "svc-b_subj1_0"] {
        let kept = taken.unit.path("sm/storages").join(ident).join("storage/kept");
        assert_eq!(fs::read_to_string(kept).unwrap(), ident);
        let state = taken.unit.path("sm/states").join(ident).join("state.dat");
        assert_eq!(fs::metadata(&state).unwrap().len(), ident.len() as u64);
        assert!(fs::metadata(state).unwrap().uid() >= 10000);
    }
}

/// No package was asked for.
fn check_nothing_fetched(taken: &mut Taken) {
    let lines = taken.daemon_log();
    let fetched = lines.iter().find(|line| line.contains("msg=installing"));
    assert_eq!(fetched, None);
}

fn takes_over(release: &'static Release) {
    let mut taken = unit_of(release);
    taken.unit.start_daemon();
    taken.unit.say("wait registered");
    taken.all_active();
    check_rows(&taken);
    check_instances(&mut taken);
    check_nothing_fetched(&mut taken);

    // The CM names what is there: nothing moves over the network, and the images get a digest.
    taken.announce();
    taken.unit.say("run");
    taken.unit.say("wait active");
    check_nothing_fetched(&mut taken);
    wait_until("the first check of the images", || {
        let done = "SELECT id FROM services WHERE tree_digest <> '' AND length(package_digest) > 0";
        taken.query(done).len() == 2
    });
    let running: BTreeSet<String> = taken.unit.bundles().into_iter().collect();
    assert_eq!(running, taken.ids.values().cloned().collect(), "ids survive the request");

    // Another life, then without the file: svc-b is found again on disk.
    taken.unit.stop_daemon();
    for file in ["-wal", "-shm", ""] {
        let path = taken.unit.path(&format!("sm/work/servicemanager.db{file}"));
        if path.exists() {
            File::create(path).and_then(|mut f| f.write_all(b"damaged")).unwrap();
        }
    }
    taken.unit.start_daemon();
    taken.unit.say("wait registered");
    taken.unit.say("run");
    taken.unit.say("wait active svc-b");
    let found = format!("not fetched again\" package=\"service svc-b {}\"", release.versions[1]);
    taken.unit.expect_log(&found);

    taken.unit.stop_daemon();
    let (code, _, errors) = taken.unit.run_to_end(&["-reset"]);
    assert_eq!(code, Some(0), "{errors}");
    for gone in ["servicemanager.db", "services", "layers", "aos_node.cfg"] {
        assert!(!taken.unit.path("sm/work").join(gone).exists(), "{gone}");
    }
    assert_eq!(host::names(&taken.unit.path("sm/storages")).len(), 3, "not ours to remove");
    taken.unit.nothing_left();
}

#[test]
fn release_8() {
    require!(root, memory, runc, busybox);
    takes_over(&GO_8);
}

#[test]
fn release_7() {
    require!(root, memory, runc, busybox);
    takes_over(&GO_7);
}

#[test]
fn a_reset_wipes_what_was_not_even_taken_over() {
    require!(root, memory, runc);
    let taken = unit_of(&GO_8);
    let (code, _, errors) = taken.unit.run_to_end(&["-reset"]);
    assert_eq!(code, Some(0), "{errors}");
    for gone in ["servicemanager.db", "services", "layers", "aos_node.cfg"] {
        assert!(!taken.unit.path("sm/work").join(gone).exists(), "{gone}");
    }
    assert_eq!(host::names(&taken.unit.path("sm/storages")).len(), 3);
}

/// A package that nobody announces any more is not missed.
#[test]
fn damage_after_the_switch_is_found_and_fetched_again() {
    require!(root, memory, runc, busybox);
    let mut taken = unit_of(&GO_8);
    let root = taken.query("SELECT imagePath FROM services WHERE id = 'svc-b'");
    let root = Path::new(&root[0]).join("blobs/sha256");
    let tree = host::names(&root).into_iter().map(|name| root.join(name)).find(|p| p.is_dir());
    let payload = tree.unwrap().join("aos/aospayload");
    fs::OpenOptions::new().append(true).open(payload).unwrap().write_all(b"\n# more\n").unwrap();
    let good = image::write(&taken.unit.path("packages"), "b.tar", &Package::good().bytes());
    taken.unit.start_daemon();
    taken.unit.say("wait registered");
    let good = good.display();
    taken.unit.say(&format!("service svc-b package={good} version=1.0.0 provider=prov1 gid=5002"));
    taken.unit.say("instance svc-b subject=subj1");
    taken.unit.say("run");
    taken.unit.expect_log("cannot be used\" package=\"service svc-b 1.0.0\"");
    taken.unit.expect_log("msg=installed package=\"service svc-b 1.0.0\"");
    taken.unit.say("wait active svc-b");
    taken.unit.stop_daemon();
    taken.unit.nothing_left();
}
