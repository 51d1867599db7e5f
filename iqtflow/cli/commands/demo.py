"""``python -m iqtflow.cli.commands.demo DIR``: all steps once, offline, on a brain template.

The simulator makes a small low-field BIDS data set from the MNI template of nilearn (an average of 152
people; no model was trained on it). ``iqtflow`` enhances it, and the enhanced volume is compared with the
template. The template has less contrast between grey and white matter than the 3 T scans that the models
were trained on, and is given their contrast first (`GM_OVER_WM`). It is also smoother than the brain of a
person, so that the scores do not describe the models; their cards have scores on people.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from iqtflow.bids.names import BIDS_VERSION
from iqtflow.utils.command import run_command
from iqtflow.utils.environment import command_line
from iqtflow.utils.errors import IQTFlowError, UsageError
from iqtflow.utils.files import write_text
from iqtflow.utils.outputs import is_made_by

if TYPE_CHECKING:
    import numpy as np

PROG = "iqtflow-demo"
K = 4
SEED = 1
LABEL = "mni"
#: Mean intensity of grey over white matter that the truth is given; 0.67 to 0.70 in the training scans.
GM_OVER_WM = 0.63


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; returns its exit code."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.split("\n\n")[1])
    parser.add_argument("folder", type=Path, help="folder for data set and results")
    parser.add_argument("--model", help="model to use (default: by slice spacing)")
    return run_command(PROG, lambda: _demonstrate(parser.parse_args(argv)))


def _demonstrate(options: argparse.Namespace) -> None:
    folder, model = options.folder.absolute(), options.model
    _require_own(folder)
    truth, mask = make_truth(folder / "truth")
    scan = make_data_set(folder / "bids", folder / "truth")
    out, work = folder / "derivatives", folder / "work"
    choice = ["--model", model] if model else []
    command = [*command_line("iqtflow.cli.main"), folder / "bids", out, "participant", "-w", work, *choice]
    print(f"$ iqtflow {folder / 'bids'} {out} participant", flush=True)
    done = subprocess.run(command)
    enhanced = out / f"sub-{LABEL}/anat/sub-{LABEL}_desc-iqt_T1w.nii.gz"
    page = out / f"sub-{LABEL}.html"
    if done.returncode != 0 or not enhanced.exists() or not page.exists():
        raise IQTFlowError(f"iqtflow ended with exit code {done.returncode}; see the lines above.")
    _compare(truth, mask, scan, enhanced)
    print(f"\nthe enhanced scan   {enhanced}\nthe page to open    {page}", flush=True)


def _require_own(folder: Path) -> None:
    """Make sure that the folder is new, or was made by an earlier demonstration."""
    from iqtflow.image.nifti import write_json

    description = folder / "bids" / "dataset_description.json"
    for name in ("truth", "bids", "derivatives", "work"):
        if (folder / name).exists() and not is_made_by(PROG, description):
            raise UsageError(
                folder,
                found=f"{name}, which this command did not make",
                expected="a new folder, or the folder of an earlier demonstration",
                next_step="Choose another folder.",
            )
    fields = {"Name": "Low-field scan simulated from the MNI template", "BIDSVersion": BIDS_VERSION}
    write_json(description, fields, maker=PROG)


def make_truth(folder: Path) -> tuple[Path, Path]:
    """Write the template, its tissue maps and its brain mask, cropped to the head; return image and mask.

    Returns
    -------
    tuple of Path
        ``T1w.nii.gz`` and ``mask.nii.gz``; ``wm.nii.gz`` and ``gm.nii.gz`` lie beside them. Voxels of 1 mm.
    """
    paths = {name: folder / f"{name}.nii.gz" for name in ("T1w", "wm", "gm", "mask")}
    if all(path.exists() for path in paths.values()):
        return paths["T1w"], paths["mask"]
    import nibabel as nib
    import numpy as np
    from nilearn import datasets

    from iqtflow.image.nifti import write_volume

    template = datasets.load_mni152_template(resolution=1)
    volumes = {
        "T1w": template.get_fdata(dtype=np.float32),
        "wm": datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32),
        "gm": datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32),
        "mask": datasets.load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32) > 0,
    }
    volumes["T1w"] = _with_contrast(volumes["T1w"], volumes["wm"], volumes["gm"])
    head = np.argwhere(volumes["T1w"] > 0.05 * volumes["T1w"].max())
    low, high = head.min(axis=0), head.max(axis=0) + 1
    low[2] = max(high[2] - 168, low[2])  # the brain and a little neck; more would only take time
    low, high = np.maximum(low - 2, 0), np.minimum(high + 2, template.shape)
    affine = template.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(template.affine, low)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    for name, volume in volumes.items():
        cropped = np.ascontiguousarray(volume[box])
        if name == "T1w":
            cropped = cropped / cropped.max() * np.float32(1000)
        elif name != "mask":
            cropped = np.clip(cropped, 0, 1)
        write_volume(paths[name], cropped.astype(np.uint8 if name == "mask" else np.float32), affine)
    return paths["T1w"], paths["mask"]


def _with_contrast(intensity: np.ndarray, wm: np.ndarray, gm: np.ndarray) -> np.ndarray:
    """Scale voxels by their share of grey matter: the ratio of the tissue means becomes `GM_OVER_WM`."""
    from iqtflow.simulation.snr_prior import tissue_mean

    # With Y (1 + s M_GM) both means are linear in s, whose value follows from their wanted ratio.
    gm_mean, wm_mean = (tissue_mean(intensity, m, tissue=t) for m, t in ((gm, "GM"), (wm, "WM")))
    gm_slope, wm_slope = (tissue_mean(intensity * gm, m, tissue=t) for m, t in ((gm, "GM"), (wm, "WM")))
    scale = (GM_OVER_WM * wm_mean - gm_mean) / (gm_slope - GM_OVER_WM * wm_slope)
    return intensity * (1 + scale * gm)


def make_data_set(bids: Path, truth: Path) -> Path:
    """Simulate a low-field scan of the template with 4 mm axial slices, as a BIDS data set; return the
    scan.
    """
    from iqtflow.image.nifti import write_json

    scan = bids / f"sub-{LABEL}/anat/sub-{LABEL}_T1w.nii.gz"
    scan.parent.mkdir(parents=True, exist_ok=True)
    write_text(bids / "README", "Simulated by iqtflow-simulate from the ICBM 152 template (2009).\n")
    drawn = truth.parent / "drawn.json"
    done = subprocess.run(
        [
            *command_line("iqtflow.cli.commands.simulate"),
            *(truth / "T1w.nii.gz", scan),
            *("--wm", truth / "wm.nii.gz", "--gm", truth / "gm.nii.gz", "--json", drawn),
            *("--k", str(K), "--slice-axis", "z", "--seed", str(SEED)),
        ]
    )
    if done.returncode != 0:
        raise IQTFlowError(f"the simulator ended with exit code {done.returncode}; see the lines above.")
    fields = json.loads(drawn.read_text())
    kept = {name: fields[name] for name in ("SliceThickness", "SpacingBetweenSlices")}
    sidecar = {**kept, "Modality": "MR", "SkullStripped": True}
    write_json(scan.with_name(f"sub-{LABEL}_T1w.json"), sidecar)
    return scan


def _compare(truth: Path, mask: Path, scan: Path, enhanced: Path) -> None:
    """Print PSNR and MSSIM of the spline and of the enhanced scan, and write the spline beside the truth."""
    from iqtflow.cli.commands.evaluate import score_table
    from iqtflow.evaluation.scores import evaluate_files
    from iqtflow.image.geometry import cubic_upsample, thin_affine
    from iqtflow.image.nifti import read_volume, write_volume

    image, data = read_volume(scan)
    spline = truth.with_name("spline.nii.gz")
    write_volume(spline, cubic_upsample(data, K), thin_affine(image.affine, K), like=image)
    scores = evaluate_files(truth, mask, {"cubic spline": spline, "iqtflow": enhanced})
    print(f"\ninside the brain, compared with the template:\n{score_table(scores)}")


if __name__ == "__main__":
    raise SystemExit(main())
