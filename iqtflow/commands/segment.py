"""``iqtflow-segment``: tissue probability maps and a brain mask of one T1-weighted volume."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from iqtflow.argument_types import whole_number
from iqtflow.errors import require_parent, run_command

PROG = "iqtflow-segment"
#: What the answers on the command line mean to `find_brain_mask`.
SKULL_STRIPPED = {"yes": True, "no": False, "auto": None}


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Segment a T1-weighted volume into WM, GM and CSF. Writes "
        "PREFIX_label-{WM,GM,CSF}_probseg.nii.gz, PREFIX_desc-brain_mask.nii.gz, "
        "PREFIX_desc-preproc_T1w.nii.gz and PREFIX_segmentation.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("image", type=Path, help="T1-weighted volume (.nii or .nii.gz)")
    parser.add_argument("--out-prefix", required=True, help="folder and beginning of the outputs' names")
    parser.add_argument(
        "--skull-stripped", choices=list(SKULL_STRIPPED), default="auto", help="is the skull gone? auto: look"
    )
    parser.add_argument("--mask", type=Path, help="brain mask on the image's grid; found when not given")
    parser.add_argument("--num-threads", type=whole_number(1), default=1, metavar="N", help="CPU threads")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of the segmentation")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    return run_command(PROG, lambda: _segment(options))


def _segment(options: argparse.Namespace) -> None:
    # Known before minutes are spent: the folder can be written, the files can be read.
    details_file = require_parent(f"{options.out_prefix}_segmentation.json")
    prefix = str(details_file).removesuffix("_segmentation.json")

    import nibabel as nib
    import numpy as np

    from iqtflow import __version__
    from iqtflow.nifti import read_volume, write_json, write_volume
    from iqtflow.segmentation import check_plausible, segment_tissues

    image, data = read_volume(options.image)
    mask = None if options.mask is None else read_volume(options.mask, like=image)[1] > 0.5
    volume = nib.Nifti1Image(data, image.affine)
    volume.set_filename(os.fspath(options.image))  # what messages call it
    maps = segment_tissues(
        volume,
        mask=mask,
        skull_stripped=SKULL_STRIPPED[options.skull_stripped],
        num_threads=options.num_threads,
        seed=options.seed,
    )
    notes = check_plausible(maps, volume)
    for note in notes:
        print(f"{PROG}: note: {options.image}: {note}", flush=True)

    outputs = {
        "label-WM_probseg": maps.wm,
        "label-GM_probseg": maps.gm,
        "label-CSF_probseg": maps.csf,
        "desc-brain_mask": maps.mask.astype(np.uint8),
        "desc-preproc_T1w": maps.bias_corrected,
    }
    for ending, values in outputs.items():
        write_volume(f"{prefix}_{ending}.nii.gz", values, image.affine, like=image)
    record = {
        "Sources": [os.fspath(options.image)],
        "Engine": maps.engine,
        "EngineVersion": maps.version,
        "PackageVersion": __version__,
        "Warnings": notes,
        **maps.details,
    }
    write_json(details_file, record)


if __name__ == "__main__":
    raise SystemExit(main())
