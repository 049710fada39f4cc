//! The recorded blocks behind an estimate, and its standard error.

/// The recorded blocks behind an estimate of what is outstanding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Number of recorded blocks.
    pub count: u64,
    /// Variance of the estimated number of blocks, in blocks squared.
    pub count_variance: f64,
    /// Variance of the estimated bytes, in bytes squared.
    pub bytes_variance: f64,
}

impl Sampled {
    /// The sum of two estimates: blocks are recorded independently of each other.
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            count_variance: self.count_variance + other.count_variance,
            bytes_variance: self.bytes_variance + other.bytes_variance,
        }
    }

    /// Standard error of the number of blocks; `None` where no block was recorded that stands for
    /// others, as nothing can be said then of how many others there are.
    pub fn count_error(self) -> Option<u64> {
        (self.count_variance > 0.0).then(|| self.count_variance.sqrt().round() as u64)
    }

    /// Standard error of the bytes, as [`Sampled::count_error`].
    pub fn bytes_error(self) -> Option<u64> {
        (self.bytes_variance > 0.0).then(|| self.bytes_variance.sqrt().round() as u64)
    }
}
