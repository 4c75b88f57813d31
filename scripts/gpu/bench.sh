#!/usr/bin/env bash
# Engines head to head on a machine with a GPU: bench.sh JITUNE FOLDER STEP...
#   models     as of engine.sh: a folder of random weights, llama-3.2-1b ($MODEL) in $MODELS (FOLDER/models by default)
#   winners    llama-3.2-1b tuned in $DB (FOLDER/db by default), of which what is stored is kept; and portable kernels
#   latency    batches of 1, 4, 16, 32
#   sustained  256 clients of 1024/1024 and 512 of 128/128
#   others     chat, documents, code
#   limits     what the rows say beside the limits
# $ENGINES are the engines (jitune,jitune,transformers), jitune among them, so that rows of one group share a card; each group goes on with the
# rows of the one before it in FOLDER/bench. $LONG (120) are the seconds of the sustained workloads for jitune and vLLM, $SHORT (20) those of all
# else; $BATCH (10) those of latency. $PEERS is the folder of engines' programs, $PYTHON the Python of transformers and vLLM, $ARGS whatever
# else `jitune bench` takes.
set -u
jitune=$(realpath "$1"); out=$2; shift 2
here=$(dirname "$0")
mkdir -p "$out"; out=$(realpath "$out")
. "$here/common.sh"
models=${MODELS:-$out/models}
db=${DB:-$out/db}
model=${MODEL:-llama-3.2-1b}
engines=${ENGINES:-jitune,jitune,transformers}
short=${SHORT:-20}
target=${TARGET:-cuda}

bench() {
  local workloads=$1; shift
  "$jitune" bench --model "$models/$model" --target "$target" --db "$db" --engines "$engines" --workload "$workloads" --resume -o "$out/bench" \
    ${PEERS:+--peer-dir "$PEERS"} --python "${PYTHON:-python3}" --seconds "$short" ${ARGS:-} "$@" || fail "$workloads: exit code $?"
}
step_models() {
  say "models"
  [ -e "$models/$model/config.json" ] || "$jitune" model "$model" --init random:7 --dtype bf16 -o "$models/$model" || fail "model: exit code $?"
}
step_winners() {
  say "winners"
  "$jitune" tune --model "$model" --target "$target" --db "$db" ${TUNE:-} > "$out/tune.txt" 2>&1 || fail "tune: exit code $?"
  tail -n 3 "$out/tune.txt"
  "$jitune" run --model "$models/$model" --target "$target" --db "$db" --ids 1,2 --max-tokens 1 --ignore-eos --json > /dev/null || fail "portable kernels: exit code $?"
}
step_latency() { say "batches: $engines"; bench batch-1,batch-4,batch-16,batch-32 --seconds "${BATCH:-10}"; }
step_sustained() { say "sustained: $engines"; bench sustained --seconds "jitune=${LONG:-120}" --seconds "vllm=${LONG:-120}" --seconds "jitune#2=$short"; }
step_others() { say "chat, documents, code: $engines"; bench chat,documents,code; }
step_limits() { say "limits"; python3 "$here/bench.py" "$out/bench/engines.jsonl" || fail "a limit is missed"; }

run_steps "$@"
