//! A model and its context: what is asked for, as llama.cpp's parameters.

use std::{collections::BTreeMap, num::NonZeroU32};

use jitune_peer::{Device, Refusal, RefusalKind, engine::Load};
use llama_cpp_2::{
    LlamaBackendDevice,
    context::{
        LlamaContext,
        params::{KvCacheType, LlamaContextParams},
    },
    list_llama_ggml_backend_devices,
    llama_backend::LlamaBackend,
    model::{
        LlamaModel,
        params::{LlamaModelParams, LlamaSplitMode},
    },
};
use self_cell::self_cell;

/// The most sequences of a context (`LLAMA_MAX_SEQ`).
const MOST_SEQUENCES: usize = 256;
/// A sequence's room is a multiple of so many tokens.
const PAGE: usize = 256;
/// `LLAMA_FLASH_ATTN_TYPE_DISABLED`, `…_AUTO` and `…_ENABLED`.
const FLASH: [i32; 3] = [0, -1, 1];
/// llama.cpp's names of the types of whole files, by `general.file_type`.
const KINDS: [(u32, &str); 13] = [
    (0, "f32"),
    (1, "f16"),
    (32, "bf16"),
    (7, "q8_0"),
    (2, "q4_0"),
    (3, "q4_1"),
    (8, "q5_0"),
    (9, "q5_1"),
    (14, "q4_k_s"),
    (15, "q4_k_m"),
    (16, "q5_k_s"),
    (17, "q5_k_m"),
    (18, "q6_k"),
];

self_cell!(
    /// A model, and the context that computes with it.
    pub struct Loaded {
        owner: LlamaModel,
        #[not_covariant]
        dependent: LlamaContext,
    }
);

/// The names of the types that files have; `int8` and `int4` are those of their size.
pub fn dtypes() -> Vec<String> {
    KINDS.iter().map(|(_, name)| *name).chain(["int8", "int4"]).map(String::from).collect()
}

/// What can be set, with llama.cpp's own defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tokens of a call.
    pub n_batch: usize,
    /// Tokens that are computed at a time.
    pub n_ubatch: u32,
    /// Whether all sequences share one cache, or each has a part of its own.
    pub kv_unified: bool,
    /// The type of the cache; f16 as llama.cpp's default has it, and with weights in f32 f32, without flash attention, which is of f16.
    pub kv: Option<KvCacheType>,
}

impl Settings {
    pub fn read(options: &BTreeMap<String, String>) -> Result<Settings, Refusal> {
        let mut settings = Settings { n_batch: 2048, n_ubatch: 512, kv_unified: false, kv: None };
        for (key, value) in options {
            let wrong = || Refusal::unsupported(format!("{key}={value}: it is no value of this setting"));
            match key.as_str() {
                "n_batch" => settings.n_batch = value.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?,
                "n_ubatch" => settings.n_ubatch = value.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?,
                "kv_unified" => settings.kv_unified = value.parse().map_err(|_| wrong())?,
                "kv" => {
                    settings.kv = Some(match value.as_str() {
                        "f32" => KvCacheType::F32,
                        "f16" => KvCacheType::F16,
                        "q8_0" => KvCacheType::Q8_0,
                        _ => return Err(wrong()),
                    })
                }
                _ => {
                    return Err(Refusal::unsupported(format!(
                        "{key} is no setting; n_batch, n_ubatch, kv_unified and kv are"
                    )));
                }
            }
        }
        Ok(settings)
    }
}

/// The GPU of that number, as llama.cpp sees it.
pub fn gpu(ordinal: usize) -> Result<LlamaBackendDevice, Refusal> {
    let fix = "cargo build --release --features cuda --manifest-path baselines/llama-cpp/Cargo.toml";
    if !cfg!(feature = "cuda") {
        return Err(Refusal::missing("this program was built without CUDA", fix));
    }
    let mut all = list_llama_ggml_backend_devices().into_iter().filter(|device| device.backend == "CUDA");
    all.nth(ordinal).ok_or_else(|| Refusal::missing(format!("llama.cpp sees no GPU {ordinal}"), "jitune doctor"))
}

/// A model that is loaded: what there is to know beside it.
pub struct Opened {
    pub loaded: Loaded,
    /// How many sequences are computed at a time.
    pub sequences: usize,
    /// Tokens of a call, at most.
    pub most: usize,
    pub vocab: usize,
    /// The token that ends answers, where the file says.
    pub end: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub notes: Vec<String>,
}

pub fn open(backend: &LlamaBackend, device: Device, settings: &Settings, load: &Load) -> Result<Opened, Refusal> {
    let file = &load.folder;
    if file.is_dir() {
        let why = format!("{} is a folder, and llama.cpp reads GGUF files", file.display());
        let fix = format!("jitune pack {} --gguf FILE --dtype {}", file.display(), load.dtype);
        return Err(Refusal { kind: RefusalKind::Unsupported, why, fix: Some(fix) });
    }
    if !file.exists() {
        return Err(Refusal::failed(format!("{} is not there", file.display())));
    }
    if load.context == 0 || load.sequences == 0 {
        return Err(Refusal::failed("a context and a number of sequences are at least 1"));
    }
    let failed = |what: &str, e: &dyn std::fmt::Display| Refusal::failed(format!("{what}: {e}"));
    let (params, free) = match device {
        Device::Cpu(_) => (LlamaModelParams::default().with_n_gpu_layers(0), None),
        Device::Cuda(ordinal) => {
            let gpu = gpu(ordinal)?;
            let params =
                LlamaModelParams::default().with_n_gpu_layers(u32::MAX / 4).with_split_mode(LlamaSplitMode::None);
            let params = params.with_devices(&[gpu.index]).map_err(|e| failed("the GPU", &e))?;
            (params, Some(gpu.memory_free as u64))
        }
    };
    let model =
        LlamaModel::load_from_file(backend, file, &params).map_err(|e| failed("llama.cpp loads no model", &e))?;
    let kind = kind(&model);
    let asked = match (load.dtype.as_str(), kind.as_str()) {
        ("int8", "q8_0") | ("int4", "q4_0" | "q4_1" | "q4_k_s" | "q4_k_m") => true,
        (asked, kind) => asked == kind,
    };
    if !asked {
        let why = format!("{} is of {kind}, and {} was asked for", file.display(), load.dtype);
        let fix = format!("ask for {kind}, or: jitune pack FOLDER --gguf FILE --dtype {}", load.dtype);
        return Err(Refusal { kind: RefusalKind::Unsupported, why, fix: Some(fix) });
    }
    let sequences = load.sequences.min(MOST_SEQUENCES);
    let each = load.context.next_multiple_of(PAGE);
    let too_large =
        || Refusal::failed(format!("{sequences} sequences of {} tokens are more than a context has", load.context));
    let n_ctx = sequences.checked_mul(each).and_then(|n| u32::try_from(n).ok()).ok_or_else(too_large)?;
    let n_batch = u32::try_from(settings.n_batch.max(sequences)).map_err(|_| too_large())?;
    let threads = match device {
        Device::Cpu(threads) => i32::try_from(threads).map_err(|_| too_large())?,
        Device::Cuda(_) => 1,
    };
    let kv = settings.kv.unwrap_or(if kind == "f32" { KvCacheType::F32 } else { KvCacheType::F16 });
    // Flash attention rounds a cache of f32 to f16, and a cache of blocks needs it.
    let [off, auto, on] = FLASH;
    let flash = match kv {
        KvCacheType::F32 => off,
        KvCacheType::Q8_0 => on,
        _ => auto,
    };
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(n_ctx))
        .with_n_batch(n_batch)
        .with_n_ubatch(settings.n_ubatch.min(n_batch))
        .with_n_seq_max(sequences as u32)
        .with_kv_unified(settings.kv_unified)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_type_k(kv)
        .with_type_v(kv)
        .with_flash_attention_policy(flash)
        .with_offload_kqv(matches!(device, Device::Cuda(_)))
        .with_op_offload(matches!(device, Device::Cuda(_)));
    let vocab = usize::try_from(model.n_vocab()).unwrap_or(0);
    let end = model.meta_val_str("tokenizer.ggml.eos_token_id").ok().and_then(|id| id.parse().ok());
    let parallel = if settings.kv_unified { "one cache for all sequences" } else { "a cache for each sequence" };
    let mut notes = vec![format!(
        "weights {kind}, {parallel} in {kv:?}, n_batch {n_batch}, n_ubatch {}",
        settings.n_ubatch.min(n_batch)
    )];
    if load.prefix {
        notes.push("nothing is kept of earlier prompts".into());
    }
    if load.memory.is_some() {
        notes.push("memory: the cache is planned whole, and no limit is known to it".into());
    }
    let loaded = Loaded::try_new(model, |model| model.new_context(backend, params))
        .map_err(|e| failed("llama.cpp makes no context", &e))?;
    let memory_bytes = match (device, free) {
        (Device::Cuda(ordinal), Some(free)) => Some(free.saturating_sub(gpu(ordinal)?.memory_free as u64)),
        _ => None,
    };
    // No more than the cache holds, whatever was asked for.
    let most = loaded.with_dependent(|_, context| context.n_batch()) as usize;
    Ok(Opened { loaded, sequences, most, vocab, end, memory_bytes, notes })
}

/// The type of a file, by llama.cpp's names.
fn kind(model: &LlamaModel) -> String {
    let number = model.meta_val_str("general.file_type").ok().and_then(|text| text.parse::<u32>().ok());
    let found = number.and_then(|number| KINDS.iter().find(|(n, _)| *n == number));
    match (found, number) {
        (Some((_, name)), _) => (*name).into(),
        (None, Some(number)) => format!("file type {number}"),
        (None, None) => "an unknown type".into(),
    }
}
