//! Containers that run without a row: what an earlier life left when its database is lost.
//!
//! Runs on core. The record of a running instance says who it is. With an empty database the first
//! request is waited for: what it names gets its old id back and is adopted like any other, so
//! that a damaged file costs no service its running instances; the rest goes. Not here: the images,
//! which are found again by what lies beside them (`package`).

use std::collections::BTreeMap;

use crate::core::instance::{Instance, Phase};
use crate::core::state::{Orphan, State};
use crate::model::desired::DesiredInstance;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::job::Record;
use crate::model::store::{Change, Snapshot, StoredInstance};

/// Instances of which there is a record and no row.
#[derive(Debug)]
pub struct Nameless {
    /// The database was empty at start, so rows may be missing.
    possible: bool,
    found: BTreeMap<InstanceIdent, (InstanceId, Box<Record>)>,
}

impl Nameless {
    pub(crate) fn new(stored: &Snapshot) -> Self {
        let possible = stored.services.is_empty()
            && stored.layers.is_empty()
            && stored.wanted.is_empty()
            && stored.instances.is_empty();
        Self { possible, found: BTreeMap::new() }
    }

    /// Nothing waits for a request.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

impl State {
    /// Of what the survey found without a row: `None` = it stays for now, else it has to go.
    pub(crate) fn keep_nameless(
        &mut self,
        id: &InstanceId,
        record: Option<Record>,
    ) -> Option<Option<Record>> {
        let Some(record) = record else { return Some(None) };
        if !self.nameless.possible || self.nameless.found.contains_key(&record.ident) {
            return Some(Some(record));
        }
        if self.packages.is_unclaimed() {
            log::info!("found without a row instance={id} ident={}", record.ident);
            self.nameless.found.insert(record.ident.clone(), (id.clone(), Box::new(record)));
            return None;
        }
        // The request was faster than the survey; nothing has started yet.
        let Some(instance) =
            self.by_ident.get(&record.ident).and_then(|new_id| self.instances.remove(new_id))
        else {
            return Some(Some(record));
        };
        self.changes.push(Change::RemoveInstance(instance.id));
        self.nameless.found.insert(record.ident.clone(), (id.clone(), Box::new(record)));
        if let Some(instance) = self.take_nameless(&instance.desired) {
            self.instances.insert(id.clone(), instance);
        }
        None
    }

    /// What was found of an instance that a request names, with its old id.
    pub(crate) fn take_nameless(&mut self, desired: &DesiredInstance) -> Option<Instance> {
        let (id, record) = self.nameless.found.remove(&desired.ident)?;
        log::info!("taken over by its record instance={id} ident={}", desired.ident);
        let row = StoredInstance { id: id.clone(), instance: desired.clone() };
        self.changes.push(Change::PutInstance(row));
        self.by_ident.insert(desired.ident.clone(), id.clone());
        Some(Instance {
            registered: !record.secret_hash.is_empty(),
            left: Some(record.service()),
            phase: Phase::Found(record),
            ..Instance::new(id, desired.clone())
        })
    }

    /// What no request has named is removed.
    pub(crate) fn give_up_nameless(&mut self) {
        for (ident, (id, record)) in std::mem::take(&mut self.nameless.found) {
            let service = Some(record.service());
            if !record.secret_hash.is_empty() && !self.by_ident.contains_key(&ident) {
                self.leaves_iam(id.clone(), ident);
            }
            self.orphans.insert(id, Orphan { service, ..Orphan::default() });
        }
    }
}
