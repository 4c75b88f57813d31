//! How far the distributions of two models are apart, by their logits.

/// How far one is from the other, in the mean over positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// KL(reference ‖ other) in nats.
    pub kl: f64,
    /// The share of positions with the same most likely token.
    pub top1: f64,
    /// Positions.
    pub positions: u64,
}

impl Divergence {
    /// Of rows of `vocab` logits each.
    pub fn of<'r>(rows: impl IntoIterator<Item = (&'r [f32], &'r [f32])>) -> Divergence {
        let mut sum = Divergence::default();
        rows.into_iter().for_each(|(p, q)| sum.add(kl(p, q), best(p) == best(q)));
        sum.mean()
    }

    /// Counts a position; [`Divergence::mean`] makes a mean of what was counted.
    pub(crate) fn add(&mut self, kl: f64, same: bool) {
        self.kl += kl;
        self.top1 += f64::from(u8::from(same));
        self.positions += 1;
    }

    pub(crate) fn mean(self) -> Divergence {
        let n = self.positions.max(1) as f64;
        Divergence { kl: self.kl / n, top1: self.top1 / n, ..self }
    }
}

/// The logarithm of the sum of exponentials.
pub fn log_sum(v: &[f32]) -> f64 {
    let top = v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + v.iter().map(|x| (f64::from(*x) - f64::from(top)).exp()).sum::<f64>().ln()
}

/// KL of two softmaxes in nats; infinite where the second has what is no number.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (lp, lq) = (log_sum(p), log_sum(q));
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(p, q)| {
            let (p, q) = (f64::from(*p) - lp, f64::from(*q) - lq);
            p.exp() * (p - q)
        })
        .sum();
    if sum.is_nan() { f64::INFINITY } else { sum }
}

/// The place of the greatest, the first among equals.
pub fn best(logits: &[f32]) -> usize {
    let greatest = |best: (usize, f32), (i, v): (usize, &f32)| if *v > best.1 { (i, *v) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), greatest).0
}
