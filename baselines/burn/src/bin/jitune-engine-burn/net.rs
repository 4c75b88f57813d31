//! Llama and its kin in Burn's modules, with a cache that grows by concatenation.

use burn::{
    module::Param,
    nn::{Linear, RmsNorm},
    tensor::{
        DType, Int, Tensor, TensorData,
        activation::silu,
        backend::Backend,
        module::{attention, embedding},
        ops::AttentionModuleOptions,
    },
};
use jitune_peer::Refusal;
use jitune_peer::engine::{Config, Family};

use crate::weights::Weights;

/// A model on some backend, and its cache.
pub trait Model {
    /// Lets the cache go.
    fn forget(&mut self);

    /// The most likely token after these, sequence by sequence, which come after what the cache holds; found on the device. Of equal logits
    /// Burn's argmax takes any.
    fn best(&mut self, tokens: &[u32], sequences: usize) -> Result<Vec<u32>, Refusal>;

    /// Logits `[sequences, vocab]` after these tokens; of `all` positions, `[sequences × tokens, vocab]`.
    fn logits(&mut self, tokens: &[u32], sequences: usize, all: bool) -> Result<Vec<f32>, Refusal>;
}

/// The model of a family that differs from Llama by biases and norms of heads alone.
pub struct Net<B: Backend> {
    device: B::Device,
    embedding: Tensor<B, 2>,
    layers: Vec<Layer<B>>,
    norm: RmsNorm<B>,
    head: Linear<B>,
    /// Cosines and sines, `[positions, head_dim / 2]`.
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    heads: Heads,
    /// Tokens of each sequence in the cache.
    held: usize,
}

#[derive(Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    width: usize,
}

struct Layer<B: Backend> {
    before: RmsNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    q_norm: Option<RmsNorm<B>>,
    k_norm: Option<RmsNorm<B>>,
    between: RmsNorm<B>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
    /// Keys and values, `[sequences, kv heads, tokens, head_dim]`.
    cache: Option<[Tensor<B, 4>; 2]>,
}

impl<B: Backend> Net<B> {
    /// For so many positions.
    pub fn load(c: &Config, weights: &Weights<B>, context: usize, device: &B::Device) -> Result<Net<B>, Refusal> {
        let (width, inner, eps) = (c.hidden, c.intermediate, c.eps);
        let [q, kv] = [c.heads, c.kv_heads].map(|heads| heads * c.head_dim);
        let layer = |at: usize| {
            let of = |name: &str| format!("model.layers.{at}.{name}");
            let head_norm = |name: &str| match c.family {
                Family::Qwen3 => weights.norm(&of(name), c.head_dim, eps).map(Some),
                _ => Ok(None),
            };
            Ok(Layer {
                before: weights.norm(&of("input_layernorm"), width, eps)?,
                q: weights.linear(&of("self_attn.q_proj"), q, width, c.qkv_bias)?,
                k: weights.linear(&of("self_attn.k_proj"), kv, width, c.qkv_bias)?,
                v: weights.linear(&of("self_attn.v_proj"), kv, width, c.qkv_bias)?,
                o: weights.linear(&of("self_attn.o_proj"), width, q, c.o_bias)?,
                q_norm: head_norm("self_attn.q_norm")?,
                k_norm: head_norm("self_attn.k_norm")?,
                between: weights.norm(&of("post_attention_layernorm"), width, eps)?,
                gate: weights.linear(&of("mlp.gate_proj"), inner, width, c.mlp_bias)?,
                up: weights.linear(&of("mlp.up_proj"), inner, width, c.mlp_bias)?,
                down: weights.linear(&of("mlp.down_proj"), width, inner, c.mlp_bias)?,
                cache: None,
            })
        };
        let embedding = weights.tensor("model.embed_tokens.weight", [c.vocab, width])?;
        let head = match c.tied {
            true => Linear { weight: Param::from_tensor(weights.turned(embedding.clone())), bias: None },
            false => weights.linear("lm_head", c.vocab, width, false)?,
        };
        let frequencies = c.frequencies();
        let angles = (0..context).flat_map(|at| frequencies.iter().map(move |f| at as f64 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        let table = |values: Vec<f32>| weights.made(values, [context, frequencies.len()]);
        Ok(Net {
            device: device.clone(),
            embedding,
            layers: (0..c.layers).map(layer).collect::<Result<_, Refusal>>()?,
            norm: weights.norm("model.norm", width, eps)?,
            head,
            cos: table(cos),
            sin: table(sin),
            heads: Heads { q: c.heads, kv: c.kv_heads, width: c.head_dim },
            held: 0,
        })
    }

    /// Logits `[rows, vocab]` of the last token of each sequence, or of all.
    fn forward(&mut self, tokens: &[u32], sequences: usize, all: bool) -> Result<Tensor<B, 2>, Refusal> {
        let ([vocab, width], [positions, half]) = (self.embedding.dims(), self.cos.dims());
        // A GPU would read beyond its tables.
        if let Some(beyond) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Refusal::failed(format!("token {beyond} of a vocabulary of {vocab}")));
        }
        let each = tokens.len() / sequences.max(1);
        if self.held + each > positions {
            return Err(Refusal::failed(format!("{} tokens of {positions}", self.held + each)));
        }
        let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [sequences, each]), &self.device);
        let at = self.held..self.held + each;
        let table = |table: &Tensor<B, 2>| table.clone().slice_dim(0, at.clone()).reshape([1, 1, each, half]);
        let angles = [table(&self.cos), table(&self.sin)];
        let mut x = embedding(self.embedding.clone(), ids);
        for layer in &mut self.layers {
            x = layer.forward(x, &angles, self.heads);
        }
        self.held += each;
        let x = if all { x } else { x.slice_dim(1, each - 1..each) };
        let rows = x.dims()[0] * x.dims()[1];
        Ok(self.head.forward(self.norm.forward(x.reshape([rows, width]))).cast(DType::F32))
    }
}

impl<B: Backend> Layer<B> {
    /// x `[sequences, tokens, hidden]`.
    fn forward(&mut self, x: Tensor<B, 3>, angles: &[Tensor<B, 4>; 2], heads: Heads) -> Tensor<B, 3> {
        let x = x.clone() + self.attend(self.before.forward(x), angles, heads);
        let y = self.between.forward(x.clone());
        let inner = silu(self.gate.forward(y.clone())) * self.up.forward(y);
        x + self.down.forward(inner)
    }

    fn attend(&mut self, x: Tensor<B, 3>, angles: &[Tensor<B, 4>; 2], heads: Heads) -> Tensor<B, 3> {
        let [sequences, tokens, _] = x.dims();
        let Heads { q: count, kv, width } = heads;
        let split = |x: Tensor<B, 3>, heads: usize| x.reshape([sequences, tokens, heads, width]);
        let normed = |x: Tensor<B, 4>, norm: &Option<RmsNorm<B>>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let q = normed(split(self.q.forward(x.clone()), count), &self.q_norm).swap_dims(1, 2);
        let k = normed(split(self.k.forward(x.clone()), kv), &self.k_norm).swap_dims(1, 2);
        let v = split(self.v.forward(x), kv).swap_dims(1, 2);
        let (q, mut k, mut v) = (rotate(q, angles), rotate(k, angles), v);
        if let Some([keys, values]) = self.cache.take() {
            k = Tensor::cat(vec![keys, k], 2);
            v = Tensor::cat(vec![values, v], 2);
        }
        self.cache = Some([k.clone(), v.clone()]);
        let o = if tokens == 1 {
            // The heads that read one head of keys are its rows: nothing is repeated.
            let q = q.reshape([sequences, kv, count / kv, width]);
            attention(q, k, v, None, None, Default::default()).reshape([sequences, 1, count * width])
        } else {
            let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
            let o = attention(q, repeat(k, count / kv), repeat(v, count / kv), None, None, options);
            o.swap_dims(1, 2).reshape([sequences, tokens, count * width])
        };
        self.o.forward(o)
    }
}

/// x `[sequences, heads, tokens, head_dim]`, the halves of each head rotated by the token's angles.
fn rotate<B: Backend>(x: Tensor<B, 4>, [cos, sin]: &[Tensor<B, 4>; 2]) -> Tensor<B, 4> {
    let half = x.dims()[3] / 2;
    let (a, b) = (x.clone().slice_dim(3, 0..half), x.slice_dim(3, half..2 * half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos.clone() + a * sin.clone();
    Tensor::cat(vec![first, second], 3)
}

/// Each head of keys as often as heads of queries read it.
fn repeat<B: Backend>(x: Tensor<B, 4>, times: usize) -> Tensor<B, 4> {
    if times == 1 {
        return x;
    }
    let [sequences, heads, tokens, width] = x.dims();
    let repeated = x.unsqueeze_dim::<5>(2).expand([sequences, heads, times, tokens, width]);
    repeated.reshape([sequences, heads * times, tokens, width])
}

impl<B: Backend> Model for Net<B> {
    fn forget(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.cache = None);
        self.held = 0;
    }

    fn best(&mut self, tokens: &[u32], sequences: usize) -> Result<Vec<u32>, Refusal> {
        Refusal::guard(|| {
            let best = self.forward(tokens, sequences, false)?.argmax(1);
            Ok(best.into_data().iter::<u32>().collect())
        })
    }

    fn logits(&mut self, tokens: &[u32], sequences: usize, all: bool) -> Result<Vec<f32>, Refusal> {
        Refusal::guard(|| {
            let data = self.forward(tokens, sequences, all)?.into_data();
            data.into_vec().map_err(|e| Refusal::failed(format!("{e:?}")))
        })
    }
}
