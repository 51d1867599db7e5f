"""CPU or GPU: where networks run, and a lock for each GPU so that two jobs never share one.

CUDA lets any number of processes use one GPU, and two networks there run out of memory. nipype counts jobs,
not GPUs, and two runs on one machine know nothing of each other. So a process locks a GPU before it uses
CUDA, and sees no other GPU.

The parent process never imports torch, which would cost every worker a second and hundreds of megabytes. A
child process tests whether CUDA works.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iqtflow.utils.errors import InputError, OutputError, UsageError

DEVICES = ("auto", "cpu", "cuda")  #: what the command line accepts

#: Files of NVIDIA's driver, on Linux and under Windows Subsystem for Linux.
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

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Environment variable for the folder of the locks. Processes that share GPUs must share it.
LOCK_DIR = "IQTFLOW_LOCK_DIR"
#: Seconds between two attempts to lock a GPU.
POLL_S = 0.5


@dataclass(frozen=True)
class Device:
    """Where networks run: `name` is "cpu" or "cuda", `reason` says why."""

    name: str
    reason: str


def resolve_device(requested: str, *, elsewhere: bool = False) -> Device:
    """Decide where networks run. If "cuda" is asked for and does not work, that is an error.

    Parameters
    ----------
    requested
        One of :data:`DEVICES`; "auto" takes a GPU that works, and the CPU otherwise.
    elsewhere
        Networks run as jobs on other machines. Then "cuda" is not tested here (each job tests it, and fails
        without a GPU), and "auto" is the CPU.

    Returns
    -------
    Device

    Raises
    ------
    UsageError
        "cuda" was asked for, and does not work here.
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


def require_cuda(device: str) -> None:
    """Make sure in the process that runs networks that PyTorch can use a GPU, if `device` is "cuda".

    Raises
    ------
    InputError
        PyTorch cannot use a GPU.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda",
            found="no CUDA device",
            expected="a visible NVIDIA GPU",
            next_step="Start the container with --gpus all (Docker) or --nv (Apptainer), or choose the CPU.",
        )


def visible_gpus(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the GPUs that a process may use, by names that ``CUDA_VISIBLE_DEVICES`` accepts.

    Parameters
    ----------
    environ
        Environment; that of this process if None. ``CUDA_VISIBLE_DEVICES`` (set by SLURM, for example) is
        respected.

    Returns
    -------
    list of str
        UUIDs if nvidia-smi lists them: they stay the same in containers and jobs. Empty without a GPU.
    """
    environ = os.environ if environ is None else environ
    cards = _ask_driver()
    if VISIBLE not in environ:
        return cards
    allowed = []
    for name in environ[VISIBLE].split(","):
        name = name.strip()
        if not name or name.startswith("-"):
            break  # as in CUDA: entries after an invalid one are not visible
        allowed.append(cards[int(name)] if name.isdecimal() and int(name) < len(cards) else name)
    return list(dict.fromkeys(allowed))


@contextmanager
def claim_gpu(
    *,
    count: int = 1,
    gpus: Sequence[str] | None = None,
    lock_dir: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Wait for free GPUs and lock them. Until the end this process and its children see no others.

    Call it before CUDA is initialised, which reads ``CUDA_VISIBLE_DEVICES`` once.

    Parameters
    ----------
    count
        Number of GPUs. While it waits for all of them, it locks none.
    gpus
        GPUs to choose from; `visible_gpus` if None. If the driver lists none, the first is assumed.
    lock_dir
        Folder of the lock files.
    report
        Receives a line when the wait begins.

    Yields
    ------
    str
        Name of the GPU, or several names separated by commas.

    Raises
    ------
    UsageError
        There are fewer GPUs.
    OutputError
        The locks cannot be written.

    Notes
    -----
    The kernel (flock) releases a lock when the process ends, also when it is killed.
    """
    names = list(gpus if gpus is not None else visible_gpus()) or ["0"]
    folder = _lock_folder(lock_dir)
    if len(names) < count:
        raise UsageError(
            f"{count} GPUs",
            found=f"{len(names)} ({', '.join(names)})",
            expected="as many as are asked for",
            next_step=f"Ask for fewer, or see {VISIBLE}.",
        )
    waiting = False
    while True:
        held = _try_locks(names, folder, count)
        if held:
            break
        if not waiting and report is not None:
            report(f"waiting for {count} GPU(s): {', '.join(names)} in use by other jobs")
        waiting = True
        time.sleep(POLL_S * random.uniform(0.5, 1.5))
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(held)
    try:
        yield os.environ[VISIBLE]
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
        for handle in held.values():
            os.close(handle)


@contextmanager
def device_claimed(
    device: str, report: Callable[[str], None] | None = None, *, count: int = 1
) -> Iterator[str]:
    """Lock GPUs while "cuda" is used; lock nothing for "cpu"."""
    # A process of a distributed training uses a GPU that the first process has locked.
    if device != "cuda" or "LOCAL_RANK" in os.environ:
        yield device
        return
    with claim_gpu(count=count, report=report) as cards:
        yield cards


def _ask_driver() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().startswith("GPU-")]


def _lock_folder(chosen: str | os.PathLike | None) -> Path:
    """Return the folder of the locks, the same for all users and jobs."""
    shared = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp", "iqtflow-locks")
    folder = Path(chosen or os.environ.get(LOCK_DIR) or shared)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o1777)
    except OSError as fault:
        raise OutputError(
            folder,
            found=f"a folder that cannot be written ({fault.strerror})",
            expected="a place for the locks of GPUs, the same for all runs on this machine",
            next_step=f"Give another one in the environment: {LOCK_DIR}=/some/folder.",
        ) from fault
    return folder


def _try_locks(names: Sequence[str], folder: Path, count: int) -> dict[str, int]:
    """Lock `count` GPUs, or none if there are not enough."""
    held: dict[str, int] = {}
    for name in names:
        handle = _try_lock(folder / f"gpu-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.lock")
        if handle is not None:
            held[name] = handle
        if len(held) == count:
            return held
    for handle in held.values():
        os.close(handle)
    return {}


def _try_lock(path: Path) -> int | None:
    """Return the handle of a lock file, None if another process holds the lock."""
    try:
        # Without O_CREAT, which the kernel refuses for files of other users in folders like /tmp.
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(handle, 0o666)
        except FileExistsError:
            return _try_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _ask_cuda() -> tuple[bool, str]:
    """Return whether CUDA works for PyTorch, and a phrase about it."""
    if not shutil.which("nvidia-smi") and not any(Path(file).exists() for file in _DRIVER_FILES):
        return False, "no NVIDIA driver"
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
