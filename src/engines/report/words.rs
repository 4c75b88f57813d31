//! Figures in words, the same in every rendering.

pub use crate::report::text::{percent, ratio};

/// A number with the digits that count: four of large ones, three of small ones.
pub fn number(v: f64) -> String {
    match v.abs() {
        a if !a.is_finite() => "-".into(),
        0.0 => "0".into(),
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 100.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        a => format!("{v:.*}", (2 - a.log10().floor() as i32).clamp(0, 9) as usize),
    }
}

/// Dollars.
pub fn dollars(v: f64) -> String {
    format!("${}", number(v))
}

/// A value that need not be there.
pub fn maybe(v: Option<f64>, text: impl Fn(f64) -> String) -> String {
    v.map_or_else(|| "—".into(), text)
}

/// `a, b and c`.
pub fn list<T: AsRef<str>>(words: &[T]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().into(),
        [most @ .., last] => {
            format!("{} and {}", most.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", "), last.as_ref())
        }
    }
}

/// Rounds in order: `0–2`, or `0, 2`.
pub fn rounds(list: &[u32]) -> String {
    match list {
        [first, .., last] if (last - first) as usize + 1 == list.len() => format!("{first}–{last}"),
        _ => list.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_in_words() {
        let given = [0.0, 12345.6, 123.45, 1.2345, 0.12345, 0.0012345, f64::NAN];
        assert_eq!(given.map(number), ["0", "12346", "123.5", "1.23", "0.123", "0.00123", "-"]);
        assert_eq!(
            (list::<&str>(&[]), list(&["a"]), list(&["a", "b", "c"])),
            ("".into(), "a".into(), "a, b and c".into())
        );
        assert_eq!((rounds(&[0, 1, 2]), rounds(&[0, 2]), rounds(&[4])), ("0–2".into(), "0, 2".into(), "4".into()));
    }
}
