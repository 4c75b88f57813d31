//! jitune's text form of a matrix product: `matmul m=16 n=3072 k=2048 dtype=bf16 epilogue=none`.

use std::{fmt, str::FromStr};

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
    Tf32,
}

impl Dtype {
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 | Dtype::Tf32 => 4,
        }
    }

    /// The largest |error| / (rms of the result + |expected|) that rounding and the order of sums explain.
    pub fn limit(self) -> f64 {
        match self {
            Dtype::Bf16 => 3e-2,
            Dtype::F16 => 5e-3,
            Dtype::F32 => 2e-4,
            Dtype::Tf32 => 6e-3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::F32 => "f32",
            Dtype::Tf32 => "tf32",
        }
    }
}

/// y[m, n] = x[m, k] · w[n, k]ᵀ (+ bias[n]), all row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub dtype: Dtype,
    pub bias: bool,
}

impl Problem {
    /// Bytes of every tensor of one launch.
    pub fn bytes(&self) -> usize {
        let bias = if self.bias { self.n } else { 0 };
        (self.m * self.k + self.n * self.k + self.m * self.n + bias) * self.dtype.bytes()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epilogue = if self.bias { "bias" } else { "none" };
        let Problem { m, n, k, dtype, .. } = self;
        write!(f, "matmul m={m} n={n} k={k} dtype={} epilogue={epilogue}", dtype.name())
    }
}

impl FromStr for Problem {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| Error::Problem { text: text.trim().to_owned(), why };
        let mut words = text.split_whitespace();
        if words.next() != Some("matmul") {
            return Err(refuse("only `matmul` is measured here".to_owned()));
        }
        let (mut m, mut n, mut k) = (None, None, None);
        let (mut dtype, mut bias) = (Dtype::Bf16, false);
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(refuse(format!("`{word}` is not key=value")));
            };
            let dimension = || match value.parse::<usize>() {
                Ok(v) if (1..1 << 31).contains(&v) => Ok(Some(v)),
                _ => Err(refuse(format!("`{word}` is not a dimension"))),
            };
            match key {
                "m" => m = dimension()?,
                "n" => n = dimension()?,
                "k" => k = dimension()?,
                "dtype" => {
                    dtype = match value {
                        "bf16" => Dtype::Bf16,
                        "f16" => Dtype::F16,
                        "f32" => Dtype::F32,
                        "tf32" => Dtype::Tf32,
                        _ => return Err(refuse(format!("unknown dtype `{value}`"))),
                    }
                }
                "epilogue" => {
                    bias = match value {
                        "none" => false,
                        "bias" => true,
                        _ => return Err(refuse(format!("cuBLASLt has no epilogue `{value}`"))),
                    }
                }
                _ => return Err(refuse(format!("unknown key `{key}`"))),
            }
        }
        match (m, n, k) {
            (Some(m), Some(n), Some(k)) => Ok(Problem { m, n, k, dtype, bias }),
            _ => Err(refuse("m, n and k are needed".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let p: Problem = "matmul m=4 k=64  n=32 dtype=tf32 epilogue=bias".parse().unwrap();
        assert_eq!(p, Problem { m: 4, n: 32, k: 64, dtype: Dtype::Tf32, bias: true });
        assert_eq!(p.to_string().parse::<Problem>().unwrap(), p);
        assert_eq!(p.bytes(), (4 * 64 + 32 * 64 + 4 * 32 + 32) * 4);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in
            ["rmsnorm rows=1", "matmul m=1 n=2", "matmul m=0 n=1 k=1", "matmul m=1 n=1 k=1 epilogue=swiglu", "matmul m"]
        {
            assert!(matches!(text.parse::<Problem>(), Err(Error::Problem { .. })), "{text}");
        }
    }
}
