//! Stop of one instance: kill, then remove what it has on this host.
//!
//! Runs on an exec thread, after core has waited for a grace period if there was one. In: id and
//! scope. Out: all errors; none of them ends the work, because every later step is still worth
//! doing and the next sweep finds what is left. The order is that of the start, reversed, with the
//! control group first.

use crate::jobs::Ports;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{StopOutcome, StopScope};

/// Stops an instance; one of which nothing exists is stopped without an error.
pub fn stop(ports: &Ports, id: &InstanceId, scope: StopScope) -> StopOutcome {
    let mut outcome = StopOutcome::default();
    let killed = note(&mut outcome, "kill", ports.runtime.kill(id));
    let deleted = note(&mut outcome, "delete", ports.runtime.delete(id));
    // Either success proves that the control group has no process left.
    outcome.unkillable = !killed && !deleted;
    if scope == StopScope::Container || outcome.unkillable {
        // Nothing is taken away below living processes; a later stop or sweep tries again.
        return outcome;
    }
    note(&mut outcome, "remove bundle", ports.bundles.remove(id));
    note(&mut outcome, "detach network", ports.network.detach(id));
    note(&mut outcome, "close log sink", ports.sinks.close(id));
    outcome
}

/// Keeps the text of a failed step; tells whether it succeeded.
fn note(outcome: &mut StopOutcome, step: &str, result: Result<(), Failure>) -> bool {
    match result {
        Ok(()) => true,
        Err(failure) => {
            outcome.errors.push(format!("{step}: {failure}"));
            false
        }
    }
}
