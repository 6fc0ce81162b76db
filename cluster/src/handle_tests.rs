//! Paging over shards: every device once, in order, whatever the pages are cut into.

use std::collections::BTreeMap;

use actors::device::{DeviceView, Status};
use actors::id::DeviceId;
use actors::time::Timestamp;
use proptest::prelude::*;

use super::*;

fn view(id: &str) -> DeviceView {
    DeviceView {
        id: DeviceId::parse(id).unwrap(),
        status: Status::Enabled,
        etag: 1,
        version: 1,
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        automatic: false,
        connection: None,
        last_seq: 0,
        first_seq: 1,
        last_telemetry_at: None,
        twin_version: 0,
        gateway: None,
    }
}

/// A shard's page as `reads::devices` makes it; `seen_max` stands for its bound on rows looked at.
fn page(ids: &[(String, bool)], after: Option<&DeviceId>, limit: usize, seen_max: usize) -> DevicePage {
    let mut page = DevicePage {
        devices: Vec::new(),
        next: None,
    };
    let mut rest = ids
        .iter()
        .filter(|(id, _)| after.is_none_or(|after| id.as_str() > after.as_str()));
    let mut seen = 0;
    while page.devices.len() < limit && seen < seen_max {
        let Some((id, wanted)) = rest.next() else {
            page.next = None;
            return page;
        };
        seen += 1;
        page.next = Some(DeviceId::parse(id).unwrap());
        page.devices.extend(wanted.then(|| view(id)));
    }
    page
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn pages_over_shards_list_every_device_once_in_order(
        devices in proptest::collection::btree_map("[a-c]{1,4}", (0..4usize, any::<bool>()), 0..60),
        limit in 1..8usize,
        seen_max in 1..10usize,
    ) {
        let mut shards: BTreeMap<usize, Vec<(String, bool)>> = (0..4).map(|shard| (shard, Vec::new())).collect();
        for (id, (shard, wanted)) in &devices {
            shards.get_mut(shard).unwrap().push((id.clone(), *wanted));
        }
        let (mut listed, mut after, mut asked) = (Vec::new(), None, 0);
        loop {
            let pages = shards.values().map(|ids| page(ids, after.as_ref(), limit, seen_max)).collect();
            let merged = merge(pages, limit);
            prop_assert!(merged.devices.len() <= limit);
            listed.extend(merged.devices.into_iter().map(|device| device.id.as_str().to_owned()));
            asked += 1;
            prop_assert!(asked <= devices.len() * 2 + 2, "paging does not come to an end");
            match merged.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let expected: Vec<String> = devices.into_iter().filter(|(_, (_, wanted))| *wanted).map(|(id, _)| id).collect();
        prop_assert_eq!(listed, expected);
    }
}
