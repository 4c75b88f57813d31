//! A model of a Hugging Face folder in Candle, as its own example runs it: greedy, over its own cache.
//!
//! `jitune-model-candle FOLDER ID,… TOKENS [f32|bf16|f16]` prints what `jitune run --json` does, and beside it how long loading took and the
//! most memory that the process had.
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, ids, most, rest @ ..] = &args[..] else {
        return Err("usage: jitune-model-candle FOLDER ID,… TOKENS [f32|bf16|f16]".into());
    };
    let dtype = match rest.first().map_or("f32", String::as_str) {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => DType::F32,
    };
    let prompt = ids.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let most: usize = most.parse()?;
    let begun = Instant::now();
    let device = Device::cuda_if_available(0)?;
    let folder = Path::new(folder);
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let config = config.into_config(false);
    let files = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    // SAFETY: nobody writes the files meanwhile.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &device)? };
    let model = Llama::load(weights, &config)?;
    let mut cache = Cache::new(true, dtype, &config, &device)?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;

    let begun = Instant::now();
    let next = |tokens: &[u32], at: usize, cache: &mut Cache| -> candle_core::Result<u32> {
        let logits = model.forward(&Tensor::new(tokens, &device)?.unsqueeze(0)?, at, cache)?;
        logits.squeeze(0)?.argmax(0)?.to_scalar()
    };
    let mut answer = vec![next(&prompt, 0, &mut cache)?];
    let ttft_ms = begun.elapsed().as_secs_f64() * 1e3;
    while answer.len() < most {
        let (last, at) = (answer[answer.len() - 1], prompt.len() + answer.len() - 1);
        answer.push(next(&[last], at, &mut cache)?);
    }
    let all_ms = begun.elapsed().as_secs_f64() * 1e3;
    let tpot_ms = (most > 1).then(|| (all_ms - ttft_ms) / (most - 1) as f64);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let line = serde_json::json!({
        "ids": answer, "text": null, "ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "tokens_per_s": most as f64 / all_ms * 1e3,
        "load_ms": load_ms, "peak_bytes": peak.map(|kib| kib << 10),
    });
    println!("{line}");
    Ok(())
}
