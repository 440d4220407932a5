//! Messages as text: one line that says what it is, and lines with the details.

use std::io::Read;

use aos_servicemanager::cm::wire::v4::{common, servicemanager as wire};
use flate2::read::MultiGzDecoder;
use protobuf::MessageField;
use wire::alert::AlertItem;
use wire::smincoming_messages::SMIncomingMessage as In;
use wire::smoutgoing_messages::SMOutgoingMessage as Out;

/// Longest text of a log part that is shown, in bytes.
const MAX_LOG_TEXT: u64 = 1 << 20;

/// A message for the reader.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text {
    pub summary: String,
    pub details: Vec<String>,
}

impl Text {
    fn line(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), details: Vec::new() }
    }
}

/// A message from the service manager.
pub fn outgoing(message: &wire::SMOutgoingMessages) -> Text {
    match &message.SMOutgoingMessage {
        None => Text::line("a message without content"),
        Some(Out::NodeConfigStatus(status)) => Text::line(format!(
            "node config status: node {} type {} version {}{}",
            status.node_id,
            status.node_type,
            status.version,
            error(&status.error)
        )),
        Some(Out::RunInstancesStatus(status)) => statuses("full status", &status.instances),
        Some(Out::UpdateInstancesStatus(status)) => statuses("status update", &status.instances),
        Some(Out::OverrideEnvVarStatus(status)) => env_status(status),
        Some(Out::Log(log)) => log_part(log),
        Some(Out::InstantMonitoring(m)) => {
            monitoring("monitoring", &m.node_monitoring, &m.instances_monitoring)
        }
        Some(Out::AverageMonitoring(m)) => {
            monitoring("average monitoring", &m.node_monitoring, &m.instances_monitoring)
        }
        Some(Out::Alert(message)) => alert(message),
        Some(other) => Text::line(format!("{other:?}")),
    }
}

/// A message to the service manager.
pub fn incoming(message: &In) -> Text {
    match message {
        In::GetNodeConfigStatus(_) => Text::line("get node config status"),
        In::CheckNodeConfig(m) => config("check node config", &m.version, &m.node_config),
        In::SetNodeConfig(m) => config("set node config", &m.version, &m.node_config),
        In::RunInstances(m) => run_instances(m),
        In::UpdateNetworks(m) => Text {
            summary: format!("update networks: {}", m.networks.len()),
            details: m.networks.iter().map(network).collect(),
        },
        In::OverrideEnvVars(m) => Text {
            summary: format!("override env vars: {} items", m.env_vars.len()),
            details: m
                .env_vars
                .iter()
                .flat_map(|item| {
                    let who = filter(&item.instance_filter);
                    item.variables.iter().map(move |v| format!("{who} {}={}", v.name, v.value))
                })
                .collect(),
        },
        In::SystemLogRequest(m) => Text::line(format!("system log request {}", m.log_id)),
        In::InstanceLogRequest(m) => Text::line(format!(
            "instance log request {} for {}",
            m.log_id,
            filter(&m.instance_filter)
        )),
        In::InstanceCrashLogRequest(m) => {
            Text::line(format!("crash log request {} for {}", m.log_id, filter(&m.instance_filter)))
        }
        In::GetAverageMonitoring(_) => Text::line("get average monitoring"),
        In::ConnectionStatus(m) => {
            Text::line(format!("connection status: {:?}", m.cloud_status.enum_value_or_default()))
        }
        other => Text::line(format!("{other:?}")),
    }
}

/// `service/subject/index`.
pub fn ident(instance: &MessageField<common::InstanceIdent>) -> String {
    match instance.as_ref() {
        Some(i) => format!("{}/{}/{}", i.service_id, i.subject_id, i.instance),
        None => "(no ident)".to_owned(),
    }
}

/// ` error: …`, or nothing.
fn error(error: &MessageField<common::ErrorInfo>) -> String {
    let Some(e) = error.as_ref() else { return String::new() };
    let mut text = format!(" error: {}", e.message);
    if e.exit_code != 0 {
        text += &format!(" (exit code {})", e.exit_code);
    }
    if e.aos_code != 0 {
        text += &format!(" (aos code {})", e.aos_code);
    }
    text
}

fn statuses(what: &str, instances: &[wire::InstanceStatus]) -> Text {
    Text {
        summary: format!("{what}: {} instances", instances.len()),
        details: instances
            .iter()
            .map(|s| {
                let (who, failure) = (ident(&s.instance), error(&s.error_info));
                format!("{who} version {} {}{failure}", s.service_version, s.run_state)
            })
            .collect(),
    }
}

fn env_status(status: &wire::OverrideEnvVarStatus) -> Text {
    let mut details = Vec::new();
    for item in &status.env_vars_status {
        let who = filter(&item.instance_filter);
        for variable in &item.statuses {
            let result =
                if variable.error.is_some() { error(&variable.error) } else { " ok".into() };
            details.push(format!("{who} {}{result}", variable.name));
        }
    }
    Text { summary: format!("override env var status{}", error(&status.error)), details }
}

fn log_part(log: &wire::LogData) -> Text {
    let summary = format!(
        "log {} part {}/{} status {} {} bytes{}",
        log.log_id,
        log.part,
        log.part_count,
        if log.status.is_empty() { "(none)" } else { &log.status },
        log.data.len(),
        error(&log.error)
    );
    let mut bytes = Vec::new();
    let mut details = Vec::new();
    let unpacked = MultiGzDecoder::new(log.data.as_slice()).take(MAX_LOG_TEXT);
    if !log.data.is_empty()
        && let Err(e) = { unpacked }.read_to_end(&mut bytes)
    {
        details.push(format!("(not gzip: {e})"));
    }
    details.extend(String::from_utf8_lossy(&bytes).lines().map(str::to_owned));
    Text { summary, details }
}

fn monitoring(
    what: &str,
    node: &MessageField<wire::MonitoringData>,
    instances: &[wire::InstanceMonitoring],
) -> Text {
    let figures = |data: &MessageField<wire::MonitoringData>| {
        let Some(data) = data.as_ref() else { return "no data".to_owned() };
        let mut text = format!(
            "ram {} cpu {} DMIPS download {} upload {}",
            data.ram, data.cpu, data.download, data.upload
        );
        for partition in &data.partitions {
            text += &format!(" {} {}", partition.name, partition.used_size);
        }
        text
    };
    Text {
        summary: format!("{what}: node {}", figures(node)),
        details: instances
            .iter()
            .map(|i| format!("{} {}", ident(&i.instance), figures(&i.monitoring_data)))
            .collect(),
    }
}

fn alert(alert: &wire::Alert) -> Text {
    let content = match &alert.AlertItem {
        None => "without content".to_owned(),
        Some(AlertItem::SystemQuotaAlert(a)) => {
            format!("{} {} {}", a.parameter, a.value, a.status)
        }
        Some(AlertItem::InstanceQuotaAlert(a)) => {
            format!("{} {} {} {}", ident(&a.instance), a.parameter, a.value, a.status)
        }
        Some(AlertItem::ResourceValidateAlert(a)) => {
            let errors: Vec<_> = a.errors.iter().map(|e| e.message.as_str()).collect();
            format!("{}: {}", a.name, errors.join("; "))
        }
        Some(AlertItem::DeviceAllocateAlert(a)) => {
            format!("{} {}: {}", ident(&a.instance), a.device, a.message)
        }
        Some(AlertItem::SystemAlert(a)) => a.message.clone(),
        Some(AlertItem::CoreAlert(a)) => format!("{}: {}", a.core_component, a.message),
        Some(AlertItem::InstanceAlert(a)) => {
            format!("{} version {}: {}", ident(&a.instance), a.service_version, a.message)
        }
        Some(other) => format!("{other:?}"),
    };
    Text::line(format!("{}: {content}", if alert.tag.is_empty() { "alert" } else { &alert.tag }))
}

fn config(what: &str, version: &str, text: &str) -> Text {
    let details = text.lines().map(str::to_owned).collect();
    Text { summary: format!("{what} version {version}"), details }
}

fn run_instances(m: &wire::RunInstances) -> Text {
    let mut details = Vec::new();
    for s in &m.services {
        details.push(format!("service {} {} {}", s.service_id, s.version, s.url));
    }
    for l in &m.layers {
        details.push(format!("layer {} {} {}", l.layer_id, l.version, l.url));
    }
    for i in &m.instances {
        let ip = i.network_parameters.as_ref().map_or("", |n| n.ip.as_str());
        let ip = if ip.is_empty() { "none" } else { ip };
        details.push(format!(
            "instance {} uid {} priority {} address {ip}",
            ident(&i.instance),
            i.uid,
            i.priority
        ));
    }
    let force = if m.force_restart { ", restart all" } else { "" };
    Text {
        summary: format!(
            "run instances: {} services, {} layers, {} instances{force}",
            m.services.len(),
            m.layers.len(),
            m.instances.len()
        ),
        details,
    }
}

fn network(n: &wire::NetworkParameters) -> String {
    let vlan = if n.vlan_id == 0 { String::new() } else { format!(" vlan {}", n.vlan_id) };
    format!("{} subnet {} node address {}{vlan}", n.network_id, n.subnet, n.ip)
}

fn filter(filter: &MessageField<wire::InstanceFilter>) -> String {
    let Some(f) = filter.as_ref() else { return "any".to_owned() };
    let part = |text: &str| if text.is_empty() { "*".to_owned() } else { text.to_owned() };
    let index = if f.instance < 0 { "*".to_owned() } else { f.instance.to_string() };
    format!("{}/{}/{index}", part(&f.service_id), part(&f.subject_id))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn out(message: Out) -> Text {
        let mut outer = wire::SMOutgoingMessages::new();
        outer.SMOutgoingMessage = Some(message);
        outgoing(&outer)
    }

    fn instance() -> MessageField<common::InstanceIdent> {
        let mut ident = common::InstanceIdent::new();
        ident.service_id = "web".into();
        ident.subject_id = "user".into();
        ident.instance = 2;
        Some(ident).into()
    }

    #[test]
    fn a_failed_instance_says_why() {
        let mut failure = common::ErrorInfo::new();
        failure.message = "killed".into();
        failure.exit_code = 137;
        let mut status = wire::InstanceStatus::new();
        status.instance = instance();
        status.service_version = "1.2.3".into();
        status.run_state = "failed".into();
        status.error_info = Some(failure).into();
        let mut message = wire::UpdateInstancesStatus::new();
        message.instances.push(status);
        let text = out(Out::UpdateInstancesStatus(message));
        assert_eq!(text.summary, "status update: 1 instances");
        assert_eq!(text.details, ["web/user/2 version 1.2.3 failed error: killed (exit code 137)"]);
    }

    #[test]
    fn a_log_part_is_unpacked() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(b"one\ntwo\xff\n").unwrap();
        let mut log = wire::LogData::new();
        log.log_id = "7".into();
        log.part = 1;
        log.part_count = 2;
        log.status = "ok".into();
        log.data = encoder.finish().unwrap();
        let text = out(Out::Log(log.clone()));
        assert_eq!(text.summary, format!("log 7 part 1/2 status ok {} bytes", log.data.len()));
        assert_eq!(text.details, ["one", "two\u{fffd}"]);
        log.data = b"plain".to_vec();
        assert!(out(Out::Log(log)).details[0].starts_with("(not gzip"));
    }

    #[test]
    fn nothing_is_hidden() {
        assert_eq!(outgoing(&wire::SMOutgoingMessages::new()).summary, "a message without content");
        let mut content = wire::Alert::new();
        assert_eq!(out(Out::Alert(content.clone())).summary, "alert: without content");
        content.tag = "coreAlert".into();
        let mut core = wire::CoreAlert::new();
        core.core_component = "aos-servicemanager".into();
        core.message = "boo".into();
        content.AlertItem = Some(AlertItem::CoreAlert(core));
        assert_eq!(out(Out::Alert(content)).summary, "coreAlert: aos-servicemanager: boo");
        let filtered = |service: &str, index| {
            let mut f = wire::InstanceFilter::new();
            f.service_id = service.into();
            f.instance = index;
            filter(&Some(f).into())
        };
        assert_eq!(filtered("", -1), "*/*/*");
        assert_eq!(filtered("web", 0), "web/*/0");
    }
}
