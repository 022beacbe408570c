//! Writes the report of a sweep: one HTML file that needs nothing else, no network, no script, no other file.
//!
//! Owns the page's look (`page.html`, `report.css`) and how a text is shown in it; `page.rs` has its content. It computes
//! no measurement: every number is from the record of the runs, and the plots are those that were drawn.

mod page;

use std::fmt::{self, Display};
use std::path::Path;

use anyhow::Context as _;
use askama::filters::Escaper;
use askama::Template as _;

use super::plots::Plot;
use super::record::SweepRecord;
use page::{Page, SetFigure};

/// Writes one self-contained `report.html`. The plots are read from the directory that `path` is in.
///
/// # Errors
/// When there is no run and no placement, a plot cannot be read, or the file cannot be written.
pub(crate) fn write(sweep: &SweepRecord, plots: &[Plot], path: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        !sweep.runs.is_empty() || !sweep.placement.is_empty(),
        "there is nothing to report: the sweep has no run"
    );
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut drawn = Vec::with_capacity(plots.len());
    for plot in plots {
        let file = directory.join(&plot.svg);
        let svg =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        drawn.push(SetFigure::new(plot, inline(&svg, &plot.title)));
    }
    let page = Page::new(sweep, drawn).render().context("cannot build the report")?;
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Text that shows as it is, wherever in an HTML page it stands. Control characters become a replacement character: a
/// counter-example may hold any byte that a client sent.
#[derive(Clone, Copy)]
pub(crate) struct ShownText;

impl Escaper for ShownText {
    fn write_escaped_str<W: fmt::Write>(&self, mut dest: W, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => dest.write_str("&amp;")?,
                '<' => dest.write_str("&lt;")?,
                '>' => dest.write_str("&gt;")?,
                '"' => dest.write_str("&quot;")?,
                '\'' => dest.write_str("&#39;")?,
                '\n' | '\t' => dest.write_char(c)?,
                c if c.is_control() => dest.write_char('\u{fffd}')?,
                c => dest.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// An SVG document as a part of a page: named for those who cannot see it, without what only a file of its own needs.
fn inline(svg: &str, title: &str) -> String {
    let start = svg.find("<svg ").unwrap_or(0);
    svg[start..].replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1).replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{}\" ", Attribute(title)),
        1,
    )
}

/// A text in an attribute.
struct Attribute<'a>(&'a str);

impl Display for Attribute<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ShownText.write_escaped_str(f, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::failures::HistoryVerdict;
    use super::super::plots::draw;
    use super::super::plots::tests::{break_seconds, fault, made_up_run, placement, sweep_of};
    use super::super::record::{CheckRecord, ReadBack, RunRecord};
    use super::*;

    fn report(sweep: &SweepRecord) -> String {
        let directory = tempfile::tempdir().unwrap();
        let plots = draw(sweep, directory.path()).unwrap();
        let path = directory.path().join("report.html");
        write(sweep, &plots, &path).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    /// Whether anything in `html` would make a browser fetch something, or run it.
    fn reaches_out(html: &str) -> Vec<&'static str> {
        let html = html.to_lowercase();
        let signs = [
            "http://", "https://", "src=", "href", "url(", "@import", "<script", "<link", "<iframe", "<img",
            "<base",
        ];
        signs.into_iter().filter(|sign| html.contains(sign)).collect()
    }

    #[test]
    fn a_report_holds_everything_and_refers_to_nothing() {
        let mut run = made_up_run(5, 18, 12);
        break_seconds(&mut run, 3, 5);
        run.faults = vec![fault("kill-primary", 3.2, Some(5.0))];
        run.system.cpu_model = "Some Processor 9000".into();
        run.check = Some(CheckRecord {
            operations: 1234,
            keys: 56,
            verdict: HistoryVerdict::Violation,
            counter_example: Some("READ k -> <nothing>".into()),
            ..CheckRecord::default()
        });
        run.read_back = Some(ReadBack { keys_checked: 10_000, lost: 3, mangled: 0 });
        let mut sweep = sweep_of(vec![run]);
        sweep.placement = vec![placement("hash", [5540; 9])];
        let html = report(&sweep);
        for part in [
            "dsm-test-harness --slaves 5 --clients 18",
            "Some Processor 9000",
            "dsm 0.1.0",
            "41.5 ms",
            "kill-primary",
            "The connection failed before the answer",
            "Violation.",
            "READ k -&gt; &lt;nothing&gt;",
            "3 had lost the latest acknowledged write",
            "10,000 writes, each to 5 of 9 slaves",
            "Content-Security-Policy",
        ] {
            assert!(html.contains(part), "no {part:?}");
        }
        // What compares runs is drawn where a grid varies something: a single run shows its course and its slaves.
        let single = html.matches("<svg ").count();
        assert_eq!(single, 5);
        assert_eq!(reaches_out(&html), [""; 0]);
        sweep.runs.push(made_up_run(5, 36, 12));
        let grid = report(&sweep).matches("<svg ").count();
        assert!(grid > single, "{grid} plots of two numbers of clients");
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let attack = "'\"><script src=https://evil.example/x.js></script><img onerror=a>&\u{0}";
        let mut run = made_up_run(2, 2, 3);
        run.command_line = vec![attack.into()];
        run.store = attack.into();
        run.started_at = attack.into();
        run.system.cpu_model = attack.into();
        run.settings.target = Some(attack.into());
        run.settings.distribution = attack.into();
        run.faults = vec![fault(attack, 1.0, None)];
        run.faults[0].errors.insert(attack.into(), 3);
        run.totals.errors.insert(attack.into(), 3);
        run.slave_loads[0].slave = attack.into();
        run.check = Some(CheckRecord {
            verdict: HistoryVerdict::Violation,
            counter_example: Some(attack.into()),
            ..CheckRecord::default()
        });
        let mut second = run.clone();
        second.settings.slaves = 3;
        for sweep in [sweep_of(vec![run.clone()]), sweep_of(vec![run, second])] {
            let html = report(&sweep);
            assert!(html.contains("&lt;script src=https://evil.example"), "the text itself must show");
            for tag in ["<script", "<img", "\u{0}"] {
                assert!(!html.contains(tag), "{tag:?} got through");
            }
        }
    }

    #[test]
    fn a_sweep_lists_its_runs_and_marks_the_fastest() {
        let mut runs: Vec<_> = [1, 3, 9].map(|slaves| made_up_run(slaves, 8, 3)).into();
        runs[2].totals.bound_by_think = true;
        runs[1].interrupted = true;
        let html = report(&sweep_of(runs));
        assert_eq!(html.matches("<tr class=\"best\">").count(), 1);
        assert_eq!(html.matches("<details>").count(), 3);
        assert!(html.contains("<td class=\"note-cell\">think time</td>") && html.contains("ended early"));
        assert!(html.contains("1 of the runs were bound by think time"));
        assert_eq!(reaches_out(&html), [""; 0]);
    }

    #[test]
    fn a_report_lists_what_went_wrong_in_each_run_and_what_went_right_in_all() {
        let right = |slaves| {
            let mut run = made_up_run(slaves, 8, 3);
            run.read_back = Some(ReadBack { keys_checked: 10, ..ReadBack::default() });
            run
        };
        let mut wrong_answers = right(2);
        wrong_answers.totals.errors.insert("stale_value".into(), 5);
        let mut wrong_before = right(3);
        wrong_before.wrong_outside.insert("mangled".into(), 1);
        let unread = RunRecord { read_back_error: "nobody is there".into(), ..made_up_run(4, 8, 3) };
        let mut cut = right(5);
        cut.check = Some(CheckRecord {
            verdict: HistoryVerdict::Violation,
            cut_at_s: Some(1.26),
            ..CheckRecord::default()
        });
        let sweep = sweep_of(vec![right(1), wrong_answers.clone(), wrong_before, unread.clone(), cut]);
        let html = report(&sweep);
        for part in [
            "1 of 5 runs: nothing wrong.",
            "5 answers had a value",
            "stale_value 5",
            "1 answer had a value that must not have been there, 1 of them outside the measurement",
            "could not be read back at the end, so nobody knows what was lost: nobody is there",
            "begun after 1.3 s",
            "<td>5 wrong, nothing lost</td>",
            "<td>not read back</td>",
        ] {
            assert!(html.contains(part), "no {part:?}");
        }
        assert!(!html.contains("<h3>Run 1:") && html.contains("<h3>Run 4:"));
        assert!(report(&sweep_of(vec![wrong_answers])).contains("Wrong answers."));
        assert!(report(&sweep_of(vec![unread])).contains("Not read back."));
        assert!(report(&sweep_of(vec![right(1)])).contains("No wrong answer."));
    }

    #[test]
    fn texts_say_what_is_true_of_the_run_shown() {
        let own = report(&sweep_of(vec![made_up_run(5, 8, 3), made_up_run(5, 16, 3)]));
        assert!(own.contains("on ⌈n/2⌉ of the n slaves") && own.contains("from sending"));
        let mut run = made_up_run(5, 8, 3);
        run.settings.target = Some("127.0.0.1:6379".into());
        run.settings.rate = Some(1000.0);
        run.settings.faults = "kill-primary@1s".into();
        run.totals.errors.insert("unsent".into(), 4);
        let mut second = run.clone();
        second.settings.clients *= 2;
        let html = report(&sweep_of(vec![run, second]));
        assert!(!html.contains("⌈n/2⌉") && !html.contains("from sending"), "a target may be any store");
        assert!(html.contains("which each was due") && html.contains("never sent"));
        assert!(html.contains("<td>kill-primary@1s</td>"));
    }

    #[test]
    fn nothing_to_report_and_a_missing_plot_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        assert!(write(&SweepRecord::default(), &[], &path).is_err());
        let plot = Plot { title: "x".into(), explains: "y".into(), png: "x.png".into(), svg: "x.svg".into() };
        let error = write(&sweep_of(vec![made_up_run(1, 1, 1)]), &[plot], &path).unwrap_err();
        assert!(error.to_string().contains("x.svg"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_run_without_any_request_is_reported() {
        let html = report(&sweep_of(vec![RunRecord::default()]));
        assert!(html.contains("No request failed") && !html.contains("NaN") && !html.contains("inf"));
    }

    #[test]
    fn a_command_line_is_quoted_as_a_shell_needs_it() {
        let words = ["dsm", "--out=a/b", "it's", "", "$x"].map(String::from);
        assert_eq!(page::shell(&words), r"dsm --out=a/b 'it'\''s' '' '$x'");
    }
}
