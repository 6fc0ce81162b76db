//! Where MQTT packets begin in a stream of bytes, so that damage falls on a packet's first byte and
//! never on a payload: TCP's checksum is not ours to question, and a payload changed under it would
//! be stored as it came.

#[derive(Default)]
pub struct Framing {
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    First,
    /// Bytes of the remaining length so far.
    Length {
        value: u64,
        shift: u32,
    },
    Body(u64),
}

/// Type 0 is reserved: no packet begins with it.
const SPOILT: u8 = 0x0F;

impl Framing {
    /// Follows `bytes`, and spoils the first byte of each packet for which `hit` says so.
    pub fn spoil(&mut self, bytes: &mut [u8], mut hit: impl FnMut() -> bool) -> bool {
        let (mut at, mut spoilt) = (0, false);
        while at < bytes.len() {
            match &mut self.state {
                State::First => {
                    if hit() {
                        bytes[at] = SPOILT;
                        spoilt = true;
                    }
                    self.state = State::Length { value: 0, shift: 0 };
                    at += 1;
                }
                State::Length { value, shift } => {
                    let byte = bytes[at];
                    *value |= u64::from(byte & 0x7f) << *shift;
                    *shift += 7;
                    at += 1;
                    if byte < 0x80 || *shift >= 28 {
                        self.state = match *value {
                            0 => State::First,
                            length => State::Body(length),
                        };
                    }
                }
                State::Body(left) => {
                    let take = (*left).min((bytes.len() - at) as u64);
                    *left -= take;
                    at += take as usize;
                    if *left == 0 {
                        self.state = State::First;
                    }
                }
            }
        }
        spoilt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the stream is cut, only first bytes change.
    #[test]
    fn only_first_bytes_are_spoilt() {
        let long = [&[0x30, 0x80, 0x01][..], &[7; 128]].concat();
        let stream = [&[0x10, 2, 9, 9][..], &[0xC0, 0], &long, &[0x30, 1, 5]].concat();
        let firsts = [0, 4, 6, stream.len() - 3];
        for size in 1..stream.len() {
            let (mut framing, mut out) = (Framing::default(), Vec::new());
            for piece in stream.chunks(size) {
                let mut piece = piece.to_vec();
                framing.spoil(&mut piece, || true);
                out.extend(piece);
            }
            for (at, (before, after)) in stream.iter().zip(&out).enumerate() {
                assert_eq!(before != after, firsts.contains(&at), "byte {at} in pieces of {size}");
            }
        }
    }
}
