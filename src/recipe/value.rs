//! The values of expressions. None of them can grow: a word stands in a text or is a name of jitune's own, and nothing joins
//! or repeats words.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// What an expression gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Value {
    /// True or false; in arithmetic 1 or 0.
    Truth(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Real(f64),
    /// A word, such as a dtype.
    Word(Arc<str>),
}

impl Value {
    /// Whether a condition with this value holds: any number but 0, any word but the empty one.
    pub fn truth(&self) -> bool {
        match self {
            Value::Truth(v) => *v,
            Value::Int(v) => *v != 0,
            Value::Real(v) => *v != 0.0,
            Value::Word(w) => !w.is_empty(),
        }
    }

    /// Whether it is a number; a truth is none.
    pub fn is_number(&self) -> bool {
        matches!(self, Value::Int(_) | Value::Real(_))
    }

    /// As a float; words have none.
    pub fn real(&self) -> Option<f64> {
        match self {
            Value::Truth(v) => Some(f64::from(u8::from(*v))),
            Value::Int(v) => Some(*v as f64),
            Value::Real(v) => Some(*v),
            Value::Word(_) => None,
        }
    }

    /// As an integer; a float must be whole.
    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Truth(v) => Some((*v).into()),
            Value::Int(v) => i64::try_from(*v).ok(),
            // 2^63 is a float, and one more than the largest i64.
            Value::Real(v) => Some(*v as i64).filter(|whole| *whole as f64 == *v && *whole != i64::MAX),
            Value::Word(_) => None,
        }
    }

    /// An integer or a truth, as it is.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Value::Truth(v) => Some((*v).into()),
            Value::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// The order of two numbers, or of two words.
    pub(super) fn order(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Word(a), Value::Word(b)) => Some(a.cmp(b)),
            _ => match (self.whole(), other.whole()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => self.real()?.partial_cmp(&other.real()?),
            },
        }
    }
}

/// Numbers by their value, whole or not.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.order(other) == Some(Ordering::Equal)
    }
}

impl From<i64> for Value {
    fn from(v: i64) -> Value {
        Value::Int(v.into())
    }
}

impl From<f64> for Value {
    fn from(v: f64) -> Value {
        Value::Real(v)
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::Word(v.into())
    }
}

/// As it is written into code: a float that is whole keeps its point.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Truth(v) => f.write_str(if *v { "True" } else { "False" }),
            Value::Int(v) => v.fmt(f),
            Value::Real(v) if v.is_finite() && v.fract() == 0.0 => write!(f, "{v}.0"),
            Value::Real(v) => v.fmt(f),
            Value::Word(w) => f.write_str(w),
        }
    }
}
