"""The graphs as a whole: from a BIDS data set and one command to derivatives, sidecars, page and exit
code.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import dataset, iqtflow, write_thick_scan
from conftest import make_affine, write_scan
from phantoms import make_brain

from iqtflow.image.geometry import cubic_upsample, slices_last, thin_affine


@pytest.fixture(scope="module")
def enhanced(untrained_model, tmp_path_factory):
    """Three good scans, one near-isotropic, and one that is cut short: run once, looked at by several
    tests.
    """
    folder = tmp_path_factory.mktemp("enhance")
    bids = dataset(folder / "bids")
    for i, name in enumerate(
        [
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz",
            "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        ]
    ):
        write_thick_scan(bids / name, seed=i, sidecar={"SliceThickness": 5.0} if i == 0 else None)
    write_thick_scan(bids / "sub-03/anat/sub-03_T1w.nii.gz", k=1)
    broken = bids / "sub-04/anat/sub-04_T1w.nii.gz"
    write_thick_scan(broken)
    broken.write_bytes(broken.read_bytes()[:-20_000])
    arguments = (
        bids,
        folder / "out",
        "participant",
        "--model",
        untrained_model,
        "-w",
        folder / "work",
        "--nprocs",
        "2",
    )
    return bids, folder / "out", arguments, iqtflow(*arguments)


def test_one_broken_scan_fails_alone_and_the_last_lines_say_which_and_why(enhanced):
    _, out, _, run = enhanced
    assert run.returncode == 1, run.stdout + run.stderr
    tail = run.stdout.splitlines()[-5:]
    assert "3 enhanced, 1 skipped, 1 failed" in "\n".join(tail)
    assert any("sub-04_T1w.nii.gz" in line for line in tail)
    assert any(line.strip().startswith("why: ") and "expected" in line for line in tail)
    log = next(line.split("log: ")[1] for line in tail if "log: " in line)
    assert Path(log).is_file()
    assert not list((out / "sub-04").rglob("*T1w.nii.gz"))


def test_a_near_isotropic_scan_is_skipped_with_a_sentence(enhanced):
    _, out, _, run = enhanced
    assert any(
        "sub-03_T1w.nii.gz: skipped: already near-isotropic" in line for line in run.stdout.splitlines()
    )
    assert not (out / "sub-03" / "anat").exists()


def test_the_output_lies_where_the_scan_lies(enhanced):
    """Same orientation code and axis order, slab-centred thin slices; an untrained residual network leaves
    the spline.
    """
    bids, out, _, _ = enhanced
    scan = nib.load(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    result = nib.load(out / "sub-01/anat/sub-01_desc-iqt_T1w.nii.gz")
    assert result.shape == (64, 68, 64)
    assert nib.aff2axcodes(result.affine) == nib.aff2axcodes(scan.affine)
    data, affine = slices_last(scan.get_fdata(dtype=np.float32), scan.affine, 1)
    np.testing.assert_allclose(
        slices_last(result.get_fdata(), result.affine, 1)[1], thin_affine(affine, 4), atol=1e-4
    )
    expected = np.clip(cubic_upsample(data, 4), 0, None)
    inner = slice(
        3 * 4, -3 * 4
    )  # near the first and last slice the network sees the padding, the plain spline its own end
    np.testing.assert_allclose(
        slices_last(result.get_fdata(dtype=np.float32), result.affine, 1)[0][..., inner],
        expected[..., inner],
        atol=5e-3 * expected.max(),
    )


def test_the_sidecar_says_what_was_done(enhanced):
    _, out, _, _ = enhanced
    fields = json.loads((out / "sub-01/anat/sub-01_desc-iqt_T1w.json").read_text())
    assert fields["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert fields["SkullStripped"] is True
    assert (fields["UpsamplingFactor"], fields["SliceAxis"]) == (4, "j")
    text = json.dumps(fields)
    assert "untrained" in text and "cpu" in text and "SliceThickness in the sidecar" in text
    assert len([word for word in text.replace('"', " ").split() if len(word) == 64]) >= 1, (
        "the model's SHA-256"
    )


def test_every_scan_has_its_uncertainty_and_every_subject_its_page(enhanced):
    _, out, _, _ = enhanced
    assert (out / "sub-02/ses-a/anat/sub-02_ses-a_run-1_desc-iqtstd_T1w.nii.gz").exists()
    assert (out / "sub-02/ses-b/anat/sub-02_ses-b_desc-iqt_T1w.nii.gz").exists()
    for label in ("01", "02", "03", "04"):
        assert (out / f"sub-{label}.html").stat().st_size > 1000


def test_nothing_is_left_under_a_temporary_name(enhanced):
    _, out, _, _ = enhanced
    assert [p for p in out.rglob(".*") if p.name != ".bidsignore"] == []


def test_the_derivatives_are_valid_bids(enhanced):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed beside this Python")
    _, out, _, _ = enhanced
    run = subprocess.run([validator, out, "--json"], capture_output=True, text=True, timeout=120)
    issues = json.loads(run.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []


def test_the_same_command_again_runs_no_network_and_changes_no_file(enhanced):
    _, out, arguments, _ = enhanced
    images = sorted(out.rglob("*.nii.gz"))
    before = [(p, p.stat().st_mtime_ns) for p in images]
    work = Path(arguments[arguments.index("-w") + 1])
    results = sorted(work.rglob("enhance/result_enhance.pklz"))
    stamps = [r.stat().st_mtime_ns for r in results]
    assert len(results) == 3
    again = iqtflow(*arguments)
    assert again.returncode == 1
    assert [(p, p.stat().st_mtime_ns) for p in images] == before
    assert [r.stat().st_mtime_ns for r in results] == stamps


def test_a_deleted_derivative_comes_back_from_the_cache(enhanced):
    _, out, arguments, _ = enhanced
    image = out / "sub-01/anat/sub-01_desc-iqt_T1w.nii.gz"
    content = image.read_bytes()
    image.unlink()
    iqtflow(*arguments, "--participant-label", "01")
    assert image.read_bytes() == content


@pytest.mark.slow
def test_from_high_field_scans_to_a_model_that_enhances(tmp_path):
    """The road that makes a model, on phantoms: tissue maps, simulated scans, libraries, training,
    evaluation, use.
    """
    bids = dataset(tmp_path / "bids")
    for i in range(3):
        brain = make_brain((72, 76, 72), seed=i)
        path = bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz"
        write_scan(path, brain.intensity, make_affine((1.6, 1.6, 1.6)))
        path.with_name(f"sub-{i}_T1w.json").write_text('{"SkullStripped": true}')
    out = tmp_path / "out"
    small = ["--filters", "2", "--batch-size", "2", "--steps", "8", "--steps-per-epoch", "4"]
    small += ["--validation-batches", "1", "--segmentation", "ants", "--nprocs", "2", "-w", tmp_path / "work"]
    both = [bids, out, "participant", "group", "--mode", "train", *small]
    run = iqtflow(*both, "--model-name", "tiny", "--ensemble", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in (
        "sub-0/anat/sub-0_label-WM_probseg.nii.gz",
        "sub-0/anat/sub-0_label-GM_probseg.json",
        "sub-1/anat/sub-1_desc-sim01_T1w.nii.gz",
        "group_metrics.tsv",
        "group_metrics.json",
        "group.html",
        "models/tiny_member-2_curves.csv",
    ):
        assert (out / name).exists(), name
    drawn = json.loads((out / "sub-1/anat/sub-1_desc-sim01_T1w.json").read_text())
    assert {"SNR", "Seed", "SliceThickness", "SliceGap", "SkullStripped"} <= drawn.keys()
    split = json.loads((out / "models/split.json").read_text())
    assert sorted(map(len, split.values())) == [1, 1, 1]
    (judged,) = split["evaluation"]
    rows = [row.split("\t")[:2] for row in (out / "group_metrics.tsv").read_text().splitlines()[1:]]
    assert rows == [[judged, method] for method in ("spline", "iqt", "member-1", "member-2")]
    summary = json.loads((out / "models/tiny_summary.json").read_text())
    for figure in ("psnr", "mssim", "mssim_slicewise"):
        alone = [summary[figure]["members"][f"member-{i}"]["mean"] for i in (1, 2)]
        assert summary[figure]["mean_of_members"]["mean"] == pytest.approx(np.mean(alone))
    assert f"PSNR {summary['psnr']['iqt']['mean']:.2f} dB" in run.stdout

    from iqtflow.models.model_file import read_card

    card = read_card(out / "models/tiny.safetensors")
    assert card["n_members"] == 2
    assert [f"sub-{label}" for label in card["training"]["split"]["evaluation"]] == [judged]
    assert card["figures"]["subjects"] == [judged.removeprefix("sub-")]
    seeds = [facts["plan"]["seed"] for facts in card["training"]["members"]]
    assert len(set(seeds)) == 2

    scans = dataset(tmp_path / "clinic")
    shutil.copytree(out / judged, scans / judged)
    for file in list((scans / f"{judged}/anat").iterdir()):
        file.rename(
            file.with_name(file.name.replace("_desc-sim01", ""))
        ) if "sim01" in file.name else file.unlink()
    use = iqtflow(
        scans,
        tmp_path / "enhanced",
        "participant",
        "--model",
        out / "models/tiny.safetensors",
        "-w",
        tmp_path / "work2",
    )
    assert use.returncode == 0, use.stdout + use.stderr
    image = nib.load(tmp_path / f"enhanced/{judged}/anat/{judged}_desc-iqt_T1w.nii.gz")
    assert image.shape == (72, 76, 72)
    gzip.decompress((tmp_path / f"enhanced/{judged}/anat/{judged}_desc-iqt_T1w.nii.gz").read_bytes())
