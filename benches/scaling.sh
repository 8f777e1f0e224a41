#!/bin/sh
# Our step time as a function of batch, sequence, layers and rank, on MiniLM's shape, and how far it is from linear: tables in Markdown.
#
#   scaling.sh OUT_DIR
#
# The last column says how much the time has grown since the first row, divided by how much the work has: 1 is linear, and below 1 the
# time grows more slowly than the work. Work is the row's number; for ranks, the arithmetic of model and adapters. PYTHON, PROGRAM, DEVICE, ROUNDS, STEPS
# and LIMIT are as in compare.sh; BATCHES, SEQS, LAYERS and RANKS what to try.
set -eu
[ $# -eq 1 ] || { sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
out=$1
python=${PYTHON:-python3}
program=${PROGRAM:-$here/../target/release/reslora-compile}
device=${DEVICE:-cpu} rounds=${ROUNDS:-3} steps=${STEPS:-6} limit=${LIMIT:-300}
mkdir -p "$out"
export HF_HUB_OFFLINE=1

number() { # KEY: of a JSON object on standard input
    tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([-0-9.eE+]*\) *\$/\1/p" | head -n 1
}
median() {
    sort -g | awk '{ a[NR] = $1 } END { if (NR) print a[int((NR + 1) / 2)] }'
}
prepared() { # LAYERS RANK: prints the path of the model with adapters
    shape=minilm-$1-layers
    if [ ! -e "$out/$shape/model.onnx" ]; then
        timeout 1200 "$python" "$here/peers/shapes.py" "$shape" "$out/$shape" > "$out/$shape.log" 2>&1
    fi
    if [ ! -e "$out/$shape/rank-$2.onnx" ]; then
        timeout "$limit" "$program" inject "$out/$shape/model.onnx" --target 'query|value' --structure lora --rank "$2" \
            -o "$out/$shape/rank-$2.onnx" --json > "$out/$shape/rank-$2.json" 2> "$out/inject.log"
    fi
    echo "$out/$shape/rank-$2.onnx"
}
arithmetic() { # RANK: of the model, and six for each of the adapters' numbers and row
    parameters=$(number adapter_parameters < "$out/minilm-6-layers/rank-$1.json")
    awk -v g="$(number model_gflop < "$out/rank-$1.json")" -v t="$(number tokens < "$out/rank-$1.json")" -v p="$parameters" \
        'BEGIN { print g + 6e-9 * p * t }'
}
series() { # NAME VALUES: prints its table
    name=$1
    shift
    for value in "$@"; do rm -f "$out/$name-$value.steps"; done
    turn=0
    while [ $turn -lt "$rounds" ]; do
        for value in "$@"; do
            batch=16 seq=64 layers=6 rank=8
            case $name in batch) batch=$value ;; sequence) seq=$value ;; layers) layers=$value ;; rank) rank=$value ;; esac
            model=$(prepared "$layers" "$rank")
            timeout "$limit" "$program" bench "$model" --batch "$batch" --seq "$seq" --steps "$steps" --device "$device" --json \
                > "$out/$name-$value.json" 2> "$out/bench.log"
            number step_ms < "$out/$name-$value.json" >> "$out/$name-$value.steps"
        done
        turn=$((turn + 1))
    done
    echo
    echo "| $name | step, ms | growth of time over growth of work |"
    echo "|---|---|---|"
    first='' start=''
    for value in "$@"; do
        step=$(median < "$out/$name-$value.steps") work=$value
        [ "$name" != rank ] || work=$(arithmetic "$value")
        first=${first:-$work} start=${start:-$step}
        awk -v v="$value" -v t="$step" -v w="$work" -v t0="$start" -v w0="$first" \
            'BEGIN { printf "| %s | %.1f | %.2f |\n", v, t, t / t0 / (w / w0) }'
    done
}

echo "MiniLM's shape, LoRA on queries and values; 16 x 64, 6 layers, rank 8, but for the number that varies; device $device"
# shellcheck disable=SC2086
{
    series batch ${BATCHES:-4 8 16 32 64}
    series sequence ${SEQS:-16 32 64 128 256}
    series layers ${LAYERS:-2 4 6 12}
    series rank ${RANKS:-4 8 16 32 64}
}
