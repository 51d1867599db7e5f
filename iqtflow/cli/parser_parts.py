"""What the arguments of ``iqtflow`` are made of: texts, options that belong to a setting, help as typed."""

from __future__ import annotations

import argparse
from typing import Any

from iqtflow.config import SECTIONS
from iqtflow.utils.errors import EXIT_CODES

DESCRIPTION = """\
Image quality transfer for low-field, thick-slice MRI of the brain (Lin et al. 2019, arXiv:1909.06763).

  enhance (the default):  estimate an isotropic, high-field-like image from each thick-slice T1w scan
  train, participant:     simulate low-field scans from high-field ones, and cut patches from both
  train, group:           train and evaluate a network on the patches of all participants
  calibrate, participant: measure the tissue SNR of a site's own low-field scans
  calibrate, group:       fit the distribution of SNR that --snr-prior takes, for training

For research only. The output is an estimate: details may be missing from it, or be made up by it.
"""

_EPILOG = """\
exit codes:
{codes}

examples:
  iqtflow /data/bids /data/derivatives/iqtflow participant
  iqtflow /data/bids /out participant --participant-label 01 02 --device cuda
  iqtflow /data/lowfield /site participant group --mode calibrate
  iqtflow /data/highfield /out participant group --mode train --split split.json \\
      --snr-prior /site/calibration/prior.json
"""


EPILOG = _EPILOG.format(codes="\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()))


def option(
    group: Any, section: type, key: str, *flags: str, help: str, shown: str = "%(default)s", **more: Any
) -> None:
    """Add the option of a setting, with its default (or what is `shown` for it) at the end of its help."""
    group.add_argument(
        *flags, dest=f"{section_name(section)}__{key}", help=f"{help} (default: {shown})", **more
    )


def flag(group: Any, section: type, key: str, name: str, *, help: str) -> None:
    """Add the two options ``--x`` and ``--no-x`` of a setting that is yes or no."""
    action = group.add_argument(
        name, dest=f"{section_name(section)}__{key}", action=argparse.BooleanOptionalAction
    )
    action.help = f"{help} (default: %(default)s)"  # later: up to Python 3.12 the action adds this by itself


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Show values as they are typed, not as Python writes them."""

    def _expand_help(self, action: argparse.Action) -> str:
        default = action.default
        if isinstance(default, bool):
            shown = "yes" if default else "no"
        elif isinstance(default, tuple):
            shown = (" " if action.nargs else ",").join(f"{item}" for item in default)
        else:
            shown = default
        return (self._get_help_string(action) or "") % {"default": shown, "prog": self._prog}


class ListModels(argparse.Action):
    """Print the models that ship, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print a paragraph for each model."""
        from iqtflow.models.zoo import describe_models

        print(describe_models())
        parser.exit()


def section_name(section: type) -> str:
    """Return the name of a section of the settings."""
    return next(name for name, known in SECTIONS.items() if known is section)
