"""A model file: weights, and all that is needed to use them, in one safetensors file that runs no code.

The tensors are called ``member0/NAME``, ``member1/NAME``, ... for the networks of the ensemble. The metadata
hold the *card* (`iqtflow.models.card`), a JSON text under the key ``iqtflow``: name, upsampling factor,
network and its settings, normalisation, geometry, the simulator's settings, training subjects, figures. There
is only one key, because safetensors writes several in random order, and the same model must give the same
bytes. Weights are stored in half precision. Running statistics of batch normalisation keep single precision,
because their range is too large for half precision.

A maintainer ships a model with `register_shipped`. It copies the model into ``iqtflow/models/weights`` and
pins its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

import iqtflow
from iqtflow.models.card import (
    FORMAT,
    REQUIRED,
    Card,
    check_card,
    check_network,
    fitting,
    not_whole,
    read_header,
    refuse,
)
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import require_name, sha256_of, write_atomically, write_text
from iqtflow.utils.outputs import MODEL_DIGEST, model_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = Path(__file__).with_name("weights")  #: folder of the models that ship


@dataclass(frozen=True)
class ModelInfo:
    """A model that ships: name, file, upsampling factor, contrast (BIDS suffix), and the file's SHA-256."""

    name: str
    path: Path
    k: int
    contrast: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """A model in memory: its card, its networks on the CPU, its file and the file's SHA-256."""

    card: Card
    members: list[nn.Module]
    path: Path
    sha256: str

    @property
    def k(self) -> int:
        """Upsampling factor."""
        return self.card.k


def save_model(
    path: str | os.PathLike, members: Sequence[Mapping[str, torch.Tensor]], card: Mapping[str, Any]
) -> Path:
    """Write a model; the same weights and card give the same bytes.

    Parameters
    ----------
    path
        A ``.safetensors`` file.
    members
        State dictionary of each network.
    card
        Fields of the card; format, number of networks and package version are added.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        A weight is not finite, or the card lacks a field.
    OutputError
        The file cannot be written.
    """
    tensors = {
        f"member{i}/{name}": value.detach().cpu().numpy()
        for i, member in enumerate(members)
        for name, value in member.items()
    }
    return _write(path, tensors, {**card, "n_members": len(members)})


def load_model(path: str | os.PathLike, *, expected_sha256: str | None = None) -> Model:
    """Read a model and build its networks.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or the name of a model that ships.
    expected_sha256
        SHA-256 that the file must have. For models that ship it is always checked.

    Returns
    -------
    Model

    Raises
    ------
    InputError
        The file is missing, cut short or altered, is not a model of iqtflow, or needs another version.
    """
    from iqtflow.models.registry import build_network

    path, pinned = find_model(path)
    tensors, card, digest = _read(path, expected_sha256=expected_sha256 or pinned, build=True)
    import torch

    members = []
    for i in range(card.n_members):
        prefix = f"member{i}/"
        state = {
            name.removeprefix(prefix): torch.from_numpy(
                value.astype("f4" if value.dtype == "f2" else value.dtype)
            )
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        with fitting(path, card):
            network = build_network(card["network"]["name"], **card["network"]["kwargs"])
            network.load_state_dict(state)
        members.append(network.eval().requires_grad_(False))
    return Model(card, members, Path(path).absolute(), digest)


def read_card(path: str | os.PathLike) -> Card:
    """Return a model's card, after all checks of `load_model` except those of the network.

    Raises
    ------
    InputError
        As `load_model`.
    """
    path, pinned = find_model(path)
    return _read(path, expected_sha256=pinned)[1]


def join_models(
    path: str | os.PathLike,
    members: Sequence[str | os.PathLike],
    *,
    name: str,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Join models to an ensemble of all their networks.

    Parameters
    ----------
    path
        The model to write.
    members
        Models of the same network and k.
    name
        Name of the ensemble.
    training
        More fields for the card's section on training. The section of each model is kept under ``members``.

    Raises
    ------
    InputError
        The members' networks, factors, contrasts or normalisations differ; or as `load_model`.
    """
    parts = [_read(p) for p in members]
    first = parts[0][1]
    tensors: dict[str, np.ndarray] = {}
    count = 0
    for file, (arrays, card, _) in zip(members, parts, strict=True):
        for key in ("k", "network", "normalisation", "geometry", "contrast"):
            if card[key] != first[key]:
                raise refuse(file, f"{key} {card[key]}", f"that of the first member, {first[key]}")
        for array_name, value in arrays.items():
            member, rest = array_name.split("/", 1)
            tensors[f"member{count + int(member.removeprefix('member'))}/{rest}"] = value
        count += card.n_members
    facts = {"members": [card.training for _, card, _ in parts], **(training or {})}
    # Figures of one member do not hold for the ensemble.
    shared = {key: value for key, value in first.items() if key != "figures" or len(parts) == 1}
    return _write(path, tensors, {**shared, "name": name, "n_members": count, "training": facts})


def stamp_figures(source: str | os.PathLike, path: str | os.PathLike, figures: Mapping[str, Any]) -> Path:
    """Copy a model with figures on evaluation subjects in its card; the weights stay as they are.

    Raises
    ------
    InputError
        A subject of the figures (field ``subjects``) is a training or validation subject; or as `load_model`.
    """
    tensors, card, _ = _read(source)
    both = sorted(card.subjects().intersection(figures.get("subjects", [])))
    if both:
        raise refuse(
            source,
            f"figures on sub-{', sub-'.join(both)}, a training or validation subject",
            "figures on unseen subjects",
            "Correct the split.",
        )
    return _write(path, tensors, {**card, "figures": dict(figures)})


def stamp_familiar(source: str | os.PathLike, path: str | os.PathLike, reference: Mapping[str, Any]) -> Path:
    """Copy a model with the ranges of its training scans in its card (`iqtflow.inference.ood`).

    Raises
    ------
    InputError
        As `load_model`.
    """
    tensors, card, _ = _read(source)
    return _write(path, tensors, {**card, "familiar": dict(reference)})


def list_shipped() -> list[ModelInfo]:
    """Return the models that ship with the package, by contrast and factor, from ``weights/index.json``.

    Examples
    --------
    >>> [model.name for model in list_shipped() if model.contrast == "T1w" and model.k == 4]
    ['iqt-k4']
    """
    entries = json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8"))["models"]
    return [ModelInfo(e["name"], WEIGHTS / e["file"], e["k"], e["contrast"], e["sha256"]) for e in entries]


def find_model(name_or_path: str | os.PathLike) -> tuple[Path, str | None]:
    """Return the file of a model, and its pinned SHA-256 if the model ships.

    Parameters
    ----------
    name_or_path
        Name of a model that ships, or path of any model.

    Raises
    ------
    InputError
        There is neither a model that ships of this name nor such a file.
    """
    key, shipped = os.fspath(name_or_path), list_shipped()
    for info in shipped:
        if key == info.name or Path(key).absolute() == info.path:
            return info.path, info.sha256
    if not os.path.isfile(key):
        names = ", ".join(info.name for info in shipped) or "none ships"
        raise InputError(
            key,
            found="no such file, and no shipped model of this name",
            expected=f"a model that ships ({names}), or a .safetensors file",
            next_step="See iqtflow --list-models.",
        )
    return Path(key), None


def register_shipped(path: str | os.PathLike) -> ModelInfo:
    """Copy a model into the package's ``weights`` folder and pin its SHA-256 (for maintainers).

    A model of the same name is replaced.

    Parameters
    ----------
    path
        The model to ship. It is read, and its networks are built, first.

    Returns
    -------
    ModelInfo

    Raises
    ------
    InputError
        As `load_model`.
    """
    model = load_model(path)
    content = model.path.read_bytes()
    name = require_name(model.card.name, "name in the model's card")
    file = f"{name}.safetensors"
    entry: dict[str, Any] = {
        "name": name,
        "file": file,
        "k": model.k,
        "contrast": model.card.contrast,
        "sha256": model.sha256,
    }
    index = WEIGHTS / "index.json"
    others = [e for e in json.loads(index.read_text(encoding="utf-8"))["models"] if e["name"] != name]
    entries = sorted([*others, entry], key=lambda e: (e["contrast"], e["k"], e["name"]))
    write_atomically(WEIGHTS / file, lambda stream: stream.write(content))
    write_text(index, json.dumps({"models": entries}, indent=1) + "\n")
    return ModelInfo(name, WEIGHTS / file, model.k, entry["contrast"], model.sha256)


def _write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> Path:
    card = {**card, "format": FORMAT, "package_version": iqtflow.__version__}
    missing = [key for key in REQUIRED if key not in card]
    if missing:
        raise refuse(path, f"a card without {', '.join(missing)}", "a whole card", "Complete the card.")
    stored = {name: np.ascontiguousarray(_half(path, name, value)) for name, value in tensors.items()}
    card[MODEL_DIGEST] = model_digest(stored, card)
    content = save(stored, metadata={"iqtflow": json.dumps(card, sort_keys=True)})
    return write_atomically(path, lambda stream: stream.write(content))


def _half(path: str | os.PathLike, name: str, value: np.ndarray) -> np.ndarray:
    """Convert to half precision where this is precise enough for inference."""
    if value.dtype.kind != "f":
        return value
    _check_finite(path, name, value, "Train it again.")
    if "running_" in name or np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        return value.astype(np.float32)
    return value.astype(np.float16)


def _check_finite(path: str | os.PathLike, name: str, value: np.ndarray, *next_step: str) -> None:
    """Make sure that all weights of a tensor are finite; InputError names the tensor."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        count = np.count_nonzero(~np.isfinite(value))
        raise refuse(path, f"{count} weights of {name} that are not finite", "finite weights", *next_step)


def _read(
    path: str | os.PathLike, *, expected_sha256: str | None = None, build: bool = False
) -> tuple[dict[str, np.ndarray], Card, str]:
    """Read tensors, card and SHA-256 of the file, all from one reading, after a check of its header.

    With `build` the weights must also be those of the network that the card names. Files of older versions,
    without a digest in the card, are read as well.
    """
    if expected_sha256 is not None:
        _require_pin(path, expected_sha256)
    announced, shapes = read_header(path)
    check_card(path, announced, shapes)
    if build:
        check_network(path, Card(announced), shapes)
    try:
        content = Path(path).read_bytes()
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        card = Card(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["iqtflow"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as fault:
        raise not_whole(path, fault) from fault
    if card != announced or {name: value.shape for name, value in tensors.items()} != shapes:
        raise refuse(path, "a file that changed while it was read", "the same file all the time")
    if card.get(MODEL_DIGEST) not in (None, model_digest(tensors, card)):
        raise refuse(path, "weights or card that were altered", "the content that was written")
    for name, value in tensors.items():
        _check_finite(path, name, value)
    return tensors, card, hashlib.sha256(content).hexdigest()


def _require_pin(path: str | os.PathLike, expected: str) -> None:
    """Make sure that a file has the SHA-256 that the package pins."""
    try:
        digest = sha256_of(path)
    except OSError as fault:
        raise refuse(path, f"{type(fault).__name__} ({fault.strerror})", "a readable model file") from fault
    if digest != expected:
        raise refuse(
            path,
            f"SHA-256 {digest[:16]}... (the file was altered or cut short)",
            f"{expected[:16]}..., which the package pins",
            "Install the package again.",
        )
