//! Messages as they travelled between the reference and its peers (`recorded.jsonl`: bytes and
//! what they mean, made by other encoders), and what a peer may send that nobody recorded.

use expect_test::{Expect, expect};
use protobuf::UnknownValueRef;
use serde_json::Value;

use super::*;
use crate::calendar;
use crate::model::status::MonitoringData;

struct Recorded {
    name: String,
    incoming: bool,
    bytes: Vec<u8>,
    /// The set member of the oneof, and its content.
    kind: String,
    content: Value,
}

fn recorded() -> Vec<Recorded> {
    include_str!("recorded.jsonl").lines().map(one_recorded).collect()
}

fn one_recorded(line: &str) -> Recorded {
    let json: Value = serde_json::from_str(line).unwrap();
    let (kind, content) = json["decoded"].as_object().unwrap().iter().next().unwrap();
    Recorded {
        name: text(&json["name"]),
        incoming: json["message"] == "SMIncomingMessages",
        bytes: unhex(json["hex"].as_str().unwrap()),
        kind: kind.clone(),
        content: content.clone(),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

// Protobuf JSON leaves default values out and writes 64-bit numbers as text.

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_str().map_or(0, |t| t.parse().unwrap()))
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(item).collect()
}

fn time(value: &Value) -> Option<i64> {
    value.as_str().map(|t| calendar::parse(t).unwrap())
}

fn bytes(value: &Value) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = text(value);
    let symbols: Vec<u8> = text
        .trim_end_matches('=')
        .bytes()
        .map(|s| u8::try_from(DIGITS.iter().position(|d| *d == s).unwrap()).unwrap())
        .collect();
    let group = |g: &[u8]| {
        let bits = (0..4).fold(0u32, |b, at| b << 6 | u32::from(*g.get(at).unwrap_or(&0)));
        bits.to_be_bytes()[1..g.len()].to_vec()
    };
    symbols.chunks(4).flat_map(group).collect()
}

fn ident(value: &Value) -> InstanceIdent {
    InstanceIdent {
        service_id: ServiceId::new(&text(&value["service_id"])),
        subject_id: SubjectId::new(&text(&value["subject_id"])),
        instance: number(&value["instance"]),
    }
}

fn filter(value: &Value) -> InstanceFilter {
    let some = |t: String| (!t.is_empty()).then_some(t);
    InstanceFilter {
        service_id: some(text(&value["service_id"])),
        subject_id: some(text(&value["subject_id"])),
        instance: (value["instance"] != "-1").then(|| number(&value["instance"])),
    }
}

fn source(value: &Value) -> PackageSource {
    PackageSource {
        url: text(&value["url"]),
        sha3_256: bytes(&value["sha256"]),
        sha3_512: Vec::new(),
        size_bytes: number(&value["size"]),
    }
}

fn run_request(value: &Value) -> RunRequest {
    let service = |v: &Value| DesiredService {
        key: ServiceKey {
            id: ServiceId::new(&text(&v["service_id"])),
            version: Arc::from(text(&v["version"])),
        },
        provider_id: NetworkId::new(&text(&v["provider_id"])),
        gid: u32::try_from(number(&v["gid"])).unwrap(),
        source: source(v),
    };
    let layer = |v: &Value| DesiredLayer {
        digest: Digest::parse(&text(&v["digest"])).unwrap(),
        layer_id: text(&v["layer_id"]),
        version: text(&v["version"]),
        source: source(v),
    };
    let rule = |v: &Value| FirewallRule {
        dst_ip: text(&v["dst_ip"]),
        dst_port: text(&v["dst_port"]),
        proto: text(&v["proto"]),
        src_ip: text(&v["src_ip"]),
    };
    let network = |v: &Value| InstanceNetwork {
        subnet: text(&v["subnet"]),
        ip: text(&v["ip"]),
        dns_servers: list(&v["dns_servers"], text),
        rules: list(&v["rules"], rule),
    };
    let instance = |v: &Value| DesiredInstance {
        ident: ident(&v["instance"]),
        uid: u32::try_from(number(&v["uid"])).unwrap(),
        priority: number(&v["priority"]),
        storage_path: Arc::from(text(&v["storage_path"])),
        state_path: Arc::from(text(&v["state_path"])),
        network: network(&v["network_parameters"]),
    };
    RunRequest {
        services: list(&value["services"], service),
        layers: list(&value["layers"], layer),
        instances: list(&value["instances"], instance),
        rejected: Vec::new(),
        force_restart: value["force_restart"] == true,
    }
}

fn command(recorded: &Recorded) -> Option<CmCommand> {
    let v = &recorded.content;
    let json = || text(&v["node_config"]);
    let version = || text(&v["version"]);
    let log = |kind| {
        let (from_ms, till_ms) = (time(&v["from"]), time(&v["till"]));
        CmCommand::Log(LogRequest { log_id: text(&v["log_id"]), kind, from_ms, till_ms })
    };
    let variable = |v: &Value| EnvVariable {
        name: text(&v["name"]),
        value: text(&v["value"]),
        ttl_ms: time(&v["ttl"]),
    };
    let item = |v: &Value| EnvOverride {
        filter: filter(&v["instance_filter"]),
        variables: list(&v["variables"], variable),
    };
    let network = |v: &Value| NetworkParams {
        id: NetworkId::new(&text(&v["network_id"])),
        subnet: text(&v["subnet"]),
        ip: text(&v["ip"]),
        vlan_id: number(&v["vlan_id"]),
    };
    Some(match recorded.kind.as_str() {
        "get_node_config_status" => CmCommand::GetNodeConfigStatus,
        "check_node_config" => CmCommand::CheckNodeConfig { json: json(), version: version() },
        "set_node_config" => CmCommand::SetNodeConfig { json: json(), version: version() },
        "run_instances" => CmCommand::RunInstances(run_request(v)),
        "override_env_vars" => CmCommand::OverrideEnvVars(list(&v["env_vars"], item)),
        "update_networks" => CmCommand::UpdateNetworks(list(&v["networks"], network)),
        "connection_status" => {
            CmCommand::ConnectionStatus { online: v["cloud_status"] == "CONNECTED" }
        }
        "get_average_monitoring" => CmCommand::GetAverageMonitoring,
        "system_log_request" => log(LogKind::System),
        "instance_log_request" => log(LogKind::Instance(filter(&v["instance_filter"]))),
        "instance_crash_log_request" => log(LogKind::Crash(filter(&v["instance_filter"]))),
        "clock_sync" => return None,
        other => panic!("{other}"),
    })
}

#[test]
fn recorded_requests_mean_what_their_senders_meant() {
    let mut kinds = HashSet::new();
    for recorded in recorded().into_iter().filter(|r| r.incoming) {
        let decoded = V4::default().decode(&recorded.bytes).unwrap();
        assert_eq!(decoded, command(&recorded), "{}", recorded.name);
        kinds.insert(recorded.kind);
    }
    assert_eq!(kinds.len(), 12, "every request but image content: {kinds:?}");
}

fn error(value: &Value) -> Option<ErrorInfo> {
    let number = |v: &Value| i32::try_from(v.as_i64().unwrap_or(0)).unwrap();
    value.is_object().then(|| ErrorInfo {
        aos_code: number(&value["aos_code"]),
        exit_code: number(&value["exit_code"]),
        message: text(&value["message"]),
    })
}

fn monitoring(value: &Value) -> NodeMonitoring {
    let data = |v: &Value| MonitoringData {
        time_ms: time(&v["timestamp"]).unwrap(),
        ram_bytes: number(&v["ram"]),
        cpu_dmips: number(&v["cpu"]),
        partitions: list(&v["partitions"], |p| (text(&p["name"]).into(), number(&p["used_size"]))),
        download_bytes: number(&v["download"]),
        upload_bytes: number(&v["upload"]),
    };
    NodeMonitoring {
        node: data(&value["node_monitoring"]),
        instances: list(&value["instances_monitoring"], |i| {
            (ident(&i["instance"]), data(&i["monitoring_data"]))
        }),
    }
}

fn alert_payload(value: &Value) -> AlertPayload {
    let members = value.as_object().unwrap();
    let (kind, v) = members.iter().find(|(k, _)| *k != "timestamp" && *k != "tag").unwrap();
    let ident = || ident(&v["instance"]);
    let message = || text(&v["message"]);
    let (parameter, amount) = (text(&v["parameter"]), number(&v["value"]));
    let status = || match v["status"].as_str().unwrap() {
        "raise" => QuotaStatus::Raise,
        "continue" => QuotaStatus::Continue,
        "fall" => QuotaStatus::Fall,
        other => panic!("{other}"),
    };
    match kind.as_str() {
        "system_alert" => AlertPayload::System { message: message() },
        "core_alert" => {
            AlertPayload::Core { component: text(&v["core_component"]), message: message() }
        }
        "instance_alert" => AlertPayload::Instance {
            ident: ident(),
            service_version: Arc::from(text(&v["service_version"])),
            message: message(),
        },
        "resource_validate_alert" => AlertPayload::ResourceValidate {
            name: text(&v["name"]),
            errors: list(&v["errors"], |e| error(e).unwrap()),
        },
        "device_allocate_alert" => AlertPayload::DeviceAllocate {
            ident: ident(),
            device: text(&v["device"]),
            message: message(),
        },
        "system_quota_alert" => {
            AlertPayload::SystemQuota { parameter, value: amount, status: status() }
        }
        "instance_quota_alert" => AlertPayload::InstanceQuota {
            ident: ident(),
            parameter,
            value: amount,
            status: status(),
        },
        other => panic!("{other}"),
    }
}

fn report(recorded: &Recorded) -> CmReport {
    let v = &recorded.content;
    let instance = |v: &Value| InstanceStatus {
        ident: ident(&v["instance"]),
        service_version: Arc::from(text(&v["service_version"])),
        state: match v["run_state"].as_str().unwrap() {
            "active" => RunState::Active,
            "failed" => RunState::Failed,
            "inactive" => RunState::Inactive,
            other => panic!("{other}"),
        },
        error: error(&v["error"]),
    };
    let item = |v: &Value| EnvStatus {
        filter: filter(&v["instance_filter"]),
        variables: list(&v["statuses"], |s| (text(&s["name"]), error(&s["error"]))),
    };
    match recorded.kind.as_str() {
        "node_config_status" => CmReport::NodeConfigStatus(NodeConfigStatus {
            node_id: text(&v["node_id"]),
            node_type: text(&v["node_type"]),
            version: text(&v["version"]),
            error: error(&v["error"]),
        }),
        "run_instances_status" => CmReport::RunStatus(list(&v["instances"], instance)),
        "update_instances_status" => CmReport::UpdateStatus(list(&v["instances"], instance)),
        "override_env_var_status" => CmReport::EnvStatus(list(&v["env_vars_status"], item)),
        "alert" => CmReport::Alert(Alert {
            time_ms: time(&v["timestamp"]).unwrap(),
            payload: alert_payload(v),
        }),
        "instant_monitoring" => CmReport::InstantMonitoring(monitoring(v)),
        "average_monitoring" => CmReport::AverageMonitoring(monitoring(v)),
        "log" => CmReport::Log(LogPart {
            log_id: text(&v["log_id"]),
            part_count: number(&v["part_count"]),
            part: number(&v["part"]),
            data: bytes(&v["data"]),
            error: error(&v["error"]),
            status: match v["status"].as_str().unwrap() {
                "ok" => LogStatus::Ok,
                "empty" => LogStatus::Empty,
                "absent" => LogStatus::Absent,
                "error" => LogStatus::Error,
                other => panic!("{other}"),
            },
        }),
        other => panic!("{other}"),
    }
}

/// Our times have milliseconds, the reference's nanoseconds.
fn with_milliseconds(bytes: &[u8]) -> Vec<u8> {
    fn round(time: &mut MessageField<Timestamp>) {
        if let Some(time) = time.as_mut() {
            time.nanos -= time.nanos % 1_000_000;
        }
    }
    fn round_data(data: &mut MessageField<wire::MonitoringData>) {
        round(&mut data.as_mut().unwrap().timestamp);
    }
    let mut message = wire::SMOutgoingMessages::parse_from_bytes(bytes).unwrap();
    match message.SMOutgoingMessage.as_mut().unwrap() {
        SMOutgoingMessage::Alert(alert) => round(&mut alert.timestamp),
        SMOutgoingMessage::InstantMonitoring(sample) => {
            round_data(&mut sample.node_monitoring);
            let instances = sample.instances_monitoring.iter_mut();
            instances.for_each(|i| round_data(&mut i.monitoring_data));
        }
        SMOutgoingMessage::AverageMonitoring(sample) => {
            round_data(&mut sample.node_monitoring);
            let instances = sample.instances_monitoring.iter_mut();
            instances.for_each(|i| round_data(&mut i.monitoring_data));
        }
        _ => {}
    }
    message.write_to_bytes().unwrap()
}

#[test]
fn our_reports_are_the_bytes_of_the_reference() {
    let mut kinds = HashSet::new();
    for recorded in recorded().into_iter().filter(|r| !r.incoming) {
        let encoded = V4::default().encode(report(&recorded)).unwrap();
        assert_eq!(encoded, with_milliseconds(&recorded.bytes), "{}", recorded.name);
        kinds.insert(recorded.kind);
    }
    assert_eq!(kinds.len(), 8, "every report: {kinds:?}");
}

/// Field `number` with this content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(content);
    bytes
}

#[test]
fn messages_from_the_future_are_ignored() {
    let check = |bytes: &[u8], expect: Option<CmCommand>| {
        assert_eq!(V4::default().decode(bytes).unwrap(), expect, "{bytes:?}");
    };
    check(&[], None);
    check(&field(15, b"new"), None);
    check(&[0x78, 0x01], None); // member 15 as a number
    check(&field(11, &field(3, &[])), None); // image content info
    check(&field(12, &[]), None);
    check(&field(1, &[]), Some(CmCommand::GetNodeConfigStatus));
    check(&field(9, &field(15, b"unknown")), Some(CmCommand::GetAverageMonitoring));
    let two = [field(1, &[]), field(9, &[])].concat();
    check(&two, Some(CmCommand::GetAverageMonitoring));
    // A cloud state that does not exist yet.
    check(&field(10, &[0x08, 0x02]), Some(CmCommand::ConnectionStatus { online: false }));
}

#[test]
fn garbage_is_an_error_and_nothing_worse() {
    let check = |bytes: &[u8]| {
        let decoded = V4::default().decode(bytes);
        assert!(matches!(decoded, Err(Error::Malformed { .. })), "{decoded:?}");
    };
    check(&[0xff]);
    check(&[0x22, 0x7f]); // shorter than it says
    check(&field(2, &field(1, &[0xff, 0xfe]))); // no UTF-8
    check(&[0x0f]);
    // Half a message is none: an empty RunInstances would stop everything.
    for recorded in recorded().iter().filter(|r| r.incoming) {
        for cut in 1..recorded.bytes.len() {
            check(&recorded.bytes[..cut]);
        }
    }
}

fn incoming(member: SMIncomingMessage) -> Vec<u8> {
    let message =
        wire::SMIncomingMessages { SMIncomingMessage: Some(member), ..Default::default() };
    message.write_to_bytes().unwrap()
}

fn decoded_run(dialect: V4, request: wire::RunInstances) -> RunRequest {
    let bytes = incoming(SMIncomingMessage::RunInstances(request));
    match dialect.decode(&bytes).unwrap() {
        Some(CmCommand::RunInstances(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn info(service: &str, index: u64, uid: u32, priority: u64) -> wire::InstanceInfo {
    wire::InstanceInfo {
        instance: MessageField::some(common::InstanceIdent {
            service_id: service.to_owned(),
            subject_id: "subject".to_owned(),
            instance: index,
            ..Default::default()
        }),
        uid,
        priority,
        ..Default::default()
    }
}

fn summary(request: &RunRequest) -> String {
    let mut text = String::new();
    for service in &request.services {
        text += &format!("service {} from {}\n", service.key, service.source.url);
    }
    for layer in &request.layers {
        text += &format!("layer {} from {}\n", &layer.digest.hex()[..2], layer.source.url);
    }
    for instance in &request.instances {
        text += &format!("instance {} priority {}\n", instance.ident, instance.priority);
    }
    for rejected in &request.rejected {
        text += &format!("rejected {}: {}\n", name(rejected.ident.as_ref()), rejected.reason);
    }
    text
}

fn check_run(dialect: V4, request: wire::RunInstances, expect: &Expect) {
    expect.assert_eq(&summary(&decoded_run(dialect, request)));
}

#[test]
fn a_bad_instance_does_not_spoil_its_request() {
    let instances = vec![
        wire::InstanceInfo { uid: 5000, ..Default::default() },
        info("", 0, 5000, 0),
        info("root", 0, 0, 0),
        info("good", u64::MAX, u32::MAX, u64::MAX),
    ];
    let request = wire::RunInstances { instances, ..Default::default() };
    check_run(
        V4::default(),
        request.clone(),
        &expect![[r#"
            instance good:subject:18446744073709551615 priority 18446744073709551615
            rejected : instance without identity
            rejected :subject:0: instance without service id
            rejected root:subject:0: uid 0 is not allowed
        "#]],
    );
    check_run(
        V4 { allow_root_uid: true },
        request,
        &expect![[r#"
            instance root:subject:0 priority 0
            instance good:subject:18446744073709551615 priority 18446744073709551615
            rejected : instance without identity
            rejected :subject:0: instance without service id
        "#]],
    );
}

#[test]
fn of_equal_elements_the_last_instance_and_the_first_package_count() {
    let service = |id: &str, version: &str, url: &str| wire::ServiceInfo {
        service_id: id.to_owned(),
        version: version.to_owned(),
        url: url.to_owned(),
        ..Default::default()
    };
    let layer = |digest: String, url: &str| wire::LayerInfo {
        layer_id: "l".to_owned(),
        digest,
        url: url.to_owned(),
        ..Default::default()
    };
    let sha = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let request = wire::RunInstances {
        services: vec![
            service("a", "1.0.0", "first"),
            service("a", "1.0.0", "second"),
            service("a", "2.0.0", "third"),
            service("", "1.0.0", ""),
            service("b", "", ""),
        ],
        layers: vec![
            layer(sha("a"), "first"),
            layer(sha("a"), "second"),
            layer(sha("b"), "third"),
            layer("sha256:../..".to_owned(), ""),
        ],
        instances: vec![
            info("a", 0, 1, 1),
            info("a", 1, 1, 2),
            info("a", 0, 1, 3),
            info("b", 0, 0, 4), // bad, then good
            info("b", 0, 1, 5),
            info("c", 0, 1, 6), // good, then bad
            info("c", 0, 0, 7),
        ],
        ..Default::default()
    };
    check_run(
        V4::default(),
        request,
        &expect![[r#"
            service a 1.0.0 from first
            service a 2.0.0 from third
            layer aa from first
            layer bb from third
            instance a:subject:0 priority 3
            instance a:subject:1 priority 2
            instance b:subject:0 priority 5
            rejected : service without id
            rejected : service b without version
            rejected : layer l: malformed digest "sha256:../.."
            rejected c:subject:0: uid 0 is not allowed
        "#]],
    );
}

#[test]
fn networks_come_as_they_are_listed() {
    let network = |id: &str, ip: &str| wire::NetworkParameters {
        network_id: id.to_owned(),
        ip: ip.to_owned(),
        ..Default::default()
    };
    let networks = vec![network("a", "1"), network("b", "2"), network("a", "3")];
    let message = wire::UpdateNetworks { networks, ..Default::default() };
    let Some(CmCommand::UpdateNetworks(networks)) =
        V4::default().decode(&incoming(SMIncomingMessage::UpdateNetworks(message))).unwrap()
    else {
        panic!("no networks");
    };
    let ips: Vec<_> = networks.iter().map(|n| n.ip.as_str()).collect();
    assert_eq!(ips, ["1", "2", "3"]);
}

#[test]
fn filters_select_what_the_cm_means() {
    let check = |wire: Option<(&str, &str, i64)>,
                 expect: (Option<&str>, Option<&str>, Option<u64>)| {
        let instance_filter = wire.map(|(service, subject, instance)| wire::InstanceFilter {
            service_id: service.to_owned(),
            subject_id: subject.to_owned(),
            instance,
            ..Default::default()
        });
        let request = wire::InstanceLogRequest {
            instance_filter: instance_filter.into(),
            ..Default::default()
        };
        let bytes = incoming(SMIncomingMessage::InstanceLogRequest(request));
        let Some(CmCommand::Log(LogRequest { kind: LogKind::Instance(filter), .. })) =
            V4::default().decode(&bytes).unwrap()
        else {
            panic!("no log request");
        };
        let got = (filter.service_id.as_deref(), filter.subject_id.as_deref(), filter.instance);
        assert_eq!(got, expect);
    };
    check(None, (None, None, None));
    check(Some(("", "", -1)), (None, None, None));
    check(Some(("a", "b", 3)), (Some("a"), Some("b"), Some(3)));
    check(Some(("a", "", 0)), (Some("a"), None, Some(0)));
    check(Some(("a", "", -7)), (Some("a"), None, Some(u64::MAX)));
}

#[test]
fn impossible_times_bound_nothing() {
    let check = |seconds: i64, nanos: i32, expect: Option<i64>| {
        let time = Timestamp { seconds, nanos, ..Default::default() };
        let request =
            wire::SystemLogRequest { from: MessageField::some(time), ..Default::default() };
        let bytes = incoming(SMIncomingMessage::SystemLogRequest(request));
        let Some(CmCommand::Log(request)) = V4::default().decode(&bytes).unwrap() else {
            panic!("no log request");
        };
        assert_eq!((request.from_ms, request.till_ms), (expect, None));
    };
    check(1, 999_999_999, Some(1999));
    check(1, 1_000_000_000, None);
    check(1, -1, None);
    check(0, 0, None);
    check(-5, 0, None);
    check(i64::MAX, 0, Some(i64::MAX));
}

#[test]
fn a_time_to_live_in_the_past_stays_there_and_one_beyond_the_calendar_is_none() {
    let check = |seconds: i64, nanos: i32, expect: Option<i64>| {
        let time = Timestamp { seconds, nanos, ..Default::default() };
        let variable = wire::EnvVarInfo { ttl: MessageField::some(time), ..Default::default() };
        let item = wire::OverrideInstanceEnvVar { variables: vec![variable], ..Default::default() };
        let message = wire::OverrideEnvVars { env_vars: vec![item], ..Default::default() };
        let bytes = incoming(SMIncomingMessage::OverrideEnvVars(message));
        let Some(CmCommand::OverrideEnvVars(items)) = V4::default().decode(&bytes).unwrap() else {
            panic!("no overrides");
        };
        assert_eq!(items[0].variables[0].ttl_ms, expect);
    };
    check(-1, 500_000_000, Some(-500));
    check(i64::MIN, 0, Some(i64::MIN));
    check(253_402_300_799, 999_999_999, Some(253_402_300_799_999));
    check(253_402_300_800, 0, None);
}

fn status(message: String) -> InstanceStatus {
    InstanceStatus {
        ident: super::ident(common::InstanceIdent::default()),
        service_version: Arc::from("1.0.0"),
        state: RunState::Failed,
        error: Some(ErrorInfo::text(message)),
    }
}

fn longest_text(encoded: &[u8]) -> usize {
    let message = wire::SMOutgoingMessages::parse_from_bytes(encoded).unwrap();
    let Some(SMOutgoingMessage::RunInstancesStatus(status)) = message.SMOutgoingMessage else {
        panic!("no status");
    };
    status.instances.iter().map(|i| i.error_info.message.len()).max().unwrap()
}

#[test]
fn texts_are_cut_so_that_the_peer_takes_the_message() {
    let check = |instances: usize, length: usize, expect: usize| {
        let report = CmReport::RunStatus(vec![status("é".repeat(length / 2)); instances]);
        let encoded = V4::default().encode(report).unwrap();
        assert!(encoded.len() <= MESSAGE_LIMIT_BYTES);
        assert_eq!(longest_text(&encoded), expect);
    };
    check(1, 100, 100);
    check(1, 100_000, TEXT_LIMIT_BYTES);
    check(1024, 8000, SHORT_TEXT_LIMIT_BYTES);
}

#[test]
fn what_cannot_be_cut_is_an_error() {
    let part = |size: usize| {
        V4::default().encode(CmReport::Log(LogPart { data: vec![0; size], ..LogPart::default() }))
    };
    assert!(part(MESSAGE_LIMIT_BYTES - 100).is_ok());
    let error = part(MESSAGE_LIMIT_BYTES).unwrap_err();
    assert!(matches!(error, Error::TooLarge { kind: "log part", .. }), "{error}");
}

#[test]
fn only_a_failed_instance_has_an_error() {
    let check = |state: RunState, error: Option<ErrorInfo>, expect: Option<&str>| {
        let status = InstanceStatus { state, error, ..status(String::new()) };
        let wire = instance_status(status, TEXT_LIMIT_BYTES);
        assert_eq!(wire.error_info.as_ref().map(|e| e.message.as_str()), expect);
    };
    check(RunState::Active, Some(ErrorInfo::text("old")), None);
    check(RunState::Inactive, Some(ErrorInfo::text("old")), None);
    check(RunState::Failed, Some(ErrorInfo::text("why")), Some("why"));
    check(RunState::Failed, None, Some(""));
}

#[test]
fn unknown_fields_of_a_newer_cm_survive_the_way_in() {
    let mut message = wire::RunInstances::default();
    message.special_fields.mut_unknown_fields().add_length_delimited(99, b"new".to_vec());
    message.instances.push(info("a", 0, 1, 0));
    let bytes = incoming(SMIncomingMessage::RunInstances(message));
    let parsed = wire::SMIncomingMessages::parse_from_bytes(&bytes).unwrap();
    let unknown = parsed.run_instances().special_fields.unknown_fields().get(99);
    assert!(matches!(unknown, Some(UnknownValueRef::LengthDelimited(b"new"))));
    let Some(CmCommand::RunInstances(request)) = V4::default().decode(&bytes).unwrap() else {
        panic!("no request");
    };
    assert_eq!(request.instances.len(), 1);
}
