#!/bin/sh
# Prints the public API of the library with its default features, one item a line: `sh scripts/api.sh > docs/api.txt`
# writes down what programs may depend on; `sh scripts/api.sh --check` fails, with the difference, when that changed.
# Needs `cargo install --locked cargo-public-api`.
set -eu
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/api

api() {
    # The JSON of rustdoc is an unstable output of the stable compiler.
    RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS='-Z unstable-options --output-format json' \
        cargo doc --quiet --locked -p jitune --lib --no-deps --target-dir "$target"
    cargo public-api --rustdoc-json "$target/doc/jitune.json" -sss
}

if [ "${1:-}" = --check ]; then
    api > "$target.txt"
    diff -u docs/api.txt "$target.txt" || {
        echo 'the public API changed: look at the difference, then `sh scripts/api.sh > docs/api.txt`'
        exit 1
    }
else
    api
fi
