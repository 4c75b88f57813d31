//! Where the activations of a program lie: in one memory, each as long as it is needed.

use crate::program::{Life, Program};
use std::ops::Range;

/// Tensors begin at multiples of this many bytes.
pub(super) const ALIGNMENT: u64 = 256;

/// The places of a program's activations.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arena {
    /// Of each tensor of the program that lies in the arena, its bytes there.
    pub places: Vec<Option<Range<u64>>>,
    /// Bytes of all.
    pub bytes: u64,
}

/// Places the activations of `program` but those in `kept`, which have memory of their own: from the step that writes it to
/// the last that reads it, no byte of a tensor is another's. Each takes the first gap that is wide enough.
pub(super) fn arena(program: &Program, kept: &[usize]) -> Arena {
    let mut last = vec![0; program.tensors.len()];
    for (number, step) in program.steps.iter().enumerate() {
        step.tensors.iter().for_each(|&t| last[t] = number);
    }
    let mut places: Vec<Option<Range<u64>>> = vec![None; program.tensors.len()];
    // What is in use, by where it begins.
    let mut live: Vec<usize> = Vec::new();
    let mut bytes = 0;
    for (number, step) in program.steps.iter().enumerate() {
        for &t in &step.tensors {
            let tensor = &program.tensors[t];
            if tensor.life != Life::Activation || places[t].is_some() || kept.contains(&t) {
                continue;
            }
            let wanted = tensor.bytes().max(1).next_multiple_of(ALIGNMENT);
            let (mut at, mut index) = (0, 0);
            for (i, &other) in live.iter().enumerate() {
                let Some(place) = &places[other] else { continue };
                if place.start - at >= wanted {
                    break;
                }
                (at, index) = (place.end.next_multiple_of(ALIGNMENT), i + 1);
            }
            places[t] = Some(at..at + tensor.bytes());
            live.insert(index, t);
            bytes = bytes.max(at + wanted);
        }
        live.retain(|&t| last[t] > number);
    }
    Arena { places, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cache, Model, Pass, Shape, with_norms_in_products};
    use crate::problem::{Dtype, Problem, Role};

    #[test]
    fn no_byte_is_two_tensors_at_a_time_and_layers_share() {
        let model = Model::preset("llama-3.2-1b").unwrap();
        let cache = Cache { page: 64, pages: 32, max_pages: 16, max_pos: 1024 };
        for shape in [Shape::prompt(300), Shape::decode(3, 1024), Shape::chunk(64, 5, 1024)] {
            let pass = Pass::of(&model, shape, cache, Dtype::Bf16).unwrap();
            let program = &pass.program;
            let kept = [program.tensor("logits").unwrap()];
            let arena = arena(program, &kept);
            // Who was the last to write each byte: what a step reads, its writer wrote.
            let mut owner: Vec<(Range<u64>, usize)> = Vec::new();
            for step in &program.steps {
                for role in [Role::In, Role::Out] {
                    for (t, &at) in step.problem.tensors().iter().zip(&step.tensors).filter(|(t, _)| t.role == role) {
                        let Some(place) = &arena.places[at] else { continue };
                        assert!(place.end <= arena.bytes && place.end - place.start == t.bytes());
                        if role == Role::Out {
                            owner.retain(|(other, _)| other.end <= place.start || place.end <= other.start);
                            owner.push((place.clone(), at));
                        } else {
                            assert!(owner.contains(&(place.clone(), at)), "{}: {}", step.role, t.name);
                        }
                    }
                    // What a step writes is apart from what it reads.
                    let of = |role: Role| {
                        let mine = step.problem.tensors().into_iter().zip(&step.tensors);
                        mine.filter(move |(t, _)| t.role == role).filter_map(|(_, &at)| arena.places[at].clone())
                    };
                    for out in of(Role::Out) {
                        assert!(of(Role::In).all(|i| i.end <= out.start || out.end <= i.start), "{}", step.role);
                    }
                }
            }
            let all: u64 =
                (0..program.tensors.len()).filter_map(|t| arena.places[t].as_ref()).map(|r| r.end - r.start).sum();
            assert!(arena.bytes * 8 < all, "{shape:?}: {} of {all}", arena.bytes);
            assert!(arena.places[kept[0]].is_none());
        }
    }

    /// Memory is planned by the program as it is, and steps may have any of these norms in the products behind them.
    #[test]
    fn no_norm_in_a_product_needs_more_memory() {
        for name in Model::presets() {
            let model = Model { layers: 3, ..Model::preset(name).unwrap() };
            let cache = Cache { page: 64, pages: 64, max_pages: 16, max_pos: 1024 };
            let decodes = (1..=8).map(|batch| Shape::decode(batch, 512));
            let prompts = [1, 5, 8, 300].map(Shape::prompt);
            let chunks = [(3, 2), (8, 3), (64, 8), (512, 1)].map(|(tokens, all)| Shape::chunk(tokens, all, 512));
            for shape in decodes.chain(prompts).chain(chunks) {
                let program = Pass::of(&model, shape, cache, Dtype::Bf16).unwrap().program;
                let bytes = |p: &Program| -> u64 {
                    let kept: Vec<usize> = ["logits", "tokens"].iter().filter_map(|name| p.tensor(name)).collect();
                    arena(p, &kept).bytes
                };
                // Each of the three products with its norm in it or not.
                for which in 0..8 {
                    let taken = |product: &Problem| match product.op().name {
                        "qkv" => which & 1 != 0,
                        _ if product.dim("swiglu") == 1 => which & 2 != 0,
                        _ => which & 4 != 0,
                    };
                    let some = with_norms_in_products(&program, |_, product, _| taken(product));
                    some.check().unwrap();
                    assert!(bytes(&some) <= bytes(&program), "{name} {shape:?} {which}");
                }
            }
        }
    }
}
