#!/usr/bin/env bash
# Run the image as in a hospital: any user, read-only except the output and /tmp, no network, no GPU.
#
#   .ci/container/check.sh [IMAGE] > table.md
#
# Needs root and buildah. The script ends at the first check that fails. It prints a table with a row for each check.
set -euo pipefail
image=${1:-iqtflow}
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot
box=$(buildah from --pull-never "$image")
root=$(buildah mount "$box")
place=$(mktemp -d)
trap 'buildah rm "$box" > /dev/null; rm -rf "$place"' EXIT
mapfile -t environment < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .)
mkdir -p "$root/in" "$root/out" "$place/in" "$place/out" "$place/locked"
chmod a+rwx "$place" "$place/in" "$place/out"

# inside OUT [NAME=VALUE ...] PROGRAM ...: like docker run -u 12345:12345 --read-only --tmpfs /tmp --network none.
inside() {
    local out=$1 mode=${MODE:-rw}
    shift
    unshare --mount --net --pid --fork bash -euo pipefail -c '
        root=$1 in=$2 out=$3 mode=$4; shift 4
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount --bind "$in" "$root/in"
        mount --bind "$out" "$root/out"
        [ "$mode" = rw ] || mount -o remount,bind,ro "$root/out"
        exec chroot --userspec=12345:12345 "$root" /bin/sh -c "cd /tmp && exec \"\$@\"" sh env -i "$@"
    ' sh "$root" "$place/in" "$out" "$mode" "${environment[@]}" "$@"
}

# row WHAT WANTED-CODE COMMAND...: run, compare the exit code, print a row of the table.
row() {
    local what=$1 wanted=$2 code=0 begin=$SECONDS
    shift 2
    "$@" > "$place/log" 2>&1 || code=$?
    cat "$place/log" >&2
    [ "$code" = "$wanted" ] || { echo "$what: exit code $code, wanted $wanted" >&2; exit 1; }
    echo "| $what | $code | $((SECONDS - begin)) s |"
}

says() { grep --quiet --fixed-strings -- "$1" "$place/log" || { echo "the log does not contain: $1" >&2; exit 1; }; }

echo "| check | exit code | wall clock |"
echo "|---|---|---|"
row "the image has no compiler" 0 inside "$place/out" sh -c '
    for name in cc gcc g++ c++ cpp gfortran clang ld as make cmake mkoctfile mex; do
        ! command -v $name || exit 1
    done
    test ! -e /usr/include/stdio.h'
row "\`--doctor --mode train --segmentation spm\`" 0 inside "$place/out" iqtflow --doctor --mode train --segmentation spm
row "\`--doctor\`, HOME unset" 0 inside "$place/out" --unset=HOME iqtflow --doctor
row "demonstration: simulate, enhance, page; HOME does not exist" 0 \
    inside "$place/out" HOME=/nonexistent python -m iqtflow.cli.commands.demo /out/demo
[ "$(stat --format %u "$place/out/demo/derivatives/sub-mni.html")" = 12345 ]
cp -r "$place/out/demo/bids/." "$place/in"
row "\`/in /out/iqtflow participant\`, k = 4 model that ships" 0 inside "$place/out" iqtflow /in /out/iqtflow participant
test -s "$place/out/iqtflow/sub-mni/anat/sub-mni_desc-iqt_T1w.nii.gz"
row "the same command again" 0 inside "$place/out" iqtflow /in /out/iqtflow participant
row "\`--device cuda\` without a GPU" 2 inside "$place/out" iqtflow /in /out/cuda participant --device cuda
says "--gpus all"
MODE=ro row "output mounted read-only" 73 inside "$place/locked" iqtflow /in /out/iqtflow participant
says "cannot be written"
row "a path of the host instead of one in the container" 2 inside "$place/out" iqtflow /data/bids /out/iqtflow participant
says "in a container: check what is mounted where"
if [ "${SPM:-yes}" = yes ]; then
    mkdir -p "$place/out/highfield/sub-mni/anat"
    cp "$place/in/dataset_description.json" "$place/out/highfield"
    cp "$place/out/demo/truth/T1w.nii.gz" "$place/out/highfield/sub-mni/anat/sub-mni_T1w.nii.gz"
    echo '{"SkullStripped": true}' > "$place/out/highfield/sub-mni/anat/sub-mni_T1w.json"
    row "\`--mode train --segmentation spm\`, participant level, 1 mm brain" 0 \
        inside "$place/out" iqtflow /out/highfield /out/model participant --mode train --segmentation spm --slice-axes z
    test -s "$place/out/model/sub-mni/anat/sub-mni_label-GM_probseg.nii.gz"
fi
{
    echo
    echo "| layer | MB, uncompressed |"
    echo "|---|---|"
    du -sm "$root" | awk '{print "| whole image | " $1 " |"}'
    for folder in opt/spm opt/iqtflow/lib/python3*/site-packages/torch opt/iqtflow opt/iqtflow/lib/python3*/site-packages/iqtflow; do
        du -sm "$root"/$folder | awk -v name="${folder%%/lib*}${folder##*site-packages}" '{print "| of it " name " | " $1 " |"}'
    done
}
