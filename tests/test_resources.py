"""Where networks run is decided once; a GPU that was asked for is never silently replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from iqtflow.errors import UsageError
from iqtflow.resources import available_cpus, available_memory_gb, resolve_device

HAS_DRIVER = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def test_the_cpu_can_always_be_asked_for():
    assert resolve_device("cpu").name == "cpu"


@pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
def test_a_gpu_asked_for_where_there_is_none_is_an_error_with_the_remedy():
    with pytest.raises(UsageError, match=r"no NVIDIA driver in sight.*--gpus all.*--nv"):
        resolve_device("cuda")


@pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
def test_without_a_gpu_auto_takes_the_cpu_and_says_why():
    device = resolve_device("auto")
    assert (device.name, device.reason) == ("cpu", "no NVIDIA driver in sight")


def test_a_driver_without_a_usable_gpu_is_no_gpu(tmp_path, monkeypatch):
    # The driver's tool is there and no device that PyTorch may use, as on a node whose GPU was not reserved.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="PyTorch"):
        resolve_device("cuda")
    assert resolve_device("auto").name == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU")
def test_a_gpu_is_found_and_named():
    device = resolve_device("auto")
    assert device.name == "cuda"
    assert device.reason


def test_processors_are_those_that_this_process_may_use():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


def test_a_limit_of_the_control_group_is_obeyed(tmp_path):
    (tmp_path / "memory.max").write_text("500000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    files = tuple(str(tmp_path / name) for name in ("memory.max", "unlimited", "absent"))
    assert available_memory_gb(limit_files=files) == pytest.approx(0.5)
    assert available_memory_gb(limit_files=files[1:]) > 0.5
