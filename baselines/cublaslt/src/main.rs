//! cuBLASLt as a peer of jitune: matrix products, each by the fastest algorithm that its heuristics offer and by the
//! first of them.

mod error;
mod gpu;
mod lt;

use std::{collections::BTreeMap, process::ExitCode, rc::Rc};

use jitune_peer::{About, Cuda, Device, Peer, Prepared, Refusal, Stream, Task, Way, Work, decode};

use error::Error;
use gpu::{Buffer, Gpu};
use lt::{Algorithm, Lt, Product, Shape, Tensors};

/// Replays that each algorithm gets, and that the fastest get again: the least of many medians is partly luck.
const FIRST_LOOK: usize = 5;
const SECOND_LOOK: usize = 15;
const FINALISTS: usize = 3;
/// Products in one replay, at least.
const NODES: usize = 8;

fn main() -> ExitCode {
    jitune_peer::serve(CublasLt { lt: None })
}

struct CublasLt {
    lt: Option<Rc<Lt>>,
}

impl Peer for CublasLt {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let Device::Cuda(ordinal) = device else {
            return Err(Refusal::unsupported("cuBLASLt runs on GPUs alone"));
        };
        let lt = Lt::new(Gpu::new(ordinal)?)?;
        let (version, device) = (lt.version(), lt.gpu.name()?);
        self.lt = Some(Rc::new(lt));
        Ok(About { peer: "cublaslt".into(), version, device, ..About::default() })
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        let Some(lt) = &self.lt else { return Err(Refusal::failed("no device was opened")) };
        let covers = covers(task)?;
        let shape = Shape { m: task.dim("m")?, n: task.dim("n")?, k: task.dim("k")? };
        let sets = sets(task, shape, covers == "all")?;
        let product = Product::new(lt.clone(), &task.dtype, shape, sets)?;
        let offered = product.algorithms()?;
        let count = offered.len();
        let best = fastest(&product, &offered, lt.gpu.stream(), task)?;
        let how = |name: &str, at: usize| format!("{name}, number {} of the {count} that the heuristics offer", at + 1);
        let ways = [("best", how("the fastest", best)), ("first", how("the first", 0))];
        let ways = ways.map(|(way, how)| Way::part(way, how, covers)).to_vec();
        let mut algorithms = offered.into_iter();
        let (first, best) = match (algorithms.next(), best.checked_sub(1)) {
            (Some(first), Some(after)) => (first, algorithms.nth(after)),
            (Some(first), None) => (first, None),
            (None, _) => return Err(Error::NoAlgorithm.into()),
        };
        let y = task.tensor("y")?;
        let (dtype, element) = (y.dtype.clone(), y.element_bytes());
        let work = Products { lt: lt.clone(), product, first, best, dtype, element };
        Ok(Prepared { work: Box::new(work), ways, refused: Vec::new() })
    }
}

/// What of the task cuBLASLt computes.
fn covers(task: &Task) -> Result<&'static str, Refusal> {
    match (task.op.as_str(), task.word("epilogue")) {
        ("matmul", "" | "none" | "bias" | "residual") => Ok("all"),
        ("matmul" | "qkv", _) => Ok("product"),
        (op, _) => Err(Refusal::unsupported(format!("cuBLASLt has matrix products, no {op}"))),
    }
}

fn sets(task: &Task, shape: Shape, all: bool) -> Result<Vec<Tensors>, Refusal> {
    let optional = |name: &str| if all && task.has(name) { task.tensor(name)?.load().map(Some) } else { Ok(None) };
    let Shape { m, n, k } = shape;
    for (name, elements) in [("x", m * k), ("w", n * k), ("bias", n), ("residual", m * n)] {
        if task.tensors.iter().any(|t| t.name == name && t.elements() != elements) {
            return Err(Refusal::failed(format!("{name} is not of the product's shape")));
        }
    }
    let (x, w) = (task.tensor("x")?.load()?, task.tensor("w")?.load()?);
    let (bias, residual) = (optional("bias")?, optional("residual")?);
    let held = |content: &Option<Vec<u8>>| content.as_deref().map(Buffer::of).transpose();
    let bytes = m * n * task.tensor("y")?.element_bytes();
    let set = || -> Result<Tensors, Error> {
        let (bias, residual) = (held(&bias)?, held(&residual)?);
        Ok(Tensors { x: Buffer::of(&x)?, w: Buffer::of(&w)?, bias, residual, y: Buffer::new(bytes)? })
    };
    (0..task.sets.max(1)).map(|_| set().map_err(Refusal::from)).collect()
}

/// The place of the fastest algorithm.
fn fastest(product: &Product, offered: &[Algorithm], stream: Stream, task: &Task) -> Result<usize, Error> {
    let mut cuda = Cuda::new()?;
    let mut look = |at: usize, replays: usize| -> Result<f64, Error> {
        let (sets, algorithm) = (product.sets.len(), &offered[at]);
        let nodes = NODES.next_multiple_of(sets);
        let graph =
            cuda.capture::<Error>(stream, || (0..nodes).try_for_each(|i| product.enqueue(algorithm, i % sets)))?;
        let mut replay = || cuda.replay(&graph, stream, task.flush_bytes);
        let times = replay().and_then(|_| (0..replays).map(|_| replay()).collect::<Result<Vec<f64>, _>>());
        cuda.drop_graph(graph);
        Ok(median(times?))
    };
    // An algorithm that does not run is none.
    let mut times: Vec<(f64, usize)> =
        (0..offered.len()).filter_map(|at| look(at, FIRST_LOOK).ok().map(|us| (us, at))).collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let finalists = times.iter().take(FINALISTS).filter_map(|&(_, at)| look(at, SECOND_LOOK).ok().map(|us| (us, at)));
    let best = finalists.min_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, at)| at).ok_or(Error::NoneRuns(offered.len()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Products {
    lt: Rc<Lt>,
    product: Product,
    first: Algorithm,
    /// None where the first is the fastest.
    best: Option<Algorithm>,
    /// Of y, and the bytes of its elements.
    dtype: String,
    element: usize,
}

impl Work for Products {
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        let algorithm = self.best.as_ref().filter(|_| way == 0).unwrap_or(&self.first);
        Ok(self.product.enqueue(algorithm, set)?)
    }

    fn wait(&mut self) -> Result<(), Refusal> {
        Ok(self.lt.gpu.wait()?)
    }

    fn stream(&self, _: usize) -> Option<Stream> {
        Some(self.lt.gpu.stream())
    }

    fn read(&mut self, _: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let Some((_, tensors)) = self.product.sets.first().filter(|_| tensor == "y") else {
            return Err(Refusal::failed(format!("{tensor} is no output")));
        };
        let of = |&index: &u64| -> Result<f64, Refusal> {
            let at = (index as usize).saturating_mul(self.element);
            let value = match self.element {
                2 => tensors.y.read::<2>(at)?.map(|b| decode(&self.dtype, &b)),
                _ => tensors.y.read::<4>(at)?.map(|b| decode(&self.dtype, &b)),
            };
            value.ok_or_else(|| Refusal::failed(format!("y has no element {index}")))
        };
        indices.iter().map(of).collect()
    }

    fn poison(&mut self, _: usize) -> Result<(), Refusal> {
        self.product.sets.first().map_or(Ok(()), |(_, tensors)| Ok(tensors.y.poison()?))
    }
}
