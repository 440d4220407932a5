//! Stop of one instance: kill, then remove what it has on this host.
//!
//! Runs on an exec thread, after core has waited for a grace period if there was one. In: id and
//! scope. Out: all errors. Only processes that survive end the work; after any other error every
//! later step is still worth doing, and the next sweep finds what is left. The order is that of the
//! start, reversed, with the control group first.

use crate::jobs::Ports;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{StopOutcome, StopScope};
use crate::sys::fault;

/// Stops an instance; one of which nothing exists is stopped without an error.
pub fn stop(ports: &Ports, id: &InstanceId, scope: StopScope) -> StopOutcome {
    let mut outcome = StopOutcome::default();
    let killed = note(&mut outcome, "kill", kill(ports, id));
    let deleted = note(&mut outcome, "delete", ports.runtime.delete(id));
    // Either success proves that the control group has no process left.
    outcome.unkillable = !killed && !deleted;
    if scope == StopScope::Container || outcome.unkillable {
        // Nothing is taken away below living processes; a later stop or sweep tries again.
        return outcome;
    }
    note(&mut outcome, "detach network", ports.network.detach(id));
    note(&mut outcome, "close log sink", ports.sinks.close(id));
    // Last: by its bundle the next life knows that there is something to stop.
    note(&mut outcome, "remove bundle", ports.bundles.remove(id));
    outcome
}

/// Kills one instance.
pub(crate) fn kill(ports: &Ports, id: &InstanceId) -> Result<(), Failure> {
    ports.runtime.kill(std::slice::from_ref(id)).remove(id).map_or(Ok(()), Err)
}

/// Keeps the text of a failed step; tells whether it succeeded.
fn note(outcome: &mut StopOutcome, step: &str, result: Result<(), Failure>) -> bool {
    fault::point("stop step");
    match result {
        Ok(()) => true,
        Err(failure) => {
            outcome.errors.push(format!("{step}: {failure}"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fake::{self, Fake};

    fn check(scope: StopScope, failing: &[&'static str], calls: &str, unkillable: bool) {
        let id = fake::plan().id;
        let (outcome, made) = Fake::failing(failing).run(|ports| stop(ports, &id, scope));
        assert_eq!(made, calls, "{failing:?}");
        assert_eq!(outcome.unkillable, unkillable, "{failing:?}");
        assert_eq!(outcome.errors.len(), failing.len(), "{:?}", outcome.errors);
        for (error, call) in outcome.errors.iter().zip(failing) {
            assert!(error.ends_with(&format!("{call} failed")), "{error}");
        }
    }

    #[test]
    fn everything_goes_on_after_errors() {
        let check = |failing: &[&'static str]| {
            let calls = "kill delete detach close remove";
            check(StopScope::Everything, failing, calls, false);
        };
        check(&[]);
        for one in ["kill", "delete", "detach", "close", "remove"] {
            check(&[one]);
        }
        check(&["kill", "detach", "close", "remove"]);
        check(&["delete", "detach", "close", "remove"]);
    }

    #[test]
    fn nothing_is_taken_away_below_living_processes() {
        check(StopScope::Everything, &["kill", "delete"], "kill delete", true);
    }

    #[test]
    fn a_container_goes_alone() {
        check(StopScope::Container, &[], "kill delete", false);
        check(StopScope::Container, &["kill"], "kill delete", false);
        check(StopScope::Container, &["kill", "delete"], "kill delete", true);
    }
}
