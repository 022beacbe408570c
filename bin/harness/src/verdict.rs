//! The problems of a run ([`Finding`]). The table, the exit code and the report all use them.

use super::failures::{HistoryVerdict, Wrong};
use super::record::RunRecord;
use std::fmt;

/// A problem of a run; each one makes the exit code 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finding {
    /// So many answers were wrong; `outside`: not within the measurement.
    Answers { wrong: Wrong, count: u64, outside: bool },
    /// So many keys lost their latest acknowledged write.
    Lost(u64),
    /// So many keys hold a value at the end that was never written.
    MangledKeys(u64),
    /// It is unknown what was lost, and why.
    NotReadBack(String),
    /// The history was not found linearizable; with the part that has no explanation.
    History(HistoryVerdict, String),
    /// No request succeeded, so there is nothing to measure.
    NothingMeasured,
    /// More requests failed than were to, both in percent.
    TooManyErrors { rate: f64, max: f64 },
}

impl Finding {
    /// Whether it is the truth of the store's answers that is in doubt, and not whether there were enough of them.
    fn is_about_answers(&self) -> bool {
        match self {
            Finding::Answers { .. }
            | Finding::Lost(_)
            | Finding::MangledKeys(_)
            | Finding::NotReadBack(_)
            | Finding::History(..) => true,
            Finding::NothingMeasured | Finding::TooManyErrors { .. } => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Answers { wrong, count, outside } => {
                let when = if *outside { " outside the measurement" } else { "" };
                write!(f, "{count} answers{when} {} ({})", wrong.means(), wrong.class())
            }
            Finding::Lost(count) => write!(f, "{count} keys lost their latest acknowledged write"),
            Finding::MangledKeys(count) => write!(f, "{count} keys hold at the end what nobody wrote"),
            Finding::NotReadBack(why) => write!(f, "the keys could not be read back at the end: {why}"),
            Finding::History(verdict, example) => {
                write!(f, "the check of the history: {verdict}\n{example}")
            }
            Finding::NothingMeasured => f.write_str("no request succeeded: nothing was measured"),
            Finding::TooManyErrors { rate, max } => {
                write!(f, "{rate:.3} % of the requests failed, more than --max-error-rate {max}")
            }
        }
    }
}

/// All problems of a run. `error_rate_max`: `--max-error-rate`, in percent.
pub(crate) fn findings(run: &RunRecord, error_rate_max: Option<f64>) -> Vec<Finding> {
    let mut found = Vec::new();
    let totals = &run.totals;
    for (errors, outside) in [(&totals.errors, false), (&run.wrong_outside, true)] {
        for wrong in Wrong::ALL {
            if let Some(count) = errors.get(wrong.class()) {
                found.push(Finding::Answers { wrong, count: *count, outside });
            }
        }
    }
    match &run.read_back {
        Some(back) => {
            if back.lost > 0 {
                found.push(Finding::Lost(back.lost));
            }
            if back.mangled > 0 {
                found.push(Finding::MangledKeys(back.mangled));
            }
        }
        None => found.push(Finding::NotReadBack(run.read_back_error.clone())),
    }
    if let Some(check) = run.check.as_ref().filter(|check| check.verdict != HistoryVerdict::Linearizable) {
        let example = check.counter_example.clone().unwrap_or_default();
        found.push(Finding::History(check.verdict, example));
    }
    if totals.success_count == 0 && !run.interrupted {
        found.push(Finding::NothingMeasured);
    }
    if let Some(max) = error_rate_max {
        let rate = 100.0 * totals.error_count as f64 / totals.total_requests.max(1) as f64;
        if rate > max {
            found.push(Finding::TooManyErrors { rate, max });
        }
    }
    found
}

/// Whether all that was looked at was right.
pub(crate) fn is_right(run: &RunRecord) -> bool {
    !findings(run, None).iter().any(Finding::is_about_answers)
}

#[cfg(test)]
mod tests {
    use super::super::record::{CheckRecord, ReadBack};
    use super::*;

    fn good() -> RunRecord {
        let mut run = RunRecord { read_back: Some(ReadBack::default()), ..RunRecord::default() };
        run.totals.success_count = 1;
        run.totals.total_requests = 1;
        run
    }

    #[test]
    fn each_kind_of_fault_is_found_and_reported_by_itself() {
        assert_eq!(findings(&good(), Some(0.0)), []);
        assert!(is_right(&good()));
        type Spoil = fn(&mut RunRecord);
        let cases: [(Spoil, bool, &str); 8] = [
            (
                |run| *run.totals.errors.entry("stale_value".to_owned()).or_default() = 3,
                false,
                "3 answers had a value that had been replaced, or none (stale_value)",
            ),
            (
                |run| *run.wrong_outside.entry("mangled".to_owned()).or_default() = 2,
                false,
                "2 answers outside the measurement had a value that nobody wrote, or made no sense (mangled)",
            ),
            (
                |run| run.read_back = Some(ReadBack { lost: 4, ..ReadBack::default() }),
                false,
                "4 keys lost their latest acknowledged write",
            ),
            (
                |run| run.read_back = Some(ReadBack { mangled: 5, ..ReadBack::default() }),
                false,
                "5 keys hold at the end what nobody wrote",
            ),
            (
                |run| (run.read_back, run.read_back_error) = (None, "why".to_owned()),
                false,
                "the keys could not be read back at the end: why",
            ),
            (
                |run| {
                    let verdict = HistoryVerdict::GaveUp;
                    let counter_example = Some("too long".to_owned());
                    run.check = Some(CheckRecord { verdict, counter_example, ..CheckRecord::default() });
                },
                false,
                "the check of the history: gave up\ntoo long",
            ),
            (|run| run.totals.success_count = 0, true, "no request succeeded: nothing was measured"),
            (
                |run| (run.totals.error_count, run.totals.total_requests) = (1, 2),
                true,
                "50.000 % of the requests failed, more than --max-error-rate 0",
            ),
        ];
        for (spoil, right, told) in cases {
            let mut run = good();
            spoil(&mut run);
            let found: Vec<String> = findings(&run, Some(0.0)).iter().map(ToString::to_string).collect();
            assert_eq!(found, [told]);
            assert_eq!(is_right(&run), right, "{told}");
        }
    }
}
