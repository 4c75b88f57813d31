//! Medians, noise and ties.

use crate::backend::session::Series;

/// Differences below this share are noise whatever the samples say: two runs of one binary differ by as much.
const LEAST_NOISE: f64 = 0.005;

/// Half the width of a robust 95% interval of the median, as a share of the median: 1.96 · 1.2533 · 1.4826 · MAD / √n
/// (the normal-consistent MAD, and the median's asymptotic standard error).
pub fn noise(series: &Series) -> f64 {
    let median = series.median();
    let spread = Series { us: series.us.iter().map(|v| (v - median).abs()).collect(), ..Series::default() };
    let n = series.us.len().max(1) as f64;
    (3.642 * spread.median() / n.sqrt() / median).max(LEAST_NOISE)
}

/// The candidates that cannot be told from the fastest: their positions, the fastest first.
pub fn ties(series: &[Series]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..series.len()).collect();
    order.sort_by(|&a, &b| series[a].median().total_cmp(&series[b].median()));
    let Some(&best) = order.first() else { return order };
    let (least, own) = (series[best].median(), noise(&series[best]));
    order.retain(|&i| series[i].median() <= least * (1.0 + own.max(noise(&series[i]))));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(us: &[f64]) -> Series {
        Series { us: us.to_vec(), ..Series::default() }
    }

    #[test]
    fn close_medians_tie_and_far_ones_do_not() {
        let list = [series(&[10.2, 10.3, 10.1]), series(&[10.0, 10.1, 9.9]), series(&[12.0, 12.1, 11.9])];
        assert_eq!(ties(&list), [1, 0]);
        let sharp = [series(&[10.2; 20]), series(&[10.0; 20])];
        assert_eq!(ties(&sharp), [1]);
    }

    #[test]
    fn medians_of_even_counts_lie_between() {
        assert_eq!(series(&[1.0, 2.0, 3.0, 10.0]).median(), 2.5);
        assert_eq!(series(&[]).median(), f64::INFINITY);
    }
}
