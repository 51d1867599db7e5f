#!/usr/bin/env bash
# Check and measure on one GPU, then train the paper's cells, in less than 9 minutes; short tables come last.
#
#     benchmarks/gpu.sh [PACK...]
#
# Then benchmarks/gpu_train.sh uses the fastest way that was found here. To go on with the cells, run it again with
# the same OUT.
# Environment:
#   OUT       folder for the results of the cells (DATA/grid); see benchmarks/gpu_grid.py
#   TOTAL     seconds in all (530); the cells get what the checks leave
#   PRESET    design of the cells (gpu), in benchmarks/paper
#   MODEL, OPTIONS   model and more options for benchmarks/gpu_check.py
#   CELLS     more options for benchmarks/gpu_grid.py, such as "--cells 1-aniso2-k4"
#   DEVICE, DATA, PYTHON   as for gpu_train.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/gpu_data.sh
unpack "$@"
choose_people 4
failed=0
# Without conftest.py, which needs nibabel.
"$python" -m pytest -q --noconftest -p no:cacheprovider -m gpu tests/utils/test_real_gpu.py || failed=1
# shellcheck disable=SC2086
"$python" benchmarks/gpu_check.py --train "${people[@]}" --validation "${judges[@]}" --device "$device" \
    --model "${MODEL:-iqtflow/models/weights/iqt-k4.safetensors}" --ways "$data/way.json" ${OPTIONS:-} || failed=1
# shellcheck disable=SC2086
"$python" benchmarks/gpu_grid.py "$data"/k4/*_patches.safetensors --output "${OUT:-$data/grid}" --work "$data/draws" \
    --seconds $((${TOTAL:-530} - SECONDS)) --device "$device" --preset "${PRESET:-gpu}" ${CELLS:-} || failed=1
exit $failed
