//! cuBLASLt: a product as descriptors, its algorithms, and their launch.
//!
//! cuBLASLt counts in columns. A row-major y[m, n] is a column-major n × m matrix with leading dimension n, so
//! y = x·wᵀ becomes yᵀ = (wᵀ)ᵀ·xᵀ: A is w (k × n, transposed), B is x (k × m), and the bias runs along D's rows.

use std::{ffi::c_void, mem, ptr, rc::Rc};

use cudarc::cublaslt::{result, sys};
use jitune_peer::Refusal;

use crate::{
    error::{During, Error},
    gpu::{Buffer, Gpu},
};

/// What PyTorch gives cuBLASLt on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
const REQUESTED: usize = 16;
/// `CUBLAS_OP_T`, of which cudarc's cuBLASLt bindings have no name.
const TRANSPOSE: i32 = 1;

/// A handle of the library on a device.
pub struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    pub gpu: Gpu,
}

impl Lt {
    pub fn new(gpu: Gpu) -> Result<Lt, Refusal> {
        // SAFETY: looks for the library and closes it again.
        if !unsafe { sys::is_culib_present() } {
            let fix =
                "python3 -m pip install 'nvidia-cublas==13.*', its folder of libcublasLt.so.13 on LD_LIBRARY_PATH";
            return Err(Refusal::missing("cuBLASLt was not found", fix));
        }
        let workspace = Buffer::new(WORKSPACE_BYTES)?;
        let handle = result::create_handle().during("creating a cuBLASLt handle")?;
        Ok(Lt { handle, workspace, gpu })
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

/// y[m, n] = x[m, k] · w[n, k]ᵀ.
#[derive(Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// The tensors of one launch.
pub struct Tensors {
    pub x: Buffer,
    pub w: Buffer,
    pub bias: Option<Buffer>,
    pub residual: Option<Buffer>,
    pub y: Buffer,
}

pub struct Algorithm(sys::cublasLtMatmulHeuristicResult_t);

/// A product on several sets of tensors.
pub struct Product {
    lt: Rc<Lt>,
    a: Layout,
    b: Layout,
    d: Layout,
    /// Each set has a description of its own, since the bias's address is part of it.
    pub sets: Vec<(Operation, Tensors)>,
}

impl Product {
    pub fn new(lt: Rc<Lt>, dtype: &str, shape: Shape, sets: Vec<Tensors>) -> Result<Product, Error> {
        let Shape { m, n, k } = shape;
        use sys::cudaDataType_t as Type;
        let (operand, result) = match dtype {
            "bf16" => (Type::CUDA_R_16BF, Type::CUDA_R_16BF),
            "f16" => (Type::CUDA_R_16F, Type::CUDA_R_16F),
            "f32" | "tf32" => (Type::CUDA_R_32F, Type::CUDA_R_32F),
            // The scales of both are 1 unless set.
            "e4m3" => (Type::CUDA_R_8F_E4M3, Type::CUDA_R_16BF),
            _ => return Err(Refusal::unsupported(format!("no {dtype} here")).into()),
        };
        let described = |tensors: Tensors| Ok((Operation::new(dtype, tensors.bias.as_ref())?, tensors));
        Ok(Product {
            lt,
            a: Layout::new(operand, k, n)?,
            b: Layout::new(operand, k, m)?,
            d: Layout::new(result, n, m)?,
            sets: sets.into_iter().map(described).collect::<Result<_, Error>>()?,
        })
    }

    /// What the heuristics offer, their first choice first.
    pub fn algorithms(&self) -> Result<Vec<Algorithm>, Error> {
        let Some((operation, _)) = self.sets.first() else { return Err(Error::NoAlgorithm) };
        let preference = Preference::new()?;
        // SAFETY: the structure is plain data for which zeros are valid.
        let mut found = vec![unsafe { mem::zeroed::<sys::cublasLtMatmulHeuristicResult_t>() }; REQUESTED];
        let mut count = 0;
        // SAFETY: every descriptor is alive, and `found` has room for as many results as are asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.lt.handle,
                operation.0,
                self.a.0,
                self.b.0,
                self.d.0,
                self.d.0,
                preference.0,
                REQUESTED as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Err(Error::NoAlgorithm);
        }
        status.result().during("asking the heuristics")?;
        found.truncate(count.max(0) as usize);
        found.retain(|f| f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && f.workspaceSize <= WORKSPACE_BYTES);
        if found.is_empty() {
            return Err(Error::NoAlgorithm);
        }
        Ok(found.into_iter().map(Algorithm).collect())
    }

    /// Puts one product on the stream.
    pub fn enqueue(&self, algorithm: &Algorithm, set: usize) -> Result<(), Error> {
        let Some((operation, tensors)) = self.sets.get(set) else {
            return Err(Refusal::failed(format!("no set {set}")).into());
        };
        let y = tensors.y.pointer();
        let (c, beta) = tensors.residual.as_ref().map_or((y, 0.0f32), |residual| (residual.pointer(), 1.0));
        let alpha = 1.0f32;
        // SAFETY: the layouts are those of the tensors, which live until the stream has been waited for; the workspace
        // is as large as every algorithm was limited to; alpha and beta are read before the return.
        unsafe {
            result::matmul(
                self.lt.handle,
                operation.0,
                ptr::from_ref(&alpha).cast(),
                ptr::from_ref(&beta).cast(),
                tensors.w.pointer(),
                self.a.0,
                tensors.x.pointer(),
                self.b.0,
                c,
                self.d.0,
                y,
                self.d.0,
                &algorithm.0.algo,
                self.lt.workspace.pointer(),
                WORKSPACE_BYTES,
                self.lt.gpu.stream().handle().cast(),
            )
        }
        .during("launching a product")
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(element: sys::cudaDataType_t, rows: usize, columns: usize) -> Result<Layout, Error> {
        let layout = result::create_matrix_layout(element, rows as u64, columns as u64, rows as i64);
        layout.map(Layout).during("describing a matrix")
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What is computed.
pub struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(dtype: &str, bias: Option<&Buffer>) -> Result<Operation, Error> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = match dtype {
            "tf32" => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let operation = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        let operation = Operation(operation.during("describing the product")?);
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        if let Some(bias) = bias {
            operation
                .set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            let pointer: *const c_void = bias.pointer();
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer)?;
        }
        Ok(operation)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        let (value, size) = (ptr::from_ref(value).cast(), mem::size_of::<T>());
        // SAFETY: the descriptor is alive, and every caller passes the type that the attribute has.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value, size) }.during("describing the product")
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Preference, Error> {
        let preference = Preference(result::create_matmul_pref().during("stating preferences")?);
        let most = WORKSPACE_BYTES as u64;
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let (value, size) = (ptr::from_ref(&most).cast(), mem::size_of_val(&most));
        // SAFETY: the preference is alive, and the attribute is a 64-bit integer.
        let stated = unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) };
        stated.during("stating preferences")?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
