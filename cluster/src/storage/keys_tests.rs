//! What the key layout promises.

use proptest::prelude::*;

use super::*;

fn id() -> impl Strategy<Value = DeviceId> {
    // Few letters, so that prefixes of one another are common.
    "[a%-]{1,4}".prop_map(|text| DeviceId::parse(&text).unwrap())
}

fn device() -> impl Strategy<Value = DeviceKey> {
    (prop_oneof![0..3_u32, Just(u32::MAX)], id()).prop_map(|(tenant, id)| DeviceKey::new(TenantId(tenant), id))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, 255..258_u64, Just(u64::MAX), any::<u64>()]
}

fn space() -> impl Strategy<Value = Space> {
    let shard = prop_oneof![0..2_u16, Just(255), Just(256), Just(u16::MAX)].prop_map(ShardId);
    let generation = prop_oneof![0..2_u32, Just(255), Just(u32::MAX)];
    (shard, generation).prop_map(|(shard, generation)| Space { shard, generation })
}

fn holds(range: &KeyRange, key: &[u8]) -> bool {
    range.from.as_slice() <= key && key < range.to.as_slice()
}

proptest! {
    #[test]
    fn what_was_built_is_parsed(space in space(), device in device(), a in number(), b in number(), what in proptest::sample::select(&DueKind::ALL[..])) {
        let due = DueRow { at: Timestamp(a), what, device: device.clone() };
        let gateway = Gateway { node: a, boot: b };
        prop_assert_eq!(parse_device(&space.device(&device)), Some(device.clone()));
        prop_assert_eq!(parse_due(&space.due(&due)), Some(due));
        prop_assert_eq!(parse_gateway(&space.gateway(gateway, &device)), Some((gateway, device.clone())));
        prop_assert_eq!(parse_telemetry_seq(&space.telemetry(&device, a)), Some(a));
        prop_assert_eq!(parse_feedback_seq(&space.feedback(&device, a)), Some(a));
        prop_assert_eq!(parse_feedback_seq(&space.telemetry(&device, a)), None);
        prop_assert_eq!(parse_device(&space.telemetry(&device, a)), None);
        prop_assert_eq!(parse_due(&space.device(&device)), None);
    }

    #[test]
    fn key_order_is_the_order_of_what_is_named(
        space in space(), x in device(), y in device(), a in number(), b in number(),
    ) {
        prop_assert_eq!(space.device(&x).cmp(&space.device(&y)), x.cmp(&y));
        prop_assert_eq!(space.telemetry(&x, a).cmp(&space.telemetry(&x, b)), a.cmp(&b));
        prop_assert_eq!(space.telemetry(&x, a).cmp(&space.telemetry(&y, b)), (&x, a).cmp(&(&y, b)));
        let due = |at, device: &DeviceKey| space.due(&DueRow { at: Timestamp(at), what: DueKind::Will, device: device.clone() });
        prop_assert_eq!(due(a, &x).cmp(&due(b, &y)), (a, &x).cmp(&(b, &y)));
    }

    #[test]
    fn a_range_holds_its_own_rows_and_no_others(
        space in space(), other in space(), x in device(), y in device(), a in number(), b in number(),
    ) {
        let same = x == y;
        prop_assert_eq!(holds(&space.telemetry_of(&x), &space.telemetry(&y, a)), same);
        prop_assert_eq!(holds(&space.telemetry_from(&x, a), &space.telemetry(&y, b)), same && b >= a);
        prop_assert_eq!(holds(&space.messages_of(&x), &space.message(&y, a)), same);
        prop_assert_eq!(holds(&space.feedback_of(&x), &space.feedback(&y, a)), same);
        prop_assert_eq!(holds(&space.feedback_from(&x, a), &space.feedback(&y, b)), same && b >= a);
        prop_assert_eq!(holds(&space.telemetry_below(&x, a), &space.telemetry(&y, b)), same && b < a);
        prop_assert_eq!(holds(&space.twin_of(&x), &space.twin(&y, 255)), same);
        prop_assert_eq!(holds(&space.devices_of(x.tenant, None, ""), &space.device(&y)), x.tenant == y.tenant);
        let after = x.tenant == y.tenant && y.device > x.device;
        prop_assert_eq!(holds(&space.devices_of(x.tenant, Some(&x.device), ""), &space.device(&y)), after);
        let due = DueRow { at: Timestamp(b), what: DueKind::Telemetry, device: y.clone() };
        prop_assert_eq!(holds(&space.due_until(DueKind::Telemetry, Timestamp(a)), &space.due(&due)), b <= a);
        let (g, h) = (Gateway { node: a, boot: b }, Gateway { node: b, boot: a });
        prop_assert_eq!(holds(&space.gateway_of(g), &space.gateway(h, &y)), g == h);

        for row in [other.device(&y), other.twin(&y, 0), other.telemetry(&y, b), other.due(&due), other.gateway(g, &y)] {
            prop_assert_eq!(holds(&space.all(), &row), space == other);
            prop_assert_eq!(holds(&all_generations(space.shard), &row), space.shard == other.shard);
            let arrived = moved(&row, space).unwrap();
            prop_assert!(holds(&space.all(), &arrived));
            prop_assert_eq!(moved(&arrived, other), Some(row));
        }
        prop_assert!(!holds(&all_generations(space.shard), &meta(other.shard)));
    }
}
