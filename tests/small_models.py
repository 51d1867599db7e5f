"""Tiny random networks, as files and in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from iqtflow.image.intensity import NORMALISATION
from iqtflow.models.card import Card
from iqtflow.models.model_file import Model, save_model
from iqtflow.models.registry import build_network


def make_model(
    n_members: int = 1,
    *,
    k: int = 4,
    trained: float = 0.05,
    contrast: str = "T1w",
    context: str = "whole",
    first_seed: int = 0,
    **settings,
) -> Model:
    """Return tiny random networks that add something of the size `trained` to the spline."""
    settings = {"k": k, "filters": 4, "residual": True, **settings}
    members = []
    for seed in range(first_seed, first_seed + n_members):
        torch.manual_seed(seed)
        network = build_network("aniso-unet", **settings)
        torch.nn.init.normal_(network.head.weight, std=trained)
        members.append(network.eval().requires_grad_(False))
    card = {
        "name": f"tiny-{contrast}-k{k}",
        "k": k,
        "contrast": contrast,
        "network": {"name": "aniso-unet", "kwargs": settings},
        "normalisation": {"name": NORMALISATION},
        "geometry": "slab-centred",
        "n_members": n_members,
        "context": context,
    }
    return Model(Card(card), members, Path("memory"), "0" * 64)


def write_model(path: Path, **options) -> Path:
    """Write an ensemble of tiny random networks; options as for `make_model`."""
    model = make_model(**{"filters": 2, **options})
    return save_model(path, [member.state_dict() for member in model.members], model.card)
