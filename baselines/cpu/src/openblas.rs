//! OpenBLAS, loaded where the loader finds it.

use std::ffi::{CStr, c_char, c_float, c_int};

use jitune_peer::Refusal;
use libloading::Library;

use crate::Shape;

type Sgemm = unsafe extern "C" fn(
    c_int, // order
    c_int, // transpose A
    c_int, // transpose B
    c_int, // m
    c_int, // n
    c_int, // k
    c_float,
    *const c_float,
    c_int,
    *const c_float,
    c_int,
    c_float,
    *mut c_float,
    c_int,
);

const ROW_MAJOR: c_int = 101;
const AS_IS: c_int = 111;
const TRANSPOSED: c_int = 112;

pub struct OpenBlas {
    sgemm: Sgemm,
    config: unsafe extern "C" fn() -> *const c_char,
    _library: Library,
}

impl OpenBlas {
    pub fn load(threads: usize) -> Result<OpenBlas, String> {
        let threads = c_int::try_from(threads).map_err(|e| e.to_string())?;
        let missing = |e: libloading::Error| format!("OpenBLAS was not found: {e}");
        // SAFETY: OpenBLAS may be loaded by anyone; the types are those of its cblas.h, and the library is kept.
        unsafe {
            let library =
                Library::new("libopenblas.so.0").or_else(|_| Library::new("libopenblas.so")).map_err(missing)?;
            let sgemm = *library.get::<Sgemm>(b"cblas_sgemm\0").map_err(missing)?;
            let config = *library.get(b"openblas_get_config\0").map_err(missing)?;
            let set = library.get::<unsafe extern "C" fn(c_int)>(b"openblas_set_num_threads\0").map_err(missing)?;
            set(threads);
            Ok(OpenBlas { sgemm, config, _library: library })
        }
    }

    /// As it describes itself: `OpenBLAS 0.3.21 … SkylakeX MAX_THREADS=64`.
    pub fn version(&self) -> String {
        // SAFETY: takes nothing, and gives a string that lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.config)()) };
        text.to_string_lossy().trim_start_matches("OpenBLAS").trim().to_owned()
    }

    /// y[m, n] = x[m, k] · w[n, k]ᵀ, added to y where `add`.
    pub fn multiply(&self, shape: Shape, x: &[f32], w: &[f32], y: &mut [f32], add: bool) -> Result<(), Refusal> {
        let Shape { m, n, k } = shape;
        let int =
            |v: usize| c_int::try_from(v).map_err(|_| Refusal::unsupported(format!("{v} is too large for cblas")));
        let (rows, columns, depth) = (int(m)?, int(n)?, int(k)?);
        debug_assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n);
        let (x, w, y, beta) = (x.as_ptr(), w.as_ptr(), y.as_mut_ptr(), if add { 1.0 } else { 0.0 });
        // SAFETY: the slices were checked to be of these shapes when the task was prepared, and y is borrowed alone.
        unsafe {
            (self.sgemm)(ROW_MAJOR, AS_IS, TRANSPOSED, rows, columns, depth, 1.0, x, depth, w, depth, beta, y, columns);
        }
        Ok(())
    }
}
