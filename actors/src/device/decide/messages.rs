//! Messages to the device: queued once, sent in order to whoever holds its connection, and each
//! one ended by an acknowledgement or as a dead letter.

use std::collections::VecDeque;

use super::Scene;
use crate::device::messages::{check_ttl, NUDGE_AFTER_MS, NUDGE_DOUBLINGS_MAX};
use crate::device::{
    check_message, Event, Message, MessageQueued, Messages, Outcome, Queued, Refusal, Session, Settlement, PACKET_IDS,
    PUSHED_MAX,
};
use crate::time::Timestamp;
use crate::wire::topic;

impl Scene<'_> {
    pub(super) fn enqueue_message(&self, message: &Message, ttl_secs: Option<u32>) -> Result<Vec<Event>, Refusal> {
        self.enabled()?;
        check_message(message, ttl_secs, self.policy)?;
        let (messages, digest) = (self.state.messages(), message.digest());
        match messages.known(&message.id) {
            Some(known) if known == digest => return Ok(Vec::new()),
            Some(_) => return Err(Refusal::MessageIdTaken),
            None if messages.holds(&message.id) => return Err(Refusal::MessageIdTaken),
            None => {}
        }
        let mut draft = self.draft();
        draft.expire();
        draft.check_room()?;
        let number = draft.next_version();
        draft.events.push(Event::MessageQueued(Box::new(MessageQueued {
            number,
            expires_at: self.expiry(ttl_secs),
            ids_max: u16::try_from(self.policy.message_ids_max).unwrap_or(u16::MAX),
            digest,
            message: message.clone(),
        })));
        if let Some(session) = self.pushable(&message.id) {
            let packet_id = draft.packet_id();
            draft.events.push(Event::MessageSent {
                number,
                generation: session.generation,
                packet_id,
                resent: false,
            });
        }
        Ok(draft.events)
    }

    fn expiry(&self, ttl_secs: Option<u32>) -> Timestamp {
        let secs = ttl_secs.unwrap_or(self.policy.message_ttl_secs.min(self.policy.message_ttl_secs_max));
        self.now.plus_millis(u64::from(secs) * 1000)
    }

    /// The connection that may be sent a new message at once: it wants it, and has all before it.
    fn pushable(&self, id: &str) -> Option<&Session> {
        let session = self.state.session_at(self.now)?;
        // Those of a gateway's children are asked for.
        if !session.connected || session.via.is_some() {
            return None;
        }
        let waiting = self.unexpired();
        let sent = waiting.clone().filter(|queued| queued.generation == session.generation);
        let all_sent = sent.clone().count() == waiting.count();
        (all_sent && sent.count() < PUSHED_MAX && self.wants(session, id)).then_some(session)
    }

    fn unexpired(&self) -> impl Iterator<Item = &Queued> + Clone {
        let queue = self.state.messages().queue.iter();
        queue.filter(|queued| queued.expires_at > self.now)
    }

    fn wants(&self, session: &Session, id: &str) -> bool {
        let topic = topic::message(&self.key.device, id);
        let mut filters = session.subscriptions.iter().map(|s| &s.filter);
        filters.any(|filter| topic::filter_matches(filter, &topic))
    }

    /// Each message that is handed to another connection than before counts one delivery more; one
    /// that this connection should have and does not hold got lost on the way, and is given again.
    pub(super) fn take_messages(&self, generation: u64, held: &[u64], count_max: usize) -> Result<Vec<Event>, Refusal> {
        self.enabled()?;
        let live = self.state.session_at(self.now);
        let own = |s: &&Session| s.generation == generation && (s.connected || s.lost);
        let Some(session) = live.filter(own) else {
            return Err(Refusal::StaleSession {
                given: generation,
                live: live.map(|session| session.generation),
            });
        };
        let mut draft = self.draft();
        draft.expire();
        if !session.connected {
            draft.events.push(Event::SessionResumed {
                generation,
                gateway: session.gateway,
            });
        }
        let mut room = count_max;
        for queued in self.unexpired() {
            if room == 0 {
                break;
            }
            if held.contains(&queued.number) || !self.wants(session, &queued.id) {
                continue;
            }
            if queued.generation == generation {
                room -= 1;
            } else if queued.deliveries >= self.policy.message_deliveries_max {
                draft.end(queued.number, Outcome::MaxDeliveries);
            } else {
                room -= 1;
                draft.send(queued, session);
            }
        }
        Ok(draft.events)
    }

    /// What an earlier connection of the device acknowledged counts too: it has the message.
    pub(super) fn settle_messages(&self, generation: u64, settled: &[Settlement]) -> Vec<Event> {
        let mut draft = self.draft();
        for (index, settlement) in settled.iter().enumerate() {
            let twice = settled[..index].iter().any(|s| s.number == settlement.number);
            let Some(queued) = self.state.messages().queued(settlement.number).filter(|_| !twice) else {
                continue;
            };
            if generation == 0 || generation > queued.generation {
                continue;
            }
            if settlement.accepted {
                draft.end(queued.number, Outcome::Completed);
            } else if generation == queued.generation {
                draft.end(queued.number, Outcome::Rejected);
            }
        }
        draft.events
    }

    pub(super) fn purge_messages(&self, id: Option<&str>) -> Result<Vec<Event>, Refusal> {
        self.registered()?;
        let mut draft = self.draft();
        let queue = &self.state.messages().queue;
        for queued in queue.iter().filter(|queued| id.is_none_or(|id| *id == *queued.id)) {
            draft.end(queued.number, Outcome::Purged);
        }
        match (id, draft.events.is_empty()) {
            (Some(_), true) => Err(Refusal::MessageNotFound),
            _ => Ok(draft.events),
        }
    }

    /// A repetition finds the message in the queue, and changes nothing.
    pub(super) fn replay_message(&self, id: &str, ttl_secs: Option<u32>) -> Result<Vec<Event>, Refusal> {
        self.enabled()?;
        check_ttl(ttl_secs, self.policy)?;
        let messages = self.state.messages();
        let Some(letter) = messages.dead.iter().find(|letter| *letter.id == *id) else {
            let queued = messages.queue.iter().any(|queued| *queued.id == *id);
            return if queued {
                Ok(Vec::new())
            } else {
                Err(Refusal::MessageNotFound)
            };
        };
        // Those that expire now might push this very letter out: they are left to the due index.
        let mut draft = self.draft();
        draft.check_room()?;
        let new_number = draft.next_version();
        draft.events.push(Event::DeadLetterReplayed {
            number: letter.number,
            new_number,
            expires_at: self.expiry(ttl_secs),
        });
        Ok(draft.events)
    }

    pub(super) fn drop_dead_letters(&self, id: Option<&str>) -> Result<Vec<Event>, Refusal> {
        self.registered()?;
        let dead = self.state.messages().dead.iter();
        let dropped = dead.filter(|letter| id.is_none_or(|id| *id == *letter.id));
        let events: Vec<Event> = dropped
            .map(|letter| Event::DeadLetterDropped { number: letter.number })
            .collect();
        match (id, events.is_empty()) {
            (Some(_), true) => Err(Refusal::MessageNotFound),
            _ => Ok(events),
        }
    }

    pub(super) fn tend_messages(&self) -> Vec<Event> {
        let mut draft = self.draft();
        draft.expire();
        let messages = self.state.messages();
        let overdue = messages.nudge_at.is_some_and(|at| at <= self.now);
        if overdue && self.unexpired().next().is_some() {
            let connected = self.state.session_at(self.now).is_some_and(|session| session.connected);
            let pause = NUDGE_AFTER_MS << messages.nudges.min(NUDGE_DOUBLINGS_MAX);
            draft.events.push(Event::MessagesNudged {
                next: connected.then(|| self.now.plus_millis(pause)),
            });
        }
        draft.events
    }

    fn draft(&self) -> Draft<'_> {
        let messages = self.state.messages();
        Draft {
            scene: self,
            messages,
            dead: messages.dead.iter().map(|letter| letter.number).collect(),
            ended: 0,
            last_feedback: messages.last_feedback,
            trimmed_feedback: messages.trimmed_feedback,
            last_packet_id: messages.last_packet_id,
            events: Vec::new(),
        }
    }
}

/// Events of one command, each decided on what those before it leave.
struct Draft<'a> {
    scene: &'a Scene<'a>,
    messages: &'a Messages,
    /// Numbers of the dead letters.
    dead: VecDeque<u64>,
    /// Messages that have left the queue.
    ended: usize,
    last_feedback: u64,
    trimmed_feedback: u64,
    last_packet_id: u16,
    events: Vec<Event>,
}

impl Draft<'_> {
    /// The device's version after the next event.
    fn next_version(&self) -> u64 {
        let before = self.scene.state.version.saturating_add(self.events.len() as u64);
        before.saturating_add(1)
    }

    fn check_room(&self) -> Result<(), Refusal> {
        let max = self.scene.policy.message_queue_max;
        if self.messages.queue.len() - self.ended < max {
            return Ok(());
        }
        Err(Refusal::MessageQueueFull { max: max as u64 })
    }

    fn expire(&mut self) {
        let now = self.scene.now;
        for queued in self.messages.queue.iter().filter(|queued| queued.expires_at <= now) {
            self.end(queued.number, Outcome::Expired);
        }
    }

    fn end(&mut self, number: u64, outcome: Outcome) {
        let policy = self.scene.policy;
        let kept = outcome.is_dead() && policy.dead_letters_max > 0;
        while kept && self.dead.len() >= policy.dead_letters_max {
            let Some(number) = self.dead.pop_front() else { break };
            self.events.push(Event::DeadLetterDropped { number });
        }
        if kept {
            self.dead.push_back(number);
        }
        self.ended += 1;
        self.last_feedback = self.last_feedback.saturating_add(1);
        self.events.push(Event::MessageEnded {
            number,
            outcome,
            feedback_seq: self.last_feedback,
            kept,
        });
        self.trim_feedback();
    }

    /// An eighth at a time, so that not every message brings a second event.
    fn trim_feedback(&mut self) {
        let max = self.scene.policy.feedback_max.max(1);
        let count = self.last_feedback.saturating_sub(self.trimmed_feedback);
        if count > max.saturating_add(max / 8) {
            self.trimmed_feedback = self.last_feedback - max;
            self.events.push(Event::FeedbackTrimmed {
                before_seq: self.trimmed_feedback + 1,
            });
        }
    }

    /// Sent again within one session, a message keeps its packet id, as MQTT has it.
    fn send(&mut self, queued: &Queued, session: &Session) {
        let resent = queued.generation >= session.first_generation && queued.generation > 0;
        let packet_id = if resent { queued.packet_id } else { self.packet_id() };
        self.events.push(Event::MessageSent {
            number: queued.number,
            generation: session.generation,
            packet_id,
            resent,
        });
    }

    /// One that no message of the queue has.
    fn packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = match self.last_packet_id.checked_add(1) {
                Some(next) if PACKET_IDS.contains(&next) => next,
                _ => *PACKET_IDS.start(),
            };
            let id = self.last_packet_id;
            if !self.messages.queue.iter().any(|queued| queued.packet_id == id) {
                return id;
            }
        }
    }
}
