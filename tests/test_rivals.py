"""Other methods beside iqtflow: any command that makes a NIfTI file is run, measured and compared."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_affine, write_scan
from phantoms import make_brain

from benchmarks.rivals.report import write_report
from benchmarks.rivals.run import HERE, Method, prepare_person, read_methods, read_results, run_all
from iqtflow.image.nifti import read_volume

METHODS = '''
[iqtflow]
title = "spline, in the place of iqtflow"
command = "{python} {here}/spline.py {scan} {output}"

[twice]
title = "twice the intensity, on the grid of the scan"
command = """{python} -c 'import sys, nibabel as n; i = n.load(sys.argv[1]); \\
    n.Nifti1Image(2 * i.get_fdata(), i.affine).to_filename(sys.argv[2])' {scan} {folder}/named_so.nii"""
makes = "named_*.nii"
people = 1

[broken]
title = "fails"
command = "{python} -c 'raise SystemExit(\\"no weights for k = {k}\\")'"

[elsewhere]
title = "not here"
command = "elsewhere {scan} {output}"
absent = "its weights cannot be had"
'''


@pytest.fixture
def people(tmp_path):
    """High-field scans with tissue maps that are known, where `prepare_person` looks for them."""
    affine = make_affine((1, 1, 1))
    found = []
    for seed in range(2):
        brain = make_brain((40, 48, 36), seed=seed)
        folder = tmp_path / f"out/sub-{seed}"
        folder.mkdir(parents=True)
        scan = tmp_path / f"{seed}.nii.gz"
        for file in (scan, folder / "truth_T1w.nii.gz"):
            write_scan(file, brain.intensity, affine)
        csf = np.clip(brain.mask - brain.wm - brain.gm, 0, 1)
        for tissue, values in (("WM", brain.wm), ("GM", brain.gm), ("CSF", csf)):
            write_scan(folder / f"truth_label-{tissue}_probseg.nii.gz", values.astype(np.float32), affine)
        write_scan(folder / "truth_desc-brain_mask.nii.gz", brain.mask.astype(np.uint8), affine)
        found.append((str(seed), scan))
    return found


def test_methods_of_a_file_are_run_once_on_the_same_scans_and_compared(people, tmp_path, capsys):
    (tmp_path / "methods.toml").write_text(METHODS)
    methods = read_methods(tmp_path / "methods.toml")
    held = np.ones(100_000_000)  # 0.8 GB of this process, which a method does not take
    for _ in range(2):  # the second call finds everything done, but what failed
        run_all(people, methods, [4], tmp_path / "out", threads=1, dice=0)
    told = capsys.readouterr().out
    assert told.count("broken, sub-0, k = 4: failed") == 2 and "no weights for k = 4" in told
    lines = read_results(tmp_path / "out/results.jsonl")
    assert [(line["method"], line["subject"]) for line in lines] == [
        ("iqtflow", "0"),
        ("twice", "0"),
        ("iqtflow", "1"),
    ]
    ours, twice, _ = lines
    assert twice["psnr"] < ours["psnr"] - 5 and twice["psnr_linear"] > twice["psnr"] + 5
    assert ours["seconds"] > 0.2 and 0.05 < ours["peak_gb"] < held.nbytes / 1e9
    image, _ = read_volume(tmp_path / "out/sub-0/k4_twice.nii.gz")
    assert image.shape == (40, 48, 36) and np.allclose(image.affine, make_affine((1, 1, 1)))

    text = write_report(tmp_path / "out", tmp_path / "report", methods).read_text()
    mean = np.mean([lines[0]["psnr"], lines[2]["psnr"]])
    assert f"| spline, in the place of iqtflow | 2 | {mean:.2f} |" in text and ", 1 of 1, p = 1 |" in text
    assert "* not here: its weights cannot be had. `elsewhere {scan} {output}`" in text
    assert (tmp_path / "report/rivals_k4.png").stat().st_size > 10_000


def test_the_scan_of_a_person_depends_on_the_seed_alone(people, tmp_path):
    label, scan = people[0]
    first = prepare_person(scan, label, 7, 4, tmp_path / "out")
    before = first.scan.read_bytes()
    first.scan.unlink()
    assert prepare_person(scan, label, 7, 4, tmp_path / "out").scan.read_bytes() == before
    assert read_volume(first.scan)[0].shape == (40, 12, 36)


def test_the_shipped_list_is_complete():
    methods = read_methods(HERE / "rivals.toml")
    assert {"spline", "iqtflow", "eclare", "unires", "siq", "synthsr"} <= {method.name for method in methods}
    for method in methods:
        assert "{scan}" in method.command or method.absent, method.name
        if method.requirements:
            assert all("==" in pin for pin in (HERE / method.requirements).read_text().split())
    assert isinstance(methods[0], Method)
