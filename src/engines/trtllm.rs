//! What `trtllm-bench … --report_json` wrote, as lines of a run: TensorRT-LLM measured by its own tool, beside what is measured here.
//!
//! Reports are of two generations. All have `engine`, `world_info`, `request_info`, `performance` and `dataset`, with `--streaming` also
//! `streaming_metrics`; newer ones have `machine`, and those of 1.3 `energy`. A `dataset` has averages (`avg_isl`) or statistics
//! (`isl_stats.average`). What a report does not say stays none, or a [`Spread`] of count 0. It never says the spread's standard deviation,
//! which is 0 here, nor gaps between tokens.

use super::measured::{Meanwhile, Measured, Spread};
use super::rows::{Cell, Line, Of, Start, State};
use serde_json::Value;

/// Why a report cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is no JSON.
    #[error("the report is no JSON: {0}; give the file that trtllm-bench wrote for --report_json")]
    Json(#[from] serde_json::Error),
    /// It lacks what every report has.
    #[error(
        "the report has no `{key}`; give the file that trtllm-bench wrote for --report_json, not --output_json or --request_json"
    )]
    Missing {
        /// The key, from the top, parts joined by dots.
        key: String,
    },
    /// Something has another type, or is not finite or negative.
    #[error("`{key}` of the report is {found} and no number that can be measured")]
    Wrong {
        /// The key.
        key: String,
        /// What is there.
        found: String,
    },
}

/// What a report says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// The model that it names; empty where it names none.
    pub model: String,
    /// Who was measured.
    pub start: Start,
    /// What came of it.
    pub cell: Cell,
}

impl Imported {
    /// The `transport` of its start.
    pub const TRANSPORT: &str = "report";

    /// Reads a report of an engine under a label. `workload` is the name of what was asked of it, which the report does not know; the
    /// round is 0. Where it does not name its device, that is named so, and shares no ratio with any.
    pub fn read(text: &str, label: &str, workload: &str) -> Result<Imported, ReportError> {
        let report = Report(serde_json::from_str(&without_nan(text))?);
        let engine = label.to_owned();
        let dtype = report.dtype();
        let of = Of { engine: engine.clone(), dtype: dtype.clone(), workload: workload.into(), round: 0 };
        let start = Start {
            engine,
            dtype,
            version: report.text("engine.version").unwrap_or_default(),
            device: report.text("machine.name").unwrap_or_else(|| UNNAMED.into()),
            workloads: vec![workload.into()],
            target: "cuda".into(),
            transport: Imported::TRANSPORT.into(),
            batching: "continuous".into(),
            sequences: report.optional("world_info.max_batch_size")?.unwrap_or(0.0) as usize,
            notes: report.notes()?,
            ..Start::default()
        };
        let why = Some("measured by trtllm-bench, and not checked against a reference".into());
        let model = report.text("engine.model").unwrap_or_default();
        Ok(Imported {
            model,
            start,
            cell: Cell { of, state: State::Unchecked, why, measured: Some(report.measured()?) },
        })
    }

    /// As lines of a run.
    pub fn lines(self) -> [Line; 2] {
        [Line::Start(Box::new(self.start)), Line::Cell(Box::new(self.cell))]
    }
}

/// The device of a report that names none, as those before 1.3 do.
const UNNAMED: &str = "a device that its report does not name";

struct Report(Value);

impl Report {
    fn get(&self, key: &str) -> Option<&Value> {
        let found = key.split('.').try_fold(&self.0, |at, part| at.get(part));
        found.filter(|v| !v.is_null())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(str::to_owned)
    }

    /// A number of at least 0; none where nothing is said.
    fn optional(&self, key: &str) -> Result<Option<f64>, ReportError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|v| v.is_finite() && *v >= 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(ReportError::Wrong { key: key.into(), found: short(value) }),
        }
    }

    /// The first of some keys that is there; the first is the one that is missed.
    fn one_of(&self, keys: &[&str]) -> Result<f64, ReportError> {
        for key in keys {
            if let Some(number) = self.optional(key)? {
                return Ok(number);
            }
        }
        Err(ReportError::Missing { key: keys.first().copied().unwrap_or_default().into() })
    }

    /// The precision as it is named here: that of the weights where they are quantized.
    fn dtype(&self) -> String {
        let quantized = self.text("engine.quantization").filter(|q| q != "NO_QUANT" && q != "None");
        let name = quantized.or_else(|| self.text("engine.dtype")).unwrap_or_default().to_lowercase();
        match &name[..] {
            "bfloat16" => "bf16".into(),
            "float16" => "f16".into(),
            "float32" => "f32".into(),
            "w8a16" => "int8".into(),
            "w4a16" | "w4a16_awq" | "w4a16_gptq" => "int4".into(),
            _ => name,
        }
    }

    fn notes(&self) -> Result<Vec<String>, ReportError> {
        let mut notes = Vec::new();
        for (key, says) in [("engine.backend", "backend"), ("engine.kv_cache_dtype", "keys and values in")] {
            notes.extend(self.text(key).map(|text| format!("{says} {text}")));
        }
        let world = self.optional("world_info.world_size")?.unwrap_or(1.0);
        if world > 1.0 {
            notes.push(format!("{world} GPUs"));
        }
        if let Some(at_a_time) = self.optional("request_info.avg_num_concurrent_requests")? {
            notes.push(format!("{at_a_time:.1} requests at a time in the mean"));
        }
        Ok(notes)
    }

    fn measured(&self) -> Result<Measured, ReportError> {
        let requests = self.one_of(&["request_info.num_requests", "dataset.num_requests"])?;
        let input = self.one_of(&["request_info.avg_input_length", "dataset.avg_isl", "dataset.isl_stats.average"])?;
        let output =
            self.one_of(&["request_info.avg_output_length", "dataset.avg_osl", "dataset.osl_stats.average"])?;
        let duration_s = self.one_of(&["performance.total_latency_ms"])? / 1e3;
        let output_throughput = self.one_of(&["performance.system_output_throughput_tok_s"])?;
        let [input_tokens, output_tokens] = [input, output].map(|mean| (mean * requests).round() as u64);
        // Versions before it was said: prompts and answers in the same time.
        let whole = self.optional("performance.system_total_throughput_tok_s")?;
        let total = (input_tokens + output_tokens) as f64;
        let computed = if duration_s > 0.0 { total / duration_s } else { 0.0 };
        let spread = |mean: &str, percentiles: &str| self.spread(requests as u64, mean, percentiles);
        let energy = self.optional("energy.total_energy_j")?.filter(|_| output_tokens > 0);
        Ok(Measured {
            duration_s,
            completed: requests as u64,
            input_tokens,
            output_tokens,
            request_throughput: self.one_of(&["performance.request_throughput_req_s"])?,
            output_throughput,
            total_throughput: whole.unwrap_or(computed),
            ttft_ms: spread("streaming_metrics.avg_ttft_ms", "streaming_metrics.ttft_percentiles")?,
            tpot_ms: spread("streaming_metrics.avg_tpot_ms", "streaming_metrics.tpot_percentiles")?,
            e2el_ms: spread("performance.avg_request_latency_ms", "performance.request_latency_percentiles_ms")?,
            meanwhile: Meanwhile {
                joules_a_token: energy.map(|joules| joules / output_tokens as f64),
                power_w: self.optional("energy.average_gpu_power")?,
                ..Meanwhile::default()
            },
            ..Measured::default()
        })
    }

    /// Of so many requests, where it says the mean and the percentiles; of none otherwise.
    fn spread(&self, count: u64, mean: &str, percentiles: &str) -> Result<Spread, ReportError> {
        if self.get(percentiles).is_none() {
            return Ok(Spread::default());
        }
        let of = |name: &str| self.optional(&format!("{percentiles}.{name}"));
        let need = |name: &str| of(name)?.ok_or_else(|| ReportError::Missing { key: format!("{percentiles}.{name}") });
        let mean = match self.optional(mean)? {
            Some(mean) => mean,
            None => need("average")?,
        };
        let p99 = need("p99")?;
        let max = of("maximum")?.unwrap_or(p99);
        Ok(Spread { count, mean, std: 0.0, median: need("p50")?, p90: need("p90")?, p99, max })
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

/// The text with `null` for the numbers that Python writes and JSON does not have.
fn without_nan(text: &str) -> String {
    let (mut out, mut rest, mut quoted) = (String::with_capacity(text.len()), text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| !quoted && rest.starts_with(word));
        let taken = match (first, word) {
            (_, Some(word)) => word.len(),
            // What follows is part of the text, whatever it is.
            ('\\', None) if quoted => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => first.len_utf8(),
        };
        quoted ^= first == '"';
        out += if word.is_some() { "null" } else { &rest[..taken] };
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn percentiles(base: f64) -> Value {
        json!({ "p50": base, "p90": base * 2.0, "p95": base * 3.0, "p99": base * 4.0, "minimum": 0.5, "maximum": base * 5.0, "average": base * 1.5 })
    }

    /// A report of the older generation, with streaming.
    fn old() -> Value {
        json!({
            "engine": {
                "model": "m", "model_path": "None", "engine_dir": "/engines/m", "version": "0.20.0", "backend": "TRT", "dtype": "bfloat16",
                "kv_cache_dtype": null, "quantization": null, "max_input_length": 1024, "max_sequence_length": 2048,
            },
            "world_info": {
                "tp_size": 1, "pp_size": 1, "ep_size": 1, "world_size": 1, "max_batch_size": 256, "max_num_tokens": 8192,
                "scheduling_policy": "Guaranteed No Evict", "kv_cache_percentage": 90.0, "issue_rate": 1e6,
            },
            "request_info": { "num_requests": 40, "avg_num_concurrent_requests": 31.25, "avg_input_length": 100.0, "avg_output_length": 25.5 },
            "performance": {
                "total_latency_ms": 2500.0, "avg_request_latency_ms": 900.0, "request_throughput_req_s": 16.0,
                "system_output_throughput_tok_s": 408.0, "output_throughput_per_user_tok_s": 30.0, "output_throughput_per_gpu_tok_s": 408.0,
                "request_latency_percentiles_ms": percentiles(800.0),
            },
            "streaming_metrics": {
                "token_output_speed_tok_s": 55.0, "avg_ttft_ms": 31.0, "avg_tpot_ms": 8.0,
                "tpot_percentiles": percentiles(7.0), "ttft_percentiles": percentiles(30.0), "gen_tps_percentiles": percentiles(50.0),
            },
            "dataset": { "dataset_path": "d.json", "num_requests": 41, "avg_isl": 101.0, "avg_osl": 26.0 },
        })
    }

    /// One of the newer, without streaming.
    fn new() -> Value {
        let mut report = old();
        report.as_object_mut().unwrap().remove("streaming_metrics");
        report["engine"]["version"] = json!("1.3.0rc12");
        report["engine"]["quantization"] = json!("FP8");
        report["machine"] = json!({ "name": "NVIDIA H100 80GB HBM3", "memory.total": 79.2, "clocks.mem": 2.619 });
        report["performance"]["system_total_throughput_tok_s"] = json!(2008.0);
        report["energy"] = json!({ "total_energy_j": 510.0, "output_tps_per_w": 2.0, "average_gpu_power": 204.0 });
        report["dataset"] =
            json!({ "num_requests": 41, "isl_stats": percentiles(101.0), "osl_stats": percentiles(26.0) });
        report["world_info"]["world_size"] = json!(2);
        report
    }

    fn read(report: &Value) -> Result<Imported, ReportError> {
        Imported::read(&report.to_string(), "tensorrt-llm", "sustained")
    }

    #[test]
    fn a_report_with_streaming_has_every_time() {
        let Imported { model, start, cell } = read(&old()).unwrap();
        assert_eq!((&model[..], &start.version[..], &start.device[..]), ("m", "0.20.0", UNNAMED));
        assert_eq!((start.sequences, &start.workloads[..]), (256, &["sustained".to_string()][..]));
        assert_eq!(start.notes, ["backend TRT", "31.2 requests at a time in the mean"]);
        assert_eq!(
            cell.of,
            Of { engine: "tensorrt-llm".into(), dtype: "bf16".into(), workload: "sustained".into(), round: 0 }
        );
        assert_eq!(cell.state, State::Unchecked);
        let m = cell.measured.unwrap();
        assert_eq!((m.duration_s, m.completed, m.input_tokens, m.output_tokens), (2.5, 40, 4000, 1020));
        // What it does not say of both together follows from the rest.
        assert_eq!((m.request_throughput, m.output_throughput, m.total_throughput), (16.0, 408.0, 2008.0));
        let ttft = Spread { count: 40, mean: 31.0, std: 0.0, median: 30.0, p90: 60.0, p99: 120.0, max: 150.0 };
        assert_eq!((m.ttft_ms, m.tpot_ms.mean, m.tpot_ms.median, m.e2el_ms.mean), (ttft, 8.0, 7.0, 900.0));
        assert_eq!((m.itl_ms.count, m.goodput, m.meanwhile), (0, None, Meanwhile::default()));
    }

    #[test]
    fn a_later_one_says_the_machine_and_the_energy() {
        let imported = read(&new()).unwrap();
        let (start, cell) = (&imported.start, &imported.cell);
        assert_eq!((&start.device[..], &start.dtype[..], &cell.of.dtype[..]), ("NVIDIA H100 80GB HBM3", "fp8", "fp8"));
        assert_eq!(start.notes, ["backend TRT", "2 GPUs", "31.2 requests at a time in the mean"]);
        let m = cell.measured.as_ref().unwrap();
        assert_eq!((m.total_throughput, m.ttft_ms.count, m.tpot_ms.count, m.e2el_ms.count), (2008.0, 0, 0, 40));
        assert_eq!((m.meanwhile.joules_a_token, m.meanwhile.power_w), (Some(0.5), Some(204.0)));
        // Its lines are those of a run.
        for line in imported.lines() {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (section, key, error) in [
            ("performance", "total_latency_ms", "performance.total_latency_ms"),
            ("performance", "request_throughput_req_s", "performance.request_throughput_req_s"),
            ("performance", "system_output_throughput_tok_s", "performance.system_output_throughput_tok_s"),
        ] {
            let mut report = new();
            report[section].as_object_mut().unwrap().remove(key);
            assert!(matches!(read(&report), Err(ReportError::Missing { key }) if key == error), "{error}");
        }
        let mut report = old();
        report["streaming_metrics"]["ttft_percentiles"].as_object_mut().unwrap().remove("p90");
        let missing = read(&report).unwrap_err().to_string();
        assert!(
            missing.starts_with("the report has no `streaming_metrics.ttft_percentiles.p90`; give the file"),
            "{missing}"
        );
        // The data set says what was asked for, where it is not said what came.
        for mut report in [old(), new()] {
            report.as_object_mut().unwrap().remove("request_info");
            let m = read(&report).unwrap().cell.measured.unwrap();
            assert_eq!(m.completed, 41);
            assert!(m.input_tokens > 4000 && m.output_tokens > 1020);
            report.as_object_mut().unwrap().remove("dataset");
            assert!(matches!(read(&report), Err(ReportError::Missing { key }) if key == "request_info.num_requests"));
        }
        report["performance"]["total_latency_ms"] = json!("fast");
        report["streaming_metrics"]["ttft_percentiles"]["p90"] = json!(1.0);
        let wrong = read(&report).unwrap_err().to_string();
        assert_eq!(
            wrong,
            "`performance.total_latency_ms` of the report is \"fast\" and no number that can be measured"
        );
        assert!(matches!(Imported::read("[Latency] P50", "e", "x"), Err(ReportError::Json(_))));
    }

    #[test]
    fn numbers_that_are_none_are_passed_over() {
        let text = old().to_string().replace("31.25", "NaN").replace("\"d.json\"", "\"NaN \\\" Infinity\"");
        let report = without_nan(&text);
        assert!(
            report.contains("\"NaN \\\" Infinity\"") && report.contains("\"avg_num_concurrent_requests\":null"),
            "{report}"
        );
        assert_eq!(Imported::read(&text, "e", "x").unwrap().start.notes, ["backend TRT"]);
        let infinite = old().to_string().replace("2500.0", "-Infinity");
        assert!(
            matches!(Imported::read(&infinite, "e", "x"), Err(ReportError::Missing { key }) if key == "performance.total_latency_ms")
        );
    }
}
