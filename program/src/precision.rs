//! `--dtype`, `--weights` and `--kv-dtype`: what a model is computed in.

use super::CliError;
use jitune::device::Target;
use jitune::model::{Model, Precision, WeightFormat};
use jitune::problem::{Dtype, Granularity, ScaledFormat, Storage, Types, XFormat, Zero};
use std::fmt;

/// What the weights are stored as on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stored {
    /// As the model's files have them.
    #[default]
    AsTheyAre,
    /// In the dtype.
    Plain,
    /// Linear layers in a scaled format, quantised as they are loaded where the files have them not; all else in the dtype.
    In(ScaledFormat),
    /// Both linear layers and their tokens in codes, by the name of the two.
    Both(&'static Codes),
}

/// A format of weights with one of the tokens that they are multiplied by.
#[derive(Debug, PartialEq, Eq)]
pub struct Codes {
    name: &'static str,
    /// Of linear layers, with scales in f32.
    pub weights: ScaledFormat,
    /// Of their tokens.
    pub tokens: XFormat,
}

impl Codes {
    /// Codes of one kind, with scales for these parts of weights and of tokens.
    const fn new(name: &'static str, codes: Storage, weights: Granularity, tokens: Granularity) -> Codes {
        let weights = ScaledFormat { codes, per: weights, zero: Zero::None };
        Codes { name, weights, tokens: XFormat { codes, per: tokens } }
    }
}

static BOTH: [Codes; 3] = [
    Codes::new("w8a8", Storage::Int8, Granularity::Row, Granularity::Row),
    Codes::new("fp8", Storage::E4m3, Granularity::Row, Granularity::Row),
    Codes::new("fp8-block", Storage::E4m3, Granularity::Block, Granularity::Group(128)),
];

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::AsTheyAre => f.write_str("stored"),
            Stored::Plain => f.write_str("plain"),
            Stored::In(format) => format.fmt(f),
            Stored::Both(codes) => f.write_str(codes.name),
        }
    }
}

/// What a model is computed in.
#[derive(clap::Args, Clone)]
pub struct PrecisionArgs {
    /// bf16, f16, f32, or on a GPU tf32; bf16 on a GPU and f32 on a CPU by default.
    #[arg(long, value_parser = dtype)]
    pub dtype: Option<Dtype>,
    /// What the weights are on the device: as the model's files have them, plain in --dtype, or linear layers in a scaled format such as
    /// int4-g128, int8-row or e4m3-row, or with their tokens in codes too: w8a8, fp8, fp8-block; quantised as they are loaded where the
    /// files have them not (docs/precision.md has all).
    #[arg(long, value_name = "stored|plain|FORMAT", value_parser = stored, default_value = "stored", hide_default_value = true)]
    pub weights: Stored,
    /// What the KV cache is stored as: in --dtype, in e4m3, in half the memory or less, or on a processor in f16 or bf16 beside --dtype f32
    /// (docs/precision.md).
    #[arg(long, value_name = "e4m3|f16|bf16", value_parser = kv_dtype)]
    pub kv_dtype: Option<Dtype>,
}

/// Reads a dtype.
pub fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::parse(text).ok_or_else(|| format!("it is one of {}", Dtype::names()))
}

/// Reads `--kv-dtype`; which of the dtypes may be said besides e4m3, `--dtype` and the target decide.
pub fn kv_dtype(text: &str) -> Result<Dtype, String> {
    Dtype::parse(text).ok_or_else(|| "it is e4m3, f16, bf16, or --dtype's own, which need not be said".into())
}

/// Reads `--weights`.
pub fn stored(text: &str) -> Result<Stored, String> {
    match text {
        "stored" => Ok(Stored::AsTheyAre),
        "plain" => Ok(Stored::Plain),
        _ => in_codes(text).ok_or_else(|| format!("it is stored, plain, or one of {}", names())),
    }
}

/// Linear layers in codes, or both these and their tokens.
pub fn in_codes(text: &str) -> Option<Stored> {
    let both = BOTH.iter().find(|codes| codes.name == text).map(Stored::Both);
    both.or_else(|| ScaledFormat::parse(text).map(Stored::In))
}

/// All names of codes, for messages.
pub fn names() -> String {
    format!("{}|{}", BOTH.each_ref().map(|codes| codes.name).join("|"), ScaledFormat::names())
}

/// A precision with the cache as `--kv-dtype` says: in the dtype, which need not be said, in codes of e4m3, or in half of f32's bits.
pub fn with_cache(precision: Precision, asked: Option<Dtype>, target: Target) -> Result<Precision, CliError> {
    let dtype = precision.dtype;
    let not = |asked: Dtype, why: &str| Err(CliError::Usage(format!("--kv-dtype {asked}: {why}")));
    let cache = match (asked, dtype) {
        (None, _) => return Ok(precision),
        (Some(same), _) if same == dtype && same != Dtype::E4m3 => return Ok(precision),
        (Some(Dtype::E4m3), Dtype::Bf16 | Dtype::F16 | Dtype::F32) => Storage::E4m3,
        (Some(Dtype::E4m3), _) => return not(Dtype::E4m3, &format!("--dtype is bf16, f16 or f32 then, not {dtype}")),
        (Some(half @ (Dtype::F16 | Dtype::Bf16)), Dtype::F32) if target == Target::Cpu => Types::from(half).y,
        (Some(half @ (Dtype::F16 | Dtype::Bf16)), Dtype::F32) => {
            return not(
                half,
                "beside --dtype f32 only kernels of a processor have it; on a GPU it is e4m3, or --dtype",
            );
        }
        (Some(other), _) => return not(other, &format!("it is e4m3, or --dtype, which is {dtype}")),
    };
    Ok(precision.with_cache(Some(cache)))
}

/// The dtype of a model's tensors, or the target's usual one.
pub fn dtype_of(asked: Option<Dtype>, target: Target) -> Result<Dtype, CliError> {
    match (asked, target) {
        (Some(Dtype::E4m3), _) => Err(CliError::Usage(
            "--dtype e4m3: a model's tensors are bf16, f16 or f32; codes of weights are --weights e4m3-row, of weights and their tokens \
             --weights fp8, of the cache --kv-dtype e4m3"
                .into(),
        )),
        (Some(Dtype::Tf32), Target::Cpu) => {
            Err(CliError::Usage("--dtype tf32: TF32 is of NVIDIA's tensor cores; a processor has --dtype f32".into()))
        }
        (Some(dtype), _) => Ok(dtype),
        (None, Target::Cuda) => Ok(Dtype::Bf16),
        (None, _) => Ok(Dtype::F32),
    }
}

impl Stored {
    /// The precision of a model, whose files say what they have by `files`.
    pub fn precision(
        self,
        dtype: Dtype,
        target: Target,
        files: impl FnOnce() -> Result<(Precision, Vec<String>), CliError>,
    ) -> Result<(Precision, Vec<String>), CliError> {
        let plain = matches!(dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32);
        match self {
            Stored::In(_) | Stored::Both(_) if !plain => {
                Err(CliError::Usage(format!("--weights {self}: --dtype is bf16, f16 or f32 then, not {dtype}")))
            }
            Stored::Both(codes) => {
                let format = WeightFormat { format: codes.weights, scale: Storage::F32 };
                Ok((Precision::linear(dtype, format, target).with_tokens(Some(codes.tokens)), Vec::new()))
            }
            Stored::In(format) => {
                Ok((Precision::linear(dtype, WeightFormat::usual(format, dtype), target), Vec::new()))
            }
            Stored::AsTheyAre if plain => files(),
            Stored::AsTheyAre | Stored::Plain => Ok((dtype.into(), Vec::new())),
        }
    }

    /// The precision of a model that is looked up by name: a preset has no files.
    pub fn of_named(
        self,
        name: &str,
        model: &Model,
        dtype: Dtype,
        target: Target,
    ) -> Result<(Precision, Vec<String>), CliError> {
        self.precision(dtype, target, || files(name, model, dtype, target))
    }
}

#[cfg(feature = "engine")]
fn files(name: &str, model: &Model, dtype: Dtype, target: Target) -> Result<(Precision, Vec<String>), CliError> {
    use jitune::weights::{Weights, WeightsError};
    let mut place = Model::place(name);
    let described = place.extension().is_some_and(|e| e == "json");
    // A folder of plain weights may lack them: their types change no plan.
    let plain = (described || !place.is_file()) && model.quantization.is_none();
    if Model::preset(name).is_some() || plain {
        return Ok((dtype.into(), Vec::new()));
    }
    if described {
        place.pop();
    }
    let (weights, _) = Weights::open(&place, model).map_err(|e| match (e, &model.quantization) {
        (WeightsError::None { folder }, Some(quantization)) => CliError::Usage(format!(
            "{}: its quantization_config says {} weights, whose files say what scales they have, and neither model.safetensors nor \
             model.safetensors.index.json is in it; without them plan with --weights plain, or with a format such as --weights {}",
            folder.display(),
            quantization.format,
            if ScaledFormat::parse(&quantization.format).is_some() { &quantization.format } else { "int4-g128" }
        )),
        (e, _) => super::error::not_usable(e),
    })?;
    Ok(weights.precision(dtype, target))
}

#[cfg(not(feature = "engine"))]
fn files(_: &str, _: &Model, dtype: Dtype, _: Target) -> Result<(Precision, Vec<String>), CliError> {
    Ok((dtype.into(), Vec::new()))
}
