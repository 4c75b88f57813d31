#!/bin/sh
# The tests that load and launch kernels, with AddressSanitizer in the program and in the kernels: `sh scripts/asan.sh`.
#
# Needs an x86-64 Linux with Rust and gcc or clang, and some minutes. rustc brings the sanitizer's runtime, which is part of the
# test programs; kernels are compiled with it and linked without, so that they use the program's. One of the tests plants
# accesses outside of memory and looks whether each is found. Arguments are handed to the tests.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The C compiler that jitune calls: what makes a shared object is made in two steps.
cat >"$folder/cc" <<'CC'
#!/bin/sh
set -eu
cc=${JITUNE_ASAN_CC:-cc}
shared='' object=''
for arg in "$@"; do
    case $arg in -shared) shared=yes ;; esac
done
[ -n "$shared" ] || exec "$cc" "$@"
# The options before the code, as `cc::compile` gives them; then `-o FILE -lm`.
for arg in "$@"; do
    shift
    case $arg in
    -shared | -lm | -o) ;;
    *.so) object=$arg ;;
    *) set -- "$@" "$arg" ;;
    esac
done
"$cc" "$@" -g -fno-omit-frame-pointer -fsanitize=address -c -o "$object.o"
"$cc" -shared "$object.o" -o "$object" -lm
rm "$object.o"
CC
chmod +x "$folder/cc"

# The runtime's functions are exported to what the program loads. The stack of a function is not kept apart after its end:
# gcc before 14 aligns vectors wrongly there (its bug 110027).
export RUSTC_BOOTSTRAP=1 JITUNE_CC="$folder/cc" ASAN_OPTIONS="${ASAN_OPTIONS:-detect_stack_use_after_return=0}"
export RUSTFLAGS='-Zsanitizer=address --cfg jitune_asan -Clink-arg=-Wl,--export-dynamic-symbol=__asan_*'
export CARGO_TARGET_DIR="${JITUNE_ASAN_TARGET:-target/asan}" RUST_BACKTRACE=0
cargo test --locked --target x86_64-unknown-linux-gnu -p jitune --features tuner --no-fail-fast \
    --lib --test bundle --test cuda "$@"
