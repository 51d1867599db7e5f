"""Check, before the work begins, which files a command may write.

A command replaces an existing file only if it made the file itself and nobody has changed the file since. Any
other file is replaced only with ``--overwrite``. An input is never replaced.

Images (field ``descrip`` of the header) and JSON files (``GeneratedBy``) name the command that made them and
hold a digest of the rest of the file. Models hold a digest in their card. Tables, pictures and ``.npy`` files
have no digest and are recognised by their form, so changes in them are lost.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqtflow.utils.errors import OutputError, UsageError

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np

#: Endings of the kinds of files that commands write.
IMAGE, JSON, FIGURE = (".nii.gz", ".nii"), (".json",), (".png",)
TABLE, MODEL, PAIRS = (".csv",), (".safetensors",), (".npy",)

Endings = tuple[str, ...]

MODEL_DIGEST = "content_sha256"  #: field of a model's card: the digest of its other fields and its tensors


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``. Its help states the rule."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace output files that exist. Without it an image, a JSON file or a model is replaced "
        "only if this command made it and nobody has changed it since; a table (.csv), a picture or a .npy "
        "file, if it has the form of those that this command makes. Inputs are never replaced",
    )


def check_outputs(
    prog: str,
    outputs: Mapping[str, tuple[str | os.PathLike | None, Endings]],
    *,
    inputs: Iterable[str | os.PathLike | None] = (),
    overwrite: bool = False,
) -> None:
    """Check that a command may and can write all its files, before its work begins.

    Parameters
    ----------
    prog
        Name of the command.
    outputs
        For each option the file to write (None: not asked for), and the endings that are written.
    inputs
        Every file that the command reads, whether it exists or not.
    overwrite
        Replace files that the command did not make.

    Raises
    ------
    UsageError
        An output is an input or another output (also through links), is a folder, has another ending, or
        exists and may not be replaced.
    OutputError
        Its folder cannot be made or written.
    """
    asked = {option: (Path(path), ends) for option, (path, ends) in outputs.items() if path is not None}
    seen = {f"the input {path}": Path(path) for path in inputs if path is not None}
    for option, (path, endings) in asked.items():
        what = f"{option} {path}"
        if not path.name.endswith(endings) or path.name in endings:
            raise UsageError(
                what,
                found=f"a name that ends in {''.join(path.suffixes[-2:]) or 'no extension'}",
                expected=f"a name that ends in {' or '.join(endings)}",
                next_step="Choose a name with this ending.",
            )
        for other, place in seen.items():
            if same_file(path, place):
                raise UsageError(
                    what,
                    found=other,
                    expected="a file of its own; an input is never replaced",
                    next_step=f"Choose another name for {option}.",
                )
        seen[f"the same file as {option}"] = path
        _require_writable(path)
        if os.path.lexists(path):
            _require_replaceable(prog, option, path, overwrite=overwrite)


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, also through links. They need not exist."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _require_writable(path: Path) -> None:
    """Check that a file can be written in its folder, which may have to be made."""
    folder = path.absolute().parent
    try:
        while not os.path.lexists(folder):
            folder = folder.parent
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in path.absolute().parts):
            raise OutputError(
                path,
                found="a name that is too long for its disk",
                expected=f"names of at most {longest} bytes",
                next_step="Choose a shorter name.",
            )
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".iqtflow-"):
            pass
    except OSError as fault:
        raise OutputError(
            path,
            found=f"a folder that cannot be made or written ({folder}: {fault.strerror or fault})",
            expected="a writable folder",
            next_step="Choose another output, or change the permissions of the folder.",
        ) from fault


def _require_replaceable(prog: str, option: str, path: Path, *, overwrite: bool) -> None:
    if not path.is_file():
        kind = (
            "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
        )
        raise UsageError(
            f"{option} {path}",
            found=kind,
            expected="the name of a file",
            next_step=f"Choose another name for {option}.",
        )
    if not overwrite and not is_made_by(prog, path):
        raise UsageError(
            f"{option} {path}",
            found=f"an existing file that {prog} did not make, or that was changed since",
            expected=f"a new name, or a file that {prog} made",
            next_step=f"Choose another name for {option}, or add --overwrite to replace this file.",
        )


def is_made_by(prog: str, path: Path) -> bool:
    """Return whether a command made a file and nobody has changed it since; False if that is unknown."""
    try:
        if path.name.endswith(IMAGE):
            return _is_marked_image(prog, path)
        if path.name.endswith(JSON):
            fields = json.loads(path.read_text(encoding="utf-8"))
            return fields.pop("GeneratedBy") == _maker(prog, fields)
        if path.name.endswith(MODEL):
            return _is_whole_model(path)
        with open(path, "rb") as stream:
            return _FORMS[path.suffix].replace(b"PROG", prog.encode()) in stream.read(1024)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zlib.error):
        return False
    except (RecursionError, MemoryError):
        return False


#: Bytes near the beginning of other kinds of files.
_FORMS = {
    ".png": b"Software\0PROG",
    ".csv": b"step,train_loss,val_loss,learning_rate,seconds\n",
    ".npy": b"'descr': [('low', '<f2', (",
}


def signed(prog: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON file with the command that makes it and their digest."""
    fields = {key: value for key, value in fields.items() if key != "GeneratedBy"}
    return {**fields, "GeneratedBy": _maker(prog, fields)}


def _maker(prog: str, fields: Mapping[str, Any]) -> list[dict[str, str]]:
    # In the form of BIDS. Without the version, so that a new version may replace files of an older one.
    text = json.dumps(fields, sort_keys=True)
    return [{"Name": prog, "ContentSHA256": hashlib.sha256(text.encode()).hexdigest()}]


def marked_image(prog: str, image: nib.Nifti1Image) -> memoryview:
    """Return the bytes of an image. ``descrip`` holds the command that makes it and a digest of the rest."""
    stream = io.BytesIO()
    image.to_stream(stream)
    content = stream.getbuffer()
    begin = image.header.structarr.dtype.fields["descrip"][1]
    content[begin : begin + _MARK_BYTES] = _mark(prog, content, begin)
    return content


def model_digest(tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex digits) of a model's tensors and of its card without the digest itself."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    fields = {key: value for key, value in card.items() if key != MODEL_DIGEST}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _is_whole_model(path: Path) -> bool:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError:
        return False
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    card = json.loads(header["__metadata__"]["iqtflow"])
    # Models of older versions hold no digest.
    return "format" in card and card.get(MODEL_DIGEST) in (None, model_digest(tensors, card))


_MARK_BYTES = 80  # length of the field descrip
_MARK_AT = {348: 148, 540: 240}  # its first byte, by the size of the header: NIfTI-1, NIfTI-2


def _is_marked_image(prog: str, path: Path) -> bool:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        head = stream.read(640)
        begin = _MARK_AT[min(int.from_bytes(head[:4], order) for order in ("little", "big"))]
        if not head[begin:].startswith(prog.encode()):
            return False
        content = head + stream.read()
    return content[begin : begin + _MARK_BYTES] == _mark(prog, memoryview(content), begin)


def _mark(prog: str, content: memoryview, begin: int) -> bytes:
    digest = hashlib.sha256(content[:begin])
    digest.update(content[begin + _MARK_BYTES :])
    return f"{prog} sha256:{digest.hexdigest()[:32]}".encode().ljust(_MARK_BYTES, b"\0")
