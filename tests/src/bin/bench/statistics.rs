//! Many measurements of one thing, and what they say together.
//! Never leaves one out.

/// What was measured, one value a round.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more round.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest.
    pub fn minimum(&self) -> f64 {
        self.quantile(0.0)
    }

    /// Half of them are smaller.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// This part of them is smaller; not a number if there are none.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// The median of the differences to what was measured beside it in the same rounds.
    pub fn over(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one - other).collect()).median()
    }

    /// The median of the ratios to what was measured beside it in the same rounds.
    pub fn ratio(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect()).median()
    }
}
