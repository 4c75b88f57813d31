//! What can go wrong, and the exit code of each.

use cudarc::{cublaslt::result::CublasError, driver::DriverError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("problem `{text}`: {why}")]
    Problem { text: String, why: String },
    #[error("reading problems: {0}")]
    Input(#[from] std::io::Error),
    #[error("no NVIDIA driver: libcuda.so was not found")]
    NoDriver,
    #[error("no CUDA device: {0}")]
    NoDevice(DriverError),
    #[error("cuBLASLt was not found: put the folder of libcublasLt.so.13 on LD_LIBRARY_PATH")]
    NoCublasLt,
    #[error("{what}: {source}")]
    Driver { what: &'static str, source: DriverError },
    #[error("{what}: {source}")]
    CublasLt { what: &'static str, source: CublasError },
    #[error("the heuristics offer no algorithm for `{0}`")]
    NoAlgorithm(String),
    #[error("`{problem}`: every algorithm's result is wrong, the least bad by {error:.2e} (limit {limit:.0e})")]
    Wrong { problem: String, error: f64, limit: f64 },
    #[error("writing results: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// 2: the request is wrong. 3: this machine cannot measure. 1: a measurement failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Problem { .. } | Error::Input(_) => 2,
            Error::NoDriver | Error::NoDevice(_) | Error::NoCublasLt => 3,
            _ => 1,
        }
    }
}

/// Adds what was being done to an error of the driver or of cuBLASLt.
pub trait During<T> {
    fn during(self, what: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Driver { what, source })
    }
}

impl<T> During<T> for Result<T, CublasError> {
    fn during(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::CublasLt { what, source })
    }
}
