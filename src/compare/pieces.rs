//! What a fused problem is made of: the chain of our own kernels that the fusion replaces, so that its gain is a row.

use crate::problem::{Problem, Role};
use crate::program::Life::{self, Activation, Metadata};
use crate::program::Program;

/// Kernels that run one after another, over the tensors of one problem and what lies between.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// `all`, or what of the problem it computes.
    pub covers: &'static str,
    /// The kernels. Tensors of the whole problem have its names.
    pub program: Program,
    /// Where the problem's outputs are found.
    pub outputs: Vec<Out>,
}

/// An output of the whole problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// Its name.
    pub name: &'static str,
    /// The tensor of the program that holds it.
    pub tensor: &'static str,
    /// Where it is the first columns of wider rows: its columns, and theirs.
    pub inside: Option<(u64, u64)>,
}

/// The program's name of what a product gives before the next kernel takes it.
const PRODUCT: &str = "product";

impl Chain {
    /// The problem's own kernel.
    pub fn whole(problem: &Problem) -> Chain {
        let tensors = problem.tensors();
        let life = |role: Role| if role == Role::In { Metadata } else { Activation };
        let names: Vec<(Life, &str)> = tensors.iter().map(|t| (life(t.role), t.name)).collect();
        let outputs = tensors.iter().filter(|t| t.role == Role::Out);
        let outputs = outputs.map(|t| Out { name: t.name, tensor: t.name, inside: None }).collect();
        let mut program = Program::default();
        program.step("all", *problem, &names);
        Chain { covers: "all", program, outputs }
    }

    /// The kernels that a fused problem replaces; none for one that is not fused.
    pub fn unfused(problem: &Problem) -> Option<Chain> {
        let parse = |text: String| format!("{text} dtype={}", problem.types()).parse::<Problem>().ok();
        let op = problem.op().name;
        if !matches!(op, "matmul" | "qkv") {
            return None;
        }
        let [m, n, k, bias] = ["m", "n", "k", "bias"].map(|name| problem.dim(name));
        let [swiglu, residual] = ["swiglu", "residual"].map(|name| problem.dim(name) == 1);
        let mut operands = vec![(Metadata, "x"), (Metadata, "w")];
        // The bias stays in the product where another kernel follows.
        let biased = bias == 1 && (op == "qkv" || swiglu || residual);
        if biased {
            operands.push((Metadata, "bias"));
        }
        operands.push((Activation, PRODUCT));
        let product = parse(format!("matmul m={m} n={n} k={k} epilogue={}", if biased { "bias" } else { "none" }))?;
        let mut program = Program::default();
        program.step("product", product, &operands);
        let out = |tensor, inside| vec![Out { name: "y", tensor, inside }];
        if swiglu {
            let second = parse(format!("silu_mul rows={m} cols={}", n / 2))?;
            program.step("silu_mul", second, &[(Activation, PRODUCT), (Activation, "y")]);
            return Some(Chain { covers: "all", program, outputs: out("y", None) });
        }
        // Heads that are normed have no kernel of their own that could stand before the rotation.
        if op == "qkv" && problem.dim("qk_norm") == 0 {
            let [heads, kv, d, max_pos] = ["heads", "kv_heads", "head_dim", "max_pos"].map(|name| problem.dim(name));
            let second = parse(format!("rope tokens={m} heads={} head_dim={d} max_pos={max_pos}", heads + 2 * kv))?;
            let names =
                [(Activation, PRODUCT), (Metadata, "positions"), (Metadata, "cos_sin"), (Activation, "rotated")];
            program.step("rope", second, &names);
            let inside = Some(((heads * d) as u64, n as u64));
            return Some(Chain { covers: "all but the cache write", program, outputs: out("rotated", inside) });
        }
        if op == "qkv" || problem.word("epilogue") == "none" {
            return None;
        }
        let plain = Chain { covers: "product", program, outputs: out(PRODUCT, None) };
        // With a bias as well, it is no plain product that a row could be held to.
        (!biased).then_some(plain)
    }

    /// The problems that need a winner for it.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.program.steps.iter().map(|s| s.problem)
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
            for chain in [Chain::unfused(&problem).unwrap(), Chain::whole(&problem)] {
                chain.program.check().unwrap();
                // What has a name of the whole problem is as large as there.
                for t in problem.tensors() {
                    if let Some(at) = chain.program.tensor(t.name) {
                        assert_eq!(chain.program.tensors[at].bytes(), t.bytes(), "{text}: {}", t.name);
                    }
                }
                assert!(chain.outputs.iter().all(|o| chain.program.tensor(o.tensor).is_some()), "{text}");
            }
        }
        assert_eq!(Chain::unfused(&"rmsnorm rows=1 cols=8".parse().unwrap()), None);
        assert_eq!(Chain::unfused(&"matmul m=1 n=8 k=8".parse().unwrap()), None);
        assert_eq!(Chain::unfused(&"qkv m=1 k=8 heads=1 kv_heads=1 head_dim=8 qk_norm=1".parse().unwrap()), None);
    }
}
