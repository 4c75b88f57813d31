//! Libraries for the processor as a peer of jitune: f32 products by the gemm crate, and by OpenBLAS where it is installed.

mod openblas;

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use gemm::Parallelism;
use jitune_peer::{About, Device, Peer, Prepared, Refusal, RefusalKind, RefusedWay, Task, Way, Work};
use openblas::OpenBlas;

fn main() -> ExitCode {
    jitune_peer::serve(Libraries { opened: None })
}

struct Libraries {
    opened: Option<Opened>,
}

struct Opened {
    threads: usize,
    pool: Arc<rayon::ThreadPool>,
    openblas: Result<Arc<OpenBlas>, String>,
}

impl Peer for Libraries {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let Device::Cpu(threads) = device else {
            return Err(Refusal::unsupported("these libraries run on processors alone"));
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Refusal::failed)?;
        let openblas = OpenBlas::load(threads).map(Arc::new);
        let mut libraries = BTreeMap::from([("gemm".to_owned(), "0.19".to_owned())]);
        if let Ok(openblas) = &openblas {
            libraries.insert("openblas".to_owned(), openblas.version());
        }
        self.opened = Some(Opened { threads, pool: Arc::new(pool), openblas });
        let device = format!("the processor, {threads} threads");
        Ok(About { peer: "cpu".into(), version: env!("CARGO_PKG_VERSION").into(), device, libraries })
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        let Some(opened) = &self.opened else { return Err(Refusal::failed("no device was opened")) };
        if !matches!(task.op.as_str(), "matmul" | "qkv") || task.dtype != "f32" {
            return Err(Refusal::unsupported("these libraries are called for products in f32 alone"));
        }
        let (start, covers) = match task.word("epilogue") {
            "" | "none" if task.op == "matmul" => (Start::Zero, "all"),
            "bias" => (Start::Row(task.tensor("bias")?.values()?), "all"),
            "residual" => (Start::Matrix(task.tensor("residual")?.values()?), "all"),
            _ => (Start::Zero, "product"),
        };
        let shape = Shape { m: task.dim("m")?, n: task.dim("n")?, k: task.dim("k")? };
        let (x, w) = (task.tensor("x")?.values()?, task.tensor("w")?.values()?);
        let start = start.fitting(shape)?;
        let sizes = [(x.len(), shape.m * shape.k), (w.len(), shape.n * shape.k)];
        if let Some((have, need)) = sizes.into_iter().find(|(have, need)| have != need) {
            return Err(Refusal::failed(format!("an input has {have} elements, not {need}")));
        }
        let mut libraries = vec![Library::Gemm(opened.pool.clone(), opened.threads)];
        let mut ways = vec![Way::part("gemm", "gemm::gemm on a pool of rayon", covers)];
        let mut refused = Vec::new();
        match &opened.openblas {
            Ok(openblas) => {
                libraries.push(Library::OpenBlas(openblas.clone()));
                ways.push(Way::part("openblas", "cblas_sgemm", covers));
            }
            Err(why) => {
                let (way, why) = ("openblas".to_owned(), format!("{why}; apt-get install libopenblas0 brings it"));
                refused.push(RefusedWay { way, kind: RefusalKind::Missing, why });
            }
        }
        let set = Set { y: vec![f32::NAN; shape.m * shape.n], x, w, start };
        let work = Products { shape, libraries, sets: vec![set; task.sets.max(1)] };
        Ok(Prepared { work: Box::new(work), ways, refused })
    }
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// What the product is added to.
#[derive(Clone)]
enum Start {
    Zero,
    Row(Vec<f32>),
    Matrix(Vec<f32>),
}

impl Start {
    fn fitting(self, shape: Shape) -> Result<Start, Refusal> {
        let fits = match &self {
            Start::Zero => true,
            Start::Row(row) => row.len() == shape.n && shape.n > 0,
            Start::Matrix(matrix) => matrix.len() == shape.m * shape.n,
        };
        if fits { Ok(self) } else { Err(Refusal::failed("bias or residual is not of the product's shape")) }
    }
}

#[derive(Clone)]
struct Set {
    x: Vec<f32>,
    w: Vec<f32>,
    start: Start,
    y: Vec<f32>,
}

enum Library {
    Gemm(Arc<rayon::ThreadPool>, usize),
    OpenBlas(Arc<OpenBlas>),
}

struct Products {
    shape: Shape,
    libraries: Vec<Library>,
    sets: Vec<Set>,
}

impl Work for Products {
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        let (Some(library), Some(set)) = (self.libraries.get(way), self.sets.get_mut(set)) else {
            return Err(Refusal::failed(format!("no set {set} of way {way}")));
        };
        match &set.start {
            Start::Zero => {}
            Start::Row(row) => set.y.chunks_exact_mut(row.len()).for_each(|y| y.copy_from_slice(row)),
            Start::Matrix(matrix) => set.y.copy_from_slice(matrix),
        }
        let add = !matches!(set.start, Start::Zero);
        match library {
            Library::Gemm(pool, threads) => {
                pool.install(|| multiply(self.shape, &set.x, &set.w, &mut set.y, add, *threads))
            }
            Library::OpenBlas(openblas) => openblas.multiply(self.shape, &set.x, &set.w, &mut set.y, add)?,
        }
        Ok(())
    }

    fn read(&mut self, _: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let Some(set) = self.sets.first().filter(|_| tensor == "y") else {
            return Err(Refusal::failed(format!("{tensor} is no output")));
        };
        let element = |&at: &u64| set.y.get(at as usize).map(|&v| f64::from(v));
        let all: Option<Vec<f64>> = indices.iter().map(element).collect();
        all.ok_or_else(|| Refusal::failed(format!("y has {} elements", set.y.len())))
    }

    fn poison(&mut self, _: usize) -> Result<(), Refusal> {
        self.sets.iter_mut().take(1).for_each(|set| set.y.fill(f32::NAN));
        Ok(())
    }
}

/// y[m, n] = x[m, k] · w[n, k]ᵀ, added to y where `add`.
fn multiply(shape: Shape, x: &[f32], w: &[f32], y: &mut [f32], add: bool, threads: usize) {
    let Shape { m, n, k } = shape;
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    debug_assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n);
    // SAFETY: the slices were checked to be of these shapes when the task was prepared, and y is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            add,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
