"""Networks by name. A network maps a normalised thick-slice patch (batch, 1, w, h, d) to the thin-slice patch
(batch, 1, w, h, k d).

A network of your own is a `torch.nn.Module` with the attributes ``k`` (upsampling factor) and
``min_multiple`` (three integers; the sizes of the input must be multiples of them). There are three ways to
give it a name, without a change to this package:

* An entry point of the group ``iqtflow.networks`` in the package that contains the network. It is found
  wherever that package is installed, also in child processes and in inference.
* ``module:attribute`` instead of a name, for a module on Python's path. A *model file* with such a name is
  only opened if the environment variable ``IQTFLOW_NETWORKS`` lists the name: a model file from a stranger
  must not decide what Python imports.
* `register`, within one process.

A network that predicts its error has an attribute ``error_head``, the module that does this, and a second
output channel: the natural logarithm of the variance of the error. ``--uncertainty only`` trains the weights
of that module alone.

Two more attributes are copied to the model's card. ``context`` is "whole" for a network that takes a whole
volume in one pass; "patch", the default, for one that takes tiles of the training patch's size.
``pass_bytes`` is the memory of a pass in bytes for each thin-slice voxel, by precision ("float32",
"bfloat16").
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from iqtflow.utils.errors import InputError

if TYPE_CHECKING:
    from torch import nn

GROUP = "iqtflow.networks"  #: entry points of networks in other packages
ALLOWED = "IQTFLOW_NETWORKS"  #: environment variable: ``module:attribute``, with commas between several

Factory = Callable[..., "nn.Module"]

#: Factories by name; the package's own as ``module:attribute``, imported when they are built.
_REGISTRY: dict[str, Factory | str] = {
    "aniso-unet": "iqtflow.models.unets:AnisoUNet",
    "iso-unet": "iqtflow.models.unets:IsoUNet",
    "sru-net": "iqtflow.models.unets:SRUNet",
    "subpixel-unet": "iqtflow.models.subpixel:SubpixelUNet",
}


def register(name: str, factory: Factory) -> None:
    """Make a network available by name.

    Parameters
    ----------
    name
        Name in settings and in model files.
    factory
        Called with keyword arguments (``k`` among them); returns a module with the attributes ``k``
        (upsampling factor) and ``min_multiple`` (three integers; the input's sizes must be multiples of
        them).

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

    Parameters
    ----------
    name
        Name of the network.
    **kwargs
        Its settings; ``k`` is one of them.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    InputError
        There is no network of this name, it does not take these settings, or the result is not a network.
    """
    from torch import nn

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
    """Return the factory of a network.

    Raises
    ------
    InputError
        There is no network of this name, it cannot be imported, or its module is not allowed.
    """
    known = _REGISTRY.get(name, name)
    if not isinstance(known, str):
        return known
    found = {point.name: point for point in entry_points(group=GROUP)}
    try:
        if name in found:
            return found[name].load()
        if ":" in known and (known != name or name in allowed_networks()):
            module, _, attribute = known.partition(":")
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
        next_step=f"To import it from there, set {ALLOWED}={name}; do this only if you trust that code."
        if ":" in name
        else "Correct the name, or install the package that brings this network.",
    )


def allowed_networks() -> list[str]:
    """Return the networks that may be imported by ``module:attribute``, from the environment variable."""
    return [item.strip() for item in os.environ.get(ALLOWED, "").split(",") if item.strip()]


def allow_network(name: str) -> None:
    """Allow a network that the user named as ``module:attribute``, in this process and in its children."""
    if ":" in name and name not in allowed_networks():
        os.environ[ALLOWED] = ",".join([*allowed_networks(), name])


def setting_names(name: str) -> set[str]:
    """Return the names of a network's settings, as far as its factory lists them."""
    return set(inspect.signature(find_network(name)).parameters)


def choose_settings(name: str, wanted: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings that a network takes.

    Parameters
    ----------
    name
        Name of the network.
    wanted
        Values of settings, such as ``k``, ``filters``, ``shrink``.
    defaults
        Default values. A setting at its default is left out if the network does not take it.

    Returns
    -------
    dict
        The settings for `build_network`.

    Raises
    ------
    InputError
        A setting that the network does not take is not at its default.
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
