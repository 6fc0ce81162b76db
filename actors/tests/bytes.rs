//! Bytes and texts from outside: read back exactly, or refused; never a panic, never a large
//! allocation.

#![allow(clippy::unwrap_used)]

mod common;

use actors::id::{DeviceId, DeviceKey, ShardId, TenantId, DEVICE_ID_LEN_MAX};
use actors::wire::codec::{self, CodecError};
use actors::wire::receipt::Receipt;
use actors::wire::topic;
use common::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sealed_records_are_read_back(command in command(), event in event(), state in wild_state()) {
        prop_assert_eq!(codec::open(&codec::seal(&command)), Ok(command));
        prop_assert_eq!(codec::open(&codec::seal(&event)), Ok(event));
        prop_assert_eq!(codec::open(&codec::seal(&state)), Ok(state));
    }

    /// G9: damaged bytes are detected.
    #[test]
    fn damaged_records_are_refused(event in event()) {
        let sealed = codec::seal(&event);
        for len in 0..sealed.len() {
            prop_assert!(codec::open::<actors::device::Event>(&sealed[..len]).is_err(), "cut to {}", len);
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(codec::open::<actors::device::Event>(&flipped).is_err(), "bit {}", bit);
        }
        let mut longer = sealed.clone();
        longer.push(0);
        prop_assert!(codec::open::<actors::device::Event>(&longer).is_err());
    }

    /// Also where no checksum protects: any outcome but a panic.
    #[test]
    fn garbage_decodes_or_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), command in command()) {
        let _ = codec::decode::<actors::device::Event>(&bytes);
        let _ = codec::decode::<actors::device::Command>(&bytes);
        let _ = codec::decode::<actors::device::DeviceState>(&bytes);
        let mut encoded = codec::encode(&command);
        for (at, byte) in bytes.iter().enumerate() {
            let at = at * 7 % encoded.len();
            encoded[at] = *byte;
            let _ = codec::decode::<actors::device::Command>(&encoded);
        }
    }

    #[test]
    fn topics_never_panic(text in any::<String>(), tail in "[a-z/%$.&=?+#0-9\u{0}ä]{0,40}") {
        let own = lamp().device;
        for topic in [text, format!("devices/lamp/{tail}"), format!("devices/lamp/messages/events/{tail}"), tail] {
            let _ = topic::parse_publish(&own, &topic);
            let allowed = topic::check_filter(&own, &topic).is_ok();
            prop_assert!(!allowed || !topic::filter_matches(&topic, "devices/other/telemetry"));
        }
    }

    #[test]
    fn receipts_are_read_back(shard in any::<u16>(), term in any::<u64>(), index in any::<u64>(), seq in any::<u64>()) {
        let receipt = Receipt { shard: ShardId(shard), term, index, seq };
        prop_assert_eq!(receipt.to_string().parse(), Ok(receipt));
    }

    #[test]
    fn receipts_never_panic(text in "[0-9+ -]{0,50}") {
        if let Ok(receipt) = text.parse::<Receipt>() {
            prop_assert_eq!(receipt.to_string().parse(), Ok(receipt));
        }
    }

    #[test]
    fn device_ids_are_taken_or_refused(text in any::<String>()) {
        if let Ok(id) = DeviceId::parse(&text) {
            prop_assert_eq!(id.as_str(), text.as_str());
            prop_assert!(text.is_ascii() && !text.contains(['/', '+', '#', '\0', ' ']));
        }
    }
}

/// A length prefix that promises more than was sent. bincode would allocate what it promises; an
/// allocation of this size ends the process.
#[test]
fn promised_lengths_are_not_believed() {
    for promised in [1u64 << 20, 1 << 32, 1 << 46, u64::MAX] {
        let mut bytes = vec![253];
        bytes.extend_from_slice(&promised.to_le_bytes());
        assert!(
            matches!(codec::decode::<String>(&bytes), Err(CodecError::Body(_))),
            "{promised}"
        );
        assert!(codec::decode::<Vec<u64>>(&bytes).is_err());
        assert!(codec::decode::<Vec<String>>(&bytes).is_err());
        assert!(codec::decode::<serde_bytes::ByteBuf>(&bytes).is_err());
    }
}

/// The limit on decoding must not refuse what encoding produced, whatever the size.
#[test]
fn large_values_are_read_back() {
    for len in [0usize, 1, 1000, 16 * 1024, 16 * 1024 + 1, 1024 * 1024, 3 * 1024 * 1024] {
        let small_numbers = vec![1u64; len];
        assert_eq!(codec::decode(&codec::encode(&small_numbers)), Ok(small_numbers));
        let text = "x".repeat(len);
        assert_eq!(codec::decode(&codec::encode(&text)), Ok(text));
    }
}

#[test]
fn foreign_versions_are_named() {
    let mut sealed = codec::seal(&1u8);
    sealed[0] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[2]), &sealed[codec::HEADER_LEN..]);
    sealed[1..codec::HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(codec::open::<u8>(&sealed), Err(CodecError::Version(2)));
}

#[test]
fn receipts_have_one_spelling() {
    let check = |text: &str, good: bool| assert_eq!(text.parse::<Receipt>().is_ok(), good, "{text}");
    check("7-1-2-3", true);
    check("65535-0-0-0", true);
    check("65536-0-0-0", false);
    check("7-1-2", false);
    check("7-1-2-3-4", false);
    check("7-1--3", false);
    check("+7-1-2-3", false);
    check("", false);
    check("7-1-2-99999999999999999999", false);
}

#[test]
fn device_ids_follow_the_alphabet() {
    let check = |text: &str, good: bool| assert_eq!(DeviceId::parse(text).is_ok(), good, "{text}");
    check("a", true);
    check("Az09-._:=@,;!()'$*%", true);
    check(&"x".repeat(DEVICE_ID_LEN_MAX), true);
    check(&"x".repeat(DEVICE_ID_LEN_MAX + 1), false);
    for bad in [
        "", " ", "a b", "a/b", "a+", "#", "ä", "a\0", "a\n", "\"", "\\", "?", "&",
    ] {
        check(bad, false);
    }
}

/// A stored fleet depends on it: the same device lives in the same shard in every release.
#[test]
fn devices_keep_their_shard() {
    let shard = |tenant, device: &str| {
        DeviceKey::new(TenantId(tenant), DeviceId::parse(device).unwrap())
            .shard(16)
            .0
    };
    let all: Vec<u16> = (0..2000).map(|n| shard(1, &format!("device-{n}"))).collect();
    assert!(all.iter().all(|shard| *shard < 16));
    for wanted in 0..16 {
        let count = all.iter().filter(|shard| **shard == wanted).count();
        assert!((60..200).contains(&count), "shard {wanted} has {count} of 2000");
    }
    assert_eq!([shard(1, "lamp"), shard(2, "lamp"), shard(1, "fan")], [3, 5, 0]);
}
