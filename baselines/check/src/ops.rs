//! Inputs of the ops, and what they give, computed the plainest way.

use std::io;

use crate::Case;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Uniform in ±√3: of variance 1.
    fn values(&mut self, count: usize) -> Vec<f64> {
        let mut unit = || (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (0..count).map(|_| (unit() * 2.0 - 1.0) * 3f64.sqrt()).collect()
    }
}

impl Case {
    /// The task's tensors with their files, and what is expected.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        let random = &mut Random(7);
        match self.task.op.as_str() {
            "matmul" | "qkv" => self.matmul(random),
            "attention" => self.attention(random),
            "decode" => self.decode(random),
            "rmsnorm" | "layernorm" => self.norm(random),
            "silu_mul" => {
                let (rows, cols) = (self.dim("rows"), self.dim("cols"));
                let x = self.random("x", &[rows, 2 * cols], random)?;
                let y = x.chunks_exact(2).map(|p| silu(p[0]) * p[1]).collect();
                self.give("y", &[rows, cols], y);
                Ok(())
            }
            "gelu" => self.rowwise(random, |row| row.iter().map(|&v| 0.5 * v * (1.0 + erf(v / 2f64.sqrt()))).collect()),
            "softmax" => self.rowwise(random, softmax),
            "argmax" => {
                let (rows, cols) = (self.dim("rows"), self.dim("cols"));
                let x = self.random("x", &[rows, cols], random)?;
                let largest =
                    |row: &[f64]| row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best });
                let y = x.chunks_exact(cols).map(|row| largest(row) as f64).collect();
                self.output("y", "i32", &[rows], y);
                Ok(())
            }
            "embedding" => {
                let (tokens, vocab, hidden) = (self.dim("tokens"), self.dim("vocab"), self.dim("hidden"));
                let ids = self.indices("ids", tokens, vocab, random)?;
                let table = self.random("table", &[vocab, hidden], random)?;
                let y = ids.iter().flat_map(|&i| table[i * hidden..(i + 1) * hidden].to_vec()).collect();
                self.give("y", &[tokens, hidden], y);
                Ok(())
            }
            "rope" => {
                let (tokens, heads, d) = (self.dim("tokens"), self.dim("heads"), self.dim("head_dim"));
                let x = self.random("x", &[tokens, heads, d], random)?;
                let cos_sin = self.positions(tokens, random)?;
                let y =
                    x.chunks_exact(d).enumerate().flat_map(|(at, head)| rotate(head, &cos_sin[at / heads])).collect();
                self.give("y", &[tokens, heads, d], y);
                Ok(())
            }
            op => Err(io::Error::other(format!("no op {op}"))),
        }
    }

    fn random(&mut self, name: &str, shape: &[usize], random: &mut Random) -> io::Result<Vec<f64>> {
        let values = random.values(shape.iter().product());
        let dtype = self.task.dtype.clone();
        self.input(name, &dtype, shape, values)
    }

    fn give(&mut self, name: &str, shape: &[usize], expected: Vec<f64>) {
        let dtype = self.task.dtype.clone();
        self.output(name, &dtype, shape, expected);
    }

    fn indices(&mut self, name: &str, count: usize, below: usize, random: &mut Random) -> io::Result<Vec<usize>> {
        let indices: Vec<usize> = (0..count).map(|_| random.below(below)).collect();
        self.integers(name, &[count], &indices)?;
        Ok(indices)
    }

    fn integers(&mut self, name: &str, shape: &[usize], values: &[usize]) -> io::Result<()> {
        self.input(name, "i32", shape, values.iter().map(|&v| v as f64).collect()).map(drop)
    }

    /// Adds `positions` and `cos_sin`, and gives each token's cosines and sines.
    fn positions(&mut self, tokens: usize, random: &mut Random) -> io::Result<Vec<Vec<[f64; 2]>>> {
        let (max_pos, half) = (self.dim("max_pos"), self.dim("head_dim") / 2);
        let positions = self.indices("positions", tokens, max_pos, random)?;
        let angle = |p: usize, j: usize| p as f64 * 10_000f64.powf(-(j as f64) / half as f64);
        let pairs = (0..max_pos).flat_map(|p| (0..half).flat_map(move |j| [angle(p, j).cos(), angle(p, j).sin()]));
        let table = self.input("cos_sin", "f32", &[max_pos, half, 2], pairs.collect())?;
        let of = |p: usize| table[p * half * 2..(p + 1) * half * 2].chunks_exact(2).map(|c| [c[0], c[1]]).collect();
        Ok(positions.into_iter().map(of).collect())
    }

    fn rowwise(&mut self, random: &mut Random, row: impl Fn(&[f64]) -> Vec<f64>) -> io::Result<()> {
        let (rows, cols) = (self.dim("rows"), self.dim("cols"));
        let x = self.random("x", &[rows, cols], random)?;
        self.give("y", &[rows, cols], x.chunks_exact(cols).flat_map(row).collect());
        Ok(())
    }

    fn matmul(&mut self, random: &mut Random) -> io::Result<()> {
        let (m, n, k) = (self.dim("m"), self.dim("n"), self.dim("k"));
        let epilogue = self.epilogue().to_owned();
        let x = self.random("x", &[m, k], random)?;
        let small = random.values(n * k).into_iter().map(|v| v / (k as f64).sqrt()).collect();
        let dtype = self.task.dtype.clone();
        let w = self.input("w", &dtype, &[n, k], small)?;
        let product = |i: usize, j: usize| (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum::<f64>();
        let mut y: Vec<f64> = (0..m * n).map(|at| product(at / n, at % n)).collect();
        if epilogue.starts_with("bias") || self.dim("bias") == 1 {
            let bias = self.random("bias", &[n], random)?;
            y.iter_mut().enumerate().for_each(|(at, v)| *v += bias[at % n]);
        }
        match epilogue.as_str() {
            _ if self.task.op == "qkv" => self.qkv(y, random)?,
            "residual" | "bias_residual" => {
                let residual = self.random("residual", &[m, n], random)?;
                y.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
                self.give("y", &[m, n], y);
            }
            "swiglu" | "bias_swiglu" => {
                let y = y.chunks_exact(2).map(|p| silu(p[0]) * p[1]).collect();
                self.give("y", &[m, n / 2], y);
            }
            _ => self.give("y", &[m, n], y),
        }
        Ok(())
    }

    /// From the product of all heads: norms and rotations of Q and K, then the caches.
    fn qkv(&mut self, mut y: Vec<f64>, random: &mut Random) -> io::Result<()> {
        let (m, n, d) = (self.dim("m"), self.dim("n"), self.dim("head_dim"));
        let (heads, kv_heads) = (self.dim("heads"), self.dim("kv_heads"));
        let (page, pages) = (self.dim("page"), self.dim("pages"));
        if self.dim("qk_norm") == 1 {
            let (q_norm, k_norm) = (self.random("q_norm", &[d], random)?, self.random("k_norm", &[d], random)?);
            let eps = self.task.reals.get("eps").copied().unwrap_or_default();
            for (at, head) in y.chunks_exact_mut(d).enumerate() {
                let weight = match at % (n / d) {
                    h if h < heads => &q_norm,
                    h if h < heads + kv_heads => &k_norm,
                    _ => continue,
                };
                let scale = 1.0 / (head.iter().map(|v| v * v).sum::<f64>() / d as f64 + eps).sqrt();
                head.iter_mut().zip(weight).for_each(|(v, w)| *v *= scale * w);
            }
        }
        let cos_sin = self.positions(m, random)?;
        // Distinct, as slots of a cache are.
        let first = random.below((page * pages).saturating_sub(m * 3));
        let slots: Vec<usize> = (0..m).map(|i| first + (m - 1 - i) * 3).collect();
        self.integers("slots", &[m], &slots)?;
        let head = |i: usize, h: usize| &y[i * n + h * d..i * n + (h + 1) * d];
        let q = (0..m * heads).flat_map(|at| rotate(head(at / heads, at % heads), &cos_sin[at / heads]));
        let q = q.collect();
        let mut k_cache = vec![f64::NAN; pages * kv_heads * page * d];
        let mut v_cache = k_cache.clone();
        for (i, slot) in slots.iter().enumerate() {
            for h in 0..kv_heads {
                let at = ((slot / page * kv_heads + h) * page + slot % page) * d;
                k_cache[at..at + d].copy_from_slice(&rotate(head(i, heads + h), &cos_sin[i]));
                v_cache[at..at + d].copy_from_slice(head(i, heads + kv_heads + h));
            }
        }
        self.give("y", &[m, heads * d], q);
        self.give("k_cache", &[pages, kv_heads, page, d], k_cache);
        self.give("v_cache", &[pages, kv_heads, page, d], v_cache);
        Ok(())
    }

    fn norm(&mut self, random: &mut Random) -> io::Result<()> {
        let (rows, cols) = (self.dim("rows"), self.dim("cols"));
        let mut x = self.random("x", &[rows, cols], random)?;
        if self.dim("residual") == 1 {
            let residual = self.random("residual", &[rows, cols], random)?;
            x.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
        }
        let weight = self.random("weight", &[cols], random)?;
        let centred = self.task.op == "layernorm";
        let eps = self.task.reals.get("eps").copied().unwrap_or_default();
        let bias = if centred { self.random("bias", &[cols], random)? } else { vec![0.0; cols] };
        let normed = |row: &[f64]| -> Vec<f64> {
            let mean = if centred { row.iter().sum::<f64>() / cols as f64 } else { 0.0 };
            let square = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / cols as f64;
            let scale = 1.0 / (square + eps).sqrt();
            row.iter().enumerate().map(|(j, v)| (v - mean) * scale * weight[j] + bias[j]).collect()
        };
        self.give("y", &[rows, cols], x.chunks_exact(cols).flat_map(normed).collect());
        if self.dim("residual") == 1 {
            self.give("h", &[rows, cols], x);
        }
        Ok(())
    }

    fn attention(&mut self, random: &mut Random) -> io::Result<()> {
        let (batch, queries, keys) = (self.dim("batch"), self.dim("q"), self.dim("kv"));
        let (heads, kv_heads, d) = (self.dim("heads"), self.dim("kv_heads"), self.dim("head_dim"));
        let q = self.random("q", &[batch, queries, heads, d], random)?;
        let k = self.random("k", &[batch, kv_heads, keys, d], random)?;
        let v = self.random("v", &[batch, kv_heads, keys, d], random)?;
        let causal = self.dim("causal") == 1;
        let mut o = Vec::with_capacity(q.len());
        for b in 0..batch {
            for i in 0..queries {
                let seen = if causal { (i + keys + 1).saturating_sub(queries) } else { keys };
                for h in 0..heads {
                    let at = ((b * queries + i) * heads + h) * d;
                    let first = (b * kv_heads + h / (heads / kv_heads)) * keys;
                    let row = |j: usize| (first + j) * d..(first + j + 1) * d;
                    o.extend(attend(&q[at..at + d], seen, |j| &k[row(j)], |j| &v[row(j)]));
                }
            }
        }
        self.give("o", &[batch, queries, heads, d], o);
        Ok(())
    }

    fn decode(&mut self, random: &mut Random) -> io::Result<()> {
        let (batch, context, page) = (self.dim("batch"), self.dim("context"), self.dim("page"));
        let (heads, kv_heads, d) = (self.dim("heads"), self.dim("kv_heads"), self.dim("head_dim"));
        let most = context.div_ceil(page);
        let pages = batch * most;
        let q = self.random("q", &[batch, heads, d], random)?;
        let k = self.random("k_cache", &[pages, kv_heads, page, d], random)?;
        let v = self.random("v_cache", &[pages, kv_heads, page, d], random)?;
        // Pages in reverse, so that a cache that is not gathered gives something else.
        let table: Vec<usize> = (0..pages).rev().collect();
        self.integers("block_table", &[batch, most], &table)?;
        let mixed = self.task.word("lens") == "mixed";
        let lens: Vec<usize> = (0..batch).map(|b| if mixed { 1 + (b * 7 + 3) % context } else { context }).collect();
        self.integers("lens", &[batch], &lens)?;
        let mut o = Vec::with_capacity(q.len());
        for (b, &len) in lens.iter().enumerate() {
            for h in 0..heads {
                let row = |t: usize| {
                    let block = table[b * most + t / page] * kv_heads + h / (heads / kv_heads);
                    let at = (block * page + t % page) * d;
                    at..at + d
                };
                let at = (b * heads + h) * d;
                o.extend(attend(&q[at..at + d], len, |t| &k[row(t)], |t| &v[row(t)]));
            }
        }
        self.give("o", &[batch, heads, d], o);
        Ok(())
    }
}

fn attend<'a>(q: &[f64], keys: usize, k: impl Fn(usize) -> &'a [f64], v: impl Fn(usize) -> &'a [f64]) -> Vec<f64> {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let dot = |j: usize| q.iter().zip(k(j)).map(|(a, b)| a * b).sum::<f64>() * scale;
    let shares = softmax(&(0..keys).map(dot).collect::<Vec<_>>());
    (0..q.len()).map(|c| (0..keys).map(|j| shares[j] * v(j)[c]).sum()).collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
    row.iter().map(|v| (v - most).exp() / sum).collect()
}

fn rotate(head: &[f64], cos_sin: &[[f64; 2]]) -> Vec<f64> {
    let pairs = head.chunks_exact(2).zip(cos_sin);
    pairs.flat_map(|(x, [cos, sin])| [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos]).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// By Simpson's rule.
fn erf(x: f64) -> f64 {
    const STEPS: usize = 2000;
    let h = x / STEPS as f64;
    let weight = |i: usize| {
        if i == 0 || i == STEPS {
            1.0
        } else if i % 2 == 1 {
            4.0
        } else {
            2.0
        }
    };
    let sum: f64 = (0..=STEPS).map(|i| weight(i) * (-(i as f64 * h).powi(2)).exp()).sum();
    sum * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert!((erf(1.0) - 0.842_700_792_949_714_9).abs() < 1e-10 && erf(-9.0) + 1.0 < 1e-10);
        assert!((softmax(&[0.0, 2f64.ln()])[1] - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(rotate(&[1.0, 2.0], &[[0.0, 1.0]]), [-2.0, 1.0]);
    }

    #[test]
    fn one_key_is_its_value() {
        let case = Case::new("attention batch=1 q=2 kv=2 heads=2 kv_heads=1 head_dim=4 causal=1").unwrap();
        let v = case.task.tensor("v").unwrap().values().unwrap();
        let o = &case.expected[0].1;
        assert!((0..4).all(|c| (o[c] - f64::from(v[c])).abs() < 1e-12 && (o[4 + c] - o[c]).abs() < 1e-12));
    }

    #[test]
    fn files_hold_what_the_tensors_say() {
        let case = Case::new("qkv m=2 k=4 dtype=bf16 heads=2 kv_heads=1 head_dim=2 page=4 pages=3 max_pos=9");
        let case = case.unwrap();
        for tensor in case.task.tensors.iter().filter(|t| !t.is_out()) {
            assert_eq!(tensor.load().unwrap().len(), tensor.bytes(), "{}", tensor.name);
        }
        assert_eq!(case.expected.len(), 3);
        assert_eq!(case.expected[1].1.iter().filter(|v| v.is_finite()).count(), 4);
    }
}
