"""``iqtflow-segment``: tissue probability maps and a brain mask of one T1-weighted volume."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from iqtflow.errors import InputError, UsageError, require_parent, run_command

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np

PROG = "iqtflow-segment"
#: What the answers on the command line mean to `find_brain_mask`.
SKULL_STRIPPED = {"yes": True, "no": False, "auto": None}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv
        Arguments; those of the process when None.

    Returns
    -------
    int
        0, or the exit code of an expected fault (see `iqtflow.errors`).
    """
    arguments = _parser().parse_args(argv)
    return run_command(PROG, lambda: _segment(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Segment a T1-weighted volume into WM, GM and CSF. Writes PREFIX_label-{WM,GM,CSF}_probseg.nii.gz, "
        "PREFIX_desc-brain_mask.nii.gz, PREFIX_desc-preproc_T1w.nii.gz and PREFIX_segmentation.json.",
    )
    parser.add_argument("image", type=Path, help="T1-weighted volume, .nii or .nii.gz")
    parser.add_argument("--out-prefix", required=True, help="folder and beginning of the names of the outputs")
    parser.add_argument("--skull-stripped", choices=tuple(SKULL_STRIPPED), default="auto", help="is the skull gone? (default: look)")
    parser.add_argument("--mask", type=Path, help="brain mask on the grid of the volume; found when not given")
    parser.add_argument("--num-threads", type=_positive, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the segmentation (default: 0)")
    return parser


def _segment(arguments: argparse.Namespace) -> None:
    prefix = require_parent(f"{arguments.out_prefix}_segmentation.json").parent / Path(arguments.out_prefix).name
    image = _load(arguments.image)
    mask = None if arguments.mask is None else _load_mask(arguments.mask, image)

    import numpy as np

    from iqtflow import __version__
    from iqtflow.segmentation import check_plausible, segment_tissues

    maps = segment_tissues(
        image,
        mask=mask,
        skull_stripped=SKULL_STRIPPED[arguments.skull_stripped],
        num_threads=arguments.num_threads,
        seed=arguments.seed,
    )
    warnings = check_plausible(maps, image)
    for warning in warnings:
        print(f"{PROG}: note: {arguments.image}: {warning}", flush=True)

    for label, tissue in (("WM", maps.wm), ("GM", maps.gm), ("CSF", maps.csf)):
        _save(f"{prefix}_label-{label}_probseg.nii.gz", tissue, image, np.float32)
    _save(f"{prefix}_desc-brain_mask.nii.gz", maps.mask, image, np.uint8)
    _save(f"{prefix}_desc-preproc_T1w.nii.gz", maps.bias_corrected, image, np.float32)
    record = {
        "Sources": [os.fspath(arguments.image)],
        "Engine": maps.engine,
        "EngineVersion": maps.version,
        "PackageVersion": __version__,
        "Warnings": warnings,
        **maps.details,
    }
    _write_atomically(f"{prefix}_segmentation.json", (json.dumps(record, indent=2) + "\n").encode())


def _load(path: Path) -> nib.Nifti1Image:
    import nibabel as nib
    import numpy as np

    try:
        image = nib.load(path)
        data = image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__} ({fault})",
            expected="a readable NIfTI volume",
            next_step="Check that the file exists and is complete.",
        ) from fault
    if data.ndim != 3 or not np.isfinite(data).all() or data.min() == data.max():
        raise InputError(
            path,
            found=f"shape {data.shape}, values {np.nanmin(data):g} to {np.nanmax(data):g}, {np.count_nonzero(~np.isfinite(data))} not finite",
            expected="one 3-D volume of finite, varying intensities",
            next_step="Extract one volume, or repair the file.",
        )
    return image


def _load_mask(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    import numpy as np

    mask = _load(path)
    if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=1e-3):
        raise UsageError(
            path,
            found=f"a mask of shape {mask.shape} on another voxel grid",
            expected=f"the grid of the volume, {image.shape}",
            next_step="Resample the mask to the volume.",
        )
    return mask.get_fdata(dtype=np.float32) > 0.5


def _save(path: str, data: np.ndarray, like: nib.Nifti1Image, dtype: type) -> None:
    import nibabel as nib

    out = nib.Nifti1Image(data.astype(dtype), like.affine)
    out.header.set_xyzt_units("mm", "sec")
    for set_form, code in ((out.set_qform, like.header["qform_code"]), (out.set_sform, like.header["sform_code"])):
        set_form(like.affine, int(code) or 2)
    packed = io.BytesIO()
    # Without name and time in the gzip header the same maps give the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=4, mtime=0) as stream:
        stream.write(out.to_bytes())
    _write_atomically(path, packed.getvalue())


def _write_atomically(path: str, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of threads")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
