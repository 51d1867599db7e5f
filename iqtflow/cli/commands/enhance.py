"""``iqtflow-enhance``: turn one thick-slice scan into a thin-slice one, without BIDS."""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.cli.types import positive, workers
from iqtflow.reports.run_summary import describe_enhancement
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError
from iqtflow.utils.gpus import device_claimed
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs
from iqtflow.utils.system import USUAL_GB, WITH_TORCH_GB

PROG = "iqtflow-enhance"
PRECISIONS, TILINGS = ("auto", "float32", "bfloat16"), ("auto", "whole", "tiles", "paper")
SKULL_STRIPPED = {"yes": True, "no": False, "auto": None}
#: BIDS suffixes that say a scan's contrast.
CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "T1rho", "inplaneT1", "inplaneT2", "angio")


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("scan", type=Path, help="thick-slice scan (.nii or .nii.gz)")
    add("output", type=Path, help="enhanced volume to write")
    add(
        "--std",
        type=Path,
        help="write the standard deviation of the expected error here (models that predict it; ensembles; "
        "--average-mirrored)",
    )
    add("--spline", type=Path, help="write the cubic B-spline interpolation on the same grid here")
    add("--mask-out", type=Path, help="write the brain mask on the scan's grid here")
    add("--json", type=Path, help="write geometry, model, device, seconds and memory here")
    add("--model", help="model file, or name of a model that ships; chosen by slice spacing when not given")
    add("--contrast", help="BIDS suffix, such as T1w; read from the file's name when not given, else T1w")
    add("--sidecar", type=Path, help="BIDS metadata of the scan (SliceThickness, SkullStripped)")
    add("--skull-stripped", choices=tuple(SKULL_STRIPPED), default="auto", help="is the skull gone?")
    add("--force", action="store_true", help="enhance a near-isotropic scan too")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run the networks")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of convolutions; auto: bfloat16 where the hardware multiplies it, else float32",
    )
    add(
        "--tiling",
        choices=TILINGS,
        default="auto",
        help="auto: the whole volume in one pass if the model's training and the memory allow, else tiles; "
        "paper: as Lin et al. 2019, slowly",
    )
    add(
        "--keep-white-matter",
        choices=("yes", "no"),
        default="yes",
        help="scale an estimate whose white matter left the scan's by more than on evaluation scans",
    )
    add(
        "--average-mirrored",
        action="store_true",
        help="average with the estimate of the left-right mirrored scan",
    )
    add("--num-threads", type=workers, default=1, help="CPU threads")
    add("--max-memory-gb", type=positive, help="memory for the networks; tiles when one pass takes more")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    A near-isotropic scan is refused with a sentence, unless ``--force`` is given: nothing is written, and the
    code is 1.
    """
    return run_command(
        PROG,
        lambda: _run(build_parser().parse_args(argv)),
        least_gb=WITH_TORCH_GB,
        needs_gb=USUAL_GB,
        spares_memory="use --tiling tiles or a lower --max-memory-gb, or ",
    )


def _run(options: argparse.Namespace) -> None:
    images = {"output": "output", "--std": "std", "--spline": "spline", "--mask-out": "mask_out"}
    check_outputs(
        PROG,
        {
            **{option: (getattr(options, name), IMAGE) for option, name in images.items()},
            "--json": (options.json, JSON),
        },
        inputs=(options.scan, options.sidecar, options.model),
        overwrite=options.overwrite,
    )
    # Before torch is there, which looks at once what GPUs it may see.
    with device_claimed(options.device, lambda line: print(f"{PROG}: {line}", flush=True)):
        _enhance(options)


def _enhance(options: argparse.Namespace) -> None:
    import torch

    from iqtflow import __version__
    from iqtflow.image.nifti import require_finite, write_image, write_json
    from iqtflow.image.validate import check_scan
    from iqtflow.inference.pipeline import enhance_image

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda",
            found="no CUDA device",
            expected="a visible NVIDIA GPU",
            next_step="Start the container with --gpus all (Docker) or --nv (Apptainer), or use the CPU.",
        )
    image = check_scan(options.scan)
    result = enhance_image(
        image,
        sidecar=_read_sidecar(options.sidecar),
        model=options.model,
        contrast=options.contrast or contrast_of(options.scan),
        device=options.device,
        precision=None if options.precision == "auto" else options.precision,
        num_threads=options.num_threads,
        skull_stripped=SKULL_STRIPPED[options.skull_stripped],
        force=options.force,
        max_memory_gb=options.max_memory_gb,
        tiling=options.tiling,
        mirror=options.average_mirrored,
        keep_white_matter=options.keep_white_matter == "yes",
        report=lambda line: print(f"{PROG} {__version__}: {line}", flush=True),
    )
    # The enhanced volume last: where it is, all is.
    made = [
        (path, volume)
        for path, volume in (
            (options.std, result.std),
            (options.spline, result.spline),
            (options.mask_out, result.mask),
            (options.output, result.mean),
        )
        if path is not None and volume is not None
    ]
    for path, volume in made:  # all of them or none
        require_finite(path, volume)
    for path, volume in made:
        write_image(path, volume, maker=PROG)
    if options.json:
        write_json(options.json, result.details, maker=PROG)
    for line in describe_enhancement(result.details):
        print(f"{PROG}: {options.output}: {line}", flush=True)


def contrast_of(path: Path) -> str:
    """Return the contrast that a file's name states in the manner of BIDS (``..._T2w.nii.gz``), else T1w."""
    suffix = path.name.split(".")[0].rpartition("_")[2]
    return suffix if suffix in CONTRASTS else "T1w"


def _read_sidecar(path: Path | None) -> dict:
    if path is None:
        return {}
    from iqtflow.image.metadata import read_fields, settle_values

    fields, notes = settle_values(read_fields(path), path)
    for note in notes:
        print(f"{PROG}: note: {note}", flush=True)
    return fields


if __name__ == "__main__":
    raise SystemExit(main())
