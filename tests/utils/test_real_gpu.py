"""What needs a GPU. benchmarks/gpu.sh runs this where nibabel is missing, without conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from iqtflow.utils.gpus import resolve_device


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU")
def test_a_gpu_is_found_and_named():
    device = resolve_device("auto")
    assert device.name == "cuda"
    assert device.reason
