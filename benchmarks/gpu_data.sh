# Sourced by gpu.sh and gpu_train.sh: unpacking, and the choice of training and validation subjects.
# Needs: torch, lightning, numpy, scipy, safetensors; gpu.sh also scikit-image, monai and psutil. Not needed: nibabel,
# nipype, the images. For a machine without monai and psutil, put their wheels into the folder of the packs:
#     pip download --no-deps --dest pack monai psutil
data=${DATA:-/tmp/iqtflow-data} python=${PYTHON:-python3} device=${DEVICE:-cuda}
export PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$data"

# unpack PACK...: each pack once, for both factors, and the wheels beside it. A second call may bring a second pack.
unpack() {
    local pack mark wheel
    for pack; do
        for wheel in "$(dirname "$pack")"/*.whl; do
            if [ -e "$wheel" ]; then "$python" -m pip install --quiet --no-index --no-deps "$wheel"; fi
        done
        mark=$data/$(cksum < "$pack" | tr ' ' -)
        if [ ! -e "$mark" ]; then
            OMP_NUM_THREADS=1 "$python" benchmarks/pack.py unpack "$pack" --output "$data" --k 4 8 | tail -n 1
            touch "$mark"
        fi
    done
}

# choose_people K: sets `people` and `judges`.
choose_people() {
    local file
    people=() judges=()
    for file in "$data/k$1"/*_patches.safetensors; do
        case $file in # the same choices as train_shipped.sh
            *sub-A22_* | *sub-A23_* | *sub-B09_*) judges+=("$file") ;;
            *sub-B*) people+=("$file" "$file" "$file" "$file") ;;
            *) people+=("$file") ;;
        esac
    done
}
