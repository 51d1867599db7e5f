# docker build -t iqtflow .
# docker run --rm --gpus all -u "$(id -u):$(id -g)" -v /data/bids:/in:ro -v /data/out:/out iqtflow /in /out/iqtflow participant
#
# SPM, GNU Octave and SPM's compiled MEX files come from SPM's own image, so that they match.
ARG SPM_IMAGE=ghcr.io/spm/spm-docker:docker-octave-24.10.alpha22

FROM ${SPM_IMAGE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A layer of its own: it is the largest by far and changes least. This build of PyTorch brings the CUDA libraries;
# without a GPU it runs on the CPU.
RUN python3 -m venv /opt/iqtflow && /opt/iqtflow/bin/python -m pip install torch==2.13.0
COPY . /src
RUN /opt/iqtflow/bin/python -m pip install -c /src/constraints.txt /src \
 && /opt/iqtflow/bin/python -m compileall -q /opt/iqtflow

FROM ${SPM_IMAGE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin iqtflow
COPY --from=build /opt/iqtflow /opt/iqtflow

# Nothing is written but to the output, the work directory and /tmp: any user may run this, with --read-only and a tmpfs.
ENV PATH=/opt/iqtflow/bin:$PATH \
    SPM_HOME=/opt/spm \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1
# What NVIDIA's container runtime hands in when a GPU is asked for with --gpus.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER iqtflow
WORKDIR /tmp

LABEL org.opencontainers.image.title="iqtflow" \
      org.opencontainers.image.description="Image quality transfer for low-field, thick-slice brain MRI (BIDS App)" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-or-later" \
      org.opencontainers.image.documentation="https://arxiv.org/abs/1909.06763"

ENTRYPOINT ["iqtflow"]
CMD ["--help"]
