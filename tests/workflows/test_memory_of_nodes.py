"""The memory that nodes state, and the number of threads that reaches the programs that compute."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from clinics import dataset, python
from conftest import write_scan
from phantoms import make_brain

from iqtflow.bids import find_scans
from iqtflow.config import EnhanceSettings, PathSettings, RunSettings, Settings
from iqtflow.workflows.app import memory
from iqtflow.workflows.app.memory import count_voxels, enhancing_gb, state_memory
from iqtflow.workflows.prepare import init_prepare_wf


@pytest.fixture
def scan_of(tmp_path):
    def make(shape: tuple[int, int, int], zooms: tuple[float, float, float], **sidecar: object):
        root = dataset(tmp_path / f"bids{len(list(tmp_path.iterdir()))}")
        path = root / "sub-1/anat/sub-1_T1w.nii.gz"
        write_scan(path, np.zeros(shape, np.uint8), np.diag([*zooms, 1]))
        path.with_name("sub-1_T1w.json").write_text(json.dumps(sidecar))
        return find_scans(root)[0]

    return make


def settings(tmp_path: Path, **run: object) -> Settings:
    paths = PathSettings(bids_dir=tmp_path, output_dir=tmp_path, work_dir=tmp_path)
    return Settings(paths=paths, run=RunSettings(**{"nprocs": 1, "mem_gb": 16.0, **run}))


def test_a_larger_image_states_more_memory(scan_of):
    stated = {}
    for edge in (64, 256):
        workflow = init_prepare_wf(name="prepare")
        state_memory(workflow, scan_of((edge,) * 3, (0.7,) * 3))
        stated[edge] = {name: workflow.get_node(name).mem_gb for name in ("segment", "extract")}
        stated[edge]["simulate"] = workflow.get_node("simulate_draw01").mem_gb
    for name in ("segment", "extract", "simulate"):
        assert stated[256][name] > stated[64][name], name
    assert stated[256]["extract"] == memory.FOOTPRINTS["extract"].gb(256**3)


def test_thick_slices_count_as_the_thin_ones_that_they_become(scan_of):
    assert count_voxels(scan_of((100, 100, 20), (1.0, 1.0, 5.0))) == (200_000, 1_000_000)


@pytest.mark.parametrize(
    ("plane", "voxel_size", "thin"), [(2.0, 1.0, 4_000_000), (0.5, 1.0, 500_000), (1.0, 0.8, 1_953_125)]
)
def test_cubic_voxels_count_as_the_larger_one_of_what_the_network_makes_and_what_is_stored(
    scan_of, plane, voxel_size, thin
):
    """100 x 100 pixels and 20 slices 5 mm apart: on 1 mm a plane of 2 mm becomes 200 x 200."""
    counted = count_voxels(scan_of((100, 100, 20), (plane, plane, 5.0)), voxel_size)[1]
    assert counted == pytest.approx(max(thin, 200_000 * 5 / plane if plane < voxel_size else 0), rel=1e-5)


def test_a_scan_that_cannot_be_read_counts_as_a_large_head(scan_of):
    scan = scan_of((8, 8, 8), (1, 1, 1))
    scan.path.write_bytes(b"no image")
    assert count_voxels(scan)[0] == memory.UNKNOWN_VOXELS


def test_no_node_states_more_than_its_share(scan_of, tmp_path):
    scan = scan_of((256, 256, 40), (0.9, 0.9, 4.5))
    alone = enhancing_gb(scan, None, settings(tmp_path))
    assert 1.0 < alone < 4.0
    assert enhancing_gb(scan, None, settings(tmp_path, nprocs=4, mem_gb=2.0)) == 0.5


def test_low_mem_takes_less_for_a_network_that_takes_volumes_whole(scan_of, tmp_path, untrained_model):
    scan = scan_of((256, 256, 40), (0.9, 0.9, 4.5), SkullStripped=True)
    whole = dataclasses.replace(settings(tmp_path), enhance=EnhanceSettings(tiling="whole"))
    low = dataclasses.replace(whole, run=dataclasses.replace(whole.run, low_mem=True))
    model = os.fspath(untrained_model)
    assert enhancing_gb(scan, model, low) < enhancing_gb(scan, model, whole)


def test_a_gpu_job_states_the_memory_that_cuda_takes(scan_of, tmp_path):
    scan = scan_of((64, 64, 16), (1, 1, 4))
    on_cpu, on_gpu = (enhancing_gb(scan, None, settings(tmp_path, device=d)) for d in ("cpu", "cuda"))
    assert on_gpu - on_cpu == pytest.approx(memory.CUDA_GB, abs=0.02)


@pytest.mark.parametrize("step", ["extract", "derivatives"])
def test_a_step_takes_no_more_than_it_states(tmp_path, step):
    """Measured here and now, in a process of its own; the others are in benchmarks/bench_memory.py."""
    edge = 96
    brain = make_brain((edge,) * 3)
    affine = np.diag([1.5, 1.5, 1.5, 1])
    csf = np.clip(brain.mask - brain.wm - brain.gm, 0, 1).astype(np.float32)
    for name, data in (("T1w", brain.intensity), ("WM", brain.wm), ("GM", brain.gm), ("CSF", csf)):
        write_scan(tmp_path / f"{name}.nii.gz", data, affine)
    write_scan(tmp_path / "mask.nii.gz", brain.mask.astype(np.uint8), affine)
    extract = (
        "from iqtflow.interfaces.patches import ExtractPatches;"
        "ExtractPatches(in_file='T1w.nii.gz', wm_file='WM.nii.gz', gm_file='GM.nii.gz',"
        " mask_file='mask.nii.gz', subject='1').run();"
    )
    maps = (
        "from iqtflow.cli.commands.segment import main;"
        "assert main(['T1w.nii.gz', '--engine', 'derivatives', '--wm-map', 'WM.nii.gz', '--gm-map',"
        " 'GM.nii.gz', '--csf-map', 'CSF.nii.gz', '--out-prefix', 'x']) == 0;"
    )
    told = "from iqtflow.utils.system import peak_memory_gb; print(peak_memory_gb())"
    done = python("-c", (extract if step == "extract" else maps) + told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) <= memory.FOOTPRINTS[step].gb(edge**3)


def test_threads_reach_the_network(tmp_path, untrained_model):
    """The sidecar has the number that PyTorch was given."""
    from iqtflow.interfaces.enhance import EnhanceVolume

    brain = make_brain((32, 36, 32))
    thick = brain.intensity.reshape(32, 9, 4, 32).mean(axis=2)
    scan = write_scan(tmp_path / "scan.nii.gz", thick, np.diag([3.0, 12.0, 3.0, 1.0]))
    node = EnhanceVolume(
        in_file=os.fspath(scan), model=os.fspath(untrained_model), skull_stripped="yes", num_threads=2
    )
    node.run(cwd=tmp_path)
    assert json.loads((tmp_path / "details.json").read_text())["NumThreads"] == 2


def test_threads_reach_openmp_and_itk(tmp_path):
    """SPM's and ANTs's threads are set by the environment of the child."""
    from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec

    class Show(ChildCommand):
        module = "show"
        input_spec = ChildCommandInputSpec

    child = Show(num_threads=3)
    child._cmd = f"{sys.executable} -c 'import os; print(dict(os.environ))'"
    said = child.run(cwd=tmp_path).runtime.stdout
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        assert f"'{name}': '3'" in said
