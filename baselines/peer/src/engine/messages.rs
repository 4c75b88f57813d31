//! The messages of an engine: one JSON object a line.

use crate::{Device, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The protocol's version; an engine of another one refuses.
pub const ENGINE_PROTOCOL: u32 = 1;

/// The longest line, either way, in bytes: a prompt of half a million tokens.
pub const MAX_LINE: usize = 4 << 20;

/// What an engine is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Who are you, and can you run on this device?
    Hello {
        /// [`ENGINE_PROTOCOL`].
        protocol: u32,
        /// The device.
        device: Device,
        /// Settings of this engine.
        #[serde(default)]
        options: BTreeMap<String, String>,
    },
    /// Load a model.
    Load(Load),
    /// Answer a prompt.
    Submit(Submit),
    /// End a request early.
    Cancel {
        /// The number of its `submit`.
        request: u64,
    },
    /// Write the logits of each position of a prompt.
    Logits {
        /// The prompt.
        prompt: Vec<u32>,
        /// The file to write: rows of little-endian f32.
        file: PathBuf,
    },
    /// Say what you have done and hold.
    Stats,
    /// Forget what you keep of earlier prompts.
    Reset,
    /// End.
    Quit,
}

/// What an engine tells, under the number of what it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one line is held at a time, and the large one is rare")]
pub enum Tell {
    /// To `hello`.
    Hello(About),
    /// To `load`.
    Loaded(Loaded),
    /// Of a request: the next tokens of its answer, one unless the engine makes several at a time.
    Tokens {
        /// Their ids.
        ids: Vec<u32>,
        /// Microseconds on the engine's own clock, from whatever moment on.
        at_us: u64,
    },
    /// Of a request: nothing comes after it.
    End(End),
    /// To `logits`: the file is written.
    Logits(Logits),
    /// To `stats`.
    Stats(Stats),
    /// To `cancel`, `reset`.
    Done,
    /// To anything.
    Refused(Refusal),
}

/// Who an engine is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub engine: String,
    /// Its version.
    pub version: String,
    /// The device as the engine names it.
    pub device: String,
    /// Versions of the libraries behind it.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
    /// The precisions that it has, by the names of [`Load::dtype`].
    #[serde(default)]
    pub dtypes: Vec<String>,
}

/// A model to load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// A folder as Hugging Face has it, or a GGUF file.
    pub folder: PathBuf,
    /// f32, f16, bf16, fp8, int8, int4, or a name that the engine gave in [`About::dtypes`].
    pub dtype: String,
    /// The most tokens of a prompt and its answer together.
    pub context: usize,
    /// The most requests that will be on their way at a time.
    pub sequences: usize,
    /// Whether what is kept of one prompt may serve another that begins alike.
    pub prefix: bool,
    /// The most bytes on the device; none for what the engine takes by default.
    #[serde(default)]
    pub memory: Option<u64>,
    /// What will be asked with which limits, where that is one workload: an engine may know how to batch for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

/// How an engine puts requests together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// Requests join and leave at any step.
    #[default]
    Continuous,
    /// Those that wait make a batch, which runs to its end before the next one begins.
    Static,
}

/// A model that is loaded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// How requests are put together.
    pub batching: Batching,
    /// The most requests that are computed at a time.
    pub sequences: usize,
    /// Bytes that it planned on the device, where it plans.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Number of tokens of the model.
    pub vocab: u64,
    /// What a reader should know, such as how many kernels are untuned.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A prompt to answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// So many tokens are wanted.
    pub most: usize,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Whether to go on after a token that ends answers.
    #[serde(default)]
    pub ignore_eos: bool,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// 1 leaves all tokens.
    #[serde(default = "one")]
    pub top_p: f32,
    /// 0 leaves all tokens.
    #[serde(default)]
    pub top_k: u32,
    /// Of the random numbers.
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f32 {
    1.0
}

impl Default for Sampling {
    /// The most likely token each time.
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub why: Finish,
    /// What went wrong, of a failed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Tokens of the prompt that were kept from an earlier one, where the engine says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<u64>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// As many tokens as were asked for.
    #[default]
    Length,
    /// A token that ends answers.
    Stop,
    /// Nobody wants it any more.
    Cancelled,
    /// It went wrong.
    Failed,
}

/// Logits that were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logits {
    /// Positions.
    pub rows: u64,
    /// Logits of a position.
    pub vocab: u64,
}

/// What an engine has done since it was loaded, and holds; none of what it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Bytes on the device now.
    pub memory_bytes: Option<u64>,
    /// The most bytes on the device so far.
    pub peak_bytes: Option<u64>,
    /// Requests that wait.
    pub waiting: Option<u64>,
    /// Requests that are computed.
    pub running: Option<u64>,
    /// Pages of the cache.
    pub pages: Option<u64>,
    /// Pages in use.
    pub used_pages: Option<u64>,
    /// Tokens of a page.
    pub page_tokens: Option<u64>,
    /// Tokens that the pages in use hold.
    pub live_tokens: Option<u64>,
    /// Passes over the model.
    pub steps: Option<u64>,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: Option<u64>,
    /// Tokens of prompts that were kept from earlier ones.
    pub cached_tokens: Option<u64>,
    /// Tokens of answers.
    pub answer_tokens: Option<u64>,
    /// Times that a request had to be computed again for want of room.
    pub preempted: Option<u64>,
    /// Seconds that the host spent on steps, waiting for the device left out.
    pub host_s: Option<f64>,
    /// Launches (kernels, copies and graphs) by the host.
    pub launches: Option<u64>,
    /// Bytes from the host to the device.
    pub to_device_bytes: Option<u64>,
    /// Bytes from the device to the host.
    pub to_host_bytes: Option<u64>,
    /// Passes of new shapes that were made ready to launch.
    pub steps_bound: Option<u64>,
    /// Milliseconds that this took.
    pub steps_bound_ms: Option<f64>,
    /// Those of them that a request waited for.
    pub steps_bound_late: Option<u64>,
    /// Milliseconds of these.
    pub steps_bound_late_ms: Option<f64>,
}
