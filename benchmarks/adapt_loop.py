"""Adapt models to made-up scanners, and compare them with the shipped ones on people of these scanners.

    python benchmarks/adapt_loop.py --subject T1w.nii.gz WM.nii.gz GM.nii.gz [--subject ...] --keep DIR
        --highfield BIDS --maps DERIVATIVES --work DIR OUT.jsonl
    python benchmarks/adapt_loop.py --table OUT.jsonl

The scanners and their scans are those of ``calibration_loop.py``, with the same ``--subject`` and ``--keep``:
tissue maps are found in the scans alone. Each scanner is adapted to with ``iqtflow --mode adapt``. Then the
people who were held out are simulated with the *true* values of the scanner (no bias field, slices k voxels
apart), and both models enhance them. Each scanner is a line of JSON in OUT.jsonl; a second run continues.
``--maps`` are ready-made tissue maps of the high-field people.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from calibration_loop import SCANNERS, read_done, scan_parser, simulate_scan, store_line, tissues_of
from nibabel.affines import voxel_sizes

from iqtflow.evaluation.comparison import compare_models, verdict_sentence
from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.nifti import read_volume
from iqtflow.inference.pipeline import enhance_image
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise


def main() -> None:
    parser = scan_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(15)))
    parser.add_argument("--highfield", type=Path, metavar="BIDS")
    parser.add_argument("--maps", type=Path, metavar="DERIVATIVES")
    parser.add_argument("--work", type=Path, metavar="DIR")
    parser.add_argument("--budget", default="10m")
    options = parser.parse_args()
    done = read_done(options.output)
    if options.table:
        print_table(done)
        return
    known = {line["scanner"] for line in done}
    for name in options.scanner or SCANNERS:
        if name not in known:
            store_line(options.output, one_scanner(name, options))


def one_scanner(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the scans of a scanner, adapt a model to it, and compare both models."""
    folder = options.work / name
    write_scans(name, folder, options)
    began = time.monotonic()
    run = [sys.executable, "-m", "iqtflow.cli", folder / "low", folder / "out", "participant", "group"]
    run += ["--mode", "adapt", "--highfield", options.highfield, "--budget", options.budget]
    run += ["--segmentation", "derivatives", "-d", folder / "maps", options.maps, "--model-name", name]
    run += ["--skip-bids-validation", "--device", "cpu", "--omp-nthreads", "1"]
    with (folder / "log").open("a") as log:
        subprocess.run(list(map(os.fspath, run)), check=True, stdout=log, stderr=subprocess.STDOUT)
    record = json.loads((folder / "out/adapt.json").read_text())
    return {
        "scanner": name,
        "scans": len(options.seeds),
        "minutes": round((time.monotonic() - began) / 60, 1),
        **{key: record[key] for key in ("before", "k", "steps", "simulated", "prior")},
        "as_measured": record["comparison"],
        "as_put_in": compare_on_people(name, folder / "out", record, options),
    }


def write_scans(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Write the scans of a scanner and their tissue maps as BIDS data sets, once."""
    for part in ("low", "maps"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"Name": f"{name} {part}", "BIDSVersion": "1.10.0"})
        (folder / part / "dataset_description.json").write_text(text)
    for seed in options.seeds:
        scan_file = folder / f"low/sub-{seed:02d}/anat/sub-{seed:02d}_T1w.nii.gz"
        if scan_file.is_file():
            continue
        scan, subject, _ = simulate_scan(options.subject[seed % len(options.subject)], name, seed)
        wm, gm, mask = tissues_of(scan, subject.affine, options.keep and options.keep / f"{name}_{seed}.npz")
        csf = np.clip(mask - wm - gm, 0, 1)
        for label, data in (("WM", wm), ("GM", gm), ("CSF", csf), ("", scan)):
            file = folder / f"maps/sub-{seed:02d}/anat/sub-{seed:02d}_label-{label}_probseg.nii.gz"
            file = file if label else scan_file
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(data.astype(np.float32), subject.affine).to_filename(file)
        scan_file.with_name(f"sub-{seed:02d}_T1w.json").write_text('{"SkullStripped": true}')


def compare_on_people(
    name: str, output: Path, record: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Compare both models on the people who were held out, simulated with the true values of the scanner."""
    models = {"before": record["before"], "after": output / f"models/{name}.safetensors"}
    scores: dict[str, dict[str, dict[str, float]]] = {"spline": {}, "before": {}, "after": {}}
    for label in record["comparison"]["subjects"]:
        high = next((options.highfield / f"sub-{label}").rglob("*_T1w.nii*"))
        image, truth = read_volume(high)
        anat = output / f"training/sub-{label}/anat"
        wm, gm = (read_volume(next(anat.glob(f"*label-{t}_probseg.nii.gz")))[1] for t in ("WM", "GM"))
        brain = read_volume(next(anat.glob("*desc-brain_mask.nii.gz")))[1] > 0
        low = simulate_person(name, (truth, wm, gm), image.affine, k=record["k"], seed=hash_of(label))
        for method, model in models.items():
            made = enhance_image(low, model=model, sidecar={"SkullStripped": True}, force=True)
            volumes = {method: made.mean, **({"spline": made.spline} if method == "before" else {})}
            for key, volume in volumes.items():
                estimate = np.asarray(volume.dataobj)
                part = tuple(slice(0, n) for n in estimate.shape)
                inside = brain[part] & (truth[part] != 0)
                scores[key][label] = {
                    "psnr": psnr(truth[part], estimate, inside),
                    "mssim": mssim(truth[part], estimate, inside),
                }
    return compare_models(scores["spline"], scores["before"], scores["after"])


def simulate_person(
    name: str, volumes: tuple[np.ndarray, ...], affine: np.ndarray, *, k: int, seed: int
) -> nib.Nifti1Image:
    """Return a scan with the true values of a scanner, slices along the second axis."""
    scanner, spacing = SCANNERS[name], k * float(voxel_sizes(affine)[1])
    stack = SliceStack(1, spacing, scanner.fraction * spacing)
    draw = draw_scan(scanner.prior, Extras(), stack, seed=seed)
    draw = replace(draw, inplane_fwhm_mm=scanner.inplane_fwhm_mm)
    subject = prepare_subject(volumes[0], volumes[1:], affine, stack)
    scan = np.ascontiguousarray(realise(subject, draw, distribution=scanner.noise))
    image = nib.Nifti1Image(scan, subject.affine)
    image.header.set_xyzt_units("mm")
    return image


def hash_of(label: str) -> int:
    return sum(map(ord, label))


def print_table(done: list[dict[str, Any]]) -> None:
    """Print a row for each scanner."""
    print(
        "| scanner | model | steps | spline | shipped | adapted | gain | better on | p | gain as measured | "
        "minutes |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for line in done:
        found = line["as_put_in"]["psnr"]
        means = " | ".join(f"{np.mean(found[key]):.2f}" for key in ("spline", "before", "after"))
        n = line["as_put_in"]["n"]
        print(
            f"| {line['scanner']} | {line['before']} | {line['steps']} | {means} | {found['gain']:+.2f} dB | "
            f"{found['n_better']} of {n} | {found['p']:.2g} | "
            f"{line['as_measured']['psnr']['gain']:+.2f} dB | "
            f"{line['minutes']:.0f} |"
        )
    for line in done:
        told = verdict_sentence(line["as_put_in"], before=line["before"], after=line["scanner"])
        print(f"\n{line['scanner']}: {told}")


if __name__ == "__main__":
    main()
