//! Telemetry: gap-free seq, stored once, a bounded number of rows.

use super::Scene;
use crate::device::{apply, Delivery, Event, Origin, Refusal, Telemetry, TelemetryRecorded, Will};
use crate::time::Timestamp;
use crate::wire::topic::{is_stream_name, PROPERTY_COUNT_MAX, STREAM_LEN_MAX};

/// Bytes of a message id.
const MESSAGE_ID_LEN_MAX: usize = 128;
/// Bytes of all names and values of one message, its content type included.
const PROPERTY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a body. A node's own limit on packets and requests may be lower.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The checks of a message that need no device: names and sizes. A gateway makes them before it
/// asks the device; the device makes them again.
///
/// # Errors
/// `TelemetryInvalid`, with the rule that is broken.
pub fn check_telemetry(telemetry: &Telemetry) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::TelemetryInvalid { reason });
    if !telemetry.stream.is_empty() && !is_stream_name(&telemetry.stream) {
        return refuse(format!(
            "a stream name has 1 to {STREAM_LEN_MAX} characters, those of device ids"
        ));
    }
    match telemetry.message_id.as_deref().map(str::len) {
        Some(len) if len == 0 || len > MESSAGE_ID_LEN_MAX => {
            return refuse(format!(
                "message id has {len} bytes, 1 to {MESSAGE_ID_LEN_MAX} are allowed"
            ));
        }
        _ => {}
    }
    if let Err(reason) = check_properties(&telemetry.properties, telemetry.content_type.as_deref()) {
        return refuse(reason);
    }
    let bytes = telemetry.body.len();
    if bytes > BODY_BYTES_MAX {
        return refuse(format!("body has {bytes} bytes, at most {BODY_BYTES_MAX} are allowed"));
    }
    Ok(())
}

/// What is true of the properties of a message in either direction.
///
/// # Errors
/// The rule that is broken.
pub(in crate::device) fn check_properties(
    properties: &[(String, String)],
    content_type: Option<&str>,
) -> Result<(), String> {
    let count = properties.len();
    if count > PROPERTY_COUNT_MAX {
        return Err(format!("{count} properties, at most {PROPERTY_COUNT_MAX} are allowed"));
    }
    let each = properties.iter().map(|(name, value)| name.len() + value.len());
    let bytes = each.sum::<usize>() + content_type.map_or(0, str::len);
    if bytes > PROPERTY_BYTES_MAX {
        return Err(format!(
            "properties have {bytes} bytes, at most {PROPERTY_BYTES_MAX} are allowed"
        ));
    }
    Ok(())
}

impl Scene<'_> {
    pub(super) fn record_telemetry(
        &self,
        origin: &Origin,
        telemetry: &Telemetry,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        self.enabled()?;
        check_telemetry(telemetry)?;
        let (ordinal, delivery) = match origin {
            Origin::Session { fence, delivery } => (fence.ordinal, *delivery),
            Origin::Operator => (0, None),
        };
        let delivery = delivery.filter(|_| telemetry.message_id.is_none());
        if self.is_stored(telemetry, delivery) {
            return Ok(());
        }
        self.record(
            Arrival {
                ordinal,
                will: false,
                packet: delivery.map(|d| (d.packet_id, d.digest)),
            },
            telemetry,
            events,
        );
        Ok(())
    }

    /// Each message is decided on what the ones before it left behind.
    pub(super) fn record_batch(&self, batch: &[Telemetry]) -> Result<Vec<Event>, Refusal> {
        self.enabled()?;
        let mut state = self.state.clone();
        let mut events = Vec::with_capacity(batch.len());
        for telemetry in batch {
            let scene = Scene { state: &state, ..*self };
            let mut new = Vec::with_capacity(1);
            scene.record_telemetry(&Origin::Operator, telemetry, &mut new)?;
            for event in &new {
                // What is decided on a sound state fits it.
                apply(&mut state, event, self.now).map_err(|_| Refusal::Quarantined)?;
            }
            events.append(&mut new);
        }
        Ok(events)
    }

    /// Records nothing when a message with the will's id is stored already.
    pub(super) fn record_will(&self, will: &Will, events: &mut Vec<Event>) {
        if !self.is_stored(&will.telemetry, None) {
            let arrival = Arrival {
                ordinal: 0,
                will: true,
                packet: None,
            };
            self.record(arrival, &will.telemetry, events);
        }
    }

    fn is_stored(&self, telemetry: &Telemetry, delivery: Option<Delivery>) -> bool {
        let windows = &self.state.windows;
        match (&telemetry.message_id, delivery) {
            (Some(id), _) => windows.message(id).is_some(),
            // In doubt it is stored: a duplicate is better than a loss.
            (None, Some(d)) if d.dup => windows
                .packet(d.packet_id, d.digest, self.state.telemetry.last_seq)
                .is_some(),
            _ => false,
        }
    }

    fn record(&self, arrival: Arrival, telemetry: &Telemetry, events: &mut Vec<Event>) {
        let seq = self.state.telemetry.last_seq.saturating_add(1);
        self.make_room(seq, events);
        events.push(Event::TelemetryRecorded(Box::new(TelemetryRecorded {
            seq,
            ordinal: arrival.ordinal,
            will: arrival.will,
            packet: arrival.packet,
            message_ids_max: u16::try_from(self.policy.message_ids_max).unwrap_or(u16::MAX),
            packet_ids_max: u16::try_from(self.policy.packet_ids_max).unwrap_or(u16::MAX),
            telemetry: telemetry.clone(),
        })));
    }

    /// Trims a sixteenth at a time, so that not every message brings a second event.
    fn make_room(&self, seq: u64, events: &mut Vec<Event>) {
        let head = &self.state.telemetry;
        let max = self.policy.telemetry_count_max.max(1);
        let count = seq.saturating_sub(head.first_seq).saturating_add(1);
        if !head.has_rows() || count <= max.saturating_add(max / 16) {
            return;
        }
        let before_seq = seq
            .saturating_sub(max)
            .saturating_add(1)
            .min(head.last_seq.saturating_add(1));
        events.push(Event::TelemetryTrimmed {
            before_seq,
            // When the first that stays was enqueued is not known here. The former time is a lower
            // bound, and the sweep that follows it corrects it.
            oldest_at: head.oldest_at.filter(|_| before_seq <= head.last_seq),
        });
    }

    pub(super) fn trim_telemetry(&self, before_seq: u64, oldest_at: Option<Timestamp>) -> Vec<Event> {
        let head = &self.state.telemetry;
        let end = head.last_seq.saturating_add(1);
        if !head.has_rows() || before_seq < head.first_seq || before_seq > end {
            return Vec::new();
        }
        let oldest_at = match (before_seq < end, oldest_at) {
            (false, _) => None,
            // The sweep saw nothing stay, but telemetry has come since.
            (true, None) => head.oldest_at,
            (true, Some(at)) => Some(at),
        };
        if before_seq == head.first_seq && oldest_at <= head.oldest_at {
            return Vec::new();
        }
        vec![Event::TelemetryTrimmed { before_seq, oldest_at }]
    }
}

/// How telemetry came in.
struct Arrival {
    ordinal: u64,
    will: bool,
    packet: Option<(u16, u64)>,
}
