"""Processors and memory of this machine; too little memory is recognised."""

from __future__ import annotations

import os
import resource
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from clinics import execute

from iqtflow.utils import system
from iqtflow.utils.environment import command_line
from iqtflow.utils.system import (
    available_cpus,
    available_memory_gb,
    free_memory_gb,
    is_memory_error,
    peak_memory_gb,
    too_little_memory,
)


def test_processors_are_those_that_this_process_may_use():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


#: Files of a control group that may use 10 GB and has used 6, 1 of them as file cache.
TEN_GB = {"max": "10000000000", "current": "6000000000", "stat": "anon 5000000000\ninactive_file 1000000000"}
#: The same for version 1 of control groups: 4 GB, 1 used, half of that as file cache.
FOUR_GB = {
    "limit_in_bytes": "4000000000",
    "usage_in_bytes": "1000000000",
    "stat": "cache 5\ntotal_inactive_file 500000000",
}


@pytest.mark.parametrize(
    ("line", "files", "free_gb", "most_gb"),
    [
        pytest.param("0::/", {"": TEN_GB}, 5.0, 10.0, id="at the root"),
        pytest.param(
            "0::/slurm/job_7/step_0",
            {"slurm/job_7": TEN_GB, "slurm/job_7/step_0": {"max": "max", "current": "1"}},
            5.0,
            10.0,
            id="of the group above",
        ),
        # A container sees its own group at the root.
        pytest.param("3:cpu:/a\n4:memory:/docker/abc", {"memory": FOUR_GB}, 3.5, 4.0, id="version 1"),
        pytest.param("0::/", {"": {"max": "2000000000"}}, 2.0, 2.0, id="use unknown"),
        pytest.param("0::/", {"": {"max": "max"}}, 8.0, 64.0, id="no limit"),
        pytest.param(None, {}, 8.0, 64.0, id="no groups"),
    ],
)
def test_memory_is_what_the_control_group_and_the_machine_leave(
    tmp_path, monkeypatch, line, files, free_gb, most_gb
):
    machine = SimpleNamespace(available=8_000_000_000, total=64_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(system, "process_limits", list)
    content = {f"cgroup/{group}/memory.{n}": text for group, f in files.items() for n, text in f.items()}
    for name, text in {**content, **({"proc/self/cgroup": line} if line else {})}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    places = {"proc": tmp_path / "proc", "cgroups": tmp_path / "cgroup"}
    assert free_memory_gb(**places) == pytest.approx(free_gb)
    assert available_memory_gb(**places) == pytest.approx(most_gb)


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_gb()
    held = np.ones(200_000_000, np.float64)  # 1.6 GB: more than what earlier tests may have held at most
    assert peak_memory_gb() - before > 0.2
    assert held[-1] == 1


TOLD = {
    "a loader": "ImportError: libtorch_cpu.so: failed to map segment from shared object",
    "numpy": "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.22 GiB for an array",
    "PyTorch": "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
    "C++": "terminate called after throwing an instance of 'std::bad_alloc'",
    "the kernel": "OSError: [Errno 12] Cannot allocate memory",
    "Python": "Traceback ...\nMemoryError\n",
}


@pytest.mark.parametrize("message", TOLD.values(), ids=TOLD)
def test_too_little_memory_is_recognised_in_messages_of_many_programs(message):
    assert is_memory_error(message)
    assert is_memory_error(MemoryError())


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
def test_other_errors_are_not_taken_for_it(other):
    assert not is_memory_error(other)


def test_under_a_limit_of_the_process_vague_messages_mean_memory_too(monkeypatch):
    monkeypatch.setattr(system, "process_limits", lambda: [2_000_000_000])
    assert is_memory_error(SystemError("error return without exception set"))
    assert is_memory_error("RuntimeError: can't start new thread")
    assert available_memory_gb() == 2.0
    assert free_memory_gb() <= 2.0
    told = too_little_memory(5.0)
    assert "has 2 GB" in told and "needs about 5 GB" in told and "--low-mem" in told


def limited(gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 1e9),) * 2)


@pytest.mark.parametrize("module", ["enhance", "train", "evaluate"])
def test_a_command_under_a_tight_limit_says_what_it_has_and_what_it_needs(module, tmp_path):
    """Like ``ulimit -v``, under which libraries fail in various ways, or wait for ever."""
    files = {
        "enhance": ["scan.nii", "out.nii"],
        "train": ["--train", "a", "--validation", "b", "--output", "c", "--checkpoint-dir", "d"],
        "evaluate": ["scan.nii", "scan.nii"],
    }
    command = [*command_line(f"iqtflow.cli.commands.{module}"), *files[module]]
    done = execute(*command, cwd=tmp_path, env=None, preexec_fn=lambda: limited(0.05), timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"iqtflow-{module}: error: not enough memory: has 0.05 GB, needs about"
    )
