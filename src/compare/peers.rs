//! Which peers there are, how each is found on this machine, and the conversation with one.

use crate::device::Target;
use crate::worker::{Lost, Process, lines};
use jitune_peer::{About, Answer, Ask, Device, Numbered, PROTOCOL, Refusal, RefusalKind, numbers};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The longest line a peer may answer: names and reasons, no tensor.
const MAX_LINE: usize = 1 << 20;
/// Most ways of a peer to compute one problem, refused ones counted.
const MAX_WAYS: usize = 64;
/// How long a peer may take to open its device: large frameworks load for many seconds.
const HELLO: Duration = Duration::from_secs(120);
/// Lines of a peer's standard error that are shown when it is lost.
const SHOWN_LINES: usize = 3;

/// A peer that jitune knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it measures.
    pub summary: &'static str,
    /// What it runs on.
    pub targets: &'static [Target],
    /// The one command that brings it.
    pub fix: &'static str,
}

/// Every peer beside jitune itself, in the order of the report.
pub const KNOWN: [Known; 5] = [
    Known {
        name: "cublaslt",
        summary: "cuBLASLt, the best of its heuristics' 16 algorithms",
        targets: &[Target::Cuda],
        fix: "cargo build --release --manifest-path baselines/cublaslt/Cargo.toml",
    },
    Known {
        name: "torch",
        summary: "PyTorch: eager, compiled, and its attention backends",
        targets: &[Target::Cuda, Target::Cpu],
        fix: "python3 -m pip install torch",
    },
    Known {
        name: "candle",
        summary: "Candle, as its users write it",
        targets: &[Target::Cuda, Target::Cpu],
        fix: "cargo build --release --manifest-path baselines/candle/Cargo.toml",
    },
    Known {
        name: "burn",
        summary: "Burn with CubeCL's kernels",
        targets: &[Target::Cuda, Target::Cpu],
        fix: "cargo build --release --manifest-path baselines/burn/Cargo.toml",
    },
    Known {
        name: "cpu",
        summary: "the gemm crate and OpenBLAS",
        targets: &[Target::Cpu],
        fix: "cargo build --release --manifest-path baselines/cpu/Cargo.toml",
    },
];

/// Where peers are looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// A folder given by the user.
    pub folder: Option<PathBuf>,
    /// The Python that runs the torch peer.
    pub python: String,
    /// A folder for the Python runner and for logs.
    pub scratch: PathBuf,
}

/// The Python runner, which travels inside the program.
const RUNNER: [(&str, &str); 6] = [
    ("peer.py", include_str!("../../baselines/python/peer.py")),
    ("torch_attention.py", include_str!("../../baselines/python/torch_attention.py")),
    ("torch_cudnn.py", include_str!("../../baselines/python/torch_cudnn.py")),
    ("torch_forms.py", include_str!("../../baselines/python/torch_forms.py")),
    ("torch_ops.py", include_str!("../../baselines/python/torch_ops.py")),
    ("torch_timer.py", include_str!("../../baselines/python/torch_timer.py")),
];

impl Places {
    /// The command that starts a peer, or why there is none.
    pub fn command(&self, name: &str) -> Result<Command, Refusal> {
        let known = KNOWN.iter().find(|k| k.name == name);
        if name == "torch" {
            for (file, text) in RUNNER {
                let path = self.scratch.join(file);
                std::fs::write(&path, text).map_err(|e| Refusal::failed(format!("{}: {e}", path.display())))?;
            }
            let mut command = Command::new(&self.python);
            command.arg(self.scratch.join(RUNNER[0].0));
            return Ok(command);
        }
        let program = format!("jitune-peer-{name}");
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let built = PathBuf::from("baselines").join(name).join("target/release");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.folder.clone().into_iter().chain(beside).chain([built]).chain(std::env::split_paths(&path));
        match folders.map(|f| f.join(&program)).find(|p| p.is_file()) {
            Some(found) => Ok(Command::new(found)),
            None => Err(Refusal::missing(
                format!("{program} is not found (--peer-dir, beside jitune, baselines/{name}/target/release, PATH)"),
                known.map_or("", |k| k.fix),
            )),
        }
    }
}

/// A peer that answered `hello`.
pub struct Conversation {
    process: Process<Numbered<Answer>>,
    /// The number of the last request.
    id: u64,
    stop: Arc<AtomicBool>,
    log: PathBuf,
    /// Who it is.
    pub about: About,
}

/// Why an answer did not come, or was a refusal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unanswered {
    /// It said no.
    #[error("{0}")]
    Refused(Refusal),
    /// It is gone.
    #[error("{how}")]
    Lost {
        /// How it ended, with the end of its standard error.
        how: String,
    },
}

impl Conversation {
    /// Starts a peer on a device. It is given up soon after `stop` has become true.
    pub fn start(
        mut command: Command,
        log: PathBuf,
        device: Device,
        options: BTreeMap<String, String>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Conversation, Unanswered> {
        let failed = |why: String| Unanswered::Refused(Refusal::failed(why));
        let errors = File::create(&log).map_err(|e| failed(format!("{}: {e}", log.display())))?;
        command.stderr(Stdio::from(errors));
        let mut rest = Vec::new();
        let process = Process::start(command, move |out| lines::next(out, &mut rest, MAX_LINE))
            .map_err(|e| Unanswered::Refused(Refusal { kind: RefusalKind::Missing, why: e.to_string(), fix: None }))?;
        let mut this = Conversation { process, id: 0, stop: Arc::clone(stop), log, about: About::default() };
        match this.ask(&Ask::Hello { protocol: PROTOCOL, device, options }, HELLO)? {
            Answer::Hello(about) => {
                this.about = about;
                Ok(this)
            }
            other => Err(failed(format!("it answered {other:?} to hello"))),
        }
    }

    /// Asks, and waits at most `deadline`; after [`Unanswered::Lost`] the peer is gone.
    pub fn ask(&mut self, ask: &Ask, deadline: Duration) -> Result<Answer, Unanswered> {
        self.id += 1;
        let request = Numbered { id: self.id, message: ask };
        let send = |to: &mut Vec<u8>| {
            serde_json::to_writer(&mut *to, &request).map_err(std::io::Error::other)?;
            to.push(b'\n');
            Ok(())
        };
        let stopped = || self.stop.load(Ordering::Relaxed);
        let odd = |how: String| Err(Unanswered::Lost { how });
        match self.process.ask_unless(send, deadline, &stopped) {
            Ok(Numbered { id, .. }) if id != self.id => {
                odd(format!("it answered request {id} when it was asked request {}", self.id))
            }
            Ok(Numbered { message: Answer::Refused(why), .. }) => Err(Unanswered::Refused(why)),
            Ok(Numbered { message: Answer::Prepared { ways, refused }, .. })
                if ways.len() + refused.len() > MAX_WAYS =>
            {
                odd(format!("it has {} ways, and {MAX_WAYS} are the most", ways.len() + refused.len()))
            }
            Ok(answer) => Ok(answer.message),
            Err(lost) => Err(Unanswered::Lost { how: self.told(&lost) }),
        }
    }

    /// Elements of an output of one call; they come in a file.
    pub fn read(
        &mut self,
        way: &str,
        tensor: &str,
        indices: &[u64],
        deadline: Duration,
    ) -> Result<Vec<Option<f64>>, Unanswered> {
        let [file, values] = ["indices", "values"].map(|name| self.log.with_extension(name));
        let count = indices.len() as u64;
        numbers::write_indices(&file, indices).map_err(Unanswered::Refused)?;
        // What an earlier answer left is no answer.
        let _ = std::fs::remove_file(&values);
        let (way, tensor) = (way.to_string(), tensor.to_string());
        let answer = self.ask(&Ask::Read { way, tensor, count, indices: file, values: values.clone() }, deadline)?;
        match answer {
            Answer::Values { count: written } if written == count => {
                numbers::read_values(&values, count).map_err(Unanswered::Refused)
            }
            other => {
                let why = format!("it answered {} to a read of {count} values", lines::short(&other));
                Err(Unanswered::Refused(Refusal::failed(why)))
            }
        }
    }

    /// Lets it end by itself, as a profiler around it needs; waits a while for that.
    pub fn end(mut self) {
        // The end of its output is no answer, and all that is waited for.
        let _ = self.ask(&Ask::Quit, Duration::from_secs(60));
    }

    /// How it was lost, and the last it said.
    fn told(&self, lost: &Lost) -> String {
        lines::last_words(&lost.to_string().replace("the worker", "it"), &self.log, SHOWN_LINES)
    }
}

/// Reads the lines that a peer answers, for fuzzing.
#[cfg(fuzzing)]
pub fn fuzz_lines(mut bytes: &[u8]) {
    let mut rest = Vec::new();
    while let Ok(Some(_)) = lines::next::<Numbered<Answer>>(&mut bytes, &mut rest, MAX_LINE) {}
}
