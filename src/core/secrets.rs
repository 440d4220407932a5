//! Secrets from IAM: registrations asked for, compared, given back (R16).
//!
//! IAM knows an instance by its ident, keeps registrations in memory only and answers a second
//! registration with the secret and the permissions of the first. So a removal always goes out
//! before the next registration of the same ident, and each question has a number: the answer to
//! an older one is not taken for the answer to the newest.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Effect;
use crate::core::inputs::secret_hash;
use crate::core::instance::{Goal, Instance, Phase, Secret};
use crate::core::state::{State, Survey};
use crate::model::event::IamCommand;
use crate::model::failure::Failure;
use crate::model::id::InstanceId;
use crate::model::job::{Permissions, Record, StartKind};
use crate::model::status::ErrorInfo;
use crate::ports::Now;

/// An IAM that is up but does not answer a registration holds a full status no longer than this:
/// two calls at their deadline.
pub(crate) const IAM_PATIENCE: Duration = Duration::from_secs(20);

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
        for (id, ident) in std::mem::take(&mut self.unregister) {
            effects.push(Effect::Iam(IamCommand::Unregister { id, ident }));
        }
        let surveyed = self.survey == Survey::Done;
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
                let (id, ident) = (instance.id.clone(), instance.desired.ident.clone());
                effects.push(Effect::Iam(IamCommand::Unregister { id, ident }));
            }
        }
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
