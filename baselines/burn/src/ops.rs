//! The ops, as a user of Burn writes them.

use burn::{
    module::Param,
    nn::{LayerNorm, LayerNormConfig, RmsNorm, RmsNormConfig},
    tensor::{
        Bool, DType, Int, Tensor, TensorData,
        activation::{gelu, silu, softmax},
        backend::Backend,
        module::{attention as attend, embedding as embed, linear},
        ops::AttentionModuleOptions,
    },
};
use jitune_peer::{Refusal, Task, layout};

const PRODUCT_AND_ROPE: &str = "all but the cache write";

/// One call: its outputs under their names.
pub type Call<B> = Box<dyn Fn() -> Vec<(&'static str, Output<B>)>>;

/// A flat output.
pub enum Output<B: Backend> {
    Float(Tensor<B, 1>),
    Int(Tensor<B, 1, Int>),
}

impl<B: Backend> Output<B> {
    pub fn elements(&self) -> usize {
        match self {
            Output::Float(values) => values.dims()[0],
            Output::Int(values) => values.dims()[0],
        }
    }
}

fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Output<B> {
    Output::Float(tensor.flatten(0, D - 1))
}

/// Makes the calls of an op, one for each set.
pub type Build<B> = fn(&Source<B>) -> Result<Vec<Call<B>>, Refusal>;

/// What is called, what of the task it computes, and the op.
pub fn op<B: Backend>(task: &Task) -> Result<(&'static str, &'static str, Build<B>), Refusal> {
    let all = |how, build: Build<B>| Ok((how, "all", build));
    match (task.op.as_str(), task.word("epilogue")) {
        ("matmul", "" | "none" | "bias") => all("linear", product),
        ("matmul", "residual" | "bias_residual") => all("linear, +", residual),
        ("matmul", "swiglu" | "bias_swiglu") => all("linear twice, silu, ×", swiglu),
        ("qkv", _) if task.has("q_norm") => Ok(("linear for Q, K and V, RmsNorm, rotations", PRODUCT_AND_ROPE, qkv)),
        ("qkv", _) => Ok(("linear for Q, K and V, rotations", PRODUCT_AND_ROPE, qkv)),
        ("attention", _) => all("keys and values repeated, attention", attention),
        ("decode", _) => all("keys and values of a contiguous cache repeated, attention", decode),
        ("rmsnorm", _) => all("RmsNorm", rmsnorm),
        ("layernorm", _) => all("LayerNorm", layernorm),
        ("silu_mul", _) => all("silu, ×", silu_mul),
        ("gelu", _) => all("gelu", gelus),
        ("rope", _) => all("rotations by tensor operations", rope),
        ("softmax", _) => all("softmax", softmaxes),
        ("embedding", _) => all("embedding", embedding),
        ("argmax", _) => all("argmax", argmax),
        (op, epilogue) => Err(Refusal::unsupported(format!("no {op} {epilogue} here"))),
    }
}

/// The inputs of a task, copied to the device as often as there are sets.
pub struct Source<'a, B: Backend> {
    task: &'a Task,
    device: &'a B::Device,
}

impl<'a, B: Backend> Source<'a, B> {
    pub fn new(task: &'a Task, device: &'a B::Device) -> Source<'a, B> {
        Source { task, device }
    }

    fn sets(&self, make: impl Fn() -> Result<Call<B>, Refusal>) -> Result<Vec<Call<B>>, Refusal> {
        (0..self.task.sets.max(1)).map(|_| make()).collect()
    }

    fn dim(&self, name: &str) -> Result<usize, Refusal> {
        self.task.dim(name)
    }

    fn dtype(&self) -> Result<DType, Refusal> {
        match self.task.dtype.as_str() {
            "bf16" => Ok(DType::BF16),
            "f16" => Ok(DType::F16),
            "f32" | "tf32" => Ok(DType::F32),
            other => Err(Refusal::unsupported(format!("no {other} here"))),
        }
    }

    /// A tensor of the task's dtype.
    fn upload<const D: usize>(&self, bytes: &[u8], shape: [usize; D]) -> Result<Tensor<B, D>, Refusal> {
        let dtype = self.dtype()?;
        let data = TensorData::from_bytes_vec(bytes.to_vec(), shape, dtype);
        Ok(Tensor::from_data(data, (self.device, dtype)))
    }

    /// An input as it is.
    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<B, D>, Refusal> {
        let tensor = self.task.tensor(name)?;
        let shape: Vec<usize> = tensor.shape.iter().map(|&d| d as usize).collect();
        let shape = <[usize; D]>::try_from(shape);
        let shape = shape.map_err(|s| Refusal::failed(format!("{name} has the shape {s:?}, of not {D} dimensions")))?;
        self.upload(&tensor.load()?, shape)
    }

    fn optional<const D: usize>(&self, name: &str) -> Result<Option<Tensor<B, D>>, Refusal> {
        if self.task.has(name) { self.tensor(name).map(Some) } else { Ok(None) }
    }

    /// RMSNorm over `width` with the weight of that name, where the task has it.
    fn rms_norm(&self, weight: &str, width: usize) -> Result<Option<RmsNorm<B>>, Refusal> {
        let Some(weight) = self.optional::<1>(weight)? else { return Ok(None) };
        let mut norm: RmsNorm<B> = RmsNormConfig::new(width).with_epsilon(self.task.real("eps")?).init(self.device);
        norm.gamma = Param::from_tensor(weight);
        Ok(Some(norm))
    }

    fn integers(&self, values: &[u32]) -> Tensor<B, 2, Int> {
        let values: Vec<i32> = values.iter().map(|&v| v as i32).collect();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [1, count]), self.device)
    }

    /// Weights as Burn keeps them, [k, n].
    fn weight(&self, bytes: &[u8], n: usize) -> Result<Tensor<B, 2>, Refusal> {
        let k = self.dim("k")?;
        let element = self.task.tensor("w")?.element_bytes();
        let mut turned = vec![0; bytes.len()];
        for (at, out) in turned.chunks_exact_mut(element).enumerate() {
            let from = (at % n * k + at / n) * element;
            out.copy_from_slice(&bytes[from..from + element]);
        }
        self.upload(&turned, [k, n])
    }

    /// Cosines and sines, [tokens, 1, head_dim / 2, 1].
    fn cos_sin(&self) -> Result<[Tensor<B, 4>; 2], Refusal> {
        let half = self.dim("head_dim")? / 2;
        let dtype = self.dtype()?;
        Ok(layout::cos_sin(self.task)?.map(|values| {
            let tokens = values.len() / half.max(1);
            Tensor::from_data(TensorData::new(values, [tokens, 1, half, 1]), (self.device, dtype))
        }))
    }
}

fn product<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let w = source.task.tensor("w")?.load()?;
    source.sets(|| {
        let (x, w) = (source.tensor::<2>("x")?, source.weight(&w, source.dim("n")?)?);
        let bias = source.optional::<1>("bias")?;
        Ok(Box::new(move || vec![("y", flat(linear(x.clone(), w.clone(), bias.clone())))]))
    })
}

fn residual<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let w = source.task.tensor("w")?.load()?;
    source.sets(|| {
        let (x, w) = (source.tensor::<2>("x")?, source.weight(&w, source.dim("n")?)?);
        let (residual, bias) = (source.tensor::<2>("residual")?, source.optional::<1>("bias")?);
        Ok(Box::new(move || vec![("y", flat(linear(x.clone(), w.clone(), bias.clone()) + residual.clone()))]))
    })
}

fn swiglu<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let (n, k) = (source.dim("n")?, source.dim("k")?);
    let [gate, up] = layout::halves(source.task.tensor("w")?, k)?;
    let biases = if source.task.has("bias") { Some(layout::halves(source.task.tensor("bias")?, 1)?) } else { None };
    source.sets(|| {
        let x = source.tensor::<2>("x")?;
        let (gate, up) = (source.weight(&gate, n / 2)?, source.weight(&up, n / 2)?);
        let bias = |which: usize| biases.as_ref().map(|b| source.upload::<1>(&b[which], [n / 2])).transpose();
        let (gate_bias, up_bias) = (bias(0)?, bias(1)?);
        Ok(Box::new(move || {
            let gate = silu(linear(x.clone(), gate.clone(), gate_bias.clone()));
            vec![("y", flat(gate * linear(x.clone(), up.clone(), up_bias.clone())))]
        }))
    })
}

/// x [tokens, heads, head_dim], each pair of a head rotated by the token's angles.
fn rotate<B: Backend>(x: Tensor<B, 3>, cos: &Tensor<B, 4>, sin: &Tensor<B, 4>) -> Tensor<B, 3> {
    let [tokens, heads, d] = x.dims();
    let pairs = x.reshape([tokens, heads, d / 2, 2]);
    let (a, b) = (pairs.clone().slice_dim(3, 0..1), pairs.slice_dim(3, 1..2));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = a * sin.clone() + b * cos.clone();
    Tensor::cat(vec![first, second], 3).reshape([tokens, heads, d])
}

fn qkv<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let (m, k, d) = (source.dim("m")?, source.dim("k")?, source.dim("head_dim")?);
    let (heads, kv_heads) = (source.dim("heads")?, source.dim("kv_heads")?);
    let w = source.task.tensor("w")?;
    let (bytes, row) = (w.load()?, k * w.element_bytes());
    source.sets(|| {
        let x = source.tensor::<2>("x")?;
        let bias = source.optional::<1>("bias")?;
        let part = |first: usize, count: usize| {
            let (from, to) = (first * d, (first + count) * d);
            let bias = bias.clone().map(|b| b.slice_dim(0, from..to));
            let rows = bytes.get(from * row..to * row).ok_or_else(|| Refusal::failed("w has too few rows"))?;
            Ok::<_, Refusal>((source.weight(rows, count * d)?, bias))
        };
        let (q, k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
        let (q_norm, k_norm) = (source.rms_norm("q_norm", d)?, source.rms_norm("k_norm", d)?);
        let [cos, sin] = source.cos_sin()?;
        Ok(Box::new(move || {
            let project =
                |part: &(Tensor<B, 2>, Option<Tensor<B, 1>>)| linear(x.clone(), part.0.clone(), part.1.clone());
            let [q_heads, k_heads] = [(&q, heads, &q_norm), (&k, kv_heads, &k_norm)].map(|(part, heads, norm)| {
                let x = project(part).reshape([m, heads, d]);
                norm.as_ref().map_or(x.clone(), |norm| norm.forward(x))
            });
            let (q, k) = (rotate(q_heads, &cos, &sin), rotate(k_heads, &cos, &sin));
            vec![("y", flat(q)), ("k", flat(k)), ("v", flat(project(&v)))]
        }))
    })
}

/// [batch, kv_heads, tokens, head_dim] with each head repeated for the query heads that read it.
fn repeat<B: Backend>(x: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    if times == 1 {
        return x;
    }
    let [batch, kv_heads, tokens, d] = x.dims();
    let repeated = x.unsqueeze_dim::<5>(2).expand([batch, kv_heads, times, tokens, d]);
    repeated.reshape([batch, kv_heads * times, tokens, d])
}

fn attention<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let times = source.dim("heads")? / source.dim("kv_heads")?.max(1);
    let options = AttentionModuleOptions { is_causal: source.dim("causal")? == 1, ..Default::default() };
    source.sets(|| {
        let (q, k, v) = (source.tensor::<4>("q")?, source.tensor::<4>("k")?, source.tensor::<4>("v")?);
        Ok(Box::new(move || {
            let (k, v) = (repeat(k.clone(), times), repeat(v.clone(), times));
            let o = attend(q.clone().swap_dims(1, 2), k, v, None, None, options);
            vec![("o", flat(o.swap_dims(1, 2)))]
        }))
    })
}

fn decode<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let (batch, context, d) = (source.dim("batch")?, source.dim("context")?, source.dim("head_dim")?);
    let (heads, kv_heads) = (source.dim("heads")?, source.dim("kv_heads")?);
    let lens = layout::lens(source.task)?;
    let (k, v) = (layout::gathered(source.task, "k_cache")?, layout::gathered(source.task, "v_cache")?);
    // True where there is no token.
    let beyond = lens.iter().flat_map(|&len| (0..context).map(move |token| token >= len as usize));
    let beyond: Vec<bool> = beyond.collect();
    let mask = beyond.contains(&true).then(|| {
        let data = TensorData::new(beyond, [batch, 1, 1, context]);
        Tensor::<B, 4, Bool>::from_data(data, source.device).expand([batch, heads, 1, context])
    });
    source.sets(|| {
        let q = source.tensor::<3>("q")?.unsqueeze_dim::<4>(2);
        let shape = [batch, kv_heads, context, d];
        let (k, v, mask) = (source.upload(&k, shape)?, source.upload(&v, shape)?, mask.clone());
        let times = heads / kv_heads.max(1);
        Ok(Box::new(move || {
            let (k, v) = (repeat(k.clone(), times), repeat(v.clone(), times));
            vec![("o", flat(attend(q.clone(), k, v, mask.clone(), None, Default::default())))]
        }))
    })
}

fn rmsnorm<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    source.sets(|| {
        let norm = source.rms_norm("weight", source.dim("cols")?)?;
        let norm = norm.ok_or_else(|| Refusal::failed("the task has no weight"))?;
        Ok(normed(source.tensor("x")?, source.optional("residual")?, move |x| norm.forward(x)))
    })
}

fn layernorm<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    source.sets(|| {
        let mut norm: LayerNorm<B> =
            LayerNormConfig::new(source.dim("cols")?).with_epsilon(source.task.real("eps")?).init(source.device);
        norm.gamma = Param::from_tensor(source.tensor("weight")?);
        norm.beta = Some(Param::from_tensor(source.tensor("bias")?));
        Ok(normed(source.tensor("x")?, source.optional("residual")?, move |x| norm.forward(x)))
    })
}

fn normed<B: Backend>(
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    norm: impl Fn(Tensor<B, 2>) -> Tensor<B, 2> + 'static,
) -> Call<B> {
    Box::new(move || match residual.clone() {
        None => vec![("y", flat(norm(x.clone())))],
        Some(residual) => {
            let h = x.clone() + residual;
            vec![("y", flat(norm(h.clone()))), ("h", flat(h))]
        }
    })
}

fn silu_mul<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let shape = [source.dim("rows")?, source.dim("cols")?];
    let [gate, up] = layout::halves(source.task.tensor("x")?, 1)?;
    source.sets(|| {
        let (gate, up) = (source.upload(&gate, shape)?, source.upload(&up, shape)?);
        Ok(Box::new(move || vec![("y", flat(silu(gate.clone()) * up.clone()))]))
    })
}

fn rowwise<B: Backend>(source: &Source<B>, op: fn(Tensor<B, 2>) -> Tensor<B, 2>) -> Result<Vec<Call<B>>, Refusal> {
    source.sets(|| {
        let x = source.tensor::<2>("x")?;
        Ok(Box::new(move || vec![("y", flat(op(x.clone())))]))
    })
}

fn gelus<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    rowwise(source, gelu)
}

fn softmaxes<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    rowwise(source, |x| softmax(x, 1))
}

fn rope<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    source.sets(|| {
        let (x, [cos, sin]) = (source.tensor::<3>("x")?, source.cos_sin()?);
        Ok(Box::new(move || vec![("y", flat(rotate(x.clone(), &cos, &sin)))]))
    })
}

fn embedding<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    let ids = layout::indices(source.task, "ids", source.dim("vocab")?)?;
    source.sets(|| {
        let (table, ids) = (source.tensor::<2>("table")?, source.integers(&ids));
        Ok(Box::new(move || vec![("y", flat(embed(table.clone(), ids.clone())))]))
    })
}

fn argmax<B: Backend>(source: &Source<B>) -> Result<Vec<Call<B>>, Refusal> {
    source.sets(|| {
        let x = source.tensor::<2>("x")?;
        Ok(Box::new(move || vec![("y", Output::Int(x.clone().argmax(1).flatten(0, 1)))]))
    })
}
