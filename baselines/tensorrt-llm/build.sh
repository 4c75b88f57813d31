#!/bin/sh
# Builds the shim: `sh build.sh TRTLLM_INCLUDE TRTLLM_LIB [OUTPUT]`. TRTLLM_INCLUDE is the folder that has `tensorrt_llm/executor/executor.h`
# (and those that it includes; CPATH may name more, such as CUDA's), TRTLLM_LIB the folder of `libtensorrt_llm.so`, of TensorRT-LLM 1.2 or
# earlier: later ones have no executor in C++. OUTPUT is `libjitune_trtllm.so` here, unless it is said.
#
# NVIDIA's libraries of some versions were built with the old ABI of std::string: CXXFLAGS=-D_GLIBCXX_USE_CXX11_ABI=0 then.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { echo "usage: sh build.sh TRTLLM_INCLUDE TRTLLM_LIB [OUTPUT]" >&2; exit 2; }
include=$1 lib=$(cd "$2" && pwd) output=${3:-$here/libjitune_trtllm.so}
[ -e "$include/tensorrt_llm/executor/executor.h" ] || { echo "$include has no tensorrt_llm/executor/executor.h" >&2; exit 2; }
[ -e "$lib/libtensorrt_llm.so" ] || { echo "$lib has no libtensorrt_llm.so" >&2; exit 2; }
plugins=
[ ! -e "$lib/libnvinfer_plugin_tensorrt_llm.so" ] || plugins="-DJITUNE_TRTLLM_PLUGINS -lnvinfer_plugin_tensorrt_llm"
# shellcheck disable=SC2086
exec "${CXX:-c++}" -std=c++17 -O2 -fPIC -shared -fvisibility=hidden ${CXXFLAGS:-} -I "$include" "$here/shim/jitune_trtllm.cpp" \
    -L "$lib" -Wl,-rpath,"$lib" -ltensorrt_llm $plugins -o "$output"
