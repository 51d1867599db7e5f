"""A model on disk: weights and everything needed to use them, in one safetensors file that runs no code when
read.

The tensors are called ``member0/NAME``, ``member1/NAME``, ... for the networks of the ensemble. The metadata
hold one JSON text under the key ``iqtflow``, the *card*: name, up-scaling factor, network and its settings,
normalisation, geometry, the simulator's settings, training subjects, figures. (One key, because safetensors
writes several in random order, and the same model has to give the same bytes.) Weights are stored in half
precision; running statistics of batch normalisation span too many decades for it and keep single precision.

A maintainer ships a model with `register_shipped`, which copies it into ``iqtflow/models/weights`` and pins
its SHA-256.
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
from iqtflow.models.model_checks import (
    FORMAT,
    REQUIRED,
    build_member,
    check_card,
    check_finite,
    check_network,
    read_header,
    refuse,
)
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import require_name, write_atomically
from iqtflow.utils.outputs import MODEL_DIGEST, model_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = Path(__file__).with_name("weights")  #: where models are that ship


@dataclass(frozen=True)
class ModelInfo:
    """A model that ships; `sha256` is its file's, pinned by the package, `contrast` a BIDS suffix."""

    name: str
    path: Path
    k: int
    contrast: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """A model in memory: what its file says about itself, and its networks, ready for use on the CPU."""

    card: dict[str, Any]
    members: list[nn.Module]
    path: Path
    sha256: str

    @property
    def k(self) -> int:
        """Up-scaling factor."""
        return self.card["k"]


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
        Fields of the card; format, number of members and package version are added.

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
        What the file has to be, bit for bit. Models that ship are held to the package's own index in any
        case.

    Returns
    -------
    Model

    Raises
    ------
    InputError
        Missing, cut short, altered or foreign file, or a model that this version cannot use.
    """
    path, pinned = find_model(path)
    tensors, card, digest = _read(path, expected_sha256=expected_sha256 or pinned, build=True)
    import torch

    members = []
    for i in range(card["n_members"]):
        prefix = f"member{i}/"
        state = {
            name.removeprefix(prefix): torch.from_numpy(
                value.astype("f4" if value.dtype == "f2" else value.dtype)
            )
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        members.append(build_member(path, card, state))
    return Model(card, members, Path(path).absolute(), digest)


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """Return a model's card, after the checks of `load_model` that need no network.

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
    """Join models into one whose members are all of theirs.

    Parameters
    ----------
    path
        The model to write.
    members
        Models of one network and one k.
    name
        Its name.
    training
        More fields for the card's section on training; that of each member is kept under ``members``.

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
        count += card["n_members"]
    facts = {"members": [card.get("training", {}) for _, card, _ in parts], **(training or {})}
    # Figures are those of one member alone.
    shared = {key: value for key, value in first.items() if key != "figures" or len(parts) == 1}
    return _write(path, tensors, {**shared, "name": name, "n_members": count, "training": facts})


def known_subjects(card: Mapping[str, Any]) -> set[str]:
    """Return the labels of all who trained a model, or decided when its training ended; also of those who
    trained the weights that it began with, and so on.
    """
    found: set[str] = set()
    trainings = [card.get("training", {})]
    while trainings:
        facts = trainings.pop()
        for part in ("training_subjects", "validation_subjects"):
            found.update(facts.get(part, []))
        trainings += [*facts.get("members", []), *([facts["before"]] if "before" in facts else [])]
    return found


def stamp_figures(source: str | os.PathLike, path: str | os.PathLike, figures: Mapping[str, Any]) -> Path:
    """Copy a model with figures on evaluation subjects in its card; the weights stay as they are.

    Raises
    ------
    InputError
        A subject of the figures (``subjects``, where they tell) was trained on; or as `load_model`.
    """
    tensors, card, _ = _read(source)
    both = sorted(known_subjects(card).intersection(figures.get("subjects", [])))
    if both:
        raise refuse(
            source,
            f"figures on sub-{', sub-'.join(both)}, which it was trained on",
            "figures on people that it has never seen",
            "Correct the split.",
        )
    return _write(path, tensors, {**card, "figures": dict(figures)})


def list_shipped() -> list[ModelInfo]:
    """Return the models that come with the package, by contrast and factor, as ``weights/index.json`` lists
    them.

    Examples
    --------
    >>> [model.name for model in list_shipped() if model.contrast == "T1w" and model.k == 4]
    ['iqt-k4']
    """
    entries = json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8"))["models"]
    return [ModelInfo(e["name"], WEIGHTS / e["file"], e["k"], e["contrast"], e["sha256"]) for e in entries]


def find_model(name_or_path: str | os.PathLike) -> tuple[Path, str | None]:
    """Return the file of a model, and its pinned SHA-256 when it is one that ships.

    Parameters
    ----------
    name_or_path
        Name of a model that ships, or path of any model.

    Raises
    ------
    InputError
        Neither a shipped model's name nor a file.
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
    """Put a model into the package's ``weights`` folder and pin its SHA-256: for maintainers, after a
    training.

    A model of the same name is replaced.

    Parameters
    ----------
    path
        The model to ship; it is read and its networks are built first.

    Raises
    ------
    InputError
        As `load_model`.
    """
    model = load_model(path)
    content = model.path.read_bytes()
    name = require_name(model.card["name"], "name in the model's card")
    file = f"{name}.safetensors"
    entry = {
        "name": name,
        "file": file,
        "k": model.k,
        "contrast": model.card["contrast"],
        "sha256": model.sha256,
    }
    index = WEIGHTS / "index.json"
    others = [e for e in json.loads(index.read_text(encoding="utf-8"))["models"] if e["name"] != name]
    entries = sorted([*others, entry], key=lambda e: (e["contrast"], e["k"], e["name"]))
    write_atomically(WEIGHTS / file, lambda stream: stream.write(content))
    text = json.dumps({"models": entries}, indent=1) + "\n"
    write_atomically(index, lambda stream: stream.write(text.encode()))
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
    """Half precision where it is good enough for inference."""
    if value.dtype.kind != "f":
        return value
    if not np.isfinite(value).all():
        raise refuse(path, f"{name} with values that are not finite", "finite weights", "Train it again.")
    if "running_" in name or np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        return value.astype(np.float32)
    return value.astype(np.float16)


def _read(
    path: str | os.PathLike, *, expected_sha256: str | None = None, build: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Read tensors, card and SHA-256 of the file, all from one reading, after a look at its header.

    With `build` the network is to be built, and has to be the one whose weights these are. A file of an older
    version, without a digest in its card, is opened all the same.
    """
    if expected_sha256 is not None:
        _require_pin(path, expected_sha256)
    announced, shapes = read_header(path)
    check_card(path, announced, shapes)
    if build:
        check_network(path, announced, shapes)
    try:
        content = Path(path).read_bytes()
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        card = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["iqtflow"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as fault:
        found = f"no whole safetensors file ({type(fault).__name__}: {fault})"
        raise refuse(path, found, "a model of iqtflow") from fault
    if card != announced or {name: value.shape for name, value in tensors.items()} != shapes:
        raise refuse(path, "a file that changed while it was read", "the same file all the time")
    if card.get(MODEL_DIGEST) not in (None, model_digest(tensors, card)):
        raise refuse(path, "weights or card that were altered", "the content that was written")
    check_finite(path, tensors)
    return tensors, card, hashlib.sha256(content).hexdigest()


def _require_pin(path: str | os.PathLike, expected: str) -> None:
    """Make sure that a file is the one that the package names."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except OSError as fault:
        raise refuse(path, f"{type(fault).__name__} ({fault.strerror})", "a readable model file") from fault
    if digest.hexdigest() != expected:
        raise refuse(
            path,
            f"SHA-256 {digest.hexdigest()[:16]}... (the file was altered or cut short)",
            f"{expected[:16]}..., which the package pins",
            "Install the package again.",
        )
