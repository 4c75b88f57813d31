//! Owns what is stored: [`Record`], its [`Key`], the order between two records
//! of one slot, and how two keys differ.
//!
//! It does not know what the names in a key mean (the `jitune` crate fills
//! them), nor how a record looks on disk (`line`).

use crate::{clock::now, hash::KeyId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};

/// What a record says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// The best config known for the key. The newest one of a key counts.
    Winner,
    /// The winner so far does not count any more (it failed a later check, its
    /// template was wrong): look-ups miss until a newer winner is stored.
    Withdrawn,
    /// The verdict on one config (`sub`). The newest one of each `sub` counts.
    Trial,
}

/// What a stored result depends on: two lists of names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What the compiled artifact depends on: schema, source hash, options,
    /// compiler, exact arch, problem.
    pub compile: BTreeMap<String, String>,
    /// What its timing depends on too: the silicon, clocks, driver.
    pub timing: BTreeMap<String, String>,
}

impl Key {
    /// A key from two lists of `(name, value)`.
    pub fn new<N, V>(compile: impl IntoIterator<Item = (N, V)>, timing: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        let own = |(n, v): (N, V)| (n.into(), v.into());
        Self { compile: compile.into_iter().map(own).collect(), timing: timing.into_iter().map(own).collect() }
    }

    /// The canonical JSON of the key: sorted names, no spaces.
    pub fn canonical(&self) -> String {
        let mut out = String::from("{\"compile\":");
        canonical_map(self.compile.iter(), push_text, &mut out);
        out.push_str(",\"timing\":");
        canonical_map(self.timing.iter(), push_text, &mut out);
        out.push('}');
        out
    }

    /// blake3 of [`Key::canonical`].
    pub fn id(&self) -> KeyId {
        KeyId::of_canonical(&self.canonical())
    }

    /// The value of the first field called `name`, in either list.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.compile.get(name).or_else(|| self.timing.get(name)).map(String::as_str)
    }

    /// Every field in which a stored key differs from this one.
    pub fn diff(&self, stored: &Key) -> Vec<FieldDiff> {
        let mut out = Vec::new();
        diff_list(KeyPart::Compile, &self.compile, &stored.compile, &mut out);
        diff_list(KeyPart::Timing, &self.timing, &stored.timing, &mut out);
        out
    }
}

fn diff_list(
    part: KeyPart,
    asked: &BTreeMap<String, String>,
    stored: &BTreeMap<String, String>,
    out: &mut Vec<FieldDiff>,
) {
    for (name, value) in asked {
        if stored.get(name) != Some(value) {
            out.push(FieldDiff {
                part,
                name: name.clone(),
                asked: Some(value.clone()),
                stored: stored.get(name).cloned(),
            });
        }
    }
    for (name, value) in stored {
        if !asked.contains_key(name) {
            out.push(FieldDiff { part, name: name.clone(), asked: None, stored: Some(value.clone()) });
        }
    }
}

/// Which list of a key a field stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPart {
    /// What the artifact depends on: it must be compiled again.
    Compile,
    /// What only the timing depends on: it must be measured again.
    Timing,
}

/// One field in which a stored key differs from the one asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldDiff {
    /// The list the field stands in.
    pub part: KeyPart,
    /// The field's name.
    pub name: String,
    /// The value asked for; `None` when only the stored key has the field.
    pub asked: Option<String>,
    /// The stored value; `None` when the stored key lacks the field.
    pub stored: Option<String>,
}

impl fmt::Display for FieldDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            KeyPart::Compile => "compile",
            KeyPart::Timing => "timing",
        };
        let show = |v: &Option<String>| v.as_ref().map_or("absent".into(), |v| format!("{v:?}"));
        write!(f, "{part}.{}: asked {}, stored {}", self.name, show(&self.asked), show(&self.stored))
    }
}

/// One entry of the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What the record says.
    pub kind: Kind,
    /// When, in seconds since 1970. It also orders the records of one slot.
    pub at: u64,
    /// What it holds for.
    pub key: Key,
    /// Which config a trial judged. A winner may carry it as a label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Whether a merge brought it: then what it says was not seen here, and the artifacts that it names need not be those that it was
    /// seen with. It takes no part in the order of records, and exports leave it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merged: bool,
    /// Everything else. Artifacts are named by strings under fields called
    /// `artifact`, at any depth; `gc` keeps those.
    #[serde(default)]
    pub body: Value,
}

/// Latest date that a record may bear, in seconds since 1970: the end of the year 9999. What is later is no date, and
/// leaves no room for a newer record.
pub const MAX_DATE: u64 = 253_402_300_799;

/// How the text of a record begins that a merge brought.
pub(crate) const MERGED: &str = "{\"merged\":true,";

/// Which records a caller can make sense of. What it cannot is never the current record of a slot, so that nonsense with
/// a new date hides no older record; `gc` keeps it, since another version of the caller may have written it.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// Names what `reads` accepts: an index that was built under another name is rebuilt.
    pub version: &'static str,
    /// Whether the caller can make sense of a record. It must depend on the record alone.
    pub reads: fn(&Record) -> bool,
}

impl Default for Reader {
    /// Every record.
    fn default() -> Self {
        Self { version: "", reads: |_| true }
    }
}

impl Record {
    /// A winner of `key`, as of now.
    pub fn winner(key: Key, body: Value) -> Self {
        Self { kind: Kind::Winner, at: now(), key, sub: None, merged: false, body }
    }

    /// A trial of the config `sub` for `key`, as of now.
    pub fn trial(key: Key, sub: impl Into<String>, body: Value) -> Self {
        Self { kind: Kind::Trial, at: now(), key, sub: Some(sub.into()), merged: false, body }
    }

    /// The canonical JSON of the record: fixed field order, sorted maps.
    pub fn canonical(&self) -> String {
        let mut out = String::from(if self.merged { MERGED } else { "{" });
        let kind = match self.kind {
            Kind::Winner => "winner",
            Kind::Withdrawn => "withdrawn",
            Kind::Trial => "trial",
        };
        out.push_str(&format!("\"kind\":\"{kind}\",\"at\":{},\"key\":", self.at));
        out.push_str(&self.key.canonical());
        if let Some(sub) = &self.sub {
            out.push_str(",\"sub\":");
            push_text(sub, &mut out);
        }
        out.push_str(",\"body\":");
        canonical_json(&self.body, &mut out);
        out.push('}');
        out
    }
}

/// Writes JSON with sorted keys and no spaces. It sorts itself, so that a
/// `preserve_order` feature switched on elsewhere in the build changes nothing.
fn canonical_json(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            canonical_map(fields.into_iter(), canonical_json, out);
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical_json(item, out);
            }
            out.push(']');
        }
        leaf => push_json(leaf, out),
    }
}

fn canonical_map<'a, V: 'a>(
    fields: impl Iterator<Item = (&'a String, &'a V)>,
    push_value: impl Fn(&V, &mut String),
    out: &mut String,
) {
    out.push('{');
    for (i, (name, value)) in fields.enumerate() {
        if i > 0 {
            out.push(',');
        }
        push_text(name, out);
        out.push(':');
        push_value(value, out);
    }
    out.push('}');
}

fn push_text(text: &String, out: &mut String) {
    push_json(text, out);
}

/// Writes a leaf: a string, a number, `true`, `false` or `null`.
fn push_json(leaf: &impl Serialize, out: &mut String) {
    // These cannot fail; were one to, the line would not read back and be refused.
    if let Ok(text) = serde_json::to_string(leaf) {
        out.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn key_id_depends_on_every_name_value_and_list() {
        let base = Key::new([("arch", "sm_90a"), ("op", "matmul")], [("sm", "132")]);
        let same = Key::new([("op", "matmul"), ("arch", "sm_90a")], [("sm", "132")]);
        assert_eq!(base.id(), same.id());
        for other in [
            Key::new([("arch", "sm_90"), ("op", "matmul")], [("sm", "132")]),
            Key::new([("arch", "sm_90a"), ("op", "matmul"), ("x", "")], [("sm", "132")]),
            Key::new([("arch", "sm_90a"), ("op", "matmul"), ("sm", "132")], []),
            Key::new([("op", "sm_90a"), ("arch", "matmul")], [("sm", "132")]),
        ] {
            assert_ne!(base.id(), other.id(), "{other:?}");
        }
    }

    #[test]
    fn diff_names_changed_missing_and_extra_fields() {
        let asked = Key::new([("a", "1"), ("b", "2")], [("driver", "580")]);
        let stored = Key::new([("a", "1"), ("c", "3")], [("driver", "550")]);
        let text: Vec<String> = asked.diff(&stored).iter().map(FieldDiff::to_string).collect();
        assert_eq!(
            text,
            [
                "compile.b: asked \"2\", stored absent",
                "compile.c: asked absent, stored \"3\"",
                "timing.driver: asked \"580\", stored \"550\"",
            ]
        );
        assert!(asked.diff(&asked).is_empty());
    }

    #[test]
    fn canonical_form_reads_back_to_the_same_text() {
        let mut record = Record::trial(
            Key::new([("p", "matmul \"q\"\n")], []),
            "tile=64",
            json!({"z": [1, 2.5e-7, 0.1, 123456789.12345678], "a": {"y": null, "b": "é\u{0}"}}),
        );
        record.at = 7;
        let text = record.canonical();
        assert!(text.starts_with(
            "{\"kind\":\"trial\",\"at\":7,\"key\":{\"compile\":{\"p\":\"matmul \\\"q\\\"\\n\"},\"timing\":{}},\"sub\":\"tile=64\",\"body\":{\"a\":{\"b\""
        ), "{text}");
        let back: Record = serde_json::from_str(&text).expect("parses");
        assert_eq!(back, record);
        assert_eq!(back.canonical(), text);
    }
}
