"""The command as a whole, from a BIDS data set to derivatives, pages and an exit code, and what runs again
when the command is repeated. Nodes are counted by the results that they leave in the work directory.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import dataset, iqtflow, python, write_mapped_scans, write_thick_scan
from conftest import make_affine, write_scan
from phantoms import make_brain
from scipy import ndimage

from iqtflow.image.geometry import cubic_upsample, slices_last, thin_affine

#: Runs the workflow with settings that the command line refuses on a machine without a GPU.
AS_ON_A_GPU = """
import dataclasses, sys
from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.workflows.app.base import run_workflow
settings, _ = cli.settle(parse(sys.argv[1:]))
gpu = dataclasses.replace(settings.run, device="cuda", n_gpu_procs=1)
raise SystemExit(run_workflow(dataclasses.replace(settings, run=gpu)))
"""
#: Runs the command under another version.
AS_NEW_VERSION = """
import sys, iqtflow
iqtflow.__version__ = "99.1"
from iqtflow.cli import main as cli
raise SystemExit(cli.main(sys.argv[1:]))
"""
ONE, TWO = "sub-1/anat/sub-1", "sub-2/ses-a/anat/sub-2_ses-a_run-1"


class Site:
    """A data set, its derivatives and its work directory; `run` returns the nodes that ran."""

    def __init__(self, root: Path, *options: object) -> None:
        self.bids, self.out, self.work, self.options = root / "bids", root / "out", root / "work", options
        dataset(self.bids)

    def run(self, *more: object, program: str | None = None, code: int = 0, **options: object) -> list[str]:
        before = self._stamps()
        arguments = [self.bids, self.out, "participant", "-w", self.work, *self.options, *more]
        start = ("-m", "iqtflow.cli") if program is None else ("-c", program)
        done = python(*start, *arguments, **options)
        assert done.returncode == code, done.stdout + done.stderr
        self.said = done.stdout
        ran = [path for path, when in self._stamps().items() if before.get(path) != when]
        return sorted("/".join(path.parts[1:-1]) for path in ran)

    def _stamps(self) -> dict[Path, int]:
        """Time of each node's result, by its path in the work directory."""
        results = self.work.rglob("result_*.pklz")
        return {path.relative_to(self.work): path.stat().st_mtime_ns for path in results}


@pytest.fixture(scope="module")
def site(untrained_model, tmp_path_factory):
    """Two good scans, one near-isotropic, and one that is cut short; all run once, then the good ones."""
    site = Site(tmp_path_factory.mktemp("site"), "--model", untrained_model, "--nprocs", "2")
    write_thick_scan(site.bids / f"{ONE}_T1w.nii.gz", sidecar={"SkullStripped": True, "SliceThickness": 5.0})
    write_thick_scan(site.bids / f"{TWO}_T1w.nii.gz", seed=1)
    smooth = write_thick_scan(site.bids / "sub-3/anat/sub-3_T1w.nii.gz", k=1)
    # Texture: a phantom without fine detail would be taken for an interpolated scan.
    texture = ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 1, smooth.shape), 1)
    head = smooth.get_fdata(dtype=np.float32) * np.clip(1 + 0.3 * texture / texture.std(), 0, None)
    write_scan(site.bids / "sub-3/anat/sub-3_T1w.nii.gz", head.astype(np.float32), smooth.affine)
    broken = site.bids / "sub-4/anat/sub-4_T1w.nii.gz"
    write_thick_scan(broken)
    broken.write_bytes(broken.read_bytes()[:-20_000])
    first = site.run(code=1)
    assert {"sub_1_T1w/enhance", "sub_2_ses_a_run_1_T1w/enhance", "report_1", "report_2"} <= set(first)
    site.first, site.options = site.said, (*site.options, "--participant-label", "1", "2")
    return site


def test_one_broken_scan_fails_alone_and_the_last_lines_say_which_and_why(site):
    tail = site.first.splitlines()[-5:]
    assert "2 enhanced, 1 skipped, 1 failed" in "\n".join(tail)
    assert any("sub-4_T1w.nii.gz" in line for line in tail)
    assert any(line.strip().startswith("why: ") and "expected" in line for line in tail)
    log = next(line.split("log: ")[1] for line in tail if "log: " in line)
    assert Path(log).is_file()
    assert not list((site.out / "sub-4").rglob("*T1w.nii.gz"))


def test_a_near_isotropic_scan_is_skipped_with_a_sentence(site):
    assert "sub-3_T1w.nii.gz: skipped: already near-isotropic" in site.first
    assert not (site.out / "sub-3" / "anat").exists()


def test_the_output_lies_where_the_scan_lies(site):
    """Same orientation code and axis order, slab-centred thin slices; an untrained residual network leaves
    the spline.
    """
    scan = nib.load(site.bids / f"{ONE}_T1w.nii.gz")
    result = nib.load(site.out / f"{ONE}_desc-iqt_T1w.nii.gz")
    assert result.shape == (64, 68, 64)
    assert nib.aff2axcodes(result.affine) == nib.aff2axcodes(scan.affine)
    data, affine = slices_last(scan.get_fdata(dtype=np.float32), scan.affine, 1)
    found, found_affine = slices_last(result.get_fdata(dtype=np.float32), result.affine, 1)
    np.testing.assert_allclose(found_affine, thin_affine(affine, 4), atol=1e-4)
    expected = np.clip(cubic_upsample(data, 4), 0, None)
    inner = slice(3 * 4, -3 * 4)  # at the first and last slices the network sees padding
    np.testing.assert_allclose(found[..., inner], expected[..., inner], atol=5e-3 * expected.max())


def test_every_scan_has_its_uncertainty_and_every_subject_its_page(site):
    assert (site.out / f"{TWO}_desc-iqtstd_T1w.nii.gz").exists()
    for label in "1234":
        assert (site.out / f"sub-{label}.html").stat().st_size > 1000
    assert [p for p in site.out.rglob(".*") if p.name != ".bidsignore"] == []


def test_the_same_command_again_runs_nothing_and_changes_no_file(site):
    before = {p: p.stat().st_mtime_ns for p in site.out.rglob("*.nii.gz")}
    assert site.run() == []
    assert site.run(cwd=site.out) == [], "in this folder the derivatives' relative names are files"
    assert {p: p.stat().st_mtime_ns for p in site.out.rglob("*.nii.gz")} == before


def test_touched_and_copied_inputs_run_nothing(site, tmp_path):
    os.utime(site.bids / f"{ONE}_T1w.nii.gz")
    shutil.copy(site.bids / f"{TWO}_T1w.nii.gz", tmp_path / "copy.nii.gz")
    os.replace(tmp_path / "copy.nii.gz", site.bids / f"{TWO}_T1w.nii.gz")
    assert site.run() == []


def test_other_resources_run_nothing(site):
    assert site.run("--nprocs", "3", "--omp-nthreads", "2", "--mem-gb", "7", "--low-mem") == []
    # No card is there: a network that ran would fail.
    assert site.run("--device", "cpu", program=AS_ON_A_GPU) == []


def test_damaged_results_are_made_again_and_no_derivative_is_replaced_by_them(site):
    """Cut short, or with other values in it, and with the times that they had."""
    images = {path: path.read_bytes() for path in site.out.rglob("*.nii.gz")}
    (enhanced,) = site.work.glob("*/sub_1_T1w/enhance/enhanced.nii.gz")
    (details,) = site.work.glob("*/sub_2_ses_a_run_1_T1w/enhance/details.json")
    for path, content in (
        (enhanced, enhanced.read_bytes()[:-5000]),
        (details, details.read_bytes().replace(b'"UpsamplingFactor": 4', b'"UpsamplingFactor": 8')),
    ):
        before = path.stat()
        assert content != path.read_bytes()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ran = site.run()
    assert {"sub_1_T1w/enhance", "sub_2_ses_a_run_1_T1w/enhance"} <= set(ran)
    assert not [name for name in ran if name.endswith("conform")]
    assert {path: path.read_bytes() for path in site.out.rglob("*.nii.gz")} == images
    assert json.loads((site.out / f"{TWO}_desc-iqt_T1w.json").read_text())["UpsamplingFactor"] == 4


def test_moved_folders_run_no_network(site):
    for name in ("work", "bids"):
        moved = getattr(site, name).with_name(f"{name}-moved")
        getattr(site, name).rename(moved)
        setattr(site, name, moved)
        ran = site.run()
        assert ran == [] if name == "work" else not [step for step in ran if step.endswith("/enhance")]


def test_a_deleted_derivative_is_put_back_without_the_network(site):
    image = site.out / f"{ONE}_desc-iqt_T1w.nii.gz"
    content = image.read_bytes()
    image.unlink()
    (site.out / f"{TWO}_desc-iqtstd_T1w.json").unlink()
    assert site.run() == ["sub_1_T1w/sink_enhanced", "sub_2_ses_a_run_1_T1w/sink_std"]
    assert image.read_bytes() == content


def test_another_model_runs_the_network_and_what_shows_its_result(site, untrained_model, tmp_path):
    from iqtflow.models.model_file import stamp_figures

    other = tmp_path / "other.safetensors"
    stamp_figures(untrained_model, other, {"n": 1})
    ran = site.run("--participant-label", "1", "--model", other, "--overwrite")
    assert "sub_1_T1w/enhance" in ran
    assert "sub_1_T1w/conform" not in ran
    assert not [name for name in ran if name.startswith("sub_2")]


def test_a_new_version_of_the_program_runs_all_again(site):
    ran = site.run("--participant-label", "1", "--overwrite", program=AS_NEW_VERSION)
    assert {"sub_1_T1w/conform", "sub_1_T1w/enhance", "report_1"} <= set(ran)


def test_another_seed_or_factor_runs_the_draws_but_not_the_tissue_maps(tmp_path):
    maps = tmp_path / "maps"
    site = Site(tmp_path, "--mode", "train", "--segmentation", "derivatives", "--derivatives", maps)
    write_mapped_scans(site.bids, maps, 1)
    assert "sub_0_T1w/segment" in site.run()
    for options in (["--random-seed", "7"], ["--random-seed", "7", "-k", "2"]):
        ran = site.run(*options, "--overwrite")
        assert any("simulate" in name for name in ran)
        assert not [name for name in ran if name.endswith(("conform", "segment"))]
    assert "sub_0_T1w/extract" in ran and "sub_0_T1w/sink_wm" not in ran
    draw = site.out / "sub-0/anat/sub-0_desc-sim01_T1w.nii.gz"
    assert nib.load(draw).shape[2] == 32
    assert json.loads(draw.with_name("sub-0_desc-sim01_T1w.json").read_text())["Seed"]


@pytest.mark.slow
def test_from_high_field_scans_to_a_model_that_enhances(tmp_path):
    """The whole way on phantoms: tissue maps, simulated scans, libraries, training, evaluation, use."""
    bids = dataset(tmp_path / "bids")
    for i in range(3):
        brain = make_brain((72, 76, 72), seed=i)
        path = bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz"
        write_scan(path, brain.intensity, make_affine((1.6, 1.6, 1.6)))
        path.with_name(f"sub-{i}_T1w.json").write_text('{"SkullStripped": true}')
    out = tmp_path / "out"
    small = ["--filters", "2", "--batch-size", "2", "--steps", "8", "--steps-per-epoch", "4"]
    small += ["--validation-batches", "1", "--segmentation", "ants", "--nprocs", "2", "-w", tmp_path / "work"]
    run = iqtflow(bids, out, "participant", "group", "--mode", "train", *small, "--model-name", "tiny")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in (
        "sub-0/anat/sub-0_label-WM_probseg.nii.gz",
        "sub-0/anat/sub-0_label-GM_probseg.json",
        "sub-1/anat/sub-1_desc-sim01_T1w.nii.gz",
        "group.html",
    ):
        assert (out / name).exists(), name
    drawn = json.loads((out / "sub-1/anat/sub-1_desc-sim01_T1w.json").read_text())
    assert {"SNR", "Seed", "SliceThickness", "SliceGap", "SkullStripped"} <= drawn.keys()
    (judged,) = json.loads((out / "models/split.json").read_text())["evaluation"]

    scans = dataset(tmp_path / "clinic") / judged / "anat"
    scans.mkdir(parents=True)
    for file in (out / judged / "anat").glob("*_desc-sim01_T1w.*"):
        shutil.copy(file, scans / file.name.replace("_desc-sim01", ""))
    model = out / "models/tiny.safetensors"
    use = iqtflow(tmp_path / "clinic", tmp_path / "enhanced", "participant", "--model", model)
    assert use.returncode == 0, use.stdout + use.stderr
    image = nib.load(tmp_path / f"enhanced/{judged}/anat/{judged}_desc-iqt_T1w.nii.gz")
    assert image.get_fdata().shape == (72, 76, 72)
