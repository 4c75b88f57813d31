#!/usr/bin/env bash
# What only a GPU can show, on any machine with one: check.sh JITUNE FOLDER STEP...
#   tune      the model's plan from an empty database, and again
#   claims    compares claims.plan with cuBLASLt and holds it against its floors; peers' programs in PATH or in $PEERS
#   compare   compares the model's plan with every peer that is here; more options in $COMPARE
#   counters  hardware counters of counters.plan's products through ncu, jitune's and cuBLASLt's
#   faults    hanging, faulting and wrong candidates planted at the first, middle and last position
#   cheats    candidates that only seem to be right or fast: none wins, none ends the run; verify and compare see one too
#   kill      kill -9 of the tuner, 20 times
#   right     the first candidates of each template, even and ragged, against the f64 reference
#   sanitize  compute-sanitizer on one kernel of each template, even and ragged, and on a planted bug
#   bundle    export, verify without NVRTC, verify other sizes that winners answer for, the production example (in $PRODUCTION)
# Everything is written under FOLDER. NVRTC is found as `jitune doctor` says.
set -u
jitune=$(realpath "$1"); out=$2; shift 2
here=$(dirname "$0")
mkdir -p "$out"; out=$(realpath "$out")
db=$out/db
. "$here/common.sh"

step_tune() {
  say "tune llama-3.2-1b from an empty database"
  rm -rf "$db"; local start=$SECONDS
  "$jitune" tune --model llama-3.2-1b --db "$db" > "$out/tune.txt" 2> "$out/tune.log" || fail "tune: exit code $?"
  echo "wall: $((SECONDS - start)) s"; tail -n 4 "$out/tune.txt"
  grep failed "$out/tune.log"
  say "again"
  local from; from=$(date +%s%N)
  "$jitune" tune --model llama-3.2-1b --db "$db" 2>&1 | tail -n 1 || fail "again: exit code $?"
  echo "again: $((($(date +%s%N) - from) / 1000000)) ms"
}

step_claims() {
  say "claims"
  "$jitune" compare --plan "$here/claims.plan" --peers cublaslt ${PEERS:+--peer-dir "$PEERS"} --rounds 15 --db "$db" \
    --budget 140 -o "$out/claims" > "$out/claims.txt" 2> "$out/claims.log" || fail "claims: exit code $?"
  "$jitune" db export-journal --winners "$out/winners.jsonl" --db "$db"
  python3 "$here/claims.py" "$out/claims/rows.jsonl" | tee "$out/claims.md"
  [ "${PIPESTATUS[0]}" = 0 ] || fail "a floor is missed"
}

step_counters() {
  say "counters"
  "$jitune" compare --plan "$here/counters.plan" --peers cublaslt ${PEERS:+--peer-dir "$PEERS"} --counters --rounds 9 \
    --seconds 3 --db "$db" -o "$out/counters" > "$out/counters.txt" 2> "$out/counters.log" || fail "counters: exit code $?"
  grep -c '"source":"ncu"' "$out/counters/rows.jsonl" | sed 's/$/ rows with counters/'
}

step_compare() {
  say "compare llama-3.2-1b"
  "$jitune" compare --model llama-3.2-1b ${PEERS:+--peer-dir "$PEERS"} --db "$db" ${COMPARE:-} -o "$out/compare" \
    > "$out/compare.txt" 2> "$out/compare.log" || fail "compare: exit code $?"
  cat "$out/compare.txt"
}

step_faults() {
  say "planted candidates"
  plant none 'which' '0, 1, 2'
  plant first '1 + which if which < 10 else 0.5 + which \/ 100' '0, 1, 2, 10, 11, 12, 13'
  plant middle '1 + which if which < 10 else 2.5 + which \/ 100' '0, 1, 2, 10, 11, 12, 13'
  plant last '1 + which' '0, 1, 2, 10, 11, 12, 13'
  for place in none first middle last; do
    rm -rf "$out/fault-db"
    "$jitune" tune --problem 'gelu rows=512 cols=4096' --templates "$out/planted-$place" --db "$out/fault-db" \
      --search exhaustive --patience 1 --near-roofline 0 > "$out/fault-$place.txt" 2>&1 || fail "faults $place: exit code $?"
    grep ' gelu which' "$out/fault-$place.txt" | tail -n 1
  done
  for place in first middle last; do
    [ "$(grep -o 'gelu which=[0-9]*' "$out/fault-$place.txt" | tail -n 1)" = "$(grep -o 'gelu which=[0-9]*' "$out/fault-none.txt" | tail -n 1)" ] || fail "another winner with candidates planted $place"
    grep -q '1 timeout' "$out/fault-$place.txt" && grep -q '1 wrong' "$out/fault-$place.txt" && grep -q 'fault' "$out/fault-$place.txt" || fail "verdicts with candidates planted $place"
  done
}

step_cheats() {
  say "cheats"
  rm -rf "$out/cheat-db"
  "$jitune" tune --problem 'gelu rows=511 cols=4095' --problem 'softmax rows=32 cols=1000' --templates "$here/cheats" \
    --db "$out/cheat-db" --search exhaustive --trials 64 --patience 1 --near-roofline 0 --budget 240 --json \
    > "$out/cheats.jsonl" 2> "$out/cheats.log" || fail "cheats: exit code $?"
  python3 "$here/cheats.py" "$out/cheats.jsonl" | tee "$out/cheats.txt"
  [ "${PIPESTATUS[0]}" = 0 ] || fail "a cheat is not seen"
  sleep 0.5; pgrep -f "$jitune jitune-worker" && fail "a process is left"
}

step_kill() {
  say "kill -9, 20 times"
  rm -rf "$out/kill-db"; local lost=0 orphans=0 before=0
  for i in $(seq 20); do
    "$jitune" tune --model llama-3.2-1b --batch 1 --prefill 512 --db "$out/kill-db" --budget 60 --json > "$out/kill.jsonl" 2> /dev/null &
    local pid=$!; sleep "$((1 + RANDOM % 3)).$((RANDOM % 10))"; kill -9 $pid 2> /dev/null; wait $pid 2> /dev/null
    local acked; acked=$(grep -c '"event":"won".*"stored":false' "$out/kill.jsonl")
    sleep 1.2; pgrep -f "$jitune jitune-worker" > /dev/null && orphans=$((orphans + 1)) && pkill -9 -f "$jitune jitune-worker"
    local have; have=$("$jitune" db list --json --db "$out/kill-db" | wc -l)
    [ "$have" -ge $((before + acked)) ] || { lost=$((lost + 1)); echo "run $i: $before before, $acked acknowledged, $have there"; }
    before=$have
  done
  echo "20 kills, $before winners, lost in $lost runs, orphans after $orphans"
  [ $lost = 0 ] && [ $orphans = 0 ] || fail "kill"
  "$jitune" db verify --db "$out/kill-db" || fail "verify after kills"
}

step_right() {
  say "every template of sanitize.txt, its first six candidates"
  local log="$out/right.txt"
  export jitune
  right() { "$jitune" try "$2" --template "$1" --top 6 --rounds 0 2>&1 | sed "s/^/$1: /"; [ "${PIPESTATUS[0]}" = 0 ]; }
  export -f right
  while read -r template problem; do printf '%s\0%s\0' "$template" "$problem"; done < "$here/sanitize.txt" | xargs -0 -n 2 -P 12 bash -c 'right "$@"' _ > "$log" 2>&1 || fail "right: see $log"
  grep -c ': .* right' "$log" | sed 's/$/ candidates right/'; grep -iE 'wrong|error|jitune:' "$log" | head -n 20
}

step_sanitize() {
  say "compute-sanitizer"
  local tool; tool=$(sanitizer) || { fail "compute-sanitizer is not here"; return; }
  planted_bugs_are_seen "$tool"
  export jitune out tool
  one() {
    local template=$1 problem=$2 kind=$3 config log; log=$(mktemp "$out/san.XXXXXX")
    # The config of a template without tunables is empty.
    config=$(cat "$out/winner-$(echo "$template $problem" | tr ' =' '__')") || { rm "$log"; echo "rc -  $kind  $template  $problem: no candidate is right"; return 1; }
    # A kernel's parameters are counted by asking for one after the other until the driver has no more.
    timeout 150 "$tool" --tool "$kind" $([ "$kind" = memcheck ] && echo --padding 4096 --report-api-errors no) --error-exitcode 9 "$jitune" try "$problem" --template "$template" --config "$config" --rounds 0 --exact-memory > "$log" 2>&1
    local rc=$?
    if [ $rc = 0 ]; then echo "clean  $kind  $template  $problem  [$config]"; else echo "rc $rc  $kind  $template  $problem"; grep -m 5 -E '=====|WRONG|jitune:' "$log" | cut -c1-160; fi
    rm -f "$log"; return $rc
  }
  # The winner of a template: the fastest of the first twelve of its space.
  fastest() {
    local winner; winner=$out/winner-$(echo "$1 $2" | tr ' =' '__')
    "$jitune" try "$2" --template "$1" --top 12 --rounds 3 --fastest > "$winner" 2> /dev/null || rm "$winner"
  }
  export -f one fastest
  while read -r template problem; do printf '%s\0%s\0' "$template" "$problem"; done < "$here/sanitize.txt" | xargs -0 -n 2 -P 12 bash -c 'fastest "$@"' _
  # Nothing is timed from here on, so several share the GPU.
  local list; list=$(while read -r template problem; do for kind in memcheck racecheck; do printf '%s\0%s\0%s\0' "$template" "$problem" $kind; done; done < "$here/sanitize.txt" | xargs -0 -n 3 -P 12 bash -c 'one "$@"' _)
  printf '%s\n' "$list" | grep -v '^clean'
  printf '%s\n' "$list" | grep -c '^clean' | sed 's/$/ clean runs/'
  printf '%s\n' "$list" | grep -q '^rc' && fail "sanitize"
  return 0
}

step_bundle() {
  say "bundle"
  "$jitune" export --db "$db" -o "$out/llama-3.2-1b.jitune" --model llama-3.2-1b || fail "export: exit code $?"
  "$jitune" inspect "$out/llama-3.2-1b.jitune" | tail -n 3
  without_nvrtc bash -c '
    "$0" doctor --db /tmp | grep NVRTC
    "$0" verify "$1"' "$jitune" "$out/llama-3.2-1b.jitune" > "$out/verify.txt" 2>&1 || fail "verify: exit code $?"
  head -n 2 "$out/verify.txt"; tail -n 4 "$out/verify.txt"
  "$jitune" verify "$out/llama-3.2-1b.jitune" --no-timing --served > "$out/served.txt" 2>&1 || fail "verify --served: exit code $?"
  grep -c ' good$' "$out/served.txt" | sed 's/$/ sizes right, tuned and answered for/'
  env -i PATH= "${PRODUCTION:-production}" "$out/llama-3.2-1b.jitune" > "$out/production.txt" 2>&1 || fail "production: exit code $?"
  tail -n 6 "$out/production.txt"
}

run_steps "$@"
