//! `jitune compare --precisions`: a model in several precisions on one device: time, memory, and what each does to its answers.

use super::opened::{ModelArgs, Opened, failed};
use super::precision::{PrecisionArgs, Stored, dtype_of, in_codes, kv_dtype, names};
use super::progress::Live;
use super::select::{Store, Templates, Where, Which};
use super::sign::Signer;
use super::{CliError, files, table};
use jitune::engine::{Engine, Event, Finish, Request};
use jitune::logits::{Divergence, log_sum};
use jitune::problem::{Dtype, hash_uniform};
use jitune::report::precisions::{self, Row};
use jitune::tokenizer::Tokenizer;
use jitune::weights::natural;
use std::path::Path;
use std::time::{Duration, Instant};

/// The files of the rows, of the table and of the page.
const ROWS: &str = "precisions.jsonl";
const TABLE: &str = "precisions.md";
const PAGE: &str = "precisions.html";
/// Tokens of the text that logits are compared on, and that are said after it.
const TOKENS: usize = 256;
const ANSWER: usize = 32;
/// How often an answer is timed.
const ROUNDS: usize = 3;
/// Where no text is given: something that a model of English finds likely.
const TEXT: &str = "\
The bridge over the river had been closed since the autumn, when the water rose higher than anyone in the town could remember. Each \
morning the baker walked down to look at it. He had a brother on the other side, and the long way round by the mill took most of a day. \
In the spring two engineers came from the city with a cart of instruments. They measured the piers, wrote numbers in a small book, and \
said that the stones were sound but that the ground beneath them was not. It would take forty men and a whole summer to put it right. \
The council met in the school that evening. Some wanted to build a new bridge further up, where the banks are of rock; others said that \
the road, the inn and the market were here, and that a bridge which nobody passes earns nothing. After three hours they agreed to ask \
what each would cost. The answer came in a letter in June: the new one was cheaper to build, and dearer in every year that followed. \
So they mended the old one. The baker carried bread to the workers each day at noon, and in September he was the first to cross.";

/// A precision by its name.
#[derive(Clone, Debug)]
struct Asked {
    name: String,
    dtype: Dtype,
    weights: Stored,
    kv: Option<Dtype>,
}

/// What stands behind the name of a precision, before the dtype of its cache.
const CACHE: &str = "/kv-";

fn asked(name: &str, usual: Dtype) -> Result<Asked, CliError> {
    // What stands behind a stroke is the cache.
    let (all, (name, kv)) = (name, name.split_once(CACHE).map_or((name, None), |(name, kv)| (name, Some(kv))));
    let kv = kv
        .map(|kv| kv_dtype(kv).map_err(|why| CliError::Usage(format!("--precisions {all}: {kv}: {why}"))))
        .transpose()?;
    let (dtype, weights) = match (Dtype::parse(name), in_codes(name), name) {
        (Some(dtype), ..) => (dtype, Stored::Plain),
        (_, Some(stored), _) => (usual, stored),
        (_, _, "stored") => (usual, Stored::AsTheyAre),
        _ => {
            let text = format!(
                "--precisions {all}: it is one of {}, stored, {}, each with {CACHE}e4m3 behind it for a cache in e4m3 and the like",
                Dtype::names(),
                names()
            );
            return Err(CliError::Usage(text));
        }
    };
    Ok(Asked { name: all.into(), dtype, weights, kv })
}

/// What was heard of one precision.
struct Heard {
    logits: Vec<f32>,
    first: Duration,
    each: Duration,
}

pub(super) struct Arguments<'a> {
    pub which: &'a Which,
    pub device: &'a Where,
    pub store: &'a Store,
    pub templates: &'a Templates,
    /// Precisions; the usual ones where none is named.
    pub precisions: &'a [String],
    pub text: Option<&'a Path>,
    pub output: &'a Path,
    pub json: bool,
}

pub(super) fn run(args: &Arguments<'_>) -> Result<(), CliError> {
    let Some(model) = args.which.model.clone() else {
        return Err(CliError::Usage("--precisions needs --model FOLDER or FILE.gguf".into()));
    };
    let target = args.device.target()?;
    let usual = dtype_of(args.which.buckets.precision.dtype, target)?;
    let names: Vec<&str> = match args.precisions {
        [] => vec!["f32", "tf32", "f16", "bf16", "e4m3-row", "int8-row", "int4-g128"],
        list => list.iter().map(String::as_str).collect(),
    };
    let cpu = target == jitune::device::Target::Cpu;
    // No processor has TF32.
    let names = names.into_iter().filter(|name| !(cpu && *name == "tf32" && args.precisions.is_empty()));
    let list = names.map(|name| asked(name, usual)).collect::<Result<Vec<_>, _>>()?;
    std::fs::create_dir_all(args.output).map_err(|e| io(args.output, e))?;
    let of = |a: &Asked| ModelArgs {
        model: model.clone(),
        precision: PrecisionArgs { dtype: Some(a.dtype), weights: a.weights, kv_dtype: a.kv },
        bundle: None,
        signer: Signer::default(),
        device: args.device.clone(),
        store: args.store.clone(),
        templates: args.templates.clone(),
    };
    let reference = of(&asked("f32", usual)?);
    let opened = reference.open()?;
    let ids = text(&reference.path(), args.text, opened.model.vocab)?;
    // Rows hold no folders of a machine.
    let named = Path::new(&model).file_name().map_or_else(|| model.clone(), |name| name.to_string_lossy().into_owned());
    let device = args.device.describe()?.name;
    let parameters: u64 = natural(&opened.model).iter().map(|n| n.shape.iter().product::<u64>()).sum();
    err!("{}: {} parameters, {} tokens of text", opened.model.name, table::grouped(parameters), ids.len());
    let vocab = opened.model.vocab as usize;
    // The reference first, whether it is among those that are asked for or not: each is held against it.
    let (wanted, line) = (list.iter().any(|a| a.name == "f32"), Live::new("{elapsed_precise}  {wide_msg}"));
    let mut rows: Vec<Row> = Vec::new();
    let mut f32: Option<Vec<f32>> = None;
    let first = asked("f32", usual)?;
    for (at, a) in std::iter::once(&first).chain(list.iter().filter(|a| a.name != "f32")).enumerate() {
        line.set_message(format!("{} ({} of {})", a.name, at + 1, list.len() + usize::from(!wanted)));
        let args_of = of(a);
        let (mut row, heard) = one(&args_of, a, &ids, [&named, &device])?;
        if let Some(heard) = heard {
            let base = f32.get_or_insert_with(|| heard.logits.clone());
            measure(&mut row, base, &heard.logits, &ids, vocab);
            // Logits that are NaN are no answers, and no JSON either.
            if let Err(why) = row.check() {
                row = Row { error: 0.0, kl: 0.0, perplexity: 0.0, failed: Some(why), ..row };
            }
        }
        if let Some(why) = row.failed.as_ref().filter(|_| at == 0) {
            return Err(CliError::Partly(format!("f32, which all others are held against, did not run: {why}")));
        }
        if at > 0 || wanted {
            rows.push(row);
        }
    }
    line.finish_and_clear();
    let text: String = rows.iter().map(|r| serde_json::to_string(r).unwrap_or_default() + "\n").collect();
    let path = args.output.join(ROWS);
    super::rows::set_aside(&path)?;
    files::write(&path, text.as_bytes())?;
    show(&rows, args.output, args.json)
}

fn io(path: &Path, source: std::io::Error) -> CliError {
    CliError::Io { path: path.into(), source }
}

/// The tokens of a text; of a model without a tokenizer, some drawn ones.
fn text(model: &Path, file: Option<&Path>, vocab: i64) -> Result<Vec<i32>, CliError> {
    let given = file.map(|path| files::text(path, files::MAX_TEXT_BYTES)).transpose()?;
    match (Tokenizer::open(model), given) {
        (Ok(tokenizer), given) => {
            let mut ids =
                tokenizer.encode(given.as_deref().unwrap_or(TEXT), true).map_err(|e| CliError::Usage(e.to_string()))?;
            ids.truncate(TOKENS);
            if ids.len() < 2 {
                return Err(CliError::Usage("--text: two tokens are the least".into()));
            }
            Ok(ids)
        }
        (Err(e), Some(_)) => Err(CliError::Usage(format!("--text needs the model's tokenizer: {e}"))),
        (Err(_), None) => {
            err!("jitune: note: the model has no tokenizer; its answers to tokens drawn at random are compared");
            let id = |i| ((f64::from(hash_uniform(7, i)) + 1.0) / 2.0 * vocab as f64) as i32;
            Ok((0..TOKENS as u64).map(|i| id(i).min(vocab as i32 - 1)).collect())
        }
    }
}

/// Runs the model in one precision: the logits of the text, then answers to it.
fn one(args: &ModelArgs, a: &Asked, ids: &[i32], [model, device]: [&str; 2]) -> Result<(Row, Option<Heard>), CliError> {
    let opened = args.open()?;
    let mut row = Row {
        model: model.into(),
        device: device.into(),
        precision: a.name.clone(),
        stored: opened.precision.to_string(),
        failed: None,
        token_ms: 0.0,
        first_ms: 0.0,
        weights_bytes: 0,
        memory_bytes: 0,
        error: 0.0,
        kl: 0.0,
        top1: 0.0,
        positions: 0,
        perplexity: 0.0,
        kernels: [0, 0],
    };
    let heard = heard(&opened, ids, &mut row);
    match heard {
        Ok(heard) => {
            row.first_ms = heard.first.as_secs_f64() * 1e3;
            row.token_ms = heard.each.as_secs_f64() * 1e3;
            Ok((row, Some(heard)))
        }
        Err(e) => {
            row.failed = Some(e.to_string());
            Ok((row, None))
        }
    }
}

fn heard(opened: &Opened<'_>, ids: &[i32], row: &mut Row) -> Result<Heard, CliError> {
    let mut options = opened.options((ids.len() + ANSWER + 1) as i64);
    (options.logits, options.prefix) = (true, false);
    let engine = opened.engine(options)?;
    (row.weights_bytes, row.memory_bytes) = (engine.plan().weights, engine.plan().bytes());
    let (logits, ..) = answer(&engine, ids, true)?;
    let mut times = (0..ROUNDS)
        .map(|_| answer(&engine, ids, false).map(|(_, first, each)| (first, each)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut median = |by: fn(&(Duration, Duration)) -> Duration| {
        times.sort_by_key(by);
        by(&times[times.len() / 2])
    };
    let (first, each) = (median(|t| t.0), median(|t| t.1));
    let stats = engine.stats();
    row.kernels = [stats.portable, stats.kernels];
    Ok(Heard { logits, first, each })
}

/// The logits of a prompt where they are asked for, the time to the first token of the answer, and that of each after it.
fn answer(engine: &Engine, ids: &[i32], logits: bool) -> Result<(Vec<f32>, Duration, Duration), CliError> {
    let most = if logits { 1 } else { ANSWER };
    let request = Request { prompt: ids.to_vec(), most, logits, ..Request::default() };
    let (begun, mut rows, mut times) = (Instant::now(), Vec::new(), Vec::new());
    for event in engine.submit(request).map_err(failed)? {
        match event {
            Event::Logits(some) => rows.extend(some),
            Event::Token(_) => times.push(begun.elapsed()),
            Event::End(end) => {
                if let Finish::Failed(why) = end.why {
                    return Err(CliError::Partly(why));
                }
            }
        }
    }
    let (first, last) = (times.first().copied().unwrap_or_default(), times.last().copied().unwrap_or_default());
    Ok((rows, first, (last - first) / (times.len().max(2) - 1) as u32))
}

fn measure(row: &mut Row, base: &[f32], logits: &[f32], ids: &[i32], vocab: usize) {
    let rows = || base.chunks_exact(vocab).zip(logits.chunks_exact(vocab));
    let Divergence { kl, top1, positions } = Divergence::of(rows());
    let square = |sum: f64, v: f64| sum + v * v;
    let difference = base.iter().zip(logits).map(|(a, b)| f64::from(a - b)).fold(0.0, square);
    let all = base.iter().map(|v| f64::from(*v)).fold(0.0, square);
    let next = logits.chunks_exact(vocab).zip(ids.iter().skip(1));
    let loss: f64 = next.map(|(q, id)| log_sum(q) - f64::from(q[*id as usize])).sum();
    row.error = (difference / all.max(f64::MIN_POSITIVE)).sqrt();
    row.perplexity = (loss / (ids.len() - 1) as f64).exp();
    (row.kl, row.top1, row.positions) = (kl, top1, positions);
}

/// Whether these are rows of precisions, by their first line.
pub(super) fn are(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == ROWS)
}

/// Prints the table of rows that are stored, and writes it.
pub(super) fn report(path: &Path, folder: &Path, json: bool) -> Result<(), CliError> {
    let text = String::from_utf8(files::rows(path)?).map_err(|e| io(path, std::io::Error::other(e)))?;
    let row = |(number, line): (usize, &str)| {
        let row: Result<Row, _> = serde_json::from_str(line).map_err(|e| e.to_string());
        row.and_then(|row| row.check().map(|()| row))
            .map_err(|e| io(path, std::io::Error::other(format!("line {}: {e}", number + 1))))
    };
    let rows = text.lines().enumerate().map(row).collect::<Result<Vec<Row>, _>>()?;
    if rows.is_empty() {
        return Err(io(path, std::io::Error::other("there is no row in it")));
    }
    show(&rows, folder, json)
}

fn show(rows: &[Row], folder: &Path, json: bool) -> Result<(), CliError> {
    if rows.is_empty() {
        return Err(CliError::Usage("no precision was measured".into()));
    }
    let said = format!(
        "One sequence, a text of {} tokens and an answer of {ANSWER}, medians of {ROUNDS} rounds; KL in nats, top-1 and the error of logits \
         beside f32 on the same kernels' device.",
        rows.iter().map(|r| r.positions).max().unwrap_or(0)
    );
    let page = precisions::html(rows, &said).map_err(|e| CliError::Partly(e.to_string()))?;
    files::put(folder, vec![(TABLE, precisions::markdown(rows, &said)), (PAGE, page)])?;
    if json {
        rows.iter().for_each(|row| out!("{}", serde_json::json!(row)));
    } else {
        table::print(&precisions::HEADER, &precisions::cells(rows), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        out!("{said}");
        err!("{} and {} are in {}", TABLE, PAGE, folder.display());
        let portable = rows.iter().filter(|r| r.kernels[0] > 2).map(|r| r.precision.as_str()).collect::<Vec<_>>();
        if !portable.is_empty() {
            let (list, model) = (portable.join(", "), rows.first().map_or("", |r| r.model.as_str()));
            err!(
                "jitune: note: {list} ran portable kernels, whose times say little; `jitune tune --model {model} --weights …` (or --dtype …) finds better"
            );
        }
    }
    match rows.iter().any(|r| r.failed.is_some()) {
        true => Err(CliError::Partly("not every precision was measured".into())),
        false => Ok(()),
    }
}
