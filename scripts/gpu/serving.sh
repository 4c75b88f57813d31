#!/usr/bin/env bash
# The setting that serves chat best on a GPU, within loose and tight limits, beside the default and the best of a grid: serving.sh JITUNE FOLDER
# Some four minutes with a model, winners and portable kernels that are there: three searches of $EACH (75) seconds, the last of which goes on
# with the rows of the first and measures the grid. What has no winner is served by portable kernels, which are compiled first.
# $MODEL (llama-3.2-1b) is a folder in $MODELS (FOLDER/models by default), written with random weights where it is not there; $DB the database
# with its winners (FOLDER/db by default); $LOOSE ("100 20") and $TIGHT ("50 5") the limits in milliseconds; $WORKLOAD the workload, with the
# load that is tried first: chats that think for a tenth of a second, so that a row is short. $CONTEXT (4096), $ARGS: whatever else `jitune tune` takes.
# Rows and tables lie under FOLDER. TARGET=cpu tries the script itself.
set -u
jitune=$(realpath "$1"); out=$2
here=$(dirname "$0")
mkdir -p "$out"; out=$(realpath "$out")
. "$here/common.sh"
models=${MODELS:-$out/models}
db=${DB:-$out/db}
model=${MODEL:-llama-3.2-1b}
each=${EACH:-75}
read -r -a loose <<< "${LOOSE:-100 20}"
read -r -a tight <<< "${TIGHT:-50 5}"

[ -e "$models/$model/config.json" ] || "$jitune" model "$model" --init random:7 --dtype bf16 -o "$models/$model" || fail "model: exit code $?"

# tune NAME TTFT TPOT MORE…: a search, with its table in NAME.txt.
tune() {
  local name=$1 ttft=$2 tpot=$3; shift 3
  say "$name: TTFT $ttft ms, TPOT $tpot ms"
  "$jitune" tune --serving --model "$models/$model" --target "${TARGET:-cuda}" --db "$db" --workload "${WORKLOAD:-chat:rate=64,think=0.1}" --context "${CONTEXT:-4096}" \
    --ttft "$ttft" --tpot "$tpot" --budget "$each" ${ARGS:-} "$@" > "$out/$name.txt" 2> "$out/$name.log"
  local code=$?
  # 1: time was over before it was decided, and the rows are kept.
  [ $code -le 1 ] || { fail "$name: exit code $code"; tail -n 3 "$out/$name.log"; }
  grep -E '^tokens|goodput|the default$|found by|of the grid|rows,' "$out/$name.txt"
}

begun=$(date +%s)
tune loose "${loose[@]}"
tune tight "${tight[@]}"
tune grid "${loose[@]}" --grid
say "what is stored, after $(($(date +%s) - begun)) s"
"$jitune" db list --db "$db" | sed -n '/goodput/,$p'
[ $failed = 0 ] && echo "all steps passed" || echo "some steps failed"
exit $failed
