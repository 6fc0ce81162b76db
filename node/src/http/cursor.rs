//! Where the next page starts, as opaque text. A cursor works only with the query it came from.

use actors::id::{DeviceId, TenantId};
use actors::wire::codec;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::{Deserialize, Serialize};

use super::filter::Filter;

/// Longest cursor we give out, with room: base64 of an id and a hash.
const CURSOR_BYTES_MAX: usize = 512;

#[derive(Serialize, Deserialize)]
struct Cursor {
    query: u64,
    after: DeviceId,
}

/// Names the query, so that a cursor is not used with another one by mistake.
fn query_hash(tenant: TenantId, filter: &Filter) -> u64 {
    let status = filter.status.map(|s| s as u8);
    let bytes = codec::encode(&(tenant, &filter.id_prefix, status, filter.connected, &filter.gateway));
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

pub fn write(tenant: TenantId, filter: &Filter, after: DeviceId) -> String {
    let query = query_hash(tenant, filter);
    URL_SAFE_NO_PAD.encode(codec::seal(&Cursor { query, after }))
}

/// The device after which the page starts; `None` when the text is no cursor of this query.
pub fn read(tenant: TenantId, filter: &Filter, text: &str) -> Option<DeviceId> {
    if text.len() > CURSOR_BYTES_MAX {
        return None;
    }
    let cursor: Cursor = codec::open(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    (cursor.query == query_hash(tenant, filter)).then_some(cursor.after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_serves_only_its_own_query() {
        let all = Filter::default();
        let some = Filter {
            connected: Some(true),
            ..Filter::default()
        };
        let id = DeviceId::parse("pump-1").unwrap();
        let cursor = write(TenantId::DEFAULT, &all, id.clone());
        assert_eq!(read(TenantId::DEFAULT, &all, &cursor), Some(id));
        assert_eq!(read(TenantId::DEFAULT, &some, &cursor), None);
        assert_eq!(read(TenantId(2), &all, &cursor), None);
        assert_eq!(read(TenantId::DEFAULT, &all, "nonsense"), None);
        let longest = DeviceId::parse(&"x".repeat(128)).unwrap();
        assert!(write(TenantId::DEFAULT, &all, longest).len() <= CURSOR_BYTES_MAX);
    }
}
