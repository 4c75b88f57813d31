//! One problem: inputs, a check of every algorithm, and times.

use serde::Serialize;

use crate::{
    error::Error,
    gpu::{Buffer, Gpu, Graph},
    lt::{Algorithm, Lt, Product, Tensors},
    problem::Problem,
    values::{Pool, Random, decode},
};

const SAMPLED: usize = 256;
const MOST_SETS: usize = 32;
const MOST_NODES: usize = 1200;
const REPLAY_MS: f64 = 2.0;
/// Replays when algorithms are compared, and when the chosen ones are measured for the report.
const COMPARE: usize = 5;
const REPORT: usize = 11;

#[derive(Serialize)]
pub struct Report {
    peer: &'static str,
    version: String,
    device: String,
    problem: String,
    /// Offered by the heuristics; those that do not run, or with a wrong result, are `rejected` and not timed.
    algorithms: usize,
    rejected: usize,
    /// Median of `samples_us`: one product of the fastest algorithm, as the mean of a graph's nodes, per replay.
    best_us: f64,
    best_algorithm: usize,
    samples_us: Vec<f64>,
    /// The heuristics' first choice, which a library that does not search would run; null if its result is wrong.
    first_us: Option<f64>,
    /// Largest |error| / (rms + |expected|) of the fastest algorithm's sampled elements.
    max_error: f64,
    sets: usize,
    nodes: usize,
}

pub fn measure(gpu: &Gpu, lt: &Lt, p: &Problem) -> Result<Report, Error> {
    let product = Product::new(lt, p)?;
    let algorithms = product.algorithms(p)?;

    let x = Pool::new(p.dtype, 1, 3f64.sqrt());
    let w = Pool::new(p.dtype, 2, (3.0 / p.k as f64).sqrt());
    let bias = Pool::new(p.dtype, 3, 3f64.sqrt());
    let sets = (2 * gpu.l2).div_ceil(p.bytes()).clamp(1, MOST_SETS);
    let tensors = (0..sets).map(|_| tensors(p, &x, &w, &bias)).collect::<Result<Vec<_>, _>>()?;
    let Some(first_set) = tensors.first() else { return Err(Error::NoAlgorithm(p.to_string())) };
    let samples = sample(p, &x, &w, &bias);

    let mut right = Vec::new();
    let mut least = f64::INFINITY;
    for (index, algorithm) in algorithms.iter().enumerate() {
        first_set.y.fill(0xff)?;
        match product.enqueue(gpu, algorithm, first_set) {
            Err(Error::CublasLt { .. }) => continue,
            other => other?,
        }
        gpu.synchronize()?;
        let error = largest_error(p, &samples, &first_set.y)?;
        least = least.min(error);
        if error <= p.dtype.limit() {
            right.push(Right { index, algorithm, error });
        }
    }

    let bench = Bench { gpu, product: &product, tensors: &tensors };
    let mut fastest: Option<(f64, &Right)> = None;
    for candidate in &right {
        let us = bench.times(candidate.algorithm, COMPARE)?.median();
        if fastest.is_none_or(|(least, _)| us < least) {
            fastest = Some((us, candidate));
        }
    }
    let Some((_, mut best)) = fastest else {
        return Err(Error::Wrong { problem: p.to_string(), error: least, limit: p.dtype.limit() });
    };
    // The least of many medians is partly luck: it and the first choice are measured anew, and the faster is reported.
    let mut times = bench.times(best.algorithm, REPORT)?;
    let mut first_us = None;
    if let Some(first) = right.first().filter(|r| r.index == 0) {
        if best.index == 0 {
            first_us = Some(times.median());
        } else {
            let again = bench.times(first.algorithm, REPORT)?;
            first_us = Some(again.median());
            if again.median() < times.median() {
                (best, times) = (first, again);
            }
        }
    }
    Ok(Report {
        peer: "cublaslt",
        version: lt.version(),
        device: gpu.name()?,
        problem: p.to_string(),
        algorithms: algorithms.len(),
        rejected: algorithms.len() - right.len(),
        best_us: round(times.median()),
        best_algorithm: best.index,
        samples_us: times.us.iter().copied().map(round).collect(),
        first_us: first_us.map(round),
        max_error: best.error,
        sets,
        nodes: times.nodes,
    })
}

fn tensors(p: &Problem, x: &Pool, w: &Pool, bias: &Pool) -> Result<Tensors, Error> {
    let filled = |elements: usize, pool: &Pool| {
        let buffer = Buffer::new(elements * p.dtype.bytes())?;
        buffer.repeat(&pool.bytes)?;
        Ok::<_, Error>(buffer)
    };
    Ok(Tensors {
        x: filled(p.m * p.k, x)?,
        w: filled(p.n * p.k, w)?,
        bias: if p.bias { Some(filled(p.n, bias)?) } else { None },
        y: Buffer::new(p.m * p.n * p.dtype.bytes())?,
    })
}

/// Elements of y (as their index) and what they should be, in f64.
fn sample(p: &Problem, x: &Pool, w: &Pool, bias: &Pool) -> Vec<(usize, f64)> {
    let mut random = Random(11);
    let last = (p.m - 1, p.n - 1);
    let corners = [(0, 0), (0, last.1), (last.0, 0), last];
    let spread = (0..SAMPLED).map(|_| (random.below(p.m), random.below(p.n)));
    corners
        .into_iter()
        .chain(spread)
        .map(|(i, j)| {
            let sum: f64 = (0..p.k).map(|l| x.at(i * p.k + l) * w.at(j * p.k + l)).sum();
            (i * p.n + j, if p.bias { sum + bias.at(j) } else { sum })
        })
        .collect()
}

fn largest_error(p: &Problem, samples: &[(usize, f64)], y: &Buffer) -> Result<f64, Error> {
    let rms = (samples.iter().map(|(_, v)| v * v).sum::<f64>() / samples.len() as f64).sqrt();
    let size = p.dtype.bytes();
    let mut largest = 0.0;
    for &(index, expected) in samples {
        let mut raw = [0u8; 4];
        y.read(index * size, &mut raw[..size])?;
        let error = (decode(p.dtype, raw) - expected).abs() / (rms + expected.abs());
        if error.is_nan() {
            return Ok(f64::INFINITY);
        }
        largest = f64::max(largest, error);
    }
    Ok(largest)
}

/// An algorithm whose result is right.
struct Right<'a> {
    /// Its place in the heuristics' order.
    index: usize,
    algorithm: &'a Algorithm,
    error: f64,
}

struct Times {
    /// Microseconds of one product, for each replay.
    us: Vec<f64>,
    /// Products in a replay.
    nodes: usize,
}

impl Times {
    fn median(&self) -> f64 {
        median(&self.us)
    }
}

struct Bench<'a> {
    gpu: &'a Gpu,
    product: &'a Product<'a>,
    tensors: &'a [Tensors],
}

impl Bench<'_> {
    /// Consecutive products use other tensors, twice the L2 cache in all, and the cache is flushed before a replay.
    fn times(&self, algorithm: &Algorithm, replays: usize) -> Result<Times, Error> {
        let sets = self.tensors.len();
        let few = sets.max(4);
        let graph = self.graph(algorithm, few)?;
        self.gpu.replay(&graph, 1)?;
        let ms = median(&self.gpu.replay(&graph, 3)?) / few as f64;
        let rounds = (REPLAY_MS / (ms * sets as f64)).round().max(1.0) as usize;
        let nodes = (sets * rounds).min((MOST_NODES / sets).max(1) * sets).max(few);
        let graph = if nodes > few { self.graph(algorithm, nodes)? } else { graph };
        self.gpu.replay(&graph, 1)?;
        let us = self.gpu.replay(&graph, replays)?.into_iter().map(|ms| ms * 1e3 / nodes as f64).collect();
        Ok(Times { us, nodes })
    }

    fn graph(&self, algorithm: &Algorithm, nodes: usize) -> Result<Graph, Error> {
        self.gpu.capture(|| {
            self.tensors.iter().cycle().take(nodes).try_for_each(|set| self.product.enqueue(self.gpu, algorithm, set))
        })
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// To a nanosecond.
fn round(us: f64) -> f64 {
    (us * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_needs_no_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn samples_are_dot_products() {
        let p = Problem { m: 3, n: 5, k: 2, dtype: crate::problem::Dtype::F32, bias: true };
        let [x, w, b] = [1, 2, 3].map(|seed| Pool::new(p.dtype, seed, 1.0));
        let samples = sample(&p, &x, &w, &b);
        assert!(samples.iter().all(|(i, _)| *i < 15));
        let last = x.at(4) * w.at(8) + x.at(5) * w.at(9) + b.at(4);
        assert!(samples.iter().any(|(i, v)| *i == 14 && (v - last).abs() < 1e-12));
    }
}
