//! `jitune pack`: a model's weights in one file of another engine, or quantised in a folder of compressed-tensors.

use super::error::{not_usable, not_written};
use super::precision::{Stored, in_codes};
use super::select::say;
use super::weights::{place, written};
use super::{CliError, files, table};
use jitune::model::Model;
use jitune::problem::{Dtype, Granularity, ScaledFormat, Storage};
use jitune::tokenizer::Vocabulary;
use jitune::weights::pack::{self, Kind, Quantization, Texts};
use jitune::weights::quant::Method;
use jitune::weights::{Format, Weights};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("file").required(true),
    after_help = "Examples:\n  jitune pack ./my-model --gguf my-model.gguf --dtype bf16\n  jitune pack ./my-model --weights int4-g128 -o ./my-model-int4\n  jitune pack ./my-model --weights fp8 -o ./my-model-fp8"
)]
pub struct Args {
    /// A folder as Hugging Face has it, or a GGUF file.
    model: String,
    /// The GGUF file to write, which llama.cpp reads.
    #[arg(long, value_name = "FILE", group = "file")]
    gguf: Option<PathBuf>,
    /// The file of lm.rs to write, of a Llama 3.2; beside it FILE.tokenizer, in which each token is one character, so that token ids pass
    /// through its program.
    #[arg(long, value_name = "FILE", group = "file")]
    lmrs: Option<PathBuf>,
    /// The format of linear layers' weights in a folder of compressed-tensors: int4-g128, int4z-g32, int8-row, e4m3-row …, or w8a8 or fp8 for tokens in codes too. Everything else keeps
    /// the type that --dtype says.
    #[arg(long, value_name = "FORMAT", group = "file", requires = "out")]
    weights: Option<String>,
    /// The folder that --weights writes.
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The type of scales: f32, f16 or bf16; without it f32 of tensors, rows and blocks, and of groups that of the weights.
    #[arg(long, requires = "weights")]
    scale: Option<String>,
    /// The scale of the largest magnitude, in place of the one of the least squared error: quicker, and less exact.
    #[arg(long, requires = "weights")]
    absmax: bool,
    /// The type of the weights: f32, f16 or bf16, of a GGUF file also q8_0, q4_0 or q4_1, without it that of the folder; of lm.rs's file f32 or q8_0, without it f32.
    #[arg(long)]
    dtype: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    for output in [&args.gguf, &args.lmrs, &args.out].into_iter().flatten() {
        files::outside(output, None)?;
    }
    let path = place(&args.model)?;
    let (model, mut notes) = Model::load(&args.model)?;
    let (weights, more) = Weights::open(&path, &model).map_err(not_usable)?;
    notes.extend(more);
    let said = match (&args.gguf, &args.lmrs) {
        _ if args.weights.is_some() => quantised(&weights, &model, &path, args, &mut notes)?,
        (_, Some(file)) => lmrs(&weights, &model, &path, file, args.dtype.as_deref())?,
        (Some(file), None) => gguf(&weights, &model, &path, file, args.dtype.as_deref(), &mut notes)?,
        (None, None) => return Err(CliError::Usage("--gguf, --lmrs or --weights says which file".into())),
    };
    if let (None, Some(tokens)) = (&args.weights, model.quantization.as_ref().and_then(|q| q.tokens.as_ref())) {
        notes.push(format!(
            "tokens are rounded to {tokens} in {}; the file cannot say so, and who runs it does not",
            args.model
        ));
    }
    say(&notes);
    out!("{said}: {}, {} parameters", model.name, table::grouped(model.parameters()));
    Ok(())
}

/// Writes a folder's weights as a GGUF file.
#[cfg(feature = "bench")]
pub(super) fn gguf_of(path: &Path, model: &Model, dtype: Dtype, file: &Path) -> Result<(), CliError> {
    let (weights, _) = Weights::open(path, model).map_err(not_usable)?;
    gguf(&weights, model, path, file, Some(dtype.name()), &mut Vec::new()).map(drop)
}

fn gguf(
    weights: &Weights,
    model: &Model,
    path: &Path,
    file: &Path,
    dtype: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<String, CliError> {
    let unknown =
        |name: &str| CliError::Usage(format!("--dtype: it is one of f32, f16, bf16, q8_0, q4_0, q4_1, not {name}"));
    let asked = dtype.map(|name| Format::parse(name).ok_or_else(|| unknown(name))).transpose()?;
    let usual = model.dtype.unwrap_or(Dtype::Bf16);
    let said = dtype.map_or_else(|| usual.to_string(), String::from);
    let format = asked.unwrap_or_else(|| usual.into());
    let texts = texts(path, model, notes)?;
    let more = written(|progress| pack::gguf(weights, &texts, format, file, progress))?;
    notes.extend(more);
    Ok(format!("{} in {said}", file.display()))
}

/// Writes a folder with codes for weights.
fn quantised(
    weights: &Weights,
    model: &Model,
    path: &Path,
    args: &Args,
    notes: &mut Vec<String>,
) -> Result<String, CliError> {
    let usage =
        |option: &str, text: &str, list: &str| CliError::Usage(format!("--{option} {text}: it is one of {list}"));
    let name = args.weights.as_deref().unwrap_or_default();
    let (format, tokens) = match in_codes(name) {
        Some(Stored::In(format)) => (format, None),
        // Of tokens, folders are read that have a scale each.
        Some(Stored::Both(codes)) if codes.tokens.per == Granularity::Row => (codes.weights, Some(codes.tokens)),
        _ => return Err(usage("weights", name, &format!("w8a8|fp8|{}", ScaledFormat::names()))),
    };
    let dtype = args.dtype.as_deref().map(super::precision::dtype).transpose();
    let dtype = dtype.map_err(|e| CliError::Usage(format!("--dtype: {e}")))?.or(model.dtype).unwrap_or(Dtype::Bf16);
    let plain = jitune::problem::Types::from(dtype).y;
    let scales = [Storage::F32, Storage::F16, Storage::Bf16];
    let scale = match args.scale.as_deref() {
        None => format.per.usual_scale(plain),
        Some(name) => {
            let found = scales.into_iter().find(|s| s.name() == name);
            found.ok_or_else(|| usage("scale", name, &scales.map(Storage::name).join(", ")))?
        }
    };
    let Some(folder) = &args.out else { return Err(CliError::Usage("--weights needs -o FOLDER".into())) };
    let method = if args.absmax { Method::AbsMax } else { Method::Search };
    let quantization = Quantization { format, scale, method, tokens };
    written(|progress| pack::compressed(weights, quantization, dtype, folder, progress))?;
    about_texts(path, folder, notes)?;
    let tokens = tokens.map_or_else(String::new, |tokens| format!(", tokens in {tokens}"));
    Ok(format!("{} in {format} with scales in {scale}{tokens}", folder.display()))
}

/// Files of a folder that are about texts.
const OF_TEXTS: [&str; 5] = [
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Puts beside a model's weights what its folder says of texts, and which tokens end an answer.
fn about_texts(path: &Path, folder: &Path, notes: &mut Vec<String>) -> Result<(), CliError> {
    for name in OF_TEXTS {
        let (from, to) = (path.join(name), folder.join(name));
        if from.exists() {
            std::fs::copy(&from, &to).map_err(files::io(&to))?;
        }
    }
    let ends = Model::ends(path)?;
    if !path.join("generation_config.json").exists() && !ends.is_empty() {
        let to = folder.join("generation_config.json");
        let text = serde_json::json!({ "bos_token_id": Model::begin(path)?, "eos_token_id": ends }).to_string();
        std::fs::write(&to, text).map_err(files::io(&to))?;
    }
    if !folder.join("tokenizer.json").exists() {
        notes.push("the folder has no tokenizer.json, and takes prompts as token ids alone".into());
    }
    Ok(())
}

fn lmrs(weights: &Weights, model: &Model, path: &Path, file: &Path, dtype: Option<&str>) -> Result<String, CliError> {
    let (kind, name) = match dtype {
        None | Some("f32") => (Kind::F32, "f32"),
        Some("q8_0") => (Kind::Q8_0, "q8_0"),
        Some(other) => return Err(CliError::Usage(format!("--dtype {other}: lm.rs's files are of f32 or q8_0"))),
    };
    written(|progress| pack::lmrs(weights, kind, file, progress))?;
    let count = |v: i64| u32::try_from(v).unwrap_or(0);
    let first = Model::begin(path)?.map_or(0, |id| count(id.into()));
    pack::tokenizer(count(model.vocab), first, &pack::tokenizer_of(file)).map_err(not_written)?;
    Ok(format!("{} in {name}", file.display()))
}

/// What a folder says of texts, as far as a GGUF file can.
fn texts(path: &Path, model: &Model, notes: &mut Vec<String>) -> Result<Texts, CliError> {
    let vocabulary = Vocabulary::open(path, model.vocab.unsigned_abs() as usize);
    let vocabulary = vocabulary.map_err(|e| CliError::Usage(e.to_string()))?;
    let vocabulary = vocabulary.map_err(|why| notes.push(format!("the file is for token ids alone: {why}"))).ok();
    let id = |id: Option<i32>| id.and_then(|id| u32::try_from(id).ok());
    let (first, last) = (id(Model::begin(path)?), id(Model::ends(path)?.first().copied()));
    Ok(Texts { vocabulary, first, last })
}
