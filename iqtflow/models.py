"""A model on disk: weights and everything needed to use them, in one safetensors file that runs no code when it is read.

The tensors are called ``member0/NAME``, ``member1/NAME``, ... for the networks of the ensemble. The file's metadata hold one JSON text under the key
``iqtflow``, the *card*: name, up-scaling factor, network and its settings, normalisation, geometry, simulator's settings, training
subjects, figures. Weights are stored in half precision; running statistics of batch normalisation keep single precision.
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
from iqtflow.errors import InputError
from iqtflow.files import write_atomically
from iqtflow.normalisation import NAME as NORMALISATION

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
GEOMETRY = "slab-centred"
WEIGHTS = Path(__file__).with_name("weights")
_REQUIRED = ("format", "name", "k", "contrast", "network", "normalisation", "geometry", "n_members")


@dataclass(frozen=True)
class ModelInfo:
    """A shipped model: its file, factor, contrast and SHA-256."""

    name: str
    path: Path
    k: int
    contrast: str
    sha256: str


@dataclass(frozen=True)
class Model:
    """A loaded model: card, networks in evaluation mode, and where it came from."""

    card: dict[str, Any]
    members: list[nn.Module]
    path: Path
    sha256: str


def save_model(path: str | os.PathLike, members: Sequence[Mapping[str, torch.Tensor]], card: Mapping[str, Any]) -> Path:
    """Write a model.

    Parameters
    ----------
    path
        A ``.safetensors`` file.
    members
        State dictionary of each network.
    card
        Fields of the card; format, number of members and package version are added.
    """
    tensors = {f"member{i}/{name}": value.detach().cpu().numpy() for i, member in enumerate(members) for name, value in member.items()}
    return _write(path, tensors, {**card, "n_members": len(members)})


def load_model(path: str | os.PathLike, *, expected_sha256: str | None = None) -> Model:
    """Read a model and build its networks.

    Raises
    ------
    InputError
        Missing, truncated, altered or foreign file, or a model that this version cannot use.
    """
    from iqtflow.networks import build_network

    tensors, card, digest = _read(path, expected_sha256=expected_sha256)
    import torch

    members = []
    for i in range(card["n_members"]):
        prefix = f"member{i}/"
        state = {name.removeprefix(prefix): torch.from_numpy(_single(value)) for name, value in tensors.items() if name.startswith(prefix)}
        network = build_network(card["network"]["name"], **card["network"]["kwargs"])
        try:
            network.load_state_dict(state)
        except RuntimeError as fault:
            raise _refuse(path, f"weights that do not fit the network it names ({str(fault).splitlines()[-1].strip()})", "weights of this network") from fault
        members.append(network.eval().requires_grad_(False))
    return Model(card, members, Path(path).absolute(), digest)


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """Return a model's card, after the checks of `load_model` that need no network."""
    return _read(path)[1]


def join_models(path: str | os.PathLike, members: Sequence[str | os.PathLike], *, name: str, training: Mapping[str, Any] | None = None) -> Path:
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
        The members' networks, factors or normalisations differ.
    """
    parts = [_read(p) for p in members]
    first = parts[0][1]
    tensors: dict[str, np.ndarray] = {}
    count = 0
    for file, (arrays, card, _) in zip(members, parts):
        for key in ("k", "network", "normalisation", "geometry", "contrast"):
            if card[key] != first[key]:
                raise _refuse(file, f"{key} {card[key]}", f"that of the first member, {first[key]}")
        for array_name, value in arrays.items():
            member, rest = array_name.split("/", 1)
            tensors[f"member{count + int(member.removeprefix('member'))}/{rest}"] = value
        count += card["n_members"]
    facts = {"members": [card.get("training", {}) for _, card, _ in parts], **(training or {})}
    return _write(path, tensors, {**first, "name": name, "n_members": count, "training": facts})


def stamp_figures(source: str | os.PathLike, path: str | os.PathLike, figures: Mapping[str, Any]) -> Path:
    """Copy a model with figures on evaluation subjects in its card; the weights stay as they are."""
    tensors, card, _ = _read(source)
    return _write(path, tensors, {**card, "figures": dict(figures)})


def list_shipped() -> list[ModelInfo]:
    """The models that come with the package, as ``weights/index.json`` lists them (name, file, k, contrast, SHA-256)."""
    entries = json.loads((WEIGHTS / "index.json").read_text())["models"]
    return [ModelInfo(e["name"], WEIGHTS / e["file"], e["k"], e["contrast"], e["sha256"]) for e in entries]


def find_model(name_or_path: str | os.PathLike) -> tuple[Path, str | None]:
    """Return the file of a model, shipped (by name) or of one's own (by path), and its pinned SHA-256 if it ships.

    Raises
    ------
    InputError
        Neither a shipped model's name nor a file.
    """
    key = os.fspath(name_or_path)
    for info in list_shipped():
        if key == info.name:
            return info.path, info.sha256
    if not Path(key).is_file():
        raise InputError(key, found="no such file, and no shipped model of this name", expected="one of " + (", ".join(i.name for i in list_shipped()) or "(none ships)") + ", or a .safetensors file",
                         next_step="See iqtflow --list-models.")
    return Path(key), None


def register_shipped(path: str | os.PathLike) -> ModelInfo:
    """Put a model into the package's ``weights`` folder and pin its SHA-256: for maintainers, after a training."""
    _, card, digest = _read(path)
    content = Path(path).read_bytes()
    file = f"{card['name']}.safetensors"
    write_atomically(WEIGHTS / file, lambda stream: stream.write(content))
    entry = {"name": card["name"], "file": file, "k": card["k"], "contrast": card["contrast"], "sha256": digest}
    entries = [e for e in json.loads((WEIGHTS / "index.json").read_text())["models"] if e["name"] != card["name"]] + [entry]
    text = json.dumps({"models": sorted(entries, key=lambda e: (e["contrast"], e["k"], e["name"]))}, indent=1) + "\n"
    write_atomically(WEIGHTS / "index.json", lambda stream: stream.write(text.encode()))
    return ModelInfo(card["name"], WEIGHTS / file, card["k"], card["contrast"], digest)


def _write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> Path:
    card = {**card, "format": FORMAT, "package_version": iqtflow.__version__}
    stored = {name: np.ascontiguousarray(_half(name, value)) for name, value in tensors.items()}
    content = save(stored, metadata={"iqtflow": json.dumps(card, sort_keys=True)})
    return write_atomically(path, lambda stream: stream.write(content))


def _half(name: str, value: np.ndarray) -> np.ndarray:
    """Half precision for weights; running statistics span too many decades for it, and counters are integers."""
    if value.dtype.kind != "f" or "running_" in name or np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        return value
    return value.astype(np.float16)


def _single(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _read(path: str | os.PathLike, *, expected_sha256: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    try:
        content = Path(path).read_bytes()
    except OSError as fault:
        raise _refuse(path, f"{type(fault).__name__} ({fault.strerror})", "a readable model file") from fault
    digest = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and digest != expected_sha256:
        raise _refuse(path, f"SHA-256 {digest[:16]}...", f"{expected_sha256[:16]}..., which the package pins (the file was altered or cut short)", "Install the package again.")
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        card = json.loads(json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("iqtflow", "null"))
    except (SafetensorError, ValueError, KeyError, AttributeError) as fault:
        raise _refuse(path, f"no whole safetensors file ({type(fault).__name__}: {fault})", "a model of iqtflow") from fault
    if not isinstance(card, dict) or any(key not in card for key in _REQUIRED):
        raise _refuse(path, "no card of iqtflow in the metadata", "a model of iqtflow")
    for key, ours in (("format", FORMAT), ("geometry", GEOMETRY)):
        if card[key] != ours:
            raise _refuse(path, f"{key} {card[key]!r}", repr(ours), "Use the version of the package that wrote it.")
    if card["normalisation"].get("name") != NORMALISATION:
        raise _refuse(path, f"normalisation {card['normalisation']}", NORMALISATION, "Use the version of the package that wrote it.")
    return tensors, card, digest


def _refuse(path: str | os.PathLike, found: str, expected: str, next_step: str = "Copy the file again, or use iqtflow --list-models to choose another.") -> InputError:
    return InputError(path, found=found, expected=expected, next_step=next_step)
