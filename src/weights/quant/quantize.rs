//! Weights in f32 to a scaled format: by the largest magnitude of what shares a scale, or by the scale of the least squared error.

use super::{Fault, Packed, QuantError, SCALES, count, size, too_large, unheld};
use crate::problem::{Granularity, SCALE_BLOCK, ScaledFormat, Storage, Zero, e4m3_from_f32};
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// So that the largest magnitude is the largest code; with zero points or minima, so that both ends are codes.
    AbsMax,
    /// Of scales down to two fifths of that, and up to a twentieth above, the one of the least squared error.
    Search,
}

/// Scales that a search tries, as shares of that of the largest magnitude, in hundredths.
const SHARES: std::ops::RangeInclusive<u32> = 40..=105;
const E4M3_MAX: f32 = 448.0;
/// Elements of one scale beyond which all threads look at them.
const LONG: usize = 1 << 16;

/// What a scale and its codes are for some elements.
struct Fit {
    scale: f32,
    /// A zero point or a minimum.
    zero: f32,
    /// The codes, as stored.
    codes: Vec<u8>,
    error: f64,
}

struct Quantizer {
    format: ScaledFormat,
    scale: Storage,
    method: Method,
}

impl Quantizer {
    /// The largest code, and the least, less the zero point of a symmetric format.
    fn ends(&self) -> (f32, f32) {
        match (self.format.codes, self.format.zero) {
            (Storage::Int4, Zero::None) => (-8.0, 7.0),
            (Storage::Int4, _) => (0.0, 15.0),
            (Storage::Int8, _) => (-127.0, 127.0),
            _ => (-E4M3_MAX, E4M3_MAX),
        }
    }

    /// Scale and zero point or minimum that hold all values, before rounding.
    fn whole(&self, values: &[f32]) -> (f32, f32) {
        let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
        match self.format.zero {
            Zero::None => (high.max(-low) / self.ends().1, 0.0),
            Zero::Zero => ((high - low) / 15.0, low),
            Zero::Min => {
                let low = values.iter().copied().fold(f32::INFINITY, f32::min);
                let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                ((high - low) / 15.0, low)
            }
        }
    }

    /// The codes of values at a scale and a least value, each rounded to what is stored.
    fn fit(&self, values: &[f32], scale: f32, low: f32) -> Fit {
        let scale = self.scale.round(scale);
        let over = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (least, most) = self.ends();
        let zero = match self.format.zero {
            Zero::None => 0.0,
            Zero::Zero => (-low * over).round().clamp(0.0, 15.0),
            Zero::Min => self.scale.round(low),
        };
        let (mut codes, mut error) = (Vec::with_capacity(values.len()), 0.0);
        for v in values {
            let exact = match self.format.zero {
                Zero::None => v * over,
                Zero::Zero => v * over + zero,
                Zero::Min => (v - zero) * over,
            };
            let code = match self.format.codes {
                Storage::E4m3 => Storage::E4m3.round(exact.clamp(least, most)),
                _ => exact.round_ties_even().clamp(least, most),
            };
            let value = match self.format.zero {
                Zero::None => code * scale,
                Zero::Zero => (code - zero) * scale,
                Zero::Min => code * scale + zero,
            };
            error += f64::from(value - v).powi(2);
            codes.push(match self.format.codes {
                Storage::E4m3 => e4m3_from_f32(code),
                Storage::Int8 => code as i8 as u8,
                _ => (code + f32::from(self.format.bias())) as u8,
            });
        }
        Fit { scale, zero, codes, error }
    }

    /// The squared error of codes at a scale and a least value, as [`Quantizer::fit`] has it but for the order of sums: the same
    /// rounding without a branch for each element, since a search looks at each dozens of times. None once it is above `limit`.
    fn loss(&self, values: &[f32], (scale, low): (f32, f32), limit: f64) -> Option<f64> {
        let scale = self.scale.round(scale);
        let over = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (least, most) = self.ends();
        let sum = |error: &(dyn Fn(&[f32]) -> f32 + Sync)| {
            let of = |values: &[f32]| values.chunks(64).map(|part| f64::from(error(part))).sum::<f64>();
            if values.len() > LONG {
                // The sums of parts are added in their order, so that the bits are always the same.
                let parts: Vec<f64> = values.par_chunks(LONG).map(of).collect();
                return Some(parts.into_iter().sum());
            }
            let mut all = 0.0;
            values.chunks(64).map(|part| f64::from(error(part))).all(|part| {
                all += part;
                all <= limit
            });
            (all <= limit).then_some(all)
        };
        match (self.format.codes, self.format.zero) {
            (Storage::E4m3, _) => sum(&|part| squares(part, |v| rounded_e4m3((v * over).clamp(least, most)) * scale)),
            (_, Zero::None) => sum(&|part| squares(part, |v| rounded(v * over).clamp(least, most) * scale)),
            (_, Zero::Zero) => {
                let zero = (-low * over).round().clamp(0.0, 15.0);
                sum(&|part| squares(part, |v| (rounded(v * over + zero).clamp(least, most) - zero) * scale))
            }
            (_, Zero::Min) => {
                let min = self.scale.round(low);
                sum(&|part| squares(part, |v| rounded((v - min) * over).clamp(least, most) * scale + min))
            }
        }
    }

    fn best(&self, values: &[f32]) -> Fit {
        let (scale, low) = self.whole(values);
        let whole = self.fit(values, scale, low);
        if self.method == Method::AbsMax || whole.error == 0.0 {
            return whole;
        }
        // With a least value the range shrinks towards its middle, which moves that value.
        let shrunk = |share: u32| {
            let share = share as f32 / 100.0;
            (scale * share, low + scale * 7.5 * (1.0 - share))
        };
        // From the largest magnitude downwards, where the best is near, so that most of the others are soon given up.
        let (mut least, mut best) = (f64::INFINITY, None);
        for share in SHARES.rev() {
            match self.loss(values, shrunk(share), least) {
                Some(loss) if loss <= least => (least, best) = (loss, Some(share)),
                _ => {}
            }
        }
        let Some(share) = best else { return whole };
        let (scale, low) = shrunk(share);
        let found = self.fit(values, scale, low);
        if found.error < whole.error { found } else { whole }
    }
}

/// The sum of squared differences of values and what they become.
#[inline(always)]
fn squares(values: &[f32], becomes: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, v) in sums.iter_mut().zip(eight) {
            *sum += (becomes(*v) - v) * (becomes(*v) - v);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| (becomes(*v) - v) * (becomes(*v) - v)).sum::<f32>()
}

/// The nearest whole number, ties to even, of numbers below 2^22: what is added leaves no bit for a fraction.
#[inline(always)]
fn rounded(v: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    v + NO_FRACTION - NO_FRACTION
}

/// The nearest E4M3 value of numbers up to 448.
#[inline(always)]
fn rounded_e4m3(v: f32) -> f32 {
    let bits = v.to_bits();
    // Three bits of mantissa, ties to even; below 2^-6 steps of 2^-9.
    let normal = f32::from_bits((bits + 0x7_ffff + (bits >> 20 & 1)) & !0xf_ffff);
    if v.abs() < 1.0 / 64.0 { rounded(v * 512.0) / 512.0 } else { normal }
}

/// The weight w[n, k] of that name in a format with scales of that type.
///
/// # Errors
/// Another number of values than n·k, values that are not finite, a scale beyond what its type holds, an odd k of 4 bits, and a format
/// that there is none of.
pub fn quantize(
    name: &str,
    values: &[f32],
    [n, k]: [u64; 2],
    (format, scale): (ScaledFormat, Storage),
    method: Method,
) -> Result<Packed, QuantError> {
    size(name, [n, k])?;
    if values.len() as u64 != n * k {
        let fault = Fault::Count { found: values.len() as u64, wanted: n * k };
        return Err(QuantError::new(name, fault));
    }
    let mut packed = Packed { format, scale, n, k, codes: Vec::new(), scales: Vec::new(), zeros: Vec::new() };
    if !ScaledFormat::all().any(|f| f == format) || !SCALES.contains(&scale) {
        let instead = format!("formats are {}, scales f32, f16 or bf16", ScaledFormat::names());
        return Err(unheld(name, "a product", &packed, &instead));
    }
    if format.codes == Storage::Int4 && k % 2 != 0 {
        return Err(QuantError::new(name, Fault::Multiple { what: "k", found: k, of: 2 }));
    }
    if let Some(index) = values.par_iter().position_first(|v| !v.is_finite()) {
        let fault = Fault::NotFinite { index: index as u64, value: values[index].into() };
        return Err(QuantError::new(name, fault));
    }
    let quantizer = Quantizer { format, scale, method };
    // Rows that share a scale with no other, and their scales.
    let rows = match format.per {
        Granularity::Tensor => n,
        Granularity::Block => SCALE_BLOCK as u64,
        Granularity::Row | Granularity::Group(_) => 1,
    };
    let runs = count(format.per, rows, k);
    let mut codes = vec![0; format.codes.bytes(n * k) as usize];
    let each = format.codes.bytes(rows * k) as usize;
    let bands = codes.par_chunks_mut(each).enumerate().map(|(band, out)| {
        let (scales, first) = (band as u64 * runs..(band as u64 + 1) * runs, band as u64 * rows * k);
        let mut codes = vec![0; (out.len() as u64 * 8 / format.codes.bits()) as usize];
        let of_scale = |i| {
            let fit = quantizer.best(&part(values, &packed, i));
            let places = rows_of(&packed, i).flat_map(|(row, from, to)| row * k + from..row * k + to);
            places.zip(&fit.codes).for_each(|(at, code)| codes[(at - first) as usize] = *code);
            Fit { codes: Vec::new(), ..fit }
        };
        let fits: Vec<Fit> = scales.map(of_scale).collect();
        match format.codes {
            Storage::Int4 => codes.chunks(2).zip(out).for_each(|(pair, out)| *out = pair[0] | pair[1] << 4),
            _ => out.copy_from_slice(&codes),
        }
        fits
    });
    let fits: Vec<Fit> = bands.flatten_iter().collect();
    packed.codes = codes;
    for (i, fit) in (0..).zip(&fits) {
        if !fit.scale.is_finite() || !fit.zero.is_finite() {
            let value = f64::from(if fit.scale.is_finite() { fit.zero } else { fit.scale });
            return Err(QuantError::new(name, too_large(i, value, format, "scale=f32 does")));
        }
        store(&mut packed.scales, scale, fit.scale);
        match format.zero {
            Zero::None => {}
            Zero::Zero => packed.zeros.push(fit.zero as u8),
            Zero::Min => store(&mut packed.zeros, scale, fit.zero),
        }
    }
    packed.check(name)?;
    Ok(packed)
}

/// The rows of what shares scale `i`, and their columns from and to.
fn rows_of(p: &Packed, i: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
    let (run, runs) = (p.run(), p.k.div_ceil(p.run()));
    let (rows, at) = match p.format.per {
        Granularity::Tensor => (0..p.n, 0),
        Granularity::Row => (i..i + 1, 0),
        Granularity::Group(_) => (i / runs..i / runs + 1, i % runs),
        Granularity::Block => {
            let side = SCALE_BLOCK as u64;
            (i / runs * side..p.n.min((i / runs + 1) * side), i % runs)
        }
    };
    let (from, to) = (at * run, p.k.min((at + 1) * run));
    rows.map(move |row| (row, from, to))
}

/// The values that share scale `i`.
fn part<'v>(values: &'v [f32], p: &Packed, i: u64) -> Cow<'v, [f32]> {
    let of = |(row, from, to): (u64, u64, u64)| &values[(row * p.k + from) as usize..(row * p.k + to) as usize];
    match p.format.per {
        Granularity::Tensor => values.into(),
        Granularity::Block => rows_of(p, i).flat_map(of).copied().collect(),
        Granularity::Row | Granularity::Group(_) => rows_of(p, i).next().map(of).unwrap_or_default().into(),
    }
}

fn store(to: &mut Vec<u8>, storage: Storage, v: f32) {
    match storage {
        Storage::F16 => to.extend(f16::from_f32(v).to_le_bytes()),
        Storage::Bf16 => to.extend(bf16::from_f32(v).to_le_bytes()),
        _ => to.extend(v.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::hash_uniform;

    /// Sums of uniform numbers, so that large ones are rare, as in trained weights.
    fn weights(seed: u64, count: u64) -> Vec<f32> {
        (0..count).map(|i| (0..4).map(|j| hash_uniform(seed, 4 * i + j)).sum::<f32>() * 0.05).collect()
    }

    fn error(p: &Packed, values: &[f32]) -> f64 {
        let of = |i: u64| f64::from(p.value(i / p.k, i % p.k) - values[i as usize]).powi(2);
        (0..p.n * p.k).map(of).sum::<f64>()
    }

    #[test]
    fn errors_are_within_half_a_step_and_a_search_has_less() {
        for format in ScaledFormat::all() {
            for scale in SCALES {
                let (n, k) = (131, 262);
                let values = weights(3, n * k);
                let p = quantize("q", &values, [n, k], (format, scale), Method::AbsMax).unwrap();
                for i in 0..n * k {
                    let (row, col) = (i / k, i % k);
                    let (v, step) = (values[i as usize], scale.value(&p.scales, p.at(row, col)) as f32);
                    // Half a step, that of the zero point or minimum, and the rounding of the scale at the largest code.
                    let rounded = match scale {
                        Storage::Bf16 => 1.0 / 256.0,
                        _ => 1.0 / 2048.0,
                    };
                    let most =
                        if format.codes == Storage::E4m3 { v.abs() / 16.0 + step / 1024.0 } else { step * 0.501 };
                    let most = most + if format.zero == Zero::Zero { step * 0.5 } else { 0.0 };
                    let far = (p.value(row, col) - v).abs();
                    assert!(far <= most + 0.25 * rounded, "{format} {scale}: {far} of {v}, step {step}");
                }
                let searched = quantize("q", &values, [n, k], (format, scale), Method::Search).unwrap();
                let (one, other) = (error(&p, &values), error(&searched, &values));
                assert!(other <= one, "{format} {scale}: {other} {one}");
                if format.codes == Storage::Int4 && format.per == Granularity::Row {
                    assert!(other < 0.95 * one, "{format} {scale}: {other} {one}");
                }
            }
        }
    }

    /// What a search compares is what a fit has, but for sums in another order.
    #[test]
    fn a_loss_is_the_error_of_a_fit() {
        for format in ScaledFormat::all() {
            let quantizer = Quantizer { format, scale: Storage::F16, method: Method::Search };
            let mut values = weights(5, 203);
            values.extend([0.0, -0.0, 1e-9, 1e-3, -2e-3]);
            let (scale, low) = quantizer.whole(&values);
            for share in [0.4, 0.73, 1.0, 1.05] {
                let error = quantizer.fit(&values, scale * share, low).error;
                let loss = |limit| quantizer.loss(&values, (scale * share, low), limit);
                let whole = loss(f64::INFINITY).unwrap();
                assert!((error - whole).abs() <= 1e-4 * error + 1e-12, "{format} {share}: {error} {whole}");
                assert_eq!((loss(whole), loss(whole * 0.999)), (Some(whole), None), "{format} {share}");
            }
        }
        for v in
            (0..0x7fu8).map(|b| Storage::E4m3.value(&[b], 0) as f32).flat_map(|v| [v, -v, v * 1.03, v * 1.061, v * 0.9])
        {
            assert_eq!(rounded_e4m3(v.clamp(-448.0, 448.0)), Storage::E4m3.round(v), "{v}");
        }
    }

    #[test]
    fn what_a_format_holds_is_kept() {
        // Multiples of a scale that is a power of two, both ends among them.
        for (format, codes) in
            [("int4-g32", -7..=7), ("int8-row", -127..=127), ("int4z-g32", -7..=8), ("int4m-g32", 0..=15)]
        {
            let codes: Vec<i32> = codes.collect();
            let values: Vec<f32> = (0..4 * 254).map(|i| codes[i % codes.len()] as f32 / 64.0).collect();
            for method in [Method::AbsMax, Method::Search] {
                let format = ScaledFormat::parse(format).unwrap();
                let p = quantize("q", &values, [4, 254], (format, Storage::F32), method).unwrap();
                let last = 253 / 32 * 32;
                for i in (0..4 * 254).filter(|i| i % 254 < last) {
                    let (found, wanted) = (p.value(i / 254, i % 254), values[i as usize]);
                    assert!((found - wanted).abs() < 1e-6, "{format}: {found} {wanted}");
                }
            }
        }
        let zeros = quantize(
            "q",
            &[0.0; 64],
            [2, 32],
            (ScaledFormat::parse("int4z-g32").unwrap(), Storage::F16),
            Method::Search,
        );
        assert!((0..64).all(|i| zeros.as_ref().unwrap().value(i / 32, i % 32) == 0.0));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let format = |name| (ScaledFormat::parse(name).unwrap(), Storage::F16);
        let of = |values: &[f32], shape, format| {
            quantize("q", values, shape, format, Method::AbsMax).unwrap_err().to_string()
        };
        assert!(of(&[f32::NAN, 0.0], [1, 2], format("int4-row")).contains("q: element 0 is NaN"));
        assert!(of(&[1e9, 0.0], [1, 2], format("int4-row")).contains("scale=f32 does"));
        assert!(of(&[1.0; 3], [1, 3], format("int4-row")).contains("no multiple of 2"));
        assert!(of(&[1.0; 3], [1, 4], format("int4-row")).contains("q: 3 values are given"));
        assert!(of(&[], [0, 4], format("int4-row")).contains("none"));
    }
}
