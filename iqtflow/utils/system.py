"""Processors and memory of this machine, and how to recognise that memory was not enough."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from iqtflow.utils.errors import NotEnoughMemory

#: Memory (GB) that a network needs for a whole head, libraries included, about.
USUAL_GB = 3.0
#: PyTorch does not load under a limit of the process (GB) below this.
WITH_TORCH_GB = 1.0
#: Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
#: Limits of a process (``ulimit -v``, ``ulimit -d``). Its libraries count, too.
_OF_PROCESS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)

#: What allocators, loaders and libraries write when there is no memory. GPU memory is not meant.
_WORDS = re.compile(
    r"^\s*(?:\w+\.)*_?(?:Array)?MemoryError\b|std::bad_alloc|\[Errno 12\]"
    r"|Unable to allocate [\d.]+ [KMGT]?i?B"
    r"|failed to map segment from shared object|not enough memory: you tried to"
    r"|[Cc]annot allocate memory(?! in static TLS)|can't allocate memory",
    re.MULTILINE,
)
#: Vague messages. They mean too little memory only where the process has a limit.
_WORDS_UNDER_LIMIT = re.compile(
    r"^SystemError: |can't start new thread|pthread_create failed|^Return code: (?:-6|-11|134|139)$",
    re.MULTILINE,
)


def available_cpus() -> int:
    """Return the number of processors that this process may use. The machine can have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_gb(
    *, proc: str | os.PathLike = "/proc", cgroups: str | os.PathLike = "/sys/fs/cgroup"
) -> float:
    """Return the memory (GB) that this process can still take without swapping or being killed.

    The smallest of three: what the machine has available, what is left to the control group (a container, a
    SLURM job), and what is left under the limit of the process. The file cache of a group counts as free,
    because the kernel releases it on demand.

    Parameters
    ----------
    proc, cgroups
        Where the kernel shows control groups.
    """
    free = [psutil.virtual_memory().available, *(left for _, left in _groups(Path(proc), Path(cgroups)))]
    if limits := process_limits():
        free.append(max(min(limits) - psutil.Process().memory_info().vms, 0))
    return min(free) / 1e9


def available_memory_gb(
    *, proc: str | os.PathLike = "/proc", cgroups: str | os.PathLike = "/sys/fs/cgroup"
) -> float:
    """Return the most memory (GB) that this process may use.

    The smallest of three: the machine's memory, the limit of the control group, and the limit of the process
    (``ulimit -v``).

    Parameters
    ----------
    proc, cgroups
        Where the kernel shows control groups.
    """
    groups = (limit for limit, _ in _groups(Path(proc), Path(cgroups)))
    return min([psutil.virtual_memory().total, *process_limits(), *groups]) / 1e9


def process_limits() -> list[int]:
    """Return the limits (bytes) of this process's own memory."""
    limits = [resource.getrlimit(kind)[0] for kind in _OF_PROCESS]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def is_memory_error(told: BaseException | str) -> bool:
    """Return whether an exception, or the standard error of a process, reports too little memory."""
    if isinstance(told, MemoryError):
        return True
    if isinstance(told, BaseException):
        before = told.__cause__ or told.__context__  # libraries such as numpy wrap the reason
        if before is not None and is_memory_error(before):
            return True
        text = f"{type(told).__name__}: {told}"
    else:
        text = told
    return bool(_WORDS.search(text) or (process_limits() and _WORDS_UNDER_LIMIT.search(text)))


def too_little_memory(
    needs_gb: float | None = None, *, seen: str = "", advice: str = "use --low-mem or a lower --nprocs, or "
) -> str:
    """Return the sentence for too little memory.

    Parameters
    ----------
    needs_gb
        About what the step needs, where known.
    seen
        What was seen, where it is no proof.
    advice
        What needs less memory.
    """
    has_gb = available_memory_gb()
    about_gb = max(needs_gb or 0.0, USUAL_GB)  # a step states no more than its share of the memory
    if about_gb > has_gb:
        needs = f"needs about {about_gb:.2g} GB"
    elif needs_gb is not None:  # together with other steps, or other programs
        needs = f"was to take about {needs_gb:.2g} GB of it and took more, or others did"
    else:
        needs = "needs more"
    likely = f", most likely ({seen})" if seen else ""
    return (
        f"not enough memory{likely}: has {has_gb:.2g} GB, {needs}; {advice}give the machine (the container, "
        "the job, ulimit -v) more memory"
    )


def require_memory(least_gb: float, *, needs_gb: float | None, advice: str = "") -> None:
    """Check that the limit of this process (``ulimit -v``) leaves room for the libraries.

    Below `least_gb` they do not load, and some (numpy) wait for ever without a message.

    Parameters
    ----------
    least_gb
        Smallest limit under which the libraries load.
    needs_gb, advice
        As for `too_little_memory`.

    Raises
    ------
    NotEnoughMemory
        The limit is lower.
    """
    if any(limit < least_gb * 1e9 for limit in process_limits()):
        raise NotEnoughMemory(too_little_memory(needs_gb, advice=advice))


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed arrays for the next ones (glibc only).

    Otherwise each large array takes new pages from the system: a tenth of the time of enhancing a scan.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Give the memory of freed arrays back to the system, before the free memory is measured."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory_gb() -> float:
    """Return the most memory (GB, resident) that this process has held so far."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            # ru_maxrss starts with the value of the process that started this one; this does not.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass  # no such file outside Linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and rest (bytes) of each memory control group that this process is in."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = cgroups, ("max", "current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path can be the host's. Then the group itself is at the root.
        for folder in (group, *group.parents):
            if folder == root or root in folder.parents:
                yield from _limit_and_rest(folder, *names)


def _limit_and_rest(group: Path, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    """Yield limit and rest (bytes) of one control group, if it has a limit."""
    try:
        most = int((group / f"memory.{limit}").read_text())
    except (OSError, ValueError):  # not there, or "max"
        return
    try:
        used = int((group / f"memory.{usage}").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield most, max(most - used + int(stat.get(cache, 0)), 0)
    except (OSError, ValueError):
        yield most, most


def fast_precision(device: str) -> str:
    """Return bfloat16 if the hardware has instructions for it (CUDA; AVX512-BF16 or AMX on a CPU), else
    float32.

    A CPU without them is slower in bfloat16 than in float32. The type of processor decides, not a measurement
    of time, so that the same machine gives the same bits.
    """
    if device == "cuda":
        return "bfloat16"
    import torch

    known = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bfloat16" if any(ask is not None and ask() for ask in known) else "float32"


def cpu_has_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16, without loading PyTorch; Linux only."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
            return bool({"avx512_bf16", "amx_tile"} & set(stream.read().split()))
    except OSError:
        return False
