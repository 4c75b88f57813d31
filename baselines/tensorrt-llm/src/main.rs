//! TensorRT-LLM's executor in C++ as an engine of jitune's comparisons, of versions up to 1.2: by way of a shim that `build.sh` builds
//! against the user's own headers and libraries.
//!
//! Options: `shim` (the shim's path; `JITUNE_TRTLLM_SHIM`, or `libjitune_trtllm.so` beside the program), `engine` (the folder of the built
//! engine; without it, what is loaded is such a folder), `end` (the token that ends answers), `tokens` (most tokens of a step),
//! `memory_fraction` (of the free memory, for keys and values).

mod shim;

use jitune_peer::engine::{About, Batching, End, Engine, Finish, Load, Loaded, Logits, Submit, Teller, serve};
use jitune_peer::{Device, Refusal};
use shim::{Executor, Heard, Options, Shim};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the thread that listens looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    serve(TensorRt::default())
}

#[derive(Default)]
struct TensorRt {
    options: BTreeMap<String, String>,
    running: Option<Running>,
}

/// An executor, and the thread that listens to it once there is somebody to tell.
struct Running {
    shared: Arc<Shared>,
    listens: Option<JoinHandle<()>>,
    end: Option<u32>,
}

struct Shared {
    executor: Executor,
    /// Numbers of requests that have not ended: the asker's by the executor's. Held while a request is handed over, so that nothing is heard
    /// of it before it stands here.
    requests: Mutex<BTreeMap<u64, u64>>,
    stop: AtomicBool,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is heard until it shall end, or the executor is lost.
    fn listen(&self, teller: &Teller) {
        while !self.stop.load(Ordering::Relaxed) {
            let heard = match self.executor.heard(LOOK) {
                Ok(heard) => heard,
                Err(e) => {
                    for id in std::mem::take(&mut *self.requests()).into_values() {
                        teller.end(id, End { why: Finish::Failed, error: Some(e.why.clone()), cached: None });
                    }
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            for (request, heard) in heard {
                let mut requests = self.requests();
                let Some(&id) = requests.get(&request) else { continue };
                match heard {
                    Heard::Tokens(ids) => teller.tokens(id, ids),
                    Heard::End(why, error) => {
                        requests.remove(&request);
                        teller.end(id, End { why, error, cached: None })
                    }
                };
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(listens) = self.listens.take() {
            let _ = listens.join();
        }
    }
}

impl TensorRt {
    fn shim(&self) -> Result<Shim, Refusal> {
        let named = self.options.get("shim").map(PathBuf::from);
        let named = named.or_else(|| std::env::var_os("JITUNE_TRTLLM_SHIM").map(PathBuf::from));
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("libjitune_trtllm.so"));
        Shim::load(&named.or_else(beside).unwrap_or_else(|| "libjitune_trtllm.so".into()))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let Some(text) = self.options.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Refusal::failed(format!("the option {name} is {text}, and no number")))
    }

    fn running(&mut self) -> Result<&mut Running, Refusal> {
        self.running.as_mut().ok_or_else(|| Refusal::failed("nothing is loaded"))
    }
}

impl Engine for TensorRt {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        // Which of several GPUs it is, CUDA_VISIBLE_DEVICES says.
        let Device::Cuda(_) = device else { return Err(Refusal::unsupported("TensorRT-LLM runs on GPUs alone")) };
        self.options = options.clone();
        let version = self.shim()?.version()?;
        Ok(About { engine: "tensorrt-llm".into(), version, device: device.to_string(), ..About::default() })
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        self.running = None;
        let folder = self.options.get("engine").map_or_else(|| load.folder.clone(), PathBuf::from);
        let config = config(&folder)?;
        let built = config["pretrained_config"]["dtype"].as_str().unwrap_or_default();
        let quantized = config["pretrained_config"]["quantization"]["quant_algo"].as_str().unwrap_or_default();
        let wanted = match &load.dtype[..] {
            "bf16" => quantized.is_empty() && built == "bfloat16",
            "f16" => quantized.is_empty() && built == "float16",
            "f32" => quantized.is_empty() && built == "float32",
            other => quantized.to_lowercase() == other,
        };
        if !wanted {
            return Err(Refusal::unsupported(format!(
                "this engine was built for {built} {quantized}, not {}",
                load.dtype
            )));
        }
        let longest = config["build_config"]["max_seq_len"].as_u64();
        if let Some(most) = longest.filter(|most| (*most as usize) < load.context) {
            return Err(Refusal::unsupported(format!("this engine was built for {most} tokens, not {}", load.context)));
        }
        let batch = config["build_config"]["max_batch_size"]
            .as_u64()
            .map_or(load.sequences, |n| load.sequences.min(n as usize));
        let options = Options {
            max_batch: i32::try_from(batch).unwrap_or(0),
            max_tokens: self.number("tokens")?.unwrap_or(0),
            reuse_blocks: i32::from(load.prefix),
            chunked_context: 1,
            memory_fraction: self.number("memory_fraction")?.unwrap_or(0.0),
        };
        let end = self.number("end")?;
        let executor = self.shim()?.open(&folder, &options)?;
        let shared = Shared { executor, requests: Mutex::default(), stop: AtomicBool::new(false) };
        self.running = Some(Running { shared: Arc::new(shared), listens: None, end });
        let vocab = config["pretrained_config"]["vocab_size"].as_u64().unwrap_or(0);
        let notes = vec!["the memory that may be used is said as memory_fraction, not in bytes".into()];
        let notes = if load.memory.is_some() { notes } else { Vec::new() };
        Ok(Loaded { batching: Batching::Continuous, sequences: batch, memory_bytes: None, vocab, notes })
    }

    fn submit(&mut self, id: u64, request: Submit, teller: &Teller) -> Result<(), Refusal> {
        let running = self.running()?;
        if running.listens.is_none() {
            let (shared, teller) = (Arc::clone(&running.shared), teller.clone());
            let listens = std::thread::Builder::new().name("listens".into()).spawn(move || shared.listen(&teller));
            running.listens = Some(listens.map_err(Refusal::failed)?);
        }
        let end = running.end.filter(|_| !request.ignore_eos);
        let mut requests = running.shared.requests();
        let number = running.shared.executor.enqueue(&request.prompt, request.most, &request.sampling, end)?;
        requests.insert(number, id);
        Ok(())
    }

    fn cancel(&mut self, id: u64, _: &Teller) {
        let Ok(running) = self.running() else { return };
        let number = running.shared.requests().iter().find(|(_, of)| **of == id).map(|(number, _)| *number);
        // One that cannot be cancelled ends by itself.
        let _ = number.map(|number| running.shared.executor.cancel(number));
    }

    fn logits(&mut self, _: &[u32], _: &Path) -> Result<Logits, Refusal> {
        Err(Refusal::unsupported("logits are to be had only of an engine that was built with --gather_context_logits"))
    }
}

/// What a built engine says of itself.
fn config(folder: &Path) -> Result<serde_json::Value, Refusal> {
    let path = folder.join("config.json");
    let fix = "trtllm-build --checkpoint_dir CHECKPOINT --output_dir ENGINE, and the option engine=ENGINE";
    let missing = |why: String| Refusal::missing(format!("{}: {why}", path.display()), fix);
    let text = std::fs::read(&path).map_err(|e| missing(e.to_string()))?;
    let config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| missing(e.to_string()))?;
    match config.get("build_config") {
        Some(_) => Ok(config),
        None => Err(missing("it is no built engine's".into())),
    }
}
