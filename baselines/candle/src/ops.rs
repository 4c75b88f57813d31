//! The ops, as the models of candle-transformers write them.

use std::{cell::RefCell, collections::HashMap};

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear, attention::AttnMask, ops, rotary_emb::rope_i};
use jitune_peer::{Refusal, Task, Way, layout};

type Outputs = Vec<(&'static str, Tensor)>;

/// One op on one set of tensors.
pub struct Call {
    pub run: Box<dyn Fn() -> Result<Outputs>>,
    /// The outputs that a call writes in place.
    pub kept: Vec<Tensor>,
    /// From Candle's layout of the outputs to that of the task, for whoever reads them.
    pub laid_out: Box<dyn Fn(Outputs) -> Result<Outputs>>,
}

impl Call {
    fn new(run: impl Fn() -> Result<Outputs> + 'static) -> Call {
        Call { run: Box::new(run), kept: Vec::new(), laid_out: Box::new(Ok) }
    }

    fn of(name: &'static str, run: impl Fn() -> Result<Tensor> + 'static) -> Call {
        Call::new(move || Ok(vec![(name, run()?)]))
    }
}

/// Why a way is not ready.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Refusal {
        match trouble {
            Trouble::Refused(refusal) => refusal,
            Trouble::Candle(e) => Refusal::failed(e),
        }
    }
}

/// Makes the calls of a way, one for each set.
pub type Build = fn(&Source) -> std::result::Result<Vec<Call>, Trouble>;

/// The ways to compute a task.
pub fn ways(task: &Task, device: &Device) -> std::result::Result<Vec<(Way, Build)>, Refusal> {
    if task.dtype == "tf32" && device.is_cpu() {
        return Err(Refusal::unsupported("a processor has no tf32"));
    }
    let one = |how: &str, build: Build| Ok(vec![(Way::all("candle", how), build)]);
    match (task.op.as_str(), task.word("epilogue")) {
        ("matmul", "" | "none" | "bias") => one("Linear", linear),
        ("matmul", "residual" | "bias_residual") => one("Linear, +", residual),
        ("matmul", "swiglu" | "bias_swiglu") => one("Linear twice, silu, ×", swiglu),
        ("qkv", _) => {
            let normed = task.has("q_norm");
            let how = if normed { "Linear for Q, K and V, rms_norm, rope_i" } else { "Linear for Q, K and V, rope_i" };
            one(&format!("{how}, slice_set into a contiguous cache"), qkv)
        }
        ("attention", _) => Ok(attention_ways(device, "repeat_kv, matmul, softmax_last_dim, matmul", attention, flash)),
        ("decode", _) => {
            let how = "repeat_kv, matmul, softmax_last_dim, matmul over a contiguous cache";
            Ok(attention_ways(device, how, decode, flash_decode))
        }
        ("rmsnorm", _) => one("rms_norm", rmsnorm),
        ("layernorm", _) => one("layer_norm", layernorm),
        ("silu_mul", _) => one("silu, ×", silu_mul),
        ("gelu", _) => one("gelu_erf", gelu),
        ("rope", _) => one("rope_i", rope),
        ("softmax", _) => one("softmax_last_dim", softmax),
        ("embedding", _) => one("Embedding", embedding),
        ("argmax", _) => one("argmax", argmax),
        (op, epilogue) => Err(Refusal::unsupported(format!("no {op} {epilogue} here"))),
    }
}

/// Candle's flash attention of its own is for the processor; that for GPUs is another crate.
fn attention_ways(device: &Device, how: &str, build: Build, flash: Build) -> Vec<(Way, Build)> {
    let mut ways = vec![(Way::all("candle", how), build)];
    if device.is_cpu() {
        ways.push((Way::all("flash", "candle_nn::attention::flash_attn"), flash));
    }
    ways
}

/// The inputs of a task, copied to the device as often as there are sets.
pub struct Source<'a> {
    pub task: &'a Task,
    device: &'a Device,
    read: RefCell<HashMap<String, Vec<u8>>>,
}

type Got<T> = std::result::Result<T, Trouble>;

impl<'a> Source<'a> {
    pub fn new(task: &'a Task, device: &'a Device) -> Source<'a> {
        Source { task, device, read: RefCell::default() }
    }

    fn sets(&self, make: impl Fn() -> Got<Call>) -> Got<Vec<Call>> {
        (0..self.task.sets.max(1)).map(|_| make()).collect()
    }

    fn dim(&self, name: &str) -> Got<usize> {
        Ok(self.task.dim(name)?)
    }

    /// An input as it is.
    fn tensor(&self, name: &str) -> Got<Tensor> {
        let tensor = self.task.tensor(name)?;
        let mut read = self.read.borrow_mut();
        if !read.contains_key(name) {
            read.insert(name.to_owned(), tensor.load()?);
        }
        let bytes = read.get(name).map_or(&[][..], Vec::as_slice);
        let shape: Vec<usize> = tensor.shape.iter().map(|&d| d as usize).collect();
        Ok(Tensor::from_raw_buffer(bytes, dtype(&tensor.dtype)?, &shape, self.device)?)
    }

    fn optional(&self, name: &str) -> Got<Option<Tensor>> {
        if self.task.has(name) { self.tensor(name).map(Some) } else { Ok(None) }
    }

    /// A tensor of the task's dtype.
    fn upload(&self, bytes: &[u8], shape: &[usize]) -> Got<Tensor> {
        Ok(Tensor::from_raw_buffer(bytes, self.dtype()?, shape, self.device)?)
    }

    fn dtype(&self) -> Result<DType> {
        dtype(&self.task.dtype)
    }

    /// Cosines and sines, [tokens, 1, head_dim / 2].
    fn cos_sin(&self) -> Got<[Tensor; 2]> {
        let half = self.dim("head_dim")? / 2;
        let [cos, sin] = layout::cos_sin(self.task)?;
        let upload = |values: Vec<f32>| Tensor::from_vec(values, ((), 1, half), self.device)?.to_dtype(self.dtype()?);
        Ok([upload(cos)?, upload(sin)?])
    }

    /// 0 where query i sees key j, −∞ elsewhere: [1, 1, queries, keys] or [batch, 1, 1, keys].
    fn mask(&self, shape: [usize; 4], sees: impl Fn(usize, usize, usize) -> bool) -> Got<Tensor> {
        let [batch, _, queries, keys] = shape;
        let mut values = Vec::with_capacity(batch * queries * keys);
        for b in 0..batch {
            for i in 0..queries {
                values.extend((0..keys).map(|j| if sees(b, i, j) { 0.0 } else { f32::NEG_INFINITY }));
            }
        }
        Ok(Tensor::from_vec(values, &shape, self.device)?.to_dtype(self.dtype()?)?)
    }
}

fn dtype(name: &str) -> Result<DType> {
    match name {
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        "f32" | "tf32" => Ok(DType::F32),
        "i32" => Ok(DType::I32),
        _ => candle_core::bail!("no dtype {name} here"),
    }
}

fn linear(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let (x, linear) = (source.tensor("x")?, Linear::new(source.tensor("w")?, source.optional("bias")?));
        Ok(Call::of("y", move || linear.forward(&x)))
    })
}

fn residual(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let (x, linear) = (source.tensor("x")?, Linear::new(source.tensor("w")?, source.optional("bias")?));
        let residual = source.tensor("residual")?;
        Ok(Call::of("y", move || linear.forward(&x)? + &residual))
    })
}

fn swiglu(source: &Source) -> Got<Vec<Call>> {
    let (n, k) = (source.dim("n")?, source.dim("k")?);
    let [gate, up] = layout::halves(source.task.tensor("w")?, k)?;
    let biases = if source.task.has("bias") { Some(layout::halves(source.task.tensor("bias")?, 1)?) } else { None };
    source.sets(|| {
        let x = source.tensor("x")?;
        let half = |w: &[u8], which: usize| {
            let bias = biases.as_ref().map(|b| source.upload(&b[which], &[n / 2])).transpose()?;
            Ok::<_, Trouble>(Linear::new(source.upload(w, &[n / 2, k])?, bias))
        };
        let (gate, up) = (half(&gate, 0)?, half(&up, 1)?);
        Ok(Call::of("y", move || ops::silu(&gate.forward(&x)?)? * up.forward(&x)?))
    })
}

fn qkv(source: &Source) -> Got<Vec<Call>> {
    let (m, d, page, pages) = (source.dim("m")?, source.dim("head_dim")?, source.dim("page")?, source.dim("pages")?);
    let (heads, kv_heads) = (source.dim("heads")?, source.dim("kv_heads")?);
    let tokens = tokens(&layout::indices(source.task, "slots", pages * page)?, pages * page);
    let eps = source.task.real("eps")? as f32;
    source.sets(|| {
        let x = source.tensor("x")?;
        let (w, bias) = (source.tensor("w")?, source.optional("bias")?);
        let part = |first: usize, count: usize| -> Result<Linear> {
            let bias = bias.as_ref().map(|b| b.narrow(0, first * d, count * d)).transpose()?;
            Ok(Linear::new(w.narrow(0, first * d, count * d)?, bias))
        };
        let (q, k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
        let (q_norm, k_norm) = (source.optional("q_norm")?, source.optional("k_norm")?);
        let normed = move |x: Tensor, weight: &Option<Tensor>| match weight {
            Some(weight) => ops::rms_norm(&x, weight, eps),
            None => Ok(x),
        };
        let [cos, sin] = source.cos_sin()?;
        let (cos, sin) = (cos.squeeze(1)?, sin.squeeze(1)?);
        let tokens = Tensor::new(tokens.as_slice(), source.device)?;
        let cache = || Tensor::zeros((1, kv_heads, pages * page, d), source.dtype()?, source.device);
        let (k_cache, v_cache) = (cache()?, cache()?);
        let kept = vec![k_cache.clone(), v_cache.clone()];
        let run = move || {
            let by_head = |x: Tensor| x.reshape((1, m, (), d))?.transpose(1, 2)?.contiguous();
            let (q, k, v) = (by_head(q.forward(&x)?)?, by_head(k.forward(&x)?)?, by_head(v.forward(&x)?)?);
            let (q, k) = (normed(q, &q_norm)?, normed(k, &k_norm)?);
            let (q, k) = (rope_i(&q, &cos, &sin)?, rope_i(&k, &cos, &sin)?);
            k_cache.slice_set(&k, 2, 0)?;
            v_cache.slice_set(&v, 2, 0)?;
            let y = q.transpose(1, 2)?.reshape((m, heads * d))?;
            Ok(vec![("y", y), ("k_cache", k_cache.clone()), ("v_cache", v_cache.clone())])
        };
        let paged = move |(name, output): (&'static str, Tensor)| {
            if name == "y" {
                return Ok((name, output));
            }
            let slots = output.index_select(&tokens, 2)?.reshape((kv_heads, pages, page, d))?;
            Ok((name, slots.transpose(0, 1)?.contiguous()?))
        };
        let laid_out = Box::new(move |outputs: Outputs| outputs.into_iter().map(&paged).collect());
        Ok(Call { kept, laid_out, ..Call::new(run) })
    })
}

/// Where a contiguous cache has what belongs at each slot: the tokens come first, then what no token is written to.
fn tokens(slots: &[u32], capacity: usize) -> Vec<u32> {
    let mut tokens = vec![None; capacity];
    for (token, &slot) in (0..).zip(slots) {
        tokens[slot as usize] = Some(token);
    }
    let mut unwritten = slots.len() as u32..;
    tokens.into_iter().map(|token| token.or_else(|| unwritten.next()).unwrap_or_default()).collect()
}

fn repeat_kv(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.clone());
    }
    let (batch, kv_heads, tokens, d) = x.dims4()?;
    Tensor::cat(&vec![x; times], 2)?.reshape((batch, kv_heads * times, tokens, d))
}

/// q [batch, heads, queries, head_dim], k and v [batch, kv_heads, keys, head_dim] → like q.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let times = q.dim(1)? / k.dim(1)?;
    let (k, v) = (repeat_kv(k, times)?, repeat_kv(v, times)?);
    let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
    let scores = (q.matmul(&k.transpose(2, 3)?)? * scale)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    ops::softmax_last_dim(&scores)?.matmul(&v)
}

fn attention(source: &Source) -> Got<Vec<Call>> {
    let (q, kv) = (source.dim("q")?, source.dim("kv")?);
    let causal = source.dim("causal")? == 1;
    let mask = if causal { Some(source.mask([1, 1, q, kv], |_, i, j| j + q <= i + kv)?) } else { None };
    source.sets(|| {
        let (q, k, v, mask) = (source.tensor("q")?, source.tensor("k")?, source.tensor("v")?, mask.clone());
        Ok(Call::of("o", move || {
            let q = q.transpose(1, 2)?.contiguous()?;
            attend(&q, &k, &v, mask.as_ref())?.transpose(1, 2)?.contiguous()
        }))
    })
}

fn decode(source: &Source) -> Got<Vec<Call>> {
    let (batch, context) = (source.dim("batch")?, source.dim("context")?);
    let (heads, d) = (source.dim("heads")?, source.dim("head_dim")?);
    let lens = layout::lens(source.task)?;
    let full = lens.iter().all(|&l| l as usize == context);
    let mask = if full { None } else { Some(source.mask([batch, 1, 1, context], |b, _, j| j < lens[b] as usize)?) };
    let (k, v) = (layout::gathered(source.task, "k_cache")?, layout::gathered(source.task, "v_cache")?);
    let shape = [batch, source.dim("kv_heads")?, context, d];
    source.sets(|| {
        let (q, mask) = (source.tensor("q")?.reshape((batch, heads, 1, d))?, mask.clone());
        let (k, v) = (source.upload(&k, &shape)?, source.upload(&v, &shape)?);
        Ok(Call::of("o", move || attend(&q, &k, &v, mask.as_ref())?.reshape((batch, heads, d))))
    })
}

/// Candle's flash attention for processors, whose caches are [batch, tokens, kv_heads, head_dim].
fn flash(source: &Source) -> Got<Vec<Call>> {
    let (queries, keys) = (source.dim("q")?, source.dim("kv")?);
    let causal = source.dim("causal")? == 1;
    if causal && keys < queries {
        return Err(Refusal::unsupported("flash_attn takes no more queries than keys").into());
    }
    let mask = || if causal { AttnMask::causal_with_offset(keys - queries) } else { AttnMask::None };
    source.sets(|| flash_call(source.tensor("q")?, source.tensor("k")?, source.tensor("v")?, mask()))
}

fn flash_decode(source: &Source) -> Got<Vec<Call>> {
    let context = source.dim("context")?;
    if layout::lens(source.task)?.iter().any(|&l| l as usize != context) {
        return Err(Refusal::unsupported("flash_attn takes one length for all sequences").into());
    }
    let (k, v) = (layout::gathered(source.task, "k_cache")?, layout::gathered(source.task, "v_cache")?);
    let shape = [source.dim("batch")?, source.dim("kv_heads")?, context, source.dim("head_dim")?];
    source.sets(|| {
        let (k, v) = (source.upload(&k, &shape)?, source.upload(&v, &shape)?);
        flash_call(source.tensor("q")?.unsqueeze(1)?, k, v, AttnMask::causal_with_offset(context.saturating_sub(1)))
    })
}

fn flash_call(q: Tensor, k: Tensor, v: Tensor, mask: AttnMask) -> Got<Call> {
    if q.dtype() != DType::F32 {
        return Err(Refusal::unsupported("flash_attn is called in f32 alone").into());
    }
    let (k, v) = (k.transpose(1, 2)?.contiguous()?, v.transpose(1, 2)?.contiguous()?);
    let scale = 1.0 / (q.dim(D::Minus1)? as f32).sqrt();
    Ok(Call::of("o", move || {
        candle_nn::attention::flash_attn::<f32>(&q, &k, &v, scale, mask.clone(), None, None)?
            .transpose(1, 2)?
            .contiguous()
    }))
}

fn rmsnorm(source: &Source) -> Got<Vec<Call>> {
    let eps = source.task.real("eps")? as f32;
    source.sets(|| {
        let (x, weight, residual) = (source.tensor("x")?, source.tensor("weight")?, source.optional("residual")?);
        Ok(norm(x, residual, move |x| ops::rms_norm(x, &weight, eps)))
    })
}

fn layernorm(source: &Source) -> Got<Vec<Call>> {
    let eps = source.task.real("eps")? as f32;
    source.sets(|| {
        let (x, residual) = (source.tensor("x")?, source.optional("residual")?);
        let (weight, bias) = (source.tensor("weight")?, source.tensor("bias")?);
        Ok(norm(x, residual, move |x| ops::layer_norm(x, &weight, &bias, eps)))
    })
}

fn norm(x: Tensor, residual: Option<Tensor>, norm: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Call {
    Call::new(move || match &residual {
        None => Ok(vec![("y", norm(&x)?)]),
        Some(residual) => {
            let h = (&x + residual)?;
            Ok(vec![("y", norm(&h)?), ("h", h)])
        }
    })
}

fn silu_mul(source: &Source) -> Got<Vec<Call>> {
    let (rows, cols) = (source.dim("rows")?, source.dim("cols")?);
    let [gate, up] = layout::halves(source.task.tensor("x")?, 1)?;
    source.sets(|| {
        let (gate, up) = (source.upload(&gate, &[rows, cols])?, source.upload(&up, &[rows, cols])?);
        Ok(Call::of("y", move || ops::silu(&gate)? * &up))
    })
}

fn gelu(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let x = source.tensor("x")?;
        Ok(Call::of("y", move || x.gelu_erf()))
    })
}

fn rope(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let (x, [cos, sin]) = (source.tensor("x")?, source.cos_sin()?);
        // One token a sequence, so that each has a position of its own.
        let x = x.unsqueeze(2)?;
        Ok(Call::of("y", move || rope_i(&x, &cos, &sin)))
    })
}

fn softmax(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let x = source.tensor("x")?;
        Ok(Call::of("y", move || ops::softmax_last_dim(&x)))
    })
}

fn embedding(source: &Source) -> Got<Vec<Call>> {
    let (vocab, hidden) = (source.dim("vocab")?, source.dim("hidden")?);
    let ids = layout::indices(source.task, "ids", vocab)?;
    source.sets(|| {
        let ids = Tensor::new(ids.as_slice(), source.device)?;
        let embedding = Embedding::new(source.tensor("table")?, hidden);
        Ok(Call::of("y", move || embedding.forward(&ids)))
    })
}

fn argmax(source: &Source) -> Got<Vec<Call>> {
    source.sets(|| {
        let x = source.tensor("x")?;
        Ok(Call::of("y", move || x.argmax(D::Minus1)))
    })
}
