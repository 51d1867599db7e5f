#!/usr/bin/env bash
# A substitute for the SPM image if its registry cannot be reached: Debian, GNU Octave with compilers, and an SPM that was
# compiled for this Octave, under the image name in the Dockerfile.
#
#   .ci/container/base.sh /opt/spm12
#
# Needs root, debootstrap and buildah.
set -euo pipefail
spm=${1:?folder of an SPM compiled for the Octave of Debian 12}
here=$(cd "$(dirname "$0")/../.." && pwd)
name=$(sed -n 's/^ARG SPM_IMAGE=//p' "$here/Dockerfile")
root=${ROOTFS:-/var/tmp/iqtflow-debian}
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot

[ -e "$root/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$root"
box=$(buildah from scratch)
trap 'buildah rm "$box" > /dev/null' EXIT
buildah add --quiet "$box" "$root" /
buildah run --network host "$box" -- sh -c 'apt-get update --quiet=2 &&
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends octave octave-dev build-essential &&
    apt-get clean && rm -rf /var/lib/apt/lists/*'
buildah add --quiet "$box" "$spm" /opt/spm
buildah run "$box" -- sh -c 'ln -s /opt/spm/bin/spm*-octave /usr/local/bin/spm; mkoctfile --version; octave-cli --version | head -1'
buildah config --entrypoint '["spm"]' --cmd --help --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$box"
buildah commit --quiet "$box" "$name"
echo "$name"
