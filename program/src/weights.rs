//! What `jitune model` does with weights: looks at a folder's, and writes random ones.

use super::error::{not_usable, not_written};
use super::progress::Live;
use super::select::say;
use super::{CliError, files, table};
use jitune::model::Model;
use jitune::problem::Dtype;
use jitune::weights::{self, Weights, WeightsError};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(clap::Args)]
pub struct OfWeights {
    /// Write a folder with the model's config.json and random weights that any engine loads; SEED is a number.
    #[arg(long, value_name = "random:SEED", requires = "output", value_parser = seed)]
    init: Option<u64>,
    /// The folder that --init writes.
    #[arg(short, long, value_name = "FOLDER", requires = "init")]
    output: Option<PathBuf>,
    /// Look at the weights in the folder too: whether they are all there, of their shapes, and finite.
    #[arg(long, conflicts_with = "init")]
    check_weights: bool,
}

impl OfWeights {
    /// Whether it is weights that are asked for.
    pub fn asked(&self) -> bool {
        self.check_weights || self.init.is_some()
    }
}

pub(super) fn run(args: &OfWeights, model: &str, dtype: Option<Dtype>, json: bool) -> Result<(), CliError> {
    match (args.init, &args.output) {
        (Some(seed), Some(folder)) => init(model, dtype, seed, folder),
        _ => look(model, json),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    let seed = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
    seed.ok_or_else(|| "it is random:SEED, where SEED is a number".into())
}

/// Writes a folder of random weights, in the type that is asked for, or that of the configuration.
fn init(name: &str, dtype: Option<Dtype>, seed: u64, folder: &Path) -> Result<(), CliError> {
    files::outside(folder, None)?;
    let (model, notes) = Model::load(name)?;
    say(&notes);
    let dtype = dtype.or(model.dtype).unwrap_or(Dtype::Bf16);
    written(|progress| weights::write(&model, seed, dtype, folder, progress))?;
    out!("{}: {}, {} random parameters in {dtype}", folder.display(), model.name, table::grouped(model.parameters()));
    Ok(())
}

/// Writes weights with a live line, which hears the bytes that are written and those of all.
pub(super) fn written<T>(write: impl FnOnce(&dyn Fn(u64, u64)) -> Result<T, WeightsError>) -> Result<T, CliError> {
    let line = Live::new("{elapsed_precise} [{bar:24}] {bytes}/{total_bytes}  {binary_bytes_per_sec}, {eta} left");
    let written = write(&|written, total| {
        line.set_length(total);
        line.set_position(written);
    });
    line.finish_and_clear();
    written.map_err(not_written)
}

/// The folder or file of a model's weights.
pub(super) fn place(name: &str) -> Result<PathBuf, CliError> {
    if Model::preset(name).is_some() {
        let text = format!("weights are in a folder, and {name} is a preset; write ./{name} to mean one");
        return Err(CliError::Usage(text));
    }
    let path = Model::place(name);
    // Beside a config.json lie its weights; any other file holds them.
    let beside = path.parent().filter(|_| path.is_file() && path.extension().is_some_and(|e| e == "json"));
    Ok(beside.map(Path::to_path_buf).unwrap_or(path))
}

/// Looks at the weights of a folder.
fn look(name: &str, json: bool) -> Result<(), CliError> {
    let (model, mut notes) = Model::load(name)?;
    let (weights, more) = Weights::open(&place(name)?, &model).map_err(not_usable)?;
    notes.extend(more);
    say(&notes);
    weights.check().map_err(not_usable)?;
    let (tensors, files, bytes) = weights.checkpoint().size();
    let parameters = model.parameters();
    if json {
        let text = serde_json::json!({
            "model": name, "parameters": parameters, "notes": notes, "tensors": tensors, "files": files,
            "bytes": bytes,
        });
        out!("{text}");
    } else {
        let said = format!("{tensors} tensors in {files} files, {bytes} bytes, all there and finite");
        out!("{}: {} parameters; {said}", model.name, table::grouped(parameters));
    }
    Ok(())
}
