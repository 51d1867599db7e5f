"""Shared by tests: small synthetic scans, small BIDS data sets, and real scans if available."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A shell without job control starts programs in the background with SIGINT ignored, and their children, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine everything is slow.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

#: Thick axial slices: 1.2 x 1.2 x 7.2 mm voxels, 192 x 192 x 144 mm, oblique by 10 degrees about x.
SHAPE = (160, 160, 20)
VOXEL_MM = (1.2, 1.2, 7.2)


def make_affine(voxel_mm: tuple[float, float, float] = VOXEL_MM, *, tilt_degrees: float = 10.0) -> np.ndarray:
    """Affine (4, 4) of an image tilted about the world's x axis."""
    angle = np.deg2rad(tilt_degrees)
    rotation = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]], dtype=float
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * voxel_mm
    affine[:3, 3] = (-90, -110, -60)
    return affine


def make_head(shape: tuple[int, ...] = SHAPE, *, seed: int = 0) -> np.ndarray:
    """Return a bright ellipsoid in weak noise: float32 of `shape`, whose first three axes are space."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:3]), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.6
    head = np.random.default_rng(seed).normal(20, 5, shape).astype("float32")
    head[inside] += 300
    return head


def write_scan(
    path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None, **header: Any
) -> Path:
    """Write a NIfTI image, by default a thick-slice head; `header` sets fields of its header."""
    image = nib.Nifti1Image(
        make_head() if data is None else data, make_affine() if affine is None else affine
    )
    image.header.set_xyzt_units("mm")
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


@pytest.fixture
def bids_tree(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a BIDS data set of empty files, for tests of names.

    It takes the paths of files, relative to the root, and optionally the content of JSON files by their path.
    """

    def make(*files: str, sidecars: Mapping[str, Any] | None = None, name: str = "bids") -> Path:
        root = tmp_path / name
        root.mkdir()
        content = {"dataset_description.json": {"Name": "test", "BIDSVersion": "1.10.0"}, **(sidecars or {})}
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        for file, value in content.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(json.dumps(value))
        return root

    return make


@pytest.fixture
def no_spm(monkeypatch):
    """Let this process find no SPM."""
    for name in ("SPM_HOME", "SPM_PATH", "SPM_DIR", "SPMSTANDALONE_HOME", "FORCE_SPMMCR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("iqtflow.segmentation.spm.install.SPM_FOLDERS", ())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real scans (``mixed/`` and ``highfield/``, both BIDS); without one the test is skipped."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("IQTFLOW_TEST_DATA", beside))
    if not (folder / "mixed" / "dataset_description.json").is_file():
        pytest.skip(
            f"no real scans in {folder}; set IQTFLOW_TEST_DATA to a folder that holds mixed/ and highfield/"
        )
    return folder


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> list[Path]:
    """Patch libraries of three synthetic brains, without stored draws. No test may change them."""
    from training_phantoms import write_libraries

    return write_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="session")
def brain_files(tmp_path_factory) -> Path:
    """Folder with an image ``t1`` of a synthetic brain, and its maps ``wm`` and ``gm``, as ``.nii.gz``."""
    from phantoms import make_brain

    folder, brain = tmp_path_factory.mktemp("brain"), make_brain((48, 52, 40))
    for name, data in (("t1", brain.intensity), ("wm", brain.wm), ("gm", brain.gm)):
        write_scan(folder / f"{name}.nii.gz", data, make_affine((1, 1, 1)))
    return folder


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory) -> Path:
    """An untrained residual network: by construction it returns the cubic spline of the scan, whatever its
    weights.
    """
    import torch

    from iqtflow.models.model_file import save_model
    from iqtflow.models.registry import build_network

    torch.manual_seed(0)
    settings = {"k": 4, "filters": 2, "shrink": 2, "residual": True}
    states = [build_network("aniso-unet", **settings).state_dict() for _ in range(2)]
    card = {
        "name": "untrained",
        "k": 4,
        "contrast": "T1w",
        "network": {"name": "aniso-unet", "kwargs": settings},
        "normalisation": {"name": "brain-p80"},
        "geometry": "slab-centred",
        "context": "whole",
    }
    return save_model(tmp_path_factory.mktemp("model") / "untrained.safetensors", states, card)


@pytest.fixture
def small_pictures(monkeypatch):
    """Pages with one small slice for each plane: for tests in which the slices do not matter."""
    from iqtflow.reports.draw import enhanced, prepared
    from iqtflow.reports.draw.slices import Rung

    for module in (enhanced, prepared):
        monkeypatch.setattr(module, "LADDER", (Rung(1, 120, 50),))
