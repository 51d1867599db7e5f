"""Repeat the experiments of Lin et al. 2019 (section 3) on any data set, with one command.

    python -m benchmarks.paper plan    BIDS OUT [--preset lin2019]
    python -m benchmarks.paper run     BIDS OUT [--preset lin2019] [--cells NAME ...] [-- OPTIONS OF IQTFLOW]
    python -m benchmarks.paper table   BIDS OUT [--preset lin2019]
    python -m benchmarks.paper figures BIDS OUT [--preset lin2019]

``run`` prints the expected time and disk space, then runs the cells that are not done. Run the same command
again to continue. Start it several times to use several GPUs (each with its own CUDA_VISIBLE_DEVICES) or an
array of SLURM jobs on a shared disk: each process takes the next training that no other process has taken.
Options after ``--`` go to every ``iqtflow`` command, such as ``--device cuda``, ``--n-gpu-procs``,
``--use-plugin``, ``--segmentation`` and ``--nprocs``. ``table`` and ``figures`` show the cells that are
done, at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.paper.cost import estimate, format_estimate, free_gb
from benchmarks.paper.design import Design, read_design
from benchmarks.paper.run import Place, prepare, run_cell, settle_split
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED
from iqtflow.utils.gpus import resolve_device


def build_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("plan", "run", "table", "figures"))
    parser.add_argument("bids_dir", type=Path, help="isotropic high-field T1w scans: BIDS, or folders of HCP")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--preset", default="lin2019", help="included design or TOML file (default: lin2019)")
    parser.add_argument("--split", type=Path, help="split of the subjects (default: one is drawn)")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="only these cells; plan lists them")
    parser.add_argument("--hours", type=float, help="start no cell after this time")
    parser.add_argument(
        "--statistic",
        default="averaged",
        choices=("averaged", "best-member", "members-mean"),
        help="values of an ensemble in the tables: of its averaged volume, of its best network (as in the "
        "paper), or the mean over its networks (default: averaged)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    options = build_parser().parse_args(argv[:cut])
    place = Place(options.bids_dir.absolute(), options.output_dir.absolute(), tuple(argv[cut + 1 :]))
    codes = [EXIT_OK]
    fault = run_command("paper", lambda: codes.append(_act(options, place)))
    return fault or codes[-1]


def _act(options: argparse.Namespace, place: Place) -> int:
    design = read_design(options.preset)
    if options.action in ("plan", "run"):
        return _run(options, design, place)
    if options.action == "table":
        from benchmarks.paper.results import write_report

        print(write_report(design, place, statistic=options.statistic))
    else:
        from benchmarks.paper.figures import draw_figures

        for path in draw_figures(design, place, statistic=options.statistic):
            print(path)
    return EXIT_OK


def _run(options: argparse.Namespace, design: Design, place: Place) -> int:
    began = time.monotonic()
    cells = design.choose(options.cells)
    split = settle_split(design, place, options.split)
    device = resolve_device(place.option("--device", "auto")).name
    items = estimate(design, place, cells, split, device)
    print(f"paper: {design.fields['title']}: {len(cells)} cells, {device}")
    print(format_estimate(items, device=device, free_gb=free_gb(place.output_dir)), flush=True)
    if options.action == "plan":
        return EXIT_OK
    preparations = design.preparations(cells)
    for preparation in preparations:
        maps = None if preparation is preparations[0] else preparations[0]
        if not prepare(preparation, design, place, maps=maps):
            return EXIT_SUBJECT_FAILED
    left = {"failed": [], "with another process": [], "not begun": []}
    for cell in cells:
        if options.hours is not None and time.monotonic() - began > 3600 * options.hours:
            left["not begun"].append(cell.name)
            continue
        result = run_cell(cell, design, place)
        if not result:
            left["with another process" if result is None else "failed"].append(cell.name)
    for state, names in left.items():
        if names:
            print(f"paper: {state}: {', '.join(names)}", flush=True)
    return EXIT_SUBJECT_FAILED if left["failed"] else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
