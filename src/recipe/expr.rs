//! Expressions of descriptions, and the names they see.

use super::formula::{Formula, Names};
use super::value::Value;
use crate::device::{Device, Target};
use crate::problem::{Problem, Variable};
use crate::sync::{read, write};
use std::sync::{Arc, RwLock};

/// Most characters of an expression that an error repeats.
const MAX_REPEATED: usize = 200;

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

/// A parsed expression that remembers where it stands, for its errors.
pub struct Expr {
    formula: Formula,
    text: String,
    place: String,
    /// Names it reads, of `w.scale` both `w` and that.
    pub names: Vec<String>,
}

impl Expr {
    /// Parses `text`, which stands at `place` of `template`.
    pub fn new(template: &str, place: &str, text: &str) -> Result<Expr, RecipeError> {
        let wrong = |why: String| RecipeError::Expression {
            template: template.into(),
            place: place.into(),
            text: text.chars().take(MAX_REPEATED).collect(),
            why,
        };
        let formula = Formula::parse(text).map_err(wrong)?;
        let mut names = Vec::new();
        formula.names(&mut names);
        let both = |(name, attribute): (&str, Option<&str>)| {
            [Some(name.to_string()), attribute.map(|a| format!("{name}.{a}"))].into_iter().flatten()
        };
        let mut names: Vec<String> = names.into_iter().flat_map(both).collect();
        names.sort();
        names.dedup();
        Ok(Expr { formula, text: text.into(), place: format!("{template}\u{0}{place}"), names })
    }

    fn error(&self, why: String) -> RecipeError {
        let (template, place) = self.place.split_once('\u{0}').unwrap_or(("", &self.place));
        let text = self.text.chars().take(MAX_REPEATED).collect();
        RecipeError::Expression { template: template.into(), place: place.into(), text, why }
    }

    /// Its value.
    pub fn value(&self, scope: &Scope) -> Result<Value, RecipeError> {
        self.formula.value(scope).map_err(|why| self.error(why))
    }

    /// Its value as an integer; a float must be whole.
    pub fn int(&self, scope: &Scope) -> Result<i64, RecipeError> {
        let v = self.value(scope)?;
        v.int().ok_or_else(|| self.error(format!("gives {v}, not a whole number")))
    }

    /// Its value as a float.
    pub fn float(&self, scope: &Scope) -> Result<f64, RecipeError> {
        let v = self.value(scope)?;
        v.real().ok_or_else(|| self.error(format!("gives {v}, not a number")))
    }

    /// Its truth.
    pub fn truth(&self, scope: &Scope) -> Result<bool, RecipeError> {
        Ok(self.value(scope)?.truth())
    }
}

/// The names that expressions see. Cheap to extend and to take back, for walking a space.
pub struct Scope {
    /// Few: to look through them takes less than to hash a name.
    fixed: Vec<(&'static str, Value)>,
    /// What follows the dot of `dev`, `x`, `w` and `y`.
    attributes: [(&'static str, Vec<(&'static str, Value)>); 5],
    stack: RwLock<Vec<(Arc<str>, Value)>>,
}

impl Names for Scope {
    fn name(&self, name: &str) -> Option<Value> {
        let stack = read(&self.stack);
        let pushed = stack.iter().rev().find(|(n, _)| &**n == name).map(|(_, v)| v.clone());
        pushed.or_else(|| self.fixed.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.clone()))
    }

    fn attribute(&self, name: &str, attribute: &str) -> Option<Value> {
        let (_, list) = self.attributes.iter().find(|(n, _)| *n == name)?;
        list.iter().find(|(n, _)| *n == attribute).map(|(_, v)| v.clone())
    }
}

impl Scope {
    /// The dimensions of `problem` and the numbers of `device`.
    pub fn new(problem: &Problem, device: &Device) -> Scope {
        let value = |value: Variable| match value {
            Variable::Int(v) => Value::from(v),
            Variable::Word(w) => Value::from(w),
            Variable::Real(v) => Value::from(v),
        };
        let mut fixed: Vec<(&'static str, Value)> =
            problem.variables().into_iter().map(|(name, v)| (name, value(v))).collect();
        fixed.push(("op", Value::from(problem.op().name)));
        let types = problem.types();
        // Of types that no dtype says this is no dtype's name, so that code for one type refuses them.
        fixed.push(("dtype", Value::from(types.to_string().as_str())));
        fixed.push(("elem", Value::from(types.x.bytes(1) as i64)));
        fixed.push(("compute", Value::from(types.compute.name())));
        let tensor = |storage: crate::problem::Storage| {
            let (bits, bytes) = (storage.bits() as i64, storage.bytes(1) as i64);
            vec![("dtype", storage.name().into()), ("bits", bits.into()), ("elem", bytes.into())]
        };
        let mut w = tensor(types.w);
        let (scale, zero, bits, layout) = match types.scaling {
            None => ("none", "none", 0, "rows"),
            Some(s) => (s.per.name(), s.zero.name(), s.storage.bits() as i64, s.layout.name()),
        };
        // Without groups a row is one.
        let (k, _) = crate::problem::row_of_weights(problem);
        let group = types.scaling.map_or(k, |s| s.per.run(k));
        w.extend([
            ("scale", scale.into()),
            ("zero", zero.into()),
            ("scale_bits", bits.into()),
            ("layout", layout.into()),
            ("group", group.into()),
        ]);
        let mut x = tensor(types.x);
        x.extend([
            ("scale", types.x_scales.map_or("none", |per| per.name()).into()),
            ("scale_bits", types.x_scales.map_or(0, |_| 32).into()),
            ("group", types.x_scales.map_or(k, |per| per.run(k)).into()),
        ]);
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
                ("isa", Value::from(device.isa.as_str())),
                ("fma", rate(if device.ceilings.fma > 0.0 { device.ceilings.fma } else { device.ceilings.single })),
                ("tiles", count(device.has_tiles().into())),
                ("simd", count(device.simd)),
            ]),
        }
        let mut kv = tensor(types.kv.unwrap_or(types.y));
        kv.push(("scale", if types.has_codes_of_caches() { "head" } else { "none" }.into()));
        let attributes = [("dev", dev), ("x", x), ("w", w), ("y", tensor(types.y)), ("kv", kv)];
        Scope { fixed, attributes, stack: RwLock::default() }
    }

    /// Adds a name that shadows earlier ones.
    pub fn push(&self, name: &Arc<str>, value: Value) {
        write(&self.stack).push((name.clone(), value));
    }

    /// How many names were pushed.
    pub fn depth(&self) -> usize {
        read(&self.stack).len()
    }

    /// Takes names back until `depth` are left.
    pub fn truncate(&self, depth: usize) {
        write(&self.stack).truncate(depth);
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
    fn of_a_processor_they_see_the_clock_and_whether_there_are_tiles() {
        let p: Problem = "matmul m=100 n=200 k=64 dtype=f32".parse().unwrap();
        let known = Device { target: Target::Cpu, ..Device::ahead_of_time("sm_90a").unwrap() };
        for (flags, fma, tiles, rate) in [("amx_bf16 amx_int8 amx_tile", 8e11, 1, 8e11), ("avx512f", 0.0, 0, 5e11)] {
            let mut device = Device { flags: flags.into(), ..known.clone() };
            // A device of an older journal has no rate of its own for vectors.
            (device.ceilings.fma, device.ceilings.single) = (fma, 5e11);
            let scope = Scope::new(&p, &device);
            let of = |text: &str| Expr::new("t", "x", text).unwrap().int(&scope).unwrap();
            assert_eq!((of("dev.tiles"), of(&format!("dev.fma == {rate}"))), (tiles, 1), "{flags}");
        }
    }

    #[test]
    fn mistakes_name_the_template_and_the_place() {
        assert!(Expr::new("t", "cost", "m +").is_err());
        for text in ["nope + 1", "cdiv(m, 0)", "m / 3", "dev.nope > 1", "dtype + 1", "m < dtype"] {
            let e = Expr::new("tpl", "cost.us", text).unwrap().int(&scope()).unwrap_err().to_string();
            assert!(e.contains("tpl") && e.contains("cost.us"), "{e}");
        }
    }

    #[test]
    fn what_nests_deeply_or_is_long_is_refused_before_it_is_parsed() {
        for text in [
            "(".repeat(25_000) + "1" + &")".repeat(25_000),
            "(".repeat(900) + "1" + &")".repeat(900),
            "m in [".repeat(300) + "1" + &"]".repeat(300),
            "not ".repeat(400) + "m",
            "-".repeat(1500) + "m",
            "m if m else ".repeat(100) + "m",
            "max(".repeat(100) + "m" + &")".repeat(100),
            "(')'==".repeat(100) + "m" + &")".repeat(100),
            "m + ".repeat(20_000) + "m",
        ] {
            let e = Expr::new("tpl", "cost.us", &text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!((e.contains("nests deeper than 32") || e.contains("2000 are the most")) && e.len() < 400, "{e}");
        }
        let deep = "(".repeat(30) + "m" + &")".repeat(30);
        assert_eq!(Expr::new("t", "x", &deep).unwrap().int(&scope()).unwrap(), 100);
        // As long as may be, on a thread with little stack.
        let long = "m+".repeat(999) + "m";
        // AddressSanitizer's frames are several times as large.
        let small = std::thread::Builder::new().stack_size(if cfg!(jitune_asan) { 4 << 20 } else { 512 << 10 });
        let sum = small.spawn(move || Expr::new("t", "x", &long).unwrap().int(&scope()).unwrap());
        assert_eq!(sum.unwrap().join().unwrap(), 100_000);
    }

    #[test]
    fn no_value_grows() {
        for text in [
            "dtype * 100000000",
            "'x' * 100000000",
            "'x' + 'y'",
            "'x' ~ 'y'",
            "[1, 2] * 100000000",
            "[1] + [2]",
            "10 ** 1000",
            "(10 ** 30) * (10 ** 30)",
            "99999999999999999999999999999999999999999999",
            "dtype|upper",
            "range(1000000000)",
            "dtype[::1]",
            "[1, 2][2]",
            "[1, 2][-1]",
            "'\\n'",
        ] {
            assert!(Expr::new("t", "x", text).and_then(|e| e.value(&scope())).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_python() {
        for (text, shown) in [
            ("7 // 2 + -7 // 2 + 7 // -2", "-5"),
            ("-7 % 3", "2"),
            ("7.5 % -2", "-0.5"),
            ("7 / 2", "3.5"),
            ("6 / 2", "3.0"),
            ("2 ** -1", "0.5"),
            ("2 ** 3 ** 2", "64"),
            ("-2 ** 2", "4"),
            ("1e-6 * 1e6", "1.0"),
            ("1 < 2 < 3", "True"),
            ("1 < 3 < 2", "False"),
            ("m == 100.0", "True"),
            ("0 or dtype", "bf16"),
            ("0 and nope", "0"),
            ("m not in [1, 2,]", "True"),
            ("not m == 1 and true", "True"),
            ("1 if 0 else 2 if 0 else 3", "3"),
            ("max(1, 2.5, 2) * 2", "5.0"),
            ("(m > 1) + 1", "2"),
            ("10 ** 20", "100000000000000000000"),
            ("[5, m, 7 + 1][2] + [m][0]", "108"),
        ] {
            assert_eq!(Expr::new("t", "x", text).unwrap().value(&scope()).unwrap().to_string(), shown, "{text}");
        }
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
