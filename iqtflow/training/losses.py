"""The loss of a training: error of the enhanced patch, and likelihood of the predicted error."""

from __future__ import annotations

import torch


def losses(
    output: torch.Tensor, high: torch.Tensor, weight: torch.Tensor, *, loss: str, only_uncertainty: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what the optimiser minimises, and what is reported and selects the best weights.

    The second channel of a network's output, if there is one, is the natural logarithm of the variance of
    its error. It is trained by the likelihood of a Gaussian error (Kendall and Gal 2017, eq. 8). This has no
    effect on the first channel: its training and the selection of the best weights are the same without it.

    Parameters
    ----------
    output : tensor, shape (b, 1 or 2, P, P, P), float32
        Output of the network.
    high : tensor, shape (b, 1, P, P, P), float32
        High-field patch.
    weight : tensor
        Weight of each voxel, from `brain_weight`.
    loss
        "mse" or "l1".
    only_uncertainty
        Minimise and report the likelihood alone.

    Returns
    -------
    objective, reported : tensor
        One number each.
    """
    estimate, log_variance = output[:, :1], output[:, 1:]
    error = estimate - high
    value = (weight * (error.abs() if loss == "l1" else error.square())).mean()
    if log_variance.shape[1] == 0:
        return value, value
    # torch's gaussian_nll_loss takes the variance, not its logarithm: its log(exp(x)) changes the last bits.
    squared = error.detach().square()
    likelihood = (weight * (log_variance + squared * torch.exp(-log_variance))).mean() / 2
    return (likelihood, likelihood) if only_uncertainty else (value + likelihood, value)


def brain_weight(brain: torch.Tensor | None, background: float, device: torch.device) -> torch.Tensor:
    """Return the weight of each voxel in the loss.

    Parameters
    ----------
    brain : tensor, shape (b, 1, P, P, P), uint8, or None
        255 inside the brain; None for stored pairs, which have no mask.
    background
        Weight of voxels outside the brain.
    device
        Where the loss is computed.

    Returns
    -------
    tensor
        Weights with a mean of 1 over the batch, shape of `brain`; a single 1 where all voxels weigh the same.
    """
    if background == 1 or brain is None:
        return torch.ones((), device=device)
    inside = brain.float() / 255
    weight = inside + background * (1 - inside)
    return weight / weight.mean().clamp(min=1e-3)
