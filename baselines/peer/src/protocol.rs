//! The messages: one JSON object a line. `docs/peers.md` says what each means.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::str::FromStr;

/// The protocol's version; a peer of another one refuses.
pub const PROTOCOL: u32 = 2;

/// A message with the number of its request: what bears another number answers something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// The number; 0 where a request has none.
    #[serde(default)]
    pub id: u64,
    /// The request or the answer.
    #[serde(flatten)]
    pub message: T,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Who are you, and can you run on this device?
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The device.
        device: Device,
        /// Settings of this peer.
        #[serde(default)]
        options: BTreeMap<String, String>,
    },
    /// Make a problem ready.
    Prepare(Box<Task>),
    /// Call once on the first set with poisoned outputs, and write what elements of an output hold.
    Read {
        /// The way.
        way: String,
        /// The output.
        tensor: String,
        /// How many elements.
        count: u64,
        /// The file of their flat indices ([`crate::numbers`]).
        indices: PathBuf,
        /// The file to write, with the values in the order of the indices.
        values: PathBuf,
    },
    /// Time one round.
    Round {
        /// The way.
        way: String,
    },
    /// Call once between the marks of a profiler.
    Once {
        /// The way.
        way: String,
    },
    /// Free the problem's memory.
    Release,
    /// End.
    Quit,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To `hello`.
    Hello(About),
    /// To `prepare`.
    Prepared {
        /// What can be measured.
        ways: Vec<Way>,
        /// What this peer has and what did not work, or does not fit the problem.
        #[serde(default)]
        refused: Vec<RefusedWay>,
    },
    /// To `read`: the file is written.
    Values {
        /// How many values it has.
        count: u64,
    },
    /// To `round`.
    Round(Round),
    /// To `once` and `release`.
    Done,
    /// To anything.
    Refused(Refusal),
}

/// Who a peer is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub peer: String,
    /// Its version.
    pub version: String,
    /// The device as the peer names it.
    pub device: String,
    /// Versions of the libraries behind it.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
}

/// One way of a peer to compute the problem.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Its name.
    pub way: String,
    /// In a few words, what is called.
    pub how: String,
    /// `all`, or what of the problem it computes.
    pub covers: String,
    /// Whether a round replays a CUDA graph.
    pub captured: bool,
}

impl Way {
    /// A way that computes the whole problem.
    pub fn all(way: impl Into<String>, how: impl Into<String>) -> Way {
        Way { way: way.into(), how: how.into(), covers: "all".into(), captured: false }
    }

    /// One that computes only `covers`.
    pub fn part(way: impl Into<String>, how: impl Into<String>, covers: impl Into<String>) -> Way {
        Way { way: way.into(), how: how.into(), covers: covers.into(), captured: false }
    }
}

/// A way that cannot be measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefusedWay {
    /// Its name.
    pub way: String,
    /// Whether it exists and failed, or does not exist.
    pub kind: RefusalKind,
    /// Why.
    pub why: String,
}

/// The times of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Microseconds a call in a replayed CUDA graph; on a CPU the same as `called_us`.
    pub kernel_us: Option<f64>,
    /// Microseconds a call by the host's clock, launch costs included.
    pub called_us: f64,
    /// Calls.
    pub calls: u32,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The machine lacks something.
    Missing,
    /// The peer has no such thing.
    Unsupported,
    /// It has, and it did not work.
    #[default]
    Failed,
}

/// A request that is not answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// Of which kind.
    pub kind: RefusalKind,
    /// Why.
    pub why: String,
    /// The one command that helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Refusal {
    /// The machine lacks something that `fix` brings.
    pub fn missing(why: impl fmt::Display, fix: impl Into<String>) -> Refusal {
        Refusal { kind: RefusalKind::Missing, why: why.to_string(), fix: Some(fix.into()) }
    }

    /// The peer has no such thing.
    pub fn unsupported(why: impl fmt::Display) -> Refusal {
        Refusal { kind: RefusalKind::Unsupported, why: why.to_string(), fix: None }
    }

    /// It did not work.
    pub fn failed(why: impl fmt::Display) -> Refusal {
        Refusal { kind: RefusalKind::Failed, why: why.to_string(), fix: None }
    }

    /// Does work of a library that says with a panic what it cannot do; a panic is a refusal of the kind `failed`.
    pub fn guard<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            Err(Refusal::failed(text.lines().next().unwrap_or(text)))
        })
    }
}

/// A device to run on; in text `cuda:0` and `cpu:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Device {
    /// The GPU of that ordinal.
    Cuda(usize),
    /// The host's processor with so many threads.
    Cpu(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Cpu(threads) => write!(f, "cpu:{threads}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let wrong = || format!("`{text}` is no device: cuda:ORDINAL or cpu:THREADS");
        let (kind, number) = text.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().map_err(|_| wrong())?;
        match kind {
            "cuda" => Ok(Device::Cuda(number)),
            "cpu" if number > 0 => Ok(Device::Cpu(number)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Device, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

/// A problem to make ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its text.
    pub problem: String,
    /// Its op.
    pub op: String,
    /// Its element type: bf16, f16, f32, tf32, or e4m3 (of a product's operands; the rest is bf16).
    pub dtype: String,
    /// Its integer dimensions.
    pub dims: BTreeMap<String, i64>,
    /// Its dimensions that are words.
    #[serde(default)]
    pub words: BTreeMap<String, String>,
    /// Its dimensions that are real numbers, such as the `eps` of a norm.
    #[serde(default)]
    pub reals: BTreeMap<String, f64>,
    /// Its tensors in order.
    pub tensors: Vec<TaskTensor>,
    /// Sets of tensors that calls rotate through.
    pub sets: usize,
    /// Bytes to read before a round; 0 where the sets together are larger than the cache.
    #[serde(default)]
    pub flush_bytes: u64,
    /// A round lasts at least so many microseconds.
    pub round_us: f64,
    /// Seconds that warming up may take.
    pub warm_s: f64,
    /// The ways to set up; none: all. From the option `ways`, a list with commas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<String>,
}

/// One tensor of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskTensor {
    /// Its name.
    pub name: String,
    /// bf16, f16, f32, e4m3 or i32.
    pub dtype: String,
    /// Its shape, outermost first; dense and row-major.
    pub shape: Vec<u64>,
    /// `in` or `out`.
    pub role: String,
    /// What an input holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl TaskTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<u64>() as usize
    }

    /// Bytes of an element; 0 for a dtype that this crate does not know, which [`TaskTensor::load`] refuses.
    pub fn element_bytes(&self) -> usize {
        match self.dtype.as_str() {
            "e4m3" => 1,
            "bf16" | "f16" => 2,
            "f32" | "tf32" | "i32" => 4,
            _ => 0,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element_bytes()
    }

    /// Whether it is an output.
    pub fn is_out(&self) -> bool {
        self.role == "out"
    }

    /// The input's bytes.
    pub fn load(&self) -> Result<Vec<u8>, Refusal> {
        let Some(file) = &self.file else {
            return Err(Refusal::failed(format!("{} has no file", self.name)));
        };
        if self.element_bytes() == 0 {
            return Err(Refusal::unsupported(format!("{} is of {}, which is not known here", self.name, self.dtype)));
        }
        let bytes = std::fs::read(file).map_err(|e| Refusal::failed(format!("{}: {e}", file.display())))?;
        if bytes.len() != self.bytes() {
            let (have, need) = (bytes.len(), self.bytes());
            return Err(Refusal::failed(format!("{} has {have} bytes, not {need}", file.display())));
        }
        Ok(bytes)
    }

    /// The input's values, widened.
    pub fn values(&self) -> Result<Vec<f32>, Refusal> {
        let bytes = self.load()?;
        // The dtype is looked at once: an embedding has hundreds of millions of values.
        Ok(match self.dtype.as_str() {
            "bf16" => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            "f16" => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            "i32" => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
            "f32" | "tf32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            other => return Err(Refusal::unsupported(format!("{} is of {other}, which has no f32 here", self.name))),
        })
    }

    /// The input's integers.
    pub fn integers(&self) -> Result<Vec<i32>, Refusal> {
        let bytes = self.load()?;
        Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// One stored element of a dtype (bf16, f16, f32, tf32, i32), little-endian; NaN for fewer bytes than it has, and for a dtype
/// that is none of these.
pub fn decode(dtype: &str, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        ("bf16", &[a, b, ..]) => half::bf16::from_le_bytes([a, b]).to_f64(),
        ("f16", &[a, b, ..]) => half::f16::from_le_bytes([a, b]).to_f64(),
        ("i32", &[a, b, c, d, ..]) => f64::from(i32::from_le_bytes([a, b, c, d])),
        ("f32" | "tf32", &[a, b, c, d, ..]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => f64::NAN,
    }
}

impl Task {
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Result<&TaskTensor, Refusal> {
        let found = self.tensors.iter().find(|t| t.name == name);
        found.ok_or_else(|| Refusal::failed(format!("the task has no tensor {name}")))
    }

    /// Whether it has a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|t| t.name == name)
    }

    /// A dimension; an absent one is a mistake of the asker.
    pub fn dim(&self, name: &str) -> Result<usize, Refusal> {
        let found = self.dims.get(name).copied().and_then(|v| usize::try_from(v).ok());
        found.ok_or_else(|| Refusal::failed(format!("the task has no dimension {name}")))
    }

    /// Whether a way is to be set up: set-up can be slow, and not every way is asked for.
    pub fn wants(&self, way: &str) -> bool {
        self.ways.is_empty() || self.ways.iter().any(|w| w == way)
    }

    /// A real number.
    pub fn real(&self, name: &str) -> Result<f64, Refusal> {
        let found = self.reals.get(name).copied();
        found.ok_or_else(|| Refusal::failed(format!("the task has no number {name}")))
    }

    /// A word; empty when absent.
    pub fn word(&self, name: &str) -> &str {
        self.words.get(name).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_is_not_taken_for_another() {
        let folder = std::env::temp_dir().join(format!("jitune-peer-types-{}", std::process::id()));
        std::fs::write(&folder, 1f32.to_le_bytes()).unwrap();
        let tensor = |dtype: &str| TaskTensor {
            name: "x".into(),
            dtype: dtype.into(),
            shape: vec![1],
            role: "in".into(),
            file: Some(folder.clone()),
        };
        assert_eq!(tensor("f32").values().unwrap(), [1.0]);
        assert!(tensor("int4").load().unwrap_err().to_string().contains("int4"));
        assert!(TaskTensor { shape: vec![4], ..tensor("e4m3") }.values().unwrap_err().to_string().contains("e4m3"));
        assert_eq!(decode("f32", &1f32.to_le_bytes()), 1.0);
        assert!(decode("int4", &1f32.to_le_bytes()).is_nan());
        std::fs::remove_file(&folder).unwrap();
    }
}
