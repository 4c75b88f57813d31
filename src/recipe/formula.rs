//! The language of expressions: from a text to a tree, and from a tree and names to a value.
//!
//! Python's, as far as descriptions need it: numbers, words, names, `+ - * / // % **`, comparisons, `in` a list, `and`, `or`,
//! `not`, `a if c else b`, `[a, b, c][i]`, and a few functions. What comes from elsewhere cannot harm: depth and length are bounded before
//! anything recurses, each part of a text is evaluated at most once, and no value is larger than the text.

use super::value::Value;
use crate::limits::{MAX_EXPRESSION_BYTES, MAX_NESTING};
use std::cmp::Ordering;

/// Where names have their values.
pub(super) trait Names {
    /// The value of a name.
    fn name(&self, name: &str) -> Option<Value>;
    /// The value of what stands after the dot of a name.
    fn attribute(&self, name: &str, attribute: &str) -> Option<Value>;
}

/// A parsed expression.
#[derive(Debug)]
pub(super) enum Formula {
    Value(Value),
    Name(Box<str>),
    Attribute(Box<str>, Box<str>),
    Negative(Box<Formula>),
    Not(Box<Formula>),
    And(Box<Formula>, Box<Formula>),
    Or(Box<Formula>, Box<Formula>),
    Choice {
        condition: Box<Formula>,
        then: Box<Formula>,
        otherwise: Box<Formula>,
    },
    Arithmetic(Operator, Box<Formula>, Box<Formula>),
    /// Each but the first with the one before it.
    Comparison(Box<Formula>, Vec<(Relation, Formula)>),
    In(Box<Formula>, Vec<Formula>),
    /// One of a list, by its place from 0.
    Pick(Vec<Formula>, Box<Formula>),
    Call(Function, Vec<Formula>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Floor,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Relation {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Function {
    CeilDivide,
    Align,
    Min,
    Max,
    Log2,
    Sqrt,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'t> {
    Int(i128),
    Real(f64),
    Text(&'t str),
    /// A name or a word of the language.
    Name(&'t str),
    Sign(&'t str),
}

/// Signs, the longer ones before what they begin with.
const SIGNS: [&str; 21] =
    ["**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", ",", ".", "'", "\""];
/// Names that are words of the language.
const RESERVED: [&str; 7] = ["if", "else", "and", "or", "not", "in", "is"];

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let mut list = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let of = |more: &dyn Fn(char) -> bool| rest.find(|c| !more(c)).unwrap_or(rest.len());
        let len = if first.is_ascii_digit() {
            let (number, len) = number(rest)?;
            list.push(number);
            len
        } else if first.is_ascii_alphabetic() || first == '_' {
            let len = of(&|c| c.is_ascii_alphanumeric() || c == '_');
            list.push(Token::Name(&rest[..len]));
            len
        } else if first == '\'' || first == '"' {
            let end = rest[1..].find(first).ok_or("a word has no closing quote")?;
            let word = &rest[1..=end];
            if word.contains('\\') {
                return Err("a word holds a backslash".into());
            }
            list.push(Token::Text(word));
            end + 2
        } else {
            let sign = SIGNS.iter().find(|s| rest.starts_with(**s));
            let sign = sign.ok_or_else(|| format!("{first:?} means nothing here"))?;
            list.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[len..].trim_start();
    }
    Ok(list)
}

/// The number at the beginning of a text, and its length: digits, a fraction, an exponent.
fn number(text: &str) -> Result<(Token<'_>, usize), String> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from.min(bytes.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits(0);
    let whole = end;
    if bytes.get(end) == Some(&b'.') {
        end += 1 + digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        match digits(end + 1 + sign) {
            0 => return Err(format!("{} has no exponent", &text[..=end])),
            n => end += 1 + sign + n,
        }
    }
    let bad = || format!("{} is no number", &text[..end]);
    let token = match end == whole {
        true => Token::Int(text[..end].parse().map_err(|_| bad())?),
        false => Token::Real(text[..end].parse().map_err(|_| bad())?),
    };
    Ok((token, end))
}

struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
    depth: usize,
}

impl Formula {
    /// Parses a text.
    pub(super) fn parse(text: &str) -> Result<Formula, String> {
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(format!("it has {} bytes, and {MAX_EXPRESSION_BYTES} are the most", text.len()));
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
        let formula = parser.choice()?;
        match parser.peek() {
            None => Ok(formula),
            Some(token) => Err(format!("{} is not expected after the expression", words(Some(token)))),
        }
    }

    /// The names that it reads, each as often as it stands there, and what stands after its dot.
    pub(super) fn names<'f>(&'f self, found: &mut Vec<(&'f str, Option<&'f str>)>) {
        match self {
            Formula::Value(_) => {}
            Formula::Name(name) => found.push((name, None)),
            Formula::Attribute(name, attribute) => found.push((name, Some(attribute))),
            Formula::Negative(a) | Formula::Not(a) => a.names(found),
            Formula::And(a, b) | Formula::Or(a, b) | Formula::Arithmetic(_, a, b) => {
                a.names(found);
                b.names(found);
            }
            Formula::Choice { condition, then, otherwise } => {
                [condition, then, otherwise].into_iter().for_each(|part| part.names(found));
            }
            Formula::Comparison(first, rest) => {
                first.names(found);
                rest.iter().for_each(|(_, part)| part.names(found));
            }
            Formula::In(first, rest) => {
                first.names(found);
                rest.iter().for_each(|part| part.names(found));
            }
            Formula::Pick(list, place) => {
                list.iter().for_each(|part| part.names(found));
                place.names(found);
            }
            Formula::Call(_, rest) => rest.iter().for_each(|part| part.names(found)),
        }
    }
}

/// A token as an error says it.
fn words(token: Option<Token<'_>>) -> String {
    match token {
        None => "its end".into(),
        Some(Token::Int(v)) => v.to_string(),
        Some(Token::Real(v)) => v.to_string(),
        Some(Token::Text(w)) => format!("'{w}'"),
        Some(Token::Name(w) | Token::Sign(w)) => format!("`{w}`"),
    }
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<Token<'t>> {
        self.tokens.get(self.at).copied()
    }

    /// Passes over a sign or a word of the language, if it stands next.
    fn skip(&mut self, wanted: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(w) | Token::Name(w)) if w == wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        match self.skip(wanted) {
            true => Ok(()),
            false => Err(format!("`{wanted}` is expected, not {}", words(self.peek()))),
        }
    }

    /// What recurses goes through here.
    fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        if self.depth == MAX_NESTING {
            return Err(format!("it nests deeper than {MAX_NESTING}, the most"));
        }
        self.depth += 1;
        let done = part(self);
        self.depth -= 1;
        done
    }

    /// `a if c else b`
    fn choice(&mut self) -> Result<Formula, String> {
        let then = self.or()?;
        if !self.skip("if") {
            return Ok(then);
        }
        let condition = self.or()?;
        self.expect("else")?;
        let otherwise = self.deeper(Self::choice)?;
        Ok(Formula::Choice { condition: condition.into(), then: then.into(), otherwise: otherwise.into() })
    }

    fn or(&mut self) -> Result<Formula, String> {
        let mut left = self.and()?;
        while self.skip("or") {
            left = Formula::Or(left.into(), self.and()?.into());
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Formula, String> {
        let mut left = self.not()?;
        while self.skip("and") {
            left = Formula::And(left.into(), self.not()?.into());
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Formula, String> {
        match self.skip("not") {
            true => Ok(Formula::Not(self.deeper(Self::not)?.into())),
            false => self.comparison(),
        }
    }

    fn comparison(&mut self) -> Result<Formula, String> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let relation = match self.peek() {
                Some(Token::Sign("==")) => Relation::Equal,
                Some(Token::Sign("!=")) => Relation::Unequal,
                Some(Token::Sign("<")) => Relation::Less,
                Some(Token::Sign("<=")) => Relation::AtMost,
                Some(Token::Sign(">")) => Relation::Greater,
                Some(Token::Sign(">=")) => Relation::AtLeast,
                _ => break,
            };
            self.at += 1;
            rest.push((relation, self.sum()?));
        }
        if !rest.is_empty() {
            return Ok(Formula::Comparison(first.into(), rest));
        }
        let negated = self.skip("not");
        if negated {
            self.expect("in")?;
        } else if !self.skip("in") {
            return Ok(first);
        }
        self.expect("[")?;
        let list = Formula::In(first.into(), self.deeper(|p| p.list("]"))?);
        Ok(if negated { Formula::Not(list.into()) } else { list })
    }

    /// Expressions with commas between, up to what closes them.
    fn list(&mut self, close: &str) -> Result<Vec<Formula>, String> {
        let mut list = Vec::new();
        while !self.skip(close) {
            list.push(self.choice()?);
            if !self.skip(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(list)
    }

    /// Operands of one of these operators, from the left.
    fn operands(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Formula, String>,
    ) -> Result<Formula, String> {
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.skip(sign)) {
            left = Formula::Arithmetic(*operator, left.into(), operand(self)?.into());
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Formula, String> {
        self.operands(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Formula, String> {
        let operators =
            [("*", Operator::Multiply), ("/", Operator::Divide), ("//", Operator::Floor), ("%", Operator::Remainder)];
        self.operands(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Formula, String> {
        self.operands(&[("**", Operator::Power)], Self::unary)
    }

    fn unary(&mut self) -> Result<Formula, String> {
        match self.skip("-") {
            true => Ok(Formula::Negative(self.deeper(Self::unary)?.into())),
            false => self.primary(),
        }
    }

    fn primary(&mut self) -> Result<Formula, String> {
        let token = self.peek();
        self.at += 1;
        Ok(match token {
            Some(Token::Int(v)) => Formula::Value(Value::Int(v)),
            Some(Token::Real(v)) => Formula::Value(Value::Real(v)),
            Some(Token::Text(w)) => Formula::Value(w.into()),
            Some(Token::Name("true" | "True")) => Formula::Value(Value::Truth(true)),
            Some(Token::Name("false" | "False")) => Formula::Value(Value::Truth(false)),
            Some(Token::Name(name)) if !RESERVED.contains(&name) => {
                if self.skip("(") {
                    let given = self.deeper(|p| p.list(")"))?;
                    return Formula::call(name, given);
                }
                if !self.skip(".") {
                    return Ok(Formula::Name(name.into()));
                }
                let Some(Token::Name(attribute)) = self.peek() else {
                    return Err(format!("a name is expected after `{name}.`, not {}", words(self.peek())));
                };
                self.at += 1;
                Formula::Attribute(name.into(), attribute.into())
            }
            Some(Token::Sign("(")) => {
                let inner = self.deeper(Self::choice)?;
                self.expect(")")?;
                inner
            }
            Some(Token::Sign("[")) => {
                let list = self.deeper(|p| p.list("]"))?;
                self.expect("[")?;
                let place = self.deeper(Self::choice)?;
                self.expect("]")?;
                Formula::Pick(list, place.into())
            }
            other => return Err(format!("a value is expected, not {}", words(other))),
        })
    }
}

impl Formula {
    fn call(name: &str, given: Vec<Formula>) -> Result<Formula, String> {
        let (function, fits) = match name {
            "cdiv" => (Function::CeilDivide, given.len() == 2),
            "align" => (Function::Align, given.len() == 2),
            "min" => (Function::Min, !given.is_empty()),
            "max" => (Function::Max, !given.is_empty()),
            "log2" => (Function::Log2, given.len() == 1),
            "sqrt" => (Function::Sqrt, given.len() == 1),
            _ => return Err(format!("`{name}` is no function; there are cdiv, align, min, max, log2 and sqrt")),
        };
        match fits {
            true => Ok(Formula::Call(function, given)),
            false => Err(format!("{name} of {} values", given.len())),
        }
    }

    /// Its value.
    pub(super) fn value(&self, names: &dyn Names) -> Result<Value, String> {
        Ok(match self {
            Formula::Value(v) => v.clone(),
            Formula::Name(name) => names.name(name).ok_or_else(|| format!("`{name}` has no value here"))?,
            Formula::Attribute(name, of) => {
                names.attribute(name, of).ok_or_else(|| format!("`{name}.{of}` has no value here"))?
            }
            Formula::Negative(a) => match a.value(names)? {
                Value::Int(v) => Value::Int(v.checked_neg().ok_or("a number is too large")?),
                Value::Real(v) => Value::Real(-v),
                other => return Err(format!("-{other}: it is no number")),
            },
            Formula::Not(a) => Value::Truth(!a.value(names)?.truth()),
            // The value that decides, as in Python.
            Formula::And(a, b) => match a.value(names)? {
                v if v.truth() => b.value(names)?,
                v => v,
            },
            Formula::Or(a, b) => match a.value(names)? {
                v if v.truth() => v,
                _ => b.value(names)?,
            },
            Formula::Choice { condition, then, otherwise } => {
                let chosen = if condition.value(names)?.truth() { then } else { otherwise };
                chosen.value(names)?
            }
            Formula::Arithmetic(operator, a, b) => operator.apply(&a.value(names)?, &b.value(names)?)?,
            Formula::Comparison(first, rest) => {
                let mut left = first.value(names)?;
                for (relation, part) in rest {
                    let right = part.value(names)?;
                    if !relation.holds(&left, &right)? {
                        return Ok(Value::Truth(false));
                    }
                    left = right;
                }
                Value::Truth(true)
            }
            Formula::In(first, rest) => {
                let wanted = first.value(names)?;
                for part in rest {
                    if part.value(names)? == wanted {
                        return Ok(Value::Truth(true));
                    }
                }
                Value::Truth(false)
            }
            Formula::Pick(list, place) => {
                let place = place.value(names)?;
                let chosen = place.int().and_then(|i| list.get(usize::try_from(i).ok()?));
                chosen.ok_or_else(|| format!("{place} is no place in a list of {}", list.len()))?.value(names)?
            }
            Formula::Call(function, given) => {
                let given = given.iter().map(|part| part.value(names)).collect::<Result<Vec<_>, _>>()?;
                function.call(&given)?
            }
        })
    }
}

impl Operator {
    fn apply(self, a: &Value, b: &Value) -> Result<Value, String> {
        let failed = || format!("{a} {} {b} has no value", self.sign());
        let whole = a.whole().zip(b.whole()).filter(|_| self != Operator::Divide);
        let exact = |v: Option<i128>| v.map(Value::Int).ok_or_else(failed);
        if let Some((a, b)) = whole {
            // Rounded down, with a remainder of the divisor's sign.
            let divided = || {
                let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
                let below = rest != 0 && (rest < 0) != (b < 0);
                Some((quotient - i128::from(below), if below { rest + b } else { rest }))
            };
            match self {
                Operator::Add => return exact(a.checked_add(b)),
                Operator::Subtract => return exact(a.checked_sub(b)),
                Operator::Multiply => return exact(a.checked_mul(b)),
                Operator::Floor => return exact(divided().map(|(quotient, _)| quotient)),
                Operator::Remainder => return exact(divided().map(|(_, rest)| rest)),
                Operator::Power if b >= 0 => return exact(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
                Operator::Power | Operator::Divide => {}
            }
        }
        let (x, y) = a.real().zip(b.real()).ok_or_else(failed)?;
        let divides = matches!(self, Operator::Divide | Operator::Floor | Operator::Remainder);
        if divides && y == 0.0 || self == Operator::Power && x == 0.0 && y < 0.0 {
            return Err(failed());
        }
        Ok(Value::Real(match self {
            Operator::Add => x + y,
            Operator::Subtract => x - y,
            Operator::Multiply => x * y,
            Operator::Divide => x / y,
            Operator::Floor => (x / y).floor(),
            Operator::Remainder => x - (x / y).floor() * y,
            Operator::Power => x.powf(y),
        }))
    }

    fn sign(self) -> &'static str {
        match self {
            Operator::Add => "+",
            Operator::Subtract => "-",
            Operator::Multiply => "*",
            Operator::Divide => "/",
            Operator::Floor => "//",
            Operator::Remainder => "%",
            Operator::Power => "**",
        }
    }
}

impl Relation {
    fn holds(self, a: &Value, b: &Value) -> Result<bool, String> {
        let order = || match a.order(b) {
            Some(order) => Ok(order),
            // Not a number is in no order, which is not wrong.
            None if a.real().is_some() && b.real().is_some() => Err(None),
            None => Err(Some(format!("{a} and {b} are in no order"))),
        };
        let holds = match self {
            Relation::Equal => return Ok(a == b),
            Relation::Unequal => return Ok(a != b),
            Relation::Less => order().map(|o| o == Ordering::Less),
            Relation::AtMost => order().map(|o| o != Ordering::Greater),
            Relation::Greater => order().map(|o| o == Ordering::Greater),
            Relation::AtLeast => order().map(|o| o != Ordering::Less),
        };
        holds.or_else(|why| why.map_or(Ok(false), Err))
    }
}

impl Function {
    fn call(self, given: &[Value]) -> Result<Value, String> {
        let real = || given.first().and_then(Value::real).ok_or("log2 and sqrt take a number");
        let extreme = |keep: Ordering| {
            let mut best: Option<&Value> = None;
            for v in given {
                if !v.is_number() {
                    return Err(format!("min and max take numbers, not {v}"));
                }
                if best.is_none_or(|b| v.order(b) == Some(keep)) {
                    best = Some(v);
                }
            }
            best.cloned().ok_or_else(|| "min and max take at least one number".into())
        };
        let quotient = |aligned: bool| {
            let [Some(a), Some(b)] = [0, 1].map(|i| given.get(i).and_then(Value::int)) else {
                return Err("cdiv and align take whole numbers".to_string());
            };
            let failed = || format!("cdiv or align of {a} by {b}");
            if b <= 0 || a < 0 {
                return Err(failed());
            }
            let up = a / b + i64::from(a % b != 0);
            let value = if aligned { up.checked_mul(b) } else { Some(up) };
            value.map(Value::from).ok_or_else(failed)
        };
        match self {
            Function::CeilDivide => quotient(false),
            Function::Align => quotient(true),
            Function::Min => extreme(Ordering::Less),
            Function::Max => extreme(Ordering::Greater),
            Function::Log2 => Ok(Value::Real(real()?.log2())),
            Function::Sqrt => Ok(Value::Real(real()?.sqrt())),
        }
    }
}
