//! The parameters of a request: each of its type and within its range, or refused with what it may be.
//!
//! A body is scanned once; a parameter is made a value where it is asked for, and of the type that it must have. So a body
//! takes no more memory than its text, whatever it has where something else should be.

use super::refusal::Refusal;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Number, Value};
use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

/// The object that a body is. A parameter that is null is not there; of one that is there twice the last counts.
pub(super) struct Fields<'b>(Vec<(&'static str, &'b RawValue)>);

impl<'b> Fields<'b> {
    /// Reads a body, and keeps the parameters of these names.
    pub fn read(body: &'b [u8], known: &'static [&'static str]) -> Result<Fields<'b>, Refusal> {
        let text = std::str::from_utf8(body).map_err(|e| Refusal::bad(format!("the body is no UTF-8: {e}")))?;
        let mut reader = serde_json::Deserializer::from_str(text);
        let list = Object(known).deserialize(&mut reader).and_then(|list| reader.end().map(|()| list));
        list.map(Fields).map_err(|e| Refusal::bad(format!("the body is no JSON object: {e}")))
    }

    /// A parameter's text as it stands there.
    pub fn raw(&self, name: &str) -> Option<&'b str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.get()).filter(|text| *text != "null")
    }

    pub fn text(&self, name: &str) -> Result<Option<Cow<'b, str>>, Refusal> {
        let is_text = |raw| text(raw).ok_or_else(|| Refusal::param(name, no_text(raw, "it must be a text")));
        self.raw(name).map(is_text).transpose()
    }

    pub fn flag(&self, name: &str, usual: bool) -> Result<bool, Refusal> {
        match self.raw(name) {
            None => Ok(usual),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(Refusal::param(name, "it must be true or false")),
        }
    }

    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Refusal> {
        let bad =
            || Refusal::param(name, format!("it must be a whole number from {} to {}", range.start(), range.end()));
        let whole = |raw| number(raw).and_then(|n| whole(&n)).filter(|n| range.contains(n)).ok_or_else(bad);
        self.raw(name).map(whole).transpose()
    }

    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Refusal> {
        let bad = || Refusal::param(name, format!("it must be a number from {} to {}", range.start(), range.end()));
        let value = |raw| number(raw).and_then(|n| n.as_f64()).filter(|n| range.contains(n)).ok_or_else(bad);
        Ok(self.raw(name).map(value).transpose()?.map(|n| n as f32))
    }

    /// A seed: any whole number of 64 bits, whatever its sign.
    pub fn seed(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let bad = || Refusal::param(name, "it must be a whole number of 64 bits");
        let whole = |n: Number| n.as_u64().or(n.as_i64().map(|n| n as u64));
        self.raw(name).map(|raw| number(raw).and_then(whole).ok_or_else(bad)).transpose()
    }

    /// A list of at most so many tokens of a model that has `vocab` of them.
    pub fn ids(&self, name: &str, vocab: i64, most: usize) -> Result<Vec<i32>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(Vec::new()) };
        match ids(name, raw, vocab, most)? {
            Some((ids, count)) if count <= most => Ok(ids),
            _ => Err(Refusal::param(name, format!("it must be a list of at most {most} tokens"))),
        }
    }

    /// Refuses a parameter that asks for more than nothing; what does not is short.
    pub fn neutral(&self, name: &str, is_neutral: fn(&Value) -> bool) -> Result<(), Refusal> {
        let short = |raw: &&str| raw.len() <= 64;
        match self.raw(name) {
            Some(raw)
                if !Some(raw)
                    .filter(short)
                    .is_some_and(|raw| serde_json::from_str(raw).is_ok_and(|v| is_neutral(&v))) =>
            {
                Err(Refusal::param(name, "it is not supported; leave it out"))
            }
            _ => Ok(()),
        }
    }
}

/// The tokens of a list, the first `most` of them, and how many there are; none where it is no list.
pub(super) fn ids(name: &str, raw: &str, vocab: i64, most: usize) -> Result<Option<(Vec<i32>, usize)>, Refusal> {
    let (mut ids, mut count) = (Vec::new(), 0);
    let listed = each(raw, |raw| {
        let id = number(raw).and_then(|n| whole(&n)).filter(|id| (0..vocab).contains(id));
        let Some(id) = id.and_then(|id| i32::try_from(id).ok()) else {
            // What it is may be as long as the whole body.
            let what = if raw.len() <= 40 { raw } else { "that" };
            return Err(Refusal::param(name, format!("{what} is no token; the model's go from 0 to {}", vocab - 1)));
        };
        count += 1;
        if ids.len() < most {
            ids.push(id);
        }
        Ok(())
    })?;
    Ok(listed.then_some((ids, count)))
}

/// Gives each element of a list to a function, up to the first that this refuses; false where it is no list.
pub(super) fn each<'b>(raw: &'b str, mut f: impl FnMut(&'b str) -> Result<(), Refusal>) -> Result<bool, Refusal> {
    struct Each<'f, F>(F, &'f mut Option<Refusal>);
    impl<'b, F: FnMut(&'b str) -> Result<(), Refusal>> Visitor<'b> for Each<'_, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'b>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(one) = list.next_element::<&RawValue>()? {
                if let Err(refusal) = (self.0)(one.get()) {
                    *self.1 = Some(refusal);
                    return Err(A::Error::custom("refused"));
                }
            }
            Ok(())
        }
    }
    let mut refusal = None;
    let read = serde_json::Deserializer::from_str(raw).deserialize_seq(Each(&mut f, &mut refusal));
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(read.is_ok()),
    }
}

/// Why something is no text, which has this form: one that begins as a text has half of a character.
pub(super) fn no_text<'w>(raw: &str, form: &'w str) -> &'w str {
    if raw.starts_with('"') {
        "it has half of a pair of surrogates (\\ud800 to \\udfff), which is no character"
    } else {
        form
    }
}

/// A text, if it is one.
pub(super) fn text(raw: &str) -> Option<Cow<'_, str>> {
    struct Text;
    impl<'b> Visitor<'b> for Text {
        type Value = Cow<'b, str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_borrowed_str<E>(self, text: &'b str) -> Result<Cow<'b, str>, E> {
            Ok(Cow::Borrowed(text))
        }

        fn visit_str<E>(self, text: &str) -> Result<Cow<'b, str>, E> {
            Ok(Cow::Owned(text.into()))
        }
    }
    serde_json::Deserializer::from_str(raw).deserialize_str(Text).ok()
}

fn number(raw: &str) -> Option<Number> {
    serde_json::from_str(raw).ok()
}

/// A whole number, however it is written: 5, or 5.0.
fn whole(number: &Number) -> Option<i64> {
    let float = |n: f64| (n.fract() == 0.0 && n.abs() < 9e15).then_some(n as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(float))
}

/// The parameters of these names, of an object.
struct Object(&'static [&'static str]);

impl<'b> DeserializeSeed<'b> for Object {
    type Value = Vec<(&'static str, &'b RawValue)>;

    fn deserialize<D: Deserializer<'b>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'b> Visitor<'b> for Object {
    type Value = Vec<(&'static str, &'b RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut list: Self::Value = Vec::new();
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match self.0.iter().find(|name| **name == key) {
                Some(name) => {
                    list.retain(|(known, _)| known != name);
                    list.push((name, map.next_value()?));
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["a", "b", "c", "d", "e", "f", "g"];

    fn fields(text: &str) -> Fields<'_> {
        Fields::read(text.as_bytes(), KNOWN).unwrap()
    }

    #[test]
    fn parameters_are_of_their_type_and_range() {
        let some = fields(
            r#"{"a": 5.0, "b": -1, "c": "x\u00e9", "d": null, "e": 1e300, "f": true, "g": 18446744073709551615}"#,
        );
        assert_eq!(some.integer("a", 1..=9), Ok(Some(5)));
        assert_eq!(some.integer("d", 1..=9), Ok(None));
        for name in ["b", "c", "e", "f", "g"] {
            let refused = some.integer(name, 1..=9).unwrap_err();
            assert_eq!(refused.message, format!("{name}: it must be a whole number from 1 to 9"));
            assert_eq!(refused.param.as_deref(), Some(name));
        }
        assert_eq!(some.number("a", 0.0..=5.0), Ok(Some(5.0)));
        assert_eq!(some.number("e", 0.0..=2.0).unwrap_err().message, "e: it must be a number from 0 to 2");
        assert_eq!((some.seed("g"), some.seed("b")), (Ok(Some(u64::MAX)), Ok(Some(u64::MAX))));
        assert_eq!((some.text("c").unwrap().as_deref(), some.flag("f", false)), (Some("xé"), Ok(true)));
        assert!(some.seed("e").is_err() && some.text("a").is_err() && some.flag("a", false).is_err());
        // The last counts, and what nobody knows does not.
        assert_eq!(fields(r#"{"a": [], "x": [{}], "a": 2}"#).integer("a", 1..=9), Ok(Some(2)));
    }

    #[test]
    fn tokens_are_the_models() {
        let some = fields(r#"{"a": [0, 96.0], "b": [97], "c": [-1], "d": ["1"], "e": 1, "f": [[1]], "g": {}}"#);
        assert_eq!(some.ids("a", 97, 2), Ok(vec![0, 96]));
        assert!(some.ids("a", 97, 1).unwrap_err().message.contains("at most 1"));
        for name in ["b", "c", "d", "e", "f", "g"] {
            assert!(some.ids(name, 97, 2).is_err(), "{name}");
        }
        assert_eq!(ids("a", "[1, 2, 3]", 97, 2), Ok(Some((vec![1, 2], 3))));
    }

    #[test]
    fn bodies_are_objects() {
        for (text, why) in [
            ("[1]", "expected an object"),
            ("{", "EOF"),
            ("{\"a\": NaN}", "expected value"),
            ("", "EOF"),
            ("{} {}", "trailing"),
            ("{\"x\": 01}", "no JSON object"),
        ] {
            assert!(Fields::read(text.as_bytes(), KNOWN).err().unwrap().message.contains(why), "{text}");
        }
        assert!(Fields::read(b"{\"x\": \"\xff\"}", KNOWN).err().unwrap().message.contains("no UTF-8"));
        for deep in ["[", "{\"a\":"] {
            let open = deep.repeat(100_000);
            assert!(Fields::read(format!("{{\"a\": {open}").as_bytes(), KNOWN).is_err());
        }
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(fields(&deep).ids("a", 97, 5).is_err());
    }
}
