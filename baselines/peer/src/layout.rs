//! Inputs in the layouts that libraries want, where jitune's differ: parts of setting up, never of a call.

use crate::protocol::{Refusal, Task, TaskTensor};

/// Of blocks of `block` elements, those with an even and those with an odd index: the gates and the ups of `swiglu`
/// (blocks of k) and `silu_mul` (blocks of one).
pub fn halves(tensor: &TaskTensor, block: usize) -> Result<[Vec<u8>; 2], Refusal> {
    let bytes = tensor.load()?;
    let size = (block * tensor.element_bytes()).max(1);
    Ok([0, 1].map(|odd| bytes.chunks_exact(size).skip(odd).step_by(2).flatten().copied().collect()))
}

/// An input of integers, all of them in 0..`below`.
pub fn indices(task: &Task, name: &str, below: usize) -> Result<Vec<u32>, Refusal> {
    let checked = task.tensor(name)?.integers()?.into_iter().map(|i| match u32::try_from(i) {
        Ok(i) if (i as usize) < below => Ok(i),
        _ => Err(Refusal::failed(format!("{name} has {i}, which is not in 0..{below}"))),
    });
    checked.collect()
}

/// Cosines and sines of each token, [tokens, head_dim / 2] both, as a model selects them once for all of its layers.
pub fn cos_sin(task: &Task) -> Result<[Vec<f32>; 2], Refusal> {
    let row = task.dim("head_dim")? / 2 * 2;
    let table = task.tensor("cos_sin")?.values()?;
    let positions = indices(task, "positions", table.len() / row.max(1))?;
    let rows = || positions.iter().flat_map(|&p| &table[p as usize * row..(p as usize + 1) * row]).copied();
    Ok([rows().step_by(2).collect(), rows().skip(1).step_by(2).collect()])
}

/// The lengths of the sequences of `decode`.
pub fn lens(task: &Task) -> Result<Vec<u32>, Refusal> {
    indices(task, "lens", task.dim("context")? + 1)
}

/// A paged cache as one contiguous [batch, kv_heads, context, head_dim], zero beyond each sequence's length.
pub fn gathered(task: &Task, name: &str) -> Result<Vec<u8>, Refusal> {
    let (context, page) = (task.dim("context")?, task.dim("page")?.max(1));
    let (kv_heads, d) = (task.dim("kv_heads")?, task.dim("head_dim")?);
    let (lens, table) = (lens(task)?, task.tensor("block_table")?);
    let most = table.shape.last().map_or(0, |&m| m as usize);
    let cache = task.tensor(name)?;
    let pages = cache.shape.first().map_or(0, |&p| p as usize);
    let blocks = indices(task, "block_table", pages)?;
    let (bytes, row) = (cache.load()?, d * cache.element_bytes());
    let mut dense = vec![0; lens.len() * kv_heads * context * row];
    for (at, out) in dense.chunks_exact_mut(row.max(1)).enumerate() {
        let (token, head, sequence) = (at % context, at / context % kv_heads, at / context / kv_heads);
        if token >= lens[sequence] as usize {
            continue;
        }
        let found = blocks.get(sequence * most + token / page).and_then(|&block| {
            let from = ((block as usize * kv_heads + head) * page + token % page) * row;
            bytes.get(from..from + row)
        });
        let Some(found) = found else {
            return Err(Refusal::failed(format!("{name} or block_table is too small for the lengths")));
        };
        out.copy_from_slice(found);
    }
    Ok(dense)
}
