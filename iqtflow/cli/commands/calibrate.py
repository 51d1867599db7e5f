"""iqtflow-calibrate: the SNR prior of your own scanner, from its low-field scans.

"scan" measures the SNR of white and grey matter in one scan; "fit" fits the prior to many scans.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text
from iqtflow.utils.outputs import FIGURE, JSON, add_overwrite, check_outputs

PROG = "iqtflow-calibrate"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    scan = steps.add_parser("scan", help="measure the tissue SNR of one scan")
    scan.add_argument("image", type=Path, help="low-field T1w scan, not processed")
    scan.add_argument("output", type=Path, help="JSON to write")
    scan.add_argument(
        "--wm", type=Path, required=True, help="white-matter probability map on the scan's grid"
    )
    scan.add_argument("--gm", type=Path, required=True, help="grey-matter probability map on the scan's grid")
    scan.add_argument("--mask", type=Path, required=True, help="brain mask on the scan's grid")
    scan.add_argument(
        "--figure", type=Path, help="picture to write (.png): where tissue and noise were measured"
    )
    scan.add_argument("--label", help="name of the scan (default: its file name)")
    scan.add_argument("--source", metavar="URI", help="origin of the scan, for the JSON (default: its path)")
    fit = steps.add_parser("fit", help="fit a prior to measured scans")
    fit.add_argument("scans", type=Path, nargs="+", help='JSON files that "scan" wrote')
    fit.add_argument("--output", type=Path, required=True, help="prior to write (.json), for --snr-prior")
    fit.add_argument("--figure", type=Path, help="picture to write (.png)")
    fit.add_argument("--name", default="site", help="name of the prior (default: site)")
    for step in (scan, fit):
        add_overwrite(step)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _run(build_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    if options.step == "scan":
        _measure(options)
    else:
        _fit(options)


def _measure(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    import numpy as np
    from nibabel.affines import voxel_sizes

    from iqtflow import __version__
    from iqtflow.image.geometry import find_slice_geometry
    from iqtflow.image.nifti import read_volume, write_json
    from iqtflow.image.validate import check_scan
    from iqtflow.reports.run_summary import describe_measurement
    from iqtflow.simulation.scanner import measure_scanner
    from iqtflow.simulation.snr_estimation import measure_snr

    check_outputs(
        PROG,
        {"output": (options.output, JSON), "--figure": (options.figure, FIGURE)},
        inputs=(options.image, options.wm, options.gm, options.mask),
        overwrite=options.overwrite,
    )
    image = check_scan(options.image)
    for note in image.extra["notes"]:
        print(f"{PROG}: note: {options.image}: {note}", flush=True)
    data = np.asarray(image.dataobj)
    wm, gm, mask = (read_volume(path, like=image)[1] for path in (options.wm, options.gm, options.mask))
    axis = find_slice_geometry(image).axis
    voxel_mm = tuple(voxel_sizes(image.affine).tolist())
    snr = measure_snr(data, wm, gm, mask > 0, axis=axis, voxel_mm=voxel_mm)
    scanner = measure_scanner(data, wm, mask > 0, image.affine, axis=axis, noise=snr.noise)
    fields = {
        "Scan": options.label or options.image.name.split(".")[0],
        "SNR": {"WM": snr.wm, "GM": snr.gm},
        "MeanIntensity": {"WM": snr.mean_wm, "GM": snr.mean_gm},
        "Noise": asdict(snr.noise),
        "Scanner": scanner.as_dict(),
        "Sources": [options.source or str(options.image)],
        "SoftwareVersion": __version__,
    }
    if options.figure:
        from iqtflow.reports.draw.measured import draw_measurement
        from iqtflow.simulation.noise_estimation import noise_voxels

        noise = noise_voxels(snr.noise, data, mask > 0, wm, axis=axis, voxel_mm=voxel_mm)
        draw_measurement(options.figure, image, {"wm": wm, "gm": gm, "mask": mask > 0, "noise": noise})
    write_json(options.output, fields, maker=PROG)
    print(describe_measurement(fields), flush=True)


def _fit(options: argparse.Namespace) -> None:
    from collections import Counter

    from iqtflow import __version__
    from iqtflow.image.nifti import write_json
    from iqtflow.reports.scanner_table import calibration_tables
    from iqtflow.simulation.noise_estimation import METHOD_WORDS
    from iqtflow.simulation.scanner import pool_scanner
    from iqtflow.simulation.snr_estimation import fit_prior

    check_outputs(
        PROG,
        {"--output": (options.output, JSON), "--figure": (options.figure, FIGURE)},
        inputs=options.scans,
        overwrite=options.overwrite,
    )
    scans = {}
    for path in options.scans:
        label, values, method, scanner = read_scan(path)
        if label in scans:
            raise InputError(
                path,
                found=f"a second scan called {label}",
                expected="a different name for each scan",
                next_step="Give each scan once, or name it with --label.",
            )
        scans[label] = (values, method, scanner)
    snr = {label: values for label, (values, _, _) in scans.items()}
    calibration = fit_prior(snr, name=options.name)
    methods = Counter(method for _, method, _ in scans.values())
    measured = [scanner for _, _, scanner in scans.values() if scanner is not None]
    notes = [*calibration.notes]
    if len(methods) > 1:
        ways = ", ".join(f"{METHOD_WORDS.get(method, method)}: {n}" for method, n in sorted(methods.items()))
        notes.append(
            f"The noise was measured in more than one way ({ways} scans). Are all scans from one scanner and "
            "protocol?"
        )
    fields = {
        **calibration.prior.as_dict(),
        "n_scans": calibration.n_scans,
        "own_covariance_weight": calibration.weight,
        "outliers": dict(calibration.outliers),
        "notes": notes,
        "scans": {
            label: {"WM": values[0], "GM": values[1], "noise_method": method}
            for label, (values, method, _) in scans.items()
        },
        **({"scanner": pool_scanner(measured)} if measured else {}),
        "software_version": __version__,
    }
    if options.figure:
        from iqtflow.simulation.snr_figure import draw_cloud

        draw_cloud(options.figure, snr, calibration)
    write_json(options.output, fields, maker=PROG)
    print(f"{options.output}:\n{calibration_tables(fields)}", flush=True)


def read_scan(
    path: str | os.PathLike,
) -> tuple[str, tuple[float, float], str, dict[str, Any] | None]:
    """Read label, (SNR_WM, SNR_GM), noise method and scanner (None: an older file) of one measured scan.

    Raises
    ------
    InputError
        It is not a file that "iqtflow-calibrate scan" wrote.
    """
    import json

    from iqtflow.simulation.scanner import ScannerMeasure

    try:
        fields = json.loads(read_text(path))
        values = (float(fields["SNR"]["WM"]), float(fields["SNR"]["GM"]))
        if not all(0 < value < float("inf") for value in values):
            raise ValueError(f"SNR {values}, not above 0")
        scanner = ScannerMeasure.from_dict(fields["Scanner"]).as_dict() if "Scanner" in fields else None
        return str(fields["Scan"]), values, str(fields["Noise"]["method"]), scanner
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected='a JSON file written by "iqtflow-calibrate scan"',
            next_step="Measure the scan again.",
        ) from fault


if __name__ == "__main__":
    raise SystemExit(main())
