"""Write the weights of a sub-pixel U-Net for another upsampling factor, to start a training from.

    python benchmarks/change_factor.py MODEL K OUTPUT

The two networks differ in the pooling along the slice axis, whose weights are summed or shared out, and in
the last layer: each thin slice of the new network begins as the nearest one of the old.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gpu_parts import take_trunk

from iqtflow.models.model_file import load_model, save_model
from iqtflow.models.registry import build_network
from iqtflow.models.subpixel import CELL

#: Fields of the card.
KEPT = ("contrast", "normalisation", "geometry", "context", "predicts_error", "training")


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("k", type=int)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    source = load_model(options.model)
    settings = {**source.card["network"]["kwargs"], "k": options.k}
    network = build_network("subpixel-unet", **settings)
    old, k = source.members[0].state_dict(), source.k
    nearest = ((np.arange(options.k) + 0.5) / options.k * k).astype(int)
    weights = network.state_dict()
    for name in take_trunk(old, network):
        each = old[name].reshape(CELL * CELL, k, *old[name].shape[1:])
        weights[name] = each[:, nearest].reshape(weights[name].shape)
    card = {field: source.card[field] for field in KEPT if field in source.card}
    card |= {"name": f"from-{source.card.name}", "k": options.k}
    save_model(options.output, [weights], {**card, "network": {"name": "subpixel-unet", "kwargs": settings}})


if __name__ == "__main__":
    main()
