//! What the CM is told, and when: registration, rounds that take long, answers in order.

use std::time::Duration;

use aos_servicemanager::model::command::CmCommand;
use aos_servicemanager::model::event::{Event, Exit, IamEvent, Session};
use aos_servicemanager::model::node::NodeInfo;
use aos_servicemanager::model::status::CmReport;

use super::unit::{Unit, request};

fn running(seed: u64, services: &[(&str, &str)]) -> Unit {
    let mut unit = Unit::started(seed);
    unit.run(request(services));
    unit.settle();
    unit.reports.clear();
    unit
}

#[test]
fn a_hanging_install_does_not_silence_the_others_for_ever() {
    let mut unit = running(1, &[("b", "1")]);
    unit.fetch_up = false;
    unit.run(request(&[("b", "1"), ("c", "1")]));
    unit.settle();
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.settle();
    assert!(unit.reports.is_empty(), "{:?}", unit.reports);
    unit.advance(Duration::from_secs(9 * 60));
    assert_eq!(unit.full_status()["c"], "inactive 1");
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.deltas(), ["b failed(1) 1 exited with code 1", "b active 1"]);
    unit.fetch_up = true;
    unit.settle();
    assert_eq!((unit.full_statuses(), &*unit.full_status()["c"]), (2, "active 1"));
}

#[test]
fn a_registration_gets_its_status_after_thirty_seconds_and_again_when_settled() {
    let mut unit = running(2, &[("a", "1")]);
    unit.kill();
    unit.exec_up = false;
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.full_statuses(), 1);
    assert_eq!(unit.full_status()["a"], "inactive 1");
    unit.exec_up = true;
    unit.settle();
    assert_eq!((unit.full_statuses(), &*unit.full_status()["a"]), (2, "active 1"));
}

#[test]
fn a_full_status_of_a_registration_does_not_end_a_run() {
    let mut unit = running(13, &[("b", "1")]);
    unit.fetch_up = false;
    unit.run(request(&[("b", "1"), ("c", "1")]));
    unit.disconnect();
    unit.connect();
    unit.settle();
    assert_eq!((unit.full_statuses(), &*unit.full_status()["c"]), (1, "inactive 1"));
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.settle();
    assert!(unit.deltas().is_empty(), "{:?}", unit.deltas());
    unit.advance(Duration::from_secs(9 * 60));
    assert_eq!((unit.full_statuses(), &*unit.full_status()["b"]), (2, "active 1"));
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.deltas(), ["b failed(1) 1 exited with code 1", "b active 1"]);
    unit.fetch_up = true;
    unit.settle();
    assert_eq!((unit.full_statuses(), &*unit.full_status()["c"]), (3, "active 1"));
    unit.host.exit(&unit.id_of("b"), Exit::Code(1));
    unit.settle();
    assert_eq!(unit.deltas().len(), 4);
}

#[test]
fn a_request_does_not_put_off_the_status_of_a_registration() {
    let mut unit = running(14, &[("a", "1")]);
    unit.kill();
    unit.exec_up = false;
    unit.boot();
    unit.connect();
    while unit.step() {}
    unit.advance(Duration::from_secs(20));
    unit.run(request(&[("a", "1"), ("b", "1")]));
    while unit.step() {}
    unit.advance(Duration::from_secs(9));
    assert_eq!(unit.full_statuses(), 0);
    unit.advance(Duration::from_secs(1));
    assert_eq!((unit.full_statuses(), &*unit.full_status()["a"]), (1, "inactive 1"));
    unit.exec_up = true;
    unit.settle();
    assert_eq!((unit.full_statuses(), &*unit.full_status()["b"]), (2, "active 1"));
}

#[test]
fn nothing_is_sent_before_the_node_is_known() {
    let mut unit = Unit::new(3);
    unit.iam_up = false;
    unit.boot();
    unit.connect();
    unit.settle();
    assert!(unit.reports.is_empty());
    let node = NodeInfo { node_id: "n".into(), ..NodeInfo::default() };
    unit.event(Event::Iam(IamEvent::NodeInfo(node)));
    assert!(matches!(unit.reports[..], [CmReport::NodeConfigStatus(_), CmReport::RunStatus(_)]));
}

#[test]
fn a_node_that_becomes_another_one_registers_anew() {
    let mut unit = Unit::started(12);
    let mut tell = |id: &str, node_type: &str, max_dmips: u64| {
        let (node_id, node_type) = (id.into(), node_type.into());
        let node = NodeInfo { node_id, node_type, max_dmips, ..NodeInfo::default() };
        unit.event(Event::Iam(IamEvent::NodeInfo(node)));
        std::mem::take(&mut unit.new_streams)
    };
    assert_eq!(tell("node", "main", 7), 0, "nothing that a registration tells");
    assert_eq!(tell("other", "main", 7), 1);
    assert_eq!(tell("other", "main", 7), 0);
    assert_eq!(tell("other", "secondary", 7), 1);
    unit.disconnect();
    unit.event(Event::Iam(IamEvent::NodeInfo(NodeInfo::default())));
    assert_eq!(unit.new_streams, 0, "there is no stream");
}

#[test]
fn a_known_node_registers_without_iam() {
    let mut unit = running(4, &[("a", "1")]);
    unit.iam_up = false;
    unit.boot();
    unit.connect();
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 1");
}

/// Version and error of all configuration answers.
fn answers(unit: &Unit) -> Vec<String> {
    let text = |report: &CmReport| match report {
        CmReport::NodeConfigStatus(status) => {
            let error = status.error.as_ref().map_or("ok", |e| e.message.as_str());
            Some(format!("{}{error}", status.version))
        }
        _ => None,
    };
    unit.reports.iter().filter_map(text).collect()
}

fn set(version: &str) -> CmCommand {
    CmCommand::SetNodeConfig { json: r#"{"version":"0"}"#.into(), version: version.into() }
}

#[test]
fn configuration_requests_are_answered_in_order_and_once() {
    let mut unit = Unit::started(5);
    unit.command(set("1.0.0"));
    unit.command(CmCommand::GetNodeConfigStatus);
    let json = String::from("{");
    unit.command(CmCommand::CheckNodeConfig { json: json.clone(), version: "2".into() });
    unit.command(CmCommand::SetNodeConfig { json, version: "2".into() });
    unit.command(CmCommand::GetNodeConfigStatus);
    unit.refuses_config = true;
    unit.command(set("3.0.0"));
    unit.command(CmCommand::GetNodeConfigStatus);
    let got = answers(&unit);
    assert_eq!(got.len(), 7, "{got:?}");
    assert_eq!((&*got[0], &*got[1], &*got[4]), ("ok", "1.0.0ok", "1.0.0ok"));
    assert!(got[2] != "ok" && got[2] == got[3], "{got:?}");
    assert_eq!((&*got[5], &*got[6]), ("not valid", "1.0.0ok"));
}

#[test]
fn an_answer_belongs_to_the_stream_that_asked() {
    let mut unit = Unit::started(6);
    unit.disconnect();
    unit.reports.clear();
    unit.command(CmCommand::GetNodeConfigStatus);
    unit.connect();
    assert_eq!(answers(&unit), ["0.0.0ok"], "the registration alone");
    unit.reports.clear();
    unit.event(Event::Cm { session: Session(1), command: set("9") });
    assert!(answers(&unit).is_empty());
    assert_eq!(unit.node_config.version, "0.0.0");
}

#[test]
fn a_stop_still_answers_but_tells_nothing_of_what_it_stops() {
    let mut unit = running(7, &[("a", "1")]);
    unit.exec_up = false;
    unit.event(Event::Stop);
    unit.command(CmCommand::GetNodeConfigStatus);
    assert_eq!(answers(&unit), ["0.0.0ok"]);
    unit.exec_up = true;
    while unit.step() {}
    assert!(unit.deltas().is_empty() && unit.full_statuses() == 0);
}

#[test]
fn refused_elements_are_failed_unless_named_properly_too() {
    use aos_servicemanager::model::desired::Rejected;
    let mut unit = Unit::started(8);
    let mut wanted = request(&[("a", "1")]);
    for name in ["a", "x"] {
        let ident = Some(super::unit::instance(name).ident);
        wanted.rejected.push(Rejected { ident, reason: "uid 0".into() });
    }
    unit.run(wanted);
    unit.settle();
    let status = unit.full_status();
    assert_eq!((&*status["a"], &*status["x"]), ("active 1", "failed  uid 0"));
    // Also in the next life, until the next request.
    unit.boot();
    unit.connect();
    unit.settle();
    let status = unit.full_status();
    assert_eq!((&*status["a"], &*status["x"]), ("active 1", "failed  uid 0"));
    unit.policy.max_instances = 1;
    unit.boot();
    unit.connect();
    unit.run(request(&[("a", "1"), ("y", "1")]));
    unit.settle();
    unit.boot();
    unit.connect();
    unit.settle();
    let status = unit.full_status();
    assert_eq!((status.len(), &*status["y"]), (2, "failed  more than 1 instances"));
    unit.run(request(&[("a", "1")]));
    assert!(unit.rows.refused.is_empty());
}

#[test]
fn alerts_wait_for_the_cm_and_tell_how_many_were_lost() {
    use aos_servicemanager::model::status::{Alert, AlertPayload};
    let mut unit = Unit::started(9);
    unit.disconnect();
    for i in 0..100 {
        let payload = AlertPayload::System { message: i.to_string() };
        unit.event(Event::Alert(Alert { time_ms: 0, payload }));
    }
    unit.reports.clear();
    unit.connect();
    let alerts = unit.reports.iter().filter(|r| matches!(r, CmReport::Alert(_))).count();
    assert_eq!(alerts, 8, "no more are with the sender");
    assert!(format!("{:?}", unit.reports).contains("36 alerts were dropped"));
    unit.event(Event::AlertSent { session: Session(2) });
    let alerts = unit.reports.iter().filter(|r| matches!(r, CmReport::Alert(_))).count();
    assert_eq!(alerts, 9);
}

#[test]
fn an_old_version_is_not_reported_as_the_new_one() {
    let mut unit = running(10, &[("a", "1")]);
    unit.fetch_up = false;
    unit.run(request(&[("a", "2")]));
    unit.advance(Duration::from_secs(9 * 60));
    assert_eq!(unit.full_status()["a"], "active 1");
    unit.fetch_up = true;
    unit.settle();
    assert_eq!(unit.full_status()["a"], "active 2");
}

#[test]
fn the_position_of_alerts_is_stored_when_they_have_reached_the_cm() {
    use aos_servicemanager::model::status::{Alert, AlertPayload};
    let mut unit = Unit::started(11);
    let line = |unit: &mut Unit, text: &str| {
        let payload = AlertPayload::System { message: text.to_owned() };
        unit.event(Event::Alert(Alert { time_ms: 0, payload }));
        unit.event(Event::AlertPosition(text.into()));
    };
    let stored = |unit: &Unit| unit.rows.alert_position.as_deref().map(str::to_owned);
    let minute = Duration::from_secs(60);
    unit.disconnect();
    unit.advance(minute);
    line(&mut unit, "one");
    unit.advance(minute);
    assert_eq!(stored(&unit), None, "its alert is in memory alone");
    unit.connect();
    assert_eq!(stored(&unit), None, "it is on its way");
    unit.event(Event::AlertSent { session: Session(2) });
    assert_eq!(stored(&unit).as_deref(), Some("one"));
    // At most once a minute.
    line(&mut unit, "two");
    unit.event(Event::AlertSent { session: Session(2) });
    unit.advance(minute - Duration::from_secs(1));
    assert_eq!(stored(&unit).as_deref(), Some("one"));
    unit.advance(Duration::from_secs(1));
    assert_eq!(stored(&unit).as_deref(), Some("two"));
    // And at the end.
    unit.event(Event::AlertPosition("three".into()));
    unit.event(Event::Stop);
    assert_eq!(stored(&unit).as_deref(), Some("three"));
}
