//! A token from logits, for libraries that leave that to their callers.

use super::Sampling;

/// The token that the settings choose by these logits, and the number `place` of it in its answer: the same seed and place draw alike.
pub fn choose(logits: &[f32], sampling: &Sampling, place: u64) -> u32 {
    let best = || {
        let greatest = |best: (usize, f32), (i, v): (usize, &f32)| if *v > best.1 { (i, *v) } else { best };
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), greatest).0 as u32
    };
    if sampling.temperature <= 0.0 {
        return best();
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    let Some(&first) = order.first() else { return 0 };
    let top = f64::from(logits[first as usize]);
    let mut weights: Vec<f64> = order
        .iter()
        .map(|i| ((f64::from(logits[*i as usize]) - top) / f64::from(sampling.temperature)).exp())
        .collect();
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let kept = weights.iter().position(|w| {
        sum += w / all;
        sum >= f64::from(sampling.top_p)
    });
    weights.truncate(kept.map_or(order.len(), |at| at + 1));
    let all: f64 = weights.iter().sum();
    let mut left = uniform(sampling.seed, place) * all;
    for (i, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *i;
        }
    }
    order[weights.len().saturating_sub(1)]
}

/// A number from 0 to 1, by SplitMix64.
fn uniform(seed: u64, place: u64) -> f64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.0, 1.0, 2.0, -30.0];
        assert_eq!(choose(&logits, &Sampling::default(), 0), 2);
        let count = |sampling: Sampling| {
            let mut count = [0u32; 4];
            for place in 0..20_000 {
                count[choose(&logits, &sampling, place) as usize] += 1;
            }
            count
        };
        let all = 1.0 + 1f64.exp() + 2f64.exp();
        let free = count(Sampling { temperature: 1.0, ..Sampling::default() });
        for (got, weight) in free.iter().zip([1.0, 1f64.exp(), 2f64.exp(), 0.0]) {
            assert!((f64::from(*got) / 20_000.0 - weight / all).abs() < 0.015, "{free:?}");
        }
        let two = count(Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() });
        assert!(two[0] == 0 && two[1] > 0 && two[2] > two[1], "{two:?}");
        let nucleus = count(Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() });
        assert_eq!(nucleus, [0, 0, 20_000, 0]);
    }
}
