#!/bin/sh
# What programs may depend on, one item a line: the public API of the library with its default features in docs/api.txt, and that of
# the engine in docs/api-engine.txt. `sh scripts/api.sh` writes both anew; `sh scripts/api.sh --check` fails, with the difference, when
# one changed. Needs `cargo install --locked cargo-public-api`.
set -eu
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/api

api() {
    # The JSON of rustdoc is an unstable output of the stable compiler.
    RUSTC_BOOTSTRAP=1 RUSTDOCFLAGS='-Z unstable-options --output-format json' \
        cargo doc --quiet --locked -p jitune --lib --no-deps --target-dir "$target" "$@"
    cargo public-api --rustdoc-json "$target/doc/jitune.json" -sss
}

api > "$target.txt"
api --features engine | grep -E '[ (<&]jitune::engine(::|$)' > "$target-engine.txt"
if [ "${1:-}" = --check ]; then
    for name in api api-engine; do
        diff -u "docs/$name.txt" "$target${name#api}.txt" || {
            echo 'the public API changed: look at the difference, then `sh scripts/api.sh`'
            exit 1
        }
    done
else
    cp "$target.txt" docs/api.txt
    cp "$target-engine.txt" docs/api-engine.txt
fi
