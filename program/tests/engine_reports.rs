//! `jitune report` of engines' rows: cells as vLLM's results, and trtllm-bench's reports among the rows.

mod common;

use common::{Place, text};
use serde_json::{Value, json};
use std::path::Path;

/// A place with the made-up run of the reports' tests as `engines.jsonl`.
fn place() -> Place {
    let place = Place::new();
    let rows = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/engines_report/engines.jsonl");
    place.file("engines.jsonl", &std::fs::read_to_string(rows).unwrap());
    place
}

fn report(place: &Place, args: &[&str], code: i32) -> String {
    let out = place.jitune(&[&["report"], args].concat()).output().unwrap();
    assert_eq!(out.status.code(), Some(code), "{args:?} {}", text(&out));
    text(&out)
}

fn lines(place: &Place, file: &str) -> Vec<Value> {
    let rows = std::fs::read_to_string(place.path().join(file)).unwrap();
    rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json(place: &Place, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(place.path().join(file)).unwrap()).unwrap()
}

#[test]
fn each_cell_is_a_result_of_vllm() {
    let place = place();
    let cells: Vec<Value> = lines(&place, "engines.jsonl")
        .into_iter()
        .filter(|line| line["kind"] == "cell" && !line["measured"].is_null())
        .collect();
    report(&place, &["--from", "engines.jsonl", "--export", "vllm", "-o", "results"], 0);
    let files: Vec<String> = std::fs::read_dir(place.path().join("results"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files.len(), cells.len(), "one file a cell, each with a name of its own");
    for file in &files {
        let result = json(&place, &format!("results/{file}"));
        let of = |cell: &&Value| {
            (&cell["engine"], &cell["dtype"], &cell["workload"], cell["round"].to_string())
                == (&result["backend"], &result["dtype"], &result["workload"], result["round"].as_str().unwrap().into())
        };
        let cell = cells.iter().find(of).unwrap_or_else(|| panic!("{file} is of no cell"));
        let measured = &cell["measured"];
        assert_eq!(result["output_throughput"], measured["output_throughput"], "{file}");
        assert_eq!(result["p99_ttft_ms"], measured["ttft_ms"]["p99"], "{file}");
    }
    // A single cell may have a name of one's own; several have not.
    report(&place, &["--from", "engines.jsonl", "--export", "vllm", "-o", "one.json"], 2);
    let one = lines(&place, "engines.jsonl").into_iter().filter(|l| l["kind"] == "run").chain([cells[0].clone()]);
    place.file("one.jsonl", &one.map(|line| line.to_string() + "\n").collect::<String>());
    report(&place, &["--from", "one.jsonl", "--export", "vllm", "-o", "new/one.json"], 0);
    assert_eq!(json(&place, "new/one.json")["backend"], cells[0]["engine"]);
    // Rows of kernels have no such results.
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    place.file("rows.jsonl", &format!("{run}\n"));
    report(&place, &["--from", "rows.jsonl", "--export", "vllm"], 2);
}

fn percentiles(base: f64) -> Value {
    json!({ "p50": base, "p90": base * 2.0, "p95": base * 3.0, "p99": base * 4.0, "minimum": 0.5, "maximum": base * 5.0, "average": base * 1.5 })
}

/// A report of trtllm-bench before 1.3, with streaming: it names no machine.
fn old() -> Value {
    json!({
        "engine": { "model": "org/m", "version": "0.20.0", "backend": "TRT", "dtype": "bfloat16", "quantization": null },
        "world_info": { "world_size": 1, "max_batch_size": 256 },
        "request_info": { "num_requests": 40, "avg_input_length": 100.0, "avg_output_length": 25.5 },
        "performance": {
            "total_latency_ms": 2500.0, "avg_request_latency_ms": 900.0, "request_throughput_req_s": 16.0,
            "system_output_throughput_tok_s": 1e6, "request_latency_percentiles_ms": percentiles(800.0),
        },
        "streaming_metrics": {
            "avg_ttft_ms": 31.0, "avg_tpot_ms": 8.0, "tpot_percentiles": percentiles(7.0), "ttft_percentiles": percentiles(30.0),
        },
    })
}

/// One since 1.3, on a machine that it names.
fn new(machine: &str) -> Value {
    let mut report = old();
    report.as_object_mut().unwrap().remove("request_info");
    report.as_object_mut().unwrap().remove("streaming_metrics");
    report["engine"]["version"] = json!("1.3.0rc12");
    report["machine"] = json!({ "name": machine });
    report["performance"]["system_total_throughput_tok_s"] = json!(2e6);
    report["dataset"] = json!({ "num_requests": 41, "isl_stats": percentiles(101.0), "osl_stats": percentiles(26.0) });
    report
}

#[test]
fn reports_of_trtllm_bench_stand_apart_from_what_was_measured_here() {
    let place = place();
    let before = lines(&place, "engines.jsonl");
    let run = before.iter().find(|line| line["kind"] == "run").unwrap();
    let (device, workload) = (run["device"]["name"].as_str().unwrap(), run["workloads"][0]["name"].as_str().unwrap());
    report(&place, &["--from", "engines.jsonl", "-o", "alone"], 0);
    place.file("old.json", &old().to_string());
    // On the device of the run, with more tokens a second than anything in it.
    place.file("new.json", &new(device).to_string());
    place.file("far.json", &new("NVIDIA B200").to_string());
    let named = format!("{workload}=new.json");
    let import =
        ["--from", "engines.jsonl", "--import", "trtllm-bench", "--as", "trt", &named, "old.json", "far=far.json"];
    report(&place, &import, 0);
    let whole = json(&place, "report.json");
    let of = |workload: &str| {
        let all = whole["entries"].as_array().unwrap();
        all.iter().find(|e| e["engine"] == "trt" && e["workload"] == workload).unwrap().clone()
    };
    for (name, on) in [(workload, device), ("old", "a device that its report does not name"), ("far", "NVIDIA B200")] {
        let entry = of(name);
        assert_eq!(entry["device"], on, "{name}");
        assert!(entry["apart"].as_str().unwrap().starts_with("unchecked (measured by trtllm-bench"), "{entry}");
        assert!(entry["figures"]["output_throughput"]["median"] == json!(1e6), "its figures are shown: {entry}");
    }
    assert_eq!(of("old")["figures"]["ttft_ms"]["median"], json!(30.0));
    assert!(of("far")["figures"]["ttft_ms"].is_null(), "without streaming there is no time to the first token");
    // Neither a rank, nor a winner, nor a criterion, nor a recommendation has changed.
    let alone = json(&place, "alone/report.json");
    for part in ["rankings", "workload_winners", "losses", "criteria", "recommendation"] {
        assert_eq!(whole[part], alone[part], "{part}");
    }
    let page = std::fs::read_to_string(place.path().join("report.md")).unwrap();
    assert!(page.contains("| trt | bf16 | 0.20.0 | a device that its report does not name |"), "{page}");

    // Nothing that was there is lost, and what comes again replaces what was.
    let after = lines(&place, "engines.jsonl");
    let measured = |list: &[Value]| list.iter().filter(|l| l["kind"] == "cell" && l["engine"] != "trt").count();
    assert_eq!(measured(&after), measured(&before));
    report(&place, &import, 0);
    assert_eq!(lines(&place, "engines.jsonl"), after);

    // Rows may begin with it.
    report(&place, &["--from", "fresh.jsonl", "--import", "trtllm-bench", "old.json"], 0);
    let fresh = lines(&place, "fresh.jsonl");
    assert_eq!((&fresh[0]["model"], &fresh[1]["engine"]), (&json!("org/m"), &json!("tensorrt-llm")));

    // What cannot be told apart or read is refused, and changes nothing.
    let ours = ["--from", "engines.jsonl", "--import", "trtllm-bench", "--as", "jitune", "old.json"];
    assert!(report(&place, &ours, 2).contains("was measured there"));
    place.file("bad.json", "{}");
    let bad = report(&place, &["--from", "engines.jsonl", "--import", "trtllm-bench", "bad.json"], 4);
    assert!(bad.contains("bad.json: the report has no `request_info.num_requests`"), "{bad}");
    report(&place, &["--from", "engines.jsonl", "--import", "trtllm-bench"], 2);
    assert_eq!(lines(&place, "engines.jsonl"), after);
}
