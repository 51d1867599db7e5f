"""Networks by name. A network maps a normalised thick-slice patch (batch, 1, w, h, d) to the thin-slice one
(batch, 1, w, h, k d).

A network of one's own is a `torch.nn.Module` with the attributes ``k`` (up-scaling factor) and
``min_multiple`` (three integers that the input's sizes must be multiples of). There are three ways to make it
known by name, none of which touches this package:

* an entry point of the group ``iqtflow.networks`` in the package that holds it: found wherever that package
  is installed, in child processes and in inference too;
* ``module:attribute`` instead of a name, for a module on Python's path. A *model file* that names its network
  so is only opened when the environment variable ``IQTFLOW_NETWORKS`` lists it: weights from a stranger must
  not choose what is imported;
* `register`, within one process.

A network that also predicts how large its error is has an attribute ``error_head``, the module that does, and
a second channel in its output: the natural logarithm of the error's variance. Training with ``--uncertainty
only`` learns the weights of that module alone.

Two more attributes are kept in the model's card. ``context`` is "whole" for a network that takes a volume in
one pass as well as the patches that it was trained on; "patch", the default, for one that is given tiles of
that size. ``pass_bytes`` is the memory of a pass in bytes for each thin-slice voxel, by precision ("float32",
"bfloat16").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from iqtflow.models.subpixel import SubpixelUNet
from iqtflow.models.trust import ALLOWED, allowed_networks
from iqtflow.models.unets import AnisoUNet, IsoUNet, SRUNet
from iqtflow.utils.errors import InputError

GROUP = "iqtflow.networks"  #: entry points of networks that other packages bring

Factory = Callable[..., nn.Module]

_REGISTRY: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
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
    """Build a network by its name: registered, an entry point, or an allowed ``module:attribute``.

    Raises
    ------
    InputError
        There is no network of this name, it does not take these settings, or what it returns is no network.
    """
    factory = find_network(name)
    try:
        network = factory(**kwargs)
    except TypeError as fault:
        raise InputError(
            f"network {name}",
            found=f"settings {kwargs}",
            expected=f"settings that it takes{_list_settings(factory)}",
            next_step=f"{str(fault).splitlines()[0]}.",  # PyTorch adds its own calls in C++
        ) from fault
    lacks = [a for a in ("k", "min_multiple") if not hasattr(network, a)]
    if not isinstance(network, nn.Module) or lacks:
        raise InputError(
            f"network {name}",
            found=f"{type(network).__name__} without {' and '.join(lacks)}" if lacks else repr(network),
            expected="a torch.nn.Module with k and min_multiple",
            next_step="Give the module these attributes.",
        )
    return network


def find_network(name: str) -> Factory:
    """Return what builds a network.

    Raises
    ------
    InputError
        There is no network of this name, it cannot be imported, or its module is not allowed.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    found = {point.name: point for point in entry_points(group=GROUP)}
    try:
        if name in found:
            return found[name].load()
        if ":" in name and name in allowed_networks():
            module, _, attribute = name.partition(":")
            return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as fault:
        raise InputError(
            f"network {name}",
            found=f"{type(fault).__name__}: {fault}",
            expected="a network that can be imported",
            next_step="Install the package that holds it, or put its folder on PYTHONPATH.",
        ) from fault
    raise InputError(
        "network",
        found=repr(name),
        expected="one of " + ", ".join(sorted({*_REGISTRY, *found})),
        next_step=f"To import it from there, set {ALLOWED}={name}: do so if you trust that code."
        if ":" in name
        else "Correct the name, or install the package that brings this network.",
    )


def setting_names(name: str) -> set[str]:
    """Return the settings that a network names; one that takes any (``**settings``) need not know them."""
    return set(inspect.signature(find_network(name)).parameters)


def choose_settings(name: str, wanted: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Choose from general settings those that a network takes.

    Parameters
    ----------
    name
        Of the network.
    wanted
        Values of settings, such as ``k``, ``filters``, ``shrink``.
    defaults
        Values that stand for "not asked for": such a setting is left out where the network has no use for it.

    Raises
    ------
    InputError
        A setting was changed that the network does not take.
    """
    parameters = inspect.signature(find_network(name)).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    chosen = {key: value for key, value in wanted.items() if takes_all or key in parameters}
    useless = [key for key in wanted if key not in chosen and wanted[key] != defaults.get(key)]
    if useless:
        raise InputError(
            f"network {name}",
            found=", ".join(f"{key} = {wanted[key]}" for key in useless),
            expected=f"settings that it takes{_list_settings(find_network(name))}",
            next_step="Leave the others out.",
        )
    return chosen


def _list_settings(factory: Factory) -> str:
    try:
        return f" ({', '.join(inspect.signature(factory).parameters)})"
    except (TypeError, ValueError):
        return ""


register("aniso-unet", AnisoUNet)
register("iso-unet", IsoUNet)
register("sru-net", SRUNet)
register("subpixel-unet", SubpixelUNet)
