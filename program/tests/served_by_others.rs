//! A server of others, driven for real beside jitune's own: `transformers serve`, in text alone. It runs where a Python has
//! `transformers[serving]`: `$JITUNE_SERVE_PYTHON`, or `python3`.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// A Python with transformers' server.
fn python() -> Option<String> {
    let named = std::env::var("JITUNE_SERVE_PYTHON").ok();
    let has = |python: &String| {
        let code = "import fastapi, openai, uvicorn, torch, tokenizers, transformers.cli.serving.completion";
        let out = Command::new(python).args(["-c", code]).stdin(Stdio::null()).output();
        out.is_ok_and(|out| out.status.success())
    };
    named.into_iter().chain(["python3".to_string()]).find(has)
}

/// A tokenizer of 512 tokens, of whole words among them, in the folder `m`.
const TOKENIZER: &str = r#"
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
words = "the a of and to in is it you that he was for on are with as his they be at one have this from or had by hot word but what some we can out other were all there when up use your how said an each she".split()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
tokenizer.train_from_iterator([" ".join(words[i:] + words[:i]) for i in range(len(words))], trainer)
from transformers import PreTrainedTokenizerFast
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(sys.argv[1])
"#;

#[test]
fn transformers_own_server_is_measured_in_text_and_called_unchecked() {
    let Some(python) = python() else {
        eprintln!(
            "SKIPPED: no Python here with transformers' server; python3 -m pip install torch 'transformers[serving]', and name it by JITUNE_SERVE_PYTHON"
        );
        return;
    };
    let place = Place::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut config = golden["models"]["llama-tied-llama3"]["config"].clone();
    config["vocab_size"] = json!(512);
    place.file("config/config.json", &config.to_string());
    let out = place.jitune(&["model", "./config", "--init", "random:7", "--dtype", "f32", "-o", "m"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let script = place.file("tokenizer.py", TOKENIZER);
    let out = Command::new(&python).arg(script).arg(place.path().join("m")).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));

    let workload = "batch-1:prompt=9,answer=8,requests=6,chat:prompt=6,answer=5,requests=6,rate=4";
    let line = format!(
        "export HF_HUB_OFFLINE=1; exec '{python}' -m transformers.cli.transformers serve {{model}} --port {{port}} --device {{device}} --dtype {{long_dtype}}"
    );
    let start = format!("ids={line}");
    let args =
        ["bench", "--model", "m", "--target", "cpu", "--threads", "1", "--db", "db", "-o", "out", "--quick", "--http"];
    let more =
        ["--engines", "jitune,transformers-serve", "--start", &start, "--python", &python, "--workload", workload];
    let out = place.jitune(&[&args[..], &more].concat()).output().unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(0), "{said}");
    let rows = std::fs::read_to_string(place.path().join("out/engines.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str, engine: &str| -> Vec<Value> {
        rows.iter().filter(|row| row["kind"] == kind && row["engine"] == engine).cloned().collect()
    };
    for engine in ["jitune", "transformers-serve"] {
        let cells = of("cell", engine);
        assert_eq!(cells.len(), 2, "{said}");
        for (cell, [answers, tokens]) in cells.iter().zip([[6, 48], [6, 30]]) {
            assert_eq!(cell["state"], "ok", "{cell} {said}");
            let measured = &cell["measured"];
            assert_eq!((&measured["completed"], &measured["failed"]), (&json!(answers), &json!(0)), "{cell}");
            assert_eq!(measured["output_tokens"], json!(tokens), "{cell}");
            assert!(measured["ttft_ms"]["median"].as_f64().unwrap() > 0.0, "{cell}");
        }
        let starts = of("start", engine);
        assert!(starts.iter().all(|start| start["transport"] == "http" && start["why"].is_null()), "{starts:?}");
        let groups: Vec<usize> = starts.iter().map(|start| start["workloads"].as_array().unwrap().len()).collect();
        assert_eq!(groups, [1, 1], "one start for each group of workloads");
    }
    // jitune's server says which tokens are likely; the other says text alone, and nothing of it is ranked.
    assert_eq!(of("check", "jitune")[0]["state"], "ok", "{said}");
    let check = &of("check", "transformers-serve")[0];
    assert_eq!(check["state"], "unchecked");
    assert!(check["why"].as_str().unwrap().contains("text alone"), "{check}");
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path().join("out/report.json")).unwrap()).unwrap();
    assert!(!report["rankings"].to_string().contains("transformers-serve"), "{}", report["rankings"]);
    let page = std::fs::read_to_string(place.path().join("out/report.md")).unwrap();
    assert!(page.contains("transformers-serve | unchecked (it takes prompts as text alone"), "{page}");
    // Asked in ids, as any server is that does not say whose it is, it refuses each request, and costs its own rows alone.
    for cell in of("cell", "ids") {
        assert_eq!(cell["state"], "dropped", "{cell}");
        assert!(cell["why"].as_str().unwrap().contains("Unexpected fields in the request"), "{cell}");
    }
    // The tokenizer in both, with the same ids.
    let tokenizers: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "tokenization").collect();
    let [ours, theirs] = &tokenizers[..] else { panic!("{tokenizers:?}") };
    assert!(ours["encode"].as_f64().unwrap() > 0.0 && ours["decode"].as_f64().unwrap() > 0.0, "{ours}");
    assert_eq!((&theirs["same"], &theirs["why"]), (&json!(true), &Value::Null), "{theirs}");
    assert!(page.contains("## Tokenization"), "{page}");
    assert_eq!(place.alive(), [], "no process is left");
}
