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
            values = [value for value in group["params"] if value.grad is not None]
            if not values:
                continue
            gradients, states = [value.grad for value in values], [self.state[value] for value in values]
            torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
            move = _muon if group["betas"] is None else _adam
            torch._foreach_add_(values, move(gradients, states, group), alpha=-group["lr"])


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
        Shape (m, n) or, for several matrices, (count, m, n); floating point.

    Returns
    -------
    tensor, shape of `matrix`, float32
    """
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if is_tall else matrix).float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


Tensors = list[torch.Tensor]


def _muon(gradients: Tensors, states: list[dict[str, Any]], group: dict[str, Any]) -> Tensors:
    for gradient, state in zip(gradients, states, strict=True):
        if not state:
            state["mean"] = torch.zeros_like(gradient)
    means = [state["mean"] for state in states]
    torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
    ahead = torch._foreach_lerp(gradients, means, group["momentum"])
    # Matrices of one shape together: a GPU takes as long for one as for eight.
    alike: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(ahead):
        alike.setdefault((len(one), one[0].numel()), []).append(i)
    moves = list(ahead)
    for shape, places in alike.items():
        stack = torch.stack([ahead[i].contiguous().flatten(1) for i in places])
        for i, move in zip(places, orthogonalise(stack) * (0.2 * max(shape) ** 0.5), strict=True):
            moves[i] = move.reshape(gradients[i].shape)
    return moves


def _adam(gradients: Tensors, states: list[dict[str, Any]], group: dict[str, Any]) -> Tensors:
    for gradient, state in zip(gradients, states, strict=True):
        if not state:
            state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
        state["step"] += 1
    first, second = group["betas"]
    means, squares = ([state[name] for state in states] for name in ("mean", "square"))
    torch._foreach_lerp_(means, gradients, 1 - first)
    torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - second)
    steps = [state["step"] for state in states]
    spread = torch._foreach_div(squares, [1 - second**step for step in steps])
    torch._foreach_sqrt_(spread)
    torch._foreach_add_(spread, 1e-8)
    moves = torch._foreach_div(means, [1 - first**step for step in steps])
    torch._foreach_div_(moves, spread)
    return moves
