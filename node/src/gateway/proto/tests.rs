//! No bytes make the decoder panic, read beyond its packet, or stay stuck.

use proptest::prelude::*;

use super::*;
use crate::gateway::socket::{front, Front};

/// One packet of each type and version, with as many optional parts as fit.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        &b"\x10\x18\0\x04MQTT\x04\xc6\0\x3c\0\x01a\0\x01t\0\x01m\0\x01u\0\x01p"[..],
        b"\x10\x2a\0\x04MQTT\x05\xc6\0\x3c\x08\x11\0\0\0\x09\x21\0\x05\0\x01a\x05\x18\0\0\0\x01\0\x01t\0\x01m\0\x01u\0\x01p",
        b"\x20\x02\x01\0",
        b"\x20\x06\x01\0\x03\x21\0\x05",
        b"\x32\x08\0\x03a/b\0\x01x",
        b"\x3b\x16\0\x03a/b\0\x01\x0e\x01\x01\x02\0\0\0\x09\x26\0\x01k\0\x01v\x03x",
        b"\x30\x04\0\x01ax",
        b"\x40\x02\0\x01",
        b"\x40\x0b\0\x01\x10\x07\x26\0\x01k\0\x01v",
        b"\x50\x02\0\x01",
        b"\x62\x02\0\x01",
        b"\x70\x02\0\x01",
        b"\x82\x06\0\x01\0\x01a\x01",
        b"\x82\x09\0\x01\x02\x0b\x05\0\x01a\x01",
        b"\x90\x03\0\x01\x01",
        b"\x90\x04\0\x01\0\x01",
        b"\xa2\x05\0\x01\0\x01a",
        b"\xa2\x06\0\x01\0\0\x01a",
        b"\xb0\x02\0\x01",
        b"\xb0\x04\0\x01\0\x11",
        b"\xc0\0",
        b"\xd0\0",
        b"\xe0\0",
        b"\xe0\x09\x04\x07\x11\0\0\0\x09\x1f\0",
        b"\xf0\x0a\x18\x08\x15\0\x01m\x16\0\x01d",
    ]
    .iter()
    .map(|seed| seed.to_vec())
    .collect();
    seeds.push(vec![]);
    seeds
}

/// Decodes as a connection does: whole packets only.
fn feed(bytes: &[u8]) {
    let protocols = [
        Protocol::V3(v3::Codec::new(256 * 1024)),
        Protocol::V5(v5::Codec::new(256 * 1024, 0)),
    ];
    for mut protocol in protocols {
        let mut input = BytesMut::from(bytes);
        while let Front::Packet {
            header,
            remaining,
            whole: true,
            ..
        } = front(&input)
        {
            let before = input.len();
            if protocol.decode(&mut input).is_err() {
                break;
            }
            assert_eq!(
                before - input.len(),
                header + remaining as usize,
                "exactly one packet is consumed"
            );
        }
    }
}

/// The packet, cut to `len` bytes with its length made to fit.
fn cut(packet: &[u8], len: usize) -> Vec<u8> {
    let mut cut = packet[..len].to_vec();
    if len >= 2 {
        cut[1] = u8::try_from(len - 2).expect("seeds are short");
    }
    cut
}

#[test]
fn every_packet_survives_truncation_and_bit_flips() {
    for seed in seeds() {
        for at in 0..seed.len() {
            feed(&seed[..at]);
            feed(&cut(&seed, at));
            for bit in 0..8 {
                let mut flipped = seed.clone();
                flipped[at] ^= 1 << bit;
                feed(&flipped);
                for len in 2..flipped.len() {
                    feed(&cut(&flipped, len));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(first in any::<u8>(), mut body in prop::collection::vec(any::<u8>(), 0..120)) {
        body.insert(0, u8::try_from(body.len()).expect("short"));
        body.insert(0, first);
        feed(&body);
    }

    #[test]
    fn any_replacement_is_survived(seed in 0..25usize, at in 0..60usize, with in any::<u16>()) {
        let mut bytes = seeds()[seed].clone();
        for (offset, byte) in with.to_be_bytes().into_iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + offset) {
                *place = byte;
            }
        }
        feed(&bytes);
    }

    #[test]
    fn any_stream_is_framed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        front(&bytes);
        feed(&bytes);
    }
}
