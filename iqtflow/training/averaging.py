"""Averages of the weights before and after a fine-tuning.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3, arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

#: Shares of the new weights that are tried, besides all of them.
SHARES = (0.25, 0.5, 0.75)

Weights = Mapping[str, torch.Tensor]


def mix_weights(before: Weights, after: Weights, share: float) -> dict[str, torch.Tensor]:
    """Return the weighted mean of two sets of weights.

    Parameters
    ----------
    before, after
        State dictionaries of the same network.
    share
        Weight of `after`. Values that are not floating-point are its own.
    """
    return {
        name: before[name].to(value).lerp(value, share) if value.is_floating_point() else value
        for name, value in after.items()
    }


def average_with_start(
    before: Weights, after: Weights, validation_loss: Callable[[Weights], float], name: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Average the weights before and after a fine-tuning, as far as that lowers the validation loss.

    Parameters
    ----------
    before, after
        State dictionaries of the same network.
    validation_loss
        Computes the loss of weights on the validation batches.
    name
        Of the model before.

    Returns
    -------
    weights : dict
        Those with the lowest loss.
    facts : dict
        ``with``, the name; ``share`` of the new weights; ``validation_loss``, one for each share.
    """
    losses = {1.0: validation_loss(after)}
    losses.update({share: validation_loss(mix_weights(before, after, share)) for share in SHARES})
    share = min(losses, key=losses.__getitem__)
    facts = {
        "with": name,
        "share": share,
        "validation_loss": {str(tried): loss for tried, loss in sorted(losses.items())},
    }
    return mix_weights(before, after, share), facts
