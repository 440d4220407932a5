//! Alert rules as node and service configurations of v4 hold them.
//!
//! Pure; any thread. Rules of v3 have other names and units and come with that generation.

use super::{Error, NumberUnit, Object};
use crate::model::node::{AlertRules, PercentRule, PointsRule};

/// Reads the member `alertRules`; absent = no rules. A rule that would alert for ever (maximum 0
/// or below the minimum) is left out with a warning, as nothing good comes of it.
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
        min_timeout: rule.duration("minTimeout", unit)?.unwrap_or_default(),
        min: rule.opt_f64("minThreshold")?.unwrap_or_default(),
        max: rule.opt_f64("maxThreshold")?.unwrap_or_default(),
    };
    let sensible = read.max > 0.0 && read.min <= read.max;
    if !sensible {
        warn_useless(rule);
    }
    Ok(sensible.then_some(read))
}

fn points_rule(rule: &Object<'_>, unit: NumberUnit) -> Result<Option<PointsRule>, Error> {
    let read = PointsRule {
        min_timeout: rule.duration("minTimeout", unit)?.unwrap_or_default(),
        min: rule.opt_u64("minThreshold")?.unwrap_or_default(),
        max: rule.opt_u64("maxThreshold")?.unwrap_or_default(),
    };
    let sensible = read.max > 0 && read.min <= read.max;
    if !sensible {
        warn_useless(rule);
    }
    Ok(sensible.then_some(read))
}

fn warn_useless(rule: &Object<'_>) {
    log::warn!(
        "alert rule without use is ignored: maximum 0 or below minimum rule={}",
        rule.path_of("maxThreshold")
    );
}
