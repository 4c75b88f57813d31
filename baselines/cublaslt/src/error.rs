//! What can go wrong, and what is said of it.

use cudarc::{cublaslt::result::CublasError, driver::DriverError};
use jitune_peer::{CudaError, Refusal};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Driver { what: &'static str, source: DriverError },
    #[error("{what}: {source}")]
    CublasLt { what: &'static str, source: CublasError },
    #[error(transparent)]
    Graph(#[from] CudaError),
    #[error("the heuristics offer no algorithm")]
    NoAlgorithm,
    #[error("none of the {0} algorithms offered runs")]
    NoneRuns(usize),
    #[error("{0}")]
    Task(#[from] Refusal),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        match error {
            Error::Task(refusal) => refusal,
            Error::NoAlgorithm => Refusal::unsupported(error),
            _ => Refusal::failed(error),
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
