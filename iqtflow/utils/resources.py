"""What the machine has, decided once: processors, memory, and whether networks run on a GPU.

The parent process never imports torch (it would cost every worker that it starts a second and hundreds of
megabytes), so whether CUDA works is asked of a child process, and only where a driver is in sight.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from iqtflow.utils.errors import UsageError
from iqtflow.utils.memory import most_memory_gb

DEVICES = ("auto", "cpu", "cuda")  #: what the command line accepts

#: Traces that NVIDIA's driver leaves where it can be used: on Linux, and under Windows Subsystem for Linux.
_DRIVER_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")

_ASK_TORCH = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]  # no torch.py of the current folder
import torch
if not torch.backends.cuda.is_built():
    print("no: this PyTorch is built without CUDA")
elif not torch.cuda.is_available():
    print("no: PyTorch finds no usable GPU (see CUDA_VISIBLE_DEVICES and the driver's version)")
else:
    torch.zeros(1, device="cuda")
    print("yes:", torch.cuda.get_device_name())
"""


@dataclass(frozen=True)
class Device:
    """Where networks run: `name` is "cpu" or "cuda", `reason` says why, as a phrase for people."""

    name: str
    reason: str


def resolve_device(requested: str, *, elsewhere: bool = False) -> Device:
    """Decide where networks run. A GPU asked for that is not there is an error, never the CPU instead.

    Parameters
    ----------
    requested
        One of :data:`DEVICES`; "auto" takes a GPU that works, and the CPU otherwise.
    elsewhere
        Networks will run as jobs on other machines, whose GPUs cannot be asked from here: "cuda" is believed
        (each job checks for itself, and fails without a GPU), "auto" is the CPU.

    Returns
    -------
    Device

    Raises
    ------
    UsageError
        "cuda" was asked for, and CUDA cannot be used here.
    """
    if requested == "cpu":
        return Device("cpu", "asked for")
    if elsewhere:
        if requested == "cuda":
            return Device("cuda", "asked for; every job on the cluster gets a GPU")
        return Device("cpu", "--device cuda takes the cluster's GPUs")
    works, reason = _ask_cuda()
    if works:
        return Device("cuda", reason)
    if requested == "cuda":
        raise UsageError(
            "--device cuda",
            found=reason,
            expected="an NVIDIA GPU that PyTorch can use",
            next_step="Start a container with --gpus all (Docker) or --nv (Apptainer); or use --device cpu.",
        )
    return Device("cpu", reason)


def available_cpus() -> int:
    """Return the number of processors that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_gb(*, limit_files: tuple[str, ...] | None = None) -> float:
    """Return the memory that this process may use, in GB: the machine's, or its control group's or its own
    limit (``ulimit -v``) if less.

    Parameters
    ----------
    limit_files
        Where control groups (containers, SLURM) state a limit in bytes; None looks in the usual places.
    """
    if limit_files is None:
        limit_files = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        return min(most_memory_gb(), available_memory_gb(limit_files=limit_files))
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in limit_files:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits) / 1e9


def _ask_cuda() -> tuple[bool, str]:
    """Return whether CUDA works for PyTorch, and a phrase about it."""
    if not shutil.which("nvidia-smi") and not any(Path(file).exists() for file in _DRIVER_FILES):
        return False, "no NVIDIA driver in sight"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "PyTorch did not answer within two minutes"
    lines = (
        answer.stdout.strip().splitlines() or answer.stderr.strip().splitlines() or ["no answer from PyTorch"]
    )
    verdict, _, detail = lines[-1].partition(": ")
    if answer.returncode == 0 and verdict == "yes":
        return True, detail
    return False, detail or verdict
