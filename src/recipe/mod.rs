//! Recipes: the data half of a template, from which a problem and a config give a launch.
//!
//! Owns the description's schema (the TOML file of `docs/templates.md`; JSON in a bundle), its expressions, and their
//! evaluation to numbers. Pure: no device, no file. The tuner and the production runtime evaluate the same recipe, so
//! what was measured is what is launched.

mod description;
mod expr;
mod formula;
mod instance;
mod launch;
mod value;

pub use crate::limits::MAX_ARGS;
pub use description::{
    ArgSpec, Constraint, Cost, Description, ExprText, LaunchSpec, Options, Reuse, Role, WorkspaceSpec,
};
pub use expr::{Expr, RecipeError, Scope};
pub use instance::{Constants, Instance, Refused};
pub use launch::{Arg, KernelLaunch, Launch, Recipe, TensorMap};
pub use value::Value;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Named values of a template's tunables. Stored whole; written `tile_m=128 stages=4`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config(pub IndexMap<String, i64>);

impl Config {
    /// A tunable's value.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.0.get(name).copied()
    }
}

impl Serialize for Config {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Config, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Config, String> {
        let field = |word: &str| {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is not name=value"))?;
            let value = value.parse().map_err(|_| format!("'{word}': the value must be a whole number"))?;
            Ok((name.to_string(), value))
        };
        text.split_whitespace().map(field).collect::<Result<_, String>>().map(Config)
    }
}
