//! Lists the files of `kernel-templates/` so that a new template is picked up without touching any Rust.

use std::{env, fmt::Write, fs, io, path::Path};

fn walk(dir: &Path, root: &Path, table: &mut String) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        let kept = path.extension().is_some_and(|e| ["cu", "cuh", "c", "h", "toml"].iter().any(|k| e == *k));
        if path.is_dir() {
            walk(&path, root, table)?;
        } else if kept {
            let name = path.strip_prefix(root).map_err(io::Error::other)?;
            println!("cargo::rerun-if-changed={}", path.display());
            writeln!(table, "    ({:?}, include_str!({:?})),", name.display().to_string(), path.display().to_string())
                .map_err(io::Error::other)?;
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("kernel-templates");
    let mut table = String::from("&[\n");
    walk(&root, &root, &mut table)?;
    table.push(']');
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("templates.rs"), table)
}
