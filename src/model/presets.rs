//! The built-in models, by the `config.json` of their repositories (of the base models, where variants differ).

use super::{Family, Model, Rope, Scaling};
use crate::problem::Dtype;

/// Hidden and intermediate widths, layers, heads, key-value heads, width of a head, vocabulary.
type Shape = [i64; 7];

const fn llama(shape: Shape, rope: Rope, tied: bool, max_positions: i64) -> Model {
    let [hidden, intermediate, layers, heads, kv_heads, head_dim, vocab] = shape;
    Model {
        name: String::new(),
        family: Family::Llama,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rms_norm_eps: 1e-5,
        rope,
        tie_word_embeddings: tied,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        sliding_window: None,
        max_position_embeddings: max_positions,
        dtype: Some(Dtype::Bf16),
        quantization: None,
    }
}

const fn plain(theta: f64) -> Rope {
    Rope { theta, scaling: Scaling::Default }
}

const fn llama3(shape: Shape, factor: f64, tied: bool) -> Model {
    let (low_freq_factor, high_freq_factor, original_max_position_embeddings) = (1.0, 4.0, 8192.0);
    let scaling = Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings };
    llama(shape, Rope { theta: 5e5, scaling }, tied, 131_072)
}

const fn smollm2(shape: Shape, theta: f64) -> Model {
    llama(shape, plain(theta), true, 8192)
}

const fn mistral(shape: Shape, theta: f64, sliding_window: Option<i64>) -> Model {
    let mut model = llama(shape, plain(theta), false, 32_768);
    model.family = Family::Mistral;
    model.sliding_window = sliding_window;
    model
}

const fn qwen2(shape: Shape, rms_norm_eps: f64, tied: bool, max_positions: i64) -> Model {
    let mut model = llama(shape, plain(1e6), tied, max_positions);
    model.family = Family::Qwen2;
    model.rms_norm_eps = rms_norm_eps;
    model.qkv_bias = true;
    model
}

const fn qwen3(shape: Shape, tied: bool) -> Model {
    let mut model = llama(shape, plain(1e6), tied, 40_960);
    model.family = Family::Qwen3;
    model.rms_norm_eps = 1e-6;
    model.qk_norm = true;
    model
}

pub(super) static PRESETS: [(&str, Model); 21] = [
    ("llama-3.2-1b", llama3([2048, 8192, 16, 32, 8, 64, 128_256], 32.0, true)),
    ("llama-3.2-3b", llama3([3072, 8192, 28, 24, 8, 128, 128_256], 32.0, true)),
    ("llama-3.1-8b", llama3([4096, 14_336, 32, 32, 8, 128, 128_256], 8.0, false)),
    ("llama-3.1-70b", llama3([8192, 28_672, 80, 64, 8, 128, 128_256], 8.0, false)),
    ("smollm2-135m", smollm2([576, 1536, 30, 9, 3, 64, 49_152], 1e5)),
    ("smollm2-360m", smollm2([960, 2560, 32, 15, 5, 64, 49_152], 1e5)),
    ("smollm2-1.7b", smollm2([2048, 8192, 24, 32, 32, 64, 49_152], 1.3e5)),
    ("mistral-7b-v0.1", mistral([4096, 14_336, 32, 32, 8, 128, 32_000], 1e4, Some(4096))),
    ("mistral-7b-v0.3", mistral([4096, 14_336, 32, 32, 8, 128, 32_768], 1e6, None)),
    ("qwen2.5-0.5b", qwen2([896, 4864, 24, 14, 2, 64, 151_936], 1e-6, true, 32_768)),
    ("qwen2.5-1.5b", qwen2([1536, 8960, 28, 12, 2, 128, 151_936], 1e-6, true, 131_072)),
    ("qwen2.5-3b", qwen2([2048, 11_008, 36, 16, 2, 128, 151_936], 1e-6, true, 32_768)),
    ("qwen2.5-7b", qwen2([3584, 18_944, 28, 28, 4, 128, 152_064], 1e-6, false, 131_072)),
    ("qwen2.5-14b", qwen2([5120, 13_824, 48, 40, 8, 128, 152_064], 1e-5, false, 131_072)),
    ("qwen2.5-32b", qwen2([5120, 27_648, 64, 40, 8, 128, 152_064], 1e-5, false, 131_072)),
    ("qwen3-0.6b", qwen3([1024, 3072, 28, 16, 8, 128, 151_936], true)),
    ("qwen3-1.7b", qwen3([2048, 6144, 28, 16, 8, 128, 151_936], true)),
    ("qwen3-4b", qwen3([2560, 9728, 36, 32, 8, 128, 151_936], true)),
    ("qwen3-8b", qwen3([4096, 12_288, 36, 32, 8, 128, 151_936], false)),
    ("qwen3-14b", qwen3([5120, 17_408, 40, 40, 8, 128, 151_936], false)),
    ("qwen3-32b", qwen3([5120, 25_600, 64, 64, 8, 128, 151_936], false)),
];
