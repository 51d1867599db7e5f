#!/usr/bin/env bash
# Train the models that ship, on people of two scanners, in steps that go on where they stopped.
#
#     benchmarks/train_shipped.sh prepare  HIGHFIELD FOLDER K   patch libraries, about a minute of one core for a person
#     benchmarks/train_shipped.sh train    FOLDER K [OPTIONS]   train on them; again: go on (options as iqtflow-train)
#     benchmarks/train_shipped.sh snapshot FOLDER K MODEL       a model from the best weights so far
#
# HIGHFIELD is a BIDS data set with people A* (skull-stripped, softer along their third axis, so that slices lie along
# the first two) and B* (whole heads, slices along all three). A22, A23 and B09 are the validation subjects.
# To go on from the shipped weights: NAME=next benchmarks/train_shipped.sh train FOLDER 4 --start-from iqt-k4
# Environment: NAME (of the training, default first), STEPS, LR, SCHEDULE, THREADS.
set -euo pipefail
command=$1
export OMP_NUM_THREADS="${THREADS:-1}"

prepare() {
    local data=$1 folder=$2 k=$3
    local people stripped whole
    people=$(cd "$data" && ls -d sub-* | sed s/sub-//)
    stripped=$(grep '^A' <<< "$people" || true)
    whole=$(grep '^B' <<< "$people" || true)
    level() {
        iqtflow "$data" "$folder/k$k" participant --mode train -k "$k" --segmentation ants --skip-bids-validation \
            --work-dir "$folder/work-k$k" --omp-nthreads 1 "$@"
    }
    # The validation subjects first: training can begin before all are prepared.
    level --slice-axes x,y --participant-label A22 A23
    level --slice-axes x,y,z --participant-label $whole
    level --slice-axes x,y --participant-label $stripped
}

train() {
    local folder=$1 k=$2 output=$3
    shift 3
    local libraries="$folder/k$k/patches" name="${NAME:-first}" file
    local people=() judges=()
    for file in "$libraries"/*_patches.safetensors; do
        case $file in
            *sub-A22_* | *sub-A23_* | *sub-B09_*) judges+=("$file") ;;
            *sub-B*) people+=("$file" "$file" "$file" "$file") ;; # few of this scanner: each counts four times
            *) people+=("$file") ;;
        esac
    done
    iqtflow-train --train "${people[@]}" --validation "${judges[@]}" --output "$output" \
        --checkpoint-dir "$folder/checkpoints-k$k-$name" --name "iqt-k$k" --network subpixel-unet --k "$k" \
        --batch-size 8 --patch-size 48 --optimiser muon --learning-rate "${LR:-0.001}" --warmup 100 \
        --schedule "${SCHEDULE:-decay}" --clip 0.1 --averaging 0.999 --precision bfloat16 --background-weight 0.1 \
        --steps "${STEPS:-40000}" --max-epochs 100000 --patience 0 --num-threads "$OMP_NUM_THREADS" \
        --thickness-fraction 0.5 1 --snr-scale 0.6 1 --bias-amplitude 0.2 --mirror \
        --zoom 0.85 1.2 --spacing-jitter 0.08 --contrast-jitter 0.1 --stripes 0.05 "$@"
}

case $command in
    prepare) prepare "$2" "$3" "$4" ;;
    train) train "$2" "$3" "$2/iqt-k$3-${NAME:-first}.safetensors" "${@:4}" ;;
    snapshot)
        # A training that has had its steps only writes its model; the one that runs is left alone.
        place=$(mktemp -d)
        trap 'rm -rf "$place"' EXIT
        cp -r "$2/checkpoints-k$3-${NAME:-first}" "$place/checkpoints-k$3-${NAME:-first}"
        ln -s "$(realpath "$2/k$3")" "$place/k$3"
        STEPS=1 train "$place" "$3" "$4" --overwrite "${@:5}"
        ;;
    *) echo "unknown command $command" >&2 && exit 2 ;;
esac
