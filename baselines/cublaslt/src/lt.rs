//! cuBLASLt: the product of one problem as descriptors, its algorithms, and their launch.
//!
//! cuBLASLt counts in columns. A row-major y[m, n] is a column-major n × m matrix with leading dimension n, so
//! y = x·wᵀ becomes yᵀ = (wᵀ)ᵀ·xᵀ: A is w (k × n, transposed), B is x (k × m), and the bias runs along D's rows.

use std::{ffi::c_void, mem, ptr};

use cudarc::cublaslt::{result, sys};

use crate::{
    error::{During, Error},
    gpu::{Buffer, Gpu},
    problem::{Dtype, Problem},
};

/// What torch gives cuBLASLt on this generation.
pub const WORKSPACE_BYTES: usize = 32 << 20;
const REQUESTED: usize = 16;
/// `CUBLAS_OP_T`, of which cudarc's cuBLASLt bindings have no name.
const TRANSPOSE: i32 = 1;

pub struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
}

impl Lt {
    pub fn new() -> Result<Lt, Error> {
        // SAFETY: looks for the library and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoCublasLt);
        }
        let handle = result::create_handle().during("creating a cuBLASLt handle")?;
        Ok(Lt { handle, workspace: Buffer::new(WORKSPACE_BYTES)? })
    }

    /// `13.1.0` for 130100.
    pub fn version(&self) -> String {
        // SAFETY: takes no arguments.
        let v = unsafe { sys::cublasLtGetVersion() };
        format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The tensors of one launch.
pub struct Tensors {
    pub x: Buffer,
    pub w: Buffer,
    pub bias: Option<Buffer>,
    pub y: Buffer,
}

pub struct Algorithm(sys::cublasLtMatmulHeuristicResult_t);

pub struct Product<'a> {
    lt: &'a Lt,
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    preference: sys::cublasLtMatmulPreference_t,
}

impl<'a> Product<'a> {
    pub fn new(lt: &'a Lt, p: &Problem) -> Result<Product<'a>, Error> {
        let element = match p.dtype {
            Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Dtype::F32 | Dtype::Tf32 => sys::cudaDataType_t::CUDA_R_32F,
        };
        let compute = match p.dtype {
            Dtype::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let layout = |rows: usize, columns: usize| {
            result::create_matrix_layout(element, rows as u64, columns as u64, rows as i64)
                .during("describing a matrix")
        };
        let mut product = Product {
            lt,
            operation: ptr::null_mut(),
            a: ptr::null_mut(),
            b: ptr::null_mut(),
            d: ptr::null_mut(),
            preference: ptr::null_mut(),
        };
        product.operation =
            result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).during("describing the product")?;
        product.a = layout(p.k, p.n)?;
        product.b = layout(p.k, p.m)?;
        product.d = layout(p.n, p.m)?;
        product.preference = result::create_matmul_pref().during("stating preferences")?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        if p.bias {
            product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        let most = WORKSPACE_BYTES as u64;
        // SAFETY: the preference is alive, and the attribute is a 64-bit integer.
        unsafe {
            result::set_matmul_pref_attribute(
                product.preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                ptr::from_ref(&most).cast(),
                mem::size_of_val(&most),
            )
        }
        .during("stating preferences")?;
        Ok(product)
    }

    /// What the heuristics offer, their first choice first.
    pub fn algorithms(&self, p: &Problem) -> Result<Vec<Algorithm>, Error> {
        // SAFETY: the structure is plain data for which zeros are valid.
        let mut found = vec![unsafe { mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>() }; REQUESTED];
        let mut count = 0;
        // SAFETY: every descriptor is alive, and `found` has room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.lt.handle,
                self.operation,
                self.a,
                self.b,
                self.d,
                self.d,
                self.preference,
                REQUESTED as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Err(Error::NoAlgorithm(p.to_string()));
        }
        status.result().during("asking the heuristics")?;
        found.truncate(count.max(0) as usize);
        found.retain(|f| f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && f.workspaceSize <= WORKSPACE_BYTES);
        if found.is_empty() {
            return Err(Error::NoAlgorithm(p.to_string()));
        }
        Ok(found.into_iter().map(Algorithm).collect())
    }

    /// Puts one product on the stream.
    pub fn enqueue(&self, gpu: &Gpu, algorithm: &Algorithm, tensors: &Tensors) -> Result<(), Error> {
        if let Some(bias) = &tensors.bias {
            let pointer: *const c_void = bias.pointer();
            self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer)?;
        }
        let (alpha, beta) = (1.0f32, 0.0f32);
        let y = tensors.y.pointer();
        // SAFETY: the layouts are those of the tensors, which the caller keeps until the stream has been waited for;
        // the workspace is as large as every algorithm was limited to; alpha and beta are read before the return.
        unsafe {
            result::matmul(
                self.lt.handle,
                self.operation,
                ptr::from_ref(&alpha).cast(),
                ptr::from_ref(&beta).cast(),
                tensors.w.pointer(),
                self.a,
                tensors.x.pointer(),
                self.b,
                y,
                self.d,
                y,
                self.d,
                &algorithm.0.algo,
                self.lt.workspace.pointer(),
                WORKSPACE_BYTES,
                gpu.stream().cast(),
            )
        }
        .during("launching a product")
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the descriptor is alive, and every caller passes the type that the attribute has.
        unsafe {
            result::set_matmul_desc_attribute(
                self.operation,
                attribute,
                ptr::from_ref(value).cast(),
                mem::size_of::<T>(),
            )
        }
        .during("describing the product")
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        // SAFETY: each handle was created by `new` or is still null, and is destroyed once.
        unsafe {
            if !self.preference.is_null() {
                let _ = result::destroy_matmul_pref(self.preference);
            }
            for layout in [self.a, self.b, self.d] {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            if !self.operation.is_null() {
                let _ = result::destroy_matmul_desc(self.operation);
            }
        }
    }
}
