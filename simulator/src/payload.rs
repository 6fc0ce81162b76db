//! What a simulated device sends: JSON that names its device, run and number, padded to a size.
//!
//! The bytes of a message are a function of (device, run, n, size), so that a resend needs no
//! copy and a reader can tell whether what was stored is what was sent.

use bytes::{BufMut, BytesMut};

/// Smallest padding; a message is never cut to fit a smaller size.
const AROUND_PADDING: usize = r#","p":"""#.len();

/// Appends message `n` of `device` in `run`, `size` bytes long where the fields leave room.
pub fn telemetry(device: &str, run: u32, n: u32, size: usize, out: &mut BytesMut) {
    let start = out.len();
    out.put_slice(b"{\"d\":\"");
    out.put_slice(device.as_bytes());
    out.put_slice(b"\",\"r\":");
    put_number(run, out);
    out.put_slice(b",\"n\":");
    put_number(n, out);
    let used = out.len() - start + 1;
    if size >= used + AROUND_PADDING {
        out.put_slice(b",\"p\":\"");
        out.put_bytes(b'x', size - used - AROUND_PADDING);
        out.put_slice(b"\"");
    }
    out.put_slice(b"}");
}

/// Appends the merge patch of the `k`-th twin report of a run.
pub fn twin_report(run: u32, k: u32, out: &mut BytesMut) {
    out.put_slice(b"{\"run\":");
    put_number(run, out);
    out.put_slice(b",\"k\":");
    put_number(k, out);
    out.put_slice(b"}");
}

fn put_number(mut value: u32, out: &mut BytesMut) {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any size gives valid JSON with its three names; a size with room is met to the byte.
    #[test]
    fn payload_is_json_of_the_asked_size() {
        for (n, size) in [(1, 0), (42, 60), (u32::MAX, 256), (7, 4096)] {
            let mut out = BytesMut::new();
            telemetry("dev-1", 9, n, size, &mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(
                (&value["d"], &value["r"], &value["n"]),
                (&"dev-1".into(), &9.into(), &n.into())
            );
            assert!(size < 60 || out.len() == size, "{} bytes instead of {size}", out.len());
        }
    }
}
