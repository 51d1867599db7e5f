"""One run over a data set as in a hospital: read-only, linked, with sessions, and not all scans fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import pytest
from clinics import ENVIRONMENT, execute, write_thick_scan
from validate_bids import find_faults

import iqtflow

#: Entities of the scans that can be enhanced.
SOUND = (
    "sub-01/ses-pre/anat/sub-01_ses-pre_acq-axial_rec-norm_run-1",
    "sub-01/ses-post/anat/sub-01_ses-post_acq-axial_rec-norm_run-1",
)
ANNEX = "/annex/objects/MD5E-s1048576--d41d8cd98f00b204e9800998ecf8427e.nii.gz"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1048576\n"


@pytest.fixture(scope="module")
def hospital(untrained_model):
    """A read-only data set, and a run over it; not in pytest's folder, which is closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="iqtflow-hospital-"))
    folder.chmod(0o777)
    bids, archive = folder / "bids", folder / "archive"
    for i, name in enumerate(SOUND):
        write_thick_scan(archive / f"{i}.nii.gz", seed=i, sidecar=None)
        link = bids / f"{name}_T1w.nii.gz"
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(archive / f"{i}.nii.gz", link.parent))
    pointers = {label: bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in ("02", "03", "04")}
    for path in pointers.values():
        path.parent.mkdir(parents=True)
    pointers["02"].symlink_to(f"../../.git{ANNEX}")
    pointers["03"].write_text(f"{ANNEX}\n")
    pointers["04"].write_text(LFS)
    (bids / "acq-axial_T1w.json").write_text(json.dumps({"SliceThickness": 5.0, "SkullStripped": True}))
    (bids / "README").write_text("Phantoms that stand for patients.\n" * 5)
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "Clinic", "BIDSVersion": "1.10.0", "Authors": ["A. Bello", "C. Diaz"]})
    )
    shutil.copy(untrained_model, folder / "model.safetensors")
    for path in [*folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = {p: p.lstat().st_mtime_ns for p in bids.rglob("*")}
    # Permissions stop root only if it gives up its capabilities.
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if bare and not shutil.which(bare[0]):
        pytest.skip("permissions do not stop root, and there is no setpriv")
    command = [
        *(*bare, sys.executable, "-m", "iqtflow.cli", bids, folder / "out", "participant"),
        *("-w", folder / "work", "--model", folder / "model.safetensors", "--nprocs", "2"),
        *("--omp-nthreads", "1", "--device", "cpu", "--write-graph", "--resource-monitor", "-v"),
    ]
    environ = {**ENVIRONMENT, "HOME": str(archive)}  # it cannot be written, either
    run = execute(*command, env=environ, cwd="/")
    yield bids, folder / "out", folder / "work", run, before
    for path in [*folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_linked_scans_are_enhanced_under_all_their_entities(hospital):
    _, out, _, run, _ = hospital
    assert "2 enhanced, 0 skipped, 3 failed" in run.stdout, run.stdout + run.stderr
    for name in SOUND:
        image = nib.load(out / f"{name}_desc-iqt_T1w.nii.gz")
        assert image.shape == (64, 68, 64)
        assert (out / f"{name}_desc-iqtstd_T1w.nii.gz").exists()


@pytest.mark.parametrize(
    ("label", "command"),
    [("02", "datalad get {}"), ("03", "datalad get {}"), ("04", "lfs pull --include=sub-04_T1w.nii.gz")],
    ids=["annexed link", "unlocked annex", "Git LFS"],
)
def test_a_scan_that_was_not_fetched_fails_alone_and_says_how_to_fetch_it(hospital, label, command):
    bids, out, _, run, _ = hospital
    assert run.returncode == 1
    path = bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz"
    block = run.stdout[run.stdout.index(f"failed: {path}") :].split("failed: ")[1]
    assert f"{command.format(path)}`" in block
    assert not list(out.glob(f"sub-{label}/anat/*"))


def test_nothing_is_written_to_the_data_set_and_nothing_needs_to_be(hospital):
    bids, _, _, run, before = hospital
    assert {p: p.lstat().st_mtime_ns for p in bids.rglob("*")} == before
    assert "Read-only" not in run.stderr
    assert "Permission denied" not in run.stdout + run.stderr


def test_the_derivatives_have_no_fault_that_can_be_avoided(hospital):
    assert find_faults(hospital[1]) == []


def test_every_volume_says_where_it_comes_from(hospital):
    _, out, _, _, _ = hospital
    for name in SOUND:
        for desc in ("iqt", "iqtstd"):
            fields = json.loads((out / f"{name}_desc-{desc}_T1w.json").read_text())
            assert fields["Sources"] == [f"bids:raw:{name}_T1w.nii.gz"]
            assert fields["SkullStripped"] is True
            assert (fields["UpsamplingFactor"], fields["SliceAxis"]) == (4, "j")
            assert fields["Model"]["Name"] == "untrained"
            assert len(fields["Model"]["SHA256"]) == 64
            assert (fields["Device"], fields["RandomSeed"]) == ("cpu", 0)
            assert fields["PackageVersion"] == iqtflow.__version__
            assert fields["Geometry"]["ThicknessMm"] == 5.0  # from the JSON file at the root


def test_the_data_set_describes_itself(hospital):
    bids, out, _, _, _ = hospital
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["Authors"] == ["A. Bello", "C. Diaz"]
    assert described["GeneratedBy"][0]["Version"] == iqtflow.__version__
    assert described["DatasetLinks"] == {"raw": bids.as_uri()}
    assert "logs/CITATION.md" in described["HowToAcknowledge"]
    assert "not a medical device" in (out / "README.md").read_text()


def test_the_citation_tells_what_was_done(hospital):
    _, out, _, _, _ = hospital
    text = (out / "logs" / "CITATION.md").read_text()
    assert f"iqtflow {iqtflow.__version__}" in text
    assert re.search(r"untrained \(.* 4, SHA-256 [0-9a-f]{8}", text)
    assert "https://doi.org/10.1007/978-3-030-33843-5_6" in text
    assert "@inproceedings{lin2019," in (out / "logs" / "CITATION.bib").read_text()


def test_graph_and_resources_are_recorded_when_asked_for(hospital):
    work = hospital[2]
    graphs = list(work.glob("*/graph*.dot"))
    assert graphs and "enhance" in graphs[0].read_text()
    recorded = json.loads(next(work.glob("*/resource_monitor.json")).read_text())
    rows = zip(recorded["name"], recorded["rss_GiB"], strict=True)
    used = [memory for name, memory in rows if name.endswith(".enhance")]
    assert used and max(used) > 0.15, "torch takes more: the child process counts, too"
    assert "conform" in hospital[3].stdout + hospital[3].stderr, "-v names single steps"
