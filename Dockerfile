# docker build -t iqtflow .
# docker run --rm --gpus all -u "$(id -u):$(id -g)" -v /data/bids:/in:ro -v /data/out:/out iqtflow /in /out/iqtflow participant
#
# SPM, GNU Octave and the compiled MEX files come from the official SPM image, so that they match.
ARG SPM_IMAGE=ghcr.io/spm/spm-docker:docker-octave-24.10.alpha22

# --- the SPM image, with Python and without compilers ---
FROM ${SPM_IMAGE} AS trimmed
USER root
# If Octave was not installed as a package, no package keeps the libraries that it needs. So they are marked as wanted
# before compilers and headers are removed.
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3 python3-venv \
 && dpkg-query --show --showformat '${Package}\n' | grep '^lib' | grep --invert-match -- '-dev$' | xargs apt-mark manual > /dev/null \
 && dpkg-query --show --showformat '${Package}\n' \
    | grep --extended-regexp '^(build-essential|dpkg-dev|make|cmake|autoconf|automake|clang|binutils|gcc|g\+\+|cpp|gfortran)(-|$)|-dev$' \
    | grep --extended-regexp --invert-match -- '-base$' \
    | xargs apt-get purge --yes \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /tmp/* /usr/include /opt/spm/src /usr/share/doc/* /usr/share/man/* \
    /usr/bin/mkoctfile* /usr/bin/mex /usr/local/bin/mkoctfile* /usr/local/bin/mex \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin iqtflow

# --- layers, the one that changes most last: the system, PyTorch, the other libraries, iqtflow ---
FROM scratch
COPY --from=trimmed / /
# Only the output, the work directory and /tmp are written: any user may run this, with --read-only and a tmpfs.
# NVIDIA_DRIVER_CAPABILITIES: what the NVIDIA container runtime makes available with --gpus.
ENV PATH=/opt/iqtflow/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    SPM_HOME=/opt/spm \
    HOME=/tmp \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# This build of PyTorch has the CUDA libraries; without a GPU it runs on the CPU.
RUN python3 -m venv /opt/iqtflow && python -m pip install torch==2.13.0
COPY setup.cfg constraints.txt /opt/recipes/
RUN python -c "import configparser as c; s = c.ConfigParser(); s.read('/opt/recipes/setup.cfg'); print(s['options']['install_requires'])" \
      > /tmp/requirements.txt \
 && python -m pip install -c /opt/recipes/constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt
# Some builders do not notice changed sources behind the mount; this argument shows them, and is a label.
ARG REVISION=unknown
RUN --mount=type=bind,target=/src \
    : "${REVISION}" && cp -R /src /tmp/src && python -m pip install --no-deps /tmp/src && rm -rf /tmp/src
USER iqtflow
WORKDIR /tmp
# The build fails if SPM, Octave and the MEX files do not match, or a model is damaged.
RUN iqtflow --doctor --mode calibrate --segmentation spm

LABEL org.opencontainers.image.title="iqtflow" \
      org.opencontainers.image.description="Image quality transfer for low-field, thick-slice brain MRI (BIDS App)" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later" \
      org.opencontainers.image.documentation="https://arxiv.org/abs/1909.06763"

ENTRYPOINT ["iqtflow"]
CMD ["--help"]
