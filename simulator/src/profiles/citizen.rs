//! Which misbehaviours a bad citizen has, drawn once, and the garbage it sends.

use super::Misbehave;
use crate::payloads::Chance;

/// What one device does that none should.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Habits {
    /// Mean µs between two losses of its connection.
    pub flap_us: Option<u64>,
    pub clock_skew_ms: i64,
    pub has_rival: bool,
    pub never_acks: bool,
    /// µs without reading, and with.
    pub slow_us: Option<u64>,
    /// Mean µs between two malformed packets.
    pub malformed_us: Option<u64>,
}

impl Habits {
    pub fn draw(plan: &Misbehave, chance: &mut Chance) -> Self {
        // Everything is drawn, whatever comes out, so that one share does not shift the others.
        let (flaps, wrong, rival) = (
            chance.hit(plan.flapping),
            chance.hit(plan.wrong_clock),
            chance.hit(plan.duplicate_id),
        );
        let (mute, slow, garbage) = (
            chance.hit(plan.never_acks),
            chance.hit(plan.slow_reader),
            chance.hit(plan.malformed),
        );
        let skew = plan.clock_skew_secs.draw(chance);
        Self {
            flap_us: plan.flap_every.filter(|_| flaps).map(|every| every.micros()),
            clock_skew_ms: if wrong { (skew * 1e3) as i64 } else { 0 },
            has_rival: rival,
            never_acks: mute,
            slow_us: plan.slow_for.filter(|_| slow).map(|long| long.micros()),
            malformed_us: plan.malformed_every.filter(|_| garbage).map(|every| every.micros()),
        }
    }
}

/// A packet that is none, of one of several kinds. All but the last end the connection; a server
/// may wait for the rest of that one.
pub fn garbage(chance: &mut Chance) -> &'static [u8] {
    const KINDS: [&[u8]; 6] = [
        &[0x00, 0x00],                               // reserved type
        &[0x36, 0x02, 0x00, 0x00],                   // QoS 3
        &[0x82, 0x03, 0x00, 0x00, 0x00],             // SUBSCRIBE with packet id 0
        &[0x32, 0xff, 0xff, 0xff, 0xff, 0x01],       // length of five bytes
        &[0x30, 0x04, 0x00, 0x05, b'a', b'b'],       // topic longer than the packet
        &[0x30, 0x7f, 0x00, 0x03, b'a', b'/', b'b'], // never completed
    ];
    KINDS[chance.below(KINDS.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Span;

    #[test]
    fn habits_fall_on_their_share_of_the_fleet() {
        let plan = Misbehave {
            flapping: 0.25,
            flap_every: Some(Span::secs(5)),
            never_acks: 1.0,
            ..Default::default()
        };
        let mut chance = Chance::new(3);
        let drawn: Vec<Habits> = (0..4_000).map(|_| Habits::draw(&plan, &mut chance)).collect();
        let flapping = drawn.iter().filter(|habits| habits.flap_us == Some(5_000_000)).count();
        assert!((900..1_100).contains(&flapping), "{flapping}");
        assert!(drawn
            .iter()
            .all(|habits| habits.never_acks && !habits.has_rival && habits.slow_us.is_none()));
    }
}
