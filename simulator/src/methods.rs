//! Method calls to a simulated device: each is answered at once with what it brought.
//!
//! A call and its answer live no longer than the connection, so nothing of them is recorded.

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::types::Publish;
use rmqtt_codec::v3;
use rmqtt_codec::v5::{self, QoS};
use tokio_util::codec::Encoder;

use crate::protocol::{Codec, ProtocolError};

/// Where a device hears of its calls.
pub(crate) fn filter(device: &str) -> String {
    format!("devices/{device}/methods/+/+")
}

/// The topic and payload that answer what came on `topic`; `None` when that is no call.
pub(crate) fn echo(device: &str, topic: &str, payload: &[u8]) -> Option<(ByteString, Bytes)> {
    let below = topic.strip_prefix("devices/")?.strip_prefix(device)?;
    let (name, rid) = below.strip_prefix("/methods/")?.split_once('/')?;
    if name == "res" || rid.contains('/') {
        return None;
    }
    let mut answer = Vec::with_capacity(payload.len() + 32);
    answer.extend_from_slice(br#"{"status":200,"payload":"#);
    answer.extend_from_slice(if payload.is_empty() { b"null" } else { payload });
    answer.push(b'}');
    Some((format!("devices/{device}/methods/res/{rid}").into(), answer.into()))
}

impl Codec {
    /// Writes a publish that is not acknowledged.
    ///
    /// # Errors
    /// As [`Codec::connect`].
    pub(crate) fn publish_once(
        &mut self,
        topic: ByteString,
        payload: Bytes,
        out: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        let publish = |properties| {
            Box::new(Publish {
                dup: false,
                retain: false,
                qos: QoS::AtMostOnce,
                topic,
                packet_id: None,
                payload,
                properties,
            })
        };
        let written = match self {
            Self::V311(codec) => codec.encode(v3::Packet::Publish(publish(None)), out),
            Self::V5(codec) => codec.encode(v5::Packet::Publish(publish(Some(Default::default()))), out),
        };
        written.map_err(|error| ProtocolError::Unwritable(format!("{error:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_answered_with_what_they_brought() {
        let answer = |topic: &str, payload: &str| {
            let (topic, payload) = echo("dev-1", topic, payload.as_bytes())?;
            Some(format!("{topic} {}", String::from_utf8_lossy(&payload)))
        };
        assert_eq!(
            answer("devices/dev-1/methods/blink/3-1", r#"{"n":1}"#).as_deref(),
            Some(r#"devices/dev-1/methods/res/3-1 {"status":200,"payload":{"n":1}}"#)
        );
        assert_eq!(
            answer("devices/dev-1/methods/blink/3-1", "").as_deref(),
            Some(r#"devices/dev-1/methods/res/3-1 {"status":200,"payload":null}"#)
        );
        for other in [
            "devices/dev-1/twin/res/1",
            "devices/dev-12/methods/a/1",
            "devices/dev-1/methods/res/1",
            "devices/dev-1/methods/a",
        ] {
            assert_eq!(answer(other, "1"), None, "{other}");
        }
    }
}
