//! Which engines there are, and how each is found on this machine.

use super::http::Words;
use crate::device::Target;
use jitune_peer::Refusal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// An engine that jitune knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// What it runs on.
    pub targets: &'static [Target],
    /// Whether it is a module of the Python runner.
    python: bool,
    /// The package whose program it is.
    package: &'static str,
    /// The one command that brings it.
    pub fix: &'static str,
    /// How its users serve it over HTTP, as a line of `sh` with {model}, {port}, {dtype}, {context} and {sequences} in it; empty where it has
    /// no server. {python} is the Python that runs the Python runner.
    pub server: &'static str,
}

const BOTH: &[Target] = &[Target::Cuda, Target::Cpu];

/// Every engine, in the order of the report.
pub const KNOWN: [Known; 9] = [
    Known {
        name: "jitune",
        summary: "this program's engine",
        targets: BOTH,
        python: false,
        package: "",
        fix: "",
        server: "",
    },
    Known {
        name: "candle",
        summary: "candle-transformers' models, as its examples drive them",
        targets: BOTH,
        python: false,
        package: "candle",
        fix: "cargo build --release --features model --manifest-path baselines/candle/Cargo.toml",
        server: "",
    },
    Known {
        name: "burn",
        summary: "a Llama on burn's public nn",
        targets: BOTH,
        python: false,
        package: "burn",
        fix: "cargo build --release --features model --manifest-path baselines/burn/Cargo.toml",
        server: "",
    },
    Known {
        name: "transformers",
        summary: "PyTorch with transformers",
        targets: BOTH,
        python: true,
        package: "",
        fix: "python3 -m pip install torch transformers",
        server: "",
    },
    Known {
        name: "transformers-serve",
        summary: "transformers' own server, which takes text alone",
        targets: BOTH,
        python: false,
        package: "",
        fix: "python3 -m pip install torch 'transformers[serving]'",
        server: "export HF_HUB_OFFLINE=1 OMP_NUM_THREADS={threads}; exec {python} -m transformers.cli.transformers serve {model} --port {port} --device {device} --dtype {long_dtype}",
    },
    Known {
        name: "llama-cpp",
        summary: "llama.cpp with its own batching",
        targets: BOTH,
        python: false,
        package: "llama-cpp",
        fix: "RUSTFLAGS=-Ctarget-cpu=native cargo build --release --manifest-path baselines/llama-cpp/Cargo.toml",
        server: "exec llama-server -m {model} --port {port} -c {cache} -np {sequences}",
    },
    Known {
        name: "lmrs",
        summary: "lm.rs, a user's program",
        targets: &[Target::Cpu],
        python: false,
        package: "lm-rs",
        fix: "cargo build --release --manifest-path baselines/lm-rs/Cargo.toml, and lm.rs itself: --set lmrs.chat=PROGRAM --file lmrs=FILE",
        server: "",
    },
    Known {
        name: "vllm",
        summary: "vLLM",
        targets: &[Target::Cuda],
        python: true,
        package: "",
        fix: "python3 -m pip install vllm",
        server: "exec vllm serve {model} --port {port} --dtype {long_dtype} --max-model-len {context} --max-num-seqs {sequences} --skip-tokenizer-init",
    },
    Known {
        name: "tensorrt-llm",
        summary: "TensorRT-LLM, whose server is trtllm-serve",
        targets: &[Target::Cuda],
        python: false,
        package: "tensorrt-llm",
        fix: "see docs/engines.md: trtllm-serve through --server, or a shim that is built against its headers",
        server: "exec trtllm-serve {model} --port {port} --max_batch_size {sequences} --max_seq_len {context}",
    },
];

impl Known {
    /// Whether its steps go over all of the context that it was told, used or not: transformers' static cache, the default on a GPU.
    pub fn fixed(&self, target: Target, options: &BTreeMap<String, String>) -> bool {
        let mode = options.get("mode").map(String::as_str);
        self.name == "transformers" && mode.map_or(target == Target::Cuda, |mode| mode == "static")
    }

    /// Whether there is no other way to it than its server.
    pub fn served_alone(&self) -> bool {
        self.package.is_empty() && !self.python && !self.server.is_empty()
    }

    /// The engine of that name.
    pub fn named(name: &str) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.name == name)
    }
}

/// Where engines are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// This program.
    pub exe: PathBuf,
    /// What its subcommand `engine` is told: where the kernels are.
    pub ours: Vec<String>,
    /// A folder given by the user.
    pub folder: Option<PathBuf>,
    /// The Python that runs the Python runner.
    pub python: String,
    /// A folder for the Python runner and for logs.
    pub scratch: PathBuf,
    /// Number of tokens of the model, which a server does not say.
    pub vocab: u64,
    /// What prompts are made of for servers that take text alone; none where the model has no tokenizer with such words.
    pub words: Option<Arc<Words>>,
}

/// The Python runner, which travels inside the program.
const RUNNER: [(&str, &str); 6] = [
    ("engine.py", include_str!("../../baselines/python/engine.py")),
    ("engine_batches.py", include_str!("../../baselines/python/engine_batches.py")),
    ("engine_continuous.py", include_str!("../../baselines/python/engine_continuous.py")),
    ("engine_transformers.py", include_str!("../../baselines/python/engine_transformers.py")),
    ("engine_vllm.py", include_str!("../../baselines/python/engine_vllm.py")),
    // What the runner of kernels has for refusals.
    ("peer.py", include_str!("../../baselines/python/peer.py")),
];

/// The runner in Python that times Hugging Face's `tokenizers`; called with a `tokenizer.json`, a text's file and seconds.
pub const TOKENIZATION: &str = include_str!("../../baselines/python/tokenization.py");

impl Places {
    /// A line of `sh` that serves an engine over HTTP, where it has a server.
    pub fn server(&self, name: &str) -> Option<String> {
        let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        if name == "jitune" {
            let ours: String = self.ours.iter().map(|word| format!(" {}", quoted(word))).collect();
            let exe = quoted(&self.exe.to_string_lossy());
            let prefix = "$([ {prefix} = true ] || echo --no-prefix-reuse)";
            return Some(format!(
                "exec {exe} serve --model {{model}} --port {{port}} --dtype {{dtype}} --context {{context}} --sequences {{sequences}} {prefix}{ours}"
            ));
        }
        let line = Known::named(name).map(|known| known.server).filter(|line| !line.is_empty())?;
        Some(line.replace("{python}", &quoted(&self.python)))
    }

    /// The command that starts an engine which speaks the protocol, or why there is none.
    pub fn command(&self, name: &str) -> Result<Command, Refusal> {
        let known = Known::named(name);
        if name == "jitune" {
            let mut command = Command::new(&self.exe);
            command.arg("engine").args(&self.ours);
            return Ok(command);
        }
        if known.is_some_and(|known| known.python) {
            for (file, text) in RUNNER {
                let path = self.scratch.join(file);
                std::fs::write(&path, text).map_err(|e| Refusal::failed(format!("{}: {e}", path.display())))?;
            }
            let mut command = Command::new(&self.python);
            command.arg(self.scratch.join("engine.py")).arg(name);
            return Ok(command);
        }
        let package = known.map_or(name, |known| known.package);
        let program = format!("jitune-engine-{name}");
        let built = PathBuf::from("baselines").join(package).join("target/release");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let beside = self.exe.parent().map(Path::to_path_buf);
        let folders = self.folder.clone().into_iter().chain(beside).chain([built]).chain(std::env::split_paths(&path));
        match folders.map(|folder| folder.join(&program)).find(|file| file.is_file()) {
            Some(found) => Ok(Command::new(found)),
            None => Err(Refusal::missing(
                format!("{program} is not found (--peer-dir, beside jitune, baselines/{package}/target/release, PATH)"),
                known.map_or("", |known| known.fix),
            )),
        }
    }
}
