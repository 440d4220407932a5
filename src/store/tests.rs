#![allow(clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::model::desired::*;
use crate::model::id::*;
use crate::model::job::Package;
use crate::model::node::{NodeInfo, Partition};
use crate::model::service::{InstalledLayer, InstalledService};
use crate::model::store::{NetworkLinks, Offline, StoredInstance, Wanted};
use crate::model::traffic::TrafficRow;

struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("work").join(FILE_NAME);
    Place { _dir: dir, path }
}

fn digest(digit: char) -> Digest {
    Digest::parse(&format!("sha256:{}", digit.to_string().repeat(64))).unwrap()
}

fn key(id: &str, version: &str) -> ServiceKey {
    ServiceKey { id: ServiceId::new(id), version: Arc::from(version) }
}

fn service(id: &str, version: &str) -> InstalledService {
    InstalledService {
        key: key(id, version),
        provider_id: NetworkId::new("provider"),
        gid: 5001,
        path: PathBuf::from("/var/aos/services/1"),
        manifest_digest: vec![0, 255, 1],
        tree_digest: "sha256:tree".to_owned(),
        package_digest: vec![7; 32],
        size_bytes: u64::MAX,
        installed_at_ms: 1_795_348_472_832,
        unused_since_ms: None,
        confirmed: true,
    }
}

fn layer(digit: char) -> InstalledLayer {
    InstalledLayer {
        digest: digest(digit),
        layer_id: "layer0".to_owned(),
        version: "1.0.0".to_owned(),
        os_version: String::new(),
        path: PathBuf::from(std::ffi::OsString::from("/var/aos/layers/ä")),
        package_digest: Vec::new(),
        tree_digest: format!("tree1:{digit}"),
        size_bytes: 160,
        installed_at_ms: -1,
        unused_since_ms: Some(0),
    }
}

fn instance(id: &str, index: u64) -> StoredInstance {
    StoredInstance {
        id: InstanceId::new(id),
        instance: DesiredInstance {
            ident: InstanceIdent {
                service_id: ServiceId::new("svc \" OR \"1\"=\"1'; DROP TABLE instances; --"),
                subject_id: SubjectId::new(""),
                instance: index,
            },
            uid: u32::MAX,
            priority: u64::MAX,
            storage_path: Arc::from("storage"),
            state_path: Arc::from(""),
            network: InstanceNetwork {
                subnet: "172.17.0.0/16".to_owned(),
                ip: "172.17.0.2".to_owned(),
                dns_servers: vec!["10.9.0.53".to_owned()],
                rules: vec![FirewallRule {
                    dst_ip: "172.18.0.2".to_owned(),
                    dst_port: "80".to_owned(),
                    proto: "tcp".to_owned(),
                    src_ip: "172.17.0.2".to_owned(),
                }],
            },
        },
    }
}

fn wanted_service() -> Wanted {
    Wanted {
        package: Package::Service(DesiredService {
            key: key("new", "2.0.0"),
            provider_id: NetworkId::new("p"),
            gid: 1,
            source: PackageSource {
                url: "file:///a".to_owned(),
                sha3_256: vec![1; 32],
                sha3_512: vec![2; 64],
                size_bytes: 1 << 40,
            },
        }),
        attempts_begun: 2,
        last_error: "no space left".to_owned(),
    }
}

fn wanted_layer() -> Wanted {
    Wanted {
        package: Package::Layer(DesiredLayer {
            digest: digest('c'),
            layer_id: "base".to_owned(),
            version: "3".to_owned(),
            source: PackageSource::default(),
        }),
        attempts_begun: 0,
        last_error: String::new(),
    }
}

fn network(id: &str, vlan_id: u64) -> NetworkParams {
    NetworkParams {
        id: NetworkId::new(id),
        subnet: "172.17.0.0/16".to_owned(),
        ip: "172.17.0.1".to_owned(),
        vlan_id,
    }
}

fn overrides() -> Vec<EnvOverride> {
    let variable = |name: &str, ttl_ms| EnvVariable {
        name: name.to_owned(),
        value: "a=\"b\"\n".to_owned(),
        ttl_ms,
    };
    vec![
        EnvOverride {
            filter: InstanceFilter::default(),
            variables: vec![variable("A", None), variable("B", Some(1_795_348_472_832))],
        },
        EnvOverride {
            filter: InstanceFilter {
                service_id: Some("svc".to_owned()),
                subject_id: Some("subject".to_owned()),
                instance: Some(u64::MAX),
            },
            variables: Vec::new(),
        },
    ]
}

fn counter(chain: &str, bytes: u64) -> TrafficRow {
    TrafficRow { chain: chain.into(), time_ms: 1_795_348_472_832, bytes }
}

/// A database with one of everything.
fn filled() -> (Vec<Change>, Snapshot) {
    let snapshot = Snapshot {
        node_info: Some(NodeInfo {
            node_id: "node0".to_owned(),
            node_type: "main".to_owned(),
            max_dmips: 10_000,
            total_ram_bytes: 1 << 33,
            partitions: vec![Partition {
                name: "storages".to_owned(),
                types: vec!["storages".to_owned()],
                path: PathBuf::from("/var/aos/storages"),
                total_bytes: 5,
            }],
            runners: vec!["crun".to_owned()],
        }),
        env_overrides: overrides(),
        offline: Some(Offline { accumulated_ms: 5, at_ms: 1_795_348_472_832, online: true }),
        services: vec![service("a", "1.0.0"), service("a", "2.0.0")],
        layers: vec![layer('a'), layer('b')],
        wanted: vec![wanted_layer(), wanted_service()],
        instances: vec![instance("id0", 0), instance("id1", u64::MAX)],
        leaving: vec![(InstanceId::new("id9"), instance("id9", u64::MAX).instance.ident)],
        refused: vec![(instance("id8", 7).instance.ident, "a \"b\"".to_owned())],
        networks: vec![network("n0", 0), network("n1", u64::MAX)],
        network_links: Vec::new(),
        traffic: vec![counter("AOS_SYSTEM_IN", 7), counter("AOS_SYSTEM_OUT", u64::MAX)],
        alert_position: Some("s=1;i=2".into()),
    };
    let changes = vec![
        Change::PutService(snapshot.services[0].clone()),
        Change::PutService(snapshot.services[1].clone()),
        Change::PutLayer(snapshot.layers[0].clone()),
        Change::PutLayer(snapshot.layers[1].clone()),
        Change::PutWanted(snapshot.wanted[0].clone()),
        Change::PutWanted(snapshot.wanted[1].clone()),
        Change::PutInstance(snapshot.instances[0].clone()),
        Change::PutInstance(snapshot.instances[1].clone()),
        Change::SetLeaving(snapshot.leaving.clone()),
        Change::SetRefused(snapshot.refused.clone()),
        Change::SetNetworks(snapshot.networks.clone()),
        Change::SetNodeInfo(snapshot.node_info.clone().unwrap()),
        Change::SetEnvOverrides(snapshot.env_overrides.clone()),
        Change::SetOffline(snapshot.offline.unwrap()),
        Change::SetAlertPosition("s=0".into()),
        Change::SetAlertPosition("s=1;i=2".into()),
        Change::PutTraffic(vec![counter("AOS_SYSTEM_IN", 1), counter("AOS_1_IN", 2)]),
        Change::PutTraffic(snapshot.traffic.clone()),
        Change::RemoveTraffic(vec!["AOS_1_IN".into(), "AOS_2_IN".into()]),
    ];
    (changes, snapshot)
}

fn reopened(path: &Path) -> Snapshot {
    Store::open(path).unwrap().1
}

#[test]
fn everything_survives_a_restart() {
    let place = place();
    let (mut store, empty) = Store::open(&place.path).unwrap();
    assert_eq!(empty, Snapshot::default());
    let (changes, expect) = filled();
    store.apply(&changes).unwrap();
    drop(store);
    assert_eq!(reopened(&place.path), expect);
}

#[test]
fn each_change_does_what_it_says() {
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    let (changes, mut expect) = filled();
    store.apply(&changes).unwrap();
    // Each step: changes, and what they do to the expected content.
    let mut step = |changes: &[Change], edit: fn(&mut Snapshot)| {
        store.apply(changes).unwrap();
        edit(&mut expect);
        assert_eq!(rows::read_all(&store.db).unwrap(), expect, "{changes:?}");
    };
    step(&[], |_| {});
    step(&[Change::RemoveService(key("a", "1.0.0"))], |s| {
        s.services.remove(0);
    });
    step(&[Change::RemoveService(key("a", "1.0.0"))], |_| {});
    let mut unused = service("a", "2.0.0");
    (unused.unused_since_ms, unused.confirmed) = (Some(9), false);
    step(&[Change::PutService(unused)], |s| {
        s.services[0].unused_since_ms = Some(9);
        s.services[0].confirmed = false;
    });
    step(&[Change::RemoveLayer(digest('a')), Change::RemoveLayer(digest('f'))], |s| {
        s.layers.remove(0);
    });
    let mut begun = wanted_layer();
    begun.attempts_begun = 1;
    step(&[Change::PutWanted(begun)], |s| s.wanted[0].attempts_begun = 1);
    step(&[Change::RemoveWanted(PackageKey::Layer(digest('c')))], |s| {
        s.wanted.remove(0);
    });
    step(&[Change::RemoveWanted(PackageKey::Service(key("new", "2.0.0")))], |s| s.wanted.clear());
    step(&[Change::PutInstance(instance("id2", 0))], |s| {
        // The same ident under a new id takes the place of the old row.
        s.instances = vec![instance("id1", u64::MAX), instance("id2", 0)];
    });
    step(&[Change::RemoveInstance(InstanceId::new("id1"))], |s| {
        s.instances.remove(0);
    });
    step(&[Change::SetNetworks(vec![network("n1", 7)])], |s| {
        s.networks = vec![network("n1", 7)];
    });
    step(&[Change::SetNetworks(Vec::new())], |s| s.networks.clear());
    step(&[Change::SetLeaving(Vec::new())], |s| s.leaving.clear());
    step(&[Change::SetRefused(Vec::new())], |s| s.refused.clear());
    step(&[Change::SetEnvOverrides(Vec::new())], |s| s.env_overrides.clear());
    step(&[Change::SetOffline(Offline::default())], |s| s.offline = Some(Offline::default()));
}

#[test]
fn networks_that_stay_keep_their_interfaces() {
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    store.apply(&[Change::SetNetworks(vec![network("n0", 1)])]).unwrap();
    store.db.execute("UPDATE networks SET bridge_interface = 'br-x'", []).unwrap();
    store.apply(&[Change::SetNetworks(vec![network("n0", 2), network("n1", 1)])]).unwrap();
    drop(store);
    let (network, vlan, bridge) = (NetworkId::new("n0"), String::new(), "br-x".to_owned());
    assert_eq!(reopened(&place.path).network_links, [NetworkLinks { network, vlan, bridge }]);
}

#[test]
fn a_path_that_is_no_text_survives() {
    use std::os::unix::ffi::OsStringExt;
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    let mut row = service("a", "1");
    row.path = std::ffi::OsString::from_vec(b"/srv/\xff".to_vec()).into();
    store.apply(&[Change::PutService(row.clone())]).unwrap();
    drop(store);
    assert_eq!(reopened(&place.path).services, [row]);
}

#[test]
fn a_failed_batch_changes_nothing() {
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    store
        .db
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE DELETE ON layers BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    store.apply(&[Change::PutLayer(layer('a'))]).unwrap();
    let batch = [Change::PutService(service("a", "1")), Change::RemoveLayer(digest('a'))];
    let error = store.apply(&batch).unwrap_err();
    assert_eq!(error.to_string(), "cannot remove layer in the database");
    assert!(!error.is_transient());
    drop(store);
    let snapshot = reopened(&place.path);
    assert!(snapshot.services.is_empty());
    assert_eq!(snapshot.layers.len(), 1);
}

/// The flags in `.cargo/config.toml` have reached this build.
#[test]
fn the_library_has_no_parts_that_nobody_uses() {
    let db = rusqlite::Connection::open_in_memory().unwrap();
    let mut statement = db.prepare("PRAGMA compile_options").unwrap();
    let options = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let options: Vec<String> = options.map(Result::unwrap).collect();
    let has = |name: &str| options.iter().any(|option| option.starts_with(name));
    for name in ["THREADSAFE=1", "OMIT_LOAD_EXTENSION", "OMIT_JSON", "ENABLE_API_ARMOR"] {
        assert!(has(name), "{name}: {options:?}");
    }
    for name in ["ENABLE_FTS", "ENABLE_RTREE", "ENABLE_STAT4", "ENABLE_DBSTAT", "SOUNDEX"] {
        assert!(!has(name), "{name}: {options:?}");
    }
}

#[test]
fn settings_are_in_force_and_files_are_private() {
    use std::os::unix::fs::MetadataExt;
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    store.apply(&filled().0).unwrap();
    for (pragma, expect) in [
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("cache_size", "-256"),
        ("mmap_size", "0"),
        ("temp_store", "2"),
        ("user_version", "101"),
        ("busy_timeout", "3000"),
    ] {
        let sql = format!("PRAGMA {pragma}");
        let value = store.db.query_row(&sql, [], |row| {
            row.get_ref(0).map(|value| match value {
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                other => other.as_str().unwrap().to_owned(),
            })
        });
        assert_eq!(value.unwrap(), expect, "{pragma}");
    }
    for file in std::iter::once(place.path.clone()).chain(side_files(&place.path)) {
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "{file:?}");
    }
}

/// What a power cut leaves: the files as they are, without a close.
#[test]
fn committed_changes_survive_a_power_cut() {
    let first = place();
    let (mut store, _) = Store::open(&first.path).unwrap();
    let (changes, expect) = filled();
    let mut cuts = Vec::new();
    for change in changes {
        store.apply(&[change]).unwrap();
        let cut = place();
        fs::create_dir(cut.path.parent().unwrap()).unwrap();
        for suffix in ["", "-wal"] {
            let file = with_suffix(&first.path, suffix);
            fs::copy(&file, with_suffix(&cut.path, suffix)).unwrap();
        }
        cuts.push((cut, rows::read_all(&store.db).unwrap()));
    }
    assert_eq!(cuts.last().unwrap().1, expect);
    for (cut, expect) in &cuts {
        assert_eq!(reopened(&cut.path), *expect);
    }
    // The last frames of the log are torn: what was committed before them is there.
    let (cut, _) = cuts.last().unwrap();
    let (mut store, _) = Store::open(&cut.path).unwrap();
    store.apply(&[Change::SetOffline(Offline::default())]).unwrap();
    let torn = place();
    fs::create_dir(torn.path.parent().unwrap()).unwrap();
    fs::copy(&cut.path, &torn.path).unwrap();
    let log = fs::read(with_suffix(&cut.path, "-wal")).unwrap();
    fs::write(with_suffix(&torn.path, "-wal"), &log[..log.len() - 100]).unwrap();
    let before = Snapshot { offline: expect.offline, ..expect.clone() };
    assert_eq!(reopened(&torn.path), before);
}

#[test]
fn a_damaged_file_is_set_aside() {
    let check = |what: &str, damage: &dyn Fn(&Path, Vec<u8>)| {
        let place = place();
        let (mut store, _) = Store::open(&place.path).unwrap();
        let (changes, _) = filled();
        store.apply(&changes).unwrap();
        let many: Vec<_> =
            (2..400).map(|i| Change::PutInstance(instance(&format!("id{i}"), i))).collect();
        store.apply(&many).unwrap();
        drop(store);
        damage(&place.path, fs::read(&place.path).unwrap());
        let damaged = fs::read(&place.path).unwrap();
        for round in 0..2 {
            let (mut store, snapshot) = Store::open(&place.path).unwrap();
            let expect = if round == 0 { Snapshot::default() } else { filled().1 };
            assert_eq!(snapshot, expect, "{what} {round}");
            store.apply(&changes).unwrap();
        }
        let aside = with_suffix(&place.path, BROKEN);
        assert!(fs::read(&aside).unwrap() == damaged, "{what}");
    };
    check("garbage", &|path, _| fs::write(path, "garbage ".repeat(1000)).unwrap());
    check("short garbage", &|path, _| fs::write(path, "x".repeat(600)).unwrap());
    check("cut", &|path, old| fs::write(path, &old[..old.len() / 2]).unwrap());
    check("cut within the first page", &|path, old| fs::write(path, &old[..1000]).unwrap());
    check("wrong header", &|path, mut old| {
        old[..6].copy_from_slice(b"SQLate");
        fs::write(path, old).unwrap();
    });
    check("overwritten schema", &|path, mut old| {
        old[100..4096].fill(0xa5);
        fs::write(path, old).unwrap();
    });
    check("overwritten pages", &|path, mut old| {
        let len = old.len();
        old[8192..len].fill(0);
        fs::write(path, old).unwrap();
    });
    check("flipped bits in a page", &|path, mut old| {
        let last = old.len() - 4096;
        old[last..last + 16].fill(0xff);
        fs::write(path, old).unwrap();
    });
    check("another program's database", &|path, _| {
        fs::remove_file(path).unwrap();
        let db = Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
    });
    check("a newer release's database", &|path, _| {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    });
    check("a version that never was", &|path, _| {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "user_version", 7).unwrap();
    });
    check("missing tables", &|path, _| {
        let db = Connection::open(path).unwrap();
        db.execute_batch("DROP TABLE instances").unwrap();
    });
}

/// A file of each earlier schema, with rows in all its tables, becomes one of the newest.
#[test]
fn files_of_earlier_schemas_are_brought_up_to_date() {
    // What each step of the schema has added, taken back; and what is missing then.
    type Lost = fn(&mut Snapshot);
    let backwards: [(i32, &str, Lost); 1] =
        [(100, "ALTER TABLE layers DROP COLUMN tree_digest", |snapshot| {
            snapshot.layers.iter_mut().for_each(|layer| layer.tree_digest.clear());
        })];
    assert_eq!(backwards.len(), usize::try_from(schema::VERSION - schema::FIRST_VERSION).unwrap());
    let place = place();
    let (changes, mut expect) = filled();
    let (mut store, _) = Store::open(&place.path).unwrap();
    store.apply(&changes).unwrap();
    drop(store);
    for (version, sql, lost) in backwards {
        let db = Connection::open(&place.path).unwrap();
        db.execute_batch(sql).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        drop(db);
        lost(&mut expect);
        for _ in 0..2 {
            assert_eq!(reopened(&place.path), expect, "from {version}");
        }
        assert!(!with_suffix(&place.path, BROKEN).exists());
        let db = Connection::open(&place.path).unwrap();
        assert_eq!(user_version(&db).unwrap(), schema::VERSION);
    }
}

#[test]
fn an_empty_file_becomes_a_database() {
    // A single byte is no page: to SQLite the file is as good as empty.
    for content in ["", "x"] {
        let place = place();
        fs::create_dir(place.path.parent().unwrap()).unwrap();
        fs::write(&place.path, content).unwrap();
        assert_eq!(reopened(&place.path), Snapshot::default());
        assert!(!with_suffix(&place.path, BROKEN).exists());
    }
}

#[test]
fn only_a_database_of_ours_is_opened_for_a_while() {
    let place = place();
    let open = || Store::open_own(&place.path);
    assert!(open().unwrap().is_none() && !place.path.exists());
    drop(Store::open(&place.path).unwrap());
    let (mut store, _) = open().unwrap().unwrap();
    store.apply(&[Change::PutTraffic(vec![counter("AOS_SYSTEM_IN", 1)])]).unwrap();
    drop(store);
    assert_eq!(open().unwrap().unwrap().1.traffic, [counter("AOS_SYSTEM_IN", 1)]);
    // As that of the Go releases is.
    let db = rusqlite::Connection::open(&place.path).unwrap();
    db.execute_batch("PRAGMA user_version = 0").unwrap();
    assert!(open().unwrap().is_none());
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(open(), Err(Error::Foreign { version: 99 })));
    assert!(place.path.exists());
}

#[test]
fn setting_aside_replaces_the_older_set() {
    let place = place();
    fs::create_dir(place.path.parent().unwrap()).unwrap();
    let write = |suffix: &str| fs::write(with_suffix(&place.path, suffix), suffix).unwrap();
    for suffix in ["", "-wal", ".broken", ".broken-wal", ".broken-shm"] {
        write(suffix);
    }
    set_aside(&place.path).unwrap();
    let mut left: Vec<_> = fs::read_dir(place.path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["servicemanager.db.broken", "servicemanager.db.broken-wal"]);
}

#[test]
fn unreadable_rows_are_left_out() {
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    let (changes, mut expect) = filled();
    store.apply(&changes).unwrap();
    store
        .db
        .execute_batch(
            "UPDATE instances SET network = '{' WHERE id = 'id0';
            UPDATE layers SET digest = 'md5:0' WHERE digest LIKE 'sha256:aaaa%';
            UPDATE services SET gid = -1 WHERE version = '1.0.0';
            UPDATE wanted SET kind = 'cake' WHERE kind = 'layer';
            UPDATE meta SET value = '[]' WHERE key = 'node_info';
            UPDATE meta SET value = replace(value, '2026-11-22T11:54:32.832Z', 'noon')
                WHERE key = 'env_overrides';",
        )
        .unwrap();
    drop(store);
    expect.instances.remove(0);
    expect.layers.remove(0);
    expect.services.remove(0);
    expect.wanted.remove(0);
    expect.node_info = None;
    expect.env_overrides[0].variables.remove(1);
    assert_eq!(reopened(&place.path), expect);
}

#[test]
fn reset_removes_all_files() {
    let place = place();
    let (store, _) = Store::open(&place.path).unwrap();
    std::mem::forget(store);
    assert!(with_suffix(&place.path, "-wal").exists());
    remove(&place.path).unwrap();
    remove(&place.path).unwrap();
    assert_eq!(fs::read_dir(place.path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn a_place_that_cannot_be_used_is_an_error() {
    let check = |path: &Path, expect: &str| {
        let error = Store::open(path).unwrap_err();
        assert!(chain(&error).starts_with(expect), "{}", chain(&error));
        assert!(!error.is_damage());
    };
    let place = place();
    fs::create_dir_all(&place.path).unwrap();
    check(&place.path, &format!("cannot open database {}: ", place.path.display()));
    check(Path::new("/proc/self/nowhere/db"), "cannot create directory /proc/self/nowhere: ");
    let file = place.path.join("file");
    fs::write(&file, "").unwrap();
    check(&file.join("db"), "cannot create directory ");
}

#[test]
fn somebody_elses_lock_is_a_transient_error() {
    let place = place();
    let (mut store, _) = Store::open(&place.path).unwrap();
    store.db.busy_timeout(Duration::from_millis(1)).unwrap();
    let other = Connection::open(&place.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let change = [Change::PutLayer(layer('a'))];
    let error = store.apply(&change).unwrap_err();
    assert!(matches!(error, Error::Begin { .. }) && error.is_transient(), "{error:?}");
    other.execute_batch("ROLLBACK").unwrap();
    store.apply(&change).unwrap();
}

/// A small file system of its own, private to the thread that called this.
fn small_tmpfs(dir: &Path) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("small"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
}

#[test]
fn a_full_disk_is_an_error_and_goes_away() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP a_full_disk_is_an_error_and_goes_away: needs root");
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(full_disk).join().unwrap();
    });
}

fn full_disk() {
    let dir = tempfile::tempdir().unwrap();
    small_tmpfs(dir.path());
    let path = dir.path().join(FILE_NAME);
    let (mut store, _) = Store::open(&path).unwrap();
    let first = [Change::PutLayer(layer('a'))];
    store.apply(&first).unwrap();
    let ballast = dir.path().join("ballast");
    fs::write(&ballast, vec![1; 1 << 20]).unwrap_err();
    let big = |i: u64| {
        let mut stored = instance(&format!("id{i}"), i);
        stored.instance.storage_path = Arc::from("s".repeat(2000));
        Change::PutInstance(stored)
    };
    let batch: Vec<_> = (0..50).map(big).collect();
    let error = store.apply(&batch).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let kept = rows::read_all(&store.db).unwrap();
    assert_eq!((kept.layers.len(), kept.instances.len()), (1, 0));
    fs::remove_file(&ballast).unwrap();
    store.apply(&batch[..20]).unwrap();
    drop(store);
    let kept = reopened(&path);
    assert_eq!((kept.layers.len(), kept.instances.len()), (1, 20));
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_full_disk_at_the_first_start_is_an_error() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP a_full_disk_at_the_first_start_is_an_error: needs root");
        return;
    }
    std::thread::scope(|scope| {
        let start = || {
            let dir = tempfile::tempdir().unwrap();
            small_tmpfs(dir.path());
            let path = dir.path().join(FILE_NAME);
            fs::write(dir.path().join("ballast"), vec![1; 1 << 20]).unwrap_err();
            let error = Store::open(&path).unwrap_err();
            assert!(error.is_transient() && !error.is_damage(), "{error:?}");
            assert!(!with_suffix(&path, BROKEN).exists());
            nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        };
        scope.spawn(start).join().unwrap();
    });
}
