//! Secrets from IAM: registrations asked for, compared, given back (R16).
//!
//! IAM knows an instance by its ident, keeps registrations in memory only and answers a second
//! registration with the secret and the permissions of the first. So a removal always goes out
//! before the next registration of the same ident, and each question has a number: the answer to
//! an older one is not taken for the answer to the newest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::Effect;
use crate::core::inputs::secret_hash;
use crate::core::instance::{Goal, Instance, Phase, Secret};
use crate::core::state::{State, Survey};
use crate::model::event::IamCommand;
use crate::model::failure::Failure;
use crate::model::id::{InstanceId, InstanceIdent};
use crate::model::job::{Permissions, Record, StartKind};
use crate::model::status::ErrorInfo;
use crate::model::store::Change;
use crate::ports::Now;

/// An IAM that is up but does not answer a registration holds a full status no longer than this:
/// two calls at their deadline.
pub(crate) const IAM_PATIENCE: Duration = Duration::from_secs(20);

/// What is left at IAM of an instance that is not wanted any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    pub id: InstanceId,
    /// Number of the removal that IAM was asked for.
    pub ask: Option<u64>,
    /// IAM was not reached; asked again when it comes back.
    pub gave_up: bool,
}

impl Leaving {
    /// What an earlier life left.
    pub(crate) fn of(rows: Vec<(InstanceId, InstanceIdent)>) -> BTreeMap<InstanceIdent, Self> {
        let entry = |(id, ident)| (ident, Self { id, ask: None, gave_up: false });
        rows.into_iter().map(entry).collect()
    }

    pub(crate) fn ask_again(&mut self) {
        self.gave_up = false;
    }

    fn is_due(&self) -> bool {
        self.ask.is_none() && !self.gave_up
    }
}

impl State {
    /// IAM may have restarted: ask again and compare.
    pub(crate) fn secrets_lost(&mut self) {
        for instance in self.instances.values_mut() {
            if matches!(instance.secret, Secret::Known(_)) {
                let hash = instance.secret.in_use_hash();
                let in_use = instance.holds_container();
                instance.secret = if in_use { Secret::Adopted { hash } } else { Secret::None };
            }
        }
    }

    pub(crate) fn recheck_adopted_secrets(&mut self) {
        for instance in self.instances.values_mut() {
            if let Secret::Adopted { hash } = &instance.secret {
                instance.secret = Secret::Recheck { in_use_hash: hash.clone() };
            }
        }
    }

    /// The answer to question number `ask`.
    pub(crate) fn registered(
        &mut self,
        id: &InstanceId,
        ask: u64,
        result: Result<Arc<str>, Failure>,
    ) {
        let restart = self.policy.restart_on_secret_change;
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Secret::Asked { ask: newest, in_use_hash, .. } = &instance.secret else { return };
        if *newest != ask {
            return;
        }
        match result {
            Ok(secret) => {
                let changed = !in_use_hash.is_empty() && *in_use_hash != secret_hash(Some(&secret));
                if changed {
                    log::warn!("IAM has a new secret instance={id} restart={restart}");
                    instance.restart |= restart;
                }
                instance.secret = Secret::Known(secret);
            }
            Err(failure) if in_use_hash.is_empty() => {
                log::error!("cannot register with IAM instance={id} err={failure}");
                instance.fail(ErrorInfo::text(format!("cannot register with IAM: {failure}")));
            }
            Err(failure) => {
                log::error!("cannot renew the registration with IAM instance={id} err={failure}");
                instance.secret = Secret::Adopted { hash: in_use_hash.clone() };
            }
        }
    }

    /// Removals first: of instances that are gone, and of those whose permissions have changed
    /// before they had a container.
    pub(crate) fn plan_removals(&mut self, effects: &mut Vec<Effect>) {
        let surveyed = self.survey == Survey::Done;
        let mut removals = std::mem::take(&mut self.unregister);
        for instance in self.instances.values_mut().filter(|i| i.registered) {
            let gone = !instance.wanted && !instance.is_present();
            let changed = match &instance.goal {
                Goal::Run(inputs) if surveyed => {
                    instance.phase == Phase::Absent
                        && instance.permissions.as_deref()
                            != inputs.image.service.permissions.as_ref()
                }
                _ => false,
            };
            if gone || changed {
                instance.registered = false;
                instance.secret = Secret::None;
                removals.push((instance.id.clone(), instance.desired.ident.clone()));
            }
        }
        // Those of earlier lives, and those for which IAM was not reached.
        for (ident, leaving) in self.leaving.iter().filter(|(_, l)| surveyed && l.is_due()) {
            let gone = !self.instances.contains_key(&leaving.id);
            if gone && removals.iter().all(|(_, named)| named != ident) {
                removals.push((leaving.id.clone(), ident.clone()));
            }
        }
        for (id, ident) in removals {
            self.asks += 1;
            let ask = self.asks;
            if let Some(leaving) = self.leaving.get_mut(&ident).filter(|l| l.id == id) {
                leaving.ask = Some(ask);
            }
            effects.push(Effect::Iam(IamCommand::Unregister { id, ask, ident }));
        }
    }

    /// An instance that IAM knows, or may, is not wanted any more: that is kept in a row until IAM
    /// has heard of it, or the secret would stay valid when the daemon is killed before.
    pub(crate) fn leaves_iam(&mut self, id: InstanceId, ident: InstanceIdent) {
        self.leaving.insert(ident, Leaving { id, ask: None, gave_up: false });
        self.store_leaving();
    }

    /// The ident is wanted again; whether IAM may know it from before. From here on the row of the
    /// instance itself tells the next life to remove that registration first.
    pub(crate) fn comes_back(&mut self, ident: &InstanceIdent) -> bool {
        let known = self.leaving.remove(ident).is_some();
        if known {
            self.store_leaving();
        }
        known
    }

    /// The removal number `ask` is over.
    pub(crate) fn unregistered(&mut self, ask: u64, done: bool) {
        let Some((ident, leaving)) = self.leaving.iter_mut().find(|(_, l)| l.ask == Some(ask))
        else {
            return;
        };
        if !done {
            (leaving.ask, leaving.gave_up) = (None, true);
            return;
        }
        let ident = ident.clone();
        self.leaving.remove(&ident);
        self.store_leaving();
    }

    fn store_leaving(&mut self) {
        let list = self.leaving.iter().map(|(ident, l)| (l.id.clone(), ident.clone())).collect();
        self.changes.retain(|change| !matches!(change, Change::SetLeaving(_)));
        self.changes.push(Change::SetLeaving(list));
    }

    pub(crate) fn plan_secret(&mut self, now: Now, id: &InstanceId, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get(id) else { return };
        let Goal::Run(inputs) = &instance.goal else { return };
        let Some(permissions) = &inputs.image.service.permissions else { return };
        let in_use_hash = match &instance.secret {
            Secret::None if !instance.holds_container() && instance.may_still_start() => {
                String::new()
            }
            Secret::Recheck { in_use_hash } => in_use_hash.clone(),
            _ => return,
        };
        if self.stopping || self.survey != Survey::Done || self.is_ident_taken(instance) {
            return;
        }
        let permissions = Arc::new(permissions.clone());
        self.asks += 1;
        let ask = self.asks;
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.registered = true;
        instance.permissions = Some(permissions.clone());
        instance.secret = Secret::Asked { ask, since: now.mono, in_use_hash };
        effects.push(Effect::Iam(IamCommand::Register {
            id: id.clone(),
            ask,
            ident: instance.desired.ident.clone(),
            permissions,
        }));
    }

    /// An earlier instance of the same ident is still on its way out: its removal from IAM would
    /// take a new registration along.
    fn is_ident_taken(&self, instance: &Instance) -> bool {
        let ident = &instance.desired.ident;
        let leaving = self.instances.values().filter(|i| !i.wanted && i.registered);
        leaving.into_iter().any(|i| i.desired.ident == *ident)
    }
}

impl Secret {
    /// Hash of the secret that the container has or gets; empty = none.
    pub(crate) fn in_use_hash(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Asked { in_use_hash, .. } | Self::Recheck { in_use_hash } => in_use_hash.clone(),
            Self::Known(secret) => secret_hash(Some(secret)),
            Self::Adopted { hash } => hash.clone(),
        }
    }
}

impl Instance {
    /// A container exists, or its bundle, which holds the secret.
    fn holds_container(&self) -> bool {
        self.is_present() && self.next_start == StartKind::Again
    }

    fn may_still_start(&self) -> bool {
        matches!(self.phase, Phase::Absent | Phase::Pausing(_))
    }

    /// Only IAM is missing, and it has been away or silent for so long that nobody should wait.
    pub(crate) fn waits_for_iam(&self, iam_up: bool, now: Now) -> bool {
        match &self.secret {
            Secret::Asked { since, .. } if !self.holds_container() => {
                !iam_up || now.mono >= *since + IAM_PATIENCE
            }
            _ => false,
        }
    }

    /// When `waits_for_iam` becomes true by itself.
    pub(crate) fn iam_patience_ends(&self) -> Option<Duration> {
        match &self.secret {
            Secret::Asked { since, .. } if !self.holds_container() => Some(*since + IAM_PATIENCE),
            _ => None,
        }
    }

    /// What the record of an adopted container says of its registration.
    pub(crate) fn resume_secret(&mut self, record: &Record, permissions: Option<Arc<Permissions>>) {
        self.registered = !record.secret_hash.is_empty();
        if !self.registered {
            return;
        }
        self.permissions = permissions;
        self.secret = Secret::Recheck { in_use_hash: record.secret_hash.clone() };
    }
}
