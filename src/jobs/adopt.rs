//! What an earlier life of the daemon left running: found, and taken over.
//!
//! Runs on an exec thread at start. In: nothing, then one `AdoptPlan` per instance that core wants
//! to keep. Out: every id of which anything exists, with its record; then the pid or the reason
//! why it cannot be kept. Nothing is changed on failure: core stops the instance like any other.

use std::collections::BTreeMap;

use crate::jobs::{Ports, start};
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{AdoptPlan, Found, Record, Started};
use crate::sys::fault;

/// Everything that carries an instance id on this host, each id once, ordered.
pub fn survey(ports: &Ports) -> Vec<Found> {
    let mut found: BTreeMap<InstanceId, Option<Record>> =
        ports.bundles.survey().into_iter().collect();
    let others = [ports.runtime.survey(), ports.network.survey(), ports.sinks.survey()];
    for id in others.into_iter().flatten() {
        found.entry(id).or_default();
    }
    found.into_iter().map(|(id, record)| Found { id, record }).collect()
}

/// Takes over a running instance. Its sink needs no work: the container holds its end, and the
/// capture of the logs finds spools by itself.
pub fn adopt(ports: &Ports, plan: &AdoptPlan) -> Result<Started, Failure> {
    if plan.record.pid == 0 {
        return Err(Failure::text("its start was interrupted"));
    }
    // The container comes last: from then on its exit is reported.
    ports.network.adopt(&start::network_plan(&plan.plan, &ports.bundles.path(&plan.id)))?;
    fault::point("adopting");
    ports.runtime.adopt(&plan.id, &plan.record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fake::{self, Fake};

    #[test]
    fn a_survey_names_each_id_once() {
        let record = fake::plan().record;
        let mut fake = Fake::default();
        fake.bundles = vec![("b", Some(record.clone())), ("d", None)];
        fake.containers = vec!["c", "b"];
        fake.networks = vec!["e", "a", "c"];
        fake.sinks = vec!["b", "f", "a"];
        let (found, _) = fake.run(survey);
        let ids: Vec<&str> = found.iter().map(|found| found.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c", "d", "e", "f"]);
        for found in &found {
            let expect = (found.id.as_str() == "b").then_some(&record);
            assert_eq!(found.record.as_ref(), expect);
        }
        assert!(Fake::default().run(survey).0.is_empty());
    }

    #[test]
    fn adoption_takes_the_container_last() {
        let check = |pid: u32, failing: &[&'static str], calls: &str, expect: bool| {
            let plan = fake::plan();
            let record = Record { pid, ..plan.record.clone() };
            let plan = AdoptPlan { id: plan.id.clone(), record, plan };
            let (result, made) = Fake::failing(failing).run(|ports| adopt(ports, &plan));
            assert_eq!(made, calls, "{failing:?}");
            assert_eq!(result.ok(), expect.then_some(Started { pid, doubt: None }), "{failing:?}");
        };
        check(12, &[], "adopt-network adopt", true);
        check(12, &["adopt-network"], "adopt-network", false);
        check(12, &["adopt"], "adopt-network adopt", false);
        check(0, &[], "", false);
    }
}
