#!/usr/bin/env bash
# Check and measure on one GPU, in less than 9 minutes; a short table comes last.
#
#     benchmarks/gpu.sh [PACK...]
#
# Then benchmarks/gpu_train.sh uses the fastest way that was found here. Environment: MODEL, OPTIONS (for
# benchmarks/gpu_check.py), and DEVICE, DATA and PYTHON as for gpu_train.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/gpu_data.sh
unpack "$@"
choose_people 4
if "$python" -c 'import nibabel, pytest' 2> /dev/null; then
    "$python" -m pytest -q -m gpu tests/utils/test_gpus.py || echo "the gpu tests failed"
else
    echo "no nibabel here: the tests that are marked gpu were not run"
fi
# shellcheck disable=SC2086
"$python" benchmarks/gpu_check.py --train "${people[@]}" --validation "${judges[@]}" --device "$device" \
    --model "${MODEL:-iqtflow/models/weights/iqt-k4.safetensors}" --ways "$data/way.json" ${OPTIONS:-}
