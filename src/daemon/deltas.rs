//! Delta statuses that found no place in the queue of cm-tx: merged, the newest of each instance.
//!
//! Runs on core. In: what core wanted to send. Out: one message for all of them. Bounded by the
//! number of instances; a new stream or a full status makes all of it useless.

use std::collections::BTreeMap;

use crate::model::event::Session;
use crate::model::id::InstanceIdent;
use crate::model::status::InstanceStatus;

/// What waits, and for which stream.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    session: Session,
    waiting: BTreeMap<InstanceIdent, InstanceStatus>,
}

impl Deltas {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds newer statuses; those for an older stream are forgotten.
    pub(super) fn merge(&mut self, session: Session, statuses: Vec<InstanceStatus>) {
        if session != self.session {
            self.waiting.clear();
            self.session = session;
        }
        self.waiting.extend(statuses.into_iter().map(|status| (status.ident.clone(), status)));
    }

    /// A full status says all of it and more.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// All that waits; `None` = nothing.
    pub(super) fn take(&mut self) -> Option<(Session, Vec<InstanceStatus>)> {
        let waiting = std::mem::take(&mut self.waiting);
        (!waiting.is_empty()).then(|| (self.session, waiting.into_values().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{ServiceId, SubjectId};
    use crate::model::status::RunState::{self, Active, Failed};

    fn status(service: &str, state: RunState) -> InstanceStatus {
        let ident = InstanceIdent {
            service_id: ServiceId::new(service),
            subject_id: SubjectId::new("s"),
            instance: 0,
        };
        InstanceStatus { ident, service_version: "1".into(), state, error: None }
    }

    #[test]
    fn the_newest_of_each_instance_for_the_newest_stream() {
        let mut deltas = Deltas::default();
        assert_eq!(deltas.take(), None);
        deltas.merge(Session(1), vec![status("x", Failed)]);
        deltas.merge(Session(2), vec![status("a", Failed), status("b", Failed)]);
        deltas.merge(Session(2), vec![status("a", Active)]);
        let expect = vec![status("a", Active), status("b", Failed)];
        assert_eq!(deltas.take(), Some((Session(2), expect)));
        assert!(deltas.is_empty());
        deltas.merge(Session(2), vec![status("a", Active)]);
        deltas.forget();
        assert_eq!(deltas.take(), None);
    }
}
