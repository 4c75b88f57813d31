//! Which tensors a checkpoint of a model holds, and of which of their rows a tensor of its programs is made.

use crate::model::Model;

/// A tensor as a checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural {
    /// Its name in Hugging Face's files.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
}

/// Where a tensor of a program comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The rows of tensors, in an order of their own.
    Rows(Rows),
    /// The table of cosines and sines, which no checkpoint holds.
    Rope,
    /// The scales of the codes of that layer's cache, which few checkpoints hold.
    CacheScales(i64),
}

/// Rows of tensors of one width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The tensors.
    pub of: Vec<Natural>,
    order: Order,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    /// One after the other.
    AsTheyAre,
    /// A row of the first, a row of the second.
    InTurn,
    /// One after the other; in the first so many of them the rows of each head of so many rows are in pairs that RoPE rotates.
    Pairs { tensors: usize, head: u64 },
}

impl Rows {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.of.iter().map(|n| n.shape[0]).sum()
    }

    /// Whether they are in the order of their tensor.
    pub(super) fn in_order(&self) -> bool {
        self.order == Order::AsTheyAre
    }

    /// Elements of each: of a vector its elements are rows of one.
    pub fn columns(&self) -> u64 {
        self.of.first().and_then(|n| n.shape.get(1)).copied().unwrap_or(1)
    }

    /// The tensor and its row that row `at` is; `paired` where the rows of heads are stored in pairs.
    pub fn row(&self, at: u64, paired: bool) -> (usize, u64) {
        let rows = |i: usize| self.of[i].shape[0];
        if let Order::InTurn = self.order {
            return ((at % 2) as usize, at / 2);
        }
        let (mut tensor, mut row) = (0, at);
        while row >= rows(tensor) && tensor + 1 < self.of.len() {
            row -= rows(tensor);
            tensor += 1;
        }
        match self.order {
            Order::Pairs { tensors, head } if tensor < tensors && !paired => (tensor, of_halves(row, head)),
            _ => (tensor, row),
        }
    }
}

/// All tensors of a model's checkpoint; a tied head is the embedding.
pub fn natural(model: &Model) -> Vec<Natural> {
    let mut list: Vec<Natural> = Vec::new();
    let mut add = |source: Source| {
        if let Source::Rows(rows) = source {
            list.extend(rows.of);
        }
    };
    for layer in 0..model.layers {
        for part in LAYER {
            add(of_layer(model, layer, part).unwrap_or(Source::Rope));
        }
    }
    for name in ["embed_tokens", "norm", "lm_head"] {
        add(source(model, name).unwrap_or(Source::Rope));
    }
    list
}

/// The weights of a layer, as the programs name them.
const LAYER: [&str; 12] = [
    "input_norm",
    "qkv",
    "qkv_bias",
    "q_norm",
    "k_norm",
    "o",
    "o_bias",
    "post_attention_norm",
    "gate_up",
    "gate_up_bias",
    "down",
    "down_bias",
];

/// What the weight of that name in a model's programs is made of; `None` where the model has no such weight.
pub fn source(model: &Model, name: &str) -> Option<Source> {
    let one = |name: &str, shape: &[i64]| Some(rows(vec![tensor(name.into(), shape)], Order::AsTheyAre));
    let (hidden, vocab) = (model.hidden, model.vocab);
    match name {
        "rope" => Some(Source::Rope),
        "embed_tokens" => one("model.embed_tokens.weight", &[vocab, hidden]),
        "norm" => one("model.norm.weight", &[hidden]),
        "lm_head" if !model.tie_word_embeddings => one("lm_head.weight", &[vocab, hidden]),
        _ => {
            let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
            of_layer(model, layer.parse().ok().filter(|l| *l < model.layers)?, part)
        }
    }
}

fn of_layer(m: &Model, layer: i64, part: &str) -> Option<Source> {
    let (hidden, inter, d) = (m.hidden, m.intermediate, m.head_dim);
    let (q, kv) = (m.heads * d, m.kv_heads * d);
    let named = |name: &str, shape: &[i64]| tensor(format!("model.layers.{layer}.{name}"), shape);
    let one = |name: &str, shape: &[i64]| Some(rows(vec![named(name, shape)], Order::AsTheyAre));
    let projections = |what: &str, columns: Option<i64>| {
        let of = |name: &str, n: i64| {
            let shape: Vec<i64> = std::iter::once(n).chain(columns).collect();
            named(&format!("self_attn.{name}_proj.{what}"), &shape)
        };
        Some(rows(vec![of("q", q), of("k", kv), of("v", kv)], Order::Pairs { tensors: 2, head: d.unsigned_abs() }))
    };
    let of_head = |name: &str| {
        let order = Order::Pairs { tensors: 1, head: d.unsigned_abs() };
        Some(rows(vec![named(&format!("self_attn.{name}.weight"), &[d])], order))
    };
    let in_turn = |what: &str, columns: Option<i64>| {
        let shape: Vec<i64> = std::iter::once(inter).chain(columns).collect();
        let of = |name: &str| named(&format!("mlp.{name}_proj.{what}"), &shape);
        Some(rows(vec![of("gate"), of("up")], Order::InTurn))
    };
    match part {
        "input_norm" => one("input_layernorm.weight", &[hidden]),
        "post_attention_norm" => one("post_attention_layernorm.weight", &[hidden]),
        "qkv" => projections("weight", Some(hidden)),
        "qkv_bias" if m.qkv_bias => projections("bias", None),
        "q_norm" if m.qk_norm => of_head("q_norm"),
        "k_norm" if m.qk_norm => of_head("k_norm"),
        "o" => one("self_attn.o_proj.weight", &[hidden, q]),
        "o_bias" if m.o_bias => one("self_attn.o_proj.bias", &[hidden]),
        "gate_up" => in_turn("weight", Some(hidden)),
        "gate_up_bias" if m.mlp_bias => in_turn("bias", None),
        "down" => one("mlp.down_proj.weight", &[hidden, inter]),
        "down_bias" if m.mlp_bias => one("mlp.down_proj.bias", &[hidden]),
        "kv_scales" => Some(Source::CacheScales(layer)),
        _ => None,
    }
}

/// What a layer's tensors are called in GGUF files, and in Hugging Face's.
const OF_A_LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// The same of the others.
const OF_NO_LAYER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The name in Hugging Face's files of a tensor that llama.cpp's call so.
pub(super) fn of_gguf(name: &str) -> Option<String> {
    let renamed = |list: &[(&str, &str)], name: &str| {
        let (stem, what) = name.rsplit_once('.')?;
        list.iter().find(|(theirs, _)| *theirs == stem).map(|(_, ours)| format!("{ours}.{what}"))
    };
    match name.strip_prefix("blk.") {
        None => renamed(&OF_NO_LAYER, name),
        Some(rest) => {
            let (layer, rest) = rest.split_once('.')?;
            let layer: u32 = layer.parse().ok()?;
            Some(format!("model.layers.{layer}.{}", renamed(&OF_A_LAYER, rest)?))
        }
    }
}

/// The name in llama.cpp's files of a tensor that Hugging Face's call so.
pub(super) fn to_gguf(name: &str) -> Option<String> {
    let renamed = |list: &[(&str, &str)], name: &str| {
        let (stem, what) = name.rsplit_once('.')?;
        list.iter().find(|(_, ours)| *ours == stem).map(|(theirs, _)| format!("{theirs}.{what}"))
    };
    match name.strip_prefix("model.layers.") {
        None => renamed(&OF_NO_LAYER, name),
        Some(rest) => {
            let (layer, rest) = rest.split_once('.')?;
            Some(format!("blk.{layer}.{}", renamed(&OF_A_LAYER, rest)?))
        }
    }
}

/// Whether RoPE rotates what the rows of this tensor make, so that their order is one of two: halves, as Hugging Face has them, or pairs.
pub(super) fn is_rotated(name: &str) -> bool {
    ["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.q_norm.", "self_attn.k_norm."]
        .iter()
        .any(|part| name.contains(part))
}

/// The row, among those in halves, that is row `at` of heads of so many rows in pairs.
pub(super) fn of_halves(at: u64, head: u64) -> u64 {
    let (first, j) = (at / head * head, at % head);
    first + j / 2 + j % 2 * (head / 2)
}

/// The row, among those in pairs, that is row `at` of heads of so many rows in halves.
pub(super) fn of_pairs(at: u64, head: u64) -> u64 {
    let (first, j) = (at / head * head, at % head);
    first + j % (head / 2) * 2 + j / (head / 2)
}

fn tensor(name: String, shape: &[i64]) -> Natural {
    Natural { name, shape: shape.iter().map(|d| d.unsigned_abs()).collect() }
}

fn rows(of: Vec<Natural>, order: Order) -> Source {
    Source::Rows(Rows { of, order })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Buckets, Pass};
    use crate::problem::Dtype;
    use crate::program::Life;
    use std::collections::BTreeSet;

    #[test]
    fn every_weight_of_every_program_has_a_source_of_its_size() {
        let base = Model::preset("llama-3.2-1b").unwrap();
        let all = Model { layers: 2, qkv_bias: true, o_bias: true, mlp_bias: true, qk_norm: true, ..base };
        let models = Model::presets().map(|name| Model::preset(name).unwrap()).chain([all]);
        for model in models {
            let buckets = Buckets { batch: vec![1], prefill: vec![], chunk: vec![], context: 64, page: 64 };
            let mut used = BTreeSet::new();
            for pass in Pass::all(&model, &buckets, Dtype::F32).unwrap() {
                for t in pass.program.tensors.iter().filter(|t| t.life == Life::Weight) {
                    let Some(Source::Rows(rows)) = source(&model, &t.name) else {
                        assert_eq!(t.name, "rope");
                        continue;
                    };
                    let elements = |shape: &[u64]| shape.iter().product::<u64>();
                    let of: u64 = rows.of.iter().map(|n| elements(&n.shape)).sum();
                    assert_eq!(of, elements(&t.shape), "{}: {}", model.name, t.name);
                    let taken: BTreeSet<(usize, u64)> = (0..t.shape[0]).map(|at| rows.row(at, false)).collect();
                    assert_eq!(taken.len() as u64, t.shape[0], "{}: no row twice", t.name);
                    used.extend(rows.of.into_iter().map(|n| n.name));
                }
            }
            let natural = natural(&model);
            let names: BTreeSet<String> = natural.iter().map(|n| n.name.clone()).collect();
            assert_eq!((names.len(), &names), (natural.len(), &used), "{}", model.name);
            let parameters: u64 = natural.iter().map(|n| n.shape.iter().product::<u64>()).sum();
            assert_eq!(parameters, model.parameters(), "{}", model.name);
        }
    }

    #[test]
    fn rows_are_paired_and_interleaved() {
        let model = Model { heads: 2, kv_heads: 1, head_dim: 4, ..Model::preset("qwen3-0.6b").unwrap() };
        let rows = |name: &str| match source(&model, name) {
            Some(Source::Rows(rows)) => rows,
            other => panic!("{other:?}"),
        };
        let qkv = rows("layers.0.qkv");
        let order: Vec<(usize, u64)> = (0..16).map(|at| qkv.row(at, false)).collect();
        let q = [(0, 0), (0, 2), (0, 1), (0, 3), (0, 4), (0, 6), (0, 5), (0, 7)];
        let k_v = [(1, 0), (1, 2), (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)];
        assert_eq!(order, [q, k_v].concat());
        let as_they_are: Vec<(usize, u64)> = (0..16).map(|at| qkv.row(at, true)).collect();
        assert_eq!(
            as_they_are,
            [(0, 8), (1, 4), (2, 4)].map(|(t, n)| (0..n).map(move |r| (t, r)).collect::<Vec<_>>()).concat()
        );
        let gate_up = rows("layers.0.gate_up");
        assert_eq!([0, 1, 2, 3].map(|at| gate_up.row(at, false)), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        assert_eq!([0, 1, 2, 3].map(|at| rows("layers.0.q_norm").row(at, false)), [(0, 0), (0, 2), (0, 1), (0, 3)]);
        assert_eq!(source(&model, "layers.28.qkv"), None);
        assert_eq!(source(&model, "layers.0.qkv_bias"), None);
    }
}
