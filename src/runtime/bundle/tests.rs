use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::model::node::{Device, Mount, Resource};
use crate::runtime::spec::tests as sample;
use crate::sys::thread::spawn;

/// Runs a test with mounts of its own; a host that does not allow this skips it.
fn in_private(name: &'static str, body: impl FnOnce(&Path) + Send + 'static) {
    let run = move || {
        let dir = TempDir::new().unwrap();
        if mount::isolate().is_err() {
            println!("SKIP {name}: needs CAP_SYS_ADMIN");
            return;
        }
        let path = dir.path().canonicalize().unwrap();
        body(&path);
        mount::unmount_below(&path).unwrap();
    };
    spawn("bundle-test", run).unwrap().join().unwrap();
}

fn write(path: &Path, text: &str) {
    files::make_dirs(path.parent().unwrap(), 0o755).unwrap();
    files::write_plain(path, text.as_bytes(), 0o644).unwrap();
}

/// A store on a small host of its own, below a run directory that is reached through a link.
pub(crate) fn store(dir: &Path) -> BundleStore {
    let host = dir.join("host");
    write(&host.join("usr/bin/tool"), "host");
    write(&host.join("etc/nsswitch.conf"), "host");
    write(&host.join("etc/group"), "video:x:44:\naudio:x:29:\n");
    write(&host.join("secret"), "host");
    files::make_dirs(&host.join("dev"), 0o755).unwrap();
    files::make_dirs(&dir.join("real"), 0o755).unwrap();
    if !dir.join("link").exists() {
        symlink("real", dir.join("link")).unwrap();
    }
    let settings = BundleSettings {
        spec: SpecSettings { run_dir: dir.join("link/aos"), ..sample::settings() },
        working_dir: dir.join("work"),
        storage_dir: dir.join("storages"),
        state_dir: dir.join("states"),
        host_binds: Vec::new(),
        allowed_devices: Vec::new(),
        host_root: host,
    };
    BundleStore::new(settings).unwrap()
}

/// A plan with a service, a layer, data, a device group and a resource.
fn plan(dir: &Path) -> StartPlan {
    let mut plan = sample::plan();
    write(&dir.join("service/rootfs/app/main"), "service");
    write(&dir.join("layer/opt/x"), "layer");
    write(&dir.join("shared/file"), "shared");
    Arc::make_mut(&mut plan.image).rootfs = dir.join("service/rootfs");
    Arc::make_mut(&mut plan.image).service.quotas.tmp_bytes = Some(4096);
    plan.layers = vec![dir.join("layer")];
    let instance = Arc::make_mut(&mut plan.instance);
    instance.state_path = Arc::from("a/state.dat");
    instance.storage_path = Arc::from("a/storage");
    let device = Device { name: "d".into(), groups: vec!["video".into()], ..Device::default() };
    plan.devices = vec![(device, "r".into())];
    plan.resources = vec![Resource {
        name: "res".into(),
        groups: vec!["audio".into(), "video".into()],
        mounts: vec![Mount {
            destination: "/var/shared".into(),
            source: dir.join("shared").to_str().unwrap().into(),
            ..Mount::default()
        }],
        ..Resource::default()
    }];
    plan
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn mounts_below(dir: &Path) -> usize {
    mount::mounts().unwrap().iter().filter(|entry| entry.target.starts_with(dir)).count()
}

#[test]
fn a_bundle_from_start_to_end() {
    in_private("a_bundle_from_start_to_end", |dir| {
        let store = store(dir);
        let plan = plan(dir);
        let bundle = store.prepare(&plan.id).unwrap();
        assert_eq!(bundle, dir.join("real/aos/runtime").join(sample::ID));
        assert_eq!(bundle, store.path(&plan.id));
        assert_eq!(mode(&bundle), 0o700);
        assert_eq!(mode(&bundle.join("mounts/etc")), 0o755);
        store.build(&plan).unwrap();

        let text = fs::read_to_string(bundle.join("config.json")).unwrap();
        assert_eq!(mode(&bundle.join("config.json")), 0o600);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rootfs = PathBuf::from(json["root"]["path"].as_str().unwrap());
        assert_eq!(rootfs, bundle.join("rootfs"));
        assert_eq!(json["process"]["user"]["additionalGids"], serde_json::json!([44, 29]));
        let places: Vec<&str> = json["mounts"].as_array().unwrap()[7..]
            .iter()
            .map(|mount| mount["destination"].as_str().unwrap())
            .collect();
        let expect = ["/etc/nsswitch.conf", "/state.dat", "/storage", "/tmp", "/var/shared"];
        assert_eq!(places, expect);
        for place in places.into_iter().chain(["/proc", "/dev/shm", "/usr/bin/tool", "/opt/x"]) {
            assert!(rootfs.join(&place[1..]).exists(), "{place}");
        }
        assert!(!rootfs.join("secret").exists());
        let state = fs::metadata(dir.join("states/a/state.dat")).unwrap();
        assert_eq!((state.uid(), state.gid()), (5003, 5001));
        assert!(dir.join("storages/a/storage").is_dir());

        store.remove(&plan.id).unwrap();
        store.remove(&plan.id).unwrap();
        assert!(!bundle.exists());
        assert_eq!(mounts_below(dir), 0);
        assert!(dir.join("states/a/state.dat").exists());
        assert_eq!(fs::read_to_string(dir.join("layer/opt/x")).unwrap(), "layer");
    });
}

#[test]
fn files_of_the_working_directory_go_first_and_absent_ones_are_left_out() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    let names = || {
        let sources = store.shared_etc().into_iter().map(|(name, source)| {
            let from = source.strip_prefix(dir.path()).unwrap().to_owned();
            format!("{name} {}", from.display())
        });
        sources.collect::<Vec<_>>()
    };
    assert_eq!(names(), ["nsswitch.conf host/etc/nsswitch.conf"]);
    write(&dir.path().join("work/etc/nsswitch.conf"), "own");
    write(&dir.path().join("work/etc/ssl/cert"), "own");
    assert_eq!(names(), ["nsswitch.conf work/etc/nsswitch.conf", "ssl work/etc/ssl"]);
}

#[test]
fn a_failed_build_leaves_what_remove_takes_away() {
    in_private("a_failed_build_leaves_what_remove_takes_away", |dir| {
        let store = store(dir);
        type Change = fn(&mut StartPlan);
        let cases: [(&str, Change); 7] = [
            ("neither Entrypoint nor Cmd", |plan| {
                Arc::make_mut(&mut plan.image).image.entrypoint.clear();
            }),
            ("state file path", |plan| {
                Arc::make_mut(&mut plan.instance).state_path = Arc::from("../x");
            }),
            ("storage directory path", |plan| {
                Arc::make_mut(&mut plan.instance).storage_path = Arc::from("/x");
            }),
            ("unknown group", |plan| plan.resources[0].groups.push("nobody".into())),
            ("cannot find /nonexistent", |plan| {
                plan.resources[0].mounts[0].source = "/nonexistent".into();
            }),
            ("must not be mounted", |plan| {
                plan.resources[0].mounts[0].destination = "/proc/x".into();
            }),
            ("cannot read /nonexistent", |plan| plan.layers.push("/nonexistent".into())),
        ];
        for (expect, change) in cases {
            let mut plan = plan(dir);
            change(&mut plan);
            let bundle = store.prepare(&plan.id).unwrap();
            let failure = store.build(&plan).unwrap_err();
            assert!(failure.message.contains(expect), "{expect}: {failure}");
            assert!(!failure.transient);
            store.remove(&plan.id).unwrap();
            assert!(!bundle.exists());
            assert_eq!(mounts_below(dir), 0);
        }
    });
}

#[test]
fn an_old_bundle_is_replaced() {
    in_private("an_old_bundle_is_replaced", |dir| {
        let store = store(dir);
        let plan = plan(dir);
        for _ in 0..2 {
            let bundle = store.prepare(&plan.id).unwrap();
            assert!(!bundle.join("leftover").exists());
            store.build(&plan).unwrap();
            write(&bundle.join("leftover"), "x");
        }
        store.remove(&plan.id).unwrap();
        assert_eq!(mounts_below(dir), 0);
    });
}

#[test]
fn removal_never_descends_into_a_mount() {
    in_private("removal_never_descends_into_a_mount", |dir| {
        let store = store(dir);
        let plan = plan(dir);
        let bundle = store.prepare(&plan.id).unwrap();
        store.build(&plan).unwrap();
        write(&dir.join("precious/deep/file"), "x");
        let hole = bundle.join("mounts/hole");
        fs::create_dir(&hole).unwrap();
        mount::bind(&dir.join("precious"), &hole).unwrap();
        mount::bind(&dir.join("precious"), &hole.join("deep")).unwrap();
        // In use: a plain unmount is refused.
        let inside = fs::File::open(bundle.join("rootfs/usr/bin/tool")).unwrap();
        store.remove(&plan.id).unwrap();
        drop(inside);
        assert!(!bundle.exists());
        assert_eq!(mounts_below(dir), 0);
        assert_eq!(fs::read_to_string(dir.join("precious/deep/file")).unwrap(), "x");
        assert!(dir.join("layer/opt/x").exists() && dir.join("host/usr/bin/tool").exists());
    });
}

#[test]
fn survey_finds_bundles_and_their_records() {
    in_private("survey_finds_bundles_and_their_records", |dir| {
        let old_life = store(dir);
        let running = plan(dir);
        old_life.prepare(&running.id).unwrap();
        old_life.build(&running).unwrap();
        old_life.record(&running.id, &running.record).unwrap();
        let bundle = old_life.path(&running.id);
        assert_eq!(mode(&bundle.join("record.json")), 0o600);
        assert_eq!(fs::read_dir(&bundle).unwrap().count(), 5, "no temporary file is left");
        for (id, text) in [("damaged", Some("{")), ("empty", None), ("unmounted", Some(""))] {
            let bundle = old_life.prepare(&InstanceId::new(id)).unwrap();
            match text {
                Some("") => {
                    old_life.record(&InstanceId::new(id), &running.record).unwrap();
                }
                Some(text) => write(&bundle.join("record.json"), text),
                None => {}
            }
        }
        let store = store(dir);
        let mut found = store.survey();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        let expect =
            [(sample::ID, true), ("damaged", false), ("empty", false), ("unmounted", false)];
        let seen: Vec<(&str, bool)> =
            found.iter().map(|(id, record)| (id.as_str(), record.is_some())).collect();
        assert_eq!(seen, expect);
        assert_eq!(found[0].1.as_ref(), Some(&running.record));

        // Another boot: nothing of it counts.
        let other = BundleStore { boot_id: "other".into(), ..store };
        assert!(other.survey().iter().all(|(_, record)| record.is_none()));
    });
}

#[test]
fn unused_views_of_the_host_are_removed_at_start() {
    in_private("unused_views_of_the_host_are_removed_at_start", |dir| {
        let store = store(dir);
        let plan = plan(dir);
        store.prepare(&plan.id).unwrap();
        store.build(&plan).unwrap();
        write(&dir.join("real/aos/whiteouts/0123/file"), "x");
        let views = || fs::read_dir(dir.join("real/aos/whiteouts")).unwrap().count();
        assert_eq!(views(), 2);
        store.survey();
        assert_eq!(views(), 1);
        assert!(store.path(&plan.id).join("rootfs/usr/bin/tool").exists());
        store.remove(&plan.id).unwrap();
        store.survey();
        assert_eq!(views(), 0);
    });
}

#[test]
fn ids_that_are_no_plain_names_are_refused() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    for bad in ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\0"] {
        let id = InstanceId::new(bad);
        store.prepare(&id).unwrap_err();
        store.remove(&id).unwrap_err();
        store.record(&id, &sample::plan().record).unwrap_err();
    }
    assert!(store.survey().is_empty());
}

#[test]
fn names_of_visible_entries() {
    let names = |binds: &[&str]| {
        let binds: Vec<String> = binds.iter().map(|&bind| bind.to_owned()).collect();
        let names = visible(&binds).into_iter().map(|name| name.into_string().unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&[]), "bin lib lib64 sbin usr");
    assert_eq!(names(&["opt", "/srv/", "usr/local", "", "/"]), "opt srv");
}
