//! Values and names that would say something else where they end up in a file, a line or a mount of
//! the host: values of packages with lines in them, and paths with the separators of mount options.
//!
//! Whatever is in them: the host, the daemon and the service beside them notice nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::common::host;
use crate::common::need::{self, require};
use crate::common::unit::{QUICK, Setup, Unit};

/// Begins a line that nobody but a package has written.
const FORGED: &str = "6.6.6.6 bank";

/// Files of the host that a value could get into, and settings that one could change.
const OF_THE_HOST: [&str; 14] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/shmmax",
    "/proc/sys/kernel/msgmax",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/swappiness",
];

/// Members of a service configuration; `None` = an instance runs with them, else a part of the
/// reason why it does not.
const SERVICE: &[(&str, Option<&str>)] = &[
    (r#""hostname":"a\n6.6.6.6 bank""#, Some("hostname \"a\\n6.6.6.6 bank\"")),
    (r#""hostname":"a\u00006.6.6.6 bank""#, Some("hostname")),
    (r#""hostname":"a 6.6.6.6""#, Some("hostname \"a 6.6.6.6\"")),
    (r#""sysctl":{"net.ipv4.ip_forward\n6.6.6.6 bank":"1"}"#, Some("sysctl \"net.ipv4")),
    (r#""sysctl":{"net/../kernel/panic":"66"}"#, Some("sysctl \"net/../kernel/panic\"")),
    (r#""sysctl":{"net.ipv4.../../kernel/panic":"66"}"#, Some("sysctl \"net.ipv4...")),
    (r#""sysctl":{"kernel.core_pattern":"|/6.6.6.6"}"#, Some("sysctl \"kernel.core_pattern\"")),
    (r#""sysctl":{"kernel.hostname":"bank"}"#, Some("sysctl \"kernel.hostname\"")),
    (r#""sysctl":{"vm.swappiness":"6"}"#, Some("sysctl \"vm.swappiness\"")),
    (r#""sysctl":{"kernel.shmmax":"66\n6.6.6.6 bank"}"#, Some("control characters")),
    // What belongs to the namespaces of the container stays there.
    (r#""sysctl":{"kernel.shmmax":"66666","net.ipv4.ip_unprivileged_port_start":"66"}"#, None),
    (
        r#""devices":[{"name":"x\n6.6.6.6 bank","permissions":"rw"}]"#,
        Some("is not available: x\\n"),
    ),
    (r#""resources":["x\n6.6.6.6 bank"]"#, Some("resource is not available: x\\n6.6.6.6 bank")),
    (r#""alertRules":{"partitions":[{"name":"x\n6.6.6.6 bank","minThreshold":1}]}"#, None),
    (r#""runners":["crun\n6.6.6.6 bank"]"#, None),
    (r#""author":"a\n6.6.6.6 bank""#, None),
];

const COMMAND: &str = r#""Entrypoint":["/busybox","sleep","10000"]"#;

/// Whole image configurations; `$` = a command that works.
const IMAGE: &[(&str, Option<&str>)] = &[
    (r#"{"os":"linux\n6.6.6.6 bank","config":{$}}"#, Some("config linux\\n6.6.6.6 bank")),
    (r#"{"os":"linux","config":{$,"WorkingDir":"/x\n6.6.6.6 bank"}}"#, Some("")),
    (r#"{"os":"linux","config":{"Entrypoint":["/x\n6.6.6.6 bank"]}}"#, Some("")),
    (r#"{"os":"linux","config":{$,"ExposedPorts":{"80/tcp\n6.6.6.6 bank":{}}}}"#, Some("protocol")),
    (r#"{"os":"linux","config":{$,"ExposedPorts":{"80\n6.6.6.6 bank":{}}}}"#, Some("port")),
    (r#"{"os":"linux","config":{$,"Env":["A=1\n6.6.6.6 bank","B\n6.6.6.6 bank=2"]}}"#, None),
    (r#"{"os":"linux","config":{$,"Env":["6.6.6.6 bank","\n6.6.6.6 bank"]}}"#, None),
    (r#"{"os":"linux","config":{$,"StopSignal":"SIGTERM\n6.6.6.6 bank"}}"#, None),
];

/// The host, and the other service as the host keeps it.
fn untouchables(unit: &Unit, other: &str) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let bundle = unit.path("run/runtime").join(unit.id_of(other));
    let of_the_other = ["config.json", "mounts/etc/hosts", "mounts/etc/resolv.conf"];
    let paths = OF_THE_HOST.iter().map(PathBuf::from);
    let paths: Vec<_> = paths.chain(of_the_other.map(|name| bundle.join(name))).collect();
    unit.space
        .inside(|| paths.into_iter().map(|path| (path.clone(), fs::read(path).ok())).collect())
}

fn has_forged_line(content: &[u8]) -> bool {
    content.split(|byte| *byte == b'\n').any(|line| line.starts_with(FORGED.as_bytes()))
}

/// Files below the unit's directories that have a line of a package.
fn forged_files(unit: &Unit) -> Vec<String> {
    let forged = |below: &str| {
        let dir = unit.path(below);
        let is_forged = |name: &String| {
            let path = dir.join(name);
            let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
            is_file && fs::read(&path).is_ok_and(|content| has_forged_line(&content))
        };
        host::tree(&dir).into_iter().filter(is_forged).collect::<Vec<_>>()
    };
    ["run", "sm"].into_iter().flat_map(forged).collect()
}

#[test]
fn lines_in_values_of_packages() {
    require!(root, memory, runc, busybox);
    let mut unit = Setup::new().registered();
    let busybox = need::program("busybox").unwrap();
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");
    let (good, daemon) = (unit.pid_of("good/subject/0"), unit.daemon().pid());
    let before = untouchables(&unit, "good/subject/0");

    let mut cases = Vec::new();
    for (members, expect) in SERVICE {
        cases.push((*members, *expect));
        unit.say(&format!(
            "service case{:02} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 \
             config='{{\"runParameters\":{{\"startInterval\":\"60s\",\"restartInterval\":\"20ms\"}},{members}}}'",
            cases.len(),
        ));
    }
    for (image, expect) in IMAGE {
        cases.push((*image, *expect));
        let image = image.replace('$', COMMAND);
        let number = cases.len();
        unit.say(&format!(
            "service case{number:02} {busybox} image-config='{image}' config='{QUICK}'"
        ));
    }
    for number in 1..=cases.len() {
        unit.say(&format!("instance case{number:02}"));
    }
    unit.look();
    unit.say("run");
    unit.say("wait full 80s");
    let lines = unit.statuses();
    for (number, (value, expect)) in (1..).zip(&cases) {
        let name = format!("case{number:02}/");
        let line = lines.iter().find(|line| line.starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("{value}: no status"));
        match expect {
            None => assert!(line.ends_with(" active"), "{value}: {line}"),
            Some(reason) => {
                let told = line.split(" failed (").nth(1);
                assert!(told.is_some_and(|told| told.contains(reason)), "{value}: {line}");
            }
        }
    }
    // Nothing of it is a line of its own: not for the CM, not in the log, not in a file.
    let told = [unit.seen(), unit.daemon().output.all()].concat();
    let forged: Vec<_> = told.iter().filter(|line| line.starts_with(FORGED)).collect();
    assert!(forged.is_empty(), "{forged:?}");
    assert_eq!(forged_files(&unit), [""; 0]);
    assert_eq!(untouchables(&unit, "good/subject/0"), before);
    assert_eq!((unit.pid_of("good/subject/0"), unit.daemon().pid()), (good, daemon));
    assert!(!unit.daemon_is_dead());
    unit.stop_daemon();
    unit.nothing_left();
}

/// Ends the name of a directory that all paths have in them: what a mount would take for options
/// and for further layers.
const TAIL: &str = ",suid,dev,upperdir=up:lower\\,workdir=w";

/// As the CM may name a service.
const NAME: &str = "x,suid:y";

fn separators(setup: Setup) {
    let mut unit = setup.with_tail(TAIL).registered();
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait active good");
    let good = unit.pid_of("good/subject/0");
    let before = untouchables(&unit, "good/subject/0");

    for layer in ["one", "two"] {
        let dir = unit.path("roots").join(layer);
        fs::create_dir_all(&dir).unwrap();
        let mut file = fs::File::create(dir.join(layer)).unwrap();
        std::io::Write::write_all(&mut file, format!("layer {layer}\n").as_bytes()).unwrap();
        unit.say(&format!("layer {layer} '{}'", dir.display()));
    }
    let script = "for n in one two; do /busybox cat /$n; done >/storage/seen; \
        echo kept >/state.dat; echo x >/new || echo refused >/storage/refused; \
        exec /busybox sleep 10000";
    unit.service(NAME, script, "layer=one layer=two");
    unit.say(&format!("instance {NAME}"));
    let digest = format!("sha256:{},upperdir=/etc:/etc", "a5".repeat(20));
    unit.service("bad", "exec /busybox sleep 10000", &format!("layer={digest}"));
    unit.say("instance bad");
    unit.look();
    unit.say("run");
    unit.say("wait failed bad");
    let line = unit.expect("bad/subject/0 version 1.0.0 failed error: ");
    assert!(line.contains("malformed digest"), "{line}");
    unit.say(&format!("wait active {NAME}"));
    let ident = format!("{NAME}/subject/0");
    assert_eq!(unit.expect_stored(&ident, "seen", "two"), "layer one\nlayer two\n");
    unit.expect_stored(&ident, "refused", "refused");
    let state = unit.path("sm/states").join(format!("{NAME}_subject_0_state.dat"));
    assert_eq!(fs::read_to_string(state).unwrap(), "kept\n");
    check_mounts(&unit, &ident);
    check_places(&unit);

    // The next life finds its way through the same paths.
    let pid = unit.pid_of(&ident);
    unit.say("stop bad");
    unit.kill_daemon();
    unit.start_daemon();
    unit.say("wait registered");
    unit.say("run");
    unit.say("wait active");
    assert_eq!((unit.pid_of(&ident), unit.pid_of("good/subject/0")), (pid, good));
    assert_eq!(untouchables(&unit, "good/subject/0"), before);
    unit.stop_daemon();
    unit.nothing_left();
}

/// The root file system has the options that we gave it, and none of the path. (crun takes the
/// first ones away again for the container, where nothing is executed with more rights anyway.)
fn check_mounts(unit: &Unit, ident: &str) {
    let process = PathBuf::from(format!("/proc/{}", unit.pid_of(ident)));
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let outside = unit.space.inside(|| read("/proc/thread-self/mountinfo"));
    let inside = read(process.join("mountinfo").to_str().unwrap());
    let is_overlay = |line: &&str| line.contains(" - overlay ");
    let of_it = |line: &&str| line.contains(&unit.id_of(ident));
    let made: Vec<_> = outside.lines().filter(is_overlay).filter(of_it).collect();
    assert!(!made.is_empty(), "{outside}");
    for line in &made {
        let options: Vec<_> = line.split(' ').nth(5).unwrap().split(',').collect();
        assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{line}");
    }
    let seen: Vec<_> = inside.lines().filter(is_overlay).collect();
    assert!(!seen.is_empty(), "{inside}");
    for line in made.iter().chain(&seen) {
        let options = line.split_once(" - overlay ").unwrap().1;
        assert!(!options.contains("upperdir=") && !options.contains("workdir="), "{line}");
        assert!(options.contains(" ro"), "{line}");
    }
    let status = read(process.join("status").to_str().unwrap());
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

/// Paths of packages are made of our own names alone.
fn check_places(unit: &Unit) {
    let db = Connection::open(unit.path("sm/work/servicemanager.db")).unwrap();
    let texts = |sql: &str| -> Vec<PathBuf> {
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|path| path.unwrap().into()).collect()
    };
    let work = unit.path("sm/work");
    let below = |path: &Path, dir: &str| {
        path.strip_prefix(work.join(dir)).unwrap().to_str().unwrap().to_owned()
    };
    let services = texts("SELECT path FROM services");
    let layers = texts("SELECT path FROM layers");
    assert_eq!((services.len(), layers.len()), (2, 2));
    for path in services {
        let name = below(&path, "services");
        assert!(name.bytes().all(|byte| byte.is_ascii_digit()), "{name}");
    }
    for path in layers {
        let name = below(&path, "layers/sha256");
        assert!(name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
    }
}

#[test]
fn separators_in_paths_with_runc() {
    require!(root, memory, runc, busybox);
    separators(Setup::new());
}

#[test]
fn separators_in_paths_with_crun() {
    require!(root, memory, crun, busybox);
    separators(Setup::crun());
}
