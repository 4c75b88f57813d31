//! What a fused problem is made of: the chain of our own kernels that the fusion replaces, so that its gain is a row.

use crate::problem::{Problem, Role};

/// Kernels that run one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// `all`, or what of the problem it computes.
    pub covers: &'static str,
    /// The kernels in order.
    pub steps: Vec<Step>,
    /// Bytes of each intermediate result.
    pub temporaries: Vec<u64>,
    /// Where the problem's outputs are found.
    pub outputs: Vec<Out>,
}

/// One kernel and where its tensors lie, in the order of its problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it computes.
    pub problem: Problem,
    /// Its tensors.
    pub tensors: Vec<Place>,
}

/// Memory of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A tensor of the whole problem.
    Named(&'static str),
    /// An intermediate result.
    Temporary(usize),
}

/// An output of the whole problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// Its name.
    pub name: &'static str,
    /// Its memory.
    pub place: Place,
    /// Where it is the first columns of wider rows: its columns, and theirs.
    pub inside: Option<(u64, u64)>,
}

impl Chain {
    /// The problem's own kernel.
    pub fn whole(problem: &Problem) -> Chain {
        let tensors = problem.tensors();
        let outputs = tensors.iter().filter(|t| t.role == Role::Out);
        Chain {
            covers: "all",
            steps: vec![Step { problem: *problem, tensors: tensors.iter().map(|t| Place::Named(t.name)).collect() }],
            temporaries: Vec::new(),
            outputs: outputs.map(|t| Out { name: t.name, place: Place::Named(t.name), inside: None }).collect(),
        }
    }

    /// The kernels that a fused problem replaces; none for one that is not fused.
    pub fn unfused(problem: &Problem) -> Option<Chain> {
        let parse = |text: String| format!("{text} dtype={}", problem.dtype).parse::<Problem>().ok();
        let op = problem.op().name;
        if !matches!(op, "matmul" | "qkv") {
            return None;
        }
        let [m, n, k, bias] = ["m", "n", "k", "bias"].map(|name| problem.dim(name));
        let [swiglu, residual] = ["swiglu", "residual"].map(|name| problem.dim(name) == 1);
        let mut operands = vec![Place::Named("x"), Place::Named("w")];
        // The bias stays in the product where another kernel follows.
        let biased = bias == 1 && (op == "qkv" || swiglu || residual);
        if biased {
            operands.push(Place::Named("bias"));
        }
        operands.push(Place::Temporary(0));
        let product = parse(format!("matmul m={m} n={n} k={k} epilogue={}", if biased { "bias" } else { "none" }))?;
        let first = Step { problem: product, tensors: operands };
        let bytes = |p: &Problem, name: &str| p.tensors().iter().find(|t| t.name == name).map_or(0, |t| t.bytes());
        let whole_product = bytes(&product, "y");
        if swiglu {
            let second = parse(format!("silu_mul rows={m} cols={}", n / 2))?;
            return Some(Chain {
                covers: "all",
                steps: vec![first, Step { problem: second, tensors: vec![Place::Temporary(0), Place::Named("y")] }],
                temporaries: vec![whole_product],
                outputs: vec![Out { name: "y", place: Place::Named("y"), inside: None }],
            });
        }
        // Heads that are normed have no kernel of their own that could stand before the rotation.
        if op == "qkv" && problem.dim("qk_norm") == 0 {
            let [heads, kv, d, max_pos] = ["heads", "kv_heads", "head_dim", "max_pos"].map(|name| problem.dim(name));
            let second = parse(format!("rope tokens={m} heads={} head_dim={d} max_pos={max_pos}", heads + 2 * kv))?;
            let tensors =
                vec![Place::Temporary(0), Place::Named("positions"), Place::Named("cos_sin"), Place::Temporary(1)];
            let columns = (heads * d) as u64;
            return Some(Chain {
                covers: "all but the cache write",
                steps: vec![first, Step { problem: second, tensors }],
                temporaries: vec![whole_product; 2],
                outputs: vec![Out { name: "y", place: Place::Temporary(1), inside: Some((columns, n as u64)) }],
            });
        }
        if op == "qkv" || problem.word("epilogue") == "none" {
            return None;
        }
        let plain = Chain {
            covers: "product",
            steps: vec![first],
            temporaries: vec![whole_product],
            outputs: vec![Out { name: "y", place: Place::Temporary(0), inside: None }],
        };
        // With a bias as well, it is no plain product that a row could be held to.
        (!biased).then_some(plain)
    }

    /// The problems that need a winner for it.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.steps.iter().map(|s| s.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_name_what_their_kernels_take() {
        for text in [
            "matmul m=4 n=64 k=32 epilogue=swiglu dtype=f32",
            "matmul m=4 n=64 k=32 epilogue=bias_swiglu dtype=f32",
            "qkv m=4 k=32 heads=4 kv_heads=1 head_dim=16 pages=2 dtype=f32",
            "qkv m=4 k=32 heads=4 kv_heads=1 head_dim=16 pages=2 bias=1 dtype=f32",
            "matmul m=4 n=64 k=32 epilogue=residual dtype=f32",
        ] {
            let problem: Problem = text.parse().unwrap();
            let chain = Chain::unfused(&problem).unwrap();
            for step in chain.steps.iter().chain(&Chain::whole(&problem).steps) {
                let tensors = step.problem.tensors();
                assert_eq!(tensors.len(), step.tensors.len(), "{text}");
                for (t, place) in tensors.iter().zip(&step.tensors) {
                    let bytes = match place {
                        Place::Temporary(i) => chain.temporaries[*i],
                        Place::Named(name) => problem.tensors().iter().find(|t| t.name == *name).unwrap().bytes(),
                    };
                    assert_eq!(t.bytes(), bytes, "{text}: {} of {}", t.name, step.problem);
                }
            }
        }
        assert_eq!(Chain::unfused(&"rmsnorm rows=1 cols=8".parse().unwrap()), None);
        assert_eq!(Chain::unfused(&"matmul m=1 n=8 k=8".parse().unwrap()), None);
        assert_eq!(Chain::unfused(&"qkv m=1 k=8 heads=1 kv_heads=1 head_dim=8 qk_norm=1".parse().unwrap()), None);
    }
}
