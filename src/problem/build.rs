//! Problems by typed constructors, for programs: `Problem::matmul(4, 2048, 2048).residual().dtype(Dtype::Bf16).build()`.

use super::{Dtype, Problem, ProblemError, Types};

/// A problem in the making. What the op does not have, and what is impossible, is said by [`Builder::build`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    op: &'static str,
    fields: Vec<(&'static str, String)>,
    types: Types,
    /// Of a product: bias, residual, SwiGLU.
    epilogue: [bool; 3],
}

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads, of which `heads` is a multiple.
    pub kv_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
}

fn of(op: &'static str, sizes: &[(&'static str, i64)]) -> Builder {
    let fields = sizes.iter().map(|(name, v)| (*name, v.to_string())).collect();
    Builder { op, fields, types: Dtype::Bf16.into(), epilogue: [false; 3] }
}

fn with_heads(op: &'static str, sizes: &[(&'static str, i64)], h: Heads) -> Builder {
    let heads = [("heads", h.heads), ("kv_heads", h.kv_heads), ("head_dim", h.head_dim)];
    of(op, &[sizes, &heads].concat())
}

impl Problem {
    /// y[m, n] = x[m, k]·Wᵀ, with W[n, k].
    pub fn matmul(m: i64, n: i64, k: i64) -> Builder {
        of("matmul", &[("m", m), ("n", n), ("k", k)])
    }

    /// Q, K and V of `m` tokens of width `k`, rotated, with K and V written to the paged cache.
    pub fn qkv(m: i64, k: i64, heads: Heads) -> Builder {
        with_heads("qkv", &[("m", m), ("k", k)], heads)
    }

    /// What stands behind the product of Q, K and V of `m` tokens: rotated, with K and V written to the paged cache.
    pub fn rope_kv(m: i64, heads: Heads) -> Builder {
        with_heads("rope_kv", &[("m", m)], heads)
    }

    /// Attention over contiguous keys; causal unless [`Builder::full`].
    pub fn attention(batch: i64, q: i64, kv: i64, heads: Heads) -> Builder {
        with_heads("attention", &[("batch", batch), ("q", q), ("kv", kv)], heads)
    }

    /// Attention of `tokens` queries of `batch` sequences over the paged cache, each of at most `context` tokens.
    pub fn paged_attention(tokens: i64, batch: i64, context: i64, heads: Heads) -> Builder {
        with_heads("paged_attention", &[("tokens", tokens), ("batch", batch), ("context", context)], heads)
    }

    /// Attention of one query a sequence over the paged cache.
    pub fn decode(batch: i64, context: i64, heads: Heads) -> Builder {
        with_heads("decode", &[("batch", batch), ("context", context)], heads)
    }

    /// RMSNorm of each of `rows`.
    pub fn rmsnorm(rows: i64, cols: i64) -> Builder {
        of("rmsnorm", &[("rows", rows), ("cols", cols)])
    }

    /// LayerNorm of each of `rows`.
    pub fn layernorm(rows: i64, cols: i64) -> Builder {
        of("layernorm", &[("rows", rows), ("cols", cols)])
    }

    /// Rows of a table of `vocab`.
    pub fn embedding(tokens: i64, vocab: i64, hidden: i64) -> Builder {
        of("embedding", &[("tokens", tokens), ("vocab", vocab), ("hidden", hidden)])
    }

    /// The index of each row's largest value.
    pub fn argmax(rows: i64, cols: i64) -> Builder {
        of("argmax", &[("rows", rows), ("cols", cols)])
    }

    /// The next token of each row of logits, by the settings of the row.
    pub fn sample(rows: i64, cols: i64) -> Builder {
        of("sample", &[("rows", rows), ("cols", cols)])
    }

    /// So many words that a step is told, ids first, with those of `rows` tokens of the step before that they ask for.
    pub fn advance(words: i64, ids: i64, rows: i64) -> Builder {
        of("advance", &[("words", words), ("ids", ids), ("rows", rows)])
    }

    /// Softmax of each row.
    pub fn softmax(rows: i64, cols: i64) -> Builder {
        of("softmax", &[("rows", rows), ("cols", cols)])
    }

    /// silu(gate)·up of `cols` interleaved pairs.
    pub fn silu_mul(rows: i64, cols: i64) -> Builder {
        of("silu_mul", &[("rows", rows), ("cols", cols)])
    }

    /// The erf form of GELU.
    pub fn gelu(rows: i64, cols: i64) -> Builder {
        of("gelu", &[("rows", rows), ("cols", cols)])
    }

    /// Rotation of every head by the token's position.
    pub fn rope(tokens: i64, heads: i64, head_dim: i64) -> Builder {
        of("rope", &[("tokens", tokens), ("heads", heads), ("head_dim", head_dim)])
    }
}

impl Builder {
    fn field(mut self, name: &'static str, value: impl ToString) -> Builder {
        self.fields.retain(|(n, _)| *n != name);
        self.fields.push((name, value.to_string()));
        self
    }

    /// The type of all its tensors; bf16 where it is not said.
    pub fn dtype(self, dtype: Dtype) -> Builder {
        self.types(dtype.into())
    }

    /// The types of its tensors, each of its own.
    pub fn types(mut self, types: Types) -> Builder {
        self.types = types;
        self
    }

    /// Adds a bias, before whatever else its epilogue does.
    pub fn bias(mut self) -> Builder {
        if self.op == "qkv" {
            return self.field("bias", 1);
        }
        self.epilogue[0] = true;
        self
    }

    /// Adds a residual: to a product, or before a norm.
    pub fn residual(mut self) -> Builder {
        if self.op.ends_with("norm") {
            return self.field("residual", 1);
        }
        self.epilogue[1] = true;
        self
    }

    /// silu(gate)·up of a product's interleaved columns.
    pub fn swiglu(mut self) -> Builder {
        self.epilogue[2] = true;
        self
    }

    /// Norms each head of Q and K.
    pub fn qk_norm(self) -> Builder {
        self.field("qk_norm", 1)
    }

    /// Attention of every query to every key.
    pub fn full(self) -> Builder {
        self.field("causal", 0)
    }

    /// Tokens of a page of the cache.
    pub fn page(self, tokens: i64) -> Builder {
        self.field("page", tokens)
    }

    /// Pages of the cache.
    pub fn pages(self, pages: i64) -> Builder {
        self.field("pages", pages)
    }

    /// So many of the most likely tokens of each row, with their log-probabilities.
    pub fn top(self, tokens: i64) -> Builder {
        self.field("top", tokens)
    }

    /// Entries of a row of the block table.
    pub fn max_pages(self, pages: i64) -> Builder {
        self.field("max_pages", pages)
    }

    /// Rows of the table of RoPE's cosines and sines.
    pub fn max_pos(self, positions: i64) -> Builder {
        self.field("max_pos", positions)
    }

    /// What is added to the mean of squares.
    pub fn eps(self, eps: f64) -> Builder {
        self.field("eps", eps)
    }

    /// The problem, or what is wrong with it.
    pub fn build(mut self) -> Result<Problem, ProblemError> {
        let words = ["bias", "residual", "swiglu"].into_iter().zip(self.epilogue).filter(|(_, on)| *on);
        let epilogue: Vec<&str> = words.map(|(word, _)| word).collect();
        if !epilogue.is_empty() {
            self = self.field("epilogue", epilogue.join("_"));
        }
        let fields: String = self.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        format!("{}{fields} dtype={}", self.op, self.types).parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Storage;

    #[test]
    fn types_that_no_text_says_are_refused() {
        let p: Problem = "matmul m=1 n=2 k=2 dtype=f32".parse().unwrap();
        let bf16 = Types::from(Dtype::Bf16);
        assert_eq!(
            p.with_types(Types { y: Storage::F32, ..bf16 }).unwrap().to_string(),
            "matmul m=1 n=2 k=2 dtype=bf16 y=f32"
        );
        for types in [Types { x: Storage::I32, ..p.types() }, Types { w: Storage::I32, ..bf16 }] {
            assert!(p.with_types(types).unwrap_err().to_string().contains("integers"));
        }
    }

    #[test]
    fn constructors_say_what_text_says() {
        let heads = Heads { heads: 32, kv_heads: 8, head_dim: 64 };
        for (built, text) in [
            (Problem::matmul(4, 48, 64), "matmul m=4 n=48 k=64"),
            (Problem::matmul(4, 48, 64).bias().residual(), "matmul m=4 n=48 k=64 epilogue=bias_residual"),
            (Problem::matmul(4, 48, 64).bias().swiglu(), "matmul m=4 n=48 k=64 epilogue=bias_swiglu"),
            (
                Problem::qkv(4, 2048, heads).bias().qk_norm().pages(9).eps(1e-5).page(16),
                "qkv m=4 k=2048 heads=32 kv_heads=8 head_dim=64 bias=1 qk_norm=1 page=16 pages=9 eps=1e-5",
            ),
            (
                Problem::attention(1, 5, 7, heads).full().dtype(Dtype::F16),
                "attention batch=1 q=5 kv=7 heads=32 kv_heads=8 head_dim=64 causal=0 dtype=f16",
            ),
            (
                Problem::paged_attention(9, 2, 70, heads).max_pages(8),
                "paged_attention tokens=9 batch=2 context=70 heads=32 kv_heads=8 head_dim=64 max_pages=8",
            ),
            (Problem::decode(3, 70, heads), "decode batch=3 context=70 heads=32 kv_heads=8 head_dim=64"),
            (Problem::rmsnorm(3, 70).residual().eps(1e-6), "rmsnorm rows=3 cols=70 residual=1 eps=1e-6"),
            (Problem::layernorm(3, 70), "layernorm rows=3 cols=70"),
            (Problem::embedding(3, 9, 70), "embedding tokens=3 vocab=9 hidden=70"),
            (Problem::argmax(3, 70), "argmax rows=3 cols=70"),
            (Problem::sample(3, 70), "sample rows=3 cols=70"),
            (Problem::sample(3, 70).top(5), "sample rows=3 cols=70 top=5"),
            (Problem::advance(9, 4, 2), "advance words=9 ids=4 rows=2"),
            (Problem::softmax(3, 70), "softmax rows=3 cols=70"),
            (Problem::silu_mul(3, 70), "silu_mul rows=3 cols=70"),
            (Problem::gelu(3, 70), "gelu rows=3 cols=70"),
            (Problem::rope(3, 4, 64).max_pos(99), "rope tokens=3 heads=4 head_dim=64 max_pos=99"),
        ] {
            assert_eq!(built.build(), text.parse(), "{text}");
        }
        for (wrong, said) in [
            (Problem::matmul(0, 1, 1), "must lie in 1..="),
            (Problem::matmul(1, 1, 1).swiglu(), "even"),
            (Problem::matmul(1, 2, 1).swiglu().residual(), "one of none"),
            (Problem::gelu(1, 1).eps(1.0), "'eps=1' is not a dimension"),
        ] {
            let e = wrong.build().unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }
}
