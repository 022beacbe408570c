//! The plots of records made up for the purpose: which files there are, and what is in them.

use std::collections::BTreeMap;

use super::*;
use crate::record::{FaultRecord, LoadSettings, Percentiles, Second, SlaveLoad};

/// A run whose numbers wander like measured ones, with `slaves`, `clients` and so many seconds.
#[expect(clippy::too_many_lines, reason = "one field after the other")]
pub(crate) fn made_up_run(slaves: u32, clients: u32, seconds: u32) -> RunRecord {
    let mut noise = 0x2545_f491_4f6c_dd1d_u64 ^ (u64::from(slaves) << 32 | u64::from(clients));
    let mut wobble = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        (noise >> 11) as f64 / (1u64 << 53) as f64
    };
    let rate = 60_000.0 * f64::from(clients) / (f64::from(clients) + 12.0) / (1.0 + 0.12 * f64::from(slaves));
    let latency = f64::from(clients) * 1e6 / rate;
    let percentiles = |mean: f64, spike: f64| Percentiles {
        p50: (mean * 0.8) as u64,
        p90: (mean * 1.5) as u64,
        p99: (mean * 3.0 * (1.0 + spike)) as u64,
        p999: (mean * 9.0 * (1.0 + 2.0 * spike)) as u64,
        max: (mean * 30.0 * (1.0 + 4.0 * spike)) as u64,
    };
    let mut run = RunRecord {
        format: 1,
        started_at: "2026-11-21T09:00:00Z".into(),
        command_line: ["dsm-test-harness", "--slaves", "5", "--clients", "18"].map(String::from).into(),
        version: "0.1.0".into(),
        store: "dsm 0.1.0".into(),
        settings: LoadSettings {
            slaves,
            clients,
            pool: 1,
            keys: 10_000,
            distribution: "uniform".into(),
            write_pct: 30.0,
            value_bytes: 128,
            pipeline: 1,
            warmup_s: 5.0,
            duration_s: f64::from(seconds),
            placement: "hash".into(),
            fsync: "always".into(),
            seed: 1,
            ..LoadSettings::default()
        },
        duration_s: f64::from(seconds),
        ..RunRecord::default()
    };
    for at in 1..=seconds {
        let rps = rate * (0.93 + 0.14 * wobble());
        let spike = if wobble() > 0.95 { 3.0 * wobble() } else { 0.3 * wobble() };
        let (reads, writes) = ((rps * 0.7) as u64, (rps * 0.3) as u64);
        run.seconds.push(Second {
            at_s: f64::from(at),
            timestamp: format!("2026-11-21T09:{:02}:{:02}Z", at / 60 % 60, at % 60),
            total_requests: reads + writes,
            success_count: reads + writes,
            read_count: reads,
            write_count: writes,
            throughput_rps: (reads + writes) as f64,
            read_latency_us: latency * 0.7,
            write_latency_us: latency * 1.6,
            read: percentiles(latency * 0.7, spike),
            write: percentiles(latency * 1.6, spike),
            harness_cpu_pct: 60.0,
            ..Second::default()
        });
    }
    let sum = |of: fn(&Second) -> u64| run.seconds.iter().map(of).sum::<u64>();
    run.totals = Totals {
        total_requests: sum(|s| s.total_requests),
        success_count: sum(|s| s.success_count),
        read_count: sum(|s| s.read_count),
        write_count: sum(|s| s.write_count),
        throughput_rps: rate,
        read_latency_us: latency * 0.7,
        write_latency_us: latency * 1.6,
        read: percentiles(latency * 0.7, 0.3),
        write: percentiles(latency * 1.6, 0.3),
        ..Totals::default()
    };
    let each = run.totals.write_count * u64::from(slaves.div_ceil(2)) / u64::from(slaves.max(1));
    run.slave_loads = (1..=slaves)
        .map(|slave| SlaveLoad {
            slave: format!("slave-{slave}"),
            writes: (each as f64 * (0.985 + 0.03 * wobble())) as u64,
        })
        .collect();
    run
}

/// Takes all success out of the seconds from `from` to `to` and puts errors in its place.
pub(crate) fn break_seconds(run: &mut RunRecord, from: usize, to: usize) {
    for second in &mut run.seconds[from..to] {
        second.error_count = second.success_count / 40;
        second.total_requests = second.error_count;
        second.errors = BTreeMap::from([("connection".to_owned(), second.error_count)]);
        (second.success_count, second.read_count, second.write_count) = (0, 0, 0);
        (second.throughput_rps, second.read_latency_us, second.write_latency_us) = (0.0, 0.0, 0.0);
        (second.read, second.write) = (Percentiles::default(), Percentiles::default());
    }
    let errors: u64 = run.seconds.iter().map(|second| second.error_count).sum();
    run.totals.error_count = errors;
    run.totals.success_count = run.seconds.iter().map(|second| second.success_count).sum();
    run.totals.total_requests = run.totals.success_count + errors;
    run.totals.errors = BTreeMap::from([("connection".to_owned(), errors)]);
}

pub(crate) fn fault(name: &str, at_s: f64, until_s: Option<f64>) -> FaultRecord {
    let errors = BTreeMap::from([("connection".to_owned(), 12)]);
    FaultRecord { name: name.into(), at_s, until_s, longest_gap_ms: Some(41.5), errors, lost: 0 }
}

pub(crate) fn placement(placement: &str, loads: [u64; 9]) -> PlacementRecord {
    let loads = loads.into_iter().enumerate();
    let loads = loads.map(|(at, writes)| SlaveLoad { slave: format!("slave-{}", at + 1), writes }).collect();
    PlacementRecord { placement: placement.into(), writes: 10_000, copies: 5, squares: 19_999, loads }
}

pub(crate) fn sweep_of(runs: Vec<RunRecord>) -> SweepRecord {
    SweepRecord { format: 1, runs, placement: Vec::new() }
}

/// Draws `sweep`, and checks of every plot that its PNG decodes to the size of its SVG and that this is XML.
fn drawn(sweep: &SweepRecord) -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let plots = draw(sweep, directory.path()).unwrap();
    let mut texts = BTreeMap::new();
    for plot in plots {
        let svg = std::fs::read_to_string(directory.path().join(&plot.svg)).unwrap();
        let document =
            roxmltree::Document::parse(&svg).unwrap_or_else(|e| panic!("{}: {e}", plot.svg.display()));
        let root = document.root_element();
        let side = |name: &str| root.attribute(name).and_then(|side| side.parse::<u32>().ok()).unwrap();
        let png = std::fs::File::open(directory.path().join(&plot.png)).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (side("width") * paint::FINE, side("height") * paint::FINE));
        assert_eq!(info.width, paint::WIDTH * paint::FINE);
        let ink = pixels.chunks(3).filter(|pixel| *pixel != [255, 255, 255]).count();
        assert!(ink > 5_000, "{} is empty", plot.png.display());
        assert!(!plot.title.is_empty() && !plot.explains.is_empty());
        let text: Vec<&str> =
            document.descendants().filter(|n| n.is_text()).filter_map(|n| n.text()).collect();
        texts.insert(plot.svg.display().to_string(), text.join("|"));
    }
    texts
}

#[test]
fn a_sweep_without_runs_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(draw(&SweepRecord::default(), directory.path()).is_err());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_single_run_has_its_plots_over_time_and_none_of_one_point() {
    let mut run = made_up_run(5, 18, 30);
    break_seconds(&mut run, 11, 13);
    run.faults = vec![fault("kill-primary", 11.2, None), fault("pause-slave:2", 20.0, Some(24.0))];
    let mut sweep = sweep_of(vec![run]);
    sweep.placement = vec![placement("hash", [5540; 9]), placement("random", [5600; 9])];
    let texts = drawn(&sweep);
    let names: Vec<&str> = texts.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "latency_percentiles_over_time.svg",
            "load_distribution.svg",
            "read_write_breakdown.svg",
            "slave_load.svg",
            "throughput_over_time.svg",
        ]
    );
    for name in ["latency_percentiles_over_time.svg", "throughput_over_time.svg", "read_write_breakdown.svg"]
    {
        for label in ["kill-primary", "pause-slave:2", "time since the start of the measurement (s)"] {
            assert!(texts[name].contains(label), "{name} without {label}: {}", texts[name]);
        }
    }
    let load = &texts["load_distribution.svg"];
    for label in [
        "5,540",
        "expected, ±2σ",
        "Random placement: expected 5,556 ± 99 (2σ)",
        "Placement by hash: expected 5,556 ± 141 (2σ)",
        "10,000 writes, each to 5 of 9",
    ] {
        assert!(load.contains(label), "no {label}: {load}");
    }
}

#[test]
fn a_grid_has_a_line_for_each_value_of_the_other_dimension() {
    let runs = [1, 3, 9].into_iter().flat_map(|slaves| [1, 6].map(|clients| made_up_run(slaves, clients, 3)));
    let texts = drawn(&sweep_of(runs.collect()));
    let by_slaves = &texts["plots_by_slave_count/throughput_rps_vs_slave_count.svg"];
    assert!(by_slaves.contains("1 client\n") && by_slaves.contains("6 clients\n"), "{by_slaves}");
    let by_clients = &texts["plots_by_client_count/throughput_rps_vs_client_count.svg"];
    assert!(by_clients.contains("1 slave\n") && by_clients.contains("9 slaves\n"), "{by_clients}");
    assert!(
        texts.contains_key("plots_by_run/06_9_slaves_6_clients/throughput_over_time.svg"),
        "{:?}",
        texts.keys()
    );
}

#[test]
fn the_first_twelve_runs_of_a_grid_have_plots_over_time_and_nothing_old_stays() {
    let directory = tempfile::tempdir().unwrap();
    let files = || {
        let mut files = Vec::new();
        let mut folders = vec![directory.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(directory.path()).unwrap().display().to_string());
                }
            }
        }
        files.sort();
        files
    };
    let expected = |plots: Vec<Plot>| {
        let files = plots.into_iter().flat_map(|plot| [plot.png, plot.svg]);
        let mut files: Vec<String> = files.map(|file| file.display().to_string()).collect();
        files.push("notes.png".to_owned());
        files.sort();
        files
    };
    std::fs::write(directory.path().join("notes.png"), "somebody else's").unwrap();
    let mut runs: Vec<RunRecord> = (1..=13).map(|clients| made_up_run(2, clients, 2)).collect();
    let plots = draw(&sweep_of(runs.clone()), directory.path()).unwrap();
    let names: Vec<String> = plots.iter().map(|plot| plot.svg.display().to_string()).collect();
    assert!(names.iter().any(|name| name.starts_with("plots_by_run/12_2_slaves_12_clients/")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("plots_by_run/13")), "{names:?}");
    assert_eq!(files(), expected(plots));
    // Another grid into the same directory, drawn after each of its points.
    runs.truncate(2);
    runs[1].settings.pool = 7;
    for count in 1..=2 {
        let plots = draw_after_point(&sweep_of(runs[..count].to_vec()), directory.path()).unwrap();
        assert_eq!(files(), expected(plots), "after {count}");
    }
    assert!(directory.path().join("plots_by_run/01_2_slaves_1_clients/slave_load.png").exists());
    assert!(!directory.path().join("plots_by_run/02_2_slaves_2_clients").join("x").exists());
    assert_eq!(std::fs::read_dir(directory.path().join("plots_by_run")).unwrap().count(), 2);
}

#[test]
fn a_sweep_over_something_else_has_plots_by_it_and_keeps_its_lines_apart() {
    let run = |clients, value_bytes| {
        let mut run = made_up_run(3, clients, 2);
        run.settings.value_bytes = value_bytes;
        run
    };
    let texts = drawn(&sweep_of(vec![run(1, 64), run(4, 64), run(1, 4096), run(4, 4096)]));
    let by_value = &texts["plots_by_value_bytes/write_latency_us_vs_value_bytes.svg"];
    assert!(by_value.contains("length of a value (bytes)") && by_value.contains("4 clients\n"), "{by_value}");
    let by_clients = &texts["plots_by_client_count/throughput_rps_vs_client_count.svg"];
    assert!(by_clients.contains("64 B values\n") && by_clients.contains("4,096 B values\n"), "{by_clients}");
    assert!(!texts.keys().any(|name| name.contains("pipeline")), "{:?}", texts.keys());
}

#[test]
fn of_very_many_lines_some_are_named() {
    let runs = (1..=40).flat_map(|clients| [1, 2].map(|slaves| made_up_run(slaves, clients, 1))).collect();
    let texts = drawn(&sweep_of(runs));
    let text = &texts["plots_by_slave_count/throughput_rps_vs_slave_count.svg"];
    assert!(text.contains("12 of the 40 lines are named"), "{text}");
    assert_eq!(text.matches(" client").count(), 12 + 1, "{text}");
}

#[test]
fn a_run_bound_by_think_time_says_so_in_its_plots() {
    let mut run = made_up_run(3, 2, 5);
    run.totals.bound_by_think = true;
    for (name, text) in drawn(&sweep_of(vec![run.clone()])) {
        assert!(name == "slave_load.svg" || text.contains("Bound by think time"), "{name}: {text}");
    }
    let texts = drawn(&sweep_of(vec![run, made_up_run(3, 64, 5)]));
    assert!(texts["plots_by_client_count/throughput_rps_vs_client_count.svg"].contains("Hollow points"));
    assert!(!texts["plots_by_run/02_3_slaves_64_clients/throughput_over_time.svg"].contains("think"));
}

#[test]
fn a_run_in_which_nothing_succeeded_or_happened_is_still_drawn() {
    let mut failed = made_up_run(3, 4, 5);
    break_seconds(&mut failed, 0, 5);
    failed.totals = Totals { total_requests: 100, error_count: 100, ..Totals::default() };
    let mut another = failed.clone();
    another.settings.slaves = 5;
    let texts = drawn(&sweep_of(vec![failed.clone(), another]));
    assert!(texts["plots_by_slave_count/read_latency_us_vs_slave_count.svg"].contains("no read succeeded"));
    let texts = drawn(&sweep_of(vec![failed]));
    assert!(texts["latency_percentiles_over_time.svg"].contains("no request succeeded"));
    drawn(&sweep_of(vec![RunRecord::default()]));
    let mut placed = SweepRecord::default();
    placed.placement.push(PlacementRecord::default());
    placed.placement.push(PlacementRecord { squares: 0, ..placement("hash", [5540; 9]) });
    let texts = drawn(&placed);
    assert_eq!(texts.len(), 1);
    // Where the writes of each key were not counted, no band is made up.
    assert!(texts["load_distribution.svg"].contains("Placement by hash: expected 5,556\n"), "{texts:?}");
}

#[test]
fn hostile_names_and_numbers_neither_break_the_xml_nor_the_drawing() {
    let mut run = made_up_run(2, 2, 4);
    run.faults = vec![
        fault("</text><script>\u{0}\u{1b}&\u{ffff}", f64::NAN, Some(f64::INFINITY)),
        fault("", -3.0, None),
    ];
    run.faults.push(fault("<b>", 1.0, Some(0.5)));
    run.store = "<redis & \"co\">\n".into();
    run.slave_loads[0].slave = "\u{7}<x>".into();
    run.totals.throughput_rps = f64::INFINITY;
    run.totals.read_latency_us = -5.0;
    run.seconds[2].throughput_rps = f64::NAN;
    run.settings.rate = Some(1e300);
    for (name, text) in drawn(&sweep_of(vec![run])) {
        assert!(!text.contains('\u{1b}'), "{name}");
    }
}

#[test]
fn many_faults_close_together_get_letters_and_a_key() {
    let mut run = made_up_run(3, 18, 60);
    for at in 0..40 {
        let name = if at % 2 == 0 { "kill-primary-in-the-middle" } else { "pause-slave-for-a-while:2" };
        run.faults.push(fault(name, 1.0 + 1.4 * f64::from(at), None));
    }
    let texts = drawn(&sweep_of(vec![run]));
    let text = &texts["throughput_over_time.svg"];
    assert!(text.contains("Faults: A = kill-primary-in-the-middle, B = pause-slave-for-a-while:2"), "{text}");
}
