//! Topic aliases of MQTT 5: a client names a topic once and uses a number from then on.
//!
//! They belong to the connection. The codec takes alias 0 for a malformed packet; the protocol has
//! a code of its own for it, so that it is looked for before decoding.

use bytestring::ByteString;
use rmqtt_codec::types::Publish;

use super::reasons::Violation;

/// The topics a client gave numbers to; nothing until it does.
#[derive(Debug, Default)]
pub struct Aliases(Vec<Option<ByteString>>);

impl Aliases {
    /// Gives `publish` its topic, and takes its alias away; up to `max` are kept.
    ///
    /// # Errors
    /// An alias beyond `max`, or one that stands for no topic yet.
    pub fn resolve(&mut self, publish: &mut Publish, max: u16) -> Result<(), Violation> {
        let alias = publish.properties.as_mut().and_then(|p| p.topic_alias.take());
        let Some(alias) = alias else {
            return Ok(());
        };
        if alias.get() > max {
            return Err(Violation::TopicAlias);
        }
        let at = usize::from(alias.get() - 1);
        if publish.topic.is_empty() {
            let known = self.0.get(at).and_then(Option::as_ref);
            publish.topic = known.ok_or(Violation::Protocol)?.clone();
            return Ok(());
        }
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        // A copy of its own: the topic of a publish shares the memory of the whole packet.
        self.0[at] = Some(ByteString::from(publish.topic.to_string()));
        Ok(())
    }
}

/// Whether the whole MQTT 5 packet is a PUBLISH with alias 0. What is malformed otherwise is not.
pub fn is_zero(packet: &[u8], header: usize) -> bool {
    properties(packet, header).is_some_and(|properties| has_zero_alias(properties).unwrap_or(false))
}

/// The properties of a PUBLISH.
fn properties(packet: &[u8], header: usize) -> Option<&[u8]> {
    let first = *packet.first()?;
    if first & 0xf0 != 0x30 {
        return None;
    }
    let (_, rest) = text(packet.get(header..)?)?;
    let rest = if first & 0x06 == 0 { rest } else { rest.get(2..)? };
    let (length, rest) = number(rest)?;
    rest.get(..length)
}

fn has_zero_alias(mut rest: &[u8]) -> Option<bool> {
    const ALIAS: u8 = 0x23;
    while let Some((&kind, value)) = rest.split_first() {
        rest = match kind {
            ALIAS => return Some(value.get(..2)? == [0, 0]),
            0x01 => value.get(1..)?,
            0x02 => value.get(4..)?,
            0x03 | 0x08 | 0x09 => text(value)?.1,
            0x0b => number(value)?.1,
            0x26 => text(text(value)?.1)?.1,
            _ => return None,
        };
    }
    Some(false)
}

/// Bytes with their length in front, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
    bytes[2..].split_at_checked(usize::from(length))
}

/// A number of variable length, and what follows.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        number |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmqtt_codec::types::QoS;
    use rmqtt_codec::v5::PublishProperties;

    fn publish(topic: &'static str, alias: u16) -> Publish {
        Publish {
            dup: false,
            retain: false,
            qos: QoS::AtMostOnce,
            topic: topic.into(),
            packet_id: None,
            payload: bytes::Bytes::new(),
            properties: Some(PublishProperties {
                topic_alias: std::num::NonZeroU16::new(alias),
                ..PublishProperties::default()
            }),
        }
    }

    #[test]
    fn an_alias_stands_for_the_last_topic_it_was_given() {
        let mut aliases = Aliases::default();
        let mut resolve = |topic, alias| {
            let mut publish = publish(topic, alias);
            let resolved = aliases.resolve(&mut publish, 16).map(|()| publish.topic.to_string());
            assert!(resolved.is_err() || publish.properties.is_some_and(|p| p.topic_alias.is_none()));
            resolved
        };
        assert_eq!(resolve("", 3), Err(Violation::Protocol), "no topic yet");
        assert_eq!(resolve("a", 3), Ok("a".into()));
        assert_eq!(resolve("", 3), Ok("a".into()));
        assert_eq!(resolve("", 2), Err(Violation::Protocol));
        assert_eq!(resolve("b", 3), Ok("b".into()));
        assert_eq!(resolve("", 3), Ok("b".into()));
        assert_eq!(resolve("c", 16), Ok("c".into()));
        assert_eq!(resolve("d", 17), Err(Violation::TopicAlias));
        assert_eq!(resolve("e", 0), Ok("e".into()));
    }

    #[test]
    fn alias_zero_is_found_among_other_properties() {
        let check = |packet: &[u8], expected| assert_eq!(is_zero(packet, 2), expected, "{packet:x?}");
        check(b"\x30\x07\0\x01a\x03\x23\0\0", true);
        check(b"\x32\x09\0\x01a\0\x01\x03\x23\0\0", true);
        check(b"\x30\x0e\0\x01a\x0a\x26\0\x01k\0\x01v\x23\0\0", true);
        check(b"\x30\x07\0\x01a\x03\x23\0\x01", false);
        check(b"\x30\x04\0\x01a\0", false);
        check(b"\x30\x05\0\x01a\x03\x23", false);
        check(b"\xe0\x07\0\x01a\x03\x23\0\0", false);
    }
}
