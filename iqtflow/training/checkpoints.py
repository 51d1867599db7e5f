"""Checkpoints of a training: complete or not written at all; only the same training continues from them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from iqtflow.utils.errors import InputError, OutputError
from iqtflow.utils.files import write_atomically, write_text

#: Files in the folder of checkpoints.
BEST, LAST, SETTINGS, CURVES, LOG = "best.ckpt", "last.ckpt", "settings.json", "curves.csv", "training.log"
_MARK = b"iqtflow-sha256:"  # at the end of a checkpoint, before the SHA-256 of its content
#: Parts of a checkpoint that Lightning and this package read, and their types.
_PARTS = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
    "iqtflow": dict,
}
_RECORD = ("curves", "non_finite", "interruptions", "seconds")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint and its digest under a temporary name in the same folder, then renames it.

    Lightning's own writer uses the system's temporary folder. If that is another file system, a kill can
    leave an incomplete file under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; OutputError when the disk is full or the folder is missing."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        content.write(_MARK + hashlib.sha256(content.getbuffer()).hexdigest().encode())
        guard(path, lambda: write_atomically(path, lambda stream: stream.write(content.getbuffer())))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint; no code in it is run."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def guard(path: str | os.PathLike, write: Callable[[], Any]) -> None:
    """Call `write`; where it fails, name the file and say how to continue.

    Raises
    ------
    OutputError
        The disk or a quota is full, or the folder is missing or read-only.
    """
    try:
        write()
    except OutputError as fault:
        raise OutputError(
            path,
            found=f"a full disk, or a folder that cannot be written ({fault.found})",
            expected="space for the checkpoint",
            next_step="Free some space, or make the folder writable. Then run the same command again: it "
            "continues from the last complete checkpoint.",
        ) from fault


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint on the CPU; also one of an older version, without a digest.

    Raises
    ------
    InputError
        It is missing, damaged or altered, is not a checkpoint of iqtflow, or holds weights that are not
        finite.
    """
    try:
        content, mark, stated = Path(path).read_bytes().rpartition(_MARK)
        if not mark:  # written by an older version
            content = stated
        elif hashlib.sha256(content).hexdigest().encode() != stated:
            raise ValueError("it was altered or damaged after it was written")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as fault:
        raise _refuse(path, f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}") from fault
    if not isinstance(checkpoint, dict):
        raise _refuse(path, f"a {type(checkpoint).__name__}")
    lacks = [name for name, kind in _PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    record = checkpoint.get("iqtflow")
    lacks += [f"iqtflow.{name}" for name in _RECORD if isinstance(record, dict) and name not in record]
    if lacks:
        raise _refuse(path, f"a file without {', '.join(lacks)}")
    for name in ("state_dict", "optimizer_states"):
        if not _is_finite(checkpoint[name]):
            raise _refuse(path, f"numbers in {name} that are not finite")
    return checkpoint


def require_fit(path: str | os.PathLike, checkpoint: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint holds the weights of this network.

    Parameters
    ----------
    path
        File of the checkpoint, for the message.
    checkpoint
        Its content, from `read_checkpoint`.
    state
        State dictionary of the module that is trained.

    Raises
    ------
    InputError
        A weight has another name or shape.
    """
    found, wanted = (
        {name: tuple(getattr(value, "shape", ())) for name, value in one.items()}
        for one in (checkpoint["state_dict"], state)
    )
    differs = next((name for name in {**wanted, **found} if found.get(name) != wanted.get(name)), None)
    if differs is not None:
        raise _refuse(path, f"weights of another network ({differs}: {found.get(differs)})")


def _is_finite(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    if isinstance(values, dict):
        return all(map(_is_finite, values.values()))
    return all(map(_is_finite, values)) if isinstance(values, (list, tuple)) else True


def _refuse(path: str | os.PathLike, found: str) -> InputError:
    # Without last.ckpt a training begins again; without best.ckpt it cannot be completed.
    delete = "its folder" if Path(path).name == BEST else Path(path).name
    return InputError(
        path,
        found=found,
        expected="a complete checkpoint of iqtflow",
        next_step=f"Restore it from a copy, or delete {delete} to begin again.",
    )


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Mark a folder as that of a training, or check that it is; delete incomplete files of a killed run.

    Parameters
    ----------
    folder
        Folder of checkpoints.
    identity
        All settings that decide the weights, JSON-ready.

    Raises
    ------
    InputError
        The folder holds checkpoints of another training (the settings that differ are named), or other files.
    OutputError
        The folder cannot be written.
    """
    note = folder / SETTINGS
    text = json.dumps(identity, indent=1, sort_keys=True)
    if note.exists():
        try:
            before = dict(json.loads(note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as fault:
            raise InputError(
                note,
                found=f"{type(fault).__name__}: {fault}",
                expected="the settings of the training that wrote these checkpoints",
                next_step="Delete the folder to begin again.",
            ) from fault
        changed = list(_differences(before, json.loads(text)))
        if changed:
            raise InputError(
                folder,
                found=f"checkpoints of another training ({'; '.join(changed)})",
                expected="checkpoints of this training, or none",
                next_step="Use the old settings, or choose another work directory or model name.",
            )
    else:
        foreign = [name for name in (BEST, LAST, CURVES) if os.path.lexists(folder / name)]
        if foreign:
            raise InputError(
                folder / foreign[0],
                found=f"a file that training would replace, and no {SETTINGS} in its folder",
                expected="the folder of this training, or a new one",
                next_step="Choose another folder for the checkpoints, or move this file.",
            )
        guard(note, lambda: write_text(note, text))
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _differences(before: Any, now: Any, name: str = "") -> Any:
    """Yield ``name: before -> now`` for each setting that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name}: {before} -> {now}"
