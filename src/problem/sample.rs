//! The next token of each row of logits, by the settings of the row, and log-probabilities.
//!
//! What is drawn is an exact function of logits, settings and u, the same on every device. A token's weight is an integer that
//! follows from its logit in a few f32 operations, each rounded once and none contracted; whatever comes after is sums and
//! comparisons of integers, which no order changes. Settings apply in this order: penalty, temperature, top_k, top_p, min_p.

use super::tensor::IndexFill;
use super::{DimDef, Expected, Fill, Inputs, OpDef, Problem, Storage, Tensor, hash_uniform};

/// Most tokens whose log-probabilities a row may ask for.
pub(crate) const MOST_TOP: i64 = 20;
/// f32 settings of a row: temperature, top_p, min_p, penalty, u, and one that nothing reads yet.
pub(crate) const SETTINGS: usize = 6;

pub(super) static OP: OpDef = OpDef {
    name: "sample",
    summary: "the next token of each row of logits by its settings, and log-probabilities",
    probe: "sample rows=3 cols=7 top=2",
    dims: &[
        DimDef::size("rows"),
        DimDef::contract("cols"),
        DimDef::option("top", 0),
        DimDef::workload("settings", &["mixed", "greedy", "plain", "nucleus"]),
    ],
    check: |p| {
        let (top, cols) = (p.dim("top"), p.dim("cols"));
        if top > MOST_TOP.min(cols) {
            return Err(format!("top must be at most {MOST_TOP}, and at most cols"));
        }
        Ok(())
    },
    tensors: |p| {
        let [rows, cols, top] = ["rows", "cols", "top"].map(|name| p.dim(name));
        let turns = Turns::of(p);
        let mut list = vec![
            Tensor::input("x", p.types.x, &[rows, cols], Fill::Uniform { scale: 8.0 }),
            Tensor::input("settings", Storage::F32, &[rows, SETTINGS as i64], Fill::Settings(turns)),
            Tensor::input("top_k", Storage::I32, &[rows], Fill::Index(IndexFill::TopK(turns))),
            Tensor::input("seen", Storage::I32, &[rows, (cols + 31) / 32], Fill::Index(IndexFill::Bits)),
            Tensor::output("y", Storage::I32, &[rows]),
            Tensor::output("logprobs", Storage::F32, &[rows, 1 + top]),
        ];
        if top > 0 {
            list.push(Tensor::output("ids", Storage::I32, &[rows, top]));
        }
        list
    },
    flops: |p| 5.0 * (p.dim("rows") * p.dim("cols")) as f64,
    units: |p| p.dim("rows") as u64,
    // A row is also sorted.
    unit_cost: |p| 4 * p.dim("cols") as u64,
    unit,
    slack: 1.0,
    mixed: false,
    scaled: false,
    cached: false,
};

/// How the settings of a test spread over its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    kind: Kind,
    cols: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Every fifth row is greedy; the others have each mix of top_k, top_p, min_p and penalty in turn.
    Mixed,
    /// Every row takes its largest logit.
    Greedy,
    /// A temperature and nothing else.
    Plain,
    /// A temperature and top_p.
    Nucleus,
}

/// Which settings a row has beside a temperature, as bits.
const TOP_K: u64 = 1;
const TOP_P: u64 = 2;
const MIN_P: u64 = 4;
const PENALTY: u64 = 8;

impl Turns {
    fn of(p: &Problem) -> Turns {
        let kind = match p.word("settings") {
            "greedy" => Kind::Greedy,
            "plain" => Kind::Plain,
            "nucleus" => Kind::Nucleus,
            _ => Kind::Mixed,
        };
        Turns { kind, cols: p.dim("cols") }
    }

    /// Whether a row is sampled, and the settings that it has.
    fn row(self, row: u64) -> (bool, u64) {
        match self.kind {
            Kind::Greedy => (false, 0),
            Kind::Plain => (true, 0),
            Kind::Nucleus => (true, TOP_P),
            // 13 is odd: sixteen rows have sixteen mixes, the first top_k and top_p.
            Kind::Mixed => (row % 5 != 1, (TOP_K + TOP_P + 13 * row) % 16),
        }
    }

    /// The f32 settings of `rows`, [`SETTINGS`] each.
    pub(super) fn settings(self, rows: u64, seed: u64) -> Vec<f32> {
        let row = |row: u64| {
            let (sampled, has) = self.row(row);
            let draw = |field, low: f32, high: f32| {
                let unit = hash_uniform(seed, row * SETTINGS as u64 + field) / 2.0 + 0.5;
                low + unit * (high - low)
            };
            let or = |bit, value, off| if has & bit > 0 { value } else { off };
            [
                if sampled { draw(0, 0.3, 1.5) } else { 0.0 },
                or(TOP_P, draw(1, 0.5, 0.98), 1.0),
                or(MIN_P, draw(2, 0.01, 0.2), 0.0),
                or(PENALTY, draw(3, 1.05, 1.5), 1.0),
                draw(4, 0.0, 1.0),
                0.0,
            ]
        };
        (0..rows).flat_map(row).collect()
    }

    /// top_k of `rows`; where a row has none, numbers that say so.
    pub(super) fn top_k(self, rows: u64, seed: u64) -> Vec<i32> {
        let most = self.cols.min(200);
        let row = |row: u64| match self.row(row).1 & TOP_K {
            0 => [0, -1, self.cols][(row % 3) as usize],
            _ => 1 + ((hash_uniform(seed, row) / 2.0 + 0.5) * most as f32) as i64,
        };
        (0..rows).map(|i| row(i) as i32).collect()
    }
}

/// The settings of a row.
struct Settings {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    penalty: f32,
    u: f32,
    top_k: i32,
}

/// A number in the order of the logits, -0 as 0; NaN below all.
fn key(v: f32) -> u32 {
    let bits = (v + 0.0).to_bits();
    match v.is_nan() {
        true => 0,
        false if bits >> 31 == 1 => !bits,
        false => bits | 1 << 31,
    }
}

/// floor(2^(31 + z)) for z ≤ 0, nearly: 2^31 at 0, 1 at -31, and nothing below and of NaN. The kernels have the same steps.
pub(crate) fn weight(z: f32) -> u32 {
    /// 2^f on [-1/2, 1/2] to 2^-24 (Cephes, exp2f), the highest power first.
    const POWERS: [f32; 6] = [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
    /// Adding it rounds to a whole number.
    const SHIFT: f32 = 12_582_912.0;
    if z.is_nan() || z < -31.0 {
        return 0;
    }
    let n = (z + SHIFT) - SHIFT;
    let f = z - n;
    let power = POWERS.iter().fold(1.535_336_2e-4, |p, c| p * f + c);
    // At most 1.5 · 2^24, which an f32 holds exactly.
    (((power * 16_777_216.0) as u32) << 7) >> (-n) as u32
}

/// The token of a row; `seen` says which tokens are penalised. A NaN is never drawn, and where all logits are NaN or -∞ the token
/// is 0. Where the largest is +∞, those that are share what there is.
fn draw(logits: &[f32], seen: impl Fn(usize) -> bool, s: &Settings) -> usize {
    let penalised = |(c, &v): (usize, &f32)| match seen(c) {
        true if v > 0.0 => v / s.penalty,
        true => v * s.penalty,
        false => v,
    };
    let values: Vec<f32> = logits.iter().enumerate().map(penalised).collect();
    let best = (0..values.len()).rev().max_by_key(|&c| key(values[c])).unwrap_or(0);
    if key(values[best]) <= key(f32::NEG_INFINITY) {
        return 0;
    }
    // A temperature that is none is greedy too.
    if s.temperature.is_nan() || s.temperature <= 0.0 {
        return best;
    }
    let (most, scale) = (values[best], std::f32::consts::LOG2_E / s.temperature);
    let of = |v: f32| weight(if v == most { 0.0 } else { (v - most) * scale });
    let mut kept: Vec<(u32, usize, u64)> =
        values.iter().enumerate().map(|(c, &v)| (key(v), c, u64::from(of(v)))).filter(|(.., w)| *w > 0).collect();
    kept.sort_by_key(|&(key, c, _)| (std::cmp::Reverse(key), c));
    let sum = |list: &[(u32, usize, u64)]| list.iter().map(|(.., w)| w).sum::<u64>();
    if let Some(&(last, ..)) = usize::try_from(s.top_k).ok().and_then(|k| kept.get(k.checked_sub(1)?)) {
        kept.truncate(kept.partition_point(|(key, ..)| *key >= last));
    }
    // top_p in units of 2^-32, rounded down.
    if s.top_p < 1.0 {
        let share = (s.top_p * 4_294_967_296.0) as u64;
        let needed = (u128::from(sum(&kept)) * u128::from(share)).div_ceil(1 << 32).max(1);
        let mut so_far = 0;
        let enough = kept.iter().position(|(.., w)| {
            so_far += u128::from(*w);
            so_far >= needed
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
    // min_p · 2^31 is exact; a whole weight is at least that where it is at least the next whole number.
    let least = if s.min_p > 0.0 { (s.min_p.min(1.0) * 2_147_483_648.0).ceil() as u64 } else { 0 };
    kept.retain(|(.., w)| *w >= least);
    let u = ((s.u * 16_777_216.0) as u64).min((1 << 24) - 1);
    let target = ((u128::from(sum(&kept)) * u128::from(u)) >> 24) as u64;
    kept.sort_by_key(|(_, c, _)| *c);
    let mut so_far = 0;
    let found = kept.iter().find(|(.., w)| {
        so_far += w;
        so_far > target
    });
    found.map_or(best, |(_, c, _)| *c)
}

/// Of each of these tokens ln of its probability by the softmax of the logits; -∞ for NaN.
fn logprobs(logits: &[f32], tokens: &[usize]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Equals first: of infinities there is no difference.
    let below = |v: f32| match v {
        v if v == most => 0.0,
        v if v.is_nan() => f64::NEG_INFINITY,
        v => f64::from(v) - f64::from(most),
    };
    let all = logits.iter().map(|v| below(*v).exp()).sum::<f64>().ln();
    let of = |v: f32| if v.is_nan() { f64::NEG_INFINITY } else { below(v) - all };
    tokens.iter().map(|c| of(logits[*c])).collect()
}

fn unit(p: &Problem, inputs: &Inputs, row: u64, out: &mut Vec<Expected>) {
    let [cols, top] = ["cols", "top"].map(|name| p.dim(name) as u64);
    let (x, seen, words) = (inputs.get("x"), inputs.get("seen"), cols.div_ceil(32));
    let logits: Vec<f32> = (0..cols).map(|c| x.at(row * cols + c) as f32).collect();
    let set = |i| inputs.get("settings").at(row * SETTINGS as u64 + i) as f32;
    let settings = Settings {
        temperature: set(0),
        top_p: set(1),
        min_p: set(2),
        penalty: set(3),
        u: set(4),
        top_k: inputs.get("top_k").at(row) as i32,
    };
    let seen = |c: usize| seen.at(row * words + c as u64 / 32) as i32 >> (c % 32) & 1 == 1;
    let mut tokens = vec![draw(&logits, seen, &settings)];
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if top > 0 {
        let likelier = |c: &usize| (std::cmp::Reverse(key(logits[*c])), *c);
        order.select_nth_unstable_by_key(top as usize - 1, likelier);
        order.truncate(top as usize);
        order.sort_by_key(likelier);
        tokens.extend(&order);
    }
    out.push(Expected::new("y", row, tokens[0] as f64));
    let each = (row * (1 + top)..).zip(logprobs(&logits, &tokens));
    out.extend(each.map(|(i, value)| Expected::new("logprobs", i, value)));
    out.extend((row * top..).zip(&tokens[1..]).map(|(i, c)| Expected::new("ids", i, *c as f64)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Settings = Settings { temperature: 1.0, top_p: 1.0, min_p: 0.0, penalty: 1.0, u: 0.5, top_k: 0 };

    #[test]
    fn a_weight_is_a_power_of_two_to_seven_digits_and_never_out_of_order() {
        assert_eq!((weight(0.0), weight(-0.0), weight(-1.0), weight(-31.0)), (1 << 31, 1 << 31, 1 << 30, 1));
        for z in [-31f32.next_up(), -31.5, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(weight(z), 0, "{z}");
        }
        let mut last = 1 << 31;
        for i in 0..310_000 {
            let z = -(i as f32) * 1e-4;
            let (w, wanted) = (weight(z), (31.0 + f64::from(z)).exp2());
            assert!((f64::from(w) - wanted).abs() <= 1.0 + wanted * 3e-7, "{z}: {w} {wanted}");
            assert!(w <= last, "{z}");
            last = w;
        }
    }

    /// What u draws by probabilities in f64, in the order of transformers' processors: the token's share of the line from 0 to
    /// 1, and that of those before it.
    fn share(logits: &[f32], seen: &[bool], s: &Settings, token: usize) -> (f64, f64) {
        let penalty = f64::from(s.penalty);
        let scores: Vec<f64> = logits
            .iter()
            .zip(seen)
            .map(|(v, seen)| match (seen, f64::from(*v)) {
                (false, v) => v,
                (true, v) if v < 0.0 => v * penalty,
                (true, v) => v / penalty,
            })
            .map(|v| v / f64::from(s.temperature))
            .collect();
        let softmax = |scores: &[f64]| -> Vec<f64> {
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|v| (v - most).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.into_iter().map(|e| e / sum).collect()
        };
        let mut left = scores.clone();
        if s.top_k > 0 {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[(s.top_k as usize).min(sorted.len()) - 1];
            left.iter_mut().filter(|v| **v < least).for_each(|v| *v = f64::NEG_INFINITY);
        }
        let p = softmax(&left);
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
        let mut before = 0.0;
        for (i, c) in order.iter().enumerate() {
            if i > 0 && before >= f64::from(s.top_p) {
                left[*c] = f64::NEG_INFINITY;
            }
            before += p[*c];
        }
        let p = softmax(&left);
        let most = p.iter().copied().fold(0.0, f64::max);
        for (v, p) in left.iter_mut().zip(&p) {
            if *p < f64::from(s.min_p) * most {
                *v = f64::NEG_INFINITY;
            }
        }
        let p = softmax(&left);
        (p[..token].iter().sum(), p[token])
    }

    #[test]
    fn what_is_drawn_is_what_probabilities_say() {
        let mut kinds = std::collections::BTreeSet::new();
        for round in 0..4000u64 {
            let uniform = |i: u64| hash_uniform(round, i) / 2.0 + 0.5;
            let cols = 1 + (uniform(0) * 200.0) as usize;
            let logits: Vec<f32> = (0..cols as u64).map(|c| hash_uniform(round, 100 + c) * 8.0).collect();
            let seen: Vec<bool> = (0..cols as u64).map(|c| hash_uniform(round, 1000 + c) > 0.5).collect();
            let has = |bit: u64| round >> bit & 1 == 1;
            let s = Settings {
                temperature: 0.2 + uniform(1) * 2.0,
                top_p: if has(0) { uniform(2) } else { 1.0 },
                min_p: if has(1) { uniform(3) * 0.3 } else { 0.0 },
                penalty: if has(2) { 0.7 + uniform(4) } else { 1.0 },
                top_k: if has(3) { 1 + (uniform(5) * 60.0) as i32 } else { 0 },
                u: uniform(6),
            };
            let token = draw(&logits, |c| seen[c], &s);
            let (before, own) = share(&logits, &seen, &s, token);
            let u = f64::from(s.u);
            assert!(own > 0.0 && before - 2e-6 <= u && u <= before + own + 2e-6, "{round}: {u} in {before} + {own}");
            kinds.insert((round % 16, own < 1.0));
        }
        assert_eq!(kinds.len(), 32);
    }

    #[test]
    fn equals_stay_together_in_top_k_and_go_by_index_in_top_p() {
        let logits = [1.0, 3.0, 2.0, 3.0, 2.0, 3.0];
        let all = |s: Settings| -> Vec<usize> {
            let tokens = (0..=64).map(|i| draw(&logits, |_| false, &Settings { u: i as f32 / 65.0, ..s }));
            tokens.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
        };
        assert_eq!(all(Settings { top_k: 1, ..PLAIN }), [1, 3, 5]);
        assert_eq!(all(Settings { top_k: 4, ..PLAIN }), [1, 2, 3, 4, 5]);
        assert_eq!(all(Settings { top_k: 6, ..PLAIN }).len(), 6);
        assert_eq!(all(Settings { top_p: 0.0, ..PLAIN }), [1]);
        assert_eq!(all(Settings { top_p: 0.5, top_k: 3, ..PLAIN }), [1, 3]);
        assert_eq!(all(Settings { top_p: 0.3333, top_k: 3, ..PLAIN }), [1]);
        assert_eq!(all(Settings { min_p: 1.0, ..PLAIN }), [1, 3, 5]);
        assert_eq!(all(Settings { temperature: 1e-6, ..PLAIN }), [1, 3, 5]);
        assert_eq!(all(Settings { temperature: 1e6, ..PLAIN }).len(), 6);
        assert_eq!(all(Settings { temperature: 0.0, top_p: 0.1, min_p: 0.5, ..PLAIN }), [1]);
        let ends = [0.0, 1f32.next_down()].map(|u| draw(&logits, |_| false, &Settings { u, ..PLAIN }));
        assert_eq!(ends, [0, 5]);
    }

    #[test]
    fn what_is_no_number_is_never_drawn() {
        let (nan, high, low) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        for temperature in [0.0, 1.0] {
            let draw = |logits: &[f32]| draw(logits, |_| false, &Settings { temperature, u: 0.7, ..PLAIN });
            assert_eq!(draw(&[nan, low, 1.0, nan]), 2);
            assert_eq!(draw(&[nan, low, low]), 0);
            assert_eq!(draw(&[nan, nan]), 0);
            assert_eq!(draw(&[1.0, high, 5.0]), 1);
            assert_eq!(draw(&[0.0, high, high]), if temperature > 0.0 { 2 } else { 1 });
        }
        assert_eq!(
            logprobs(&[1.0, high, nan, high, low], &[0, 1, 2, 4]),
            [f64::NEG_INFINITY, -(2f64.ln()), f64::NEG_INFINITY, f64::NEG_INFINITY]
        );
        let of = logprobs(&[1.0, 2.0, low], &[0, 1]);
        assert!((of[0].exp() + of[1].exp() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn rows_of_a_test_have_every_mix_of_settings() {
        let p: Problem = "sample rows=80 cols=500 top=3 dtype=f32".parse().unwrap();
        let inputs = Inputs::new(&p, 3);
        let set = |row: u64, i| inputs.get("settings").at(row * SETTINGS as u64 + i);
        let mixes = (0..80).filter(|row| set(*row, 0) > 0.0).map(|row| {
            let k = (1.0..500.0).contains(&inputs.get("top_k").at(row));
            (k, set(row, 1) < 1.0, set(row, 2) > 0.0, set(row, 3) > 1.0)
        });
        assert_eq!(mixes.collect::<std::collections::BTreeSet<_>>().len(), 16);
        assert_eq!((0..80).filter(|row| set(*row, 0) == 0.0).count(), 16);
        assert!((0..80).all(|row| (0.0..1.0).contains(&set(row, 4))));
    }
}
