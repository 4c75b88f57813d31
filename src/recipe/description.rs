//! The schema of a template's description file; `docs/templates.md` is its manual.

use crate::device::Target;
use crate::limits::{MAX_ARGS, MAX_ENTRIES, MAX_EXPRESSION_BYTES, MAX_LAUNCHES, MAX_NAME_BYTES, MAX_VALUES};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};

/// The text of an expression; a bare number in the file is taken as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ExprText(pub String);

impl<'de> Deserialize<'de> for ExprText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<ExprText, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Bool(bool),
            Int(i64),
            Float(f64),
            Text(String),
        }
        Ok(ExprText(match Raw::deserialize(d)? {
            Raw::Bool(v) => i64::from(v).to_string(),
            Raw::Int(v) => v.to_string(),
            Raw::Float(v) => format!("{v:?}"),
            Raw::Text(v) => v,
        }))
    }
}

/// A template's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The stem of both files.
    pub name: String,
    /// What it is written for.
    pub target: Target,
    /// The ops it computes; in the file one name or a list.
    #[serde(with = "one_or_more")]
    pub op: Vec<String>,
    /// CUDA: the least architecture, or with an `a` suffix the only one.
    #[serde(default)]
    pub arch: String,
    /// `kernel` (tuned and shipped), `reference` (f64 results for verification) or `step` (for whole steps, in a winner's place).
    #[serde(default)]
    pub role: Role,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// The problems it can do at all; it names `dtype`.
    #[serde(default = "always")]
    pub when: ExprText,
    /// It takes whatever its ops allow, correct before fast: for what no other template takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
    /// Tunables and their values.
    #[serde(default, with = "ordered")]
    pub tunables: IndexMap<String, Vec<i64>>,
    /// Named intermediate values, in order.
    #[serde(default, with = "ordered")]
    pub derive: IndexMap<String, ExprText>,
    /// What makes a config legal.
    #[serde(default, rename = "constraint")]
    pub constraints: Vec<Constraint>,
    /// The analytic cost.
    #[serde(default)]
    pub cost: Cost,
    /// More constants for the code.
    #[serde(default, with = "ordered")]
    pub defines: IndexMap<String, ExprText>,
    /// Compiler options.
    #[serde(default)]
    pub options: Options,
    /// The launches, in order.
    #[serde(rename = "launch")]
    pub launches: Vec<LaunchSpec>,
    /// Scratch memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceSpec>,
    /// What other shapes one artifact serves.
    #[serde(default)]
    pub reuse: Reuse,
}

impl Description {
    /// What code and launches depend on: all but the line for people, and the cost, which only orders a search.
    #[cfg(feature = "tuner")]
    pub(crate) fn essence(&self) -> Description {
        Description { summary: String::new(), cost: Cost::default(), ..self.clone() }
    }

    /// Leaves of the tunables' values the chosen ones: a bundle needs the names, and not the lists to choose from.
    #[cfg(feature = "tuner")]
    pub(crate) fn keep(&mut self, config: &super::Config) {
        for (name, values) in &mut self.tunables {
            *values = config.get(name).into_iter().collect();
        }
    }

    /// The bytes of all its expressions, or what of it is larger than it may be. Nothing of it is parsed.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let few_of = |of: &str, what: &str, found: usize, most: usize| match found > most {
            true => Err(format!("{of} has {found} {what}, and {most} are the most")),
            false => Ok(()),
        };
        let few = |what: &str, found: usize, most: usize| few_of("it", what, found, most);
        few("launches", self.launches.len(), MAX_LAUNCHES)?;
        for (what, found) in [
            ("ops", self.op.len()),
            ("tunables", self.tunables.len()),
            ("derived names", self.derive.len()),
            ("constraints", self.constraints.len()),
            ("defines", self.defines.len()),
            ("flags", self.options.flags.len()),
            ("dynamic dimensions", self.reuse.dynamic.len()),
        ] {
            few(what, found, MAX_ENTRIES)?;
        }
        for (name, values) in &self.tunables {
            few_of(&format!("tunable {}", shown(name)), "values", values.len(), MAX_VALUES)?;
        }
        for l in &self.launches {
            few_of(&shown(&l.entry), "arguments", l.args.len(), MAX_ARGS)?;
        }
        let args = || self.launches.iter().flat_map(|l| &l.args);
        let tensors = args().flat_map(|a| [&a.map, &a.tensor].into_iter().flatten());
        let names = [&self.name, &self.arch].into_iter().chain(&self.op).chain(&self.reuse.dynamic);
        let names = names.chain(self.tunables.keys()).chain(self.derive.keys()).chain(self.defines.keys());
        let names = names.chain(self.constraints.iter().map(|c| &c.name));
        for name in names.chain(self.launches.iter().map(|l| &l.entry)).chain(tensors) {
            if name.len() > MAX_NAME_BYTES {
                return Err(format!("{} has {} bytes, and {MAX_NAME_BYTES} are the most", shown(name), name.len()));
            }
        }
        let mut all = vec![&self.when, &self.cost.us, &self.reuse.legal];
        all.extend(self.derive.values().chain(self.defines.values()));
        all.extend(self.constraints.iter().map(|c| &c.expr));
        all.extend(self.options.max_registers.iter().chain(self.workspace.iter().map(|w| &w.bytes)));
        for l in &self.launches {
            all.extend([&l.when, &l.block, &l.cluster, &l.smem, &l.pdl].into_iter().chain(&l.grid));
        }
        for a in args() {
            few("sizes of a map", a.dims.len().max(a.strides.len()).max(a.box_.len()), MAX_RANK)?;
            all.extend([&a.when, &a.i32, &a.i64, &a.f32, &a.workspace, &a.swizzle, &a.tf32].into_iter().flatten());
            all.extend(a.dims.iter().chain(&a.strides).chain(&a.box_));
        }
        if let Some(long) = all.iter().find(|e| e.0.len() > MAX_EXPRESSION_BYTES) {
            return Err(format!(
                "the expression `{}` has {} bytes, and {MAX_EXPRESSION_BYTES} are the most",
                shown(&long.0),
                long.0.len()
            ));
        }
        Ok(all.iter().map(|e| e.0.len()).sum())
    }
}

/// Most dimensions of a tensor map.
const MAX_RANK: usize = 5;

/// The beginning of a name, for an error.
fn shown(name: &str) -> String {
    match name.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.into(),
    }
}

/// What a template is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Tuned and shipped.
    #[default]
    Kernel,
    /// Writes f64 outputs that candidates are compared with.
    Reference,
    /// No winner, but in whole steps it may run in the place of one: what it is good at is not seen between launches of itself.
    Step,
}

impl Role {
    /// Whether its kernels are run outside of verification.
    pub(crate) fn is_run(self) -> bool {
        matches!(self, Role::Kernel | Role::Step)
    }
}

fn always() -> ExprText {
    ExprText("true".into())
}

fn one() -> ExprText {
    ExprText("1".into())
}

fn zero() -> ExprText {
    ExprText("0".into())
}

/// A condition on configs, with the name that is said when one is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// Why a config is refused.
    pub name: String,
    /// True for a legal config.
    pub expr: ExprText,
    /// It only keeps slow configs out of the search: the code is right without it, so production passes over it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prune: bool,
}

/// The analytic cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Predicted microseconds.
    pub us: ExprText,
}

impl Default for Cost {
    fn default() -> Cost {
        Cost { us: zero() }
    }
}

/// Options for the compiler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// CUDA: a cap on registers a thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_registers: Option<ExprText>,
    /// More options.
    #[serde(default)]
    pub flags: Vec<String>,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchSpec {
    /// The `extern "C"` name.
    pub entry: String,
    /// Whether this launch takes place.
    #[serde(default = "always")]
    pub when: ExprText,
    /// Grid in blocks (CUDA) or tasks (CPU).
    pub grid: [ExprText; 3],
    /// Threads a block, or threads of the pool.
    pub block: ExprText,
    /// Cluster size along x.
    #[serde(default = "one")]
    pub cluster: ExprText,
    /// Dynamic shared memory in bytes.
    #[serde(default = "zero")]
    pub smem: ExprText,
    /// Programmatic dependent launch.
    #[serde(default = "zero")]
    pub pdl: ExprText,
    /// Arguments in order.
    pub args: Vec<ArgSpec>,
}

/// One argument: exactly one of the kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgSpec {
    /// Whether the argument is passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<ExprText>,
    /// A tensor map over this tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The tensor's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// A 32-bit integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub i32: Option<ExprText>,
    /// A 64-bit integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub i64: Option<ExprText>,
    /// A float.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f32: Option<ExprText>,
    /// The workspace's address plus this offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<ExprText>,
    /// Map: dimensions in elements, innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dims: Vec<ExprText>,
    /// Map: strides in bytes of dimensions 1 and up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strides: Vec<ExprText>,
    /// Map: the box in elements.
    #[serde(default, rename = "box", skip_serializing_if = "Vec::is_empty")]
    pub box_: Vec<ExprText>,
    /// Map: swizzle span in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swizzle: Option<ExprText>,
    /// Map: whether elements of f32 are rounded to TF32 as they are copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tf32: Option<ExprText>,
}

/// Scratch memory of a launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceSpec {
    /// Its size.
    pub bytes: ExprText,
    /// Whether it starts zeroed (and every launch leaves it so).
    #[serde(default)]
    pub zero: bool,
}

/// What other shapes an artifact serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reuse {
    /// Dimensions passed at run time.
    #[serde(default)]
    pub dynamic: Vec<String>,
    /// Over the new dimensions: may this artifact run them.
    #[serde(default = "always")]
    pub legal: ExprText,
}

impl Default for Reuse {
    fn default() -> Reuse {
        Reuse { dynamic: Vec::new(), legal: always() }
    }
}

/// A name or a list of names.
mod one_or_more {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(list: &[String], s: S) -> Result<S::Ok, S::Error> {
        match list {
            [one] => one.serialize(s),
            list => list.serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            One(String),
            More(Vec<String>),
        }
        Ok(match Raw::deserialize(d)? {
            Raw::One(name) => vec![name],
            Raw::More(list) => list,
        })
    }
}

/// Maps whose order matters: read from a table, or from the list of pairs that they are written as, since a journal
/// sorts the names of its objects.
mod ordered {
    use indexmap::IndexMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<V: Serialize, S: Serializer>(map: &IndexMap<String, V>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter())
    }

    pub(super) fn deserialize<'de, V: Deserialize<'de>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<IndexMap<String, V>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, bound = "V: Deserialize<'de>")]
        enum Raw<V> {
            Pairs(Vec<(String, V)>),
            Table(IndexMap<String, V>),
        }
        Ok(match Raw::deserialize(d)? {
            Raw::Pairs(pairs) => pairs.into_iter().collect(),
            Raw::Table(map) => map,
        })
    }
}

#[cfg(all(test, feature = "tuner"))]
mod tests {
    use super::Description;

    #[test]
    fn the_order_of_derived_names_survives_a_journal() {
        let text = "name='t'\ntarget='cpu'\nop='matmul'\nwhen=\"dtype == 'f32'\"\n[tunables]\nz=[1]\na=[2]\n[derive]\nzz='1'\naa='zz+1'\n\
            [[launch]]\nentry='e'\ngrid=[1,1,1]\nblock=1\nargs=[]\n";
        let d: Description = toml::from_str(text).unwrap();
        // Through a form that sorts the names of objects, as the journal does.
        let sorted: std::collections::BTreeMap<String, serde_json::Value> =
            serde_json::from_value(serde_json::to_value(&d).unwrap()).unwrap();
        let back: Description = serde_json::from_value(serde_json::to_value(sorted).unwrap()).unwrap();
        assert_eq!(back, d);
        assert_eq!(back.derive.keys().collect::<Vec<_>>(), ["zz", "aa"]);
        assert_eq!(back.tunables.keys().collect::<Vec<_>>(), ["z", "a"]);
    }
}
