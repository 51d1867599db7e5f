"""``iqtflow-enhance``: turn one thick-slice scan into a thin-slice one, without BIDS."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from iqtflow.errors import InputError, run_command

PROG = "iqtflow-enhance"
SKULL_STRIPPED = {"yes": True, "no": False, "auto": None}


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("scan", type=Path, help="thick-slice T1w scan (.nii or .nii.gz)")
    parser.add_argument("output", type=Path, help="enhanced volume to write")
    parser.add_argument("--std", type=Path, help="write the standard deviation over the ensemble here (ensembles only)")
    parser.add_argument("--spline", type=Path, help="write the cubic B-spline interpolation on the same grid here")
    parser.add_argument("--mask-out", type=Path, help="write the brain mask on the scan's grid here")
    parser.add_argument("--json", type=Path, help="write geometry, model, device, seconds and memory here")
    parser.add_argument("--model", help="model file, or name of a shipped model; chosen by slice spacing when not given")
    parser.add_argument("--sidecar", type=Path, help="BIDS metadata of the scan (SliceThickness, SpacingBetweenSlices)")
    parser.add_argument("--skull-stripped", choices=tuple(SKULL_STRIPPED), default="auto", help="does the scan show the brain only?")
    parser.add_argument("--force", action="store_true", help="enhance a near-isotropic scan too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run the network")
    parser.add_argument("--num-threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--max-memory-gb", type=float, help="memory that one pass may take; tiles when it takes more")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code (0 for a near-isotropic scan, which is skipped with a sentence)."""
    options = build_parser().parse_args(argv)
    return run_command(PROG, lambda: _enhance(options))


def _enhance(options: argparse.Namespace) -> None:
    import torch

    from iqtflow import __version__
    from iqtflow.conform import check_scan
    from iqtflow.inference import NothingToGain, enhance_image
    from iqtflow.nifti import write_json, write_volume

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda", found="no CUDA device", expected="a visible NVIDIA GPU", next_step="Start the container with --gpus all (Docker) or --nv (Apptainer), or use --device cpu.")
    image = check_scan(options.scan)
    sidecar = _read_sidecar(options.sidecar)
    try:
        result = enhance_image(image, sidecar=sidecar, model=options.model, device=options.device, num_threads=options.num_threads, skull_stripped=SKULL_STRIPPED[options.skull_stripped],
                               force=options.force, max_memory_gb=options.max_memory_gb)
    except NothingToGain as skipped:
        print(f"{PROG}: {options.scan}: skipped: found {skipped.found}. {skipped.next_step}")
        return
    details = {**result.details, "SoftwareVersion": __version__}
    print(f"{PROG} {__version__}: {details['Device']}, {details['Precision']}, {details['Tiling']}; model {details['Model']['Name']} (k = {details['UpsamplingFactor']}); {details['GeometrySource']}", flush=True)
    for warning in details["Warnings"]:
        print(f"{PROG}: note: {warning}", flush=True)
    for path, volume in ((options.std, result.std), (options.spline, result.spline), (options.mask_out, result.mask), (options.output, result.mean)):
        if path is not None and volume is not None:
            write_volume(path, volume.dataobj, volume.affine, like=image)
    if options.json:
        write_json(options.json, details)


def _read_sidecar(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as fault:
        raise InputError(path, found=f"{type(fault).__name__}: {fault}", expected="a JSON object", next_step="Correct the sidecar.") from fault


if __name__ == "__main__":
    raise SystemExit(main())
