#!/usr/bin/env bash
# Train k = 4 and then k = 8 on one GPU in less than 9 minutes in all, from data packs (benchmarks/pack.py).
#
#     benchmarks/gpu_train.sh OUT [PACK...]
#
# OUT gets iqt-k4.safetensors and iqt-k8.safetensors, written every 2 minutes and at the end. To go on, run it
# again with START4 and START8 set to these files.
# Environment:
#   TOTAL            seconds in all, unpacking and start included (530)
#   FACTORS, SHARE   factors ("4 8"), and per cent of the time for the first of two (75)
#   START4, START8   models to start from (the shipped iqt-k4; the new model of k = 4)
#   BATCH, LR        batch size (64) and learning rate (0.0015)
#   OPTIONS          for benchmarks/gpu_train.py, such as "--widths 48 96 192"
#   DEVICE, DATA, PYTHON   cuda or cpu; folder for the unpacked libraries (/tmp/iqtflow-data); python3
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
. benchmarks/gpu_data.sh
mkdir -p "$out"
unpack "$@"
total=${TOTAL:-530} start=${START4:-iqtflow/models/weights/iqt-k4.safetensors}
read -ra factors <<< "${FACTORS:-4 8}"
for k in "${factors[@]}"; do
    choose_people "$k"
    until=$total
    if [ "$k" != "${factors[-1]}" ]; then until=$((total * ${SHARE:-75} / 100)); fi
    if [ "$k" = 8 ]; then start=${START8:-$start}; fi
    # shellcheck disable=SC2086
    "$python" benchmarks/gpu_train.py --train "${people[@]}" --validation "${judges[@]}" --start-from "$start" \
        --k "$k" --seconds $((until - SECONDS)) --output "$out/iqt-k$k.safetensors" --device "$device" \
        --batch-size "${BATCH:-64}" --learning-rate "${LR:-0.0015}" --ways "$data/way.json" ${OPTIONS:-}
    start=$out/iqt-k$k.safetensors
done
ls -l "$out"
