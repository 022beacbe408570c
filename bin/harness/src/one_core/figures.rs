//! The arithmetic: medians, quartiles, ratios of pairs, and whether they can be trusted.

/// Above this distance of the quartiles, as a share of the median, a ratio is not to be trusted.
pub(crate) const SPREAD_MAX: f64 = 0.05;

/// The fewest values whose quartiles say something about the spread.
pub(crate) const VALUES_MIN: usize = 3;

/// The median of some values, and between which two the middle half lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quartiles {
    /// A quarter is below it.
    pub low: f64,
    /// Half is below it.
    pub median: f64,
    /// A quarter is above it.
    pub high: f64,
    /// How many values there were.
    pub count: usize,
}

impl Quartiles {
    /// Of these values, between two of them by proportion; `None` of none, and where one is no number.
    pub(crate) fn of(values: &[f64]) -> Option<Quartiles> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (below, part) = (place.floor() as usize, place.fract());
            let above = (below + 1).min(values.len() - 1);
            values[below] + (values[above] - values[below]) * part
        };
        Some(Quartiles { low: at(0.25), median: at(0.5), high: at(0.75), count: values.len() })
    }

    /// How far the quartiles are apart, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        (self.high - self.low) / self.median.abs().max(f64::MIN_POSITIVE)
    }

    /// Whether there are enough values and they agree: the machine was quiet enough for this figure.
    pub(crate) fn is_trusted(&self) -> bool {
        self.count >= VALUES_MIN && self.spread() <= SPREAD_MAX
    }
}

/// The ratios of what was measured in the same round; `None` in a round brings none.
pub(crate) fn paired(of: &[Option<f64>], by: &[Option<f64>]) -> Vec<f64> {
    let pairs = of.iter().zip(by).filter_map(|pair| Some(((*pair.0)?, (*pair.1)?)));
    pairs.filter(|(_, by)| *by > 0.0).map(|(of, by)| of / by).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values_by_proportion() {
        let found = Quartiles::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((found.low, found.median, found.high), (1.75, 2.5, 3.25));
        let found = Quartiles::of(&[9.0]).unwrap();
        assert_eq!((found.low, found.median, found.high, found.count), (9.0, 9.0, 9.0, 1));
        assert_eq!(Quartiles::of(&[]), None);
        assert_eq!(Quartiles::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn one_wild_round_of_five_moves_neither_the_median_nor_the_trust() {
        let found = Quartiles::of(&[1.01, 0.99, 1.0, 7.0, 1.02]).unwrap();
        assert_eq!(found.median, 1.01);
        assert!(found.is_trusted(), "{found:?}");
    }

    #[test]
    fn scattered_or_too_few_figures_are_not_trusted() {
        assert!(!Quartiles::of(&[0.9, 1.0, 1.1, 1.2, 0.8]).unwrap().is_trusted());
        assert!(!Quartiles::of(&[1.0, 1.0]).unwrap().is_trusted());
        assert!(!Quartiles::of(&[0.0, 0.0, 1.0]).unwrap().is_trusted(), "a median of 0");
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let of = [Some(10.0), None, Some(30.0), Some(5.0)];
        let by = [Some(5.0), Some(1.0), Some(10.0), Some(0.0)];
        assert_eq!(paired(&of, &by), [2.0, 3.0]);
    }
}
