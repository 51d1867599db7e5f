"""Networks by name. A network maps a normalised thick-slice patch (batch, 1, w, h, d) to the thin-slice one
(batch, 1, w, h, k d).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from iqtflow.errors import InputError
from iqtflow.networks.unets import AnisoUNet

_REGISTRY: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, factory: Callable[..., nn.Module]) -> None:
    """Make a network available by name.

    Parameters
    ----------
    name
        The name used in settings and in model files.
    factory
        Called with keyword arguments (``k`` among them); returns a module with the attributes ``k``
        (up-scaling factor) and ``min_multiple`` (three integers that the input's sizes must be multiples of).

    Raises
    ------
    InputError
        The name is taken by another network.
    """
    if _REGISTRY.get(name, factory) is not factory:
        raise InputError(
            "network registry",
            found=f"a second network called {name!r}",
            expected="a new name",
            next_step="Register it under another name.",
        )
    _REGISTRY[name] = factory


def build_network(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by its registered name.

    Raises
    ------
    InputError
        No network of this name is registered, or it does not take these settings.
    """
    if name not in _REGISTRY:
        raise InputError(
            "network",
            found=repr(name),
            expected="one of " + ", ".join(sorted(_REGISTRY)),
            next_step="Correct the name, or register the network first.",
        )
    try:
        return _REGISTRY[name](**kwargs)
    except TypeError as fault:
        raise InputError(
            f"network {name}",
            found=f"settings {kwargs}",
            expected="settings that it takes",
            next_step=f"{fault}.",
        ) from fault


register("aniso-unet", AnisoUNet)
