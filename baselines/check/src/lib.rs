//! For the tests of the peers: speaks to a peer's program ([`Program`]), and knows in f64 what each op should give at
//! small shapes ([`Case`]).

#[cfg(feature = "engines")]
pub mod engines;
mod ops;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use half::{bf16, f16};
use jitune_peer::{Answer, Ask, Device, Numbered, PROTOCOL, Task, TaskTensor, Way, decode, numbers};

/// A small ragged problem of every op and epilogue.
pub const EVERY_OP: &[&str] = &[
    "matmul m=3 n=10 k=7 epilogue=none",
    "matmul m=1 n=5 k=9 epilogue=bias",
    "matmul m=5 n=6 k=11 epilogue=residual",
    "matmul m=4 n=14 k=9 epilogue=swiglu",
    "matmul m=3 n=10 k=7 epilogue=bias_residual",
    "matmul m=4 n=14 k=9 epilogue=bias_swiglu",
    "qkv m=5 k=9 heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19 bias=0 qk_norm=0",
    "qkv m=1 k=9 heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19 bias=1 qk_norm=0",
    "qkv m=5 k=9 heads=4 kv_heads=2 head_dim=6 page=4 pages=7 max_pos=19 bias=0 qk_norm=1 eps=1e-2",
    "attention batch=2 q=5 kv=9 heads=4 kv_heads=2 head_dim=8 causal=1",
    "attention batch=1 q=7 kv=7 heads=6 kv_heads=2 head_dim=16 causal=1",
    "attention batch=2 q=3 kv=11 heads=4 kv_heads=4 head_dim=8 causal=0",
    "decode batch=2 context=13 heads=6 kv_heads=2 head_dim=8 page=4 lens=full",
    "decode batch=3 context=13 heads=4 kv_heads=2 head_dim=8 page=4 lens=mixed",
    "rmsnorm rows=5 cols=13 residual=0 eps=1e-2",
    "rmsnorm rows=5 cols=13 residual=1",
    "layernorm rows=3 cols=17 residual=0",
    "layernorm rows=3 cols=17 residual=1 eps=1e-2",
    "silu_mul rows=3 cols=7",
    "gelu rows=3 cols=7",
    "rope tokens=5 heads=3 head_dim=6 max_pos=11",
    "softmax rows=4 cols=13",
    "embedding tokens=5 vocab=17 hidden=6",
    "argmax rows=4 cols=37",
];

/// A peer's program, running.
pub struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    id: u64,
}

impl Program {
    /// Starts it.
    pub fn start(path: &str) -> io::Result<Program> {
        let mut child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Program { child, to, from: BufReader::new(from), id: 0 }),
            _ => Err(io::Error::other("no pipes")),
        }
    }

    /// One request and its answer.
    pub fn ask(&mut self, ask: &Ask) -> io::Result<Answer> {
        self.id += 1;
        let request = Numbered { id: self.id, message: ask };
        writeln!(self.to, "{}", serde_json::to_string(&request)?)?;
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(io::Error::other(format!("no answer to {ask:?}: the program has ended")));
        }
        let answer: Numbered<Answer> = serde_json::from_str(&line)?;
        match answer.id == self.id {
            true => Ok(answer.message),
            false => Err(io::Error::other(format!("an answer to request {}, not {}", answer.id, self.id))),
        }
    }

    /// `hello` for a device.
    pub fn hello(&mut self, device: Device) -> io::Result<Answer> {
        self.ask(&Ask::Hello { protocol: PROTOCOL, device, options: BTreeMap::new() })
    }

    /// Runs a case and compares every output of every way that covers all of it; gives the ways, or what is wrong.
    pub fn check(&mut self, case: &Case) -> Result<Vec<Way>, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", case.task.problem);
        let ways = match self.ask(&Ask::Prepare(Box::new(case.task.clone()))).map_err(|e| failed(&e))? {
            Answer::Prepared { ways, refused } if refused.is_empty() => ways,
            other => return Err(failed(&format!("{other:?}"))),
        };
        for way in &ways {
            let names = case.expected.iter().filter(|_| way.covers == "all");
            for (name, expected) in names {
                let all: Vec<u64> = (0..expected.len() as u64).collect();
                let (indices, file) = (case.folder.join("indices"), case.folder.join("values"));
                numbers::write_indices(&indices, &all).map_err(|e| failed(&e))?;
                let ask = Ask::Read {
                    way: way.way.clone(),
                    tensor: name.clone(),
                    count: all.len() as u64,
                    indices,
                    values: file.clone(),
                };
                let values = match self.ask(&ask).map_err(|e| failed(&e))? {
                    Answer::Values { count } => numbers::read_values(&file, count).map_err(|e| failed(&e))?,
                    other => return Err(failed(&format!("{} of {}: {other:?}", name, way.way))),
                };
                case.compare(expected, &values).map_err(|e| failed(&format!("{} of {}: {e}", name, way.way)))?;
            }
            match self.ask(&Ask::Round { way: way.way.clone() }).map_err(|e| failed(&e))? {
                Answer::Round(round) if round.called_us > 0.0 => {}
                other => return Err(failed(&format!("a round of {}: {other:?}", way.way))),
            }
        }
        Ok(ways)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = writeln!(self.to, "{{\"ask\":\"quit\"}}");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A problem with its inputs in files, and what its outputs should hold.
pub struct Case {
    pub task: Task,
    /// NaN where nothing may be written.
    pub expected: Vec<(String, Vec<f64>)>,
    folder: PathBuf,
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Case {
    /// From a problem's text, such as `matmul m=3 n=5 k=7 dtype=f32 epilogue=bias`.
    pub fn new(text: &str) -> io::Result<Case> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("jitune-peer-check-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(unique);
        fs::create_dir_all(&folder)?;
        let mut words = text.split_whitespace();
        let op = words.next().unwrap_or_default().to_owned();
        let mut task = Task { problem: text.to_owned(), op, dtype: "f32".into(), ..Task::default() };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            match value.parse() {
                _ if key == "dtype" => task.dtype = value.to_owned(),
                _ if key == "eps" => drop(task.reals.insert(key.to_owned(), value.parse().map_err(io::Error::other)?)),
                Ok(number) => drop(task.dims.insert(key.to_owned(), number)),
                Err(_) => drop(task.words.insert(key.to_owned(), value.to_owned())),
            }
        }
        match task.op.as_str() {
            "rmsnorm" | "layernorm" => drop(task.reals.entry("eps".into()).or_insert(1e-5)),
            "qkv" => {
                task.reals.entry("eps".into()).or_insert(1e-6);
                let of = |name: &str| task.dims.get(name).copied().unwrap_or(0);
                let width = (of("heads") + 2 * of("kv_heads")) * of("head_dim");
                task.dims.insert("n".into(), width);
            }
            _ => {}
        }
        (task.sets, task.round_us, task.warm_s) = (2, 1.0, 0.05);
        let mut case = Case { task, expected: Vec::new(), folder };
        case.fill()?;
        Ok(case)
    }

    fn dim(&self, name: &str) -> usize {
        self.task.dims.get(name).map_or(0, |&v| v as usize)
    }

    fn epilogue(&self) -> &str {
        self.task.word("epilogue")
    }

    /// Adds an input and gives what it holds after rounding to its dtype.
    fn input(&mut self, name: &str, dtype: &str, shape: &[usize], values: Vec<f64>) -> io::Result<Vec<f64>> {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(dtype, v)).collect();
        let file = self.folder.join(name);
        fs::write(&file, &bytes)?;
        self.add(name, dtype, shape, "in", Some(file));
        let size = if matches!(dtype, "bf16" | "f16") { 2 } else { 4 };
        Ok(bytes.chunks_exact(size).map(|b| decode(dtype, b)).collect())
    }

    fn output(&mut self, name: &str, dtype: &str, shape: &[usize], expected: Vec<f64>) {
        self.add(name, dtype, shape, "out", None);
        self.expected.push((name.to_owned(), expected));
    }

    fn add(&mut self, name: &str, dtype: &str, shape: &[usize], role: &str, file: Option<PathBuf>) {
        let shape = shape.iter().map(|&d| d as u64).collect();
        let dtype = if dtype == "tf32" { "f32" } else { dtype }.to_owned();
        self.task.tensors.push(TaskTensor { name: name.into(), dtype, shape, role: role.into(), file });
    }

    fn compare(&self, expected: &[f64], values: &[Option<f64>]) -> Result<(), String> {
        let limit = match self.task.dtype.as_str() {
            "bf16" => 3e-2,
            "f16" => 5e-3,
            _ => 1e-4,
        };
        if values.len() != expected.len() {
            return Err(format!("{} values, not {}", values.len(), expected.len()));
        }
        let written = expected.iter().filter(|v| v.is_finite());
        let rms = (written.clone().map(|v| v * v).sum::<f64>() / written.count().max(1) as f64).sqrt();
        for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
            let right = match value {
                Some(value) => (value - expected).abs() <= limit * (rms + expected.abs()),
                None => expected.is_nan(),
            };
            if !right {
                return Err(format!("element {i} is {value:?}, not {expected}"));
            }
        }
        Ok(())
    }
}

fn encode(dtype: &str, value: f64) -> Vec<u8> {
    match dtype {
        "bf16" => bf16::from_f64(value).to_le_bytes().to_vec(),
        "f16" => f16::from_f64(value).to_le_bytes().to_vec(),
        "i32" => (value as i32).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}
