#!/bin/sh
# Times a training step beside PyTorch's, on this machine, in turns, and prints a table in Markdown with the ratio of medians.
#
#   compare.sh OUT_DIR [SHAPE,BATCH,SEQ]...
#
# Shapes are those of benches/peers/shapes.py (minilm, smollm2-135m, ...). PYTHON is an interpreter that has torch, transformers, onnx
# and onnxscript. DEVICE (cpu, gpu, ..) is ours; TORCH_DEVICE theirs; ROUNDS how often each is run; PROGRAM the program;
# STRUCTURES which to time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
[ $# -gt 0 ] || set -- minilm,32,64 smollm2-135m,2,128
python=${PYTHON:-python3}
program=${PROGRAM:-$here/../target/release/reslora-compile}
device=${DEVICE:-cpu} torch_device=${TORCH_DEVICE:-cpu} rounds=${ROUNDS:-3} steps=${STEPS:-6}
structures=${STRUCTURES:-none input block middle}
target='q_proj|v_proj|query|value|c_attn'
mkdir -p "$out"

number() { # KEY: of a JSON object on standard input
    tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([-0-9.eE+]*\) *\$/\1/p" | head -n 1
}
median() {
    sort -g | awk '{ a[NR] = $1 } END { printf "%.1f", a[int((NR + 1) / 2)] }'
}

echo "| shape | batch x seq | structure | PyTorch, ms | ours, ms | ratio | of the device's own products | memory, MiB |"
echo "|---|---|---|---|---|---|---|---|"
for work in "$@"; do
    shape=${work%%,*} rest=${work#*,}
    batch=${rest%,*} seq=${rest#*,}
    [ -e "$out/$shape/model.onnx" ] || "$python" "$here/peers/shapes.py" "$shape" "$out/$shape" > "$out/$shape.log" 2>&1
    for structure in $structures; do
        name=$structure
        case $structure in none) name=lora ;; input | block | middle) name=$structure-shortcut ;; esac
        injected="$out/$shape/$structure.onnx"
        "$program" inject "$out/$shape/model.onnx" --target "$target" --structure "$name" --pre-num 2 --rank 8 -o "$injected" > /dev/null
        : > "$out/theirs" && : > "$out/ours"
        for _ in $(seq "$rounds"); do
            "$python" "$here/peers/torch_lora.py" "$shape" "batch=$batch" "seq=$seq" "structure=$structure" "steps=$steps" \
                "device=$torch_device" 2> "$out/torch.log" | number step_ms >> "$out/theirs"
            "$program" bench "$injected" --batch "$batch" --seq "$seq" --steps "$steps" --device "$device" --json > "$out/bench.json"
            number step_ms < "$out/bench.json" >> "$out/ours"
        done
        theirs=$(median < "$out/theirs") ours=$(median < "$out/ours")
        share=$(number utilisation < "$out/bench.json") memory=$(number memory < "$out/bench.json")
        awk -v s="$shape" -v b="$batch x $seq" -v n="$name" -v t="$theirs" -v o="$ours" -v u="$share" -v m="$memory" \
            'BEGIN { printf "| %s | %s | %s | %s | %s | %.2f | %.0f %% | %.0f |\n", s, b, n, t, o, o / t, 100 * u, m / 1048576 }'
        rm -f "$injected" "$injected.data"
    done
done
