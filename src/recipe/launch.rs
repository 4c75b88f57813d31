//! From a recipe, a problem and a config to the numbers of a launch.

use super::{Config, Description, Expr, ExprText, LaunchSpec, RecipeError, Scope};
use crate::device::Device;
use crate::problem::{Part, Problem};
use minijinja::Value;
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
}

/// A description whose expressions are compiled.
pub struct Recipe {
    /// The description as data.
    pub description: Description,
    pub(crate) when: Expr,
    pub(crate) derive: Vec<(Arc<str>, Expr)>,
    pub(crate) constraints: Vec<(String, Expr)>,
    #[cfg(feature = "tuner")]
    pub(crate) cost: Expr,
    #[cfg(feature = "tuner")]
    pub(crate) defines: Vec<(String, Expr)>,
    #[cfg(feature = "tuner")]
    pub(crate) max_registers: Option<Expr>,
    legal: Expr,
    workspace: Option<Expr>,
    launches: Vec<CompiledLaunch>,
}

struct CompiledLaunch {
    when: Expr,
    grid: [Expr; 3],
    block: Expr,
    cluster: Expr,
    smem: Expr,
    pdl: Expr,
    args: Vec<CompiledArg>,
}

struct CompiledArg {
    when: Option<Expr>,
    value: Option<Expr>,
    dims: Vec<Expr>,
    strides: Vec<Expr>,
    box_: Vec<Expr>,
    swizzle: Option<Expr>,
}

impl Recipe {
    /// Compiles every expression of `description` and checks the rules that the schema cannot say.
    pub fn new(description: Description) -> Result<Recipe, RecipeError> {
        let name = description.name.clone();
        let invalid = |why: String| RecipeError::Invalid { template: name.clone(), why };
        let one = |place: &str, text: &ExprText| Expr::new(&name, place, &text.0);
        let all = |place: &str, list: &[ExprText]| list.iter().map(|t| one(place, t)).collect::<Result<Vec<_>, _>>();
        if let Some(unknown) = description.op.iter().find(|op| crate::problem::OPS.iter().all(|o| o.name != **op)) {
            return Err(invalid(format!("op '{unknown}' is not an op of jitune")));
        }
        if description.op.is_empty() {
            return Err(invalid("it names no op".into()));
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
        if !when.names.iter().any(|name| name == "dtype") {
            return Err(invalid(
                "its `when` does not name dtype, so it would take element types that its code does not know; write the \
                 ones it does, as in \"dtype in ['bf16', 'f16']\""
                    .into(),
            ));
        }
        Ok(Recipe {
            when,
            derive: d.derive.iter().map(|(n, t)| Ok((n.as_str().into(), one(n, t)?))).collect::<Result<_, _>>()?,
            constraints: d
                .constraints
                .iter()
                .map(|c| Ok((c.name.clone(), one(&c.name, &c.expr)?)))
                .collect::<Result<_, _>>()?,
            #[cfg(feature = "tuner")]
            cost: one("cost.us", &d.cost.us)?,
            #[cfg(feature = "tuner")]
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
        let d = &self.description;
        if !d.op.iter().any(|op| op == problem.op().name) || d.target != device.target || !arch_allows(&d.arch, device)
        {
            return Ok(false);
        }
        self.when.truth(&Scope::new(problem, device))
    }

    /// Names of a problem, a device and a config, with everything derived.
    pub fn scope(&self, problem: &Problem, device: &Device, config: &Config) -> Result<Scope, RecipeError> {
        let scope = Scope::new(problem, device);
        for (name, value) in &config.0 {
            scope.push(&name.as_str().into(), Value::from(*value));
        }
        for (name, expr) in &self.derive {
            scope.push(name, expr.value(&scope)?);
        }
        Ok(scope)
    }

    /// Says which constraint refuses the config, if one does; those that only prune the search do not.
    pub fn check(&self, problem: &Problem, device: &Device, config: &Config) -> Result<(), RecipeError> {
        let illegal = |constraint: &str| RecipeError::Illegal {
            template: self.description.name.clone(),
            config: config.to_string(),
            constraint: constraint.into(),
        };
        if let Some(missing) = self.description.tunables.keys().find(|t| config.get(t).is_none()) {
            return Err(illegal(&format!("tunable {missing} is not given")));
        }
        if let Some(extra) = config.0.keys().find(|t| !self.description.tunables.contains_key(*t)) {
            return Err(illegal(&format!("it has no tunable {extra}")));
        }
        let scope = self.scope(problem, device, config)?;
        for ((name, expr), constraint) in self.constraints.iter().zip(&self.description.constraints) {
            if !constraint.prune && !expr.truth(&scope)? {
                return Err(illegal(name));
            }
        }
        Ok(())
    }

    /// Whether its code serves one value alone of that dimension: all but those that it takes at run time, and those that
    /// no code depends on.
    pub fn fixes(&self, problem: &Problem, name: &str) -> bool {
        let part = problem.op().dims.iter().find(|d| d.name == name).map(|d| d.part);
        matches!(part, Some(Part::Contract | Part::Size)) && !self.description.reuse.dynamic.iter().any(|d| d == name)
    }

    /// Whether an artifact made for `tuned` may run `asked`: all but the dynamic dimensions agree, and the legality
    /// predicate and every constraint but those that prune hold.
    pub fn serves(&self, tuned: &Problem, asked: &Problem, device: &Device, config: &Config) -> bool {
        let fixed =
            |p: &Problem| -> Vec<_> { p.variables().into_iter().filter(|(n, _)| self.fixes(tuned, n)).collect() };
        tuned.op().name == asked.op().name
            && tuned.dtype == asked.dtype
            && fixed(tuned) == fixed(asked)
            && self.takes(asked, device).unwrap_or(false)
            && self.scope(asked, device, config).and_then(|s| self.legal.truth(&s)).unwrap_or(false)
            && self.check(asked, device, config).is_ok()
    }

    /// The launch of `problem` with `config`.
    pub fn launch(&self, problem: &Problem, device: &Device, config: &Config) -> Result<Launch, RecipeError> {
        let scope = self.scope(problem, device, config)?;
        let tensors = problem.tensors();
        let name = &self.description.name;
        let position = |tensor: &str| {
            tensors.iter().position(|t| t.name == tensor).ok_or_else(|| RecipeError::Invalid {
                template: name.clone(),
                why: format!("{problem} has no tensor '{tensor}'"),
            })
        };
        let ints = |list: &[Expr]| list.iter().map(|e| e.int(&scope)).collect::<Result<Vec<_>, _>>();
        let natural = |what: &str, v: i64, least: i64| {
            u32::try_from(v).ok().filter(|_| v >= least).ok_or_else(|| RecipeError::Invalid {
                template: name.clone(),
                why: format!("{what} is {v} for {problem} with [{config}]"),
            })
        };
        let mut kernels = Vec::new();
        for (spec, l) in self.description.launches.iter().zip(&self.launches) {
            if !l.when.truth(&scope)? {
                continue;
            }
            let mut args = Vec::new();
            for (a, c) in spec.args.iter().zip(&l.args) {
                if let Some(when) = &c.when
                    && !when.truth(&scope)?
                {
                    continue;
                }
                args.push(match (&a.map, &a.tensor, &c.value) {
                    (Some(tensor), ..) => Arg::Map(TensorMap {
                        tensor: position(tensor)?,
                        dims: ints(&c.dims)?.into_iter().map(|v| v as u64).collect(),
                        strides: ints(&c.strides)?.into_iter().map(|v| v as u64).collect(),
                        box_: ints(&c.box_)?.into_iter().map(|v| v as u32).collect(),
                        swizzle: c.swizzle.as_ref().map_or(Ok(0), |e| e.int(&scope))? as u32,
                    }),
                    (_, Some(tensor), _) => Arg::Tensor(position(tensor)?),
                    (_, _, Some(value)) if a.f32.is_some() => Arg::F32(value.float(&scope)? as f32),
                    (_, _, Some(value)) if a.i64.is_some() => Arg::I64(value.int(&scope)?),
                    (_, _, Some(value)) if a.workspace.is_some() => Arg::Workspace(value.int(&scope)? as u64),
                    (_, _, Some(value)) => Arg::I32(value.int(&scope)? as i32),
                    _ => continue,
                });
            }
            let grid = [l.grid[0].int(&scope)?, l.grid[1].int(&scope)?, l.grid[2].int(&scope)?];
            kernels.push(KernelLaunch {
                entry: spec.entry.clone(),
                grid: [natural("grid", grid[0], 1)?, natural("grid", grid[1], 1)?, natural("grid", grid[2], 1)?],
                block: natural("block", l.block.int(&scope)?, 1)?,
                cluster: natural("cluster", l.cluster.int(&scope)?, 1)?,
                smem: natural("smem", l.smem.int(&scope)?, 0)?,
                pdl: l.pdl.truth(&scope)?,
                args,
            });
        }
        let workspace = self.workspace.as_ref().map_or(Ok(0), |w| w.int(&scope))?.max(0) as u64;
        Ok(Launch { kernels, workspace, zero: self.description.workspace.as_ref().is_some_and(|w| w.zero) })
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
