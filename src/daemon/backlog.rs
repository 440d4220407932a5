//! What waits for a place in the inbox of a thread.
//!
//! Runs on core. In: what could not be handed over at once, in order. Out: the same, as places get
//! free. A question of the CM overtakes what the monitor is told: the CM waits for the answer.

use std::collections::VecDeque;

use crate::model::event::Session;
use crate::monitor::MonitorCommand;

/// Questions that may wait; a CM has one at a time, and gives it up after five seconds.
const MAX_QUESTIONS: usize = 4;

/// For the monitor. Bounded by the number of instances.
#[derive(Debug, Default)]
pub(super) struct MonitorBacklog {
    /// Questions first.
    waiting: VecDeque<MonitorCommand>,
    questions: usize,
}

impl MonitorBacklog {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, command: MonitorCommand) {
        self.waiting.push_back(command);
    }

    /// Takes a question of the CM; false = too many of them wait already.
    pub(super) fn ask(&mut self, session: Session) -> bool {
        let has_room = self.questions < MAX_QUESTIONS;
        if has_room {
            self.waiting.insert(self.questions, MonitorCommand::Average { session });
            self.questions += 1;
        }
        has_room
    }

    /// Hands over until something is given back.
    pub(super) fn offer(
        &mut self,
        hand_over: impl FnMut(MonitorCommand) -> Option<MonitorCommand>,
    ) {
        let before = self.waiting.len();
        offer(&mut self.waiting, hand_over);
        self.questions = self.questions.saturating_sub(before - self.waiting.len());
    }
}

/// Hands over from the front until one is given back.
pub(super) fn offer<T>(backlog: &mut VecDeque<T>, mut hand_over: impl FnMut(T) -> Option<T>) {
    while let Some(item) = backlog.pop_front() {
        if let Some(item) = hand_over(item) {
            return backlog.push_front(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;

    use super::*;

    #[test]
    fn a_backlog_keeps_its_order() {
        let (send, inbox) = bounded(2);
        let mut backlog: VecDeque<u32> = (0..5).collect();
        let mut seen = Vec::new();
        while seen.len() < 5 {
            offer(&mut backlog, |item| send.try_send(item).err().map(|e| e.into_inner()));
            assert!(inbox.len() <= 2);
            seen.extend(inbox.try_iter());
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn questions_wait_for_a_place_before_everything_else() {
        let average = |session| MonitorCommand::Average { session: Session(session) };
        let linked = MonitorCommand::Linked;
        let (send, inbox) = bounded(3);
        let mut backlog = MonitorBacklog::default();
        let hand_over = |backlog: &mut MonitorBacklog| {
            backlog.offer(|command| send.try_send(command).err().map(|e| e.into_inner()));
            inbox.try_iter().collect::<Vec<_>>()
        };
        for on in [true, false, true, false] {
            backlog.push(linked(on));
        }
        assert!(backlog.ask(Session(1)) && backlog.ask(Session(2)));
        assert_eq!(hand_over(&mut backlog), [average(1), average(2), linked(true)]);
        assert!(backlog.ask(Session(3)));
        assert_eq!(hand_over(&mut backlog), [average(3), linked(false), linked(true)]);
        let asked = (0..=MAX_QUESTIONS as u64).filter(|i| backlog.ask(Session(*i))).count();
        assert_eq!(asked, MAX_QUESTIONS);
        while !hand_over(&mut backlog).is_empty() {}
        assert!(backlog.is_empty() && backlog.ask(Session(9)));
    }
}
