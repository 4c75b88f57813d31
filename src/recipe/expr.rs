//! Expressions of descriptions, and the names they see.

use crate::device::{Device, Target};
use crate::problem::{Problem, Variable};
use crate::sync::{read, write};
use minijinja::value::{Object, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, RwLock};

/// A description that cannot be evaluated; always the description's fault, never the user's shape's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// An expression does not parse or does not evaluate.
    #[error("template {template}, {place}: expression `{text}`: {why}")]
    Expression {
        /// The template.
        template: String,
        /// The field of the description.
        place: String,
        /// The expression.
        text: String,
        /// The engine's message.
        why: String,
    },
    /// A description that breaks a rule of the schema.
    #[error("template {template}: {why}")]
    Invalid {
        /// The template.
        template: String,
        /// What is wrong.
        why: String,
    },
    /// A config that a constraint refuses.
    #[error("template {template} refuses [{config}]: {constraint}")]
    Illegal {
        /// The template.
        template: String,
        /// The config.
        config: String,
        /// The constraint's name.
        constraint: String,
    },
}

static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_function("cdiv", |a: i64, b: i64| divide(a, b).map(|(q, r)| q + i64::from(r != 0)));
    env.add_function("align", |a: i64, to: i64| divide(a, to).map(|(q, r)| (q + i64::from(r != 0)) * to));
    env.add_function("min", |v: Rest<Value>| extreme(&v, std::cmp::Ordering::Less));
    env.add_function("max", |v: Rest<Value>| extreme(&v, std::cmp::Ordering::Greater));
    env.add_function("log2", |v: f64| v.log2());
    env.add_function("sqrt", |v: f64| v.sqrt());
    env
});

fn divide(a: i64, b: i64) -> Result<(i64, i64), Error> {
    if b <= 0 || a < 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("cdiv/align of {a} by {b}")));
    }
    Ok((a / b, a % b))
}

fn extreme(values: &[Value], keep: std::cmp::Ordering) -> Result<Value, Error> {
    let mut best: Option<&Value> = None;
    for v in values {
        if !v.is_number() {
            return Err(Error::new(ErrorKind::InvalidOperation, "min/max take numbers"));
        }
        if best.is_none_or(|b| v.cmp(b) == keep) {
            best = Some(v);
        }
    }
    best.cloned().ok_or_else(|| Error::new(ErrorKind::MissingArgument, "min/max of nothing"))
}

/// Most bytes of an expression's text.
const MAX_TEXT: usize = 2000;
/// Most brackets that may be open at once, and most operators of one operand in a row.
const MAX_NESTING: usize = 32;

/// How deep a parser of the text would recurse: brackets that are open at once, or words and signs that follow each other
/// without a value between them.
fn nesting(text: &str) -> usize {
    let (mut open, mut row, mut most) = (0usize, 0usize, 0usize);
    for token in text.split_inclusive(|c: char| "()[]{}-+~ ".contains(c)) {
        let end = token.chars().last().unwrap_or(' ');
        match end {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        let value = token.trim_end_matches(|c: char| "()[]{}-+~ ".contains(c));
        match value {
            "" | "not" | "if" | "else" => row += usize::from(!token.trim().is_empty()),
            _ => row = 0,
        }
        most = most.max(open).max(row);
    }
    most
}

/// A compiled expression that remembers where it stands, for its errors.
pub struct Expr {
    compiled: Expression<'static, 'static>,
    text: String,
    place: String,
    /// Names it reads.
    pub names: Vec<String>,
}

impl Expr {
    /// Compiles `text`, which stands at `place` of `template`.
    pub fn new(template: &str, place: &str, text: &str) -> Result<Expr, RecipeError> {
        // The parser recurses, so what nests deeply would end the process.
        if text.len() > MAX_TEXT || nesting(text) > MAX_NESTING {
            return Err(RecipeError::Expression {
                template: template.into(),
                place: place.into(),
                text: text.chars().take(80).collect(),
                why: format!("an expression has at most {MAX_TEXT} bytes, nested at most {MAX_NESTING} deep"),
            });
        }
        let compiled = ENGINE.compile_expression_owned(text.to_string()).map_err(|e| RecipeError::Expression {
            template: template.into(),
            place: place.into(),
            text: text.into(),
            why: e.to_string(),
        })?;
        let mut names: Vec<String> = compiled.undeclared_variables(false).into_iter().collect();
        names.sort();
        Ok(Expr { compiled, text: text.into(), place: format!("{template}\u{0}{place}"), names })
    }

    fn error(&self, why: String) -> RecipeError {
        let (template, place) = self.place.split_once('\u{0}').unwrap_or(("", &self.place));
        RecipeError::Expression { template: template.into(), place: place.into(), text: self.text.clone(), why }
    }

    /// Its value.
    pub fn value(&self, scope: &Scope) -> Result<Value, RecipeError> {
        self.compiled.eval(Value::from_dyn_object(scope.0.clone())).map_err(|e| self.error(e.to_string()))
    }

    /// Its value as an integer; a float must be whole.
    pub fn int(&self, scope: &Scope) -> Result<i64, RecipeError> {
        let v = self.value(scope)?;
        if v.kind() == ValueKind::Bool {
            return Ok(i64::from(v.is_true()));
        }
        i64::try_from(v.clone()).map_err(|_| self.error(format!("gives {v}, not a whole number")))
    }

    /// Its value as a float.
    pub fn float(&self, scope: &Scope) -> Result<f64, RecipeError> {
        let v = self.value(scope)?;
        f64::try_from(v.clone()).map_err(|_| self.error(format!("gives {v}, not a number")))
    }

    /// Its truth.
    pub fn truth(&self, scope: &Scope) -> Result<bool, RecipeError> {
        Ok(self.value(scope)?.is_true())
    }
}

/// The names that expressions see. Cheap to extend and to take back, for walking a space.
pub struct Scope(Arc<Names>);

struct Names {
    fixed: HashMap<String, Value>,
    stack: RwLock<Vec<(Arc<str>, Value)>>,
}

/// What follows the dot of `dev`, `x`, `w` and `y`.
#[derive(Debug)]
struct Attributes(Vec<(&'static str, Value)>);

impl Object for Attributes {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| *name == key).map(|(_, v)| v.clone())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names", self.fixed.len())
    }
}

impl Object for Names {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let stack = read(&self.stack);
        let found = stack.iter().rev().find(|(name, _)| &**name == key).map(|(_, v)| v.clone());
        found.or_else(|| self.fixed.get(key).cloned())
    }
}

impl Scope {
    /// The dimensions of `problem` and the numbers of `device`.
    pub fn new(problem: &Problem, device: &Device) -> Scope {
        let mut fixed: HashMap<String, Value> = HashMap::new();
        for (name, value) in problem.variables() {
            let value = match value {
                Variable::Int(v) => Value::from(v),
                Variable::Word(w) => Value::from(w),
                Variable::Real(v) => Value::from(v),
            };
            fixed.insert(name.into(), value);
        }
        fixed.insert("op".into(), Value::from(problem.op().name));
        let types = problem.types();
        // Of types that no dtype says this is no dtype's name, so that code for one type refuses them.
        fixed.insert("dtype".into(), Value::from(types.to_string()));
        fixed.insert("elem".into(), Value::from(types.x.bytes(1) as i64));
        fixed.insert("compute".into(), Value::from(types.compute.name()));
        for (name, storage) in [("x", types.x), ("w", types.w), ("y", types.y)] {
            let (bits, bytes) = (storage.bits() as i64, storage.bytes(1) as i64);
            let list = vec![("dtype", storage.name().into()), ("bits", bits.into()), ("elem", bytes.into())];
            fixed.insert(name.into(), Value::from_object(Attributes(list)));
        }
        let rate = |v: f64| Value::from(v);
        let count = |v: u64| Value::from(v as i64);
        let mut dev = vec![
            ("bw", rate(device.ceilings.read)),
            ("flops", rate(device.ceilings.flops(types))),
            ("l2", count(device.l2)),
        ];
        match device.target {
            Target::Cuda => dev.extend([
                ("sms", count(device.units.into())),
                ("smem", count(device.smem)),
                ("smem_sm", count(device.smem_sm)),
                ("regs_sm", count(device.regs_sm)),
                ("cc", count(device.cc.into())),
            ]),
            Target::Cpu => dev.extend([
                ("cores", count(device.units.into())),
                ("l1", count(device.l1)),
                ("l3", count(device.l3)),
                ("isa", Value::from(device.isa.clone())),
                ("simd", count(device.simd)),
            ]),
        }
        fixed.insert("dev".into(), Value::from_object(Attributes(dev)));
        Scope(Arc::new(Names { fixed, stack: RwLock::default() }))
    }

    /// Adds a name that shadows earlier ones.
    pub fn push(&self, name: &Arc<str>, value: Value) {
        let mut stack = write(&self.0.stack);
        stack.push((name.clone(), value));
    }

    /// How many names were pushed.
    pub fn depth(&self) -> usize {
        read(&self.0.stack).len()
    }

    /// Takes names back until `depth` are left.
    pub fn truncate(&self, depth: usize) {
        write(&self.0.stack).truncate(depth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let p: Problem = "matmul m=100 n=200 k=64 epilogue=bias".parse().unwrap();
        Scope::new(&p, &Device::ahead_of_time("sm_90a").unwrap())
    }

    #[test]
    fn expressions_see_dimensions_device_and_functions() {
        for (text, value) in [
            ("cdiv(m, 64) * cdiv(n, 128)", 4),
            ("min(m, n, 7) + max(1, 2)", 9),
            ("align(m, 64)", 128),
            ("dev.sms", 132),
            ("m // 3", 33),
            ("3 if epilogue in ['bias', 'none'] else 4", 3),
            ("dtype == 'bf16' and dev.cc >= 90", 1),
            ("log2(64)", 6),
        ] {
            assert_eq!(Expr::new("t", "x", text).unwrap().int(&scope()).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn mistakes_name_the_template_and_the_place() {
        assert!(Expr::new("t", "cost", "m +").is_err());
        for text in ["nope + 1", "cdiv(m, 0)", "m / 3", "dev.nope > 1"] {
            let e = Expr::new("tpl", "cost.us", text).unwrap().int(&scope()).unwrap_err().to_string();
            assert!(e.contains("tpl") && e.contains("cost.us"), "{e}");
        }
    }

    #[test]
    fn what_nests_deeply_is_refused_before_it_is_parsed() {
        for text in [
            "(".repeat(25_000) + "1" + &")".repeat(25_000),
            "(".repeat(900) + "1" + &")".repeat(900),
            "[".repeat(900) + "1" + &"]".repeat(900),
            "not ".repeat(400) + "m",
            "-".repeat(1500) + "m",
            "m + ".repeat(20_000) + "m",
        ] {
            let e = Expr::new("tpl", "cost.us", &text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(e.contains("nested at most") && e.len() < 400, "{e}");
        }
        let deep = "(".repeat(30) + "m" + &")".repeat(30);
        assert_eq!(Expr::new("t", "x", &deep).unwrap().int(&scope()).unwrap(), 100);
    }

    #[test]
    fn pushed_names_shadow_and_go() {
        let (s, name) = (scope(), Arc::from("m"));
        let m = Expr::new("t", "x", "m").unwrap();
        s.push(&name, Value::from(5));
        assert_eq!(m.int(&s).unwrap(), 5);
        s.truncate(0);
        assert_eq!(m.int(&s).unwrap(), 100);
    }
}
