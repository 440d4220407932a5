//! Alert rules as node and service configurations of v4 hold them.
//!
//! Pure; any thread. Rules of v3 have other names and units and come with that generation.

use std::time::Duration;

use super::{Error, NumberUnit, Object};
use crate::model::node::{AlertRules, PercentRule, PointsRule};

/// Reads the member `alertRules`; absent = no rules. A rule that would alert for ever (maximum 0
/// or below the minimum) or never fall (a negative minimum) is left out with a warning, as nothing
/// good comes of it.
pub fn alert_rules(document: &Object<'_>, unit: NumberUnit) -> Result<AlertRules, Error> {
    let Some(rules) = document.object("alertRules")? else { return Ok(AlertRules::default()) };
    let percent = |key: &str| -> Result<Option<PercentRule>, Error> {
        rules.object(key)?.map_or(Ok(None), |rule| percent_rule(&rule, unit))
    };
    let points = |key: &str| -> Result<Option<PointsRule>, Error> {
        rules.object(key)?.map_or(Ok(None), |rule| points_rule(&rule, unit))
    };
    let mut partitions = Vec::new();
    for rule in rules.objects("partitions")?.unwrap_or_default() {
        let name = rule.str("name")?.unwrap_or_default().to_owned();
        partitions.extend(percent_rule(&rule, unit)?.map(|rule| (name, rule)));
    }
    Ok(AlertRules {
        ram: percent("ram")?,
        cpu: percent("cpu")?,
        partitions,
        download: points("download")?,
        upload: points("upload")?,
    })
}

fn percent_rule(rule: &Object<'_>, unit: NumberUnit) -> Result<Option<PercentRule>, Error> {
    let read = PercentRule {
        min_timeout: timeout(rule, unit)?,
        min: rule.opt_f64("minThreshold")?.unwrap_or_default(),
        max: rule.opt_f64("maxThreshold")?.unwrap_or_default(),
    };
    let sensible = read.max > 0.0 && (0.0..=read.max).contains(&read.min);
    if !sensible {
        warn_useless(rule);
    }
    Ok(sensible.then_some(read))
}

fn points_rule(rule: &Object<'_>, unit: NumberUnit) -> Result<Option<PointsRule>, Error> {
    let read = PointsRule {
        min_timeout: timeout(rule, unit)?,
        min: rule.opt_u64("minThreshold")?.unwrap_or_default(),
        max: rule.opt_u64("maxThreshold")?.unwrap_or_default(),
    };
    let sensible = read.max > 0 && read.min <= read.max;
    if !sensible {
        warn_useless(rule);
    }
    Ok(sensible.then_some(read))
}

/// A negative one is none, as in the reference.
fn timeout(rule: &Object<'_>, unit: NumberUnit) -> Result<Duration, Error> {
    let ns = rule.duration_ns("minTimeout", unit)?.unwrap_or_default();
    Ok(Duration::from_nanos(u64::try_from(ns).unwrap_or_default()))
}

fn warn_useless(rule: &Object<'_>) {
    log::warn!(
        "alert rule without use is ignored: maximum 0, or minimum negative or above it rule={}",
        rule.path_of("maxThreshold")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<AlertRules, Error> {
        alert_rules(&Object::parse(json).unwrap(), NumberUnit::Seconds)
    }

    #[test]
    fn thresholds_that_make_no_sense() {
        let check = |rule: &str, percent: Option<(f64, f64)>, points: Option<(u64, u64)>| {
            let whole = format!(r#"{{"alertRules": {{"ram": {rule}, "upload": {rule}}}}}"#);
            let of_ram = format!(r#"{{"alertRules": {{"ram": {rule}}}}}"#);
            let ram = read(&of_ram).unwrap().ram.map(|rule| (rule.min, rule.max));
            assert_eq!(ram, percent, "{rule}");
            // Traffic is counted in whole bytes; another number refuses the document, as in Go.
            match read(&whole) {
                Ok(rules) => assert_eq!(rules.upload.map(|r| (r.min, r.max)), points, "{rule}"),
                Err(error) => assert!(error.to_string().contains("Threshold"), "{rule}: {error}"),
            }
        };
        check(r#"{"minThreshold": 1, "maxThreshold": 2}"#, Some((1.0, 2.0)), Some((1, 2)));
        check(r#"{"minThreshold": 2, "maxThreshold": 2}"#, Some((2.0, 2.0)), Some((2, 2)));
        check(r#"{"maxThreshold": 2}"#, Some((0.0, 2.0)), Some((0, 2)));
        check("{}", None, None);
        check(r#"{"minThreshold": 5}"#, None, None);
        check(r#"{"minThreshold": 0, "maxThreshold": 0}"#, None, None);
        check(r#"{"minThreshold": 3, "maxThreshold": 2}"#, None, None);
        check(r#"{"minThreshold": -1, "maxThreshold": 2}"#, None, None);
        check(r#"{"minThreshold": -2, "maxThreshold": -1}"#, None, None);
        check(r#"{"minThreshold": 1, "maxThreshold": 1e300}"#, Some((1.0, 1e300)), None);
        let most = u64::MAX;
        let huge = format!(r#"{{"minThreshold": 1, "maxThreshold": {most}}}"#);
        check(&huge, Some((1.0, most as f64)), Some((1, most)));
    }

    #[test]
    fn timeouts() {
        let check = |timeout: &str, expect: Option<Duration>| {
            let rule = format!(r#"{{"minTimeout": {timeout}, "maxThreshold": 1}}"#);
            let rules = read(&format!(r#"{{"alertRules": {{"cpu": {rule}}}}}"#));
            assert_eq!(rules.ok().and_then(|r| r.cpu).map(|r| r.min_timeout), expect, "{timeout}");
        };
        let seconds = |count| Some(Duration::from_secs(count));
        check("5", seconds(5));
        check("\"1m\"", seconds(60));
        check("\"PT90S\"", seconds(90));
        check("null", seconds(0));
        check("-5", seconds(0));
        check("\"-1h\"", seconds(0));
        check("1e300", None);
        check("\"soon\"", None);
    }
}
