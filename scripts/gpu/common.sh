# What check.sh and engine.sh share. $here is this folder, and $out the one that they write under.
failed=0
say() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*"; failed=1; }

# Writes the fault template with its planted candidates at one place of the order.
plant() {
  mkdir -p "$out/planted-$1"; cp "$here/planted.cu" "$out/planted-$1/gelu.cu"
  sed "s/@ORDER@/$2/; s/@WHICH@/$3/" "$here/planted.toml" > "$out/planted-$1/gelu.toml"
}

# Where compute-sanitizer is, or $SANITIZER.
sanitizer() {
  local tool; tool=${SANITIZER:-$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2> /dev/null | head -n 1)}
  [ -n "$tool" ] && echo "$tool"
}

# A write outside and a race are planted: whether this compute-sanitizer sees them.
planted_bugs_are_seen() {
  # Neighbouring allocations touch, so a write just outside lands in the next one: padding keeps them apart.
  plant bug 'which' '14, 15'
  "$1" --padding 4096 --report-api-errors no --error-exitcode 9 "$jitune" try 'gelu rows=8 cols=64' --templates "$out/planted-bug" --template gelu --config which=14 --rounds 0 --exact-memory > "$out/bug.txt" 2>&1
  grep -q 'Invalid __global__ write' "$out/bug.txt" && echo "memcheck sees the planted write outside" || fail "memcheck misses the planted bug"
  "$1" --tool racecheck --error-exitcode 9 "$jitune" try 'gelu rows=8 cols=64' --templates "$out/planted-bug" --template gelu --config which=15 --rounds 0 --exact-memory > "$out/race.txt" 2>&1
  grep -q 'hazard' "$out/race.txt" && echo "racecheck sees the planted race" || fail "racecheck misses the planted bug"
}

# Runs a command with NVRTC hidden: a folder without it, and a loader path without it. Needs root.
without_nvrtc() {
  env -u LD_LIBRARY_PATH JITUNE_NVRTC=/nonexistent unshare -m bash -c '
    for f in $(find / -xdev -name "libnvrtc.so*" 2> /dev/null); do mount --bind /dev/null "$f"; done
    exec "$@"' _ "$@"
}

# Runs steps by their names, and ends with what became of them.
run_steps() {
  local step
  for step in "$@"; do "step_$step"; done
  [ $failed = 0 ] && echo "all steps passed" || echo "some steps failed"
  exit $failed
}
