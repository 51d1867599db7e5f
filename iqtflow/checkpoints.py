"""Checkpoints of a training: written whole or not at all, and continued by the same training only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from iqtflow.errors import InputError, OutputError
from iqtflow.files import write_atomically, write_text

#: Files in the folder of checkpoints.
BEST, LAST, SETTINGS, CURVES, LOG = "best.ckpt", "last.ckpt", "settings.json", "curves.csv", "training.log"


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its final place, waits until it is on the disk, and renames it.

    Lightning's own writer fills a file in the system's folder for temporary files first: where that is
    another file system, the file appears under its final name piece by piece, and a kill leaves half of one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; OutputError when the disk is full or the folder is gone."""

        def fill(stream: Any) -> None:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())

        guard(path, lambda: write_atomically(path, fill))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint, which runs no code."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def guard(path: str | os.PathLike, write: Any) -> None:
    """Write something; OutputError names the file when that fails, and says that nothing is lost.

    Raises
    ------
    OutputError
        The disk or a quota is full, or the folder is gone or read-only.
    """
    try:
        write()
    except (OSError, RuntimeError) as fault:
        cause = fault if isinstance(fault, OSError) else fault.__context__
        # torch wraps what its writer met: a short write becomes a RuntimeError.
        if not isinstance(cause, OSError) and "write" not in str(fault):
            raise
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(fault)
        raise OutputError(
            path,
            found=f"a disk that took no more ({reason.splitlines()[0]})",
            expected="room for the checkpoint",
            next_step="Free some space: the same command goes on from the last whole checkpoint.",
        ) from fault


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint on the CPU.

    Raises
    ------
    InputError
        It is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}",
            expected="a whole checkpoint of iqtflow",
            next_step=f"Restore it from a copy, or delete {Path(path).name} to begin again.",
        ) from fault


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder this training's, or make sure that it is; remove what an earlier kill left half-written.

    Parameters
    ----------
    folder
        Folder of checkpoints.
    identity
        All that decides the weights, JSON-ready.

    Raises
    ------
    InputError
        It holds checkpoints of another training; what differs is named.
    OutputError
        It cannot be written.
    """
    note = folder / SETTINGS
    text = json.dumps(identity, indent=1, sort_keys=True)
    if note.exists():
        before = _read_note(note)
        changed = list(_differences(before, json.loads(text)))
        if changed:
            raise InputError(
                folder,
                found=f"checkpoints of another training ({'; '.join(changed)})",
                expected="checkpoints of this one, or none",
                next_step="Restore the settings, or choose another work directory or model name.",
            )
    else:
        guard(note, lambda: write_text(note, text))
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _read_note(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(
            note,
            found=f"{type(fault).__name__}: {fault}",
            expected="the settings of the training whose checkpoints these are",
            next_step="Delete the folder to begin again.",
        ) from fault


def _differences(before: Any, now: Any, name: str = "") -> Any:
    """Yield ``name: before -> now`` for each setting that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: {before} -> {now}"
