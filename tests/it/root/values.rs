//! Malformed and out-of-range values of packages, node configuration and run request, through the
//! whole daemon: the instance is failed with a reason that names the value, or runs where the value
//! means nothing; the others run; nothing is left.

use std::fs;

use aos_servicemanager::cm::wire::v4::{common, servicemanager as wire};
use aos_servicemanager::sys::fs::write_plain;

use crate::common::need::{self, require};
use crate::common::unit::{Setup, Unit, with_a_good_one};
use crate::common::wait_until;

/// What becomes of an instance with a value: it runs, or its status has this text.
#[derive(Clone, Copy)]
enum Fate {
    Runs,
    Fails(&'static str),
}
use Fate::{Fails, Runs};

/// Members of a service configuration, and the fate.
const SERVICE: &[(&str, Fate)] = &[
    // Values that have the right type and cannot be used.
    (r#""hostname":"-bad-""#, Fails("hostname \"-bad-\"")),
    (r#""hostname":"a b""#, Fails("hostname \"a b\"")),
    (r#""sysctl":{"kernel.panic":"1"}"#, Fails("sysctl \"kernel.panic\"")),
    (r#""sysctl":{"net.ipv4.no_such_key":"1"}"#, Fails("no_such_key")),
    (r#""runParameters":{"startInterval":"1ns"}"#, Fails("invalid parameters")),
    (r#""runParameters":{"restartInterval":"-1s"}"#, Fails("invalid parameters")),
    (r#""runParameters":{"startBurst":18446744073709551615}"#, Runs),
    (r#""runParameters":{"startInterval":"0s","startBurst":0}"#, Runs),
    (r#""devices":[{"name":"none","permissions":"rw"}]"#, Fails("device is not available: none")),
    (r#""devices":[{"name":"null","permissions":"x"}]"#, Fails("device permissions \"x\"")),
    (r#""devices":[{"name":"null","permissions":""}]"#, Fails("device permissions \"\"")),
    (r#""devices":[{"name":"null"}]"#, Fails("device permissions \"\"")),
    (r#""devices":[{"name":"mem","permissions":"rw"}]"#, Fails("not for services")),
    (r#""resources":["none"]"#, Fails("resource is not available: none")),
    (r#""resources":["over"]"#, Fails("must not be mounted on \"/proc/x\"")),
    (r#""resources":["kind"]"#, Fails("mount of type \"ext4\"")),
    (r#""resources":["option"]"#, Fails("mount option \"suid\"")),
    (r#""resources":["source"]"#, Fails("/no/such/source")),
    (r#""resources":["env"]"#, Fails("NAME")),
    (r#""resources":["group"]"#, Fails("unknown group \"no-such-group\"")),
    (r#""resources":["host"]"#, Fails("1.2.3")),
    (r#""quotas":{"ramLimit":0}"#, Runs),
    (r#""quotas":{"ramLimit":18446744073709551615}"#, Runs),
    (r#""quotas":{"pidsLimit":18446744073709551615}"#, Runs),
    (r#""quotas":{"noFileLimit":18446744073709551615}"#, Runs),
    (r#""quotas":{"tmpLimit":18446744073709551615}"#, Runs),
    (r#""quotas":{"tmpLimit":0}"#, Runs),
    (r#""quotas":{"cpuDmipsLimit":0}"#, Runs),
    (r#""quotas":{"cpuDmipsLimit":18446744073709551615}"#, Runs),
    (r#""offlineTtl":"0s""#, Runs),
    (r#""offlineTtl":null"#, Runs),
    (r#""runners":["runx"]"#, Runs),
    (r#""allowedConnections":{"service/80/tcp":{},"other/1-2/udp":null}"#, Runs),
    (r#""allowedConnections":["service/80/tcp"]"#, Runs),
    (r#""alertRules":{"ram":{"minTimeout":"5s","minThreshold":500,"maxThreshold":-3}}"#, Runs),
    // Values of a wrong type: the package cannot be installed.
    (r#""hostname":5"#, Fails("hostname: 5")),
    (r#""sysctl":{"a":1}"#, Fails("sysctl.a: 1")),
    (r#""sysctl":[]"#, Fails("sysctl")),
    (r#""created":"yesterday""#, Fails("created: \"yesterday\"")),
    (r#""author":{}"#, Fails("author")),
    (r#""runParameters":{"startInterval":"soon"}"#, Fails("runParameters.startInterval: \"soon\"")),
    (r#""runParameters":{"startBurst":-1}"#, Fails("runParameters.startBurst: -1")),
    (r#""runParameters":{"startBurst":1.5}"#, Fails("runParameters.startBurst: 1.5")),
    (r#""runParameters":{"restartInterval":true}"#, Fails("runParameters.restartInterval: true")),
    (r#""offlineTtl":"-1s""#, Fails("offlineTtl")),
    (r#""offlineTtl":"P""#, Runs),
    (r#""quotas":{"ramLimit":-1}"#, Fails("quotas.ramLimit: -1")),
    (r#""quotas":{"pidsLimit":"5"}"#, Fails("quotas.pidsLimit: \"5\"")),
    (r#""quotas":{"noFileLimit":1e3}"#, Fails("quotas.noFileLimit")),
    (r#""quotas":{"tmpLimit":18446744073709551616}"#, Fails("quotas.tmpLimit")),
    (r#""quotas":{"cpuLimit":[]}"#, Fails("quotas.cpuLimit")),
    (r#""quotas":{"uploadSpeed":false}"#, Fails("quotas.uploadSpeed: false")),
    (r#""quotas":5"#, Fails("quotas: 5")),
    (r#""devices":{"name":"x"}"#, Fails("devices")),
    (r#""devices":[5]"#, Fails("devices[0]: 5")),
    (r#""resources":[5]"#, Fails("resources[0]: 5")),
    (r#""permissions":[]"#, Fails("permissions")),
    (r#""permissions":{"vis":{"a":5}}"#, Fails("permissions.vis.a: 5")),
    (r#""alertRules":{"ram":5}"#, Fails("alertRules.ram: 5")),
    (r#""alertRules":{"cpu":{"minTimeout":"x"}}"#, Fails("alertRules.cpu.minTimeout: \"x\"")),
    (r#""requestedResources":{"cpu":-1}"#, Fails("requestedResources.cpu: -1")),
    (r#""skipResourceLimits":"yes""#, Fails("skipResourceLimits: \"yes\"")),
    (r#""balancingPolicy":5"#, Fails("balancingPolicy: 5")),
    (r#""runners":"crun""#, Fails("runners: \"crun\"")),
    (r#""runner":5"#, Fails("runner: 5")),
    (r#""allowedConnections":"service/80/tcp""#, Fails("allowedConnections: \"service/80/tcp\"")),
    (r#""allowedConnections":{"s/80/tcp":5}"#, Fails("allowedConnections.s/80/tcp: 5")),
    (r#""allowedConnections":[5]"#, Fails("allowedConnections[0]: 5")),
    (r#""requestedResources":{"ram":1.5}"#, Fails("requestedResources.ram: 1.5")),
    (r#""requestedResources":{"storage":"1"}"#, Fails("requestedResources.storage: \"1\"")),
    (r#""requestedResources":{"state":[]}"#, Fails("requestedResources.state")),
    (r#""quotas":{"cpuDmipsLimit":-1}"#, Fails("quotas.cpuDmipsLimit: -1")),
    (r#""quotas":{"stateLimit":"1"}"#, Fails("quotas.stateLimit: \"1\"")),
    (r#""quotas":{"storageLimit":0.5}"#, Fails("quotas.storageLimit: 0.5")),
    (r#""quotas":{"downloadSpeed":-5}"#, Fails("quotas.downloadSpeed: -5")),
    (r#""quotas":{"uploadLimit":{}}"#, Fails("quotas.uploadLimit")),
    (r#""quotas":{"downloadLimit":true}"#, Fails("quotas.downloadLimit: true")),
    (r#""devices":[{"name":5}]"#, Fails("devices[0].name: 5")),
    (r#""devices":[{"name":"null","permissions":7}]"#, Fails("devices[0].permissions: 7")),
    (r#""alertRules":{"partitions":{}}"#, Fails("alertRules.partitions")),
    (r#""alertRules":{"partitions":[{"name":5}]}"#, Fails("alertRules.partitions[0].name: 5")),
    (r#""alertRules":{"download":5}"#, Fails("alertRules.download: 5")),
    (r#""alertRules":{"upload":{"minThreshold":-1}}"#, Fails("alertRules.upload.minThreshold: -1")),
    (r#""runParameters":[]"#, Fails("runParameters")),
    (r#""offlineTtl":"P300Y""#, Fails("offlineTtl: \"P300Y\"")),
    (r#""sysctl":{"net.ipv4.ping_group_range":"x"}"#, Fails("ping_group_range")),
    (r#""hostname":"a","hostname":"#, Fails("malformed JSON")),
];

const COMMAND: &str = r#""Entrypoint":["/busybox","sleep","10000"]"#;

/// Whole image configurations; `$` = the usual command.
const IMAGE: &[(&str, Fate)] = &[
    ("{}", Fails("unsupported OS in image config")),
    (r#"{"os":"windows","config":{$}}"#, Fails("unsupported OS in image config windows")),
    (r#"{"os":"LINUX","config":{$}}"#, Runs),
    (r#"{"os":"linux"}"#, Fails("neither Entrypoint nor Cmd")),
    (r#"{"os":"linux","config":{"Cmd":[]}}"#, Fails("neither Entrypoint nor Cmd")),
    (r#"{"os":"linux","config":{"Cmd":["/busybox","a\u0000b"]}}"#, Fails("NUL character")),
    (r#"{"os":"linux","config":{"Entrypoint":[""]}}"#, Fails("\"\" is in no directory of PATH")),
    (r#"{"os":"linux","config":{$,"WorkingDir":"here"}}"#, Fails("working directory \"here\"")),
    (r#"{"os":"linux","config":{$,"Env":["A=\u0000"]}}"#, Fails("A")),
    (r#"{"os":"linux","config":{$,"Env":["","=1","A"]}}"#, Runs),
    (r#"{"os":"linux","config":{$,"StopSignal":"SIGNONSENSE"}}"#, Runs),
    (r#"{"os":"linux","config":{$,"ExposedPorts":{"99999/tcp":{}}}}"#, Fails("port \"99999\"")),
    (r#"{"os":"linux","config":{$,"ExposedPorts":{"80/abc":{}}}}"#, Fails("protocol \"abc\"")),
    (r#"{"os":5,"config":{$}}"#, Fails("os: 5")),
    (r#"{"os":"linux","config":[]}"#, Fails("config")),
    (r#"{"os":"linux","config":{"Entrypoint":"/busybox"}}"#, Fails("config.Entrypoint")),
    (r#"{"os":"linux","config":{"Cmd":[5]}}"#, Fails("config.Cmd[0]: 5")),
    (r#"{"os":"linux","config":{$,"Env":{}}}"#, Fails("config.Env")),
    (r#"{"os":"linux","config":{$,"Env":[5]}}"#, Fails("config.Env[0]: 5")),
    (r#"{"os":"linux","config":{$,"StopSignal":"99"}}"#, Runs),
    (r#"{"os":"linux","config":{$,"WorkingDir":5}}"#, Fails("config.WorkingDir: 5")),
    (r#"{"os":"linux","config":{$,"ExposedPorts":["80"]}}"#, Fails("config.ExposedPorts")),
    (r#"{"os":"linux","config":{$,"StopSignal":15}}"#, Fails("config.StopSignal: 15")),
    (r#"{"os":"linux""#, Fails("malformed JSON")),
];

/// Arguments of an instance.
const REQUEST: &[(&str, Fate)] = &[
    ("uid=0", Fails("uid 0 is not allowed")),
    ("uid=4294967295", Fails("")),
    ("priority=18446744073709551615", Runs),
    ("index=9223372036854775807", Runs),
    ("storage=../escape", Fails("storage directory path \"../escape\"")),
    ("storage=/etc", Fails("storage directory path \"/etc\"")),
    ("state=a/../../b", Fails("state file path \"a/../../b\"")),
    ("state=.", Fails("state file path \".\"")),
    ("ip=300.1.1.1", Fails("300.1.1.1")),
    ("ip=10.1.2.3", Fails("10.1.2.3")),
    // The other servers, and the node's own names, are there all the same.
    ("dns=nonsense", Runs),
    ("rule=1.2.3.4:notaport:tcp", Fails("notaport")),
    ("rule=1.2.3.4:80:sctp6", Fails("sctp6")),
    ("rule=host:80:tcp", Fails("host")),
];

/// Arguments of a service whose package is good.
const SERVICE_REQUEST: &[(&str, Fate)] = &[
    ("gid=0", Runs),
    ("gid=4294967295", Fails("")),
    ("version=../../v", Runs),
    ("version=nonsense", Runs),
    ("provider=../../p", Runs),
    ("provider=", Fails("network id \"\"")),
];

/// What a request says of a package, which does not exist in any of these cases.
const PACKAGES: [fn(&mut wire::ServiceInfo); 12] = [
    |service| service.url.clear(),
    |service| service.url = "nonsense".into(),
    |service| service.url = "gopher://127.0.0.1/x".into(),
    |service| service.url = "http://".into(),
    |service| service.url = "http://127.0.0.1:99999/x".into(),
    |service| service.url = "file:///no/such/file".into(),
    |service| service.url = "file:///dev/zero".into(),
    |service| service.url = "file:///proc/kmsg".into(),
    |service| service.sha256.clear(),
    |service| service.sha256 = vec![0; 31],
    |service| service.size = 0,
    |service| service.size = u64::MAX,
];

const NODE: &str = r#"{"devices":[{"name":"null","hostDevices":["/dev/null"]},
    {"name":"mem","hostDevices":["/dev/kmsg"]}],
  "resources":[
    {"name":"over","mounts":[{"destination":"/proc/x","source":"/usr"}]},
    {"name":"kind","mounts":[{"destination":"/x","source":"/usr","type":"ext4"}]},
    {"name":"option","mounts":[{"destination":"/x","source":"/usr","options":["suid"]}]},
    {"name":"source","mounts":[{"destination":"/x","source":"/no/such/source"}]},
    {"name":"env","env":["NAME"]},
    {"name":"group","groups":["no-such-group"]},
    {"name":"host","hosts":[{"ip":"1.2.3","hostname":"h"}]}]}"#;

fn write(unit: &Unit, name: &str, text: &str) -> String {
    let path = unit.path(name);
    write_plain(&path, text.as_bytes(), 0o600).unwrap();
    path.display().to_string()
}

/// Declares one service for each case and checks what becomes of all of them.
fn check(cases: &[(&str, Fate)], declare: impl Fn(&mut Unit, &str, &str)) {
    let mut unit = Setup::new().registered();
    let node = write(&unit, "node.cfg", NODE);
    unit.say(&format!("config set {node} 1.0.0"));
    unit.say("wait config");
    for (number, (value, _)) in cases.iter().enumerate() {
        declare(&mut unit, &format!("case{number:02}"), value);
    }
    unit.sleeper("good");
    unit.say("run");
    unit.say("wait full 80s");
    unit.say("wait active good");
    let lines = unit.statuses();
    let mut wrong = Vec::new();
    for (number, (value, fate)) in cases.iter().enumerate() {
        let name = format!("case{number:02}/");
        let line = lines.iter().find(|line| line.starts_with(&name));
        let line = line.map_or("", String::as_str);
        let right = match fate {
            Runs => line.ends_with(" active"),
            Fails(text) => {
                let reason = line.split(" failed (").nth(1);
                reason.is_some_and(|reason| reason.contains(text) && !reason.contains("no message"))
            }
        };
        if !right {
            wrong.push(format!("{value}: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let runs = cases.iter().filter(|(_, fate)| matches!(fate, Runs)).count() + 1;
    wait_until("the removal of failed starts", || {
        [unit.bundles().len(), unit.groups().len()] == [runs; 2]
    });
    unit.stop_daemon();
    unit.nothing_left();
}

/// Quotes a word for the unit's script.
fn quoted(text: &str) -> String {
    format!("'{text}'")
}

#[test]
fn values_of_service_configurations() {
    require!(root, memory, runc, busybox);
    let busybox = need::program("busybox").unwrap();
    check(SERVICE, |unit, id, members| {
        let quick = r#""runParameters":{"startInterval":"60s","restartInterval":"20ms"}"#;
        let config = if members.contains("runParameters") {
            format!("{{{members}}}")
        } else {
            format!("{{{quick},{members}}}")
        };
        unit.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 config={}",
            quoted(&config)
        ));
        unit.say(&format!("instance {id} ip=none"));
    });
}

#[test]
fn values_of_image_configurations() {
    require!(root, memory, runc, busybox);
    let busybox = need::program("busybox").unwrap();
    check(IMAGE, |unit, id, image| {
        let image = image.replace('$', COMMAND);
        let quick = r#"{"runParameters":{"startInterval":"60s","restartInterval":"20ms"}}"#;
        unit.say(&format!(
            "service {id} {busybox} image-config={} config={}",
            quoted(&image),
            quoted(quick)
        ));
        unit.say(&format!("instance {id}"));
    });
}

#[test]
fn values_of_run_requests() {
    require!(root, memory, runc, busybox);
    let busybox = need::program("busybox").unwrap();
    check(REQUEST, |unit, id, arguments| {
        let quick = r#"{"runParameters":{"startInterval":"60s","restartInterval":"20ms"}}"#;
        unit.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 config={}",
            quoted(quick)
        ));
        unit.say(&format!("instance {id} {arguments}"));
    });
}

#[test]
fn values_of_services_in_requests() {
    require!(root, memory, runc, busybox);
    let busybox = need::program("busybox").unwrap();
    check(SERVICE_REQUEST, |unit, id, arguments| {
        unit.say(&format!(
            "service {id} {busybox} entrypoint=/busybox cmd=sleep cmd=10000 {arguments}"
        ));
        unit.say(&format!("instance {id} ip=none"));
    });
}

fn service(id: &str, url: &str) -> wire::ServiceInfo {
    let mut service = wire::ServiceInfo::new();
    service.service_id = id.into();
    service.provider_id = "provider".into();
    service.version = "1.0.0".into();
    service.url = url.into();
    service.sha256 = vec![0xa5; 32];
    service.size = 1000;
    service.gid = 5000;
    service
}

fn instance(service: &str, subject: &str) -> wire::InstanceInfo {
    let mut ident = common::InstanceIdent::new();
    (ident.service_id, ident.subject_id) = (service.into(), subject.into());
    let mut instance = wire::InstanceInfo::new();
    instance.instance = Some(ident).into();
    instance.uid = 5000;
    instance
}

#[test]
fn values_of_packages_in_requests() {
    require!(root, memory, runc, busybox);
    let mut unit = with_a_good_one(Setup::new());
    let installed = unit.installed();
    let mut run = wire::RunInstances::new();
    // Installed already, so it is not looked at.
    run.services.push(service("good", "nonsense"));
    let mut kept = instance("good", "subject");
    kept.storage_path = "good_subject_0".into();
    kept.state_path = "good_subject_0_state.dat".into();
    let mut bad = Vec::new();
    for (number, change) in PACKAGES.iter().enumerate() {
        bad.push(format!("case{number}"));
        let mut info = service(&format!("case{number}"), "file:///no/such/file");
        change(&mut info);
        run.services.push(info);
    }
    let long = "x".repeat(300);
    for id in ["../escape", "a/b", "tab\tid", ".", "..", &long] {
        bad.push(id.to_owned());
        run.services.push(service(id, "file:///no/such/file"));
    }
    run.services.push(service("", "file:///no/such/file"));
    let mut versionless = service("versionless", "file:///no/such/file");
    versionless.version.clear();
    run.services.push(versionless);
    bad.push("versionless".into());
    for digest in ["", "sha256:zz", "../../x", "md5:00"] {
        let mut layer = wire::LayerInfo::new();
        (layer.digest, layer.url) = (digest.into(), "file:///no/such/file".into());
        run.layers.push(layer);
    }
    run.instances = bad.iter().map(|id| instance(id, "subject")).collect();
    run.instances.push(kept);
    let mut message = wire::SMIncomingMessages::new();
    message.set_run_instances(run);
    unit.look();
    unit.send(&message);
    unit.expect(&format!("full status: {} instances", bad.len() + 1));
    let lines = unit.statuses();
    for id in bad {
        let is_told = |line: &&String| {
            line.starts_with(&format!("{id}/subject/0 ")) && line.contains(" failed (")
        };
        assert!(lines.iter().any(|line| is_told(&line)), "{id}: {lines:#?}");
    }
    // What runs has other parameters in this request, and is there.
    wait_until("the good one", || unit.groups().len() == 1);
    assert_eq!(unit.installed(), installed);
    assert!(unit.find_id("good/subject/0").is_some());
    unit.stop_daemon();
    unit.nothing_left();
}

/// Documents that cannot be set; what the answer says.
const DOCUMENTS: &[(&str, &str)] = &[
    ("", "malformed JSON"),
    ("[]", "expected an object"),
    ("{} {}", "malformed JSON"),
    (r#"{"nodeType":5}"#, "nodeType: 5"),
    (r#"{"nodeId":[]}"#, "nodeId"),
    (r#"{"priority":-1}"#, "priority: -1"),
    (r#"{"priority":4294967296}"#, "priority: 4294967296"),
    (r#"{"labels":"a"}"#, "labels: \"a\""),
    (r#"{"labels":[1]}"#, "labels[0]: 1"),
    (r#"{"resourceRatios":5}"#, "resourceRatios: 5"),
    (r#"{"devices":{}}"#, "devices"),
    (r#"{"devices":[{"name":5}]}"#, "devices[0].name: 5"),
    (r#"{"devices":[{"name":""}]}"#, "devices[0].name: 0 bytes"),
    (r#"{"devices":[{"name":"a"},{"name":"a"}]}"#, "devices[1].name: \"a\""),
    (r#"{"devices":[{"name":"a","sharedCount":-1}]}"#, "devices[0].sharedCount: -1"),
    (r#"{"devices":[{"name":"a","sharedCount":65536}]}"#, "devices[0].sharedCount: 65536"),
    (r#"{"devices":[{"name":"a","sharedCount":"1"}]}"#, "devices[0].sharedCount: \"1\""),
    (r#"{"devices":[{"name":"a","groups":"video"}]}"#, "devices[0].groups: \"video\""),
    (r#"{"devices":[{"name":"a","groups":[""]}]}"#, "group is not present on system"),
    (r#"{"devices":[{"name":"a","hostDevices":[1]}]}"#, "devices[0].hostDevices[0]: 1"),
    (r#"{"devices":[{"name":"a","hostDevices":["/etc/passwd"]}]}"#, "/etc/passwd is not present"),
    (r#"{"devices":[{"name":"a","hostDevices":["/dev/no-such"]}]}"#, "/dev/no-such is not present"),
    (r#"{"resources":[5]}"#, "resources[0]: 5"),
    (r#"{"resources":[{"name":"a","mounts":{}}]}"#, "resources[0].mounts"),
    (
        r#"{"resources":[{"name":"a","mounts":[{"options":"ro"}]}]}"#,
        "resources[0].mounts[0].options: \"ro\"",
    ),
    (r#"{"resources":[{"name":"a","env":[1]}]}"#, "resources[0].env[0]: 1"),
    (r#"{"resources":[{"name":"a","hosts":[{"ip":1}]}]}"#, "resources[0].hosts[0].ip: 1"),
    (r#"{"alertRules":[]}"#, "alertRules"),
    (r#"{"alertRules":{"ram":{"minTimeout":"x"}}}"#, "alertRules.ram.minTimeout: \"x\""),
    (r#"{"alertRules":{"download":{"maxThreshold":-1}}}"#, "alertRules.download.maxThreshold: -1"),
    (r#"{"version":5}"#, "version: 5"),
];

#[test]
fn values_of_node_configurations() {
    require!(root, memory, busybox);
    let mut unit = Setup::new().registered();
    let good = write(&unit, "good.cfg", r#"{"nodeType":"main","labels":["old"]}"#);
    unit.say(&format!("config set {good} 1.0.0"));
    unit.say("wait config");
    let stored = fs::read_to_string(unit.path("sm/work/aos_node.cfg")).unwrap();
    for (number, (json, expect)) in DOCUMENTS.iter().enumerate() {
        let file = write(&unit, &format!("node{number}.cfg"), json);
        for act in ["check", "set"] {
            unit.look();
            unit.say(&format!("config {act} {file} 2.0.0"));
            unit.say("wait config");
            let lines = unit.seen().join("\n");
            assert!(lines.contains(expect), "{json}: {lines}");
        }
    }
    // The old one is in force and on disk.
    assert_eq!(fs::read_to_string(unit.path("sm/work/aos_node.cfg")).unwrap(), stored);
    unit.look();
    unit.say("config get");
    unit.say("wait config");
    unit.expect("1.0.0");
    unit.stop_daemon();
}
