use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use serde_json::Value;

use super::*;
use crate::model::desired::{DesiredInstance, InstanceNetwork};
use crate::model::id::{InstanceIdent, NetworkId, ServiceId, ServiceKey, SubjectId};
use crate::model::job::StartKind;
use crate::model::node::{Host, Mount};
use crate::model::service::{InstalledService, ServiceConfig, ServiceImage};
use crate::runtime::record;

pub(crate) const ID: &str = "0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11";

/// A start of the smallest service: nothing but a command.
pub(crate) fn plan() -> StartPlan {
    let id = ServiceId::new("svc-a");
    let image = ServiceImage {
        image: ImageConfig {
            os: "linux".into(),
            entrypoint: vec!["/bin/app".into()],
            ..ImageConfig::default()
        },
        ..ServiceImage::default()
    };
    let ident =
        InstanceIdent { service_id: id.clone(), subject_id: SubjectId::new("subj-1"), instance: 0 };
    StartPlan {
        id: InstanceId::new(ID),
        instance: Arc::new(DesiredInstance {
            ident,
            uid: 5003,
            priority: 0,
            storage_path: Arc::from(""),
            state_path: Arc::from(""),
            network: InstanceNetwork::default(),
        }),
        service: Arc::new(InstalledService {
            key: ServiceKey { id, version: Arc::from("1.0.0") },
            provider_id: NetworkId::new("prov1"),
            gid: 5001,
            path: PathBuf::new(),
            manifest_digest: Vec::new(),
            tree_digest: String::new(),
            package_digest: Vec::new(),
            size_bytes: 0,
            installed_at_ms: 0,
            unused_since_ms: None,
            confirmed: false,
        }),
        image: Arc::new(image),
        layers: Vec::new(),
        secret: None,
        overrides: Arc::default(),
        devices: Vec::new(),
        resources: Vec::new(),
        max_dmips: 10_000,
        kind: StartKind::Fresh,
        data_ready: false,
        record: record::tests::sample(),
    }
}

/// Settings of a daemon with all rights.
pub(crate) fn settings() -> SpecSettings {
    SpecSettings {
        run_dir: "/run/aos".into(),
        cgroup_parent: r"/system.slice/system-aos\x2dservice.slice".into(),
        seccomp: None,
        host: HostLimits {
            bounding: u64::MAX,
            max_open_files: 1 << 20,
            max_processes: u64::MAX,
            oom_score_adj: 0,
            cgroup_v2: false,
        },
    }
}

fn resolved() -> Resolved {
    Resolved { cpus: 2, ..Resolved::default() }
}

fn image(plan: &mut StartPlan) -> &mut ImageConfig {
    &mut Arc::make_mut(&mut plan.image).image
}

fn service(plan: &mut StartPlan) -> &mut ServiceConfig {
    &mut Arc::make_mut(&mut plan.image).service
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

/// One line for each scalar, and one for each list of scalars: `path = value`.
fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    let is_leaf = |value: &Value| !value.is_array() && !value.is_object();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{path}/{key}"), value, lines);
            }
        }
        Value::Array(list) if !list.iter().all(is_leaf) => {
            for value in list {
                lines.push(format!("{path}[] = {value}"));
            }
        }
        leaf => lines.push(format!("{path} = {leaf}")),
    }
}

fn lines(spec: &oci::Spec) -> Vec<String> {
    let mut lines = Vec::new();
    flatten("", &serde_json::from_str(&spec.to_json()).unwrap(), &mut lines);
    lines
}

/// What of the smallest configuration goes (`-`) and comes (`+`) with a change of the inputs; or
/// the error.
fn check(change: impl FnOnce(&mut StartPlan, &mut SpecSettings, &mut Resolved), expect: Expect) {
    let base = lines(&build(&plan(), &settings(), &resolved()).unwrap());
    let (mut plan, mut settings, mut resolved) = (plan(), settings(), resolved());
    change(&mut plan, &mut settings, &mut resolved);
    let text = match build(&plan, &settings, &resolved) {
        Err(error) => error.to_string(),
        Ok(spec) => {
            let new = lines(&spec);
            let gone = base.iter().filter(|line| !new.contains(line)).map(|l| format!("- {l}"));
            let come = new.iter().filter(|line| !base.contains(line)).map(|l| format!("+ {l}"));
            gone.chain(come).collect::<Vec<_>>().join("\n")
        }
    };
    expect.assert_eq(&text);
}

#[test]
fn the_smallest_configuration() {
    let spec = build(&plan(), &settings(), &resolved()).unwrap();
    assert!(!spec.to_json().contains('\n'));
    expect![[r#"
        /hostname = "runc"
        /linux/cgroupsPath = "/system.slice/system-aos\\x2dservice.slice/aos-service@0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11.service"
        /linux/maskedPaths = ["/proc/acpi","/proc/asound","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/timer_list","/proc/timer_stats","/proc/sched_debug","/sys/firmware","/proc/scsi"]
        /linux/namespaces[] = {"type":"pid"}
        /linux/namespaces[] = {"path":"/run/netns/0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11","type":"network"}
        /linux/namespaces[] = {"type":"ipc"}
        /linux/namespaces[] = {"type":"uts"}
        /linux/namespaces[] = {"type":"mount"}
        /linux/readonlyPaths = ["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]
        /linux/resources/devices[] = {"access":"rwm","allow":false}
        /mounts[] = {"destination":"/proc","source":"proc","type":"proc"}
        /mounts[] = {"destination":"/dev","options":["nosuid","strictatime","mode=755","size=65536k"],"source":"tmpfs","type":"tmpfs"}
        /mounts[] = {"destination":"/dev/pts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"],"source":"devpts","type":"devpts"}
        /mounts[] = {"destination":"/dev/shm","options":["nosuid","noexec","nodev","mode=1777","size=65536k"],"source":"shm","type":"tmpfs"}
        /mounts[] = {"destination":"/dev/mqueue","options":["nosuid","noexec","nodev"],"source":"mqueue","type":"mqueue"}
        /mounts[] = {"destination":"/sys","options":["nosuid","noexec","nodev","ro"],"source":"sysfs","type":"sysfs"}
        /mounts[] = {"destination":"/sys/fs/cgroup","options":["nosuid","noexec","nodev","relatime","ro"],"source":"cgroup","type":"cgroup"}
        /ociVersion = "1.0.2"
        /process/args = ["/bin/app"]
        /process/capabilities/bounding = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        /process/capabilities/effective = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        /process/capabilities/permitted = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        /process/cwd = "/"
        /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11"]
        /process/noNewPrivileges = true
        /process/oomScoreAdj = 0
        /process/rlimits[] = {"hard":1024,"soft":1024,"type":"RLIMIT_NOFILE"}
        /process/user/gid = 5001
        /process/user/uid = 5003
        /root/path = "/run/aos/runtime/0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11/rootfs""#]].assert_eq(&lines(&spec).join("\n"));
}

#[test]
fn fields_stand_in_the_order_of_the_specification() {
    let text = build(&plan(), &settings(), &resolved()).unwrap().to_json();
    expect![[r#"{"ociVersion":"1.0.2","process":{"user":{"uid":5003,"gid":5001},"args":["/bin/app"],"env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_"#]].assert_eq(&text[..200]);
}

#[test]
fn rights_of_the_daemon() {
    check(
        |_, settings, _| settings.host.bounding = 1 << 5,
        expect![[r#"
        - /process/capabilities/bounding = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        - /process/capabilities/effective = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        - /process/capabilities/permitted = ["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"]
        + /process/capabilities/bounding = ["CAP_KILL"]
        + /process/capabilities/effective = ["CAP_KILL"]
        + /process/capabilities/permitted = ["CAP_KILL"]"#]],
    );
    check(
        |_, settings, _| settings.host.max_open_files = 512,
        expect![[r#"
        - /process/rlimits[] = {"hard":1024,"soft":1024,"type":"RLIMIT_NOFILE"}
        + /process/rlimits[] = {"hard":512,"soft":512,"type":"RLIMIT_NOFILE"}"#]],
    );
    check(
        |_, settings, _| settings.host.oom_score_adj = 200,
        expect![[r#"
        - /process/oomScoreAdj = 0
        + /process/oomScoreAdj = 200"#]],
    );
    check(
        |_, settings, _| settings.host.cgroup_v2 = true,
        expect![[r#"+ /linux/namespaces[] = {"type":"cgroup"}"#]],
    );
    check(
        |_, settings, _| settings.cgroup_parent = "/aos/".into(),
        expect![[r#"
        - /linux/cgroupsPath = "/system.slice/system-aos\\x2dservice.slice/aos-service@0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11.service"
        + /linux/cgroupsPath = "/aos/aos-service@0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11.service""#]],
    );
    check(
        |_, settings, _| settings.run_dir = "/tmp/x".into(),
        expect![[r#"
        - /root/path = "/run/aos/runtime/0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11/rootfs"
        + /root/path = "/tmp/x/runtime/0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11/rootfs""#]],
    );
    check(
        |plan, settings, _| {
            settings.host.max_open_files = 100;
            settings.host.max_processes = 50;
            service(plan).quotas.open_files = Some(200);
            service(plan).quotas.pids = Some(60);
        },
        expect![[r#"
            - /process/rlimits[] = {"hard":1024,"soft":1024,"type":"RLIMIT_NOFILE"}
            + /linux/resources/pids/limit = 60
            + /process/rlimits[] = {"hard":100,"soft":100,"type":"RLIMIT_NOFILE"}
            + /process/rlimits[] = {"hard":50,"soft":50,"type":"RLIMIT_NPROC"}"#]],
    );
}

#[test]
fn seccomp_profiles() {
    let profile = seccomp_profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86","SCMP_ARCH_ARM"],
            "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let profile = profile.unwrap();
    assert_eq!(profile["architectures"], serde_json::json!([NATIVE_ARCHITECTURE]));
    check(
        |_, settings, _| {
            let mut profile = profile.as_ref().clone();
            profile["architectures"] = "native".into();
            settings.seccomp = Some(Arc::new(profile));
        },
        expect![[r#"
            + /linux/seccomp/architectures = "native"
            + /linux/seccomp/defaultAction = "SCMP_ACT_ERRNO"
            + /linux/seccomp/syscalls[] = {"action":"SCMP_ACT_ALLOW","names":["read"]}"#]],
    );
    for bad in ["", "[]", "{}", r#"{"defaultAction":1}"#, r#"{"defaultAction":"A"} x"#] {
        assert!(matches!(seccomp_profile(bad), Err(Error::Seccomp(_))), "{bad:?}");
    }
}

#[test]
fn image_configuration() {
    check(
        |plan, _, _| {
            *image(plan) = ImageConfig {
                os: "Linux".into(),
                entrypoint: texts(&["python3", "-u"]),
                cmd: texts(&["/app/main.py"]),
                working_dir: "/app".into(),
                env: texts(&["MODE=prod", "PATH=/bin", "AOS_INSTANCE_INDEX=9", "AOS_SECRET=x"]),
                exposed_ports: texts(&["80/tcp"]),
                stop_signal: "SIGTERM".into(),
            }
        },
        expect![[r#"
            - /process/args = ["/bin/app"]
            - /process/cwd = "/"
            - /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11"]
            + /process/args = ["python3","-u","/app/main.py"]
            + /process/cwd = "/app"
            + /process/env = ["PATH=/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=9","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11","MODE=prod"]"#]],
    );
    check(
        |plan, _, _| {
            image(plan).entrypoint.clear();
            image(plan).cmd = texts(&["sh"]);
        },
        expect![[r#"
            - /process/args = ["/bin/app"]
            + /process/args = ["sh"]"#]],
    );
    check(
        |plan, _, _| image(plan).entrypoint.clear(),
        expect!["image config has neither Entrypoint nor Cmd"],
    );
    check(
        |plan, _, _| image(plan).entrypoint.push("\0".into()),
        expect!["image config has a NUL character in its command"],
    );
    check(|plan, _, _| image(plan).os = String::new(), expect!["unsupported OS in image config "]);
    check(
        |plan, _, _| image(plan).os = "windows".into(),
        expect!["unsupported OS in image config windows"],
    );
    check(
        |plan, _, _| image(plan).working_dir = "app".into(),
        expect![[r#"working directory "app" of the image is not an absolute path"#]],
    );
    check(
        |plan, _, _| image(plan).env = texts(&["A=\0"]),
        expect![[r#"environment variable "A" contains a NUL character"#]],
    );
}

#[test]
fn secret_and_overrides() {
    check(
        |plan, _, _| {
            plan.secret = Some(Arc::from("7f9c"));
            image(plan).env = texts(&["MODE=prod", "AOS_SECRET=image"]);
            plan.overrides =
                texts(&["AOS_SECRET=override", "MODE=test", "NEW=1", "AOS_SERVICE_ID=other"])
                    .into();
        },
        expect![[r#"
            - /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11"]
            + /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=other","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11","AOS_SECRET=7f9c","MODE=test","NEW=1"]"#]],
    );
    check(|plan, _, _| plan.secret = Some(Arc::from("")), expect![[""]]);
}

#[test]
fn service_configuration() {
    check(
        |plan, _, _| {
            service(plan).hostname = "svc-host".into();
            service(plan).sysctl =
                BTreeMap::from([("net.ipv4.ping_group_range".into(), "0 0".into())]);
        },
        expect![[r#"
            - /hostname = "runc"
            + /hostname = "svc-host"
            + /linux/sysctl/net.ipv4.ping_group_range = "0 0""#]],
    );
    check(
        |plan, _, _| service(plan).hostname = "a/b".into(),
        expect![[r#"malformed host name "a/b""#]],
    );
    check(
        |plan, _, _| {
            service(plan).sysctl = BTreeMap::from([("kernel.panic".into(), "1".into())]);
        },
        expect![[r#"sysctl "kernel.panic" does not belong to the namespaces of a container"#]],
    );
}

#[test]
fn quotas() {
    check(
        |plan, _, _| {
            service(plan).quotas = Quotas {
                cpu_dmips: Some(2500),
                ram_bytes: Some(33_554_432),
                pids: Some(64),
                open_files: Some(128),
                tmp_bytes: Some(1_048_576),
                state_bytes: Some(1),
                storage_bytes: Some(1),
                upload_kbit: Some(1),
                ..Quotas::default()
            }
        },
        expect![[r#"
            - /process/rlimits[] = {"hard":1024,"soft":1024,"type":"RLIMIT_NOFILE"}
            + /linux/resources/cpu/period = 100000
            + /linux/resources/cpu/quota = 50000
            + /linux/resources/memory/limit = 33554432
            + /linux/resources/pids/limit = 64
            + /mounts[] = {"destination":"/tmp","options":["nosuid","strictatime","mode=1777","size=1048576"],"source":"tmpfs","type":"tmpfs"}
            + /process/rlimits[] = {"hard":128,"soft":128,"type":"RLIMIT_NOFILE"}
            + /process/rlimits[] = {"hard":64,"soft":64,"type":"RLIMIT_NPROC"}"#]],
    );
    check(
        |plan, _, _| {
            service(plan).quotas = Quotas {
                ram_bytes: Some(0),
                pids: Some(0),
                open_files: Some(0),
                tmp_bytes: Some(0),
                ..Quotas::default()
            }
        },
        expect![[r#"
            - /process/rlimits[] = {"hard":1024,"soft":1024,"type":"RLIMIT_NOFILE"}
            + /linux/resources/memory/limit = 0
            + /linux/resources/pids/limit = 0
            + /mounts[] = {"destination":"/tmp","options":["nosuid","strictatime","mode=1777","size=0"],"source":"tmpfs","type":"tmpfs"}
            + /process/rlimits[] = {"hard":0,"soft":0,"type":"RLIMIT_NOFILE"}
            + /process/rlimits[] = {"hard":0,"soft":0,"type":"RLIMIT_NPROC"}"#]],
    );
    check(
        |plan, _, _| {
            plan.max_dmips = 0;
            service(plan).quotas.cpu_dmips = Some(1);
            service(plan).quotas.ram_bytes = Some(u64::MAX);
            service(plan).quotas.pids = Some(u64::MAX);
        },
        expect![[r#"
            + /linux/resources/memory/limit = 9223372036854775807
            + /linux/resources/pids/limit = 4194304
            + /process/rlimits[] = {"hard":18446744073709551615,"soft":18446744073709551615,"type":"RLIMIT_NPROC"}"#]],
    );
}

#[test]
fn cpu_quotas() {
    let dmips = |limit, max, cpus| {
        cpu_quota(&Quotas { cpu_dmips: Some(limit), ..Quotas::default() }, max, cpus)
    };
    for (limit, max, cpus, expect) in [
        (2000, 100_000, 4, Some(8000)),
        (42, 100_000, 8, Some(1000)),
        (50_000, 100_000, 4, Some(200_000)),
        (333, 10_000, 3, Some(9990)),
        (0, 10_000, 4, Some(1000)),
        (20_000, 10_000, 2, Some(400_000)),
        (1, 0, 4, None),
        (u64::MAX, 1, u64::MAX, Some(MAX_CPU_QUOTA_US)),
        (u64::MAX, u64::MAX, 4, Some(400_000)),
    ] {
        assert_eq!(dmips(limit, max, cpus), expect, "{limit} {max} {cpus}");
    }
    let percent =
        |limit, cpus| cpu_quota(&Quotas { cpu_percent: Some(limit), ..Quotas::default() }, 0, cpus);
    for (limit, cpus, expect) in [(0, 2, 0), (1, 1, 1000), (50, 2, 100_000), (100, 4, 400_000)] {
        assert_eq!(percent(limit, cpus), Some(expect), "{limit} {cpus}");
    }
    assert_eq!(cpu_quota(&Quotas::default(), 1000, 4), None);
}

#[test]
fn files_of_the_host_and_of_the_instance() {
    check(
        |_, _, resolved| {
            resolved.etc = vec![
                ("nsswitch.conf".into(), "/work/etc/nsswitch.conf".into()),
                ("ssl".into(), "/etc/ssl".into()),
            ];
            resolved.state = Some("/var/aos/states/9a5e_state.dat".into());
            resolved.storage = Some("/var/aos/storages/9a5e".into());
        },
        expect![[r#"
            + /mounts[] = {"destination":"/etc/nsswitch.conf","options":["bind","ro"],"source":"/work/etc/nsswitch.conf","type":"bind"}
            + /mounts[] = {"destination":"/etc/ssl","options":["bind","ro"],"source":"/etc/ssl","type":"bind"}
            + /mounts[] = {"destination":"/state.dat","options":["bind","rw"],"source":"/var/aos/states/9a5e_state.dat","type":"bind"}
            + /mounts[] = {"destination":"/storage","options":["bind","rw"],"source":"/var/aos/storages/9a5e","type":"bind"}"#]],
    );
}

fn node(path: &str, kind: DeviceKind, number: u64, permissions: &str) -> DeviceNode {
    DeviceNode {
        path: path.into(),
        kind,
        major: number,
        minor: number + 1,
        mode: 0o660,
        uid: 0,
        gid: 44,
        permissions: permissions.into(),
    }
}

#[test]
fn devices_and_groups() {
    check(
        |_, _, resolved| {
            resolved.devices = vec![
                node("/dev/char", DeviceKind::Char, 1, "rw"),
                node("/dev/block", DeviceKind::Block, 7, "rwm"),
                node("/dev/fifo", DeviceKind::Fifo, 0, "r"),
                node("/dev/char", DeviceKind::Char, 9, "w"),
            ];
            resolved.gids = vec![44, 29, 44, 101];
        },
        expect![[r#"
            + /linux/devices[] = {"fileMode":432,"gid":44,"major":1,"minor":2,"path":"/dev/char","type":"c","uid":0}
            + /linux/devices[] = {"fileMode":432,"gid":44,"major":7,"minor":8,"path":"/dev/block","type":"b","uid":0}
            + /linux/devices[] = {"fileMode":432,"gid":44,"major":0,"minor":1,"path":"/dev/fifo","type":"p","uid":0}
            + /linux/resources/devices[] = {"access":"rw","allow":true,"major":1,"minor":2,"type":"c"}
            + /linux/resources/devices[] = {"access":"rw","allow":true,"major":7,"minor":8,"type":"b"}
            + /process/user/additionalGids = [44,29,101]"#]],
    );
    check(
        |_, _, resolved| resolved.devices = vec![node("/dev/x", DeviceKind::Char, 1, "")],
        expect![[r#"device permissions "" are not a subset of "rwm" with "r" or "w""#]],
    );
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: texts(options),
    }
}

fn resource(mounts: Vec<Mount>) -> Resource {
    Resource { name: "res".into(), mounts, ..Resource::default() }
}

#[test]
fn resources_replace_mounts_and_variables() {
    check(
        |plan, _, resolved| {
            resolved.etc = vec![("ssl".into(), "/etc/ssl".into())];
            resolved.device_sources = vec!["/dev/null".into()];
            service(plan).quotas.tmp_bytes = Some(1);
            image(plan).env = texts(&["MODE=image"]);
            plan.overrides = texts(&["OTHER=override"]).into();
            let mut first = resource(vec![
                mount("/run/fx", "", "/run/fx", &["bind", "ro"]),
                mount("/etc/ssl", "bind", "/srv/ssl", &["ro"]),
                mount("/tmp", "tmpfs", "tmpfs", &["size=5"]),
                mount("/dev/zero", "bind", "/dev/null", &["rbind", "nosuid"]),
            ]);
            first.env = texts(&["MODE=resource", "OTHER=resource", "AOS_SECRET=resource"]);
            let second = resource(vec![mount("/run/fx", "bind", "/run/fy", &[])]);
            plan.resources = vec![first, second];
        },
        expect![[r#"
            - /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11"]
            + /mounts[] = {"destination":"/etc/ssl","options":["bind","ro","nosuid","nodev"],"source":"/srv/ssl","type":"bind"}
            + /mounts[] = {"destination":"/tmp","options":["size=5"],"source":"tmpfs","type":"tmpfs"}
            + /mounts[] = {"destination":"/run/fx","options":["bind","nosuid","nodev"],"source":"/run/fy","type":"bind"}
            + /mounts[] = {"destination":"/dev/zero","options":["rbind","nosuid"],"source":"/dev/null","type":"bind"}
            + /process/env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","TERM=xterm","AOS_SERVICE_ID=svc-a","AOS_SUBJECT_ID=subj-1","AOS_INSTANCE_INDEX=0","AOS_INSTANCE_ID=0b0c4f0e-6f0a-4d5e-9d3f-2f1f6a0f8a11","MODE=resource","OTHER=override"]"#]],
    );
}

#[test]
fn resources_that_are_refused() {
    let refuse = |resource: Resource, expect: Expect| {
        check(|plan, _, _| plan.resources = vec![resource], expect);
    };
    refuse(
        resource(vec![mount("/proc/sys", "bind", "/x", &[])]),
        expect![[r#"resource res must not be mounted on "/proc/sys""#]],
    );
    refuse(
        resource(vec![mount("/a/../../x", "bind", "/x", &[])]),
        expect![[r#"resource res must not be mounted on "/a/../../x""#]],
    );
    refuse(
        resource(vec![mount("/a", "sysfs", "sysfs", &[])]),
        expect![[r#"resource res has a mount of type "sysfs", only bind and tmpfs are allowed"#]],
    );
    refuse(
        resource(vec![mount("/a", "bind", "/x", &["suid"])]),
        expect![[r#"resource res has the mount option "suid", which is not allowed"#]],
    );
    let host = Host { ip: "10.0.0.1".into(), hostname: "a b".into() };
    refuse(
        Resource { hosts: vec![host], ..resource(vec![]) },
        expect![[r#"resource res has a malformed host "10.0.0.1" "a b""#]],
    );
    refuse(
        Resource { env: texts(&["A B=1"]), ..resource(vec![]) },
        expect![[r#"resource res has a malformed environment variable name "A B""#]],
    );
}
