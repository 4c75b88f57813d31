#!/bin/sh
# Packs every crate of the workspace as a registry takes it, builds each from what was packed, installs the program from
# the packs alone, and runs it: `sh scripts/package.sh [options of cargo package]`. Needs a C compiler.
set -eu
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')

# Always the same: what is built of it lies under its path.
folder=$target/packs
# Cargo takes crates of a registry for what they were when it built them; here they are an earlier commit's.
if [ -d "$folder" ] || [ -d "$target/package" ]; then rm -rf "$target"/debug/.fingerprint/jitune-*; fi
rm -rf "$folder" "$target"/package/*.crate
mkdir -p "$folder"
# It keeps what it unpacked of a local registry by the registry's path and the crate's version, which stays the same here:
# without this an earlier commit's sources would be built.
home=${CARGO_HOME:-$HOME/.cargo}
for name in jitune jitune-c jitune-cli jitune-db jitune-peer; do
    rm -rf "$home"/registry/src/-*/"$name"-[0-9]* "$home"/registry/cache/-*/"$name"-[0-9]*
done
cargo package --locked --workspace "$@"
for pack in "$target"/package/*.crate; do
    tar -xzf "$pack" -C "$folder"
done

# The crates depend on each other by version: each is found in its pack instead of in the registry.
set --
for pack in "$folder"/*/; do
    # Not of the workspace in whose build folder it lies.
    printf '\n[workspace]\n' >>"$pack/Cargo.toml"
    name=$(sed -n 's/^name = "\(.*\)"/\1/p' "$pack/Cargo.toml" | head -n 1)
    set -- "$@" --config "patch.crates-io.$name.path='${pack%/}'"
done
# What the packs depend on was built just now, when they were verified.
CARGO_TARGET_DIR=$target cargo install --debug --offline --path "$folder"/jitune-cli-* --root "$folder/root" "$@"

export JITUNE_DB="$folder/db"
jitune=$folder/root/bin/jitune
"$jitune" --version
"$jitune" tune --target cpu --trials 1 --budget 60 --nominal-ceilings --problem 'rmsnorm rows=8 cols=256 dtype=f32'
"$jitune" export --target cpu -o "$folder/model.jitune"
"$jitune" verify --no-timing "$folder/model.jitune"
