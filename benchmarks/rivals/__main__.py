"""Compare iqtflow with other methods on the same people, scans, masks and figures.

    python -m benchmarks.rivals run BIDS OUT --participant-label LABEL [LABEL ...] [--methods FILE.toml]
    python -m benchmarks.rivals report OUT [--to FOLDER]

``run`` simulates a scan of each high-field person (the paper's setting, coronal slices, the seed is the
person's place in the list), runs every method of ``rivals.toml`` on it, and measures what it makes. Each
method with pins of its own gets an environment of its own in OUT. Run the same command again to continue.
``--methods`` adds methods or replaces some: any program that makes a NIfTI file from a NIfTI file is a table
of TOML. ``report`` writes the table and the figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.rivals.run import HERE, read_methods, run_all

RIVALS = HERE / "rivals.toml"


def main() -> None:
    """Run an action."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run the methods")
    run.add_argument("bids", type=Path, help="isotropic high-field T1w scans")
    run.add_argument("output", type=Path)
    run.add_argument("--participant-label", nargs="+", required=True, metavar="LABEL")
    run.add_argument("--k", type=int, nargs="+", default=[4, 8])
    run.add_argument("--methods", type=Path, nargs="+", default=[], metavar="FILE")
    run.add_argument("--only", nargs="+", metavar="NAME", help="only these methods")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--dice", type=int, default=3, help="people whose tissues are found, too (default: 3)")
    report = actions.add_parser("report", help="write table and figure")
    report.add_argument("output", type=Path)
    report.add_argument("--to", type=Path, help="folder (default: OUT)")
    report.add_argument("--methods", type=Path, nargs="+", default=[], metavar="FILE")
    options = parser.parse_args()
    methods = read_methods(RIVALS, *options.methods)
    if options.action == "run":
        chosen = [m for m in methods if options.only is None or m.name in options.only]
        people = [(label, find_scan(options.bids, label)) for label in options.participant_label]
        run_all(
            people, chosen, options.k, options.output.absolute(), threads=options.threads, dice=options.dice
        )
    else:
        from benchmarks.rivals.report import write_report

        print(write_report(options.output, options.to or options.output, methods))


def find_scan(bids: Path, label: str) -> Path:
    """Return the T1w scan of a person."""
    found = sorted((bids / f"sub-{label}").rglob("*_T1w.nii*"))
    if not found:
        raise SystemExit(f"{bids}: found no T1w scan of sub-{label}")
    return found[0]


if __name__ == "__main__":
    main()
