"""Tiny random networks, as files and in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from iqtflow.image.intensity import NORMALISATION
from iqtflow.models.card import Card
from iqtflow.models.model_file import Model, save_model
from iqtflow.models.registry import build_network


def write_model(path: Path, *, n_members: int = 1, contrast: str = "T1w", k: int = 4, trained: float = 0.05):
    """Write an ensemble of tiny random networks."""
    settings = {"k": k, "filters": 2, "residual": True}
    states = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        network = build_network("aniso-unet", **settings)
        torch.nn.init.normal_(network.head.weight, std=trained)
        states.append(network.state_dict())
    card = {
        "name": f"tiny-{contrast}-k{k}",
        "k": k,
        "contrast": contrast,
        "network": {"name": "aniso-unet", "kwargs": settings},
        "normalisation": {"name": NORMALISATION},
        "geometry": "slab-centred",
        "context": "whole",
    }
    return save_model(path, states, card)


def make_model(
    n_members: int = 1, *, k: int = 4, trained: float = 0.05, context: str = "whole", **settings
) -> Model:
    """Return tiny random networks that add something of the size `trained` to the spline."""
    settings = {"k": k, "filters": 4, "residual": True, **settings}
    members = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        network = build_network("aniso-unet", **settings)
        torch.nn.init.normal_(network.head.weight, std=trained)
        members.append(network.eval().requires_grad_(False))
    card = {
        "k": k,
        "network": {"name": "aniso-unet", "kwargs": settings},
        "n_members": n_members,
        "context": context,
    }
    return Model(Card(card), members, Path("memory"), "0" * 64)
