//! Source addresses to connect from: single ones, or ranges such as `127.0.1.0/24`.

use std::net::Ipv4Addr;

/// Addresses all ranges together may hold.
pub const ADDRESSES_MAX: u64 = 1 << 24;

/// Ranges of addresses; empty: the system chooses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    ranges: Vec<(u32, u32)>,
    total: u32,
}

impl Sources {
    /// The address of connection `number`; round and round.
    pub fn of(&self, number: u32) -> Option<Ipv4Addr> {
        let mut left = number.checked_rem(self.total)?;
        for (first, count) in &self.ranges {
            if left < *count {
                return Some(Ipv4Addr::from(first + left));
            }
            left -= count;
        }
        None
    }

    pub fn len(&self) -> u32 {
        self.total
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// # Errors
/// What is wrong, as text after the key.
pub fn parse(texts: &[String]) -> Result<Sources, String> {
    let (mut ranges, mut total) = (Vec::new(), 0u64);
    for text in texts {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, bits.parse::<u32>().ok()),
            None => (text.as_str(), Some(32)),
        };
        let parsed = address
            .parse::<Ipv4Addr>()
            .ok()
            .zip(bits.filter(|bits| (8..=32).contains(bits)));
        let Some((address, bits)) = parsed else {
            return Err(format!(
                "{text:?} is no IPv4 address or range such as 127.0.1.0/24 (/8 to /32)"
            ));
        };
        let size = 1u64 << (32 - bits);
        let base = u32::from(address) & !((size - 1) as u32);
        // Network and broadcast address of a larger range are nobody's to connect from.
        let (first, count) = if size > 2 { (base + 1, size - 2) } else { (base, size) };
        total += count;
        ranges.push((first, count as u32));
    }
    if total > ADDRESSES_MAX {
        return Err(format!("hold {total} addresses, allowed is up to {ADDRESSES_MAX}"));
    }
    Ok(Sources {
        ranges,
        total: total as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_give_their_addresses_in_turn() {
        let sources = parse(&["127.0.0.9".into(), "127.0.1.77/30".into()]).unwrap();
        let text = |n| sources.of(n).unwrap().to_string();
        assert_eq!(sources.len(), 3);
        assert_eq!(
            [text(0), text(1), text(2), text(3)],
            ["127.0.0.9", "127.0.1.77", "127.0.1.78", "127.0.0.9"]
        );
        assert_eq!(Sources::default().of(5), None);
        for bad in ["localhost", "1.2.3", "127.0.0.0/40", "0.0.0.0/1", "::1"] {
            assert!(parse(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
