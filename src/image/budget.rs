//! What may be written into one directory: its limit, what is in it, what was reserved.
//!
//! Pure bookkeeping; fetch thread, one attempt at a time. Everything is reserved here before it is
//! written. Not here: what the file system has left (`space.rs`), and evicting.

/// Limit of a directory in bytes, as percent of its partition.
///
/// `limits` are the percentages of all directories that share the partition, this one's first;
/// 0 = no limit. If they ask for more than the whole together, each gets its share of it.
pub(super) fn limit_bytes(partition_bytes: u64, limits: &[u64]) -> Option<u64> {
    let own = limits.first().copied().filter(|percent| *percent > 0)?;
    let sum = limits.iter().sum::<u64>().max(100);
    let bytes = u128::from(partition_bytes) * u128::from(own) / u128::from(sum);
    u64::try_from(bytes).ok()
}

/// Bytes of one directory.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    limit_bytes: Option<u64>,
    /// Of the packages that are installed.
    used_bytes: u64,
    reserved_bytes: u64,
}

impl Budget {
    pub(super) fn new(limit_bytes: Option<u64>, used_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes, reserved_bytes: 0 }
    }

    /// What the limit leaves.
    pub(super) fn left(&self) -> u64 {
        let taken = self.used_bytes.saturating_add(self.reserved_bytes);
        self.limit_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(taken))
    }

    /// Takes room for what is about to be written. False = the limit does not permit it, and
    /// nothing was taken.
    pub(super) fn reserve(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.left();
        if fits {
            self.reserved_bytes = self.reserved_bytes.saturating_add(bytes);
        }
        fits
    }

    /// Gives back room that was reserved: what was written there is gone again.
    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
    }

    /// A package of this directory was evicted.
    pub(super) fn evicted(&mut self, bytes: u64) {
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// Sum of the reservations: the size of the package, once it is complete.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits() {
        let check = |limits: &[u64], expect| assert_eq!(limit_bytes(1000, limits), expect);
        check(&[], None);
        check(&[0, 40], None);
        check(&[40], Some(400));
        check(&[40, 0], Some(400));
        check(&[40, 60], Some(400));
        check(&[60, 60], Some(500));
        check(&[100, 100], Some(500));
        check(&[100], Some(1000));
        assert_eq!(limit_bytes(u64::MAX, &[100]), Some(u64::MAX));
    }

    #[test]
    fn without_a_limit_everything_fits() {
        let mut budget = Budget::new(None, u64::MAX);
        assert!(budget.reserve(u64::MAX) && budget.reserve(1));
        assert_eq!(budget.reserved(), u64::MAX);
    }

    /// What happens to a directory.
    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u64),
        /// What one of the reservations was for is not needed any more.
        Release(usize),
        Evict(usize),
        /// The attempt ends well: what it reserved is a package now.
        Publish,
        /// It ends badly: its reservations go with it.
        Fail,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop_oneof![0..400u64, any::<u64>()].prop_map(Step::Reserve),
            1 => (0..8usize).prop_map(Step::Release),
            1 => (0..8usize).prop_map(Step::Evict),
            1 => Just(Step::Publish),
            1 => Just(Step::Fail),
        ]
    }

    proptest! {
        /// Over any number of attempts: what is taken is exactly the packages that are there plus
        /// the reservations of this attempt, and it never exceeds the limit.
        #[test]
        fn the_sum_of_reservations_is_what_was_reserved(
            limit in 0..2000u64,
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut packages: Vec<u64> = Vec::new();
            let mut attempt: Vec<u64> = Vec::new();
            let sum = |list: &[u64]| list.iter().sum::<u64>();
            let mut budget = Budget::new(Some(limit), 0);
            for step in steps {
                let before = budget.left();
                match step {
                    Step::Reserve(bytes) => {
                        let fits = budget.reserve(bytes);
                        prop_assert_eq!(fits, bytes <= before);
                        if fits {
                            attempt.push(bytes);
                        }
                    }
                    Step::Release(at) if at < attempt.len() => {
                        budget.release(attempt.remove(at));
                    }
                    Step::Evict(at) if at < packages.len() => {
                        budget.evicted(packages.remove(at));
                    }
                    Step::Release(_) | Step::Evict(_) => {}
                    Step::Publish => {
                        packages.push(budget.reserved());
                        attempt.clear();
                        budget = Budget::new(Some(limit), sum(&packages));
                    }
                    Step::Fail => {
                        attempt.clear();
                        budget = Budget::new(Some(limit), sum(&packages));
                    }
                }
                prop_assert_eq!(budget.reserved(), sum(&attempt));
                let taken = sum(&packages) + sum(&attempt);
                prop_assert!(taken <= limit);
                prop_assert_eq!(budget.left(), limit - taken);
            }
        }
    }
}
