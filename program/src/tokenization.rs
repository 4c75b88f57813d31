//! How fast the model's tokenizer is: jitune's, and Hugging Face's `tokenizers` as programs in Python call it.

use jitune::engines::known::TOKENIZATION;
use jitune::engines::rows::Tokenization;
use jitune::tokenizer::Tokenizer;
use serde::Deserialize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is encoded and decoded: prose, figures, code, a table, other scripts.
const TEXT: &str = include_str!("tokenization.txt");
/// Least time of each rate, and least passes over the text.
const TIME: Duration = Duration::from_millis(300);
const PASSES: usize = 5;
/// The exit code by which it says that its library is missing.
const MISSING: i32 = 3;
/// The library's name in the rows.
const LIBRARY: &str = "tokenizers (Python)";

/// The lines of a model's tokenizer. One that cannot be measured says why.
pub(super) fn lines(model: &Path, python: &str, scratch: &Path) -> Vec<Tokenization> {
    let blank = |by: &str, why: Option<String>| Tokenization { by: by.into(), why, ..Tokenization::default() };
    let (ours, ids) = match ours(model) {
        Ok(found) => found,
        Err(why) => return vec![blank("jitune", Some(why))],
    };
    let file = model.join("tokenizer.json");
    let theirs = match file.is_file() {
        true => theirs(&file, python, scratch, &ids).unwrap_or_else(|why| blank(LIBRARY, Some(why))),
        false => blank(LIBRARY, Some("it reads a tokenizer.json, and the model has none".into())),
    };
    vec![ours, theirs]
}

fn ours(model: &Path) -> Result<(Tokenization, Vec<i32>), String> {
    let tokenizer = Tokenizer::open(model).map_err(|e| format!("the model has no tokenizer: {e}"))?;
    let ids = tokenizer.encode(TEXT, true).map_err(|e| e.to_string())?;
    let encode = rate(ids.len(), || tokenizer.encode(TEXT, true).map(drop).map_err(|e| e.to_string()))?;
    let decode = rate(ids.len(), || tokenizer.decode(&ids).map(drop).map_err(|e| e.to_string()))?;
    let line = Tokenization {
        by: "jitune".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        bytes: TEXT.len() as u64,
        tokens: ids.len() as u64,
        encode: Some(encode),
        decode: Some(decode),
        ..Tokenization::default()
    };
    Ok((line, ids))
}

/// Tokens a second, by the median time of a pass.
fn rate(tokens: usize, mut once: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < PASSES || begun.elapsed() < TIME {
        let at = Instant::now();
        once()?;
        times.push(at.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(tokens as f64 / times[times.len() / 2].max(1e-9))
}

/// What the runner prints.
#[derive(Deserialize)]
struct Told {
    version: String,
    ids: Vec<i32>,
    encode: f64,
    decode: f64,
}

fn theirs(file: &Path, python: &str, scratch: &Path, ours: &[i32]) -> Result<Tokenization, String> {
    let [runner, text] = [("tokenization.py", TOKENIZATION), ("tokenization.txt", TEXT)].map(|(name, content)| {
        let path = scratch.join(name);
        std::fs::write(&path, content).map(|()| path).map_err(|e| e.to_string())
    });
    let mut command = Command::new(python);
    command.arg(runner?).arg(file).arg(text?).arg(TIME.as_secs_f64().to_string()).stdin(Stdio::null());
    let out = command.output().map_err(|e| format!("{python}: {e}"))?;
    let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().unwrap_or_default().to_string();
    match out.status.code() {
        Some(0) => {}
        Some(MISSING) => return Err(format!("{}; python3 -m pip install tokenizers", last(&out.stderr))),
        _ => return Err(format!("{python}: {}: {}", out.status, last(&out.stderr))),
    }
    let told: Told = serde_json::from_slice(&out.stdout).map_err(|e| format!("{python}: {e}"))?;
    Ok(Tokenization {
        by: LIBRARY.into(),
        version: told.version,
        bytes: TEXT.len() as u64,
        tokens: told.ids.len() as u64,
        same: Some(told.ids == ours),
        encode: Some(told.encode),
        decode: Some(told.decode),
        why: None,
    })
}
