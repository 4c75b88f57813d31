//! Rotary position embeddings: which frequencies a model rotates with.

use serde::{Deserialize, Serialize};

/// The frequencies of a model's rotary embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// What becomes of them.
    pub scaling: Scaling,
}

/// How frequencies are changed for sequences that are longer than those of the first training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum Scaling {
    /// Not at all.
    Default,
    /// All divided by a factor (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies are divided by the factor, high ones stay, those between are blended.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings` over this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings` over this are high frequencies.
        high_freq_factor: f64,
        /// Tokens of the longest sequence of the first training.
        original_max_position_embeddings: f64,
    },
    /// Each divided by a factor of its own.
    Factors {
        /// The divisors, of the highest frequency first.
        factors: Vec<f64>,
    },
}

impl Rope {
    /// The angle per position of each rotated pair, `head_dim / 2` of them: a pair at position p turns by p times it.
    pub fn inverse_frequencies(&self, head_dim: i64) -> Vec<f64> {
        let pairs = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        pairs.enumerate().map(|(i, f)| self.scaling.apply(i, f)).collect()
    }
}

impl Scaling {
    fn apply(&self, pair: usize, f: f64) -> f64 {
        match *self {
            Scaling::Factors { ref factors } => f / factors.get(pair).copied().unwrap_or(1.0),
            Scaling::Default => f,
            Scaling::Linear { factor } => f / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: old } => {
                let turns = old * f / std::f64::consts::TAU;
                let share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let share = share.clamp(0.0, 1.0);
                (1.0 - share) * f / factor + share * f
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(factor: f64) -> Rope {
        let (low, high, old) = (1.0, 4.0, 8192.0);
        let scaling = Scaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: old,
        };
        Rope { theta: 5e5, scaling }
    }

    #[test]
    fn high_frequencies_stay_and_low_ones_are_divided() {
        let plain = Rope { theta: 5e5, scaling: Scaling::Default }.inverse_frequencies(64);
        for factor in [8.0, 32.0] {
            let scaled = llama3(factor).inverse_frequencies(64);
            let mut between = 0;
            for (f, s) in plain.iter().zip(&scaled) {
                let wavelength = std::f64::consts::TAU / f;
                if wavelength < 8192.0 / 4.0 {
                    assert_eq!(s, f);
                } else if wavelength > 8192.0 {
                    assert_eq!(*s, f / factor);
                } else {
                    assert!(f / factor < *s && s < f);
                    between += 1;
                }
            }
            assert!(between > 0);
        }
        let linear = Rope { theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } }.inverse_frequencies(4);
        assert_eq!(linear, [0.25, 0.0025]);
    }
}
