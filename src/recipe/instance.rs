//! An instance: a recipe for one problem with one config on one device, evaluated once.

use super::{Arg, Config, Expr, KernelLaunch, Launch, Recipe, RecipeError, Scope, TensorMap, Value};
use crate::device::{Device, Target};
use crate::limits::{MAX_BLOCKS, MAX_TASKS, MAX_WORKSPACE_SHARE, MIN_WORKSPACE};
use crate::problem::{Problem, Types};
use std::fmt;

/// A recipe for one problem with one config on one device: its names have their values.
pub struct Instance<'a> {
    recipe: &'a Recipe,
    problem: &'a Problem,
    config: &'a Config,
    scope: Scope,
}

/// The constants of code that its description computes, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Constants(Vec<(String, Value)>);

/// Why code does not serve a problem: the rule that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// It computes another op.
    Op(&'static str),
    /// It is for tensors of other types.
    Types(Types),
    /// It was compiled for these dimensions alone.
    Fixed(Vec<String>),
    /// Its template does not take the problem on the device; the template's condition.
    When(String),
    /// A constraint of its template.
    Constraint(String),
    /// The template's condition on what one artifact serves.
    Reuse(String),
    /// A constant that was compiled in would have to be another.
    Constant {
        /// Its name.
        name: String,
        /// As compiled.
        made: String,
        /// As needed.
        wanted: String,
    },
    /// An expression that does not evaluate.
    Expression(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Op(op) => write!(f, "it is for {op}"),
            Refused::Types(types) => write!(f, "it is for {types}"),
            Refused::Fixed(dims) => write!(f, "its code is for {} alone", dims.join(" ")),
            Refused::When(text) => write!(f, "its template takes only problems with {text}"),
            Refused::Constraint(name) => write!(f, "its config breaks the rule '{name}'"),
            Refused::Reuse(text) => write!(f, "it serves only {text}"),
            Refused::Constant { name, made, wanted } => {
                write!(f, "its code was compiled with {name} = {made}, and {wanted} would be needed")
            }
            Refused::Expression(why) => f.write_str(why),
        }
    }
}

impl From<RecipeError> for Refused {
    fn from(e: RecipeError) -> Refused {
        match e {
            RecipeError::Illegal { constraint, .. } => Refused::Constraint(constraint),
            other => Refused::Expression(other.to_string()),
        }
    }
}

impl Constants {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Says which constant of code made with these has another value in `wanted`.
    pub fn agree(&self, wanted: &Constants) -> Result<(), Refused> {
        match self.0.iter().zip(&wanted.0).find(|(a, b)| a != b) {
            Some(((name, made), (_, wanted))) => {
                Err(Refused::Constant { name: name.clone(), made: made.to_string(), wanted: wanted.to_string() })
            }
            None => Ok(()),
        }
    }
}

impl Recipe {
    /// The instance of a problem and a config on a device.
    pub fn instance<'a>(
        &'a self,
        problem: &'a Problem,
        device: &Device,
        config: &'a Config,
    ) -> Result<Instance<'a>, RecipeError> {
        self.instance_in(problem, config, Scope::new(problem, device))
    }

    /// The same, with the names of problem and device.
    fn instance_in<'a>(
        &'a self,
        problem: &'a Problem,
        config: &'a Config,
        scope: Scope,
    ) -> Result<Instance<'a>, RecipeError> {
        let illegal = |constraint: String| RecipeError::Illegal {
            template: self.description.name.clone(),
            config: config.to_string(),
            constraint,
        };
        if let Some(missing) = self.description.tunables.keys().find(|t| config.get(t).is_none()) {
            return Err(illegal(format!("tunable {missing} is not given")));
        }
        if let Some(extra) = config.0.keys().find(|t| !self.description.tunables.contains_key(*t)) {
            return Err(illegal(format!("it has no tunable {extra}")));
        }
        for (name, value) in &config.0 {
            scope.push(&name.as_str().into(), Value::from(*value));
        }
        for (name, expr) in &self.derive {
            scope.push(name, expr.value(&scope)?);
        }
        Ok(Instance { recipe: self, problem, config, scope })
    }

    /// The launch of a problem with a config on a device.
    pub fn launch(&self, problem: &Problem, device: &Device, config: &Config) -> Result<Launch, RecipeError> {
        self.instance(problem, device, config)?.launch()
    }

    /// The instance of `asked` that code made for `tuned` serves, as far as rules say: all but the dynamic dimensions agree,
    /// the template takes the problem, and the condition on reuse and every constraint but those that prune hold.
    pub fn serves<'a>(
        &'a self,
        tuned: &Problem,
        asked: &'a Problem,
        device: &Device,
        config: &'a Config,
    ) -> Result<Instance<'a>, Refused> {
        if tuned.op().name != asked.op().name {
            return Err(Refused::Op(tuned.op().name));
        }
        if tuned.types() != asked.types() {
            return Err(Refused::Types(tuned.types()));
        }
        let fixed = |name: &str| match tuned.word(name) {
            "" => format!("{name}={}", tuned.dim(name)),
            word => format!("{name}={word}"),
        };
        let differ = tuned.dims().zip(asked.dims()).filter(|((d, t), (_, a))| t != a && self.fixes(tuned, d.name));
        let differ: Vec<String> = differ.map(|((d, _), _)| fixed(d.name)).collect();
        if !differ.is_empty() {
            return Err(Refused::Fixed(differ));
        }
        let scope = Scope::new(asked, device);
        if !self.takes_in(asked, device, &scope)? {
            return Err(Refused::When(self.description.when.0.clone()));
        }
        let instance = self.instance_in(asked, config, scope)?;
        if !self.legal.truth(&instance.scope)? {
            return Err(Refused::Reuse(self.description.reuse.legal.0.clone()));
        }
        instance.legal()?;
        Ok(instance)
    }

    /// The launch of `asked` with code that was made for `tuned` with these constants, or why it cannot be. The rules are
    /// the template author's word; what was compiled in is checked.
    pub fn answer(
        &self,
        tuned: &Problem,
        made: &Constants,
        asked: &Problem,
        device: &Device,
        config: &Config,
    ) -> Result<Launch, Refused> {
        let instance = self.serves(tuned, asked, device, config)?;
        made.agree(&instance.constants()?)?;
        Ok(instance.launch()?)
    }
}

impl Instance<'_> {
    /// Says which constraint refuses the config, if one does; those that only prune the search do not.
    pub fn legal(&self) -> Result<(), Refused> {
        let rules = self.recipe.constraints.iter().zip(&self.recipe.description.constraints);
        for ((name, expr), _) in rules.filter(|(_, c)| !c.prune) {
            if !expr.truth(&self.scope)? {
                return Err(Refused::Constraint(name.clone()));
            }
        }
        Ok(())
    }

    /// A refusal as an error that names template and config.
    pub fn illegal(&self, why: &Refused) -> RecipeError {
        let constraint = match why {
            Refused::Constraint(name) => name.clone(),
            other => other.to_string(),
        };
        RecipeError::Illegal {
            template: self.recipe.description.name.clone(),
            config: self.config.to_string(),
            constraint,
        }
    }

    /// The names and their values.
    #[cfg(feature = "tuner")]
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The time in microseconds that the description predicts.
    pub fn cost_us(&self) -> Result<f64, RecipeError> {
        self.recipe.cost.float(&self.scope)
    }

    /// The constants that the description computes for the code.
    pub fn constants(&self) -> Result<Constants, RecipeError> {
        let one = |(name, expr): &(String, Expr)| Ok((name.clone(), expr.value(&self.scope)?));
        self.recipe.defines.iter().map(one).collect::<Result<_, RecipeError>>().map(Constants)
    }

    /// Its launch.
    pub fn launch(&self) -> Result<Launch, RecipeError> {
        let Instance { recipe, scope, .. } = self;
        let kernels = recipe.description.launches.iter().zip(&recipe.launches);
        let mut list = Vec::new();
        for (spec, l) in kernels {
            if !l.when.truth(scope)? {
                continue;
            }
            let mut args = Vec::new();
            for (a, c) in spec.args.iter().zip(&l.args) {
                if let Some(when) = &c.when
                    && !when.truth(scope)?
                {
                    continue;
                }
                args.push(match (&a.map, &a.tensor, &c.value) {
                    (Some(tensor), ..) => Arg::Map(TensorMap {
                        tensor: self.position(tensor)?,
                        dims: self.fitting("a dimension of a map", &c.dims)?,
                        strides: self.fitting("a stride of a map", &c.strides)?,
                        box_: self.fitting("a box size of a map", &c.box_)?,
                        swizzle: c.swizzle.as_ref().map_or(Ok(0), |e| self.fit("swizzle", e))?,
                        tf32: c.tf32.as_ref().map_or(Ok(false), |e| e.truth(scope))?,
                    }),
                    (_, Some(tensor), _) => Arg::Tensor(self.position(tensor)?),
                    (_, _, Some(value)) if a.f32.is_some() => Arg::F32(value.float(scope)? as f32),
                    (_, _, Some(value)) if a.i64.is_some() => Arg::I64(value.int(scope)?),
                    (_, _, Some(value)) if a.workspace.is_some() => {
                        Arg::Workspace(self.fit("workspace offset", value)?)
                    }
                    (_, _, Some(value)) => Arg::I32(self.fit("a 32-bit argument", value)?),
                    _ => continue,
                });
            }
            let [x, y, z] = &l.grid;
            list.push(KernelLaunch {
                entry: spec.entry.clone(),
                grid: [self.natural("grid", x)?, self.natural("grid", y)?, self.natural("grid", z)?],
                block: self.natural("block", &l.block)?,
                cluster: self.natural("cluster", &l.cluster)?,
                smem: self.fit("smem", &l.smem)?,
                pdl: l.pdl.truth(scope)?,
                args,
            });
        }
        let workspace = recipe.workspace.as_ref().map_or(Ok(0), |w| self.fit("workspace", w))?;
        let zero = recipe.description.workspace.as_ref().is_some_and(|w| w.zero);
        let launch = Launch { kernels: list, workspace, zero };
        self.bounded(&launch)?;
        Ok(launch)
    }

    /// Refuses a launch that takes for ever, or more memory than there can be reason for.
    fn bounded(&self, launch: &Launch) -> Result<(), RecipeError> {
        let (what, most) = match self.recipe.description.target {
            Target::Cpu => ("tasks", MAX_TASKS),
            Target::Cuda => ("blocks", MAX_BLOCKS),
        };
        let of = |k: &KernelLaunch| k.grid.iter().fold(1u64, |all, n| all.saturating_mul((*n).into()));
        let found = launch.kernels.iter().fold(0u64, |all, k| all.saturating_add(of(k)));
        let refuse = |what: &str, found: u64, most: u64| {
            let of = format!("for {} with [{}]", self.problem, self.config);
            Err(self.invalid(format!("{found} {what} {of}, and {most} are the most")))
        };
        if found > most {
            return refuse(what, found, most);
        }
        let tensors = self.problem.tensors().iter().fold(0u64, |all, t| all.saturating_add(t.bytes()));
        let most = tensors.saturating_mul(MAX_WORKSPACE_SHARE).saturating_add(MIN_WORKSPACE);
        if launch.workspace > most {
            return refuse("bytes of workspace", launch.workspace, most);
        }
        Ok(())
    }

    fn invalid(&self, why: String) -> RecipeError {
        RecipeError::Invalid { template: self.recipe.description.name.clone(), why }
    }

    /// The position of a tensor of the problem.
    fn position(&self, tensor: &str) -> Result<usize, RecipeError> {
        let at = self.problem.tensors().iter().position(|t| t.name == tensor);
        at.ok_or_else(|| self.invalid(format!("{} has no tensor '{tensor}'", self.problem)))
    }

    /// An integer that its type holds; nothing is cut off.
    fn fit<T: TryFrom<i64>>(&self, what: &str, expr: &Expr) -> Result<T, RecipeError> {
        let v = expr.int(&self.scope)?;
        T::try_from(v).map_err(|_| self.invalid(format!("{what} is {v} for {} with [{}]", self.problem, self.config)))
    }

    fn fitting<T: TryFrom<i64>>(&self, what: &str, list: &[Expr]) -> Result<Vec<T>, RecipeError> {
        list.iter().map(|e| self.fit(what, e)).collect()
    }

    /// A number of something of which there is at least one.
    fn natural(&self, what: &str, expr: &Expr) -> Result<u32, RecipeError> {
        match self.fit(what, expr)? {
            0 => Err(self.invalid(format!("{what} is 0 for {} with [{}]", self.problem, self.config))),
            v => Ok(v),
        }
    }
}
