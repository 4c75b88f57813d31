//! The plan: what one forward pass calls, how often, in which phase, for which bucket.

use super::{Model, ModelError};
use crate::problem::{Dtype, Problem};
use serde::{Deserialize, Serialize};

/// Part of inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reading the prompt.
    Prefill,
    /// One token per sequence.
    Decode,
}

impl Phase {
    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

/// The batch sizes, prompt lengths and context that a plan covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Sequences of a decode step.
    pub batch: Vec<i64>,
    /// Tokens of a prompt.
    pub prefill: Vec<i64>,
    /// Tokens in the KV cache while decoding.
    pub context: i64,
}

/// One problem that a pass calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// What it is in the model.
    pub role: String,
    /// The problem.
    pub problem: Problem,
    /// The phase.
    pub phase: Phase,
    /// The bucket: batch of a decode step, tokens of a prompt.
    pub bucket: i64,
    /// Calls in one forward pass.
    pub calls: i64,
}

/// All calls of all buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The calls, bucket by bucket.
    pub calls: Vec<Call>,
}

impl Plan {
    /// The plan of `model` for `buckets` in `dtype`.
    ///
    /// The residual adds are fused into the products that produce the branch (o and down), so the norms stand alone.
    pub fn new(model: &Model, buckets: &Buckets, dtype: Dtype) -> Result<Plan, ModelError> {
        let positive = |name: &str, list: &[i64]| match list.iter().find(|v| **v < 1) {
            Some(v) => Err(ModelError::Bucket(format!("--{name} {v}: sizes start at 1"))),
            None => Ok(()),
        };
        positive("batch", &buckets.batch)?;
        positive("prefill", &buckets.prefill)?;
        positive("context", &[buckets.context])?;
        let mut plan = Plan::default();
        for &batch in &buckets.batch {
            plan.bucket(model, Phase::Decode, batch, buckets.context, dtype)?;
        }
        for &tokens in &buckets.prefill {
            plan.bucket(model, Phase::Prefill, tokens, buckets.context, dtype)?;
        }
        Ok(plan)
    }

    fn bucket(&mut self, m: &Model, phase: Phase, bucket: i64, context: i64, dtype: Dtype) -> Result<(), ModelError> {
        let (h, hk, d, l) = (m.heads, m.kv_heads, m.head_dim, m.layers);
        let rows = bucket;
        // The last token alone is turned into logits after a prompt.
        let last = if phase == Phase::Decode { bucket } else { 1 };
        let bias = i64::from(m.qkv_bias);
        let max_pos = if context == 4096 { String::new() } else { format!(" max_pos={context}") };
        let attention = match phase {
            Phase::Prefill => format!("attention batch=1 q={rows} kv={rows} heads={h} kv_heads={hk} head_dim={d}"),
            Phase::Decode => format!("decode batch={rows} context={context} heads={h} kv_heads={hk} head_dim={d}"),
        };
        let (hidden, inter, vocab) = (m.hidden, m.intermediate, m.vocab);
        let list = [
            ("embedding", 1, format!("embedding tokens={rows} vocab={vocab} hidden={hidden}")),
            ("norm", 2 * l, format!("rmsnorm rows={rows} cols={hidden}")),
            ("qkv", l, format!("qkv m={rows} k={hidden} heads={h} kv_heads={hk} head_dim={d} bias={bias}{max_pos}")),
            ("attention", l, attention),
            ("o", l, format!("matmul m={rows} n={hidden} k={} epilogue=residual", h * d)),
            ("gate_up", l, format!("matmul m={rows} n={} k={hidden} epilogue=swiglu", 2 * inter)),
            ("down", l, format!("matmul m={rows} n={hidden} k={inter} epilogue=residual")),
            ("norm", 1, format!("rmsnorm rows={last} cols={hidden}")),
            ("lm_head", 1, format!("matmul m={last} n={vocab} k={hidden}")),
            ("argmax", 1, format!("argmax rows={last} cols={vocab}")),
        ];
        for (role, calls, text) in list {
            let problem: Problem = format!("{text} dtype={dtype}").parse()?;
            let same = |c: &&mut Call| c.problem == problem && c.phase == phase && c.bucket == bucket;
            match self.calls.iter_mut().find(same) {
                Some(call) => call.calls += calls,
                None => self.calls.push(Call { role: role.into(), problem, phase, bucket, calls }),
            }
        }
        Ok(())
    }

    /// Each problem once, in the order of the plan.
    pub fn problems(&self) -> Vec<Problem> {
        let mut list: Vec<Problem> = Vec::new();
        for call in &self.calls {
            if !list.contains(&call.problem) {
                list.push(call.problem);
            }
        }
        list
    }

    /// Reads a plan file: one problem a line; what follows `#` is a remark.
    pub fn problems_of_text(text: &str) -> Result<Vec<Problem>, (usize, crate::problem::ProblemError)> {
        let mut list: Vec<Problem> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let problem: Problem = line.parse().map_err(|e| (number + 1, e))?;
            if !list.contains(&problem) {
                list.push(problem);
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str) -> Plan {
        let buckets = Buckets { batch: vec![1, 4, 16, 32], prefill: vec![512, 2048], context: 4096 };
        Plan::new(&Model::load(name).unwrap(), &buckets, Dtype::Bf16).unwrap()
    }

    #[test]
    fn every_preset_has_a_plan() {
        for name in Model::presets() {
            assert!(plan(name).problems().len() > 40, "{name}");
        }
    }

    #[test]
    fn one_decode_step_reads_the_weights_once() {
        // llama-3.2-1b has 1,235,814,400 parameters, the tied embedding counted once (its config and layer shapes).
        let calls = plan("llama-3.2-1b").calls;
        let product = |c: &&Call| matches!(c.problem.op().name, "matmul" | "qkv");
        let step = calls.iter().filter(|c| c.phase == Phase::Decode && c.bucket == 1).filter(product);
        let weights: i64 = step.map(|c| c.calls * c.problem.dim("n") * c.problem.dim("k")).sum();
        assert_eq!(weights, 1_235_746_816);
    }

    #[test]
    fn plan_files_are_read_with_remarks() {
        let text = "# a plan\nmatmul m=1 n=2 k=3  # qkv\n\nmatmul m=1 n=2 k=3\nargmax rows=1 cols=9\n";
        assert_eq!(Plan::problems_of_text(text).unwrap().len(), 2);
        assert_eq!(Plan::problems_of_text("argmax rows=1 cols=9\nnope\n").unwrap_err().0, 2);
    }
}
