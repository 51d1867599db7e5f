"""The card of a model file: what the file states about itself, and the checks before its weights are read.

A damaged or malicious file may claim a network of any size. So the header alone is checked first: the weights
that it lists must be those of the networks that the card names, each in its shape, and the file must be as
long as they need. Nothing large is in memory before that.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from iqtflow.image.intensity import NORMALISATION
from iqtflow.utils.errors import InputError, IQTFlowError
from iqtflow.utils.files import require_regular
from iqtflow.utils.system import free_memory_gb

FORMAT = 1  #: format of the card; files of another format are refused
GEOMETRY = "slab-centred"  #: see `iqtflow.image.geometry`
#: Required fields of a card, and their types.
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
#: Optional fields of a card, and their types.
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
#: Numbers that are read from optional parts of a card.
_NUMBERS = {
    "figures reliability": ("n", "error_over_std mean", "within_1_std mean", "bins 0 error", "bins 0 std"),
    "familiar": ("threshold",),
}
PATCH_SIZES = range(8, 1025)  #: edges of training patches, in voxels
PAPER_PATCH = 32  #: edge of the paper's training patches, in voxels
COPIES = 6  #: memory that loading takes over the file's size: half and single precision, the network's own
#: Memory of one pass of the paper's networks, in bytes for each thin-slice voxel: for each channel of the
#: first level, and besides. Measured in float32 with ANISO U-Net on a CPU, channels last: 442 bytes with 16
#: channels, 208 with 8. In bfloat16 the part of the channels takes `HALF_SHARE` (148 bytes in all with 12).
BYTES_PER_CHANNEL, BYTES_BESIDES, HALF_SHARE = 27, 24, 0.45

Shapes = dict[str, tuple[int, ...]]


class Card(dict[str, Any]):
    """The card of a model: JSON fields, and a property for each value that the package reads.

    Raises
    ------
    KeyError
        A required field is missing; `check_card` makes sure that it is not.
    """

    @property
    def name(self) -> str:
        """Name of the model."""
        return self["name"]

    @property
    def k(self) -> int:
        """Upsampling factor."""
        return self["k"]

    @property
    def contrast(self) -> str:
        """BIDS suffix of the scans that the model was trained on."""
        return self["contrast"]

    @property
    def n_members(self) -> int:
        """Number of networks in the ensemble."""
        return self["n_members"]

    @property
    def whole(self) -> bool:
        """Whether the network takes a whole volume in one pass; else it needs tiles of `patch_size`."""
        return self.get("context", "patch") == "whole"

    @property
    def patch_size(self) -> int:
        """Edge of the training patches, in high-field voxels."""
        return self.get("patch_size", PAPER_PATCH)

    @property
    def training(self) -> dict[str, Any]:
        """Facts of the training; empty if the card does not state them."""
        return self.get("training") or {}

    @property
    def first_member(self) -> dict[str, Any]:
        """Facts of the training of the first network."""
        facts = self.training
        while facts.get("members"):
            facts = facts["members"][0]
        return facts

    @property
    def figures(self) -> dict[str, Any]:
        """Scores on evaluation subjects; empty if they were not measured."""
        return self.get("figures") or {}

    @property
    def cross_validation(self) -> dict[str, Any]:
        """Scores of models that were trained in the same way in a cross-validation; empty without one."""
        return self.training.get("cross_validation") or {}

    @property
    def evaluation(self) -> dict[str, Any]:
        """Scores to show: `figures`, else those of the cross-validation, which have ``folds``."""
        return self.figures or self.cross_validation

    @property
    def reliability(self) -> dict[str, Any] | None:
        """How well the standard deviation matched the error on evaluation subjects; None if not measured."""
        return self.figures.get("reliability")

    @property
    def familiar(self) -> dict[str, Any] | None:
        """Ranges of the training scans (`iqtflow.inference.ood.make_reference`); None if not stated."""
        return self.get("familiar")

    def uncertainty(self, *, mirror: bool = False) -> str | None:
        """Return the kind of standard deviation map that the model gives.

        Parameters
        ----------
        mirror
            Whether the enhanced volume is averaged with that of the left-right mirrored scan.

        Returns
        -------
        str or None
            "predicted", "ensemble" or "mirrored" (`iqtflow.inference.uncertainty.KINDS`); None: no map.
        """
        if self.get("predicts_error", self["network"]["kwargs"].get("uncertainty")):
            return "predicted"
        if self.n_members > 1:
            return "ensemble"
        return "mirrored" if mirror else None

    def pass_gb(self, thin_voxels: int, *, precision: str = "float32") -> float:
        """Return the memory of one pass of a network.

        Parameters
        ----------
        thin_voxels
            Voxels of the enhanced volume, or of a tile of it.
        precision
            "float32" or "bfloat16".

        Returns
        -------
        float
            Memory in GB. The field ``pass_bytes`` decides; without it, the width of the paper's networks.
        """
        if "pass_bytes" in self:
            return thin_voxels * float(self["pass_bytes"][precision]) / 1e9
        channels = int(self["network"]["kwargs"].get("filters", 16))
        half = HALF_SHARE if precision == "bfloat16" else 1.0
        return thin_voxels * (half * BYTES_PER_CHANNEL * channels + BYTES_BESIDES) / 1e9

    def subjects(self, *parts: str) -> set[str]:
        """Return the labels of training and validation subjects, also of the models that training started
        from.

        Parameters
        ----------
        *parts
            "training_subjects" or "validation_subjects"; none: both.
        """
        found: set[str] = set()
        trainings = [self.training]
        while trainings:
            facts = trainings.pop()
            for part in parts or ("training_subjects", "validation_subjects"):
                found.update(facts.get(part, []))
            trainings += [*facts.get("members", []), *([facts["before"]] if "before" in facts else [])]
        return found


def read_header(path: str | os.PathLike) -> tuple[Any, Shapes]:
    """Return the card, and the shape of each tensor; the tensors are not read.

    Raises
    ------
    InputError
        It is not a complete safetensors file, or there is too little memory for its tensors.
    """
    try:
        require_regular(path)
        with safe_open(os.fspath(path), framework="numpy") as file:  # compares header and size
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            card = json.loads((file.metadata() or {}).get("iqtflow", "null"))
        size_gb = Path(path).stat().st_size / 1e9
    except (OSError, SafetensorError, ValueError, MemoryError, RecursionError) as fault:
        raise not_whole(path, fault) from fault
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
    """Make sure that a card is complete, that this version can use it, and that the file has its networks.

    Raises
    ------
    InputError
        A field is missing or wrong; it is named.
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
    # The memory of a pass is predicted from these, before the network is built.
    if not all(_is(settings.get(key, 1), int) and settings.get(key, 1) > 0 for key in ("k", "filters")):
        raise refuse(path, f"network {card['network']}", "whole numbers for k and filters")
    members = {name.split("/", 1)[0] for name in shapes}
    n = card["n_members"]
    # The count is compared first: a set of a billion names would fill the memory.
    if not members or n != len(members) or members != {f"member{i}" for i in range(n)}:
        raise refuse(path, f"weights of {len(members)} networks", f"those of {n}, as the card says")


def _check_numbers(path: str | os.PathLike, card: Mapping[str, Any]) -> None:
    """Make sure that the values that the package computes with are numbers."""
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
    """Return the value of nested fields; None where one is missing."""
    for name in names.split():
        try:
            value = value[int(name) if name.isdecimal() else name]
        except (LookupError, TypeError):
            return None
    return value


def check_network(path: str | os.PathLike, card: Card, shapes: Shapes) -> None:
    """Make sure that the weights are those of the network that the card names; takes no memory.

    Raises
    ------
    InputError
        There is no such network, or its weights have other names or shapes.
    """
    import torch

    from iqtflow.models.registry import build_network

    name, settings = card["network"]["name"], card["network"]["kwargs"]
    own = {key.removeprefix("member0/"): s for key, s in shapes.items() if key.startswith("member0/")}
    with fitting(path, card), _no_more_than(10 * len(own) + 1000), torch.device("meta"), _no_first_weights():
        outline = build_network(name, **settings)
        if outline.k != card.k:
            raise refuse(path, f"k = {card.k} in the card, {outline.k} in the network", "one factor")
        # Single numbers (batches seen) are stored as rows of one.
        wanted = {key: tuple(value.shape) or (1,) for key, value in outline.state_dict().items()}
        for i in range(card.n_members):
            prefix = f"member{i}/"
            given = {k.removeprefix(prefix): s or (1,) for k, s in shapes.items() if k.startswith(prefix)}
            differs = next((key for key in {**wanted, **given} if wanted.get(key) != given.get(key)), None)
            if differs is not None:
                raise ValueError(f"{prefix}{differs}: {given.get(differs)}, not {wanted.get(differs)}")
        inside = sum(value.numel() for value in (*outline.parameters(), *outline.buffers()))
        if inside > 4 * sum(math.prod(shape) for shape in own.values()) + 10**6:
            raise ValueError(f"{inside} numbers, most of which are not in the file")


@contextmanager
def fitting(path: str | os.PathLike, card: Card) -> Iterator[None]:
    """Turn any error of a network with these settings or weights into an InputError."""
    try:
        yield
    except IQTFlowError:
        raise
    except Exception as fault:  # a network of one's own may raise anything
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0].strip()
        raise refuse(
            path,
            f"weights that do not fit its network ({reason})",
            f"the weights of {card['network']['name']} {str(card['network']['kwargs'])[:200]}",
        ) from fault


def not_whole(path: str | os.PathLike, fault: Exception) -> InputError:
    """Return the error for a file that is not a complete safetensors file."""
    found = f"no whole safetensors file ({type(fault).__name__}: {fault})"
    return refuse(path, found, "a model of iqtflow")


def refuse(
    path: str | os.PathLike,
    found: str,
    expected: str,
    next_step: str = "Copy the file again, or choose another (see iqtflow --list-models).",
) -> InputError:
    """Return the error for a model file that cannot be used."""
    return InputError(path, found=found, expected=expected, next_step=next_step)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@contextmanager
def _no_first_weights() -> Iterator[None]:
    """Leave random first weights out.

    Without memory to fill, PyTorch would import its compiler for them, which takes two seconds.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = kwargs or {}
            if getattr(func, "__module__", "") == torch.nn.init.__name__ or func is torch.Tensor.normal_:
                return args[0] if args else given["tensor"]
            return func(*args, **given)

    with Unfilled():
        yield


@contextmanager
def _no_more_than(parts: int) -> Iterator[None]:
    """Stop building a network that has many more parts than the file has weights."""
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
