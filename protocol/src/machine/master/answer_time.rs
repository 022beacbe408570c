//! How long a slave usually takes to answer.
//!
//! Never reads a clock, and never decides what follows from it: `hedges.rs` does.

/// How long a slave usually takes to answer reads of short values: a moving average, and how far answers are from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnswerTime {
    /// Eighths of a millisecond.
    mean_eighths: u64,
    /// Quarters of a millisecond.
    spread_quarters: u64,
}

impl AnswerTime {
    /// Notes an answer. Jacobson's estimator, as TCP has it for its retransmissions (RFC 6298).
    pub(super) fn note(&mut self, took_ms: u64) {
        let off_ms = took_ms.abs_diff(self.mean_eighths / 8);
        self.mean_eighths = self.mean_eighths - self.mean_eighths / 8 + took_ms;
        self.spread_quarters = self.spread_quarters - self.spread_quarters / 4 + off_ms;
    }

    /// Longer than this is unusual, in milliseconds.
    pub(super) fn usual_ms(self) -> u64 {
        self.mean_eighths / 8 + self.spread_quarters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_time_follows_what_answers_take() {
        let mut time = AnswerTime::default();
        for _ in 0..100 {
            time.note(0);
        }
        assert_eq!(time.usual_ms(), 0);
        for _ in 0..100 {
            time.note(10);
        }
        assert!((10..=13).contains(&time.usual_ms()), "{time:?}");
        for n in 0..100 {
            time.note(if n % 2 == 0 { 5 } else { 15 });
        }
        assert!((20..=35).contains(&time.usual_ms()), "mean and four times the spread: {time:?}");
    }
}
