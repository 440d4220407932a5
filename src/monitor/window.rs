//! Averages as the reference computes them (7.1): the arithmetic mean until the window is full, an
//! exponential average with the factor 1/window from then on. Pure.

/// Average of one figure.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Average {
    sum: f64,
    count: u32,
}

impl Average {
    /// Takes one sample; `window` is the number of samples in a full window, at least 1.
    pub(crate) fn add(&mut self, value: u64, window: u32) {
        if self.count < window.max(1) {
            self.count += 1;
        } else {
            self.sum -= self.sum / f64::from(self.count);
        }
        self.sum += float(value);
    }

    /// The average now, rounded half away from zero; 0 before the first sample.
    pub(crate) fn value(self) -> u64 {
        if self.count == 0 { 0 } else { whole(self.sum / f64::from(self.count)) }
    }
}

/// The nearest float; figures above 2^53 (8 PiB) lose their last bits.
#[allow(clippy::cast_precision_loss, reason = "averages need no more than 53 bits")]
pub(crate) fn float(value: u64) -> f64 {
    value as f64
}

/// Rounds half away from zero; what does not fit becomes the nearest end of the range.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub(crate) fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(window: u32, samples: &[u64], expect: &[u64]) {
        let mut average = Average::default();
        let values: Vec<u64> = samples
            .iter()
            .map(|sample| {
                average.add(*sample, window);
                average.value()
            })
            .collect();
        assert_eq!(values, expect);
    }

    #[test]
    fn mean_until_full_then_exponential() {
        check(3, &[1000, 2000, 3000, 2000], &[1000, 1500, 2000, 2000]);
        check(3, &[100, 200, 300, 500], &[100, 150, 200, 300]);
        check(1, &[7, 9, 0], &[7, 9, 0]);
        check(0, &[7, 9], &[7, 9]);
        check(2, &[1, 2], &[1, 2]); // 1.5 is rounded away from zero
        check(4, &[u64::MAX, u64::MAX], &[u64::MAX, u64::MAX]);
        check(6, &[], &[]);
        assert_eq!(Average::default().value(), 0);
    }

    #[test]
    fn rounding_saturates() {
        assert_eq!([whole(-3.0), whole(0.5), whole(2.5), whole(1e30)], [0, 1, 3, u64::MAX]);
        assert_eq!(whole(f64::NAN), 0);
    }
}
