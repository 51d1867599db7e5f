"""How much memory this process may take, how much it has taken, and how to tell that it was not enough."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from iqtflow.utils.errors import NotEnoughMemory

#: Largest number that stands for a limit; control groups (version 1) write a larger one for "none".
_NO_LIMIT = 1 << 60
#: Memory (GB) that a whole head through a network needs, with all libraries, about.
USUAL_GB = 3.0
#: A limit of the process (GB) below this leaves no room for PyTorch.
WITH_TORCH_GB = 1.0
#: Limits of a process (``ulimit -v``, ``ulimit -d``) in which its libraries have to fit, too.
_OF_PROCESS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)

#: What allocators, loaders and libraries write when there is no memory; a GPU's memory is told apart.
_WORDS = re.compile(
    r"^\s*(?:\w+\.)*_?(?:Array)?MemoryError\b|std::bad_alloc|\[Errno 12\]"
    r"|Unable to allocate [\d.]+ [KMGT]?i?B"
    r"|failed to map segment from shared object|not enough memory: you tried to"
    r"|[Cc]annot allocate memory(?! in static TLS)|can't allocate memory",
    re.MULTILINE,
)
#: What they write when they do not say why; under a limit of the process it is that.
_WORDS_UNDER_LIMIT = re.compile(
    r"^SystemError: |can't start new thread|pthread_create failed|^Return code: (?:-6|-11|134|139)$",
    re.MULTILINE,
)


def free_memory_gb(
    *, proc: str | os.PathLike = "/proc", cgroups: str | os.PathLike = "/sys/fs/cgroup"
) -> float:
    """Return the memory (GB) that this process could take without swapping and without being killed for it.

    That is what the machine has available, or what is left to the process's control group (a container, a
    SLURM job) if that is less. Memory that a group uses as file cache counts as left, since the kernel gives
    it up.

    Parameters
    ----------
    proc, cgroups
        Where the kernel shows its state.

    Returns
    -------
    float
        Half of the machine's memory where the kernel shows no such state (macOS).
    """
    proc = Path(proc)
    free = [_machine_bytes(proc), *(_left(group, version) for group, version in _groups(proc, Path(cgroups)))]
    limits = process_limits()
    if limits:
        free.append(max(min(limits) - _address_space_bytes(proc), 0))
    return min(value for value in free if value is not None) / 1e9


def most_memory_gb(
    *, proc: str | os.PathLike = "/proc", cgroups: str | os.PathLike = "/sys/fs/cgroup"
) -> float:
    """Return the memory (GB) that this process could have at most: the machine's, or that of its control
    group or its own limit (``ulimit -v``) if less.
    """
    most = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *process_limits()]
    for group, version in _groups(Path(proc), Path(cgroups)):
        try:
            file = "memory.max" if version == 2 else "memory.limit_in_bytes"
            most.append(int((group / file).read_text()))
        except (OSError, ValueError, MemoryError):  # not there, or "max"
            continue
    return min(most) / 1e9


def process_limits() -> list[int]:
    """Limits of this process's own memory, in bytes."""
    limits = [resource.getrlimit(kind)[0] for kind in _OF_PROCESS]
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def tells_of_memory(told: BaseException | str) -> bool:
    """Return whether an exception, or what a process has left on its standard error, tells that there was not
    enough memory.
    """
    if isinstance(told, MemoryError):
        return True
    if isinstance(told, BaseException):
        before = told.__cause__ or told.__context__  # numpy, for one, gives a reason of its own
        if before is not None and tells_of_memory(before):
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
        About what the step needs, where that is known.
    seen
        What was seen, where that is no proof.
    advice
        What would take less.
    """
    has_gb = most_memory_gb()
    about_gb = max(needs_gb or 0.0, USUAL_GB)  # a step states no more than its share of what there is
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
    """Make sure that the limit of this process (``ulimit -v``) leaves room for the libraries.

    Below `least_gb` they do not load, and some wait for ever instead of saying so.

    Parameters
    ----------
    least_gb
        Limit that is just enough to begin.
    needs_gb, advice
        As for `too_little_memory`.

    Raises
    ------
    NotEnoughMemory
        It does not.
    """
    if any(limit < least_gb * 1e9 for limit in process_limits()):
        raise NotEnoughMemory(too_little_memory(needs_gb, advice=advice))


def peak_memory_gb() -> float:
    """Return the most memory (GB, resident) that this process has held so far."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            # Unlike ru_maxrss it does not go on from the process that started this one.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    except OSError:
        pass  # no such file outside Linux
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def resident_memory_gb() -> float:
    """Return the memory (GB, resident) that this process holds now; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("the kernel does not state this process's memory")


def reset_peak_memory() -> None:
    """Let `peak_memory_gb` begin anew; Linux only (see proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def _address_space_bytes(proc: Path) -> int:
    try:
        return int((proc / "self" / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _machine_bytes(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no such file outside Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _groups(proc: Path, cgroups: Path) -> list[tuple[Path, int]]:
    """Folders of the memory control groups that this process is in, or that hold those; with the version."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = cgroups, 2
        elif "memory" in controllers.split(","):
            root, version = cgroups / "memory", 1
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path can be the host's, which is not there; the group itself is at the root then.
        found += [
            (folder, version)
            for folder in (group, *group.parents)
            if folder == root or root in folder.parents
        ]
    return found


def _left(group: Path, version: int) -> int | None:
    """Return the bytes that a control group may still take; None when it has no limit."""
    limit, usage, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not there, or "max"
        return None
    return None if most >= _NO_LIMIT else max(most - used + int(stat.get(cache, 0)), 0)
