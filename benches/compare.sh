#!/bin/sh
# Times training steps beside other programs', on this machine, in turns, and prints tables in Markdown.
#
#   compare.sh OUT_DIR cpu|software|hardware
#
# cpu: PyTorch, burn's processor backends and ours. software, hardware: burn through wgpu, meganeura and ours on a Vulkan adapter, where
# hardware adds PyTorch on TORCH_DEVICE. Figures are the medians of each program's own medians over ROUNDS turns. What is absent is
# named with why. Models, logs and every program's output stay in OUT_DIR.
#
# PYTHON     interpreter with torch, transformers, onnx and onnxscript; also what reads a process's peak memory
# PROGRAM    ours; BURN, MEGANEURA: the programs of benches/peers/burn and benches/peers/meganeura
# WORKS      SHAPE,BATCH,SEQ,RANK,qv|all,f32|mixed ...: what to time, shapes as in benches/peers/shapes.py
# SYSTEMS    whom to time; STRUCTURES: none input block middle, or nothing for no table of them; PRODUCTS: MxKxN ...
# ROUNDS, STEPS, WARMUP    turns, timed steps a turn, steps before them (burn's and meganeura's)
# LIMIT      seconds after which one run is given up
set -eu

# Settings

usage() {
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -eq 2 ] || usage
here=$(cd "$(dirname "$0")" && pwd)
out=$1 kind=$2
python=${PYTHON:-python3}
program=${PROGRAM:-$here/../target/release/reslora-compile}
burn=${BURN:-$here/peers/burn/target/release/burn-peer}
meganeura=${MEGANEURA:-$here/peers/meganeura/target/release/meganeura-peer}
torch_device=cpu adapter=hardware
products=${PRODUCTS-1024x1024x1024 2048x384x384 2048x384x1536 2048x1536x384 256x576x576 256x576x1536 256x1536x576 256x576x49152}
case $kind in
cpu)
    device=cpu
    works=${WORKS:-minilm,32,64,8,qv,f32 smollm2-135m,2,128,8,qv,f32}
    systems=${SYSTEMS:-pytorch burn-flex burn-ndarray burn-cpu ours}
    structures=${STRUCTURES-none input block middle}
    rounds=${ROUNDS:-3} steps=${STEPS:-6} warmup=${WARMUP:-3} limit=${LIMIT:-300}
    ;;
software)
    device=${DEVICE:-gpu} adapter=software
    works=${WORKS:-minilm,32,64,8,qv,f32 smollm2-135m,2,128,8,qv,f32 smollm2-135m,1,128,8,qv,f32}
    systems=${SYSTEMS:-burn-wgpu meganeura-all meganeura-lora ours}
    # burn tunes its kernels in a shape's first run, which takes minutes here even so, and remembers them.
    export CUBECL_AUTOTUNE_LEVEL="${CUBECL_AUTOTUNE_LEVEL:-minimal}"
    structures=${STRUCTURES-}
    rounds=${ROUNDS:-1} steps=${STEPS:-3} warmup=${WARMUP:-1} limit=${LIMIT:-1800}
    ;;
hardware)
    device=${DEVICE:-gpu} torch_device=${TORCH_DEVICE:-cuda}
    works=${WORKS:-qwen3-0.6b,1,2048,16,all,f32 qwen3-0.6b,1,2048,16,all,mixed minilm,32,64,8,qv,f32 smollm2-135m,2,128,8,qv,f32 smollm2-135m,1,128,8,qv,f32}
    systems=${SYSTEMS:-pytorch burn-wgpu meganeura-all meganeura-lora ours}
    structures=${STRUCTURES-none input block middle}
    rounds=${ROUNDS:-3} steps=${STEPS:-20} warmup=${WARMUP:-5} limit=${LIMIT:-300}
    ;;
*) usage ;;
esac
mkdir -p "$out"
export HF_HUB_OFFLINE=1

# Reading results

number() { # KEY: of a JSON object on standard input
    tr ',{}' '\n\n\n' | sed -n "s/^ *\"$1\": *\([-0-9.eE+]*\) *\$/\1/p" | head -n 1
}
median() { # of numbers on standard input, one a line
    sort -g | awk '{ a[NR] = $1 } END { if (NR) print a[int((NR + 1) / 2)] }'
}
range() {
    sort -g | awk '{ a[NR] = $1 } END { if (NR) printf "%.1f to %.1f", a[1], a[NR] }'
}
ratio() { # A B: A / B, or nothing
    awk -v a="$1" -v b="$2" 'BEGIN { if (a > 0 && b > 0) printf "%.2f", a / b }'
}
rounded() {
    awk -v a="$1" -v d="$2" 'BEGIN { if (a != "") printf "%.*f", d, a }'
}

# Running one program, bounded, with its peak memory

has_python=$(timeout 60 "$python" -c 'import resource; print(1)' 2> /dev/null || true)
has_torch=$(timeout 60 "$python" -c 'from importlib.util import find_spec as f; print(1 if f("torch") and f("transformers") else "")' 2> /dev/null || true)
bounded() { # NAME COMMAND...: output to OUT/NAME.json, complaints to OUT/NAME.log, peak memory to OUT/NAME.peak
    name=$1
    shift
    rm -f "$out/$name.peak"
    if [ -n "$has_python" ]; then
        "$python" "$here/peers/peak.py" "$out/$name.peak" timeout "$limit" "$@" > "$out/$name.json" 2> "$out/$name.log"
    else
        timeout "$limit" "$@" > "$out/$name.json" 2> "$out/$name.log"
    fi
}
why() { # NAME STATUS: what a failed run said last
    [ "$2" -ne 124 ] || { echo "more than $limit s" && return; }
    said=$(grep -i 'error\|panicked\|invalid\|no backend' -A 1 "$out/$1.log" | grep -v '^--$' | tr '\n|' '  ' | cut -c 1-200)
    echo "status $2: ${said:-$(tail -n 1 "$out/$1.log" | tr '|' ' ' | cut -c 1-200)}"
}

# Models

targets() { # qv|all
    case $1 in
    qv) echo 'q_proj|v_proj|query|value|c_attn' ;;
    all) echo 'q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj' ;;
    esac
}
exported() { # SHAPE
    [ -e "$out/$1/model.onnx" ] && return
    [ -n "$has_torch" ] || return 1
    echo "exporting $1" >&2
    timeout 1200 "$python" "$here/peers/shapes.py" "$1" "$out/$1" > "$out/$1.log" 2>&1
}
injected() { # SHAPE RANK TARGETS STRUCTURE: prints the file's path
    file="$out/$1/$4-$2-$3.onnx"
    case $4 in none) name=lora ;; *) name=$4-shortcut ;; esac
    [ -e "$file" ] || timeout "$limit" "$program" inject "$out/$1/model.onnx" --target "$(targets "$3")" --structure "$name" --pre-num 2 \
        --rank "$2" -o "$file" > "$out/inject.log" 2>&1 || return 1
    echo "$file"
}

# The programs: `run_SYSTEM WORK..` leaves OUT/SYSTEM.json; 3 says that the work is not for it, with why in OUT/SYSTEM.log

refuse() { # SYSTEM REASON
    rm -f "$out/$1.json" && echo "$2" > "$out/$1.log"
    return 3
}
run_system() { # SYSTEM SHAPE BATCH SEQ RANK TARGETS PRECISION STRUCTURE
    system=$1 shape=$2 batch=$3 seq=$4 rank=$5 where=$6 precision=$7 structure=$8
    case $system in
    pytorch)
        [ -n "$has_torch" ] || refuse pytorch "$python has no torch and transformers" || return
        dtype=f32
        [ "$precision" = f32 ] || dtype=bf16
        bounded pytorch "$python" "$here/peers/torch_lora.py" "$shape" "batch=$batch" "seq=$seq" "rank=$rank" "structure=$structure" \
            "steps=$steps" "target=$(targets "$where")" "device=$torch_device" "dtype=$dtype"
        ;;
    burn-*)
        [ -x "$burn" ] || refuse "$system" "not built: cargo build --release --manifest-path benches/peers/burn/Cargo.toml (--no-default-features for software adapters)" || return
        case $shape,$where,$precision in
        minilm,qv,f32 | smollm2-135m,qv,f32) ;;
        *) refuse "$system" "the program has no such work" || return ;;
        esac
        bounded "$system" "$burn" step "$shape" "backend=${system#burn-}" "adapter=$adapter" "batch=$batch" "seq=$seq" "rank=$rank" \
            "warmup=$warmup" "steps=$steps"
        ;;
    meganeura-*)
        [ -x "$meganeura" ] || refuse "$system" "not built: cargo build --release --manifest-path benches/peers/meganeura/Cargo.toml" || return
        case $shape,$batch,$where,$precision in
        smollm2-135m,1,qv,f32) ;;
        *) refuse "$system" "the crate has SmolLM2 alone, one sequence a step" || return ;;
        esac
        bounded "$system" "$meganeura" "${system#meganeura-}" "seq=$seq" "rank=$rank" "warmup=$warmup" "steps=$steps"
        ;;
    ours)
        [ -x "$program" ] || refuse ours "not built: cargo build --release" || return
        exported "$shape" || refuse ours "no $out/$shape/model.onnx, and it was not exported" || return
        model=$(injected "$shape" "$rank" "$where" "$structure") || refuse ours "$(tail -n 1 "$out/inject.log")" || return
        set --
        [ "$precision" = f32 ] || set -- --precision "$precision"
        bounded ours "$program" bench "$model" --batch "$batch" --seq "$seq" --steps "$steps" --device "$device" --json "$@"
        ;;
    esac
}
record() { # SYSTEM as run_system: a line of step, peak memory and the device's memory to OUT/SYSTEM.turns
    status=0
    run_system "$@" || status=$?
    case $status in
    0) ;;
    3) cp "$out/$1.log" "$out/$1.why" && return ;;
    *) why "$1" "$status" > "$out/$1.why" && return ;;
    esac
    step=$(number step_ms < "$out/$1.json")
    peak=$(cat "$out/$1.peak" 2> /dev/null || number peak_rss_mib < "$out/$1.json")
    held=$(number memory < "$out/$1.json" | awk '{ print $1 / 1048576 }')
    gib=$(number peak_gib < "$out/$1.json" | awk '{ print $1 * 1024 }')
    echo "$step ${peak:--} ${held:-${gib:--}}" >> "$out/$1.turns"
    echo "$2 $3x$4 $1: $step ms" >&2
}
column() { # SYSTEM N
    awk -v n="$2" '$n != "-" { print $n }' "$out/$1.turns" 2> /dev/null
}

# Training steps, program beside program

echo "## Steps ($kind)"
for work in $works; do
    shape=${work%%,*}
    fields=$(echo "$work" | tr ',' ' ')
    # shellcheck disable=SC2086
    set -- $fields
    echo
    echo "$1, batch $2, sequence $3: LoRA of rank $4 on $([ "$5" = qv ] && echo 'queries and values' || echo 'every linear layer'), $6"
    echo
    echo "| program | step, ms | turns, ms | our step as a multiple of this one | peak memory of the process, MiB | our peak as a multiple of this one | memory on the device, MiB |"
    echo "|---|---|---|---|---|---|---|"
    for system in $systems; do rm -f "$out/$system.turns" "$out/$system.why"; done
    turn=0
    while [ $turn -lt "$rounds" ]; do
        for system in $systems; do
            # What failed once is not asked again.
            [ -e "$out/$system.why" ] || record "$system" "$@" none
        done
        turn=$((turn + 1))
    done
    ours=$(column ours 1 | median) ours_peak=$(column ours 2 | median)
    for system in $systems; do
        if [ ! -s "$out/$system.turns" ]; then
            echo "| $system | not measured: $(cat "$out/$system.why" 2> /dev/null) | | | | | |"
            continue
        fi
        its=$(column "$system" 1 | median) its_peak=$(column "$system" 2 | median)
        held=$(column "$system" 3 | median)
        by=$(ratio "$ours" "$its") by_peak=$(ratio "$ours_peak" "$its_peak")
        [ "$system" != ours ] || by='' by_peak=''
        echo "| $system | $(rounded "$its" 1) | $(column "$system" 1 | range) | $by | $(rounded "$its_peak" 0) | $by_peak | $(rounded "$held" 0) |"
    done
    [ ! -s "$out/ours.turns" ] || echo "
Ours: $(number kernels < "$out/ours.json") kernels, $(rounded "$(number model_gflops_per_s < "$out/ours.json")" 1) GFLOP/s of the model, $(rounded "$(number ceiling_gflops_per_s < "$out/ours.json")" 1) GFLOP/s of one product of 1,024."
    rm -f "$out/$shape"/none-*.onnx "$out/$shape"/none-*.onnx.data
done

# Residual paths beside LoRA, ours

if [ -n "$structures" ]; then
    echo
    echo "## Residual paths ($kind), ours"
    echo
    echo "| shape | batch x seq | structure | step, ms | over LoRA's |"
    echo "|---|---|---|---|---|"
    for work in $works; do
        # shellcheck disable=SC2046
        set -- $(echo "$work" | tr ',' ' ')
        for structure in $structures; do rm -f "$out/$structure.steps" "$out/ours.why"; done
        turn=0
        while [ $turn -lt "$rounds" ]; do
            for structure in $structures; do
                rm -f "$out/ours.turns"
                [ -e "$out/ours.why" ] || record ours "$@" "$structure"
                column ours 1 >> "$out/$structure.steps" || true
            done
            turn=$((turn + 1))
        done
        lora=$(median < "$out/${structures%% *}.steps")
        for structure in $structures; do
            step=$(median < "$out/$structure.steps")
            by=$(ratio "$step" "$lora") step=$(rounded "$step" 1)
            echo "| $1 | $2 x $3 | $structure | ${step:-not measured: $(cat "$out/ours.why" 2> /dev/null)} | $by |"
            rm -f "$out/$1/$structure"-*.onnx "$out/$1/$structure"-*.onnx.data
        done
    done
fi

# Bare products, the ceiling

if [ -n "$products" ]; then
    echo
    echo "## Bare products of matrices ($kind), GFLOP/s"
    echo
    others='' missing=''
    for system in $systems; do
        case $system in pytorch | burn-*) others="$others $system" ;; esac
    done
    header='| M x K x N |' rule='|---|'
    for system in $others; do
        header="$header $system |" rule="$rule---|"
        status=0
        case $system in
        pytorch)
            if [ -n "$has_torch" ]; then
                # shellcheck disable=SC2086
                bounded "$system" "$python" "$here/peers/torch_matmul.py" $products "device=$torch_device" "steps=$steps" || status=$?
            else
                status=3
            fi
            ;;
        burn-*)
            if [ -x "$burn" ]; then
                # shellcheck disable=SC2086
                bounded "$system" "$burn" matmul $products "backend=${system#burn-}" "adapter=$adapter" "warmup=$warmup" "steps=$steps" ||
                    status=$?
            else
                status=3
            fi
            ;;
        esac
        case $status in
        0) ;;
        3) : > "$out/$system.json" && missing="$missing $system (not installed or built)" ;;
        *) missing="$missing $system ($(why "$system" "$status"))" ;;
        esac
    done
    echo "$header"
    echo "$rule"
    for product in $products; do
        line="| $product |"
        for system in $others; do
            speed=$(grep "\"$product\"" "$out/$system.json" | number gflops)
            line="$line ${speed:+$(rounded "$speed" 1)} |"
        done
        echo "$line"
    done
    [ -z "$missing" ] || echo "
Not measured:$missing."
fi
