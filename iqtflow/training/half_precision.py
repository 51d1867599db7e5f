"""A way around wrong gradients of convolutions in bfloat16 on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class ShortConvolutionsInFloat32(TorchFunctionMode):
    """Context in which a convolution of a volume that is shorter than its kernel is computed in float32.

    On a CPU in bfloat16, the gradient of the weights is then wrong: with a kernel of 3 and 2 voxels along the
    first axis, for example, it contains memory that was never written (PyTorch 2.13 with oneDNN, on an AMD
    EPYC with AVX512-BF16). The deepest level of the ANISO U-Net has 2 voxels. With longer volumes, and in the
    forward pass, the results are right. The context covers networks of any kind, also users' own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch; a short convolution without autocast."""
        given = dict(kwargs or {})
        if func is torch.conv3d and torch.is_autocast_enabled("cpu") and _is_short(args, given):
            with torch.autocast("cpu", enabled=False):
                return func(*map(_as_float32, args), **{k: _as_float32(v) for k, v in given.items()})
        return func(*args, **given)


def _is_short(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    volume, weight = (
        args[place] if len(args) > place else kwargs[name] for place, name in enumerate(("input", "weight"))
    )
    return volume.device.type == "cpu" and volume.shape[-3] < weight.shape[-3]


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value
