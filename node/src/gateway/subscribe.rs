//! SUBSCRIBE and UNSUBSCRIBE: filters inside the device's own tree, committed before the answer.

use std::num::NonZeroU16;

use actors::device::{Command, Qos, Subscription};
use actors::wire::topic::{self, TopicError};
use bytestring::ByteString;
use rmqtt_codec::types::QoS;
use rmqtt_codec::v5::{PublishAckReason, SubscribeAckReason, UnsubscribeAckReason};
use tokio::io::{AsyncRead, AsyncWrite};

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
        for (filter, qos) in subscribe.filters {
            match topic::check_filter(&self.key.device, &filter) {
                Ok(()) => {
                    let (code, qos) = grant(qos);
                    status.push(code);
                    granted.push(Subscription {
                        filter: filter.to_string(),
                        qos,
                        identifier: subscribe.identifier,
                    });
                }
                Err(error) => status.push(refused(error)),
            }
        }
        let packet_id = subscribe.packet_id;
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
