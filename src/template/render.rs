//! Source text from a template, a problem and a config.

use super::{BUILT_IN_ORIGIN, Library, Origin, Template, TemplateError};
use crate::device::{Device, Target};
use crate::problem::{CodeLayout, DimKind, Granularity, Problem, Storage, row_of_weights};
use crate::recipe::Config;
use crate::source::{Language, Source};
use std::fmt::Write;

pub(super) fn render(
    library: &Library,
    template: &Template,
    problem: &Problem,
    device: &Device,
    config: &Config,
) -> Result<Source, TemplateError> {
    let d = &template.recipe.description;
    let instance = template.recipe.instance(problem, device, config)?;
    let scope = instance.scope();
    let mut text = constants(template, problem, device);
    let mut define = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "#define {} {value}", name.to_uppercase());
    };
    for (name, value) in &config.0 {
        define(name, value);
    }
    for (name, value) in instance.constants()?.iter() {
        define(name, value);
    }
    let mut done = Vec::new();
    splice(library, (d.target, template.origin), &d.name, &template.code, &mut done, &mut text)?;
    let mut options = d.options.flags.clone();
    if let Some(cap) = &template.recipe.max_registers {
        options.push(format!("-maxrregcount={}", cap.int(scope)?));
    }
    Ok(Source {
        language: language(d.target),
        text,
        arch: device.arch.clone(),
        options,
        entries: d.launches.iter().map(|l| l.entry.clone()).collect(),
    })
}

/// All that is written before a template's own constants: the types, the op, and the dimensions
/// that the code has as constants.
pub(super) fn constants(template: &Template, problem: &Problem, device: &Device) -> String {
    let types = problem.types();
    let upper = |name: &str| name.to_uppercase();
    let told_caches = template.recipe.knows_caches;
    let one = if told_caches { types.unscaled().dtype() } else { types.dtype() };
    let mut text = match one.filter(|_| !template.recipe.types_apart) {
        Some(dtype) => preamble(dtype.name(), device),
        None => {
            let apart =
                format!("#define DTYPE_X_{} 1\n#define DTYPE_W_{} 1\n", upper(types.x.name()), upper(types.w.name()));
            preamble(types.y.name(), device) + &apart
        }
    };
    if told_caches {
        let _ = writeln!(text, "#define DTYPE_KV_{} 1", upper(types.kv.unwrap_or(types.y).name()));
    }
    if template.recipe.knows_scales {
        text += &scales(template, problem);
    }
    if template.recipe.knows_scales_of_x {
        text += &scales_of_x(template, problem);
    }
    let _ = writeln!(text, "#define OP_{} 1", problem.op().name.to_uppercase());
    for dim in problem.op().dims {
        if template.recipe.fixes(problem, dim.name) && !matches!(dim.kind, DimKind::Word(_)) {
            let _ = writeln!(text, "#define {} {}", dim.name.to_uppercase(), problem.dim(dim.name));
        }
    }
    text
}

/// What code that knows scaled weights is told of them.
fn scales(template: &Template, problem: &Problem) -> String {
    let Some(s) = problem.types().scaling else {
        return "#define W_SCALE_NONE 1\n#define W_ZERO_NONE 1\n".into();
    };
    let words = [("W_SCALE", s.per.name()), ("W_ZERO", s.zero.name()), ("SCALE", s.storage.name())];
    let mut text: String = words.map(|(of, word)| format!("#define {of}_{} 1\n", word.to_uppercase())).concat();
    if s.layout != CodeLayout::Rows {
        let _ = writeln!(text, "#define W_LAYOUT_{} 1", s.layout.name().to_uppercase());
    }
    // Where the width of a row is an argument, so is that of a group that is a row.
    let (row, of) = row_of_weights(problem);
    if matches!(s.per, Granularity::Group(_) | Granularity::Block) || template.recipe.fixes(problem, of) {
        let _ = writeln!(text, "#define W_GROUP {}", s.per.run(row));
    }
    text
}

/// What code that knows scaled tokens is told of them.
fn scales_of_x(template: &Template, problem: &Problem) -> String {
    let Some(per) = problem.types().x_scales else { return "#define X_SCALE_NONE 1\n".into() };
    let mut text = format!("#define X_SCALE_{} 1\n", per.name().to_uppercase());
    if matches!(per, Granularity::Group(_)) || template.recipe.fixes(problem, "k") {
        let _ = writeln!(text, "#define X_GROUP {}", per.run(problem.dim("k")));
    }
    text
}

pub(super) fn support(
    library: &Library,
    beside: &[String],
    results: Storage,
    device: &Device,
) -> Result<Source, TemplateError> {
    // It compares results, and fills what is stored as they are.
    let mut text = preamble(results.name(), device);
    let own = (device.target, BUILT_IN_ORIGIN);
    let mut done = Vec::new();
    for code in std::iter::once(&library.support[&device.target]).chain(beside) {
        splice(library, own, "the support code", code, &mut done, &mut text)?;
    }
    let options = match device.target {
        Target::Cuda => Vec::new(),
        Target::Cpu => vec!["-ffp-contract=fast".into()],
    };
    Ok(Source { language: language(device.target), text, arch: device.arch.clone(), options, entries: Vec::new() })
}

pub(super) fn fingerprint(library: &Library, template: &Template) -> String {
    let d = &template.recipe.description;
    let d = d.essence();
    let mut text = serde_json::to_string(&d).unwrap_or_default();
    // A missing include is an error when the template is rendered; here it only leaves the hash without that text.
    let own = (d.target, template.origin);
    let _ = splice(library, own, &d.name, &template.code, &mut Vec::new(), &mut text);
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn language(target: Target) -> Language {
    match target {
        Target::Cuda => Language::Cuda,
        Target::Cpu => Language::C,
    }
}

fn preamble(dtype: &str, device: &Device) -> String {
    let mut text = format!("#define DTYPE_{} 1\n", dtype.to_uppercase());
    if device.target == Target::Cuda {
        let _ = writeln!(text, "#define ARCH {}", device.cc * 10);
    }
    text
}

/// Most files that one source includes.
const MAX_INCLUDES: usize = 128;

/// Appends `code` of this target and origin to `out` with each `#include "…"` replaced by that file, once.
fn splice(
    library: &Library,
    (target, origin): (Target, Origin),
    file: &str,
    code: &str,
    done: &mut Vec<(Origin, String)>,
    out: &mut String,
) -> Result<(), TemplateError> {
    for line in code.lines() {
        let trimmed = line.trim_start();
        let included = trimmed.strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        match included {
            Some(name) => {
                let of = |origin| Some((origin, library.includes.get(&(target, origin, name.to_string()))?));
                let missing = || TemplateError::MissingFile { file: file.into(), missing: name.into() };
                let (from, text) = of(origin).or_else(|| of(BUILT_IN_ORIGIN)).ok_or_else(missing)?;
                if done.iter().any(|(o, n)| (*o, n.as_str()) == (from, name)) {
                    continue;
                }
                if done.len() >= MAX_INCLUDES {
                    let why = format!("it includes more than {MAX_INCLUDES} files");
                    return Err(TemplateError::Description { file: file.into(), why });
                }
                done.push((from, name.to_string()));
                splice(library, (target, from), name, text, done, out)?;
            }
            None if trimmed.starts_with("#pragma once") => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(())
}
