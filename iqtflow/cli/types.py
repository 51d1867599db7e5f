"""Argument types of the command line: text in, a value or a plain refusal out."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iqtflow.bids.names import is_label
from iqtflow.config import AXES


def whole_number(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return the type of whole numbers from `least` to `most`, which libraries in C can hold."""

    def convert(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{value} is more than {most}")
        return value

    convert.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"
    return convert


#: Type of numbers of threads, processes, devices and computers: more than any machine, or job, has.
workers = whole_number(1, 1024)


def prefix(text: str) -> str:
    """Check that a path ends in the beginning of a file's name: else names would begin with ``_``."""
    if os.path.basename(text) in ("", ".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} ends in no beginning of a file name, as maps/sub-01 does")
    return text


def positive(text: str) -> float:
    """Convert to a number above 0, and finite."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative(text: str) -> float:
    """Convert to a number from 0 on, and finite."""
    return 0.0 if float(text) == 0 else positive(text)


def between(least: float, most: float) -> Callable[[str], float]:
    """Return the type of numbers from `least` to `most`."""

    def convert(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    convert.__name__ = "number"
    return convert


def fraction(text: str) -> float:
    """Convert to a slice thickness over spacing: above 0, and not above 1, where slices would overlap."""
    if positive(text) > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1: slices would overlap")
    return float(text)


def share(text: str) -> float:
    """Convert to a share: from 0 to 1."""
    if not_negative(text) > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1")
    return float(text)


def bids_label(entity: str) -> Callable[[str], str]:
    """Return the type of BIDS labels of `entity`, which its prefix may precede."""

    def convert(text: str) -> str:
        bare = text.removeprefix(f"{entity}-")
        if not is_label(bare):
            raise argparse.ArgumentTypeError(f"{text!r} is no BIDS label: letters and digits only, and +")
        return bare

    return convert


def axes(text: str) -> tuple[str, ...]:
    """Convert to names of voxel axes, written with commas between them.

    Examples
    --------
    >>> axes("x,y")
    ('x', 'y')
    """
    names = tuple(text.split(","))
    if not set(names) <= set(AXES) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {', '.join(AXES)}, each once, with commas")
    return names


def draws(text: str) -> int | str:
    """Convert to a number of simulated scans, or the word "fresh"."""
    return text if text == "fresh" else whole_number(1)(text)


def network_option(text: str) -> tuple[str, Any]:
    """Convert ``name=value`` to a setting of a network; a value that is no JSON is a text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def network_setting(text: str) -> str:
    """Check that a text is of the form ``name=value``, and return it as it is."""
    network_option(text)
    return text


def megabytes(text: str) -> float:
    """Convert memory in MB, or with one of the units T, G, M and K, to GB."""
    units = {"T": 1e3, "G": 1.0, "M": 1e-3, "K": 1e-6}
    number = text.upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in units else "M"
    return positive(number.removesuffix(unit)) * units[unit]


def named_folder(text: str) -> Path:
    """Convert to a folder, with a name before it or not: ``smriprep=/data/smriprep``, as fMRIPrep has it."""
    name, _, folder = text.partition("=")
    return Path(folder if folder and name.isidentifier() and not os.path.exists(text) else text)
