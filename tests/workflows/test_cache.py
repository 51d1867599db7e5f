"""What runs again, counted by the results that nodes leave in the work directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import ENVIRONMENT, dataset, iqtflow, write_thick_scan
from conftest import make_affine, write_scan
from phantoms import make_brain

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


def stamps(work: Path) -> dict[str, int]:
    """Time of each node's result, by its place under the work directory."""
    return {str(p.relative_to(work)): p.stat().st_mtime_ns for p in work.rglob("result_*.pklz")}


class Site:
    """A data set, its derivatives and its work directory; `run` says which nodes ran."""

    def __init__(self, root: Path, *options: object) -> None:
        self.bids, self.out, self.work, self.options = root / "bids", root / "out", root / "work", options
        dataset(self.bids)

    def run(self, *more: object, program: str | None = None, **options: object) -> list[str]:
        before = stamps(self.work) if self.work.exists() else {}
        arguments = [self.bids, self.out, "participant", "-w", self.work, *self.options, *more]
        if program is None:
            done = iqtflow(*arguments, **options)
        else:
            done = subprocess.run(
                [sys.executable, "-c", program, *map(str, arguments)],
                capture_output=True,
                text=True,
                env=ENVIRONMENT,
                timeout=600,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        after = stamps(self.work)
        return sorted(
            "/".join(Path(name).parts[1:-1]) for name, when in after.items() if before.get(name) != when
        )


@pytest.fixture(scope="module")
def site(untrained_model, tmp_path_factory):
    """Two subjects, enhanced once."""
    site = Site(tmp_path_factory.mktemp("cache"), "--model", untrained_model, "--nprocs", "1")
    for i in (1, 2):
        write_thick_scan(site.bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", seed=i)
    first = site.run()
    assert {"sub_1_T1w/enhance", "sub_2_T1w/enhance", "report_1", "report_2"} <= set(first)
    return site


def test_the_same_command_again_runs_nothing(site):
    assert site.run() == []


def test_another_current_folder_runs_nothing(site):
    """In the derivatives' own folder their relative names are files."""
    assert site.run(cwd=site.out) == []


def test_touched_and_copied_inputs_run_nothing(site, tmp_path):
    scan = site.bids / "sub-1/anat/sub-1_T1w.nii.gz"
    os.utime(scan)
    shutil.copy(site.bids / "sub-2/anat/sub-2_T1w.nii.gz", tmp_path / "copy.nii.gz")
    os.replace(tmp_path / "copy.nii.gz", site.bids / "sub-2/anat/sub-2_T1w.nii.gz")
    assert site.run() == []


def test_more_processes_threads_and_memory_run_nothing(site):
    resources = ["--nprocs", "3", "--omp-nthreads", "2", "--mem-gb", "7", "--low-mem"]
    assert site.run(*resources) == []


def test_a_gpu_runs_nothing_again_that_a_cpu_has_done(site):
    """Were a network to run, it would fail: no card is there."""
    assert site.run("--device", "cpu", program=AS_ON_A_GPU) == []


def test_damaged_results_are_made_again_and_no_derivative_is_replaced_by_them(site):
    """Cut short, or with other figures in it, and with the times that they had."""
    images = {path: path.read_bytes() for path in site.out.rglob("*.nii.gz")}
    (enhanced,) = site.work.glob("*/sub_1_T1w/enhance/enhanced.nii.gz")
    (details,) = site.work.glob("*/sub_2_T1w/enhance/details.json")
    for path, content in (
        (enhanced, enhanced.read_bytes()[:-5000]),
        (details, details.read_bytes().replace(b'"UpsamplingFactor": 4', b'"UpsamplingFactor": 8')),
    ):
        before = path.stat()
        assert content != path.read_bytes()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ran = site.run()
    assert {"sub_1_T1w/enhance", "sub_2_T1w/enhance"} <= set(ran)
    assert not [name for name in ran if name.endswith("conform")]
    assert {path: path.read_bytes() for path in site.out.rglob("*.nii.gz")} == images
    fields = json.loads((site.out / "sub-2/anat/sub-2_desc-iqt_T1w.json").read_text())
    assert fields["UpsamplingFactor"] == 4


def test_a_moved_work_directory_runs_nothing(site):
    moved = site.work.with_name("elsewhere")
    site.work.rename(moved)
    site.work = moved
    assert site.run() == []


def test_a_moved_data_set_runs_the_check_of_its_files_only(site):
    moved = site.bids.with_name("bids-moved")
    site.bids.rename(moved)
    site.bids = moved
    assert [name for name in site.run() if "enhance" in name.rsplit("/", 1)[-1] and "sink" not in name] == []


def test_a_deleted_derivative_is_put_back_without_the_network(site):
    (site.out / "sub-1/anat/sub-1_desc-iqt_T1w.nii.gz").unlink()
    (site.out / "sub-2/anat/sub-2_desc-iqtstd_T1w.json").unlink()
    assert site.run() == ["sub_1_T1w/sink_enhanced", "sub_2_T1w/sink_std"]


def test_another_model_runs_the_network_and_what_shows_its_result(site, untrained_model, tmp_path):
    from iqtflow.models.model_file import stamp_figures

    other = tmp_path / "other.safetensors"
    stamp_figures(untrained_model, other, {"n": 1})
    ran = site.run("--participant-label", "1", "--model", other)
    assert "sub_1_T1w/enhance" in ran
    assert "sub_1_T1w/conform" not in ran
    assert not [name for name in ran if name.startswith("sub_2")]


def test_a_new_version_of_the_program_runs_all_again(site):
    ran = site.run("--participant-label", "2", program=AS_NEW_VERSION)
    assert {"sub_2_T1w/conform", "sub_2_T1w/enhance", "report_2"} <= set(ran)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """One high-field subject with ready-made maps, prepared for training."""
    root = tmp_path_factory.mktemp("prepared")
    maps = dataset(root / "maps")
    site = Site(root, "--mode", "train", "--segmentation", "derivatives", "--derivatives", maps)
    brain = make_brain((64, 68, 64))
    affine = make_affine((1.6, 1.6, 1.6))
    write_scan(site.bids / "sub-1/anat/sub-1_T1w.nii.gz", brain.intensity, affine)
    (site.bids / "sub-1/anat/sub-1_T1w.json").write_text('{"SkullStripped": true}')
    csf = np.clip(brain.mask - brain.wm - brain.gm, 0, 1).astype(np.float32)
    for label, data in (("WM", brain.wm), ("GM", brain.gm), ("CSF", csf)):
        write_scan(maps / f"sub-1/anat/sub-1_label-{label}_probseg.nii.gz", data, affine)
    assert "sub_1_T1w/segment" in site.run()
    return site


def test_another_seed_runs_the_draws_but_not_the_tissue_maps(prepared):
    ran = prepared.run("--random-seed", "7")
    assert any("simulate" in name for name in ran)
    assert not [name for name in ran if name.endswith(("conform", "segment"))]


def test_another_factor_runs_simulation_and_patches_but_not_the_tissue_maps(prepared):
    ran = prepared.run("--random-seed", "7", "-k", "2")
    assert any("simulate" in name for name in ran) and "sub_1_T1w/extract" in ran
    assert not [name for name in ran if name.endswith(("conform", "segment", "sink_wm"))]
    drawn = json.loads((prepared.out / "sub-1/anat/sub-1_desc-sim01_T1w.json").read_text())
    assert nib.load(prepared.out / "sub-1/anat/sub-1_desc-sim01_T1w.nii.gz").shape[2] == 32
    assert drawn["Seed"]
