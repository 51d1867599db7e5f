"""The examples of the documents run as they are printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import python
from conftest import make_affine, write_scan
from phantoms import make_brain
from spm_phantom import SAMPLING_MM, make_phantom

from iqtflow.segmentation.spm.install import SpmNotFoundError, find_spm

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def run_example(name: str, *arguments: object, cwd: Path, lines: int) -> list[str]:
    """Run an example in a folder of its own; return the last lines that it prints."""
    done = python(EXAMPLES / f"{name}.py", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-lines:]


def test_every_example_is_tested_and_shown():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r'run_example\(\s*"(\w+)"', Path(__file__).read_text()))
    shown = (EXAMPLES.parent / "nodes.md").read_text()
    assert [name for name in names if f"examples/{name}.py" not in shown] == []


def test_the_simulator_inside_an_augmentation_pipeline(tmp_path):
    brain = make_brain((48, 52, 48))
    paths = {}
    for name, data in (("t1w", brain.intensity), ("wm", brain.wm), ("gm", brain.gm)):
        paths[name] = write_scan(tmp_path / f"{name}.nii.gz", data, make_affine((1.5, 1.5, 1.5)))
    before = set(tmp_path.iterdir())
    lines = run_example("augment", *paths.values(), tmp_path / "work", 3, cwd=tmp_path, lines=3)
    images = [nib.load(line) for line in lines]
    # Thick slices along x, y, z in turn, all from the same head at the same place.
    assert [image.shape for image in images] == [(12, 52, 48), (48, 13, 48), (48, 52, 12)]
    assert all(Path(line).is_relative_to(tmp_path / "work") for line in lines)
    assert {path for path in tmp_path.iterdir() if path.name != "work"} == before, (
        "something is beside the inputs"
    )


def test_an_enhanced_volume_goes_through_the_first_steps_of_an_anatomical_pipeline(untrained_model, tmp_path):
    brain = make_brain((48, 52, 48))
    thick = brain.intensity.reshape(48, 13, 4, 48).mean(axis=2).astype(np.float32)
    scan = write_scan(tmp_path / "scan.nii.gz", thick, make_affine((1.5, 6.0, 1.5)))
    preproc, std = run_example(
        "enhance_first", scan, tmp_path / "work", untrained_model, cwd=tmp_path, lines=2
    )
    image = nib.load(preproc)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.shape == (48, 52, 48)
    assert nib.load(std).shape == (48, 52, 48)


def test_unified_segmentation_replaces_new_segment_in_a_graph():
    """The graph connects the same inputs and outputs. This needs no SPM."""
    from nipype.interfaces.spm import NewSegment

    from iqtflow.interfaces.spm import UnifiedSegmentation

    build = runpy.run_path(str(EXAMPLES / "without_matlab.py"))["init_volumes_wf"]
    theirs, ours = build(NewSegment()), build(UnifiedSegmentation())
    edges = [
        {(one.name, other.name, str(data["connect"])) for one, other, data in graph._graph.edges(data=True)}
        for graph in (theirs, ours)
    ]
    assert edges[0] == edges[1]


@pytest.mark.spm
@pytest.mark.slow
def test_unified_segmentation_without_matlab(tmp_path):
    try:
        spm = find_spm()
    except SpmNotFoundError as fault:
        pytest.skip(f"no SPM to test with: {fault}")
    if spm.tpm is None:
        pytest.skip("standalone SPM whose tissue priors are not unpacked yet")
    phantom = make_phantom(spm.tpm)
    phantom.image.to_filename(tmp_path / "T1w.nii.gz")
    (line,) = run_example(
        "without_matlab", tmp_path / "T1w.nii.gz", tmp_path / "work", SAMPLING_MM, cwd=tmp_path, lines=1
    )
    voxel_ml = abs(np.linalg.det(phantom.image.affine[:3, :3])) / 1000
    truth = [float(tissue.sum()) * voxel_ml for tissue in (phantom.gm, phantom.wm, phantom.csf)]
    np.testing.assert_allclose([float(value) for value in line.split()], truth, rtol=0.25)
