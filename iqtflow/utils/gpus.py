"""One GPU for one job: which cards there are, and a lock for each, machine-wide.

CUDA lets any number of processes onto one card, where two networks run out of memory. No scheduler on a
single machine gives out cards (nipype counts jobs, not cards), and two runs know nothing of each other. So a
process that is about to use CUDA takes a card's lock first, and sees no other card.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from iqtflow.utils.errors import OutputError, UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Overrides the folder of the locks; processes that share cards have to share it.
LOCK_DIR = "IQTFLOW_LOCK_DIR"
#: Seconds between two looks for a free card.
POLL_S = 0.5


def visible_gpus(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the cards that a process may use, under names that ``CUDA_VISIBLE_DEVICES`` takes.

    Parameters
    ----------
    environ
        Environment; the process's own when None. Its ``CUDA_VISIBLE_DEVICES`` (set by SLURM, say) is obeyed.

    Returns
    -------
    list of str
        UUIDs where nvidia-smi tells them: one card has one, whatever its number in a container or job. Empty
        when there is no card.
    """
    environ = os.environ if environ is None else environ
    cards = _ask_driver()
    if VISIBLE not in environ:
        return cards
    allowed = []
    for name in environ[VISIBLE].split(","):
        name = name.strip()
        if not name or name.startswith("-"):
            break  # as CUDA does: what follows an invalid entry is not visible
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
    """Wait for free cards and hold them; in the meantime this process and its children see no other ones.

    Has to be entered before CUDA is initialised, which reads ``CUDA_VISIBLE_DEVICES`` once.

    Parameters
    ----------
    count
        Cards that are wanted; never some of them while others wait for those.
    gpus
        Cards to choose from; `visible_gpus` when None. Where the driver tells of none, the first is assumed.
    lock_dir
        Folder of the lock files.
    report
        Receives a line when the wait begins.

    Yields
    ------
    str
        Name of the card, or names with commas between them.

    Raises
    ------
    UsageError
        There are fewer cards.
    OutputError
        The locks cannot be written.

    Notes
    -----
    The lock is the kernel's (flock), so that it ends with the process, however that ends.
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
    """Hold cards for as long as "cuda" is used; nothing is to be held for "cpu"."""
    # A process that a distributed training has started uses a card that the first one holds.
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
    """Folder of the locks: one for all users, and not a job's private temporary folder."""
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
    """Take the locks of so many cards; of none when there are not enough: who waits holds nothing."""
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
    """Return the handle of a lock file that nobody else holds, None when somebody does."""
    try:
        # Without O_CREAT: for files of other users in folders like /tmp the kernel refuses it.
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
