"""The arguments of ``iqtflow``. They have the names that users of other BIDS Apps know."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.cli.checks import refuse_options
from iqtflow.cli.options import Formatter, add_option, value
from iqtflow.config import SETTINGS, read_sections
from iqtflow.utils.errors import EXIT_CODES
from iqtflow.utils.system import available_cpus, available_memory_gb

DESCRIPTION = """\
Image quality transfer for low-field, thick-slice MRI of the brain (Lin et al. 2019, arXiv:1909.06763).

  enhance (the default):  estimate an isotropic, high-field-like image from each thick-slice T1w scan
  train, participant:     simulate low-field scans from high-field ones, and cut patches from both
  train, group:           train and evaluate a network on the patches of all subjects
  calibrate, participant: measure the tissue SNR of your own low-field scans
  calibrate, group:       fit the distribution of SNR that --snr-prior takes, for training
  adapt, both:            calibrate; then fine-tune a model for your scanner, and tell whether that helped

For research only. The output is an estimate: details may be missing from it, or may not be real.
"""
EPILOG = """\
exit codes:
{codes}

examples:
  iqtflow /data/bids /data/derivatives/iqtflow participant
  iqtflow /data/bids /out participant --participant-label 01 02 --device cuda
  iqtflow /data/lowfield /site participant group --mode calibrate
  iqtflow /data/lowfield /site participant group --mode adapt --highfield /data/highfield --budget 1h
  iqtflow /data/highfield /out participant group --mode train --split split.json \\
      --snr-prior /site/calibration/prior.json
"""


class ListModels(argparse.Action):
    """Print the shipped models, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print a paragraph for each model."""
        from iqtflow.models.zoo import describe_models

        print(describe_models())
        parser.exit()


def build_parser(
    defaults: dict[str, dict[str, Any]] | None = None, *, folders_needed: bool = True
) -> argparse.ArgumentParser:
    """Build the parser. The value of `key` in section `s` of the settings is its attribute ``s__key``.

    Parameters
    ----------
    defaults
        Values by section and key that replace the defaults, for instance from a settings file.
    folders_needed
        Whether the data set, the output and the level have to be given; ``--doctor`` does without.
    """
    parser = argparse.ArgumentParser(
        prog="iqtflow",
        usage="iqtflow bids_dir output_dir {participant,group} [...] [--mode MODE] [options]",
        description=DESCRIPTION,
        epilog=EPILOG.format(codes="\n".join(f"  {code:<4} {text}" for code, text in EXIT_CODES.items())),
        formatter_class=Formatter,
        allow_abbrev=False,  # an abbreviation could mean another option in the next version
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(**_defaults(defaults or {}))
    _add_positionals(parser, needed=folders_needed)
    items = [item for section in SETTINGS.values() for item in section.values() if item.group]
    names = sorted({item.group: 0 for item in items}, key="resources".__eq__)  # these come last
    groups = {name: parser.add_argument_group(name) for name in names}
    _add_actions(groups["what to do"], groups["which scans"], groups["resources"])
    for item in items:
        add_option(groups[item.group], item)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the defaults, or over those in its ``--config-file``.

    Raises
    ------
    UsageError
        The settings file cannot be used.
    SystemExit
        The arguments cannot be parsed (code 2), or help or the version was asked for (code 0).
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config-file", type=Path)
    early.add_argument("--doctor", action="store_true")
    known = early.parse_known_args(argv)[0]
    defaults = read_sections(known.config_file) if known.config_file else {}
    parser = build_parser(defaults, folders_needed=not known.doctor)
    options = parser.parse_args(argv)
    options.notes = refuse_options(parser, options, build_parser(defaults))
    return options


def _add_positionals(parser: argparse.ArgumentParser, *, needed: bool) -> None:
    one: dict[str, Any] = {"type": Path, **({} if needed else {"nargs": "?", "default": None})}
    # With choices an empty list would be refused, up to Python 3.11.
    levels = SETTINGS["run"]["levels"].choices
    level: dict[str, Any] = {"nargs": "+", "choices": levels} if needed else {"nargs": "*", "default": None}
    parser.add_argument(
        "paths__bids_dir",
        metavar="bids_dir",
        help="root of a BIDS data set, or folder of HCP downloads; nothing is written into it",
        **one,
    )
    parser.add_argument("paths__output_dir", metavar="output_dir", help="root of the derivatives", **one)
    parser.add_argument(
        "run__levels",
        metavar="analysis_level",
        help="participant, group, or both, one after the other",
        **level,
    )


def _add_actions(what: Any, scans: Any, resources: Any) -> None:
    """Add the options that are no settings to the groups "what to do", "which scans" and "resources"."""
    switch: dict[str, Any] = {"action": "store_true", "default": False}
    what.add_argument("--version", action="version", version=f"iqtflow {iqtflow.__version__}")
    what.add_argument("--list-models", action=ListModels, nargs=0, help="list the shipped models, and exit")
    what.add_argument(
        "--doctor",
        **switch,
        help="check what a run with these arguments needs, and exit; needs no folders",
    )
    only = what.add_mutually_exclusive_group()
    only.add_argument("--dry-run", **switch, help="print what would be done with each scan, and do nothing")
    only.add_argument(
        "--reports-only", **switch, help="write the pages again from existing results, and exit"
    )
    only.add_argument(
        *("--boilerplate-only", "--boilerplate_only"),
        **switch,
        help="write logs/CITATION.md and .bib, and exit",
    )
    what.add_argument(
        "--overwrite",
        **switch,
        help="replace results in the output folder that another model or other settings made; without it the "
        "run is refused",
    )
    what.add_argument(
        "--config-file",
        metavar="FILE",
        type=Path,
        help="settings in TOML; the command line overrides them; every run writes a settings.toml into its"
        " work directory (default: none)",
    )
    scans.add_argument(
        "--bids-database-wipe",
        **switch,
        help="make the index of --bids-database-dir again, after files were added or removed",
    )
    resources.add_argument(
        *("-w", "--work-dir"),
        dest="paths__work_dir",
        metavar="DIR",
        type=Path,
        help="intermediate results, from which an interrupted run continues; never inside the data set"
        " (default: OUTPUT_DIR-work, beside the output or the data set that holds it)",
    )
    resources.add_argument(
        "--clean-workdir",
        **switch,
        help="empty the work directory first, with the checkpoints of trainings, and compute everything "
        "again; not while another run uses it",
    )
    resources.add_argument(
        *("--mem", "--mem-mb", "--mem_mb"),
        dest="run__mem_gb",
        metavar="MB",
        type=_megabytes,
        help="memory to use in MB, or with a unit, such as 16G, as for fMRIPrep (default: --mem-gb)",
    )


def _defaults(given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the default of every setting under its attribute's name."""
    cpus = available_cpus()
    machine = {
        "nprocs": cpus,
        "omp_nthreads": min(cpus, 8),
        "mem_gb": round(0.9 * available_memory_gb(), 1),
        "device": "auto",
    }
    values: dict[str, Any] = {"paths__work_dir": None, "config_file": None}
    for section in SETTINGS.keys() - {"paths"}:
        values |= {f"{section}__{name}": item.default for name, item in SETTINGS[section].items()}
    values |= {f"run__{key}": default for key, default in machine.items()}
    for section, chosen in given.items():
        values |= {f"{section}__{key}": default for key, default in chosen.items()}
    return values


def _megabytes(text: str) -> float:
    """Convert memory in MB, or with one of the units T, G, M and K, to GB."""
    units = {"T": 1e3, "G": 1.0, "M": 1e-3, "K": 1e-6}
    number = text.upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in units else "M"
    return value(float, above=0)(number.removesuffix(unit)) * units[unit]
