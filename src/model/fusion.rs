//! Rewrites of a program that leave its results alone: steps that one kernel can do together.

use crate::problem::{Problem, Role, norm_and_product};
use crate::program::{Life, Program, Step};
use std::borrow::Cow;
use std::collections::HashMap;

/// The program with each norm and the product that alone reads what it leaves as one step, where `better` says so of the problems of the
/// norm, of the product, and of both in one.
pub(crate) fn with_norms_in_products(
    program: &Program,
    mut better: impl FnMut(&Problem, &Problem, &Problem) -> bool,
) -> Cow<'_, Program> {
    // Layers are alike: each pair is asked for once.
    let mut known: HashMap<[Problem; 2], Option<Problem>> = HashMap::new();
    let mut together = |norm: &Problem, product: &Problem| {
        let ask = || norm_and_product(norm, product).filter(|both| better(norm, product, both));
        *known.entry([*norm, *product]).or_insert_with(ask)
    };
    let mut pairs = program.steps.windows(2);
    if !pairs.any(|pair| together(&pair[0].problem, &pair[1].problem).is_some()) {
        return Cow::Borrowed(program);
    }
    let mut readers = vec![0; program.tensors.len()];
    for step in &program.steps {
        let described = step.problem.tensors();
        described.iter().zip(&step.tensors).filter(|(t, _)| t.role == Role::In).for_each(|(_, at)| readers[*at] += 1);
    }
    let mut both = |norm: &Step, product: &Step| -> Option<Step> {
        let [x, weight, normed] = norm.tensors[..] else { return None };
        let (first, rest) = product.tensors.split_first()?;
        if *first != normed || readers[normed] != 1 || program.tensors[normed].life != Life::Activation {
            return None;
        }
        Some(Step {
            role: format!("norm+{}", product.role),
            problem: together(&norm.problem, &product.problem)?,
            tensors: [x, weight].iter().chain(rest).copied().collect(),
        })
    };
    let mut steps = Vec::with_capacity(program.steps.len());
    let mut left = program.steps.iter().peekable();
    while let Some(step) = left.next() {
        let one = left.peek().and_then(|next| both(step, next));
        if one.is_some() {
            left.next();
        }
        steps.push(one.unwrap_or_else(|| step.clone()));
    }
    Cow::Owned(program.of(steps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;
    use crate::model::{Cache, Model, Pass, Precision, Shape, WeightFormat};
    use crate::problem::{Dtype, ScaledFormat, Storage};

    #[test]
    fn every_program_chains_with_norms_in_products() {
        let zeros = WeightFormat::usual(ScaledFormat::parse("int4z-g128").unwrap(), Dtype::Bf16);
        let precisions = [Dtype::Bf16.into(), Precision::linear(Dtype::Bf16, zeros, Target::Cuda)];
        for (name, precision) in Model::presets().flat_map(|name| precisions.iter().map(move |p| (name, p))) {
            let model = Model { layers: 2, ..Model::preset(name).unwrap() };
            let cache = Cache { page: 64, pages: 64, max_pages: 16, max_pos: 1024 };
            let shapes = [Shape::decode(4, 512), Shape::prompt(512), Shape { logits: 0, ..Shape::chunk(64, 2, 512) }];
            for (shape, codes) in shapes.into_iter().flat_map(|s| [(s, None), (s, Some(Storage::E4m3))]) {
                let precision = precision.clone().with_cache(codes);
                let program = Pass::of(&model, shape, cache, &precision).unwrap().program;
                let all = with_norms_in_products(&program, |_, _, _| true);
                all.check().unwrap();
                let norms = |p: &Program| p.steps.iter().filter(|s| s.problem.op().name == "rmsnorm").count();
                let (before, after) = (norms(&program), norms(&all));
                // Before qkv and gate_up of each layer and the head; where the pass ends with the cache, three of two layers.
                assert_eq!((before, after), (if shape.logits == 0 { 3 } else { 5 }, 0), "{name}");
                assert_eq!(all.steps.len() + before, program.steps.len());
                assert_eq!(*with_norms_in_products(&program, |_, _, _| false), program);
                // Each weight is still there, each once.
                let weights = |p: &Program| p.tensors.iter().filter(|t| t.life == Life::Weight).count();
                assert_eq!(weights(&all), weights(&program));
            }
        }
    }
}
