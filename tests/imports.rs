//! No module imports what imports it: between the modules of the library, and between the files of the reports, of the
//! program and of the database.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The modules of a source folder, by path from its root (empty for the root itself), and their text without comments
/// and tests.
fn modules(folder: &Path, path: Vec<String>, list: &mut BTreeMap<Vec<String>, String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let file = entry.path();
        let stem = file.file_stem().unwrap().to_str().unwrap().to_string();
        if file.is_dir() {
            modules(&file, [path.clone(), vec![stem]].concat(), list);
        } else if file.extension().is_some_and(|e| e == "rs") {
            let own = if matches!(stem.as_str(), "lib" | "main" | "mod") { None } else { Some(stem) };
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code = text.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
            list.insert(path.iter().cloned().chain(own).collect(), code);
        }
    }
}

/// The paths that a `use` names, its braces expanded.
fn expand(before: &[String], text: &str, list: &mut Vec<Vec<String>>) {
    let words = |t: &str| t.split("::").map(str::trim).filter(|w| !w.is_empty()).map(String::from).collect::<Vec<_>>();
    let Some((head, rest)) = text.split_once('{') else {
        list.push([before, &words(text.split(" as ").next().unwrap())].concat());
        return;
    };
    let (before, mut depth, mut part) = ([before, &words(head)].concat(), 0, String::new());
    for c in rest.trim_end().trim_end_matches('}').chars().chain([',']) {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        match c {
            ',' if depth == 0 => expand(&before, &std::mem::take(&mut part), list),
            c => part.push(c),
        }
    }
}

/// The paths in a module's `use`s, those that it gives on apart, and the paths in its code.
fn paths(code: &str) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let (mut own, mut given) = (Vec::new(), Vec::new());
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let at = statement.rfind("use ").filter(|at| statement[..*at].ends_with(['\n', ' ']) || *at == 0);
        match at {
            Some(at) if statement.ends_with(';') => {
                let line = statement[..at].rsplit('\n').next().unwrap().trim();
                let list = if line.starts_with("pub") { &mut given } else { &mut own };
                expand(&[], statement[at + 4..].trim_end_matches(';'), list);
            }
            _ => rest.push_str(statement),
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in rest.match_indices(start) {
            let end = rest[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            expand(&[], &rest[at..end.map_or(rest.len(), |e| at + e)], &mut own);
        }
    }
    (own, given)
}

/// Which module imports which.
fn imports(folder: &Path) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let mut list = BTreeMap::new();
    modules(folder, Vec::new(), &mut list);
    let known: BTreeMap<_, _> = list.iter().map(|(module, code)| (module, paths(code))).collect();
    let target = |from: &[String], path: &[String]| -> Option<Vec<String>> {
        let mut at = from.to_vec();
        let mut rest = path;
        match rest.first().map(String::as_str) {
            Some("crate") => at.clear(),
            Some("super") => {}
            _ => return None,
        }
        while let Some(word) = rest.first().filter(|w| matches!(w.as_str(), "crate" | "super")) {
            if word == "super" {
                at.pop();
            }
            rest = &rest[1..];
        }
        let full = [&at[..], rest].concat();
        let module = (0..=full.len()).rev().map(|n| full[..n].to_vec()).find(|m| list.contains_key(m))?;
        // What a module only gives on is its child's.
        let name = full.get(module.len());
        let given = known[&module].1.iter().find(|p| name.is_some() && p.last() == name);
        let child = given.map(|p| [&module[..], &p[..p.len() - 1]].concat()).filter(|m| list.contains_key(m));
        Some(child.unwrap_or(module))
    };
    let of = |(module, (own, _)): (&&Vec<String>, &(Vec<Vec<String>>, _))| {
        let to = own.iter().filter_map(|p| target(module, p)).filter(|to| to != *module).collect();
        ((*module).clone(), to)
    };
    known.iter().map(of).collect()
}

/// Fails when one of the modules is reached from itself.
fn no_circle<T: Ord + Clone + std::fmt::Debug>(imports: &BTreeMap<T, BTreeSet<T>>) {
    let mut left = imports.clone();
    loop {
        // Whoever imports nothing that is left is in no circle.
        let free: Vec<T> =
            left.iter().filter(|(_, to)| !to.iter().any(|t| left.contains_key(t))).map(|(m, _)| m.clone()).collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|m| drop(left.remove(m)));
    }
    // What only imports a circle is not in it.
    let entered: BTreeSet<T> = left.values().flatten().cloned().collect();
    left.retain(|m, _| entered.contains(m));
    assert!(left.is_empty(), "modules import each other in a circle: {left:?}");
}

fn files(folder: &str) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let found = imports(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    assert!(found.values().map(BTreeSet::len).sum::<usize>() > 5, "{folder}: {found:?}");
    found
}

#[test]
fn modules_of_the_library() {
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in files("src") {
        let Some(from) = from.first() else { continue };
        let to = to.into_iter().filter_map(|to| to.into_iter().next()).filter(|to| to != from);
        modules.entry(from.clone()).or_default().extend(to);
    }
    assert!(modules["runtime"].contains("bundle") && modules["winner"].contains("artifact"), "{modules:?}");
    no_circle(&modules);
}

#[test]
fn files_of_reports_the_program_and_the_database() {
    for folder in ["src/report", "src/engines/report", "program/src", "tuning-db/src"] {
        let mut found = files(folder);
        // The root names all of its files, and each may name what stands in it.
        found.remove(&Vec::new());
        no_circle(&found);
    }
}

#[test]
fn a_circle_is_seen() {
    let to = |list: &[&'static str]| list.iter().copied().collect::<BTreeSet<_>>();
    no_circle(&BTreeMap::from([("a", to(&["b"])), ("b", to(&["c"])), ("c", to(&[]))]));
    let circle = BTreeMap::from([("a", to(&["b"])), ("b", to(&["c"])), ("c", to(&["b"]))]);
    assert!(std::panic::catch_unwind(|| no_circle(&circle)).is_err());
}
