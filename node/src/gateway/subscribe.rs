//! SUBSCRIBE and UNSUBSCRIBE: filters inside the device's own tree, committed before the answer.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use actors::device::{Command, Qos, Subscription};
use actors::id::DeviceId;
use actors::wire::topic::{self, TopicError};
use bytestring::ByteString;
use rmqtt_codec::types::QoS;
use rmqtt_codec::v5::{PublishAckReason, SubscribeAckReason, UnsubscribeAckReason};
use tokio::io::{AsyncRead, AsyncWrite};

use super::acting::{For, Gather, GatheredStatus, Part, PartFilters};
use super::connection::Connection;
use super::inflight::{After, Outcome};
use super::proto::Subscribe;
use super::publish::refusal_of;
use super::reasons::{self, End, Violation};

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// # Errors
    /// Ends the connection: too many user properties.
    pub(super) fn on_subscribe(&mut self, subscribe: Subscribe) -> Result<(), End> {
        if subscribe.properties > self.shared.limits.user_properties_max {
            return Err(self.offence(Violation::TooManyProperties));
        }
        let mut status = Vec::with_capacity(subscribe.filters.len());
        let mut granted = Vec::new();
        let mut of_children: BTreeMap<DeviceId, Vec<(usize, Subscription)>> = BTreeMap::new();
        let mut own_at = Vec::new();
        for (at, (filter, qos)) in subscribe.filters.into_iter().enumerate() {
            let (code, qos) = grant(qos);
            let subscription = Subscription {
                filter: filter.to_string(),
                qos,
                identifier: subscribe.identifier,
            };
            status.push(match self.subscriber(&filter) {
                Ok(device) if !self.has_room_for(&device, of_children.len()) => SubscribeAckReason::QuotaExceeded,
                Ok(Some(child)) => {
                    of_children.entry(child).or_default().push((at, subscription));
                    code
                }
                Ok(None) => {
                    own_at.push(at);
                    granted.push(subscription);
                    code
                }
                Err(error) => refused(error),
            });
        }
        let packet_id = subscribe.packet_id;
        if !of_children.is_empty() {
            let own = own_at.into_iter().zip(granted).collect();
            let parts = parts_of((own, Vec::new()), of_children, PartFilters::Subscribe);
            self.gather(packet_id, GatheredStatus::Subscribe(status), parts);
            return Ok(());
        }
        if granted.is_empty() {
            let after = After::SubAck {
                packet_id,
                status,
                granted,
            };
            self.inflight
                .push_local(after, Outcome::Local(PublishAckReason::Success), self.now);
            return Ok(());
        }
        let subscriptions = granted.clone();
        let after = After::SubAck {
            packet_id,
            status,
            granted,
        };
        self.inflight.push(after, 0, 0, self.now, |fence| Command::Subscribe {
            fence,
            subscriptions,
        });
        Ok(())
    }

    pub(super) fn on_unsubscribe(&mut self, packet_id: NonZeroU16, filters: Vec<ByteString>) {
        let mut of_children: BTreeMap<DeviceId, Vec<(usize, String)>> = BTreeMap::new();
        for (at, filter) in filters.iter().enumerate() {
            let device = self.subscriber(filter).ok();
            let device = device.filter(|device| self.has_room_for(device, of_children.len()));
            if let Some(Some(child)) = device {
                of_children.entry(child).or_default().push((at, filter.to_string()));
            }
        }
        if !of_children.is_empty() {
            return self.unsubscribe_of_several(packet_id, &filters, of_children);
        }
        let own = |filter: &ByteString| topic::check_filter(&self.key.device, filter).is_ok();
        let filters: Vec<_> = filters
            .iter()
            .map(|filter| own(filter).then(|| filter.to_string()))
            .collect();
        let known: Vec<String> = filters.iter().flatten().cloned().collect();
        let after = After::UnsubAck { packet_id, filters };
        if known.is_empty() {
            self.inflight
                .push_local(after, Outcome::Local(PublishAckReason::Success), self.now);
        } else {
            self.inflight.push(after, 0, 0, self.now, |fence| Command::Unsubscribe {
                fence,
                filters: known,
            });
        }
    }

    fn unsubscribe_of_several(
        &mut self,
        packet_id: NonZeroU16,
        filters: &[ByteString],
        of_children: BTreeMap<DeviceId, Vec<(usize, String)>>,
    ) {
        let mut own = Vec::new();
        let mut status = Vec::with_capacity(filters.len());
        for (at, filter) in filters.iter().enumerate() {
            status.push(match self.subscriber(filter) {
                Ok(None) => {
                    own.push((at, filter.to_string()));
                    UnsubscribeAckReason::NoSubscriptionExisted
                }
                Ok(Some(_)) => UnsubscribeAckReason::NoSubscriptionExisted,
                Err(_) => UnsubscribeAckReason::TopicFilterInvalid,
            });
        }
        let leaving = of_children.iter();
        let marks = leaving.filter_map(|(child, filters)| self.mark_no_longer_needed(child, filters));
        let parts = parts_of((own, marks.collect()), of_children, PartFilters::Unsubscribe);
        self.gather(packet_id, GatheredStatus::Unsubscribe(status), parts);
    }

    /// Asks each device for its part; the own one first, because it has to be answered before.
    fn gather(&mut self, packet_id: NonZeroU16, status: GatheredStatus, parts: Vec<Part>) {
        let left = parts.len();
        let has_own = parts.iter().any(|part| part.device.is_none());
        let of = self.inflight.next_number() + u64::from(has_own);
        let (own, others): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(|part| part.device.is_none());
        for part in own {
            self.carry_out_part(Part { of, ..part });
        }
        let gather = After::Gather(Box::new(Gather {
            packet_id,
            left,
            status,
            subscribed: Vec::new(),
        }));
        self.inflight.push_elsewhere(gather, 0, 0, self.now);
        for part in others {
            self.carry_out_part(Part { of, ..part });
        }
    }

    pub(super) fn answer_subscribe(
        &mut self,
        packet_id: NonZeroU16,
        mut status: Vec<SubscribeAckReason>,
        granted: Vec<Subscription>,
        outcome: &Outcome,
    ) {
        if let Some(refusal) = refusal_of(outcome) {
            let no = reasons::suback(refusal);
            status
                .iter_mut()
                .filter(|code| is_granted(**code))
                .for_each(|code| *code = no);
        } else {
            for new in granted {
                self.subscriptions.retain(|old| old.filter != new.filter);
                self.subscriptions.push(new);
            }
            self.messages.subscribed();
        }
        if !self.is_mute() {
            self.protocol.suback(&mut self.socket.output, packet_id, status);
        }
    }

    pub(super) fn answer_unsubscribe(&mut self, packet_id: NonZeroU16, filters: &[Option<String>]) {
        let mut status = Vec::with_capacity(filters.len());
        for filter in filters {
            let before = self.subscriptions.len();
            self.subscriptions.retain(|old| Some(&old.filter) != filter.as_ref());
            status.push(match filter {
                None => UnsubscribeAckReason::TopicFilterInvalid,
                Some(_) if self.subscriptions.len() < before => UnsubscribeAckReason::Success,
                Some(_) => UnsubscribeAckReason::NoSubscriptionExisted,
            });
        }
        if !self.is_mute() {
            self.protocol.unsuback(&mut self.socket.output, packet_id, status);
        }
    }
}

/// What each device contributes, numbered later. `own` comes with marks, which stand nowhere in
/// the packet.
fn parts_of<T>(
    (own, marks): (Vec<(usize, T)>, Vec<T>),
    of_children: BTreeMap<DeviceId, Vec<(usize, T)>>,
    filters: impl Fn(Vec<T>) -> PartFilters,
) -> Vec<Part> {
    let part = |(device, of_one): (For, Vec<(usize, T)>)| {
        let (mut at, of_one): (Vec<usize>, Vec<T>) = of_one.into_iter().unzip();
        at.retain(|at| *at != usize::MAX);
        Part {
            of: 0,
            device,
            at,
            filters: filters(of_one),
        }
    };
    let nowhere = marks.into_iter().map(|mark| (usize::MAX, mark));
    let own: Vec<_> = own.into_iter().chain(nowhere).collect();
    let own = (!own.is_empty()).then_some((None, own));
    let children = of_children.into_iter().map(|(child, of_one)| (Some(child), of_one));
    own.into_iter().chain(children).map(part).collect()
}

fn grant(asked: QoS) -> (SubscribeAckReason, Qos) {
    match asked {
        QoS::AtMostOnce => (SubscribeAckReason::GrantedQos0, Qos::AtMostOnce),
        QoS::AtLeastOnce | QoS::ExactlyOnce => (SubscribeAckReason::GrantedQos1, Qos::AtLeastOnce),
    }
}

fn is_granted(code: SubscribeAckReason) -> bool {
    matches!(code, SubscribeAckReason::GrantedQos0 | SubscribeAckReason::GrantedQos1)
}

fn refused(error: TopicError) -> SubscribeAckReason {
    match error {
        TopicError::Shared => SubscribeAckReason::SharedSubscriptionNotSupported,
        TopicError::Invalid => SubscribeAckReason::TopicFilterInvalid,
        TopicError::Wildcard | TopicError::Foreign | TopicError::Unknown => SubscribeAckReason::NotAuthorized,
    }
}
