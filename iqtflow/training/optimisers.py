"""Muon: an optimiser for the weights of convolutions, with AdamW for all other parameters.

Muon makes the momentum of each weight matrix nearly orthogonal, so that all its directions are learned at
the same speed (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). PyTorch's own
`torch.optim.Muon` takes matrices only; here the weight of a convolution is a matrix, outputs by inputs x
kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: A weight with fewer inputs or outputs is no matrix worth the effort: a first or last layer.
SMALLEST_SIDE = 16
#: Coefficients of the quintic Newton-Schulz iteration (same source), and how often it runs.
_NEWTON_SCHULZ, _ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Muon for convolutions between features; AdamW for biases, first and last layers.

    Parameters
    ----------
    network
        Network to be trained; parameters that need no gradient are left out. Layers in a part named
        ``head`` or ``error_head`` count as last layers.
    lr
        Learning rate of both. Muon's updates are as long as Adam's (root mean square 0.2 lr; Liu et al.
        2025, arXiv:2502.16982), so that one rate suits both.
    momentum
        Of Muon; with Nesterov's look ahead.
    betas
        Of AdamW.
    weight_decay
        Of both.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-4,
    ) -> None:
        matrices, others = split_parameters(network)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "momentum": momentum, "betas": None},
            {"params": others, "momentum": None, "betas": betas},
        ]
        super().__init__(
            [group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take one step."""
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                value.mul_(1 - group["lr"] * group["weight_decay"])
                move = _muon if group["betas"] is None else _adam
                value.add_(move(value.grad, self.state[value], group), alpha=-group["lr"])


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that Muon moves, and all others."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, value in network.named_parameters():
        if value.requires_grad:
            is_last = {"head", "error_head"} & set(name.split("."))
            is_matrix = value.ndim > 1 and min(value.shape[:2]) >= SMALLEST_SIDE and not is_last
            (matrices if is_matrix else others).append(value)
    return matrices, others


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the same singular vectors and singular values of about 1 (0.7 to 1.2).

    Parameters
    ----------
    matrix
        Shape (m, n), floating point.

    Returns
    -------
    tensor, shape (m, n), float32
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).float()
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x


def _muon(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    if not state:
        state["mean"] = torch.zeros_like(gradient)
    state["mean"].lerp_(gradient, 1 - group["momentum"])
    ahead = gradient.lerp(state["mean"], group["momentum"]).contiguous().flatten(1)
    return (orthogonalise(ahead) * (0.2 * max(ahead.shape) ** 0.5)).reshape(gradient.shape)


def _adam(gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    first, second = group["betas"]
    state["mean"].lerp_(gradient, 1 - first)
    state["square"].lerp_(gradient.square(), 1 - second)
    mean = state["mean"] / (1 - first ** state["step"])
    return mean / ((state["square"] / (1 - second ** state["step"])).sqrt() + 1e-8)
