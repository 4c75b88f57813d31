//! From a recipe, a problem and a config to the numbers of a launch.

use super::{Description, Expr, ExprText, LaunchSpec, RecipeError, Scope};
use crate::device::Device;
use crate::problem::{CodeLayout, Part, Problem};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Everything that is needed to run a kernel, but addresses and code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Kernels in order.
    pub kernels: Vec<KernelLaunch>,
    /// Scratch bytes.
    pub workspace: u64,
    /// Whether the scratch starts zeroed.
    pub zero: bool,
}

/// One kernel of a launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelLaunch {
    /// The `extern "C"` name.
    pub entry: String,
    /// Blocks, or tasks.
    pub grid: [u32; 3],
    /// Threads.
    pub block: u32,
    /// Blocks a cluster.
    pub cluster: u32,
    /// Dynamic shared memory in bytes.
    pub smem: u32,
    /// Programmatic dependent launch.
    pub pdl: bool,
    /// Arguments in order.
    pub args: Vec<Arg>,
}

/// One argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arg {
    /// The address of the tensor at this position of [`Problem::tensors`].
    Tensor(usize),
    /// A tensor map.
    Map(TensorMap),
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A float.
    F32(f32),
    /// The workspace's address plus this.
    Workspace(u64),
}

/// A description for the bulk copy engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Position of the tensor in [`Problem::tensors`].
    pub tensor: usize,
    /// Elements, innermost first.
    pub dims: Vec<u64>,
    /// Bytes, of dimensions 1 and up.
    pub strides: Vec<u64>,
    /// Elements.
    pub box_: Vec<u32>,
    /// 0, 32, 64 or 128 bytes.
    pub swizzle: u32,
    /// Whether elements, of f32, are rounded to TF32 on the way.
    pub tf32: bool,
}

/// A description whose expressions are compiled.
pub struct Recipe {
    /// The description as data.
    pub description: Description,
    /// Whether its code knows the type of each tensor, not one dtype for all.
    pub(crate) types_apart: bool,
    /// Whether its code knows scaled weights.
    pub(crate) knows_scales: bool,
    /// The same of scaled tokens.
    pub(crate) knows_scales_of_x: bool,
    /// Whether its code knows layouts of codes.
    knows_layouts: bool,
    /// Whether its code is told what caches are stored as.
    pub(crate) knows_caches: bool,
    /// Whether its code knows that a cache with a type of its own may have no scales.
    knows_scales_of_caches: bool,
    pub(crate) when: Expr,
    pub(crate) derive: Vec<(Arc<str>, Expr)>,
    pub(crate) constraints: Vec<(String, Expr)>,
    pub(crate) cost: Expr,
    pub(super) defines: Vec<(String, Expr)>,
    #[cfg(feature = "tuner")]
    pub(crate) max_registers: Option<Expr>,
    pub(super) legal: Expr,
    pub(super) workspace: Option<Expr>,
    pub(super) launches: Vec<CompiledLaunch>,
}

pub(super) struct CompiledLaunch {
    pub(super) when: Expr,
    pub(super) grid: [Expr; 3],
    pub(super) block: Expr,
    pub(super) cluster: Expr,
    pub(super) smem: Expr,
    pub(super) pdl: Expr,
    pub(super) args: Vec<CompiledArg>,
}

pub(super) struct CompiledArg {
    pub(super) when: Option<Expr>,
    pub(super) value: Option<Expr>,
    pub(super) dims: Vec<Expr>,
    pub(super) strides: Vec<Expr>,
    pub(super) box_: Vec<Expr>,
    pub(super) swizzle: Option<Expr>,
    pub(super) tf32: Option<Expr>,
}

impl Recipe {
    /// Compiles every expression of `description` and checks the rules that the schema cannot say.
    pub fn new(description: Description) -> Result<Recipe, RecipeError> {
        let name = description.name.clone();
        let invalid = |why: String| RecipeError::Invalid { template: name.clone(), why };
        let one = |place: &str, text: &ExprText| Expr::new(&name, place, &text.0);
        let all = |place: &str, list: &[ExprText]| list.iter().map(|t| one(place, t)).collect::<Result<Vec<_>, _>>();
        description.check().map_err(invalid)?;
        if let Some(unknown) = description.op.iter().find(|op| crate::problem::OPS.iter().all(|o| o.name != **op)) {
            return Err(invalid(format!("op '{unknown}' is not an op of jitune")));
        }
        if description.op.is_empty() {
            return Err(invalid("it names no op".into()));
        }
        let dims =
            || crate::problem::OPS.iter().filter(|o| description.op.iter().any(|op| op == o.name)).flat_map(|o| o.dims);
        if let Some(unknown) = description.reuse.dynamic.iter().find(|name| dims().all(|d| d.name != name.as_str())) {
            let ops = description.op.join(", ");
            return Err(invalid(format!("reuse.dynamic names '{unknown}', which is no dimension of {ops}")));
        }
        if description.launches.is_empty() {
            return Err(invalid("it has no [[launch]]".into()));
        }
        if let Some((tunable, _)) = description.tunables.iter().find(|(_, v)| v.is_empty()) {
            return Err(invalid(format!("tunable {tunable} has no value")));
        }
        let launch = |l: &LaunchSpec| -> Result<CompiledLaunch, RecipeError> {
            let place = |field: &str| format!("launch {} {field}", l.entry);
            let arg = |a: &super::ArgSpec| -> Result<CompiledArg, RecipeError> {
                let kinds = [a.i32.as_ref(), a.i64.as_ref(), a.f32.as_ref(), a.workspace.as_ref()];
                let given = kinds.iter().flatten().count() + [&a.map, &a.tensor].iter().filter(|k| k.is_some()).count();
                if given != 1 {
                    return Err(invalid(format!("an argument of {} must have exactly one kind", l.entry)));
                }
                if a.map.is_some() && (a.dims.is_empty() || a.dims.len() > 5 || a.box_.len() != a.dims.len()) {
                    return Err(invalid(format!("a map of {} needs 1 to 5 dims and as many box sizes", l.entry)));
                }
                if a.map.is_some() && a.strides.len() + 1 != a.dims.len() {
                    return Err(invalid(format!("a map of {} needs one stride less than dims", l.entry)));
                }
                Ok(CompiledArg {
                    when: a.when.as_ref().map(|t| one(&place("args"), t)).transpose()?,
                    value: kinds.into_iter().flatten().next().map(|t| one(&place("args"), t)).transpose()?,
                    dims: all(&place("map dims"), &a.dims)?,
                    strides: all(&place("map strides"), &a.strides)?,
                    box_: all(&place("map box"), &a.box_)?,
                    swizzle: a.swizzle.as_ref().map(|t| one(&place("map swizzle"), t)).transpose()?,
                    tf32: a.tf32.as_ref().map(|t| one(&place("map tf32"), t)).transpose()?,
                })
            };
            let [x, y, z] = &l.grid;
            Ok(CompiledLaunch {
                when: one(&place("when"), &l.when)?,
                grid: [one(&place("grid"), x)?, one(&place("grid"), y)?, one(&place("grid"), z)?],
                block: one(&place("block"), &l.block)?,
                cluster: one(&place("cluster"), &l.cluster)?,
                smem: one(&place("smem"), &l.smem)?,
                pdl: one(&place("pdl"), &l.pdl)?,
                args: l.args.iter().map(arg).collect::<Result<_, _>>()?,
            })
        };
        let d = &description;
        let when = one("when", &d.when)?;
        let named = |name: &&str| when.names.iter().any(|n| n == name);
        let types_apart = ["x", "w", "y"].iter().all(named);
        let knows_caches = named(&"kv.dtype");
        let told = types_apart || named(&"dtype") || knows_caches && named(&"y.dtype");
        if !told {
            return Err(invalid(
                "its `when` does not name dtype, so it would take element types that its code does not know; write the \
                 ones it does, as in \"dtype in ['bf16', 'f16']\", or where each tensor has its own those of x.dtype, \
                 w.dtype and y.dtype, or where caches have their own those of y.dtype and kv.dtype"
                    .into(),
            ));
        }
        Ok(Recipe {
            types_apart,
            knows_scales: named(&"w.scale"),
            knows_scales_of_x: named(&"x.scale"),
            knows_layouts: named(&"w.layout"),
            knows_caches,
            knows_scales_of_caches: named(&"kv.scale"),
            when,
            derive: d.derive.iter().map(|(n, t)| Ok((n.as_str().into(), one(n, t)?))).collect::<Result<_, _>>()?,
            constraints: d
                .constraints
                .iter()
                .map(|c| Ok((c.name.clone(), one(&c.name, &c.expr)?)))
                .collect::<Result<_, _>>()?,
            cost: one("cost.us", &d.cost.us)?,
            defines: d.defines.iter().map(|(n, t)| Ok((n.clone(), one(n, t)?))).collect::<Result<_, _>>()?,
            #[cfg(feature = "tuner")]
            max_registers: d.options.max_registers.as_ref().map(|t| one("max_registers", t)).transpose()?,
            legal: one("reuse.legal", &d.reuse.legal)?,
            workspace: d.workspace.as_ref().map(|w| one("workspace", &w.bytes)).transpose()?,
            launches: d.launches.iter().map(launch).collect::<Result<_, _>>()?,
            description,
        })
    }

    /// Whether the template takes this problem on this device at all.
    pub fn takes(&self, problem: &Problem, device: &Device) -> Result<bool, RecipeError> {
        self.takes_in(problem, device, &Scope::new(problem, device))
    }

    /// The same, with the names of the two.
    pub(super) fn takes_in(&self, problem: &Problem, device: &Device, scope: &Scope) -> Result<bool, RecipeError> {
        let d = &self.description;
        if !d.op.iter().any(|op| op == problem.op().name) || d.target != device.target || !arch_allows(&d.arch, device)
        {
            return Ok(false);
        }
        let types = problem.types();
        // Code that knows a cache by its dtype alone takes it for codes where it is not as results are.
        let knows_cache = self.knows_scales_of_caches || self.knows_caches && types.has_codes_of_caches();
        if !knows_cache && types.kv.is_some() {
            return Ok(false);
        }
        // Code that knows one dtype has no names for the others.
        let all_but_caches = if self.knows_caches { types.unscaled() } else { types };
        if !self.types_apart && all_but_caches.dtype().is_none() {
            return Ok(false);
        }
        // Nor has code that knows no scales a place for them.
        let scaling = problem.types().scaling;
        if !self.knows_scales && scaling.is_some() || !self.knows_scales_of_x && problem.types().x_scales.is_some() {
            return Ok(false);
        }
        if !self.knows_layouts && scaling.is_some_and(|s| s.layout != CodeLayout::Rows) {
            return Ok(false);
        }
        self.when.truth(scope)
    }

    /// Whether its code serves one value alone of that dimension: all but those that it takes at run time, and those that
    /// no code depends on.
    pub fn fixes(&self, problem: &Problem, name: &str) -> bool {
        let part = problem.op().dims.iter().find(|d| d.name == name).map(|d| d.part);
        matches!(part, Some(Part::Contract | Part::Size)) && !self.description.reuse.dynamic.iter().any(|d| d == name)
    }
}

/// `sm_80` allows that and later ones; `sm_90a` only itself; empty allows all.
fn arch_allows(least: &str, device: &Device) -> bool {
    if least.is_empty() || least == device.arch {
        return true;
    }
    match least.strip_prefix("sm_").map(str::parse::<u32>) {
        Some(Ok(cc)) => device.cc >= cc,
        _ => false,
    }
}
