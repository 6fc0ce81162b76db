//! What a gateway device's connection does for children: whose a topic is, and how what became of
//! it in the child's lane finds back into the order of the connection.

use std::num::NonZeroU16;

use actors::device::{Command, Fence, OpenSession, Qos, Subscription};
use actors::id::DeviceId;
use actors::wire::topic::{self, PublishTopic, TopicError};
use rmqtt_codec::v5::{PublishAckReason, SubscribeAckReason, UnsubscribeAckReason};
use tokio::io::{AsyncRead, AsyncWrite};

use super::children::{Children, Settled};
use super::connection::Connection;
use super::inflight::{After, Outcome};
use super::mailbox::{Answered, Lane};
use super::publish::refusal_of;
use super::reasons::{self, End};

/// The child somebody acts for; `None`: for itself.
pub(super) type For = Option<DeviceId>;

/// An answer whose parts come from several devices.
#[derive(Debug)]
pub struct Gather {
    pub packet_id: NonZeroU16,
    /// Parts that are still missing.
    pub left: usize,
    pub status: GatheredStatus,
    /// Children that took their filters.
    pub subscribed: Vec<DeviceId>,
}

#[derive(Debug)]
pub enum GatheredStatus {
    Subscribe(Vec<SubscribeAckReason>),
    Unsubscribe(Vec<UnsubscribeAckReason>),
}

/// What one device contributes to such an answer.
#[derive(Debug)]
pub struct Part {
    /// The number of the entry that gathers.
    pub of: u64,
    pub device: For,
    /// Where its filters stand in the packet, in order.
    pub at: Vec<usize>,
    pub filters: PartFilters,
}

#[derive(Debug)]
pub enum PartFilters {
    Subscribe(Vec<Subscription>),
    Unsubscribe(Vec<String>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// What a publish to this topic asks for, and for whom.
    pub(super) fn addressed(&self, name: &str) -> Result<(For, PublishTopic), TopicError> {
        match topic::parse_publish(&self.key.device, name) {
            Ok(target) => Ok((None, target)),
            Err(TopicError::Foreign) => {
                let child = topic::owner(name).ok_or(TopicError::Foreign)?;
                let target = topic::parse_publish(&child, name)?;
                Ok((Some(child), target))
            }
            Err(error) => Err(error),
        }
    }

    /// Whose filter it is.
    pub(super) fn subscriber(&self, filter: &str) -> Result<For, TopicError> {
        match topic::check_filter(&self.key.device, filter) {
            Ok(()) => Ok(None),
            Err(TopicError::Foreign) => {
                let child = topic::owner(filter).ok_or(TopicError::Foreign)?;
                topic::check_filter(&child, filter)?;
                Ok(Some(child))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether there may be one more child, if it is one more, `beside` others that are new.
    pub(super) fn has_room_for(&self, device: &For, beside: usize) -> bool {
        let max = self.shared.limits.children_max;
        device.as_ref().is_none_or(|child| match &self.children {
            Some(children) => children.has_room_for(child, beside),
            None => beside < max,
        })
    }

    /// Has a command carried out in its turn, for this device itself or for a child.
    pub(super) fn carry_out(
        &mut self,
        device: For,
        after: After,
        digest: u64,
        bytes: usize,
        command: impl FnOnce(Fence) -> Command,
    ) {
        let now = self.now;
        let Some(child) = device else {
            return self.inflight.push(after, digest, bytes, now, command);
        };
        let number = self.inflight.push_elsewhere(after, digest, bytes, now);
        let after = After::Elsewhere { number };
        self.children().push(&child, after, now, command);
    }

    /// As above, for a read.
    pub(super) fn read_for(&mut self, child: &DeviceId, after: After, digest: u64, command: Command) {
        let now = self.now;
        let number = self.inflight.push_elsewhere(after, digest, 0, now);
        let after = After::Elsewhere { number };
        self.children().push_read(child, after, command, now);
    }

    /// Has a part of a gathered answer carried out.
    pub(super) fn carry_out_part(&mut self, part: Part) {
        let now = self.now;
        let command = match &part.filters {
            PartFilters::Subscribe(subscriptions) => {
                let subscriptions = subscriptions.clone();
                Box::new(move |fence| Command::Subscribe { fence, subscriptions }) as Box<dyn FnOnce(Fence) -> Command>
            }
            PartFilters::Unsubscribe(filters) => {
                let filters = filters.clone();
                Box::new(move |fence| Command::Unsubscribe { fence, filters })
            }
        };
        let device = part.device.clone();
        let after = After::Part(Box::new(part));
        match device {
            None => self.inflight.push(after, 0, 0, now, command),
            Some(child) => self.children().push(&child, after, now, command),
        }
    }

    fn children(&mut self) -> &mut Children {
        self.children.get_or_insert_with(|| {
            let open = OpenSession {
                gateway: self.shared.devices.gateway(),
                clean_start: self.is_fresh,
                expiry_secs: self.expiry_secs,
                keep_alive_secs: self.keep_alive_secs,
                protocol: if self.protocol.is_v5() { 5 } else { 4 },
                will: None,
                via: Some(self.key.device.clone()),
            };
            let mailbox = &self.session.mailbox;
            Box::new(Children::new(&self.shared, mailbox, &self.key, open))
        })
    }

    /// Tells the connection's own order what became of what.
    pub(super) fn settle(&mut self, settled: Vec<Settled>) {
        for (after, outcome) in settled {
            match after {
                After::Elsewhere { number } => self.inflight.settle(number, outcome),
                After::Part(part) => self.part_settled(*part, &outcome),
                _ => {}
            }
        }
    }

    pub(super) fn part_settled(&mut self, part: Part, outcome: &Outcome) {
        let refusal = refusal_of(outcome);
        let known = match &part.device {
            None => Some(&mut self.subscriptions),
            Some(child) => self.children.as_mut().and_then(|c| c.subscriptions_mut(child)),
        };
        let Some(After::Gather(gather)) = self.inflight.after_mut(part.of) else {
            return;
        };
        match (&mut gather.status, part.filters) {
            (GatheredStatus::Subscribe(status), PartFilters::Subscribe(granted)) => {
                if let Some(refusal) = refusal {
                    part.at.iter().for_each(|at| status[*at] = reasons::suback(refusal));
                } else if let Some(known) = known {
                    for new in granted {
                        known.retain(|old| old.filter != new.filter);
                        known.push(new);
                    }
                    gather.subscribed.extend(part.device.clone());
                    match (&part.device, &mut self.children) {
                        (None, _) => self.messages.subscribed(),
                        (Some(child), Some(children)) => children.messages_subscribed(child),
                        _ => {}
                    }
                }
            }
            (GatheredStatus::Unsubscribe(status), PartFilters::Unsubscribe(filters)) => {
                if refusal.is_some() {
                    part.at
                        .iter()
                        .for_each(|at| status[*at] = UnsubscribeAckReason::NotAuthorized);
                } else if let Some(known) = known {
                    for (index, filter) in filters.iter().enumerate() {
                        let before = known.len();
                        known.retain(|old| old.filter != *filter);
                        // Marks come last and stand nowhere in the packet.
                        let at = part.at.get(index).filter(|_| known.len() < before);
                        at.into_iter()
                            .for_each(|at| status[*at] = UnsubscribeAckReason::Success);
                    }
                }
            }
            _ => {}
        }
        gather.left -= 1;
        if gather.left == 0 {
            let subscribed = std::mem::take(&mut gather.subscribed);
            self.gathered(part.of, &subscribed);
        }
    }

    /// All parts of an answer are here. Before it leaves, the own session remembers whom to wake
    /// when the client comes back: those that took their filters, and nobody else.
    fn gathered(&mut self, number: u64, subscribed: &[DeviceId]) {
        let done = || Outcome::Local(PublishAckReason::Success);
        let marks = self.missing_marks(subscribed.iter());
        if !marks.is_empty() {
            let answer = self.inflight.after_mut(number);
            let answer = answer.map(|after| std::mem::replace(after, After::Nothing));
            let subscriptions = marks.clone();
            let now = self.now;
            self.inflight
                .push(After::Mark(marks), 0, 0, now, |fence| Command::Subscribe {
                    fence,
                    subscriptions,
                });
            if let Some(answer) = answer {
                self.inflight.push_local(answer, done(), now);
            }
        }
        self.inflight.settle(number, done());
    }

    pub(super) fn marked(&mut self, marks: Vec<Subscription>, outcome: &Outcome) {
        if refusal_of(outcome).is_none() {
            for mark in marks {
                self.subscriptions.retain(|kept| kept.filter != mark.filter);
                self.subscriptions.push(mark);
            }
        }
    }

    /// The own session forgets a child that is not this gateway's.
    fn unmark(&mut self, child: &DeviceId) {
        let mark = topic::tree(child);
        if self.subscriptions.iter().any(|kept| kept.filter == mark) {
            let filters = vec![mark.clone()];
            self.inflight
                .push(After::Unmark(mark), 0, 0, self.now, |fence| Command::Unsubscribe {
                    fence,
                    filters,
                });
        }
    }

    pub(super) fn answer_gathered(&mut self, gather: Gather) {
        if self.is_mute() {
            return;
        }
        let out = &mut self.socket.output;
        match gather.status {
            GatheredStatus::Subscribe(status) => self.protocol.suback(out, gather.packet_id, status),
            GatheredStatus::Unsubscribe(status) => self.protocol.unsuback(out, gather.packet_id, status),
        }
    }

    /// # Errors
    /// The connection has to end.
    pub(super) fn lane_answered(&mut self, answered: Answered) -> Result<(), End> {
        if let Some(children) = &mut self.children {
            let settled = children.answered(answered, self.now)?;
            let refused = children.take_refused();
            self.settle(settled);
            refused.iter().for_each(|child| self.unmark(child));
        }
        Ok(())
    }

    pub(super) fn lane_leader_changed(&mut self, lane: Lane) {
        if let Some(children) = &mut self.children {
            children.leader_changed(lane, self.now);
        }
    }

    /// After a reconnect that found its session: children whose subscriptions are older than this
    /// connection get their sessions back.
    pub(super) fn wake_children(&mut self) {
        let own = &self.key.device;
        let marks = self
            .subscriptions
            .iter()
            .filter_map(|kept| topic::marked_child(own, &kept.filter));
        let marked: Vec<DeviceId> = marks.take(self.shared.limits.children_max).collect();
        for child in marked {
            self.children().wake(&child);
        }
    }

    /// The marks that subscriptions of these children need in the own session, beside those there.
    pub(super) fn missing_marks<'c>(&self, children: impl Iterator<Item = &'c DeviceId>) -> Vec<Subscription> {
        let mark = |child| Subscription {
            filter: topic::tree(child),
            qos: Qos::AtMostOnce,
            identifier: 0,
        };
        let is_there = |mark: &Subscription| self.subscriptions.iter().any(|kept| kept.filter == mark.filter);
        children.map(mark).filter(|mark| !is_there(mark)).collect()
    }

    /// The mark of a child, if there is one and these are all the filters the child has.
    pub(super) fn mark_no_longer_needed(&self, child: &DeviceId, leaving: &[(usize, String)]) -> Option<String> {
        let mark = topic::tree(child);
        let kept = self
            .children
            .as_ref()
            .map_or(&[][..], |children| children.subscriptions(child));
        let stays = kept
            .iter()
            .any(|kept| !leaving.iter().any(|(_, filter)| *filter == kept.filter));
        let is_there = self.subscriptions.iter().any(|kept| kept.filter == mark);
        (is_there && !stays).then_some(mark)
    }

    /// The generation of the session a note for this device is meant for.
    pub(super) fn generation_of(&self, device: &DeviceId) -> Option<u64> {
        if *device == self.key.device {
            return Some(self.session.generation);
        }
        self.children.as_ref()?.generation(device)
    }

    /// The subscriptions a publish to this topic has to match.
    pub(super) fn subscriptions_to(&self, name: &str) -> &[Subscription] {
        let Some(children) = &self.children else {
            return &self.subscriptions;
        };
        match topic::owner(name) {
            Some(owner) if owner != self.key.device => children.subscriptions(&owner),
            _ => &self.subscriptions,
        }
    }

    /// A child's session is not this connection's any more.
    ///
    /// # Errors
    /// It is this device's own session, with which the connection ends.
    pub(super) fn session_lost(&mut self, device: &DeviceId, end: End) -> Result<(), End> {
        if *device == self.key.device {
            return Err(end);
        }
        if let Some(children) = &mut self.children {
            children.lost(device, end == End::TakenOver, self.now);
        }
        Ok(())
    }
}
