"""Where networks run is decided once; a GPU that was asked for is never silently replaced."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from iqtflow.utils import memory
from iqtflow.utils.environment import command_line
from iqtflow.utils.errors import UsageError
from iqtflow.utils.memory import free_memory_gb, most_memory_gb, tells_of_memory, too_little_memory
from iqtflow.utils.resources import available_cpus, available_memory_gb, resolve_device

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


TOLD = {
    "a loader": "ImportError: libtorch_cpu.so: failed to map segment from shared object",
    "numpy": "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.22 GiB for an array",
    "PyTorch": "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
    "C++": "terminate called after throwing an instance of 'std::bad_alloc'",
    "the kernel": "OSError: [Errno 12] Cannot allocate memory",
    "Python": "Traceback ...\nMemoryError\n",
}


@pytest.mark.parametrize("who", TOLD)
def test_too_little_memory_is_understood_whoever_tells_of_it(who):
    assert tells_of_memory(TOLD[who])
    assert tells_of_memory(MemoryError())


@pytest.mark.parametrize(
    "other",
    [
        "ImportError: No module named 'torch'",
        "ImportError: libgomp.so.1: cannot allocate memory in static TLS block",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "SystemError: error return without exception set",
        "RuntimeError: can't start new thread",
        "ValueError: 12 slices",
    ],
)
def test_other_faults_are_not_taken_for_it(other):
    assert not tells_of_memory(other)


def test_under_a_limit_of_the_process_vague_words_tell_of_it_too(monkeypatch):
    monkeypatch.setattr(memory, "process_limits", lambda: [2_000_000_000])
    assert tells_of_memory(SystemError("error return without exception set"))
    assert tells_of_memory("RuntimeError: can't start new thread")
    assert most_memory_gb() == available_memory_gb() == 2.0
    assert free_memory_gb() <= 2.0
    assert too_little_memory(5.0).startswith("not enough memory: has 2 GB, needs about 5 GB; use --low-mem")


def limited(gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9),) * 2)


@pytest.mark.parametrize("module", ["enhance", "train", "evaluate"])
def test_a_command_under_a_tight_limit_says_what_it_has_and_what_it_needs(module, tmp_path):
    """As with ``ulimit -v``, of which libraries die in ways of their own, or wait for ever."""
    files = {
        "enhance": ["scan.nii", "out.nii"],
        "train": ["--train", "a", "--validation", "b", "--output", "c", "--checkpoint-dir", "d"],
        "evaluate": ["scan.nii", "scan.nii"],
    }
    done = subprocess.run(
        [*command_line(f"iqtflow.cli.commands.{module}"), *files[module]],
        cwd=tmp_path,
        preexec_fn=lambda: limited(0.05),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"iqtflow-{module}: error: not enough memory: has 0.05 GB, needs about"
    )
