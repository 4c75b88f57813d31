#!/usr/bin/env bash
# What only a GPU can show of whole models, on any machine with one: engine.sh JITUNE FOLDER STEP...
#   models    folders of random weights in $MODELS (FOLDER/models by default): llama-3.2-1b, qwen3-0.6b; models8: llama-3.1-8b (16 GB)
#   seal      the kernels that all other steps run on, from the winners of $DB (FOLDER/db by default), with portable ones for these models
#   steps     whole steps beside the sum of their kernels and the floor, and answers of 128 tokens, in three processes each
#   kl        logits and greedy tokens beside transformers in f32 and bf16; $SMOLLM2 is a GGUF file to hold too; wants torch
#   load      256 requests of 1024/1024 at once, beside what kernels and bytes allow
#   ttft      the first token of a prompt of 2048 in a running engine
#   long      a prompt of 32768 alone, and among 16 requests that decode, for each budget of tokens in $BUDGETS
#   trace     gaps between graphs in steady decode at batch 64 and 256; wants gcc and CUPTI
#   start     from exec to the first token with the weights in the page cache, also without NVRTC; memory, planned and taken
#   sanitize  compute-sanitizer over captured steps and mixed steps of a small model, and on planted bugs
# A model that is not in $MODELS is left out of a step. $LOADER is the built example `load`. $BUNDLE is a sealed bundle to run on in place of
# FOLDER/kernels.jitune, which is sealed where it is not there. Raw data lie under FOLDER. `load` takes llama-3.1-8b too where $LOAD8 is set;
# a run of the example ends after $SECONDS_EACH (300) s. The limits are those of one H100.
# TARGET=cpu tries the script itself, with small models under the names of large ones: $LOAD, $TTFT, $LONG, $TRACE, $BATCHES hold options of the
# example and $GRID those of `jitune step` in place of the usual ones, $KL those of kl.py.
set -u
jitune=$(realpath "$1"); out=$2; shift 2
here=$(dirname "$0")
mkdir -p "$out"; out=$(realpath "$out")
. "$here/common.sh"
target=${TARGET:-cuda}
dtype=${DTYPE:-$([ "$target" = cuda ] && echo bf16 || echo f32)}
models=${MODELS:-$out/models}
db=${DB:-$out/db}
bundle=${BUNDLE:-$out/kernels.jitune}
load=${LOADER:-load}
on=(--target "$target" --dtype "$dtype")
tables() { python3 "$here/engine.py" "$1" "$out" | tee "$out/$1.txt"; [ "${PIPESTATUS[0]}" = 0 ] || fail "$1: a limit is missed"; }
ids() { seq -s, 1 "$1"; }
# The folders of those of some models that are there.
those() { local name; for name in "$@"; do [ -e "$models/$name/config.json" ] && echo "$name"; done; }

random_model() {
  [ -e "$models/$1/config.json" ] && return
  "$jitune" model "$1" --init random:7 --dtype bf16 -o "$models/$1" || fail "$1: exit code $?"
}
step_models() { say "models"; mkdir -p "$models"; random_model llama-3.2-1b; random_model qwen3-0.6b; }
step_models8() { say "models of 8 billion"; mkdir -p "$models"; random_model llama-3.1-8b; }

step_seal() {
  say "seal the winners of $db"
  local model
  # What has no winner yet gets a portable one, as a model is run.
  for model in $(those llama-3.2-1b qwen3-0.6b llama-3.1-8b | sed "s|^|$models/|") ${SMOLLM2:+"$SMOLLM2"}; do
    "$jitune" run --model "$model" "${on[@]}" --db "$db" --ids 1,2 --max-tokens 1 --ignore-eos --json > /dev/null 2> "$out/seal.log" || { fail "$model: exit code $?"; tail -n 3 "$out/seal.log"; }
  done
  # Exit code 1: some winner could not be sealed, and the rest is there.
  "$jitune" export --target "$target" --db "$db" -o "$bundle" 2>&1 | tail -n 4; [ "${PIPESTATUS[0]}" -le 1 ] || fail "export"
}
sealed() { [ -e "$bundle" ] || step_seal; [ -e "$bundle" ]; }

step_steps() {
  say "whole steps, three processes each"
  sealed || return
  rm -f "$out"/steps-*.jsonl "$out"/answers-*.jsonl
  local name i
  time_steps() { "$jitune" step --model "$models/$1" "${on[@]}" --bundle "$bundle" --json "${@:2}" >> "$out/steps-$1-$i.jsonl" 2>> "$out/steps.log" || fail "$*: exit code $?"; }
  for i in 1 2 3; do
    for name in $(those llama-3.2-1b); do
      # After 32 tokens 128 dependent steps: eight rounds of 16, of which the first is not counted.
      time_steps "$name" --batch 1,32 --context 160 --rounds 7
      time_steps "$name" --batch 1 --context 4096 --rounds 20
    done
    for name in $(those llama-3.1-8b); do time_steps "$name" --batch 1 --context 160 --rounds 7; done
    for name in $(those llama-3.2-1b llama-3.1-8b); do
      "$jitune" run --model "$models/$name" "${on[@]}" --bundle "$bundle" --ids "$(ids 32)" --max-tokens 128 --temperature 0 --ignore-eos --json \
        > "$out/answers-$name-$i.jsonl" 2>> "$out/steps.log" || fail "$name: exit code $?"
    done
  done
  tables steps
}

step_kl() {
  say "logits and greedy tokens beside transformers"
  sealed || return
  : > "$out/kl.txt"
  local name
  beside() {
    local name=$1; shift
    python3 "$here/kl.py" "$jitune" "$1" "$bundle" --target "$target" --dtype "${KL_DTYPE:-bf16}" -o "$out/kl-$name" "${@:2}" ${KL:-} 2> "$out/kl-$name.log" | tee -a "$out/kl.txt"
    [ "${PIPESTATUS[0]}" = 0 ] || { fail "kl of $name"; tail -n 3 "$out/kl-$name.log"; }
  }
  for name in $(those llama-3.2-1b qwen3-0.6b); do beside "$name" "$models/$name"; done
  [ -z "${SMOLLM2:-}" ] || beside smollm2 "$SMOLLM2" --texts "$here/../../program/tests/golden/smollm2.json"
}

# Runs the example with these options after the model's name, and keeps its lines.
loaded() {
  local file=$1 name=$2; shift 2
  timeout "${SECONDS_EACH:-300}" "$load" "$models/$name" "$bundle" --device "$target:0" --dtype "$dtype" "$@" >> "$out/$file" 2>> "$out/load.log" || { fail "load $name $*"; tail -n 2 "$out/load.log"; }
}
# Steps beside which they are held.
kernels() {
  local file=$1 name=$2; shift 2
  "$jitune" step --model "$models/$name" "${on[@]}" --bundle "$bundle" --json --rounds 20 "$@" >> "$out/$file" 2>> "$out/load.log" || fail "step $name $*"
}

step_load() {
  say "256 requests of 1024/1024 at once"
  sealed || return
  rm -f "$out"/load-*.jsonl
  local name
  for name in $(those llama-3.2-1b ${LOAD8:+llama-3.1-8b}); do
    loaded "load-rounds-$name.jsonl" "$name" --rounds 2 ${LOAD:---requests 256 --prompt 1024 --answer 1024}
    kernels "load-steps-$name.jsonl" "$name" ${GRID:---batch 256 --context 1024,1536,2048 --prefill 2048}
  done
  tables load
}

step_ttft() {
  say "the first token in a running engine"
  sealed || return
  rm -f "$out"/ttft-*.jsonl
  local name
  for name in $(those llama-3.2-1b llama-3.1-8b); do
    # Two more than are counted: the first ones bind their steps.
    loaded "ttft-rounds-$name.jsonl" "$name" --rounds 11 ${TTFT:---ttft 2048}
    kernels "ttft-steps-$name.jsonl" "$name" ${GRID:---prefill 2048}
  done
  tables ttft
}

step_long() {
  say "a long prompt among requests that decode"
  sealed || return
  rm -f "$out"/long-*.jsonl
  local name budget
  for name in $(those llama-3.2-1b); do
    for budget in ${BUDGETS:-1024 2048}; do
      loaded "long-$name.jsonl" "$name" --rounds 2 --tokens "$budget" ${LONG:---long 32768 --beside 16 --prompt 128 --answer 600}
    done
  done
  tables long
}

# Builds the library that traces graphs, with the headers and the library of the toolkit or of Python's packages.
build_trace() {
  local roots headers=() root file lib=
  roots=$(ls -d /usr/local/cuda/extras/CUPTI /usr/local/cuda/targets/*-linux /usr/local/cuda /usr/local/cuda-*/extras/CUPTI /usr/local/cuda-* 2> /dev/null
    python3 -c 'import sys; [print(p + "/nvidia/" + d) for p in sys.path for d in ("cu13", "cuda_cupti", "cuda_runtime")]')
  for root in $roots ${CUPTI:-}; do
    [ -e "$root/include/cuda.h" ] || [ -e "$root/include/cupti.h" ] && headers+=("-I$root/include")
    for file in "$root"/lib64/libcupti.so* "$root"/lib/libcupti.so*; do [ -z "$lib" ] && [ -e "$file" ] && lib=$file; done
  done
  [ -n "$lib" ] || { fail "libcupti is not here: pip install nvidia-cuda-cupti, or name its folder with include and lib in CUPTI"; return 1; }
  gcc -O2 -shared -fPIC "${headers[@]}" -o "$out/trace.so" "$here/trace.c" "$lib" "-Wl,-rpath,$(dirname "$(realpath "$lib")")" 2> "$out/trace.log" ||
    { fail "trace.c"; head -n 5 "$out/trace.log"; return 1; }
  echo "traced by $lib"
}

step_trace() {
  say "gaps between graphs in steady decode"
  sealed && build_trace || return
  rm -f "$out"/graphs-*.txt "$out"/idle-*.txt "$out/traced.jsonl" "$out"/untraced-*.jsonl "$out"/trace-*.jsonl
  local name batch options
  for name in $(those llama-3.2-1b); do
    for batch in ${BATCHES:-64 256}; do
      # All decode in one bucket of contexts, 512 to 1024.
      options="--requests $batch ${TRACE:---prompt 600 --answer 400}"
      CUDA_INJECTION64_PATH=$out/trace.so TRACE_FILE=$out/graphs-$name-$batch.txt loaded traced.jsonl "$name" $options
      # What a step launches beside its graph is in the gaps of the first, and traced in the second.
      CUDA_INJECTION64_PATH=$out/trace.so TRACE_KERNELS=1 TRACE_FILE=$out/idle-$name-$batch.txt loaded traced.jsonl "$name" $options
      loaded "untraced-$name-$batch.jsonl" "$name" $options
      kernels "trace-steps-$name.jsonl" "$name" ${GRID:---context 800} --batch "$batch"
    done
  done
  tables trace
}

# The model with one layer and few tokens, which runs the same kernels.
one_layer() {
  local small=$out/one-layer-$1
  mkdir -p "$small/config"
  python3 - "$models/$1/config.json" "$small/config/config.json" << 'END' && "$jitune" model "$small/config" --init random:7 --dtype bf16 -o "$small/model" > /dev/null
import json, sys
config = json.load(open(sys.argv[1]))
config.update(num_hidden_layers=1, vocab_size=1024)
config.pop("layer_types", None)
json.dump(config, open(sys.argv[2], "w"))
END
}

step_start() {
  say "from exec to the first token"
  sealed || return
  rm -rf "$out/start.jsonl" "$out"/one-layer-*
  local name i most run
  for name in $(those llama-3.2-1b llama-3.1-8b); do
    cat "$models/$name"/* > /dev/null
    run=(run "${on[@]}" --bundle "$bundle" --temperature 0 --ignore-eos --json)
    for i in 1 2 3; do
      # Of two tokens, the second is one of a captured step.
      for most in 1 2; do
        python3 "$here/engine.py" timed "$out/start.jsonl" "tokens=$most $name" "$jitune" "${run[@]}" --model "$models/$name" --ids "$(ids 32)" --max-tokens $most 2>> "$out/start.log" || fail "start $name"
      done
      without_nvrtc python3 "$here/engine.py" timed "$out/start.jsonl" "without-NVRTC $name" "$jitune" "${run[@]}" --model "$models/$name" --ids "$(ids 32)" --max-tokens 2 2>> "$out/start.log" || fail "start $name without NVRTC"
    done
    one_layer "$name" || { fail "a small $name"; continue; }
    python3 "$here/engine.py" timed "$out/start.jsonl" "memory $name/one-layer" --memory "$jitune" "${run[@]}" --model "$out/one-layer-$name/model" --ids "$(ids 32)" --max-tokens 2000 2>> "$out/start.log" || fail "memory of a small $name"
    python3 "$here/engine.py" timed "$out/start.jsonl" "memory $name" --memory "$jitune" "${run[@]}" --model "$models/$name" --ids "$(ids 32)" --max-tokens 2000 2>> "$out/start.log" || fail "memory of $name"
  done
  tables start
}

step_sanitize() {
  say "compute-sanitizer over captured and mixed steps"
  local tool; tool=$(sanitizer) || { fail "compute-sanitizer is not here"; return; }
  planted_bugs_are_seen "$tool"
  local small=$out/small kernels
  rm -rf "$small"; mkdir -p "$small/config"
  echo '{"architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,"num_hidden_layers":2,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":64,"vocab_size":1000,"max_position_embeddings":1024,"rms_norm_eps":1e-5,"rope_theta":10000.0,
    "hidden_act":"silu","eos_token_id":2}' > "$small/config/config.json"
  {
    "$jitune" model "$small/config" --init random:7 --dtype bf16 -o "$small/model"
    # What the budget is too short for runs on portable kernels.
    "$jitune" tune --target "$target" --model "$small/model" --dtype "$dtype" --batch 1,4 --prefill 64 --context 512 --between 0 --trials 4 --budget 60 --db "$small/tuned"
    for kernels in tuned portable; do
      "$jitune" run "${on[@]}" --model "$small/model" --db "$small/$kernels" --ids 1,2 --max-tokens 1
      "$jitune" export --target "$target" --db "$small/$kernels" -o "$small/$kernels.jitune"
    done
  } > "$out/small.log" 2>&1
  [ -e "$small/tuned.jitune" ] && [ -e "$small/portable.jitune" ] || { fail "a small model: see $out/small.log"; return; }
  local kind run=("$jitune" run --model "$small/model" "${on[@]}" --ignore-eos --json)
  # A name, and then a command: whether it runs clean.
  one() {
    local name=$1 log="$out/sanitize-$1.txt"; shift
    timeout 280 "$tool" --tool "$kind" $([ "$kind" = memcheck ] && echo --padding 4096 --report-api-errors no) --error-exitcode 9 "$@" > "$log" 2>&1
    local rc=$?
    # It says so itself, of what it has watched.
    if [ $rc = 0 ] && grep -qE 'SUMMARY: 0 (errors|hazards)' "$log"; then echo "clean  $name"; else echo "rc $rc  $name"; grep -m 5 -E '=====|jitune:|load:' "$log" | cut -c1-118; fi
  }
  # Nothing is timed, so all share the GPU.
  rm -f "$out"/sanitize-*
  for kind in memcheck racecheck; do
    for kernels in tuned portable; do
      # A prompt in two parts, over the cache; then steps that are graphs.
      one "$kind-$kernels-greedy" "${run[@]}" --bundle "$small/$kernels.jitune" --ids "$(ids 600)" --max-tokens 6 > "$out/sanitize-$kind-$kernels-greedy.out" &
      one "$kind-$kernels-sampled" "${run[@]}" --bundle "$small/$kernels.jitune" --ids "$(ids 20)" --max-tokens 4 --temperature 0.8 --repetition-penalty 1.1 > "$out/sanitize-$kind-$kernels-sampled.out" &
      # Parts of prompts beside rows that decode.
      one "$kind-$kernels-mixed" "$load" "$small/model" "$small/$kernels.jitune" --device "$target:0" --dtype "$dtype" --requests 3 --prompt 100 --answer 6 --tokens 64 --memory 268435456 > "$out/sanitize-$kind-$kernels-mixed.out" &
    done
  done
  wait
  cat "$out"/sanitize-*.out
  [ "$(cat "$out"/sanitize-*.out | grep -c '^clean')" = 12 ] || fail "sanitize"
}

[ "$target" = cuda ] && nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader
run_steps "$@"
