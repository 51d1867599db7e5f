"""Image quality transfer for low-field, thick-slice MRI of the brain, as a BIDS App and as nipype
workflows.
"""

from __future__ import annotations

import os
import sys

__version__ = "0.1.0"
__all__ = ["enhance"]

# nipype asks its server for updates unless this is set before it is imported. Nothing leaves the machine.
os.environ["NIPYPE_NO_ET"] = os.environ["NO_ET"] = "1"

# "python -m iqtflow.cli" looks for libraries in the current folder first, and would run a numpy.py there.
if (
    sys.argv[:1] == ["-m"]
    and any(argument.removeprefix("-m").split(".")[0] == "iqtflow" for argument in sys.orig_argv)
    and not getattr(sys.flags, "safe_path", False)
):
    del sys.path[0]


def __getattr__(name: str):
    """Import the public function when it is first used: ``import iqtflow`` alone loads no torch."""
    if name != "enhance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("iqtflow.inference.pipeline").enhance


def __dir__() -> list[str]:
    return [*globals(), *__all__]
