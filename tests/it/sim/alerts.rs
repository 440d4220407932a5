//! Alerts while the CM is away, when it comes back, and in a storm.

use std::time::Duration;

use aos_servicemanager::core::alerts::{BURST, MAX_IN_FLIGHT, MAX_LINES, PACE};
use aos_servicemanager::model::event::{Event, Session};
use aos_servicemanager::model::status::{Alert, AlertPayload, CmReport, QuotaStatus};

use super::unit::Unit;

fn line(number: usize) -> Event {
    let payload = AlertPayload::System { message: number.to_string() };
    Event::Alert(Alert { time_ms: 0, payload })
}

fn quota(value: u64, status: QuotaStatus) -> Event {
    let payload = AlertPayload::SystemQuota { parameter: "ram".to_owned(), value, status };
    Event::Alert(Alert { time_ms: 0, payload })
}

/// Texts of the alerts that have come since the last look; they leave at once.
fn leave(unit: &mut Unit, session: u64) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let new: Vec<CmReport> = unit.reports.drain(..).collect();
        let alerts = new.into_iter().filter_map(|report| match report {
            CmReport::Alert(alert) => Some(alert.payload),
            _ => None,
        });
        let alerts: Vec<AlertPayload> = alerts.collect();
        if alerts.is_empty() {
            return texts;
        }
        assert!(alerts.len() <= MAX_IN_FLIGHT);
        for alert in alerts {
            texts.push(match alert {
                AlertPayload::System { message } | AlertPayload::Core { message, .. } => message,
                AlertPayload::SystemQuota { value, status, .. } => format!("{value} {status:?}"),
                other => panic!("{other:?}"),
            });
            unit.event(Event::AlertSent { session: Session(session) });
        }
    }
}

/// Until no more come.
fn all(unit: &mut Unit, session: u64) -> Vec<String> {
    let mut texts = leave(unit, session);
    while unit.pass(PACE) {
        texts.append(&mut leave(unit, session));
    }
    texts
}

#[test]
fn what_happened_while_the_cm_was_away_is_told_afterwards() {
    let mut unit = Unit::started(1);
    unit.disconnect();
    let surplus = 36;
    (0..MAX_LINES + surplus).for_each(|number| unit.event(line(number)));
    unit.event(quota(91, QuotaStatus::Raise));
    unit.event(quota(92, QuotaStatus::Continue));
    unit.event(quota(93, QuotaStatus::Continue));
    unit.event(quota(9, QuotaStatus::Fall));
    unit.advance(Duration::from_secs(3600));
    assert!(unit.reports.is_empty());
    unit.connect();
    let texts = all(&mut unit, 2);
    let mut expect = vec![format!("{surplus} alerts were dropped")];
    expect.extend((surplus..MAX_LINES + surplus).map(|number| number.to_string()));
    expect.extend(["91 Raise".to_owned(), "9 Fall".to_owned()]);
    assert_eq!(texts, expect);
}

#[test]
fn an_alert_that_did_not_leave_is_sent_again() {
    let mut unit = Unit::started(2);
    (0..3).for_each(|number| unit.event(line(number)));
    assert_eq!(unit.reports.len(), 3);
    unit.event(Event::AlertSent { session: Session(1) });
    unit.disconnect();
    unit.reports.clear();
    unit.connect();
    assert_eq!(all(&mut unit, 2), ["1", "2"]);
}

/// A stream that the CM refuses takes what is written to it and loses it.
#[test]
fn no_alert_leaves_before_the_cm_has_accepted_the_node() {
    let mut unit = Unit::started(4);
    unit.disconnect();
    unit.event(line(0));
    unit.reports.clear();
    unit.open();
    unit.event(line(1));
    assert!(!unit.reports.is_empty(), "it registers");
    assert!(!unit.reports.iter().any(|report| matches!(report, CmReport::Alert(_))));
    unit.disconnect();
    unit.reports.clear();
    unit.open();
    unit.event(Event::CmAccepted { session: Session(2) });
    assert!(leave(&mut unit, 3).is_empty(), "an answer on another stream");
    unit.event(Event::CmAccepted { session: Session(3) });
    assert_eq!(all(&mut unit, 3), ["0", "1"]);
}

#[test]
fn a_storm_is_spread_over_time() {
    let mut unit = Unit::started(3);
    unit.advance(Duration::from_secs(60));
    (0..MAX_LINES).for_each(|number| unit.event(line(number)));
    let first = leave(&mut unit, 1).len();
    assert_eq!(first, BURST as usize);
    let mut later = Vec::new();
    while unit.pass(PACE) {
        later.push(leave(&mut unit, 1).len());
    }
    assert_eq!(later.iter().sum::<usize>(), MAX_LINES - first);
    assert!(later.iter().all(|count| *count <= 1), "{later:?}");
}
