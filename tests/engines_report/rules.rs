//! What a report may say, on runs of a few cells.

use crate::made::{cell, empty, engine, limited};
use jitune::device::Device;
use jitune::engines::report::criteria::{Criterion, Verdict};
use jitune::engines::report::{self, Baseline, LibraryComparisonReport, Runs};
use jitune::engines::rows::State;

fn make(runs: &Runs) -> LibraryComparisonReport {
    report::make(runs, None, Baseline::default())
}

/// The engines of a ranking's ranks, by output tokens/s.
fn ranks(r: &LibraryComparisonReport, workload: &str) -> Vec<(usize, String)> {
    let of = |k: &&report::rankings::Ranking| k.workload == workload && !k.metric.name().contains("ms");
    r.rankings.iter().find(of).map_or(vec![], |k| k.places.iter().map(|p| (p.rank, p.engine.clone())).collect())
}

fn named<'a>(r: &'a LibraryComparisonReport, name: &str) -> &'a Criterion {
    r.criteria.iter().find(|c| c.name == name).unwrap()
}

#[test]
fn a_loss_of_jitune_is_said_first() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "one", 200.0);
    engine(&mut runs, "b", "cuda:A", "one", 100.0);
    engine(&mut runs, "jitune", "cuda:A", "two", 100.0);
    engine(&mut runs, "b", "cuda:A", "two", 150.0);
    let r = make(&runs);
    let found: Vec<_> = r.losses.iter().map(|l| (l.workload.as_str(), l.engine.as_str(), l.behind)).collect();
    assert_eq!(found.len(), 4, "throughput, TTFT, TPOT and the time to the end: {found:?}");
    assert!(found.iter().all(|f| *f == ("two", "b", Some(1.5)) || (f.2.unwrap() - 1.5).abs() < 1e-9), "{found:?}");
    assert!(report::terminal(&r).starts_with("jitune loses: two bf16: b is better in"));
    let text = report::markdown(&r);
    let [first, second] = [text.find("\n## ").unwrap(), text.find("## Success").unwrap()];
    let section = &text[first..second];
    assert!(section.starts_with("\n## Where jitune loses") && section.contains("| two | bf16 | A |"), "{section}");
    // Each wins one workload: jitune is the primary engine, the other is named where it is better.
    let advice = &r.recommendation;
    assert_eq!(advice.primary.as_ref().unwrap().engine, "jitune");
    let other: Vec<_> = advice.hybrid.iter().map(|c| (c.engine.as_str(), c.workload.as_deref())).collect();
    assert_eq!(other, [("b", Some("two"))]);
}

#[test]
fn what_lies_within_the_noise_is_a_tie() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
    engine(&mut runs, "b", "cuda:A", "w", 102.0);
    engine(&mut runs, "c", "cuda:A", "w", 90.0);
    let expect = |list: &[(usize, &str)]| list.iter().map(|(n, e)| (*n, e.to_string())).collect::<Vec<_>>();
    let r = make(&runs);
    assert_eq!(ranks(&r, "w"), expect(&[(1, "b"), (2, "jitune"), (3, "c")]));
    assert!(!r.losses.is_empty() && report::markdown(&r).contains("No engine was entered twice"));
    cell(&mut runs, "jitune#2", "cuda:A", "w", 0, 103.0);
    let r = make(&runs);
    assert_eq!(ranks(&r, "w"), expect(&[(1, "b"), (1, "jitune"), (3, "c")]));
    assert!(r.losses.is_empty(), "{:?}", r.losses);
    assert_eq!(r.workload_winners[0].winners, ["b", "jitune"]);
    assert!(report::markdown(&r).contains("| w | bf16 | jitune | output tokens/s | 1.0300 |"));
}

#[test]
fn rounds_that_overlap_are_a_tie() {
    let mut runs = empty();
    for (round, rate) in [(0, 100.0), (1, 110.0)] {
        engine(&mut runs, "jitune", "cuda:A", "w", 0.0);
        runs.cells.pop();
        cell(&mut runs, "jitune", "cuda:A", "w", round, rate);
        cell(&mut runs, "b", "cuda:A", "w", round, rate + 8.0);
    }
    engine(&mut runs, "b", "cuda:A", "other", 1.0);
    assert!(make(&runs).losses.iter().all(|l| l.workload != "w"));
    runs.cells
        .iter_mut()
        .filter(|c| c.of.engine == "b")
        .for_each(|c| c.measured.as_mut().unwrap().output_throughput += 9.0);
    assert!(make(&runs).losses.iter().any(|l| l.workload == "w"));
}

#[test]
fn an_engine_that_is_not_right_is_in_no_ranking() {
    for state in [State::Wrong, State::Unchecked, State::Failed, State::Cut] {
        let mut runs = empty();
        engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
        engine(&mut runs, "fast", "cuda:A", "w", 1000.0);
        runs.checks.iter_mut().find(|c| c.engine == "fast").unwrap().state = state;
        let r = make(&runs);
        assert_eq!(ranks(&r, "w"), [(1, "jitune".to_string())]);
        assert!(r.losses.is_empty() && r.recommendation.hybrid.is_empty());
        assert!(report::markdown(&r).contains("| w | bf16 | fast | "), "it is shown with its state");
    }
    // Without a check at all.
    let mut runs = empty();
    cell(&mut runs, "jitune", "cuda:A", "w", 0, 100.0);
    let r = make(&runs);
    assert!(r.rankings.is_empty() && r.recommendation.primary.is_none());
}

#[test]
fn a_cell_that_went_wrong_costs_itself_alone() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
    cell(&mut runs, "jitune", "cuda:A", "w", 1, 1.0);
    runs.cells[1].state = State::Dropped;
    engine(&mut runs, "jitune", "cuda:A", "v", 100.0);
    engine(&mut runs, "b", "cuda:A", "v", 50.0);
    runs.cells[3].state = State::Miscounted;
    let r = make(&runs);
    let value = r.entries[0].counted().unwrap().output_throughput.unwrap();
    assert_eq!((value.median, value.rounds, r.entries[0].rounds.clone()), (100.0, 1, vec![0]));
    assert!(r.entries[0].left_out[0].starts_with("round 1: dropped"));
    assert_eq!(ranks(&r, "v").len(), 1);
    // Where jitune itself has nothing, another's cell says so before anything else.
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
    engine(&mut runs, "b", "cuda:A", "w", 50.0);
    runs.cells[0].state = State::Stalled;
    let r = make(&runs);
    assert_eq!(r.lacking[0].others, ["b"]);
    assert!(report::terminal(&r).starts_with("nothing of jitune's counts: w bf16: round 0: stalled"));
}

#[test]
fn two_devices_never_share_a_ratio() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
    engine(&mut runs, "b", "cuda:B", "w", 1000.0);
    engine(&mut runs, "c", "cpu:C", "w", 2000.0);
    let r = make(&runs);
    assert!(r.losses.is_empty() && r.rankings.iter().all(|k| k.places.len() == 1));
    let mut devices: Vec<_> = r.workload_winners.iter().map(|w| w.device.as_str()).collect();
    devices.sort_unstable();
    assert_eq!(devices, ["A", "B", "C"]);
    // One device by two names is one: an ordinal is the run's own.
    let mut runs = empty();
    runs.run.device = Device::ahead_of_time("sm_90a");
    engine(&mut runs, "jitune", "cuda:H100 SXM", "w", 100.0);
    engine(&mut runs, "b", "cuda:cuda:0", "w", 50.0);
    engine(&mut runs, "c", "cuda:", "w", 40.0);
    assert_eq!(ranks(&make(&runs), "w").len(), 3);
}

#[test]
fn an_empty_run_says_nothing() {
    let runs = empty();
    let r = make(&runs);
    assert!(r.rankings.is_empty() && r.workload_winners.is_empty() && r.losses.is_empty() && r.costs.is_empty());
    assert_eq!(r.recommendation, Default::default());
    assert!(
        r.criteria.iter().all(|c| c.verdict == Verdict::NotMeasured && !c.missing.is_empty() && c.figure.is_none())
    );
    assert!(report::files(&r).is_empty());
    let page = report::html(&r, &runs).unwrap();
    assert!(!page.contains("<svg"), "{page}");
    assert!(page.contains("jitune was held against no other engine") && page.contains("none is recommended"));
    // Each criterion once, by what it lacks, and none under a heading of its own.
    let said: Vec<&str> = page.lines().filter(|line| line.contains("Not measured: ")).collect();
    assert!(said.len() < r.criteria.len(), "{said:?}");
    for c in &r.criteria {
        assert_eq!(said.iter().filter(|line| line.contains(c.name)).count(), 1, "{}: {said:?}", c.name);
        assert!(!page.contains(&format!("{}: not measured", c.name)), "{}", c.name);
    }
    assert_eq!(report::terminal(&r), "the run was cut off before its end\n");
    assert_eq!(report::readme::tables(&r), "");
}

#[test]
fn limits_decide_where_someone_keeps_them() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 100.0);
    limited(&mut runs, 5.0);
    engine(&mut runs, "b", "cuda:A", "w", 200.0);
    limited(&mut runs, 2.0);
    let winners = |runs: &Runs| {
        let w = make(runs).workload_winners[0].clone();
        (w.winners, w.by.name(), w.lead)
    };
    assert_eq!(winners(&runs), (vec!["jitune".to_string()], "answers/s within the limits", Some(2.5)));
    runs.cells.iter_mut().for_each(|c| c.measured.as_mut().unwrap().goodput = Some(0.0));
    // Nobody keeps them: requests come at their own times, so the time to the end decides.
    assert_eq!(winners(&runs), (vec!["b".to_string()], "time to the end, ms", Some(2.0)));
}

/// A criterion with one case: its verdict, figure and margin.
fn one(c: &Criterion) -> (Verdict, &str, f64) {
    (c.verdict, c.figure.as_deref().unwrap_or(""), (c.margin.unwrap_or(f64::NAN) * 1e6).round() / 1e6)
}

#[test]
fn criteria_have_figures_and_margins() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 60.0);
    engine(&mut runs, "slow", "cpu:C", "w", 5.0);
    engine(&mut runs, "best", "cpu:C", "w", 10.0);
    let r = make(&runs);
    let faster = named(&r, "throughput over the CPU");
    // 60 beside the best of the two, not the other.
    assert_eq!(one(faster), (Verdict::Met, "6.00×", 0.2));
    assert!(faster.baseline.contains("best bf16 on C") && faster.cases[0].note.contains("of best bf16"));
    assert_eq!(one(named(&r, "time a token over the CPU")), (Verdict::Met, "6.00×", 0.2));
    // 10000/60 ms, and a fifth more at the 99th percentile.
    assert_eq!(one(named(&r, "time to the first token")), (Verdict::Missed, "200.0 ms", -1.0));
    let cost = named(&r, "cost");
    assert!(cost.verdict == Verdict::NotMeasured && cost.missing[0].contains("--price gpu"), "{cost:?}");
    assert!(named(&r, "GPU utilisation").missing[0].contains("NVML"));
    assert!(named(&r, "occupancy").missing[0].contains("jitune compare"));
    runs.run.prices = [("gpu".to_string(), 6.0), ("cpu".to_string(), 1.0)].into();
    runs.cells[0].measured.as_mut().unwrap().meanwhile.busy = Some(0.63);
    let r = make(&runs);
    assert_eq!(one(named(&r, "cost")), (Verdict::Missed, "100.0%", -1.0));
    assert_eq!(one(named(&r, "GPU utilisation")), (Verdict::Missed, "63.0%", -0.1));
    // In one of two workloads.
    engine(&mut runs, "jitune", "cuda:A", "v", 40.0);
    engine(&mut runs, "best", "cpu:C", "v", 10.0);
    let r = make(&runs);
    assert_eq!(one(named(&r, "throughput over the CPU")), (Verdict::Partly, "4.00×", -0.2));
}

#[test]
fn a_baseline_may_be_a_run_of_its_own() {
    let (mut runs, mut other) = (empty(), empty());
    engine(&mut runs, "jitune", "cuda:A", "w", 60.0);
    engine(&mut other, "x", "cpu:C", "w", 10.0);
    engine(&mut other, "y", "cpu:C", "w", 20.0);
    let gain = |runs: &Runs, other: &Runs, engine| {
        let r = report::make(runs, None, Baseline { runs: Some(other), engine });
        let c = named(&r, "throughput over the CPU").clone();
        (c.figure, c.missing.first().cloned().unwrap_or_default(), c.cases.first().map(|c| c.because[1].to_string()))
    };
    let (figure, _, because) = gain(&runs, &other, None);
    assert_eq!((figure.as_deref(), because.as_deref()), (Some("3.00×"), Some("baseline's cell y bf16 w 0")));
    assert_eq!(gain(&runs, &other, Some("x")).0.as_deref(), Some("6.00×"));
    assert!(gain(&runs, &other, Some("z")).1.contains("no cell of z"));
    other.run.workloads[0].turns = 9;
    assert!(gain(&runs, &other, None).1.contains("another workload"));
    other.run.parameters += 1;
    assert!(gain(&runs, &other, None).1.contains("another number of parameters"));
}

#[test]
fn batches_scale_beside_the_roofline() {
    let mut runs = empty();
    // 1 GB of weights at 3.1 TB/s; operations bound a step from 1e9 · 7.5e14 / (3.1e12 · 2e9) = 121 sequences on.
    runs.run.device = Device::ahead_of_time("sm_90a");
    runs.run.weight_bytes = [("bf16".to_string(), 1_000_000_000)].into();
    for (n, rate) in [(1, 100.0), (64, 3200.0), (256, 6400.0)] {
        engine(&mut runs, "jitune", "cuda:H100 SXM", &format!("batch-{n}"), rate);
    }
    let r = make(&runs);
    let found: Vec<_> = r.batches.iter().map(|b| (b.batch, b.efficiency, b.beyond_knee)).collect();
    assert_eq!(found, [(1, 1.0, Some(false)), (64, 0.5, Some(false)), (256, 0.25, Some(true))]);
    let c = named(&r, "scaling in the batch");
    // Beyond the knee nothing is asked for.
    assert_eq!((c.verdict, c.cases.len(), c.cases[0].of.as_str()), (Verdict::Missed, 1, "batch 64 bf16"));
    assert!((c.cases[0].value - 0.5).abs() < 1e-9);
    runs.run.weight_bytes.clear();
    assert!(named(&make(&runs), "scaling in the batch").missing[0].contains("not known"));
}

#[test]
fn every_sentence_says_why() {
    let r = crate::whole();
    let advice = &r.recommendation;
    assert!(!advice.hybrid.is_empty() && advice.migration.len() == 5 && advice.roadmap.len() > 5);
    let said = advice.primary.iter().chain(&advice.hybrid).map(|c| &c.said);
    let said = said.chain(advice.migration.iter().flat_map(|s| &s.said)).chain(advice.roadmap.iter().map(|i| &i.said));
    for sentence in said {
        assert!(!sentence.because.is_empty(), "{sentence:?}");
    }
    assert!(advice.targets.iter().all(|t| !t.because.is_empty()));
    // What is noisy loosens its own limit, never to nothing.
    for t in &advice.targets {
        for limit in [t.ttft_p99_ms, t.tpot_p99_ms, t.output_throughput].into_iter().flatten() {
            assert!(limit.margin >= 0.1 && limit.value > 0.0, "{t:?}");
        }
    }
    assert!(r.criteria.iter().flat_map(|c| &c.cases).all(|c| !c.because.is_empty()));
    let order: Vec<_> = advice.roadmap.iter().map(|i| (i.horizon, -i.saves_us)).collect();
    assert!(order.is_sorted_by(|a, b| a.0 < b.0 || (a.0 == b.0 && a.1 <= b.1)), "{order:?}");
}

#[test]
fn a_load_that_is_kept_up_with_says_nothing_of_speed() {
    let mut runs = empty();
    for (label, place, rate) in [("jitune", "cuda:A", 800.0), ("old", "cpu:C", 801.0)] {
        engine(&mut runs, label, place, "w", rate);
        limited(&mut runs, 8.0);
    }
    // Both answer 8 requests/s; the GPU's are there sooner.
    runs.cells[0].measured.as_mut().unwrap().e2el_ms.median = 10.0;
    let r = make(&runs);
    let c = named(&r, "throughput over the CPU");
    assert!(c.verdict == Verdict::NotMeasured && c.missing[0].contains("are the load's"), "{c:?}");
    let said = &r.recommendation.migration[1].said[0].text;
    assert!(said.contains("jitune is 12.48× as good as old"), "{said}");
}

#[test]
fn there_is_no_way_to_a_gpu_that_is_slower() {
    let mut runs = empty();
    engine(&mut runs, "jitune", "cuda:A", "w", 10.0);
    engine(&mut runs, "old", "cpu:C", "w", 20.0);
    assert!(make(&runs).recommendation.migration.is_empty());
    engine(&mut runs, "jitune", "cuda:A", "v", 100.0);
    engine(&mut runs, "old", "cpu:C", "v", 20.0);
    let steps = make(&runs).recommendation.migration;
    let all: Vec<&str> = steps.iter().flat_map(|s| &s.said).map(|s| s.text.as_str()).collect();
    assert!(all.iter().any(|t| t.contains("At w bf16 jitune is 0.50× as good as old")), "{all:?}");
    assert!(all.iter().any(|t| t.contains("jitune is 5.00× as good as old")), "{all:?}");
}
