//! Sessions: one lives at a time, a newer connection takes over, the will follows MQTT 5.

use super::Scene;
use crate::device::{check_telemetry, CloseCause, Event, OpenSession, Refusal, Session, SessionOpened, Status};
use crate::device::{Subscription, Will};
use crate::id::{DeviceId, Gateway};
use crate::wire::topic::{self, TOPIC_LEN_MAX};

/// Children of which a gateway's session remembers that they have subscriptions.
const MARKS_MAX: usize = 1024;

impl Scene<'_> {
    pub(super) fn open_session(&self, open: &OpenSession) -> Result<Vec<Event>, Refusal> {
        let mut events = Vec::with_capacity(2);
        match self.enabled() {
            Err(Refusal::NotRegistered) if self.policy.auto_register && open.via.is_none() => {
                events.push(Event::DeviceRegistered {
                    status: Status::Enabled,
                    automatic: true,
                })
            }
            other => other?,
        }
        if let Some(gateway) = &open.via {
            self.acts_through(gateway)?;
        }
        if let Some(will) = &open.will {
            check_telemetry(&will.telemetry)?;
        }
        let present = self.outlives(open);
        if let Some(former) = self.state.session.as_deref() {
            self.will_at_reconnect(former, present, &mut events);
        }
        events.push(Event::SessionOpened(Box::new(SessionOpened {
            generation: self.state.last_generation.saturating_add(1),
            gateway: open.gateway,
            clean: !present,
            expiry_secs: open.expiry_secs.min(self.policy.session_expiry_secs_max),
            keep_alive_secs: open.keep_alive_secs,
            protocol: open.protocol,
            will: open.will.clone(),
            via: open.via.clone(),
        })));
        Ok(events)
    }

    fn acts_through(&self, gateway: &DeviceId) -> Result<(), Refusal> {
        if self.registered()?.gateway.as_ref() == Some(gateway) {
            return Ok(());
        }
        let gateway = gateway.clone();
        Err(Refusal::NotGateway { gateway })
    }

    /// Whether the former session goes on in the new connection. One with expiry 0 ends with its
    /// connection, also when that is taken over; so does one that a gateway held, when the device
    /// or another gateway comes.
    fn outlives(&self, open: &OpenSession) -> bool {
        let former = self.state.session_at(self.now);
        !open.clean_start && former.is_some_and(|former| former.expiry_secs > 0 && former.via == open.via)
    }

    /// A will is published when its session ends or its delay has passed; a session that goes on
    /// in time keeps it from being published.
    fn will_at_reconnect(&self, former: &Session, present: bool, events: &mut Vec<Event>) {
        let Some(will) = former.will.as_deref() else {
            return;
        };
        let overdue = match former.will_due {
            Some(due) => due <= self.now,
            None => former.connected && will.delay_secs == 0,
        };
        if overdue || !present {
            self.record_will(will, events);
        }
    }

    /// Idempotent: a session that is not live, or closed already, is left as it is.
    pub(super) fn close_session(&self, generation: u64, cause: CloseCause) -> Vec<Event> {
        let mut events = Vec::new();
        let live = self
            .state
            .session
            .as_deref()
            .filter(|session| session.generation == generation);
        let Some(session) = live else {
            return events;
        };
        let graceful = matches!(cause, CloseCause::Graceful { .. });
        // Its gateway was lost, and now says how the connection really ended.
        let corrected = session.lost && graceful;
        if !session.connected && !corrected {
            return events;
        }
        let at_once = |will: &&Will| !graceful && (will.delay_secs == 0 || session.expiry_secs == 0);
        if let Some(will) = session.will.as_deref().filter(at_once) {
            self.record_will(will, &mut events);
        }
        let cause = self.capped(cause, session);
        events.push(Event::SessionClosed { generation, cause });
        events
    }

    fn capped(&self, cause: CloseCause, session: &Session) -> CloseCause {
        match cause {
            CloseCause::Graceful { expiry_secs } => CloseCause::Graceful {
                // MQTT 5 forbids to make an expiry of 0 longer.
                expiry_secs: expiry_secs
                    .filter(|_| session.expiry_secs > 0)
                    .map(|secs| secs.min(self.policy.session_expiry_secs_max)),
            },
            other => other,
        }
    }

    pub(super) fn announce_session(&self, generation: u64, gateway: Gateway) -> Result<Vec<Event>, Refusal> {
        self.enabled()?;
        let live = self.state.session_at(self.now);
        let same = |s: &&Session| s.generation == generation && s.gateway == gateway && (s.connected || s.lost);
        match live.filter(same) {
            Some(session) if session.connected => Ok(Vec::new()),
            Some(_) => Ok(vec![Event::SessionResumed { generation, gateway }]),
            None => Err(Refusal::StaleSession {
                given: generation,
                live: live.map(|session| session.generation),
            }),
        }
    }

    pub(super) fn expire_session(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let session = match self.state.session.as_deref() {
            Some(session) if self.state.session_at(self.now).is_none() => session,
            _ => return events,
        };
        if let Some(will) = session.will.as_deref() {
            self.record_will(will, &mut events);
        }
        events.push(Event::SessionExpired {
            generation: session.generation,
        });
        events
    }

    pub(super) fn publish_will(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(session) = self.state.session.as_deref() else {
            return events;
        };
        let due = session.will_due.is_some_and(|due| due <= self.now) && !session.connected;
        if let Some(will) = session.will.as_deref().filter(|_| due) {
            self.record_will(will, &mut events);
            if events.is_empty() {
                events.push(Event::WillDropped {
                    generation: session.generation,
                });
            }
        }
        events
    }

    pub(super) fn subscribe(
        &self,
        ordinal: u64,
        subscriptions: &[Subscription],
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let kept = self.subscriptions();
        let is_mark = |filter: &str| topic::marked_child(&self.key.device, filter).is_some();
        let marks = kept.iter().filter(|kept| is_mark(&kept.filter)).count();
        // Before comparing each with each.
        let mut counts = [kept.len() - marks, marks];
        for (index, new) in subscriptions.iter().enumerate() {
            if new.filter.is_empty() || new.filter.len() > TOPIC_LEN_MAX {
                let reason = format!("has {} bytes, 1 to {TOPIC_LEN_MAX} are allowed", new.filter.len());
                return Err(Refusal::FilterInvalid { reason });
            }
            let known = kept
                .iter()
                .chain(&subscriptions[..index])
                .any(|old| old.filter == new.filter);
            let marks = is_mark(&new.filter);
            let max = if marks {
                MARKS_MAX
            } else {
                self.policy.subscriptions_max
            };
            let count = &mut counts[usize::from(marks)];
            *count += usize::from(!known);
            if *count > max && !known {
                return Err(Refusal::TooManySubscriptions { max: max as u64 });
            }
        }
        if !subscriptions.is_empty() {
            events.push(Event::Subscribed {
                ordinal,
                subscriptions: subscriptions.to_vec(),
            });
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&self, ordinal: u64, filters: &[String], events: &mut Vec<Event>) -> Result<(), Refusal> {
        let kept = self.subscriptions().iter().map(|kept| &kept.filter);
        let filters: Vec<String> = kept.filter(|kept| filters.contains(kept)).cloned().collect();
        if !filters.is_empty() {
            events.push(Event::Unsubscribed { ordinal, filters });
        }
        Ok(())
    }

    fn subscriptions(&self) -> &[Subscription] {
        self.state
            .session
            .as_deref()
            .map_or(&[], |session| &session.subscriptions)
    }
}
