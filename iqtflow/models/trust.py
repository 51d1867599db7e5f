"""Code that a user allows to be imported by name: networks of one's own, written ``module:attribute``.

A model file names its network. Weights from a stranger must not choose what Python imports, so such a name is
followed only when the user gave it on the command line, or listed it in the environment.
"""

from __future__ import annotations

import os

ALLOWED = "IQTFLOW_NETWORKS"  #: environment variable: ``module:attribute``, with commas between several


def allowed_networks() -> list[str]:
    """Networks that may be imported by ``module:attribute``, as the environment variable lists them."""
    return [item.strip() for item in os.environ.get(ALLOWED, "").split(",") if item.strip()]


def allow_network(name: str) -> None:
    """Allow a network that the user named as ``module:attribute``, in this process and in its children."""
    if ":" in name and name not in allowed_networks():
        os.environ[ALLOWED] = ",".join([*allowed_networks(), name])
