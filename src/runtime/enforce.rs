//! Limits of a container: in force as its configuration says, or put in force again.
//!
//! Runs on the exec threads after a start and at an adoption. The runtime writes the limits; but
//! whoever manages the groups above may take a controller away and give it back, and what was set
//! below is lost then (systemd does that at a reload). In: the layout of the host, the group of an
//! instance, its bundle. Out: what was put right, in the log; what cannot be, in the log as an
//! error. Not here: values (`spec`), devices (rules that the kernel does not show).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::id::InstanceId;
use crate::sys::cgroups::Layout;
use crate::sys::fs as files;

/// Longest `config.json` that is read, in bytes: it holds at most a seccomp profile of 1 MiB.
const CONFIG_MAX: u64 = 2 << 20;

/// Memory limits are whole pages of the kernel; this is the largest page there is, in bytes.
const LARGEST_PAGE: i64 = 64 << 10;

/// A limit from here on is none: the kernel counts pages up to 2^63 bytes.
const UNLIMITED: i64 = 1 << 62;

/// The part of `config.json` that is looked at.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct Config {
    linux: Linux,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct Linux {
    resources: Resources,
}

#[derive(Deserialize, Default, Clone, PartialEq, Eq, Debug)]
#[serde(default)]
struct Resources {
    memory: Option<Limit>,
    cpu: Option<Cpu>,
    pids: Option<Limit>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
struct Limit {
    limit: i64,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
struct Cpu {
    quota: i64,
    period: u64,
}

/// What one control file has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
}

/// Compares the limits of an instance with its bundle and sets those that differ.
pub(super) fn check(layout: &Layout, leaf: &str, id: &InstanceId, bundle: &Path) {
    let resources = match read(&bundle.join("config.json")) {
        Ok(resources) => resources,
        Err(error) => return log::error!("limits are not checked instance={id} err={error}"),
    };
    for (mount, setting) in settings(layout, &resources) {
        let group = mount.join(leaf.trim_start_matches('/'));
        let file = group.join(setting.file);
        let now = fs::read_to_string(&file);
        if now.as_ref().is_ok_and(|now| is_same(now.trim(), &setting)) {
            continue;
        }
        let now = now.as_deref().map_or("nothing", str::trim);
        match put(layout, mount, leaf, &setting) {
            Ok(()) => log::warn!(
                "a limit was lost and is in force again instance={id} file={} was={now:?} value={:?}",
                setting.file,
                setting.value
            ),
            Err(error) => log::error!(
                "a limit is not in force instance={id} file={} is={now:?} value={:?} err={error}",
                file.display(),
                setting.value
            ),
        }
    }
}

fn read(path: &Path) -> io::Result<Resources> {
    if fs::metadata(path)?.len() > CONFIG_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let config: Config = serde_json::from_slice(&fs::read(path)?)?;
    Ok(config.linux.resources)
}

/// The control files of the limits that are set, each with the mount of its hierarchy.
fn settings<'a>(layout: &'a Layout, resources: &Resources) -> Vec<(&'a Path, Setting)> {
    let mut all = Vec::new();
    let mut add = |controller, v1: Vec<(&'static str, String)>, v2: (&'static str, String)| {
        let setting = |(file, value)| Setting { controller, file, value };
        match (layout.v1_of(controller), &layout.v2) {
            (Some(mount), _) => all.extend(v1.into_iter().map(|s| (mount, setting(s)))),
            (None, Some(hierarchy)) => all.push((hierarchy.mount.as_path(), setting(v2))),
            (None, None) => {}
        }
    };
    let limited = |limit: &&Limit| (0..UNLIMITED).contains(&limit.limit);
    if let Some(Limit { limit }) = resources.memory.as_ref().filter(limited) {
        let value = limit.to_string();
        add("memory", vec![("memory.limit_in_bytes", value.clone())], ("memory.max", value));
    }
    if let Some(Cpu { quota, period }) = resources.cpu.filter(|cpu| cpu.quota > 0) {
        let v1 = vec![
            ("cpu.cfs_period_us", period.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ];
        add("cpu", v1, ("cpu.max", format!("{quota} {period}")));
    }
    if let Some(Limit { limit }) = resources.pids.as_ref().filter(limited) {
        let value = limit.to_string();
        add("pids", vec![("pids.max", value.clone())], ("pids.max", value));
    }
    all
}

fn is_same(now: &str, setting: &Setting) -> bool {
    if setting.controller != "memory" {
        return now == setting.value;
    }
    match (now.parse::<i64>(), setting.value.parse::<i64>()) {
        (Ok(now), Ok(value)) => now <= value && value - now < LARGEST_PAGE,
        _ => false,
    }
}

/// Where a v2 group has lost the controller itself, those above get it back first.
fn put(layout: &Layout, mount: &Path, leaf: &str, setting: &Setting) -> io::Result<()> {
    let group = mount.join(leaf.trim_start_matches('/'));
    let file = group.join(setting.file);
    let is_v2 = layout.v2.as_ref().is_some_and(|v2| v2.mount == mount);
    if is_v2 && !file.exists() {
        let mut above: PathBuf = mount.to_owned();
        for name in leaf.split('/').filter(|name| !name.is_empty()) {
            let switch = above.join("cgroup.subtree_control");
            files::write_existing(&switch, &format!("+{}", setting.controller))?;
            above.push(name);
        }
    }
    files::write_existing(&file, &setting.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cgroups::Hierarchy;
    use crate::sys::testing::wait_until;

    fn hierarchy(mount: &str, controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Hierarchy { mount: mount.into(), controllers }
    }

    fn lines(layout: &Layout, resources: &Resources) -> Vec<String> {
        let text =
            |(mount, s): (&Path, Setting)| format!("{}/{} {}", mount.display(), s.file, s.value);
        settings(layout, resources).into_iter().map(text).collect()
    }

    const ALL: Resources = Resources {
        memory: Some(Limit { limit: 5000 }),
        cpu: Some(Cpu { quota: 2000, period: 100_000 }),
        pids: Some(Limit { limit: 7 }),
    };

    #[test]
    fn control_files_of_limits() {
        let v2 = Layout { v1: vec![], v2: Some(hierarchy("/c", &["cpu", "memory", "pids"])) };
        let expect = ["/c/memory.max 5000", "/c/cpu.max 2000 100000", "/c/pids.max 7"];
        assert_eq!(lines(&v2, &ALL), expect);
        let v1 = ["cpu", "memory"].map(|name| hierarchy(&format!("/v1/{name}"), &[name]));
        let hybrid = Layout { v1: v1.into(), v2: Some(hierarchy("/u", &["pids"])) };
        let expect = [
            "/v1/memory/memory.limit_in_bytes 5000",
            "/v1/cpu/cpu.cfs_period_us 100000",
            "/v1/cpu/cpu.cfs_quota_us 2000",
            "/u/pids.max 7",
        ];
        assert_eq!(lines(&hybrid, &ALL), expect);
        assert!(lines(&Layout::default(), &ALL).is_empty());
        let none = Resources {
            memory: Some(Limit { limit: -1 }),
            cpu: Some(Cpu { quota: -1, period: 100_000 }),
            pids: Some(Limit { limit: i64::MAX }),
        };
        assert!(lines(&v2, &none).is_empty());
        assert!(lines(&v2, &Resources::default()).is_empty());
    }

    #[test]
    fn values_are_compared() {
        let check = |controller, value: &str, now: &str, expect: bool| {
            let setting = Setting { controller, file: "", value: value.to_owned() };
            assert_eq!(is_same(now, &setting), expect, "{controller} {value} {now}");
        };
        check("memory", "5000", "4096", true);
        check("memory", "8192", "8192", true);
        check("memory", "8192", "max", false);
        check("memory", "8192", "9223372036854771712", false);
        check("memory", "1000000", "4096", false);
        check("pids", "7", "7", true);
        check("pids", "7", "max", false);
        check("cpu", "2000 100000", "2000 100000", true);
        check("cpu", "2000 100000", "max 100000", false);
    }

    #[test]
    fn limits_are_read_from_a_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let check = |text: &str, expect: Option<Resources>| {
            files::write_plain(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(read(&path).ok(), expect, "{text}");
        };
        check("{}", Some(Resources::default()));
        check(
            r#"{"process":{"args":["x"]},"linux":{"resources":{"devices":[{"allow":false}],
               "memory":{"limit":5000},"cpu":{"quota":2000,"period":100000},
               "pids":{"limit":7}},"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}"#,
            Some(ALL),
        );
        check("nonsense", None);
    }

    /// A real group below a parent of its own; gone in the end.
    struct Group {
        layout: Layout,
        leaf: String,
    }

    impl Group {
        fn paths(&self, leaf: &str) -> Vec<PathBuf> {
            self.layout.mounts().map(|mount| mount.join(leaf.trim_start_matches('/'))).collect()
        }

        fn parent(&self) -> &str {
            self.leaf.rsplit_once('/').unwrap().0
        }

        fn value(&self, controller: &str, v1: &str, v2: &str) -> String {
            let (mount, file) = match (self.layout.v1_of(controller), &self.layout.v2) {
                (Some(mount), _) => (mount, v1),
                (None, hierarchy) => (hierarchy.as_ref().unwrap().mount.as_path(), v2),
            };
            let path = mount.join(self.leaf.trim_start_matches('/')).join(file);
            fs::read_to_string(path).unwrap().trim().to_owned()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let parent = self.parent().to_owned();
            for path in [&self.leaf, &parent].iter().flat_map(|name| self.paths(name)) {
                wait_until("the removal of a group", || match fs::remove_dir(&path) {
                    Ok(()) => true,
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                });
            }
        }
    }

    #[test]
    fn lost_limits_are_set_again() {
        let layout = Layout::read().unwrap();
        let leaf = format!("/aos-test-enforce-{}/leaf", std::process::id());
        let group = Group { layout, leaf };
        let made = group.paths(&group.leaf).iter().all(|path| fs::create_dir_all(path).is_ok());
        let has = |controller| {
            let v2 = group.layout.v2.as_ref();
            group.layout.v1_of(controller).is_some()
                || v2.is_some_and(|v2| v2.controllers.iter().any(|c| c == controller))
        };
        if !made || !["cpu", "memory", "pids"].into_iter().all(has) {
            println!("SKIP lost_limits_are_set_again: control groups cannot be made");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"linux":{"resources":{"memory":{"limit":8388608},
            "cpu":{"quota":5000,"period":100000},"pids":{"limit":7}}}}"#;
        files::write_plain(&dir.path().join("config.json"), text.as_bytes(), 0o600).unwrap();
        let id = InstanceId::new("one");
        let in_force = || {
            assert_eq!(group.value("memory", "memory.limit_in_bytes", "memory.max"), "8388608");
            assert!(["5000", "5000 100000"].contains(&&*group.value(
                "cpu",
                "cpu.cfs_quota_us",
                "cpu.max"
            )));
            assert_eq!(group.value("pids", "pids.max", "pids.max"), "7");
        };
        // Nothing is set, on v2 there are not even the controllers; then one is lost.
        check(&group.layout, &group.leaf, &id, dir.path());
        in_force();
        let pids = group.layout.v1_of("pids").or(group.layout.v2.as_ref().map(|v2| &*v2.mount));
        let pids = pids.unwrap().join(group.leaf.trim_start_matches('/')).join("pids.max");
        files::write_existing(&pids, "max").unwrap();
        check(&group.layout, &group.leaf, &id, dir.path());
        in_force();
    }
}
