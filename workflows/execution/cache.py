"""Results of earlier runs: they are used only if their files have not changed.

nipype counts a step as done if a file with the hash of its inputs exists, and does not look at the outputs.
After a power cut, or if someone changed a file, it would use wrong results. So each step that succeeds also
writes the digests of its outputs, and they are compared before a result is used again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Node

from iqtflow.utils.errors import InputError
from iqtflow.utils.files import write_text
from iqtflow.workflows.execution.nipype_config import hash_file

#: Beside the results of each step.
DIGESTS = "_digests.json"


def seal(node: Node) -> None:
    """Write the digests of the outputs of a step that succeeded; without them it runs again in the next run.

    Parameters
    ----------
    node
        A node that has run, with the hashes of its inputs from before the run.

    Raises
    ------
    InputError
        An input has changed since the step began: it is not known which of the two files was read.
    """
    folder = Path(node.output_dir())
    by_content = node.config["execution"]["hash_method"] == "content"  # other hashes are no digests
    for path, digest in _hashed_files(node._hashed_inputs) if by_content else ():
        if hash_file(path) != digest:
            forget(folder)
            raise InputError(
                path,
                found="another content than before this step" if os.path.exists(path) else "no file any more",
                expected="a file that stays as it is while it is processed",
                next_step="Wait until nothing writes to it, then run the same command again.",
            )
    result = folder / f"result_{node.name}.pklz"
    outputs = node.result.outputs
    produced = _files_in(outputs.get() if outputs is not None and hasattr(outputs, "get") else {}, folder)
    digests = {os.path.relpath(path, folder): hash_file(os.fspath(path)) for path in {result, *produced}}
    write_text(folder / DIGESTS, json.dumps({"inputs": node._hashvalue, "outputs": digests}, sort_keys=True))


def is_sound(folder: str | os.PathLike) -> bool:
    """Return whether the results in a step's folder are unchanged; print a line if one has changed.

    Each file is read once: nipype's hash of the same file, as an input of another step, is the same
    (`iqtflow.workflows.execution.nipype_config.hash_file`).
    """
    folder = Path(folder)
    try:
        noted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        inputs, digests = noted["inputs"], dict(noted["outputs"])
    except (OSError, ValueError, KeyError, TypeError):  # not complete, or damaged
        return False
    if not digests or not (folder / f"_0x{inputs}.json").is_file():
        return False
    wrong = sorted(name for name, digest in digests.items() if hash_file(os.fspath(folder / name)) != digest)
    if wrong:
        print(f"iqtflow: {folder / wrong[0]}: changed since it was made; this step runs again", flush=True)
    return not wrong


def forget(folder: str | os.PathLike) -> None:
    """Make a step run again."""
    for hash_file_of_inputs in Path(folder).glob("_0x*.json"):
        hash_file_of_inputs.unlink(missing_ok=True)
    Path(folder, DIGESTS).unlink(missing_ok=True)


def _hashed_files(value: Any) -> Iterator[tuple[str, str]]:
    """Yield files and their hashes from nipype's list of hashed inputs, in which a file is a pair of both."""
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
        path, digest = value
        if os.path.isabs(path) and len(digest) == 32:
            yield path, digest
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _hashed_files(part)


def _files_in(value: Any, folder: Path) -> Iterator[Path]:
    """Yield the files among outputs that lie in a step's own folder; others are inputs and hashed as such."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _files_in(part, folder)
    elif isinstance(value, (str, os.PathLike)) and os.path.isabs(value):
        path = Path(os.path.realpath(Path(value).parent), Path(value).name)
        if folder in path.parents:
            found = [path] if path.is_file() else path.rglob("*") if path.is_dir() else ()
            yield from (file for file in found if file.is_file())
