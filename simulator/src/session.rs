//! What one device has sent and not yet seen acknowledged, and how it is sent again.
//!
//! No sockets and no clock: instants come in, bytes go out. A publish keeps its packet id, its
//! number and its bytes until it is acknowledged or refused; after a reconnect all of them leave
//! again, in the order they were first sent, marked DUP.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use crate::payload;
use crate::protocol::{Codec, Outgoing, ProtocolError};

/// Publishes one device may have outstanding, whatever the server allows.
pub const WINDOW_MAX: u16 = 1024;

/// What a publish carries. The number is unique per device and kind, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Telemetry { n: u32 },
    Twin { k: u32 },
}

#[derive(Clone, Copy, Debug)]
pub struct Outstanding {
    pub packet_id: NonZeroU16,
    pub what: Sent,
    /// When it should have been sent; latency counts from here.
    pub intended: Instant,
    pub first_sent: Instant,
    /// 1 for a publish sent once.
    pub sends: u16,
}

/// Names and sizes of the messages of one device; constant for a run.
pub struct Profile {
    pub device: String,
    pub run: u32,
    pub payload_bytes: usize,
    pub telemetry_topic: ByteString,
    pub message_ids: bool,
}

impl Profile {
    pub fn new(device: String, run: u32, payload_bytes: usize, message_ids: bool) -> Self {
        let telemetry_topic = format!("devices/{device}/telemetry").into();
        Self {
            device,
            run,
            payload_bytes,
            telemetry_topic,
            message_ids,
        }
    }

    pub fn twin_answers(&self) -> String {
        format!("devices/{}/twin/res/#", self.device)
    }
}

pub struct Session {
    pub profile: Profile,
    outstanding: VecDeque<Outstanding>,
    telemetry_outstanding: usize,
    next_packet_id: u16,
    next_n: u32,
    next_k: u32,
}

impl Session {
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            outstanding: VecDeque::new(),
            telemetry_outstanding: 0,
            next_packet_id: 1,
            next_n: 1,
            next_k: 1,
        }
    }

    pub fn outstanding(&self) -> &VecDeque<Outstanding> {
        &self.outstanding
    }

    pub fn telemetry_outstanding(&self) -> usize {
        self.telemetry_outstanding
    }

    /// The highest telemetry number sent so far; 0 before the first.
    pub fn telemetry_sent(&self) -> u32 {
        self.next_n - 1
    }

    /// Writes the next telemetry publish.
    ///
    /// # Errors
    /// The packet cannot be written; the session stays as it was.
    pub fn publish_telemetry(
        &mut self,
        intended: Instant,
        now: Instant,
        codec: &mut Codec,
        out: &mut BytesMut,
    ) -> Result<u32, ProtocolError> {
        let n = self.next_n;
        self.first_send(Sent::Telemetry { n }, intended, now, codec, out)?;
        self.next_n += 1;
        self.telemetry_outstanding += 1;
        Ok(n)
    }

    /// Writes the next twin report and returns its number.
    ///
    /// # Errors
    /// As [`Session::publish_telemetry`].
    pub fn publish_twin(&mut self, now: Instant, codec: &mut Codec, out: &mut BytesMut) -> Result<u32, ProtocolError> {
        let k = self.next_k;
        self.first_send(Sent::Twin { k }, now, now, codec, out)?;
        self.next_k += 1;
        Ok(k)
    }

    /// A packet id for a SUBSCRIBE, free at this moment.
    pub fn packet_id(&mut self) -> NonZeroU16 {
        loop {
            let id = NonZeroU16::new(self.next_packet_id);
            self.next_packet_id = self.next_packet_id.wrapping_add(1);
            match id {
                Some(id) if self.outstanding.iter().all(|o| o.packet_id != id) => return id,
                _ => {}
            }
        }
    }

    /// Takes out what `packet_id` stands for, and says whether it was the oldest.
    /// `None`: the server acknowledged what is not outstanding.
    pub fn settle(&mut self, packet_id: NonZeroU16) -> Option<(Outstanding, bool)> {
        let at = self.outstanding.iter().position(|o| o.packet_id == packet_id)?;
        let settled = self.outstanding.remove(at)?;
        if matches!(settled.what, Sent::Telemetry { .. }) {
            self.telemetry_outstanding -= 1;
        }
        Some((settled, at == 0))
    }

    /// Writes everything outstanding again, oldest first, with DUP set.
    ///
    /// # Errors
    /// A packet cannot be written; the connection should be given up.
    pub fn resend(&mut self, codec: &mut Codec, out: &mut BytesMut) -> Result<(), ProtocolError> {
        for at in 0..self.outstanding.len() {
            let message = self.outgoing(self.outstanding[at], true);
            codec.publish(message, out)?;
            let sends = &mut self.outstanding[at].sends;
            *sends = sends.saturating_add(1);
        }
        Ok(())
    }

    fn first_send(
        &mut self,
        what: Sent,
        intended: Instant,
        now: Instant,
        codec: &mut Codec,
        out: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        let sent = Outstanding {
            packet_id: self.packet_id(),
            what,
            intended,
            first_sent: now,
            sends: 1,
        };
        codec.publish(self.outgoing(sent, false), out)?;
        self.outstanding.push_back(sent);
        Ok(())
    }

    fn outgoing(&self, sent: Outstanding, dup: bool) -> Outgoing {
        let profile = &self.profile;
        let mut bytes = BytesMut::with_capacity(profile.payload_bytes + 16);
        let (topic, message_id) = match sent.what {
            Sent::Telemetry { n } => {
                payload::telemetry(&profile.device, profile.run, n, profile.payload_bytes, &mut bytes);
                let id = profile.message_ids.then(|| format!("{}-{n}", profile.run));
                (profile.telemetry_topic.clone(), id)
            }
            Sent::Twin { k } => {
                payload::twin_report(profile.run, k, &mut bytes);
                let topic = format!("devices/{}/twin/reported/{}-{k}", profile.device, profile.run);
                (topic.into(), None)
            }
        };
        Outgoing {
            topic,
            packet_id: sent.packet_id,
            dup,
            payload: Bytes::from(bytes),
            message_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Version;
    use rmqtt_codec::v3;
    use tokio_util::codec::Decoder;

    fn session() -> Session {
        Session::new(Profile::new("dev-1".into(), 7, 64, true))
    }

    fn sent(bytes: &mut BytesMut) -> Vec<rmqtt_codec::types::Publish> {
        let mut codec = v3::Codec::new(0);
        let mut publishes = Vec::new();
        while let Some((packet, _)) = codec.decode(bytes).unwrap() {
            match packet {
                v3::Packet::Publish(publish) => publishes.push(*publish),
                other => panic!("unexpected {other:?}"),
            }
        }
        publishes
    }

    /// What was not acknowledged leaves again: same packet id, same bytes, same order, DUP set.
    #[test]
    fn unacknowledged_publishes_are_resent_in_order_as_duplicates() {
        let (mut session, mut codec, mut out) = (session(), Codec::new(Version::V311), BytesMut::new());
        let now = Instant::now();
        for _ in 0..3 {
            session.publish_telemetry(now, now, &mut codec, &mut out).unwrap();
        }
        session.publish_twin(now, &mut codec, &mut out).unwrap();
        session.publish_telemetry(now, now, &mut codec, &mut out).unwrap();
        let first = sent(&mut out);
        assert!(first.iter().all(|publish| !publish.dup));

        let (settled, oldest) = session.settle(first[1].packet_id.unwrap()).unwrap();
        assert_eq!((settled.what, oldest), (Sent::Telemetry { n: 2 }, false));
        session.resend(&mut codec, &mut out).unwrap();
        let again = sent(&mut out);
        let expected: Vec<_> = [0, 2, 3, 4].map(|at| first[at].clone()).to_vec();
        assert_eq!(again.len(), expected.len());
        for (resent, original) in again.iter().zip(&expected) {
            assert!(resent.dup);
            assert_eq!(
                (resent.packet_id, &resent.topic, &resent.payload),
                (original.packet_id, &original.topic, &original.payload)
            );
        }
        assert!(session.outstanding().iter().all(|o| o.sends == 2));
    }

    /// A packet id is not given out again while its publish is outstanding, and never 0.
    #[test]
    fn packet_ids_skip_what_is_outstanding() {
        let (mut session, mut codec, mut out) = (session(), Codec::new(Version::V5), BytesMut::new());
        let now = Instant::now();
        session.publish_telemetry(now, now, &mut codec, &mut out).unwrap();
        for _ in 0..65_534 {
            assert_ne!(session.packet_id().get(), 1);
        }
        assert_eq!(session.packet_id().get(), 2);
    }

    /// An acknowledgement of something that is not outstanding settles nothing.
    #[test]
    fn foreign_acknowledgement_settles_nothing() {
        let (mut session, mut codec, mut out) = (session(), Codec::new(Version::V5), BytesMut::new());
        let now = Instant::now();
        session.publish_telemetry(now, now, &mut codec, &mut out).unwrap();
        assert!(session.settle(NonZeroU16::new(99).unwrap()).is_none());
        assert!(session.settle(NonZeroU16::new(1).unwrap()).is_some());
        assert!(session.settle(NonZeroU16::new(1).unwrap()).is_none());
        assert_eq!(session.telemetry_outstanding(), 0);
    }
}
