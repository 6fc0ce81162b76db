//! Chance from a seed, the same for ever: plans must not change with a library's version.

use rand::RngCore;

/// SplitMix64. Small, quick, and good enough for loads; not for secrets.
#[derive(Clone, Debug)]
pub struct Chance(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    /// A source of its own for what `salt` names.
    pub fn fork(seed: u64, salt: &[u64]) -> Self {
        let mixed = salt.iter().fold(seed, |acc, part| mix(acc ^ part.wrapping_mul(STEP)));
        Self::new(mixed)
    }

    /// 0 ≤ x < 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// 0 ≤ x < `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    pub fn hit(&mut self, share: f64) -> bool {
        share > 0.0 && self.unit() < share
    }

    /// Mean 0, deviation 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// A place in `weights`, by weight; 0 when all are 0.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (at, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return at;
            }
        }
        0
    }
}

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// A number that stands for a text, for [`Chance::fork`].
pub fn salt(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers are part of the format: a plan of today must be that of next year.
    #[test]
    fn the_sequence_never_changes() {
        let mut chance = Chance::new(1);
        let first: Vec<u64> = (0..3).map(|_| chance.next_u64()).collect();
        let mut again = Chance::new(1);
        assert_eq!(first, (0..3).map(|_| again.next_u64()).collect::<Vec<_>>());
        assert_ne!(first, (0..3).map(|_| Chance::new(2).next_u64()).collect::<Vec<_>>());
    }

    #[test]
    fn distributions_have_their_means() {
        let mut chance = Chance::new(7);
        let mean = |mut draw: Box<dyn FnMut() -> f64>| (0..20_000).map(|_| draw()).sum::<f64>() / 20_000.0;
        let (mut a, mut b, mut c) = (chance.clone(), Chance::new(8), Chance::new(9));
        assert!((mean(Box::new(move || a.unit())) - 0.5).abs() < 0.02);
        assert!(mean(Box::new(move || b.normal())).abs() < 0.03);
        assert!((mean(Box::new(move || c.exponential())) - 1.0).abs() < 0.03);
        let hits = (0..10_000).filter(|_| chance.weighted(&[1.0, 3.0]) == 1).count();
        assert!((7_200..7_800).contains(&hits), "{hits}");
        assert_eq!(chance.below(0), 0);
    }
}
