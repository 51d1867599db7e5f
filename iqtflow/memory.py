"""How much memory is free for this process right now, and how much it has taken at most."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

#: Largest number that stands for a limit; control groups (version 1) write a larger one for "none".
_NO_LIMIT = 1 << 60


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
    return min(value for value in free if value is not None) / 1e9


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
