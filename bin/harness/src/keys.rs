//! Which key comes next: the distributions. Key 0 is the most popular one of `zipf`.

use rand::rngs::SmallRng;
use rand::RngExt as _;
use rand_distr::{Distribution as _, Zipf};
use std::fmt;

/// How requests spread over the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Distribution {
    /// Every key is equally likely.
    #[default]
    Uniform,
    /// The probability of key n is proportional to 1/(n+1)^s.
    Zipf,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Distribution::Uniform => "uniform",
            Distribution::Zipf => "zipf",
        })
    }
}

/// Draws keys.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chooser {
    /// See [`Distribution::Uniform`].
    Uniform {
        /// How many keys.
        keys: u32,
    },
    /// See [`Distribution::Zipf`].
    Zipf {
        /// How many keys.
        keys: u32,
        /// Draws from 1 to `keys`.
        zipf: Zipf<f64>,
    },
}

impl Chooser {
    /// Chooses among `keys` keys; `exponent` is that of `zipf`.
    ///
    /// # Errors
    /// When there are no keys or the exponent is negative or not a number.
    pub(crate) fn new(distribution: Distribution, keys: u32, exponent: f64) -> anyhow::Result<Chooser> {
        anyhow::ensure!(keys > 0, "there must be a key");
        Ok(match distribution {
            Distribution::Uniform => Chooser::Uniform { keys },
            Distribution::Zipf => Chooser::Zipf { keys, zipf: Zipf::new(f64::from(keys), exponent)? },
        })
    }

    /// The next key, from 0.
    pub(crate) fn choose(&self, random: &mut SmallRng) -> u32 {
        match self {
            Chooser::Uniform { keys } => random.random_range(0..*keys),
            // Exact whole numbers in the range of a u32.
            Chooser::Zipf { keys, zipf } => (zipf.sample(random) as u32).clamp(1, *keys) - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn counts(distribution: Distribution, keys: u32, exponent: f64, draws: u32) -> Vec<f64> {
        let chooser = Chooser::new(distribution, keys, exponent).unwrap();
        let mut random = SmallRng::seed_from_u64(1);
        let mut counts = vec![0.0; keys as usize];
        for _ in 0..draws {
            counts[chooser.choose(&mut random) as usize] += 1.0;
        }
        counts
    }

    #[test]
    fn zipf_follows_its_law() {
        let (draws, exponent) = (1_000_000, 0.99);
        let counts = counts(Distribution::Zipf, 1000, exponent, draws);
        let harmonic: f64 = (1..=1000).map(|n| f64::from(n).powf(-exponent)).sum();
        for rank in [1, 2, 10, 100] {
            let expected = f64::from(draws) * f64::from(rank).powf(-exponent) / harmonic;
            let found = counts[rank as usize - 1];
            // Five standard deviations.
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "rank {rank}: {found}, not {expected}");
        }
        assert!(counts[999] > 0.0, "the last key is reached");
    }

    #[test]
    fn uniform_reaches_every_key_alike() {
        let counts = counts(Distribution::Uniform, 100, 0.0, 1_000_000);
        assert!(counts.iter().all(|count| (count - 10_000.0).abs() < 500.0), "{counts:?}");
    }

    #[test]
    fn one_key_is_enough_and_none_is_refused() {
        assert_eq!(counts(Distribution::Zipf, 1, 0.99, 10), [10.0]);
        assert!(Chooser::new(Distribution::Zipf, 0, 0.99).is_err());
        assert!(Chooser::new(Distribution::Zipf, 10, -1.0).is_err());
    }
}
