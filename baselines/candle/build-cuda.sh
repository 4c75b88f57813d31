#!/bin/sh
# Builds the peer and the engine with CUDA: `sh build-cuda.sh [cargo's options]`. Needs a CUDA toolkit (nvcc on PATH, or CUDA_HOME).
#
# Candle links libcuda and the CUDA libraries, so that its programs do not even start without a driver. Here they are
# loaded when they are used: one word of candle-core's manifest is changed in a copy, and the runtime is linked statically.
set -eu
cd "$(dirname "$0")"
export CUDA_HOME="${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")}"
export PATH="$CUDA_HOME/bin:$PATH" CUDA_PATH="$CUDA_HOME" CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
target=${CARGO_TARGET_DIR:-$PWD/target}
patched=$target/loads-cuda
mkdir -p "$patched/link"

source=$(cargo metadata --locked --format-version 1 | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "candle-core"))')
if [ ! -e "$patched/candle-core/Cargo.toml" ]; then
    cp -r "$source" "$patched/candle-core.part"
    sed -i 's/"dynamic-linking"/"fallback-dynamic-loading"/' "$patched/candle-core.part/Cargo.toml"
    grep -q '"fallback-dynamic-loading"' "$patched/candle-core.part/Cargo.toml"
    mv "$patched/candle-core.part" "$patched/candle-core"
fi
for lib in lib64 lib targets/x86_64-linux/lib; do
    [ ! -e "$CUDA_HOME/$lib/libcudart_static.a" ] || ln -sf "$CUDA_HOME/$lib/libcudart_static.a" "$patched/link/libcudart.a"
done

# The patch takes candle-core's checksum out of the lock file; it goes back afterwards.
cp Cargo.lock "$patched/Cargo.lock"
trap 'cp "$patched/Cargo.lock" Cargo.lock' EXIT
CARGO_TARGET_DIR=$target RUSTFLAGS="${RUSTFLAGS:-} -L native=$patched/link" \
    cargo build --release --features cuda,model --config "patch.crates-io.candle-core.path='$patched/candle-core'" "$@"
