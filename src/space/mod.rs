//! Spaces: the legal configs of one template for one problem on one device, in the order of their analytic cost.
//!
//! Pure. Walks the tunables depth first and drops a branch as soon as a constraint can be evaluated and fails.

use crate::device::Device;
use crate::limits::MAX_ENUMERATION;
use crate::problem::Problem;
use crate::recipe::{Config, Expr, Recipe, RecipeError, Scope, Value};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most configs a space may hold; a template past it needs constraints.
pub const MAX_CONFIGS: usize = 200_000;

/// Most values that all of them may hold together.
const MAX_VALUES: usize = 8 << 20;

/// A legal config and its predicted time.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The config.
    pub config: Config,
    /// Predicted microseconds: an order, not a promise.
    pub cost_us: f64,
}

/// The legal configs of one template for one problem.
#[derive(Clone, Debug, Default)]
pub struct Space {
    /// Cheapest first; equal costs in the order of the tunables' values.
    pub candidates: Vec<Candidate>,
    /// Branches and configs that each constraint refused.
    pub refused: BTreeMap<String, u64>,
}

enum Step<'a> {
    Derive(&'a Arc<str>, &'a Expr),
    Check(&'a str, &'a Expr),
}

struct Walk<'a> {
    recipe: &'a Recipe,
    tunables: Vec<(Arc<str>, &'a [i64])>,
    /// What can be evaluated once the first `i` tunables have values.
    steps: Vec<Vec<Step<'a>>>,
    scope: Scope,
    /// The values of each legal config, one config's behind the other's, and the predicted times.
    values: Vec<i64>,
    costs_us: Vec<f64>,
    refused: BTreeMap<String, u64>,
    /// Expressions that were evaluated.
    evaluated: u64,
}

/// Enumerates the space of `recipe` for `problem` on `device`.
pub fn enumerate(recipe: &Recipe, problem: &Problem, device: &Device) -> Result<Space, RecipeError> {
    let d = &recipe.description;
    let tunables: Vec<(Arc<str>, &[i64])> =
        d.tunables.iter().map(|(n, v)| (Arc::from(n.as_str()), v.as_slice())).collect();
    // The depth of a name is the number of tunables that must be set before it has a value.
    let mut depth: IndexMap<&str, usize> = tunables.iter().enumerate().map(|(i, (n, _))| (&**n, i + 1)).collect();
    let mut steps: Vec<Vec<Step>> = (0..=tunables.len()).map(|_| Vec::new()).collect();
    let level = |expr: &Expr, depth: &IndexMap<&str, usize>| {
        expr.names.iter().filter_map(|n| depth.get(n.as_str())).copied().max().unwrap_or(0)
    };
    for (name, expr) in &recipe.derive {
        let at = level(expr, &depth);
        depth.insert(name, at);
        steps[at].push(Step::Derive(name, expr));
    }
    for (name, expr) in &recipe.constraints {
        steps[level(expr, &depth)].push(Step::Check(name, expr));
    }
    let scope = Scope::new(problem, device);
    let (values, costs_us, refused) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut walk = Walk { recipe, tunables, steps, scope, values, costs_us, refused, evaluated: 0 };
    walk.descend(0, &mut Vec::new())?;
    // Names come last: a space that is too large has been refused without them.
    let width = d.tunables.len();
    let config = |i: usize| d.tunables.keys().cloned().zip(walk.values[i * width..].iter().copied()).collect();
    let candidate = |(i, &cost_us)| Candidate { config: Config(config(i)), cost_us };
    let mut candidates: Vec<Candidate> = walk.costs_us.iter().enumerate().map(candidate).collect();
    candidates.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us));
    Ok(Space { candidates, refused: walk.refused })
}

impl Walk<'_> {
    fn descend(&mut self, at: usize, values: &mut Vec<i64>) -> Result<(), RecipeError> {
        self.evaluated += self.steps[at].len() as u64 + 1;
        if self.evaluated > MAX_ENUMERATION {
            return self.too_large(format!("its space takes over {MAX_ENUMERATION} steps"));
        }
        for step in &self.steps[at] {
            match step {
                Step::Derive(name, expr) => {
                    let value = expr.value(&self.scope)?;
                    self.scope.push(name, value);
                }
                Step::Check(name, expr) => {
                    if !expr.truth(&self.scope)? {
                        *self.refused.entry((*name).to_string()).or_default() += 1;
                        return Ok(());
                    }
                }
            }
        }
        let Some((name, list)) = self.tunables.get(at).map(|(n, l)| (n.clone(), *l)) else {
            return self.keep(values);
        };
        for &value in list {
            let depth = self.scope.depth();
            self.scope.push(&name, Value::from(value));
            values.push(value);
            self.descend(at + 1, values)?;
            values.pop();
            self.scope.truncate(depth);
        }
        Ok(())
    }

    fn too_large(&self, why: String) -> Result<(), RecipeError> {
        let template = self.recipe.description.name.clone();
        Err(RecipeError::Invalid { template, why: format!("{why}; it needs fewer values, or tighter constraints") })
    }

    fn keep(&mut self, values: &[i64]) -> Result<(), RecipeError> {
        if self.costs_us.len() >= MAX_CONFIGS {
            return self.too_large(format!("its space holds over {MAX_CONFIGS} configs"));
        }
        if self.values.len() + values.len() > MAX_VALUES {
            return self.too_large(format!("the configs of its space hold over {MAX_VALUES} values"));
        }
        self.costs_us.push(self.recipe.cost.float(&self.scope)?);
        self.values.extend(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Description;

    const TOY: &str = r#"
name = "toy"
target = "cuda"
op = "matmul"
when = "dtype == 'bf16'"
[tunables]
a = [1, 2, 3]
b = [10, 20]
[derive]
area = "a * b"
[[constraint]]
name = "small"
expr = "area <= 40"
[[constraint]]
name = "a divides m"
expr = "m % a == 0"
[cost]
us = "100 - area"
[[launch]]
entry = "toy"
grid = ["cdiv(m, a)", 1, 1]
block = 32
args = [{ tensor = "x" }, { i32 = "m" }]
"#;

    fn toy() -> (Recipe, Problem, Device) {
        let d: Description = toml::from_str(TOY).unwrap();
        (Recipe::new(d).unwrap(), "matmul m=4 n=8 k=8".parse().unwrap(), Device::ahead_of_time("sm_80").unwrap())
    }

    #[test]
    fn legal_configs_come_cheapest_first() {
        let (recipe, p, device) = toy();
        let space = enumerate(&recipe, &p, &device).unwrap();
        let list: Vec<String> = space.candidates.iter().map(|c| c.config.to_string()).collect();
        assert_eq!(list, ["a=2 b=20", "a=1 b=20", "a=2 b=10", "a=1 b=10"]);
        assert_eq!(space.refused.get("a divides m"), Some(&1));
        for c in &space.candidates {
            recipe.instance(&p, &device, &c.config).unwrap().legal().unwrap();
        }
    }

    /// Two hundred tunables of 256 values had taken 3.3 GB and 18 s before this was said.
    #[test]
    fn a_space_of_long_configs_is_refused_before_it_is_made() {
        let (recipe, p, device) = toy();
        let mut description = recipe.description;
        description.constraints.clear();
        for i in 0..200 {
            description.tunables.insert(format!("t{i}"), (0..256).collect());
        }
        let begun = std::time::Instant::now();
        let e = enumerate(&Recipe::new(description).unwrap(), &p, &device).unwrap_err().to_string();
        assert!(e.contains("values; it needs fewer"), "{e}");
        assert!(begun.elapsed().as_secs() < 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn illegal_configs_say_which_rule() {
        let (recipe, p, device) = toy();
        for (config, rule) in [("a=3 b=10", "a divides m"), ("a=1", "b is not given"), ("a=1 b=10 c=1", "no tunable c")]
        {
            let config = config.parse().unwrap();
            let legal = |i: crate::recipe::Instance| i.legal();
            let e = recipe.instance(&p, &device, &config).map_err(Into::into).and_then(legal).unwrap_err().to_string();
            assert!(e.contains(rule), "{e}");
        }
    }

    #[test]
    fn what_only_prunes_is_not_searched_and_yet_legal() {
        let (recipe, p, device) = toy();
        let mut description = recipe.description;
        description.constraints[1].prune = true;
        let recipe = Recipe::new(description).unwrap();
        let space = enumerate(&recipe, &p, &device).unwrap();
        assert!(space.candidates.iter().all(|c| c.config.get("a") != Some(3)));
        recipe.instance(&p, &device, &"a=3 b=10".parse().unwrap()).unwrap().legal().unwrap();
    }

    #[test]
    fn what_a_launch_cannot_hold_is_refused() {
        let (_, p, device) = toy();
        for (from, to, said) in [
            (r#"{ i32 = "m" }"#, r#"{ i32 = "m * 1073741824" }"#, "a 32-bit argument is 4294967296"),
            (r#"{ i32 = "m" }"#, r#"{ workspace = "-1" }"#, "workspace offset is -1"),
            (r#"grid = ["cdiv(m, a)", 1, 1]"#, "grid = [0, 1, 1]", "grid is 0"),
            (r#"grid = ["cdiv(m, a)", 1, 1]"#, "grid = [4294967296, 1, 1]", "grid is 4294967296"),
            (r#"{ i32 = "m" }"#, r#"{ map = "x", dims = ["-1"], box = [8] }"#, "a dimension of a map is -1"),
        ] {
            let text = TOY.replace(from, to);
            assert_ne!(text, TOY);
            let recipe = Recipe::new(toml::from_str(&text).unwrap()).unwrap();
            let e = recipe.launch(&p, &device, &"a=2 b=20".parse().unwrap()).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
        let many = TOY.replace(r#"{ i32 = "m" }"#, &[r#"{ i32 = "m" }"#; 64].join(", "));
        let e = Recipe::new(toml::from_str(&many).unwrap()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(e.contains("65 arguments, and 64 are the most"), "{e}");
    }

    #[test]
    fn launches_are_evaluated() {
        let (recipe, p, device) = toy();
        let launch = recipe.launch(&p, &device, &"a=2 b=20".parse().unwrap()).unwrap();
        assert_eq!(launch.kernels[0].grid, [2, 1, 1]);
        assert_eq!(launch.kernels[0].args.len(), 2);
    }
}
