"""What a model file says of itself, checked against its own size before any memory is taken.

A file may claim a network of any size, or a billion of them. The header alone decides: the weights that it
lists must be those of the members that it claims, each in its shape, and their bytes must be in the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from iqtflow.image.intensity import NORMALISATION
from iqtflow.utils.errors import InputError, IQTFlowError
from iqtflow.utils.files import require_regular
from iqtflow.utils.system import free_memory_gb

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1  #: of the card; a file of another format is refused
GEOMETRY = "slab-centred"  #: see `iqtflow.image.geometry`
#: Fields without which a card is none, and their types.
REQUIRED = {
    "format": int,
    "name": str,
    "k": int,
    "contrast": str,
    "network": dict,
    "normalisation": dict,
    "geometry": str,
    "n_members": int,
}
#: Fields that a card may lack, and their types.
OPTIONAL = {
    "training": dict,
    "figures": dict,
    "slice_profile": dict,
    "snr_prior": dict,
    "familiar": dict,
    "context": str,
    "patch_size": int,
    "package_version": str,
    "predicts_error": bool,
}
#: Numbers that are read of a card, each with the field that may be missing.
_NUMBERS = {
    "figures reliability": ("n", "error_over_std mean", "within_1_std mean", "bins 0 error", "bins 0 std"),
    "familiar": ("threshold",),
}
PATCH_SIZES = range(8, 1025)  #: edges of training patches, in voxels
COPIES = 6  #: of the file's bytes that are in memory at the same time: halves, singles and the network's own

Shapes = dict[str, tuple[int, ...]]


def read_header(path: str | os.PathLike) -> tuple[Any, Shapes]:
    """Return the card, and the shape of each tensor; the tensors stay on the disk.

    Raises
    ------
    InputError
        It is no whole safetensors file, or there is no memory for what is in it.
    """
    try:
        require_regular(path)
        with safe_open(os.fspath(path), framework="numpy") as file:  # compares header and size
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            card = json.loads((file.metadata() or {}).get("iqtflow", "null"))
        size_gb = Path(path).stat().st_size / 1e9
    except (OSError, SafetensorError, ValueError, MemoryError, RecursionError) as fault:
        found = f"no whole safetensors file ({type(fault).__name__}: {fault})"
        raise refuse(path, found, "a model of iqtflow") from fault
    free_gb = free_memory_gb()
    if COPIES * size_gb > free_gb:
        raise refuse(
            path,
            f"{size_gb:.1f} GB of weights, which take {COPIES * size_gb:.1f} GB",
            f"a model for the memory that is free, {free_gb:.1f} GB",
            "Free memory, or choose another model.",
        )
    return card, shapes


def check_card(path: str | os.PathLike, card: Any, shapes: Shapes) -> None:
    """Make sure that a card is one, that this version can follow it, and that its members are in the file.

    Raises
    ------
    InputError
        What is wrong, by name.
    """
    if not isinstance(card, dict) or not all(_is(card.get(key), kind) for key, kind in REQUIRED.items()):
        raise refuse(path, "no card of iqtflow in the metadata", "a model of iqtflow")
    for key, kind in OPTIONAL.items():
        if card.get(key) is not None and not _is(card[key], kind):
            raise refuse(path, f"{key} {str(card[key])[:60]!r}", f"a value of the type {kind.__name__}")
    _check_numbers(path, card)
    newer = "Use the version of the package that wrote it."
    for key, ours in (("format", FORMAT), ("geometry", GEOMETRY)):
        if card[key] != ours:
            raise refuse(path, f"{key} {card[key]!r}", repr(ours), newer)
    if card["normalisation"].get("name") != NORMALISATION:
        raise refuse(path, f"normalisation {card['normalisation']}", NORMALISATION, newer)
    name, settings = card["network"].get("name"), card["network"].get("kwargs")
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise refuse(path, f"network {card['network']}", "a name and settings")
    # Memory is foretold from these, before there is a network.
    if not all(_is(settings.get(key, 1), int) and settings.get(key, 1) > 0 for key in ("k", "filters")):
        raise refuse(path, f"network {card['network']}", "whole numbers for k and filters")
    members = {name.split("/", 1)[0] for name in shapes}
    n = card["n_members"]
    # Counted first: a set of a billion names would be the memory that is to be saved.
    if not members or n != len(members) or members != {f"member{i}" for i in range(n)}:
        raise refuse(path, f"weights of {len(members)} networks", f"those of {n}, as the card says")


def _check_numbers(path: str | os.PathLike, card: Mapping[str, Any]) -> None:
    """Make sure that what is computed from a card is made of numbers."""
    if card.get("patch_size", PATCH_SIZES[0]) not in PATCH_SIZES:
        raise refuse(
            path, f"patch_size {card['patch_size']}", f"{PATCH_SIZES[0]} to {PATCH_SIZES[-1]} voxels"
        )
    for optional, names in _NUMBERS.items():
        there = _follow(card, optional)
        for name in names if there else ():
            value = _follow(there, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise refuse(path, f"{optional} {name} {str(value)[:60]!r}", "a number")
    ranges = _follow(card, "familiar ranges") or {}
    try:
        wrong = [name for name, (low, high) in ranges.items() if not low < high]
    except (AttributeError, TypeError, ValueError):
        wrong = ["ranges"]
    if wrong or (card.get("familiar") and not ranges):
        raise refuse(path, f"familiar {str(ranges)[:60]!r}", "a lower and an upper number for each name")


def _follow(value: Any, names: str) -> Any:
    """What nested fields lead to; None where one is missing."""
    for name in names.split():
        try:
            value = value[int(name) if name.isdecimal() else name]
        except (LookupError, TypeError):
            return None
    return value


def check_network(path: str | os.PathLike, card: Mapping[str, Any], shapes: Shapes) -> None:
    """Make sure that the weights are those of the network that the card names; takes no memory.

    Raises
    ------
    InputError
        There is no such network, or its weights have other names or shapes.
    """
    import torch

    name, settings = card["network"]["name"], card["network"]["kwargs"]
    own = {key.removeprefix("member0/"): s for key, s in shapes.items() if key.startswith("member0/")}
    with fitting(path, name, settings), _no_more_than(10 * len(own) + 1000), torch.device("meta"):
        outline = _build(name, settings)
        if outline.k != card["k"]:
            raise refuse(path, f"k = {card['k']} in the card, {outline.k} in the network", "one factor")
        # Single numbers (batches seen) are stored as rows of one.
        wanted = {key: tuple(value.shape) or (1,) for key, value in outline.state_dict().items()}
        for i in range(card["n_members"]):
            prefix = f"member{i}/"
            given = {k.removeprefix(prefix): s or (1,) for k, s in shapes.items() if k.startswith(prefix)}
            differs = next((key for key in {**wanted, **given} if wanted.get(key) != given.get(key)), None)
            if differs is not None:
                raise ValueError(f"{prefix}{differs}: {given.get(differs)}, not {wanted.get(differs)}")
        inside = sum(value.numel() for value in (*outline.parameters(), *outline.buffers()))
        if inside > 4 * sum(math.prod(shape) for shape in own.values()) + 10**6:
            raise ValueError(f"{inside} numbers, most of which are not in the file")


def build_member(
    path: str | os.PathLike, card: Mapping[str, Any], state: dict[str, torch.Tensor]
) -> nn.Module:
    """Build one network and give it its weights; after `check_network`."""
    name, settings = card["network"]["name"], card["network"]["kwargs"]
    with fitting(path, name, settings):
        network = _build(name, settings)
        network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@contextmanager
def fitting(path: str | os.PathLike, name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a network raises at such settings or weights into an InputError."""
    try:
        yield
    except IQTFlowError:
        raise
    except Exception as fault:  # a network of one's own may raise anything
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0].strip()
        raise refuse(
            path,
            f"weights that do not fit its network ({reason})",
            f"the weights of {name} {str(settings)[:200]}",
        ) from fault


def check_finite(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Make sure that all weights are finite.

    Raises
    ------
    InputError
        One is not: the first tensor with such a weight is named.
    """
    for name, value in tensors.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            count = np.count_nonzero(~np.isfinite(value))
            raise refuse(path, f"{count} weights of {name} that are not finite", "finite weights")


def refuse(
    path: str | os.PathLike,
    found: str,
    expected: str,
    next_step: str = "Copy the file again, or choose another (see iqtflow --list-models).",
) -> InputError:
    """Return the error that refuses a model file."""
    return InputError(path, found=found, expected=expected, next_step=next_step)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _build(name: str, settings: Mapping[str, Any]) -> Any:
    from iqtflow.models.registry import build_network

    return build_network(name, **settings)


@contextmanager
def _no_more_than(parts: int) -> Iterator[None]:
    """Stop a network that consists of many more parts than the file has weights, while it is being built."""
    from torch.nn.modules import module

    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > parts:
            raise ValueError(f"more than {parts} parts, most of which are not in the file")

    hooks = [
        module.register_module_parameter_registration_hook(note),
        module.register_module_buffer_registration_hook(note),
        module.register_module_module_registration_hook(note),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
