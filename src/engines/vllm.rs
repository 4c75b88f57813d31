//! Cells of a run as vLLM's benchmark writes its results, for whoever reads those: `vllm bench serve --save-result --save-detailed` of
//! version 0.26.

use super::client::Trip;
use super::measured::{Measured, Spread};
use super::report::Runs;
use super::requests::BadRequest;
use super::rows::{Cell, Request, Run};
use super::workload::{Arrivals, Workload};
use crate::report::text;
use serde_json::{Map, Value, json};

/// A cell's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// What vLLM would call its file, with engine, precision and workload as its label.
    pub name: String,
    /// What it would write into it.
    pub json: Value,
}

/// The results of all cells that have figures, whatever became of them: `state` says that, beside vLLM's keys. Keys of single requests are
/// there where the run's lines have these.
pub fn results(runs: &Runs) -> Result<Vec<Exported>, BadRequest> {
    let one = |(cell, measured): (&Cell, &Measured)| {
        let requests = runs.requests.get(&cell.of);
        let trips = requests.map(|list| list.iter().map(Request::trip).collect::<Result<Vec<_>, _>>()).transpose()?;
        let mut json = setup(runs, cell, measured);
        json.extend(figures(measured));
        if let Some(trips) = &trips {
            json.extend(detailed(trips));
        }
        Ok(Exported { name: name(&runs.run, cell), json: Value::Object(json) })
    };
    runs.cells.iter().filter_map(|cell| Some((cell, cell.measured.as_ref()?))).map(one).collect()
}

/// What was asked: requests a second, the shape of their gaps, most on their way. None where requests came as a file says.
fn traffic(workload: Option<&Workload>) -> (Value, Value, Option<usize>) {
    match workload.map(|w| &w.arrivals) {
        Some(Arrivals::Closed { clients }) => (json!("inf"), json!(1.0), Some(*clients)),
        Some(Arrivals::Open { rate, burstiness, most }) => (json!(rate), json!(burstiness), *most),
        Some(Arrivals::Trace { .. }) | None => (Value::Null, Value::Null, None),
    }
}

fn workload<'r>(run: &'r Run, cell: &Cell) -> Option<&'r Workload> {
    run.workloads.iter().find(|w| w.name == cell.of.workload)
}

/// `LABEL-RATEqps-concurrencyN-MODEL-DATE.json`, without what no file's name should have.
fn name(run: &Run, cell: &Cell) -> String {
    let (rate, _, most) = traffic(workload(run, cell));
    let rate = rate.as_str().map_or_else(|| rate.to_string(), str::to_owned);
    let most = most.map_or_else(String::new, |most| format!("-concurrency{most}"));
    let round = if run.rounds > 1 { format!("-round{}", cell.of.round) } else { String::new() };
    let (of, model) = (&cell.of, run.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
    let date = text::stamp(run.at);
    let name = format!("{}-{}-{}{round}-{rate}qps{most}-{model}-{date}.json", of.engine, of.dtype, of.workload);
    name.chars().map(|c| if c.is_alphanumeric() || "-_.#=".contains(c) { c } else { '_' }).collect()
}

/// What was run. After `num_prompts` stands what vLLM has from `--metadata`, as texts.
fn setup(runs: &Runs, cell: &Cell, measured: &Measured) -> Map<String, Value> {
    let (run, start) = (&runs.run, runs.start(&cell.of));
    let (rate, burstiness, most) = traffic(workload(run, cell));
    let of = |field: fn(&super::rows::Start) -> &String| start.map(field).cloned().unwrap_or_default();
    let keys = [
        ("date", json!(text::stamp(run.at))),
        ("endpoint_type", json!(cell.of.engine)),
        ("backend", json!(cell.of.engine)),
        ("label", json!(format!("{}-{}-{}", cell.of.engine, cell.of.dtype, cell.of.workload))),
        ("model_id", json!(run.model)),
        ("tokenizer_id", json!(run.model)),
        ("num_prompts", json!(measured.completed + measured.failed)),
        ("engine_version", json!(of(|s| &s.version))),
        ("device", json!(of(|s| &s.device))),
        ("dtype", json!(cell.of.dtype)),
        ("workload", json!(cell.of.workload)),
        ("round", json!(cell.of.round.to_string())),
        ("state", json!(cell.state)),
        ("request_rate", rate),
        ("burstiness", burstiness),
        ("max_concurrency", json!(most)),
    ];
    keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// Times in milliseconds. Medians and percentiles are by nearest rank, where vLLM's lie between two values.
fn figures(measured: &Measured) -> Map<String, Value> {
    let keys = [
        ("duration", json!(measured.duration_s)),
        ("completed", json!(measured.completed)),
        ("failed", json!(measured.failed)),
        ("total_input_tokens", json!(measured.input_tokens)),
        ("total_output_tokens", json!(measured.output_tokens)),
        ("request_throughput", json!(measured.request_throughput)),
        ("request_goodput", json!(measured.goodput)),
        ("output_throughput", json!(measured.output_throughput)),
        ("total_token_throughput", json!(measured.total_throughput)),
        // Of speech alone.
        ("rtfx", json!(0.0)),
    ];
    let mut all: Map<String, Value> = keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let Measured { ttft_ms, tpot_ms, itl_ms, e2el_ms, .. } = measured;
    for (name, Spread { mean, median, std, p99, .. }) in
        [("ttft", ttft_ms), ("tpot", tpot_ms), ("itl", itl_ms), ("e2el", e2el_ms)]
    {
        for (figure, value) in [("mean", mean), ("median", median), ("std", std), ("p99", p99)] {
            all.insert(format!("{figure}_{name}_ms"), json!(value));
        }
    }
    all
}

/// Lists of one entry a request, with times in seconds, those of the warm-up left out; texts are not kept, and are empty.
fn detailed(trips: &[Trip]) -> Map<String, Value> {
    let counted: Vec<&Trip> = trips.iter().filter(|trip| !trip.warm).collect();
    let of = |entry: &dyn Fn(&Trip) -> Value| Value::Array(counted.iter().map(|trip| entry(trip)).collect());
    let whole = |trip: &Trip| if trip.is_whole() { trip.tokens() } else { 0 };
    let (tokens, requests) = peaks(&counted);
    let keys = [
        ("input_lens", of(&|trip| json!(trip.prompt))),
        ("output_lens", of(&|trip| json!(whole(trip)))),
        ("ttfts", of(&|trip| json!(trip.ttft_ms().unwrap_or(0.0) / 1e3))),
        ("itls", of(&|trip| trip.gaps_ms().map(|gap| json!(gap / 1e3)).collect())),
        ("start_times", of(&|trip| json!(trip.sent.as_secs_f64()))),
        ("generated_texts", of(&|_| json!(""))),
        ("errors", of(&|trip| json!(trip.error.as_deref().unwrap_or_default()))),
        ("max_output_tokens_per_s", json!(tokens)),
        ("max_concurrent_requests", json!(requests)),
    ];
    keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// The most tokens that were received in any second since the first request, and the most requests that any second saw; of whole answers.
fn peaks(trips: &[&Trip]) -> (f64, u64) {
    let whole: Vec<&&Trip> = trips.iter().filter(|trip| trip.is_whole()).collect();
    let Some(begin) = whole.iter().map(|trip| trip.sent).min() else { return (0.0, 0) };
    let second = |at: std::time::Duration| at.saturating_sub(begin).as_secs() as usize;
    let last = whole.iter().flat_map(|trip| trip.pieces.last()).map(|(at, _)| second(*at)).max().unwrap_or(0);
    let (mut tokens, mut requests) = (vec![0.0f64; last + 1], vec![0u64; last + 1]);
    for trip in whole {
        for (at, count) in &trip.pieces {
            tokens[second(*at)] += f64::from(*count);
        }
        let end = trip.pieces.last().map_or(trip.sent, |(at, _)| *at);
        requests[second(trip.sent)..=second(end)].iter_mut().for_each(|n| *n += 1);
    }
    (tokens.into_iter().fold(0.0, f64::max), requests.into_iter().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::measured::tests::trip;
    use crate::engines::rows::{Of, Start, State};
    use crate::engines::workload::Limits;

    /// What vLLM 0.26 writes of a text model without ramps and speculation, in its order.
    const KEYS: [&str; 45] = [
        "date",
        "endpoint_type",
        "backend",
        "label",
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "input_lens",
        "output_lens",
        "ttfts",
        "itls",
        "start_times",
        "generated_texts",
        "errors",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "rtfx",
        "mean_ttft_ms",
        "median_ttft_ms",
        "std_ttft_ms",
        "p99_ttft_ms",
        "mean_tpot_ms",
        "median_tpot_ms",
        "std_tpot_ms",
        "p99_tpot_ms",
        "mean_itl_ms",
        "median_itl_ms",
        "std_itl_ms",
        "p99_itl_ms",
        "mean_e2el_ms",
        "median_e2el_ms",
        "std_e2el_ms",
        "p99_e2el_ms",
    ];
    /// What only `--save-detailed` writes, and what follows from it.
    const DETAILED: [&str; 9] = [
        "input_lens",
        "output_lens",
        "ttfts",
        "itls",
        "start_times",
        "generated_texts",
        "errors",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
    ];

    fn runs(trips: &[Trip], arrivals: Arrivals) -> Runs {
        let run = Run { at: 1_795_356_187, model: "org/m".into(), rounds: 1, ..Run::default() };
        let workload = Workload { name: "chat:rate=2".into(), arrivals, ..Workload::default() };
        let of = Of { engine: "e#2".into(), dtype: "bf16".into(), workload: workload.name.clone(), round: 0 };
        let measured = Some(Measured::of(trips, &Limits::default()));
        let cell = Cell { of: of.clone(), state: State::Dropped, why: None, measured };
        let start = Start { engine: "e#2".into(), dtype: "bf16".into(), version: "9".into(), ..Start::default() };
        let requests = trips.iter().map(|trip| Request::of(&of, trip)).collect();
        Runs {
            run: Run { workloads: vec![workload], ..run },
            starts: vec![start],
            cells: vec![cell],
            requests: [(of, requests)].into(),
            ..Runs::default()
        }
    }

    fn trips() -> [Trip; 3] {
        let mut lost = trip(0, 1500, &[(1600, 1)]);
        lost.error = Some("lost".into());
        let warm = Trip { warm: true, ..trip(0, 0, &[(900, 50)]) };
        [warm, trip(1000, 1000, &[(1100, 1), (1150, 2), (1495, 1), (2600, 1)]), lost]
    }

    #[test]
    fn every_key_of_vllm_is_there_in_its_units() {
        let open = Arrivals::Open { rate: 2.0, burstiness: 1.0, most: Some(8) };
        let [found] = &results(&runs(&trips(), open)).unwrap()[..] else { panic!("one cell") };
        assert_eq!(found.name, "e#2-bf16-chat_rate=2-2.0qps-concurrency8-m-20261122-140307.json");
        for key in KEYS {
            assert!(found.json.get(key).is_some(), "{key}");
        }
        for (key, right) in [
            ("date", json!("20261122-140307")),
            ("backend", json!("e#2")),
            ("model_id", json!("org/m")),
            ("engine_version", json!("9")),
            ("state", json!("dropped")),
            ("request_rate", json!(2.0)),
            ("burstiness", json!(1.0)),
            ("max_concurrency", json!(8)),
            ("duration", json!(1.605)),
            ("num_prompts", json!(2)),
            ("completed", json!(1)),
            ("failed", json!(1)),
            ("total_input_tokens", json!(10)),
            ("total_output_tokens", json!(5)),
            ("request_goodput", json!(null)),
            ("request_throughput", json!(1.0 / 1.605)),
            ("output_throughput", json!(5.0 / 1.605)),
            ("total_token_throughput", json!(15.0 / 1.605)),
            ("mean_ttft_ms", json!(100.0)),
            ("median_tpot_ms", json!(375.0)),
            ("mean_itl_ms", json!(500.0)),
            ("mean_e2el_ms", json!(1600.0)),
            ("input_lens", json!([10, 10])),
            ("output_lens", json!([5, 0])),
            ("ttfts", json!([0.1, 0.1])),
            ("itls", json!([[0.05, 0.345, 1.105], []])),
            ("start_times", json!([1.0, 1.5])),
            ("generated_texts", json!(["", ""])),
            ("errors", json!(["", "lost"])),
            // Four in the first second, one in the next.
            ("max_output_tokens_per_s", json!(4.0)),
            ("max_concurrent_requests", json!(1)),
        ] {
            assert_eq!(found.json[key], right, "{key}");
        }
    }

    #[test]
    fn without_lines_of_requests_there_are_the_keys_of_a_short_result() {
        let mut bare = runs(&trips(), Arrivals::Closed { clients: 4 });
        bare.requests.clear();
        let [found] = &results(&bare).unwrap()[..] else { panic!("one cell") };
        assert!(found.name.contains("-infqps-concurrency4-"), "{}", found.name);
        for key in KEYS {
            assert_eq!(found.json.get(key).is_some(), !DETAILED.contains(&key), "{key}");
        }
        // What has no figures has no result.
        bare.cells[0].measured = None;
        assert_eq!(results(&bare).unwrap(), []);
    }

    #[test]
    fn a_second_is_full_of_what_was_received_in_it() {
        let trips = [trip(0, 0, &[(100, 1), (999, 3)]), trip(0, 500, &[(900, 2), (3100, 1)])];
        let list: Vec<&Trip> = trips.iter().collect();
        assert_eq!(peaks(&list), (6.0, 2));
        assert_eq!(peaks(&[]), (0.0, 0));
    }
}
