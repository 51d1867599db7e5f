"""``iqtflow-segment``: tissue probability maps and a brain mask of one T1-weighted volume."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqtflow.cli.options import SKULL_STRIPPED, Formatter, add_command_options, value
from iqtflow.segmentation.precomputed import ReadyMaps, find_ready_maps
from iqtflow.segmentation.select import EngineChoice, choose_engine
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.files import require_parent
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np

    from iqtflow.segmentation.atropos import TissueMaps

PROG = "iqtflow-segment"
#: Ends of the images' names, after the prefix.
IMAGES = ("label-WM_probseg", "label-GM_probseg", "label-CSF_probseg", "desc-brain_mask", "desc-preproc_T1w")


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Segment a T1-weighted volume into WM, GM and CSF. Writes\n"
        "PREFIX_label-{WM,GM,CSF}_probseg.nii.gz, PREFIX_desc-brain_mask.nii.gz,\n"
        "PREFIX_desc-preproc_T1w.nii.gz and PREFIX_segmentation.json.",
        formatter_class=Formatter,
    )
    add = parser.add_argument
    add("image", type=Path, help="T1-weighted volume (.nii or .nii.gz)")
    add("--out-prefix", type=_prefix, required=True, help="folder and beginning of the outputs' names")
    add_command_options(parser, "segmentation", ["engine"], default="ants")
    add(
        "--skull-stripped",
        choices=list(SKULL_STRIPPED),
        default="auto",
        help="is the skull removed? auto: look at the image",
    )
    add(
        "--priors",
        choices=("none", "atlas"),
        default="none",
        help="where the engine ants expects tissues: anywhere, or as in an atlas, for thick slices",
    )
    add("--mask", type=Path, help="brain mask on the image's grid (default: found)")
    add_command_options(parser, "run", ["omp_nthreads"])
    add_command_options(parser, "run", ["seed"], type=value(int, low=0))
    ready = parser.add_argument_group("ready-made maps (only for the engine derivatives)")
    add_command_options(ready, "segmentation", ["derivatives"], type=Path, nargs=None, default=None)
    for tissue in ("WM", "GM", "CSF"):
        ready.add_argument(
            f"--{tissue.lower()}-map", type=Path, metavar="FILE", help=f"probability map of {tissue}"
        )
    ready.add_argument("--mask-map", type=Path, metavar="FILE", help="brain mask that belongs to the maps")
    spm = parser.add_argument_group("SPM (only for the engine spm)")
    add_command_options(spm, "segmentation", ["spm_dir", "tpm", "octave", "sampling_mm"])
    add(
        "--whole-head",
        type=Path,
        metavar="FILE",
        help="the image before its skull was removed, on the same grid, which SPM segments in its place "
        "(default: for the Human Connectome Project's ..._restore_brain.nii.gz, the image beside it)",
    )
    add_overwrite(parser)
    return parser


def _prefix(text: str) -> str:
    """Check that a path ends in the beginning of a file name; else names would begin with ``_``."""
    if os.path.basename(text) in ("", ".", ".."):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected the beginning of a name, as maps/sub-01")
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _segment(_parse(argv)))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(argv)
    named = [options.wm_map, options.gm_map, options.csf_map]
    if any(named) and not all(named):
        parser.error("--wm-map, --gm-map and --csf-map belong together")
    return options


def _segment(options: argparse.Namespace) -> None:
    if options.priors == "atlas" and options.engine in ("spm", "derivatives"):
        raise UsageError(
            "--priors atlas",
            found=f"it together with --engine {options.engine}",
            expected="--engine ants or auto, which can use an atlas",
            next_step="Leave one of the two out: SPM has priors of its own.",
        )
    # First check that the outputs can be written, the files can be read and the engine exists.
    details_file = Path(f"{options.out_prefix}_segmentation.json").absolute()
    beginning = str(details_file).removesuffix("_segmentation.json")
    maps = _ready_maps(options)
    check_outputs(
        PROG,
        {
            **{f"--out-prefix ({name})": (f"{beginning}_{name}.nii.gz", IMAGE) for name in IMAGES},
            "--out-prefix (segmentation)": (details_file, JSON),
        },
        inputs=(
            *(options.image, options.mask, options.whole_head, options.tpm),
            *(() if maps is None else (maps.wm, maps.gm, maps.csf, maps.mask)),
        ),
        overwrite=options.overwrite,
    )
    require_parent(details_file)
    spm = {name: getattr(options, name) for name in ("spm_dir", "tpm", "octave")}
    choice = choose_engine(options.engine, maps=maps, **spm)

    import nibabel as nib
    import numpy as np

    from iqtflow import __version__
    from iqtflow.image.nifti import read_volume, write_json, write_volume
    from iqtflow.image.validate import check_scan
    from iqtflow.segmentation.atropos import check_plausible

    image = check_scan(options.image)
    data = np.asarray(image.dataobj)
    mask = None if options.mask is None else read_volume(options.mask, like=image)[1] > 0.5
    volume = nib.Nifti1Image(data, image.affine)
    volume.set_filename(os.fspath(options.image))  # the name in messages
    print(f"{PROG}: {options.image}: {choice.describe()}", flush=True)
    engine = {"ants": _by_ants, "spm": _by_spm, "derivatives": _ready_made}[choice.engine]
    tissues = engine(choice, volume, mask, options, details_file.parent)
    details = dict(tissues.details)
    notes = [*image.extra["notes"], *details.pop("remarks", []), *check_plausible(tissues, volume)]
    for note in notes:
        print(f"{PROG}: note: {options.image}: {note}", flush=True)

    volumes = (
        *(tissues.wm, tissues.gm, tissues.csf),
        *(tissues.mask.astype(np.uint8), tissues.bias_corrected),
    )
    for name, values in zip(IMAGES, volumes, strict=True):
        write_volume(f"{beginning}_{name}.nii.gz", values, image.affine, like=image, maker=PROG)
    record = {
        "Image": os.fspath(options.image),
        "Engine": tissues.engine,
        "EngineVersion": tissues.version,
        "EngineChoice": choice.reason,
        "PackageVersion": __version__,
        "Warnings": notes,
        **details,
    }
    write_json(details_file, record, maker=PROG)


def _ready_maps(options: argparse.Namespace) -> ReadyMaps | None:
    if options.wm_map is not None:
        return ReadyMaps(options.wm_map, options.gm_map, options.csf_map, options.mask_map)
    if options.derivatives is not None and options.engine in ("auto", "derivatives"):
        return find_ready_maps(options.image, options.derivatives)
    return None


def _by_ants(
    choice: EngineChoice, volume: nib.Nifti1Image, mask: np.ndarray | None, options: Any, _: Path
) -> TissueMaps:
    from iqtflow.segmentation.atropos import segment_tissues

    return segment_tissues(
        volume,
        mask=mask,
        skull_stripped=SKULL_STRIPPED[options.skull_stripped],
        priors=options.priors,
        num_threads=options.omp_nthreads,
        seed=options.seed,
    )


def _by_spm(
    choice: EngineChoice, volume: nib.Nifti1Image, mask: np.ndarray | None, options: Any, folder: Path
) -> TissueMaps:
    """Segment with SPM: the whole head if there is one, and then only voxels where the image has data."""
    import numpy as np

    from iqtflow.image.nifti import read_volume
    from iqtflow.segmentation.spm.checks import find_unstripped_sibling
    from iqtflow.segmentation.spm.segment import segment_with_spm

    head = options.whole_head or find_unstripped_sibling(os.path.realpath(options.image))
    skull_stripped = SKULL_STRIPPED[options.skull_stripped]
    if head is not None:
        read_volume(head, like=volume)
    maps = segment_with_spm(
        options.image if head is None else head,
        installation=choice.spm,
        skull_stripped=skull_stripped if head is None else False,
        sampling_mm=options.sampling_mm,
        work_dir=folder,
    )
    if head is not None:
        inside = volume.get_fdata(dtype=np.float32) != 0
        details = {**maps.details, "skull_stripped": True, "segmented_whole_head": os.fspath(head)}
        maps = dataclasses.replace(_within(maps, inside), details=details)
    return maps if mask is None else _within(maps, mask)


def _ready_made(
    choice: EngineChoice, volume: nib.Nifti1Image, mask: np.ndarray | None, options: Any, _: Path
) -> TissueMaps:
    import numpy as np

    from iqtflow.segmentation.precomputed import read_ready_maps

    if choice.maps is None:
        raise InputError(
            options.image,
            found=f"no tissue maps of it in {options.derivatives or 'no folder given'}",
            expected="files named as the image, with label-WM, label-GM and label-CSF and the suffix probseg",
            next_step="Run sMRIPrep or fMRIPrep on it, or choose auto, which then uses another engine.",
        )
    maps = read_ready_maps(
        volume,
        volume.get_fdata(dtype=np.float32),
        choice.maps,
        skull_stripped=SKULL_STRIPPED[options.skull_stripped],
    )
    return maps if mask is None else _within(maps, mask)


def _within(maps: TissueMaps, region: np.ndarray) -> TissueMaps:
    """Set maps and mask to 0 outside of a region."""
    import numpy as np

    tissues: dict[str, Any] = {
        name: np.where(region, getattr(maps, name), np.float32(0)) for name in ("wm", "gm", "csf")
    }
    return dataclasses.replace(maps, mask=maps.mask & region, **tissues)


if __name__ == "__main__":
    raise SystemExit(main())
