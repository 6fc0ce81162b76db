//! PUBLISH packets, written straight into bytes: the one packet that load is made of.
//!
//! Everything else goes through the codec in `protocol`.

/// What a publish says besides its payload.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub v5: bool,
    /// `None`: QoS 0.
    pub packet_id: Option<u16>,
    pub topic: &'a [u8],
    /// MQTT 5 user properties.
    pub properties: &'a [(&'a [u8], &'a [u8])],
}

const DUP: u8 = 0x08;
const QOS1: u8 = 0x02;

/// Appends a PUBLISH.
pub fn publish(head: &Head<'_>, payload: &[u8], out: &mut Vec<u8>) {
    let text = |bytes: &[u8]| 2 + bytes.len();
    let properties: usize = head.properties.iter().map(|(k, v)| 1 + text(k) + text(v)).sum();
    let mut length = text(head.topic) + head.packet_id.map_or(0, |_| 2) + payload.len();
    if head.v5 {
        length += properties + length_of(properties);
    }
    out.reserve(length + 5);
    out.push(0x30 | head.packet_id.map_or(0, |_| QOS1));
    put_length(length, out);
    put_text(head.topic, out);
    if let Some(id) = head.packet_id {
        out.extend_from_slice(&id.to_be_bytes());
    }
    if head.v5 {
        put_length(properties, out);
        for (key, value) in head.properties {
            out.push(0x26);
            put_text(key, out);
            put_text(value, out);
        }
    }
    out.extend_from_slice(payload);
}

/// Marks a PUBLISH as sent before.
pub fn mark_dup(packet: &mut [u8]) {
    if let Some(first) = packet.first_mut() {
        *first |= DUP;
    }
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    // Topics and properties are bounded far below 64 KiB where they are made.
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn length_of(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

fn put_length(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use rmqtt_codec::{v3, v5};
    use tokio_util::codec::Decoder;

    /// What we write is what a library of other people's making reads.
    #[test]
    fn packets_are_read_as_they_were_meant() {
        for (size, v5, id) in [
            (0, true, Some(7)),
            (200, false, Some(65_535)),
            (20_000, true, None),
            (70_000, false, None),
        ] {
            let payload = vec![b'x'; size];
            let head = Head {
                v5,
                packet_id: id,
                topic: b"devices/d/telemetry",
                properties: &[(b"message-id", b"1-2")],
            };
            let mut out = Vec::new();
            publish(&head, &payload, &mut out);
            if id.is_some() {
                mark_dup(&mut out);
            }
            let mut bytes = BytesMut::from(&out[..]);
            let read = if v5 {
                match v5::Codec::new(1 << 20, 0).decode(&mut bytes).unwrap().unwrap().0 {
                    v5::Packet::Publish(read) => *read,
                    other => panic!("{other:?}"),
                }
            } else {
                match v3::Codec::new(1 << 20).decode(&mut bytes).unwrap().unwrap().0 {
                    v3::Packet::Publish(read) => *read,
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(read.packet_id.map(|id| id.get()), id);
            assert_eq!(
                (read.dup, &*read.topic, read.payload.len()),
                (id.is_some(), "devices/d/telemetry", size)
            );
            if v5 {
                let properties = read.properties.unwrap().user_properties;
                assert_eq!(properties, [("message-id".into(), "1-2".into())]);
            }
        }
    }
}
