//! Bad input and machines that lack something: one clear message, the documented exit code, no panic.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// A command line, what is set for it (`NAME=VALUE`), its exit code, and parts of what it says on standard error.
struct Case {
    args: &'static str,
    set: &'static [&'static str],
    code: i32,
    said: &'static [&'static str],
}

const fn case(args: &'static str, code: i32, said: &'static [&'static str]) -> Case {
    Case { args, set: &[], code, said }
}

const fn with(set: &'static [&'static str], args: &'static str, code: i32, said: &'static [&'static str]) -> Case {
    Case { args, set, code, said }
}

/// Splits a command line at spaces; what stands between quotes stays together.
fn words(line: &str) -> Vec<String> {
    let mut list = Vec::new();
    for (i, part) in line.split('\'').enumerate() {
        if i % 2 == 1 {
            list.push(part.to_string());
        } else {
            list.extend(part.split_whitespace().map(String::from));
        }
    }
    list
}

fn expect(mut command: Command, what: &str, code: i32, said: &[&str]) {
    let out = command.output().unwrap();
    let all = text(&out);
    assert_eq!(out.status.code(), Some(code), "{what}: {all}");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(!stderr.contains("panicked"), "{what}: {all}");
    for part in said {
        assert!(stderr.contains(part), "{what}: '{part}' is not said: {all}");
    }
}

fn run(place: &Place, case: &Case) {
    let list = words(case.args);
    let mut command = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>());
    for pair in case.set {
        let (name, value) = pair.split_once('=').unwrap();
        command.env(name, value);
    }
    expect(command, case.args, case.code, case.said);
}

/// The beginning of a configuration whose linear layers are quantised.
const GPTQ: &str = r#"{"quantization_config":{"quant_method":"gptq","bits":4,"group_size":128,"sym":true},"#;

#[test]
fn models_problems_and_plans() {
    let place = Place::new();
    let good = r#"{"model_type":"llama","hidden_size":256,"intermediate_size":512,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":1000,"rms_norm_eps":1e-5,"hidden_act":"silu"}"#;
    let config = |name: &str, from: &str, to: &str| {
        assert!(good.contains(from));
        place.file(&format!("{name}/config.json"), &good.replacen(from, to, 1));
    };
    config("good", "256", "256");
    config("cut", "\"hidden_act\":\"silu\"}", "");
    config("word", "256", "\"wide\"");
    config("negative", "256", "-256");
    config("huge", "256", "99999999999999999999");
    config("big", "256", "1000000000");
    config("zero", ":4,", ":0,");
    config("heads", ":4,", ":3,");
    config("missing", "\"vocab_size\":1000,", "");
    config("kind", "llama", "mamba");
    place.file("gptq/config.json", &good.replacen('{', GPTQ, 1));
    place.file("list/config.json", "[1, 2, 3]");
    place.file("empty/config.json", "");
    std::fs::create_dir_all(place.path().join("binary")).unwrap();
    std::fs::write(place.path().join("binary/config.json"), [0xff, 0xfe, 0]).unwrap();
    std::fs::create_dir_all(place.path().join("nothing")).unwrap();
    place.file("op.txt", "# a comment\ngelu rows=4 cols=64\nnorm rows=3\n");
    place.file("shape.txt", "gelu rows=4 cols=64\ngelu rows=-4 cols=64\n");
    place.file("long.txt", &"x".repeat(1_000_000));
    place.file("void.txt", "\n# nothing\n");
    place.file("none/precisions.jsonl", "");
    place.file("bad/precisions.jsonl", "{bad\n");
    let row = r#"{"model":"m","device":"d","precision":"f32","stored":"f32","failed":null,"token_ms":-5.0,"first_ms":1.0,"weights_bytes":1,"memory_bytes":2,"error":0.0,"kl":0.0,"top1":1.0,"positions":256,"perplexity":2.0,"kernels":[0,1]}"#;
    place.file("untrue/precisions.jsonl", row);
    let cases = [
        case("tune --target cpu --db db --model llama-3.2-1b --dtype tf32", 2, &["--dtype tf32", "--dtype f32"]),
        case(
            "tune --target cpu --db db --model llama-3.2-1b --dtype e4m3",
            2,
            &["--dtype e4m3", "--weights fp8", "--kv-dtype"],
        ),
        case("model llama-9", 2, &["unknown model 'llama-9'", "llama-3.2-1b"]),
        case("tune --model llama-9 --target cpu --db db", 2, &["unknown model 'llama-9'"]),
        case("model ./good --target cpu", 0, &[]),
        case("model ./nothing --target cpu", 2, &["cannot read", "config.json"]),
        case("model ./nowhere --target cpu", 2, &["cannot read", "nowhere"]),
        case("model ./cut --target cpu", 2, &["cut/config.json", "not a configuration"]),
        case("model ./empty --target cpu", 2, &["empty/config.json", "not a configuration"]),
        case("model ./list --target cpu", 2, &["list/config.json"]),
        case("model ./binary --target cpu", 2, &["binary/config.json", "no text", ".gguf"]),
        case("model ./word --target cpu", 2, &["word/config.json", "hidden_size = \"wide\" is not a whole number"]),
        case("model ./negative --target cpu", 2, &["hidden_size = -256 must lie in"]),
        case("model ./huge --target cpu", 2, &["huge/config.json"]),
        case("model ./big --target cpu", 2, &["hidden_size = 1000000000 must lie in"]),
        case("model ./zero --target cpu", 2, &["num_attention_heads = 0 must lie in"]),
        case("model ./heads --target cpu", 2, &["not a multiple"]),
        case("model ./missing --target cpu", 2, &["vocab_size is missing"]),
        case("model ./kind --target cpu", 2, &["'mamba' is not supported"]),
        case(
            "model ./gptq --target cpu --context 64",
            2,
            &["quantization_config says int4-g128", "model.safetensors", "--weights plain", "--weights int4-g128"],
        ),
        case("model ./gptq/config.json --target cpu --context 64", 2, &["quantization_config says int4-g128"]),
        case("model ./gptq --target cpu --context 64 --weights plain", 0, &[]),
        case("model ./gptq --target cpu --context 64 --weights int4-g128", 0, &[]),
        case("model ./good/config.json --target cpu --context 64", 0, &[]),
        case("model ./good --target cpu --kv-dtype fp8", 2, &["it is e4m3, f16, bf16, or --dtype's own"]),
        case("run --model ./good --target cpu --ids 1 --kv-dtype fp8", 2, &["it is e4m3, f16, bf16, or --dtype's own"]),
        case(
            "tune --target cpu --db db --problem 'rmsnorm rows=1 cols=2 eps=1e-13'",
            2,
            &["rmsnorm: eps=1e-13 is impossible"],
        ),
        case("compile --problem 'gelu rows=4 cols=64' --top 0", 2, &["--top"]),
        case("export --arch foo -o f", 2, &["--arch", "foo", "sm_90a", "x86_64-avx2"]),
        case("model ./good --arch sm_100", 2, &["'sm_100' is not supported", "portable kernels run on later GPUs too"]),
        case("model llama-3.2-1b --target cpu --batch 0", 2, &["0"]),
        case("model llama-3.2-1b --target cpu --batch -1", 2, &["-1"]),
        case("model llama-3.2-1b --target cpu --batch=-1", 2, &["-1"]),
        case("model llama-3.2-1b --target cpu --batch two", 2, &["two"]),
        case("model llama-3.2-1b --target cpu --prefill 0", 2, &["0"]),
        case("model llama-3.2-1b --target cpu --context 9223372036854775807", 2, &["9223372036854775807"]),
        case("model llama-3.2-1b --target cpu --prefill 2000000000", 2, &["2000000000"]),
        case("model llama-3.2-1b --target cpu --page 0", 2, &["--page 0"]),
        case("model mistral-7b-v0.1 --target cpu --context 8192", 2, &["sliding_window", "8192"]),
        case("model llama-3.2-1b --target cpu --dtype f64", 2, &["one of bf16"]),
        case("model llama-3.2-1b --target tpu", 2, &["cuda or cpu"]),
        case("model llama-3.2-1b --arch sm_70", 2, &["'sm_70' is not supported", "sm_90a"]),
        case("tune --target cpu --db db --problem 'matmull m=1 n=2 k=3'", 2, &["unknown op 'matmull'", "matmul,"]),
        case("tune --target cpu --db db --problem 'matmul m=1 n=2'", 2, &["needs k="]),
        case("tune --target cpu --db db --problem 'matmul m=0 n=2 k=2'", 2, &["m=0 is impossible", "1..="]),
        case("tune --target cpu --db db --problem 'matmul m=99999999999999999999 n=2 k=2'", 2, &["whole number"]),
        case("tune --target cpu --db db --problem 'matmul m=1073741824 n=1073741824 k=8'", 2, &["elements"]),
        case(
            "tune --target cpu --db db --problem 'gelu rows=4 cols=4 colour=1'",
            2,
            &["'colour=1' is not a dimension"],
        ),
        case("tune --target cpu --db db --problem ''", 2, &["is empty"]),
        case(
            "tune --target cpu --db db --problem 'attention batch=1 q=4 kv=4 heads=3 kv_heads=2 head_dim=64'",
            2,
            &["multiple of kv_heads"],
        ),
        case("tune --target cpu --db db --plan op.txt", 2, &["op.txt:3:", "unknown op 'norm'"]),
        case("tune --target cpu --db db --plan shape.txt", 2, &["shape.txt:2:", "rows=-4"]),
        case("tune --target cpu --db db --plan long.txt", 2, &["long.txt:1:", "unknown op 'xxx", "… (1000000 bytes)'"]),
        case("tune --target cpu --db db --plan void.txt", 2, &["void.txt"]),
        case("tune --target cpu --db db --plan nowhere.txt", 4, &["nowhere.txt"]),
        case("tune --target cpu --db db --plan -", 2, &["-: no problem in it"]),
        case("tune --target cpu --db db --plan .", 4, &["."]),
        case("tune --target cpu --db db", 2, &["--model"]),
        case("tune --target cpu --db db --model llama-3.2-1b --plan op.txt", 2, &["cannot be used with"]),
        case("tune --target cpu --db db --problem 'gelu rows=4 cols=4' --patience 0", 2, &["--patience"]),
        case("tune --target cpu --db db --problem 'gelu rows=4 cols=4' --patience NaN", 2, &["--patience"]),
        case("tune --target cpu --db db --problem 'gelu rows=4 cols=4' --search best", 2, &["exhaustive"]),
        case("tune --target cpu --db db --problem 'gelu rows=4 cols=4' --templates nowhere", 4, &["nowhere"]),
        case("tune --target cpu --db db --problem 'gelu rows=4 cols=4 dtype=tf32'", 1, &["no cpu template"]),
        case(
            "compare --target cpu --model llama-3.2-1b --precisions --kv-dtype e4m3",
            2,
            &["--precisions names", "/kv-e4m3"],
        ),
        case(
            "compare --target cpu --model llama-3.2-1b --precisions=bf16 --weights w8a8",
            2,
            &["--weights and --kv-dtype"],
        ),
        case("tune --target cpu --db db --model llama-3.2-1b --weights w8a9", 2, &["w8a8|fp8|fp8-block|int4"]),
        case("model llama-3.2-1b --arch sm_90a --weights fp8 --dtype tf32", 2, &["--weights fp8", "not tf32"]),
        case("tune --target cpu --db db --model llama-3.2-1b --kv-dtype tf32", 2, &["--kv-dtype tf32", "e4m3"]),
        case("report --from none/precisions.jsonl -o out", 4, &["there is no row"]),
        case("report --from bad/precisions.jsonl -o out", 4, &["line 1"]),
        case("report --from untrue/precisions.jsonl -o out", 4, &["line 1", "token_ms is -5"]),
        case("report --from bad/precisions.jsonl --readme", 2, &["--readme", "precisions"]),
        case("compare --target cpu --problem 'gelu rows=4 cols=4' --peers ''", 2, &["a value is required", "--peers"]),
        case("inspect op.txt", 4, &["op.txt: not a jitune bundle: it begins with \"# a comm\""]),
        case("", 2, &["Usage"]),
        case("dance", 2, &["dance"]),
    ];
    cases.iter().for_each(|c| run(&place, c));
}

/// What is true of a model beside its plan is said once, on standard error; the plan itself is whole.
#[test]
fn models_are_told_with_what_is_to_be_said() {
    let place = Place::new();
    let config = "\u{feff}{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":256,\"intermediate_size\":512,
        \"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":1000,\"rms_norm_eps\":1e-5,\"wheels\":4}";
    place.file("cart/config.json", config);
    place.file("llama-3.2-1b/config.json", config);
    let said = |args: &str| {
        let list = words(args);
        let out = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (out, err) = said("model llama-3.2-1b --target cpu");
    assert!(out.starts_with("llama-3.2-1b: llama, 1,235,814,400 parameters\n"), "{out}");
    assert_eq!(err.matches("note:").count(), 1, "{err}");
    assert!(err.contains("write ./llama-3.2-1b to mean it"), "{err}");
    // By its path, the folder is meant.
    let (out, err) = said("model ./llama-3.2-1b --target cpu --context 2048");
    assert!(out.starts_with("./llama-3.2-1b: llama, ") && !err.contains("to mean it"), "{out}{err}");
    assert_eq!(err.matches("note:").count(), 1, "{err}");
    assert!(err.contains("./llama-3.2-1b/config.json: not known, and passed over: wheels"), "{err}");
    let (_, err) = said("model ./cart --target cpu");
    assert!(err.contains("4096 tokens are more than the 2048"), "{err}");
    let (out, _) = said("model ./cart --target cpu --json --batch 4,4 --prefill 8,8 --context 64 --page 16");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["config"]["family"], "llama");
    assert_eq!(json["parameters"], 2 * 1000 * 256 + 256 + 2 * (2 * 256 + 4 * 256 * 256 + 3 * 256 * 512));
    let calls = json["calls"].as_array().unwrap();
    let of = |role: &str| calls.iter().filter(|c| c["role"] == role).collect::<Vec<_>>();
    let counts: Vec<i64> = of("down").iter().map(|c| c["calls"].as_i64().unwrap()).collect();
    assert_eq!(counts, [2, 2]);
    assert!(of("qkv").iter().all(|c| c["problem"].as_str().unwrap().contains(" page=16 ")));
}

#[test]
fn folders_of_weights_are_made_and_looked_at() {
    let place = Place::new();
    let config = "{\"architectures\":[\"Qwen3ForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,
        \"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"vocab_size\":100,
        \"rms_norm_eps\":1e-6}";
    place.file("plain/config.json", config);
    let done = |args: &'static str, said: &str| {
        let list = words(args);
        let out = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        assert!(out.status.code() == Some(0) && text(&out).contains(said), "{args}: {}", text(&out));
    };
    done("model ./plain --init random:3 --dtype f16 -o made", "made: ./plain, 74,624 random");
    done("model ./made --check-weights", "25 tensors in 1 files, ");
    let config = std::fs::read_to_string(place.path().join("made/config.json")).unwrap();
    // Long before anything is compiled for it: there is no compiler, and nobody misses it.
    for (args, said) in [
        ("--ids 1,2,5000", "the prompt has the token 5000, and the model's go from 0 to 99"),
        ("--ids 1,-1", "the prompt has the token -1"),
        ("--ids 1 --temperature=-1", "temperature is -1"),
    ] {
        let list = words(&format!("run --model ./made --target cpu --db db {args}"));
        let mut command = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("JITUNE_CC", "/nonexistent");
        expect(command, args, 2, &[said]);
    }
    // A window of 8: a prompt of 3 and an answer of 6 are nine tokens, the last of which no layer reads.
    let mut slides: serde_json::Value = serde_json::from_str(&config).unwrap();
    for (key, value) in
        [("use_sliding_window", true.into()), ("sliding_window", 8.into()), ("max_window_layers", 0.into())]
    {
        slides[key] = value;
    }
    place.file("made/config.json", &slides.to_string());
    for (tokens, code, said) in [
        ("6", 3, "no C compiler"),
        ("7", 2, "10 tokens of prompt and answer would be computed as another model; up to 9 together are exact"),
    ] {
        let list =
            ["run", "--model", "./made", "--target", "cpu", "--db", "db", "--ids", "1,2,3", "--max-tokens", tokens];
        let mut command = place.jitune(&list);
        command.env("JITUNE_CC", "/nonexistent");
        expect(command, tokens, code, &[said]);
    }
    place.file("made/config.json", &config);
    done("model ./made --check-weights --json", "\"tensors\":25");
    for c in [
        case("model ./made --init random:3 -o made", 2, &["config.json: it exists"]),
        case("model ./plain --init random:x -o other", 2, &["random:SEED"]),
        case("model ./plain --init random:3", 2, &["--output"]),
        case("model ./plain --init random:3 --dtype e4m3 -o other", 2, &["is of e4m3"]),
        case("model ./plain --check-weights", 2, &["neither model.safetensors nor"]),
        case("model smollm2-135m --check-weights", 2, &["is a preset"]),
    ] {
        run(&place, &c);
    }
    let path = place.path().join("made/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
    let all = std::fs::read(&path).unwrap().len() + 2;
    for cut in [2, bytes.len() - 100, bytes.len() - 5] {
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let there = bytes.len() - cut;
        let list = words("model ./made --check-weights");
        let command = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>());
        let said = format!("model.safetensors: it is cut short: it has {there} bytes, and should have ");
        let whole = if cut == 2 { format!("{all} at least") } else { "at least".into() };
        expect(command, "cut", 2, &[&said, &whole]);
    }
    // A file that is gone, or that is no file: it is the model that is wrong, whoever reads it.
    std::fs::remove_file(&path).unwrap();
    place.file("made/model.safetensors.index.json", "{\"weight_map\":{\"a\":\"gone.safetensors\"}}");
    for c in [
        case("model ./made --check-weights", 2, &["gone.safetensors: "]),
        case("pack ./made --gguf made.gguf", 2, &["gone.safetensors: "]),
        case("run --model ./made --target cpu --db db --ids 1", 2, &["gone.safetensors: "]),
        case("step --model ./made --target cpu --db db", 2, &["gone.safetensors: "]),
        case("serve --model ./made --target cpu --db db --port 0", 2, &["gone.safetensors: "]),
        case("tune --steps --model ./made --target cpu --db db", 2, &["gone.safetensors: "]),
    ] {
        run(&place, &c);
    }
}

#[test]
fn plans_are_read_from_standard_input() {
    let place = Place::new();
    let run = |plan: &str, code: i32, said: &str| {
        let list = ["tune", "--nominal-ceilings", "--target", "cpu", "--trials", "1", "--db", "db", "--plan", "-"];
        let mut command = place.jitune(&list);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(plan.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
        assert!(text(&out).contains(said), "'{said}' is not said: {}", text(&out));
    };
    run("\u{feff}gelu rows=4 cols=64 dtype=f32\n", 0, "1 of 1 problems have winners");
    run("gelu rows=4 cols=64\nnorm rows=3\n", 2, "-:2:");
}

#[test]
fn compile_goes_on_past_what_no_template_takes() {
    let place = Place::new();
    let mut found = place.jitune(&["doctor", "--json", "--db", "db"]);
    let nvrtc = std::env::var_os("JITUNE_NVRTC");
    found.envs(nvrtc.iter().map(|path| ("JITUNE_NVRTC", path)));
    let found: serde_json::Value = serde_json::from_slice(&found.output().unwrap().stdout).unwrap();
    if !found["findings"].as_array().unwrap().iter().any(|f| f["what"] == "NVRTC" && f["here"] == true) {
        eprintln!("SKIPPED: NVRTC is not here");
        return;
    }
    let odd = "attention batch=1 q=10 kv=10 heads=4 kv_heads=4 head_dim=100000 dtype=bf16";
    place.file("plan.txt", &format!("{odd}\ngelu rows=4 cols=64\n"));
    let compile = |more: &[&str]| {
        let mut command = place.jitune(&[&["compile", "--plan", "plan.txt", "--arch", "sm_80"], more].concat());
        command.envs(nvrtc.iter().map(|path| ("JITUNE_NVRTC", path)));
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (out, err) = compile(&[]);
    assert!(out.contains("gelu rows=4 cols=64 dtype=bf16") && out.contains(", 0 failed or spilled"), "{out}");
    assert!(err.contains(&format!("no cuda template takes '{odd}'")), "{err}");
    assert!(err.contains("problems that were not compiled: 1"), "{err}");
    // An architecture that is named twice is compiled for once.
    let (twice, _) = compile(&["--arch", "sm_80,sm_80"]);
    assert_eq!(twice.matches("gelu").count(), out.matches("gelu").count(), "{twice}");
    let (out, _) = compile(&["--json"]);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().any(|l| l["error"].as_str().is_some_and(|e| e.contains(odd))), "{out}");
}

#[test]
fn reports() {
    let place = Place::new();
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    place.file("good.jsonl", &format!("{run}\n"));
    place.file("torn.jsonl", &format!("{run}\n{{\"kind\":\"ro"));
    place.file("bad.jsonl", &format!("{run}\n{{\"kind\":\"row\"}}\n{run}\n"));
    place.file("other.jsonl", "{\"kind\":\"end\",\"seconds\":1}\n");
    place.file("file", "not a folder");
    place.file("R.md", "a\n<!-- jitune report: good.jsonl -->\nold\n<!-- /jitune report -->\nb\n");
    let cases = [
        case("report --from good.jsonl", 0, &[]),
        case("report --from good.jsonl --json -o new/folder", 0, &[]),
        case("report --from torn.jsonl --readme", 0, &[]),
        case("report --from good.jsonl --readme R.md", 0, &[]),
        case(
            "report --from good.jsonl --readme file",
            4,
            &["file: it has not these two lines", "<!-- jitune report: good.jsonl -->"],
        ),
        case("report --from good.jsonl --readme none.md", 4, &["none.md"]),
        case("report", 2, &["--from"]),
        case("report --from good.jsonl --readme -o x", 2, &["cannot be used with"]),
        case("report --from nowhere.jsonl", 4, &["nowhere.jsonl"]),
        case("report --from .", 4, &["."]),
        case("report --from bad.jsonl", 4, &["bad.jsonl: line 2", "missing field"]),
        case("report --from other.jsonl", 4, &["other.jsonl", "not the rows.jsonl"]),
        case("report --from good.jsonl -o file", 4, &["file"]),
    ];
    cases.iter().for_each(|c| self::run(&place, c));
    let readme = std::fs::read_to_string(place.path().join("R.md")).unwrap();
    let between = readme.strip_prefix("a\n<!-- jitune report: good.jsonl -->\n\n1970-01-01").unwrap();
    assert!(between.ends_with("\n\n<!-- /jitune report -->\nb\n") && !readme.contains("old"), "{readme}");
    assert_eq!(std::fs::read_to_string(place.path().join("file")).unwrap(), "not a folder");
    assert!(place.path().join("report.html").exists() && place.path().join("new/folder/report.md").exists());
}

#[test]
fn databases_that_cannot_be() {
    let place = Place::new();
    place.file("file", "not a folder");
    let tune = "tune --nominal-ceilings --target cpu --problem 'gelu rows=4 cols=64 dtype=f32' --db";
    for (path, said) in
        [("file", "file"), ("file/db", "file/db"), ("/proc/nope", "/proc/nope"), ("/sys/nope", "/sys/nope")]
    {
        let mut list = words(tune);
        list.push(path.into());
        let command = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>());
        expect(command, path, 4, &[said, "--db"]);
    }
    let cases = [
        case("db list --db nowhere", 4, &["no tuning database at nowhere", "jitune tune"]),
        case("db verify --db file", 4, &["file"]),
        case("db merge --db db nowhere.jsonl", 4, &["nowhere.jsonl"]),
        case("explain --target cpu --db nowhere --problem 'gelu rows=4 cols=4'", 4, &["no tuning database"]),
        with(
            &["HOME=", "XDG_DATA_HOME=", "JITUNE_DB="],
            "db list",
            4,
            &["cannot tell where the database goes", "--db"],
        ),
    ];
    cases.iter().for_each(|c| run(&place, c));
}

/// A shell command with the program as `$0` and `db` to tune a small problem into.
fn shell(place: &Place, before: &str, after: &str) -> Command {
    let program = place.jitune(&[]);
    let problem = "gelu rows=4 cols=64 dtype=f32";
    let script = format!(
        "{before} && exec \"$0\" tune --nominal-ceilings --target cpu --trials 1 --problem '{problem}' --db db {after}"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program.get_program()).current_dir(place.path());
    command
}

/// In a mount namespace of its own, so that nothing of it is seen elsewhere nor left behind.
fn mounted(place: &Place, options: &str) -> Option<Command> {
    std::fs::create_dir_all(place.path().join("db")).unwrap();
    let mount = format!("mount -t tmpfs -o {options} none db");
    let can = Command::new("unshare").args(["-m", "sh", "-c", &mount]).current_dir(place.path()).output();
    if !can.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: this machine lets nobody mount ({options}); a full or read-only disk is not tried here");
        return None;
    }
    let inner = shell(place, &mount, "");
    let mut command = Command::new("unshare");
    command.arg("-m").arg(inner.get_program()).args(inner.get_args()).current_dir(place.path());
    Some(command)
}

/// A user's file is never taken for one of jitune's own, whatever the folder is called.
#[test]
fn a_folder_named_like_a_target() {
    let place = Place::new();
    place.file("cpu/support.c", "this is no C");
    let tune =
        "tune --target cpu --threads 1 --trials 1 --budget 20 --templates cpu --db db --problem 'gelu rows=4 cols=64'";
    run(&place, &case(tune, 0, &["1 problems"]));
}

#[test]
fn spans_of_time_without_end() {
    let place = Place::new();
    for case in [
        case(
            "tune --target cpu --threads 1 --trials 1 --nominal-ceilings --db db --problem 'gelu rows=4 cols=64' \
             --budget 18446744073709551615",
            0,
            &["1 problems"],
        ),
        case("db gc --db db --dry-run --trials-older-than 18446744073709551615", 0, &[]),
    ] {
        run(&place, &case);
    }
}

#[test]
fn a_read_only_disk() {
    let place = Place::new();
    if let Some(command) = mounted(&place, "ro") {
        expect(command, "a read-only disk", 4, &["db", "Read-only file system", "--db"]);
    }
}

#[test]
fn a_full_disk() {
    // From no room at all to room for all but the last things that are written.
    for blocks in [1, 2, 4, 8, 10] {
        let place = Place::new();
        let Some(command) = mounted(&place, &format!("nr_blocks={blocks}")) else { return };
        expect(command, &format!("{blocks} pages of disk"), 4, &["No space left on device"]);
    }
}

/// A candidate that met a full disk is not to blame: with space again it is tried, not remembered as bad.
#[test]
fn a_limit_on_files_is_not_remembered() {
    let place = Place::new();
    // Blocks of 512 bytes: enough for the journal, too few for a shared object.
    expect(shell(&place, "trap '' XFSZ; ulimit -f 12", ""), "a limit", 4, &["File too large"]);
    expect(shell(&place, "true", ""), "without a limit", 0, &[]);
}

#[test]
fn no_c_compiler() {
    let place = Place::new();
    let tune = "tune --target cpu --db db --problem 'gelu rows=4 cols=64 dtype=f32'";
    let cases = [
        with(&["PATH="], tune, 3, &["no C compiler", "gcc", "JITUNE_CC"]),
        with(&["JITUNE_CC=/nonexistent"], tune, 3, &["no C compiler", "/nonexistent"]),
        with(&["JITUNE_CC=/bin/false"], tune, 3, &["no C compiler", "/bin/false"]),
    ];
    cases.iter().for_each(|c| run(&place, c));
}

/// Where it is named it is there or nowhere, whatever else this machine has.
#[test]
fn no_nvrtc() {
    let place = Place::new();
    let compile = "compile --problem 'gelu rows=4 cols=64' --arch sm_80";
    let set = &["JITUNE_NVRTC=/nonexistent", "LD_LIBRARY_PATH=", "HOME=/nonexistent", "VIRTUAL_ENV=", "CONDA_PREFIX="];
    run(&place, &with(set, compile, 3, &["NVRTC is not found", "/nonexistent, as JITUNE_NVRTC says", "pip install"]));
}

#[test]
fn no_driver() {
    let place = Place::new();
    if ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"]
        .iter()
        .any(|d| Path::new(d).join("libcuda.so.1").exists())
    {
        eprintln!("SKIPPED: this machine has an NVIDIA driver");
        return;
    }
    let cases = [
        case("tune --target cuda --db db --problem 'gelu rows=4 cols=64'", 3, &["no NVIDIA driver", "--target cpu"]),
        case("model llama-3.2-1b --target cuda", 3, &["no NVIDIA driver"]),
        case("explain --target cuda --db db --problem 'gelu rows=4 cols=64'", 3, &["no NVIDIA driver"]),
    ];
    cases.iter().for_each(|c| run(&place, c));
}

/// A driver in name only, with the version and the GPU count that the test gives it.
fn driver(place: &Place, version: i32, init: i32, count: i32) {
    let code = format!(
        "int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}
        int cuInit(unsigned f) {{ (void)f; return {init}; }}
        int cuDeviceGetCount(int *n) {{ *n = {count}; return 0; }}
        int cuGetErrorName(int e, const char **s) {{ (void)e; *s = \"CUDA_ERROR_FAKE\"; return 0; }}\n"
    );
    place.file("driver/cuda.c", &code);
    let cc = Command::new("cc")
        .args(["-shared", "-fPIC", "driver/cuda.c", "-o", "driver/libcuda.so.1", "-Wl,-soname,libcuda.so.1"])
        .current_dir(place.path())
        .status();
    assert!(cc.unwrap().success());
}

#[test]
fn drivers_that_do_not_serve() {
    let place = Place::new();
    let check = |args: &str, said: &[&str]| {
        let list = words(args);
        let mut command = place.jitune(&list.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("LD_LIBRARY_PATH", place.path().join("driver"));
        expect(command, args, 3, said);
    };
    let tune = "tune --target cuda --db db --problem 'gelu rows=4 cols=64'";
    driver(&place, 11040, 0, 1);
    check(tune, &["CUDA 11.4", "12.0", "update the driver"]);
    check("model llama-3.2-1b --target cuda", &["CUDA 11.4", "12.0"]);
    driver(&place, 12080, 100, 0);
    check(tune, &["GPU", "0 found"]);
    driver(&place, 12080, 0, 0);
    check(tune, &["GPU", "0 found"]);
    // A GPU that is absent altogether is no reason to fail where the target is free to choose.
    let mut command = place.jitune(&["model", "llama-3.2-1b"]);
    command.env("LD_LIBRARY_PATH", place.path().join("driver"));
    expect(command, "model without a GPU", 0, &[]);
}

#[test]
fn every_subcommand_has_help_with_an_example() {
    let place = Place::new();
    let commands = |of: &[&str]| -> Vec<String> {
        let out = place.jitune(&[of, &["--help"]].concat()).output().unwrap();
        assert!(out.status.success());
        let help = String::from_utf8(out.stdout).unwrap();
        let list = help.split_once("Commands:\n").unwrap().1;
        let names = list.lines().take_while(|l| !l.is_empty()).filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(String::from).collect()
    };
    let mut all: Vec<Vec<String>> = commands(&[]).into_iter().map(|c| vec![c]).collect();
    assert!(all.len() >= 6, "{all:?}");
    all.extend(commands(&["db"]).into_iter().map(|c| vec!["db".into(), c]));
    for words in all {
        let mut list: Vec<&str> = words.iter().map(String::as_str).collect();
        list.push("--help");
        let out = place.jitune(&list).output().unwrap();
        let help = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{words:?}");
        let example = format!("jitune {}", words.join(" "));
        let shown = help.split_once("Example").is_some_and(|(_, after)| after.contains(&example));
        assert!(shown, "{words:?} has no example:\n{help}");
    }
    let out = place.jitune(&["--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("Exit codes:"));
}
