//! Choices of tests that kill: random, but the same again for the same seed.
//!
//! `AOS_KILL_SEED` is what the choices begin with and `AOS_KILLS` how often is killed; a test that
//! fails prints its seed.

const SEED: u64 = 20_251_125;

/// Choices of the `nth` test.
pub fn chance(nth: u64) -> Random {
    Random((seed() ^ nth.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1)
}

pub fn seed() -> u64 {
    number_from("AOS_KILL_SEED", SEED)
}

/// How often a test kills; `usual` unless somebody wants another number.
pub fn kills(usual: usize) -> usize {
    usize::try_from(number_from("AOS_KILLS", usual as u64)).unwrap()
}

fn number_from(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// A small generator, good enough to choose points: xorshift64*.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % limit
    }
}
