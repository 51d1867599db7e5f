"""The audit finds what only the scan or only the enhanced volume shows, and no more."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from phantoms import make_brain
from scipy import ndimage

from iqtflow.image.geometry import find_slice_geometry
from iqtflow.inference.audit import MISSING, UNSUPPORTED, audit_estimate, unchecked_share
from iqtflow.inference.data_consistency import assumed_thickness, audit_files
from iqtflow.inference.forward import average_slices, fit_forward_model, make_consistent
from iqtflow.simulation.slice_profile import profile_matrix
from iqtflow.utils.errors import InputError

VOXEL_MM, THICKNESS_MM, NOISE, K = (1.5, 1.5, 6.0), 4.5, 12.0, 4
#: Voxel (slices last) in white matter, away from fluid and cortex.
PLACE = (21, 32, 9)


class Pair:
    """A scan of a phantom in a contrast of its own, and the truth as its enhanced volume."""

    def __init__(self) -> None:
        self.brain = make_brain((64, 64, 64))
        truth = ndimage.gaussian_filter(self.brain.intensity, 0.5)
        self.estimate = truth.astype(np.float32)
        self.matrix = profile_matrix(64, K, K * THICKNESS_MM / VOXEL_MM[2])
        self.mask = average_slices(self.brain.mask.astype(np.float32), self.matrix) > 0.5
        rng = np.random.default_rng(1)
        self.noise = rng.normal(0, NOISE, self.mask.shape).astype(np.float32)
        self.scan = self.acquire(self.estimate)

    def acquire(self, volume: np.ndarray) -> np.ndarray:
        """Scan a volume: grey matter nearly as bright as white matter, shading, and a darker slice."""
        contrast = np.interp(volume, [0, 250, 700, 1000, 2000], [0, 300, 900, 1000, 1600])
        shading = np.linspace(0.9, 1.1, 64)[:, None, None] * np.where(np.arange(16) == 7, 0.95, 1)
        return (average_slices(contrast, self.matrix) * shading).astype(np.float32) + self.noise

    def sphere(self, radius_mm: float) -> np.ndarray:
        """Soft sphere about `PLACE` on the thin grid."""
        centre = (*PLACE[:2], K * (PLACE[2] + 0.5) - 0.5)
        offsets = np.ogrid[tuple(map(slice, self.estimate.shape))]
        away = 1.5 * np.sqrt(sum((o - c) ** 2 for o, c in zip(offsets, centre, strict=True)))
        return np.clip(radius_mm - away + 0.5, 0, 1).astype(np.float32)

    def audit(self, scan: np.ndarray, estimate: np.ndarray, **options):
        return audit_estimate(
            scan, estimate, self.mask, voxel_mm=VOXEL_MM, thickness_mm=THICKNESS_MM, **options
        )


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


@pytest.fixture(scope="module")
def clean(pair):
    return pair.audit(pair.scan, pair.estimate)


def test_a_consistent_change_of_contrast_and_brightness_is_no_finding(pair, clean):
    assert clean.places == ()
    assert clean.noise == pytest.approx(NOISE, rel=0.1)
    assert 0.9 < clean.residual_rms < 1.4
    assert not clean.residual[~pair.mask].any()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("kind", [MISSING, UNSUPPORTED])
def test_a_small_sphere_in_one_of_the_two_is_found_where_it_is(pair, kind, sign):
    changed = pair.estimate + sign * 300 * pair.sphere(4.0)  # 0.27 ml
    found = (
        pair.audit(pair.acquire(changed), pair.estimate)
        if kind == MISSING
        else pair.audit(pair.scan, changed)
    )
    first = found.places[0]
    assert first.kind == kind
    distance = np.linalg.norm((np.array(first.position) - PLACE) * VOXEL_MM)
    assert distance < 4.5  # mm
    assert first.slices[0] <= PLACE[2] <= first.slices[1]
    assert np.sign(first.contrast) == (sign if kind == MISSING else -sign)
    assert 0.05 < first.volume_ml < 2
    assert len(found.places) <= 2


def test_the_same_sphere_in_both_is_no_finding(pair):
    changed = pair.estimate - 300 * pair.sphere(4.0)
    assert pair.audit(pair.acquire(changed), changed).places == ()


def test_a_sphere_in_a_gap_between_slices_cannot_be_found(pair):
    """Slices of 1 mm every 6 mm: a sphere of 1.5 mm radius in the gap is in no slice."""
    thin = profile_matrix(64, K, K * 1.0 / VOXEL_MM[2])
    scan = average_slices(pair.estimate, thin) + pair.noise
    offsets = np.ogrid[tuple(map(slice, pair.estimate.shape))]
    centre = (*PLACE[:2], K * PLACE[2] - 0.5)
    away = 1.5 * np.sqrt(sum((o - c) ** 2 for o, c in zip(offsets, centre, strict=True)))
    changed = pair.estimate + 300 * (away < 1.5)
    found = audit_estimate(scan, changed, pair.mask, voxel_mm=VOXEL_MM, thickness_mm=1.0)
    assert found.places == ()
    assert unchecked_share(6.0, 1.0) == pytest.approx(5 / 6)
    assert unchecked_share(6.0, 7.0) == 0
    assert unchecked_share(6.0, None) is None


def test_the_consistency_step_brings_a_missing_structure_back_and_leaves_the_rest(pair):
    changed = pair.estimate - 300 * pair.sphere(6.0)
    scan = pair.acquire(changed)
    model = fit_forward_model(scan, pair.estimate, pair.mask, voxel_mm=VOXEL_MM, thickness_mm=THICKNESS_MM)
    corrected = make_consistent(scan, pair.estimate, pair.mask, model, noise=NOISE)
    inside, outside = pair.sphere(4.0) > 0.9, np.repeat(pair.mask, K, axis=2) & (pair.sphere(9.0) == 0)
    wanted, before = changed[inside], pair.estimate[inside]
    assert abs(corrected[inside].mean() - wanted.mean()) < 0.35 * abs(before.mean() - wanted.mean())
    assert np.abs(corrected - pair.estimate)[outside].mean() < NOISE
    around = ~np.repeat(pair.mask, K, axis=2)
    assert np.array_equal(corrected[around], pair.estimate[around])


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory):
    """The pair as files: an oblique scan with its slices along the first axis, from right to left."""
    folder = tmp_path_factory.mktemp("audit")
    affine = make_affine(VOXEL_MM)
    thin = affine.copy()
    thin[:3, 2] /= K
    thin[:3, 3] -= thin[:3, 2] * (K - 1) / 2
    changed = pair.estimate - 300 * pair.sphere(4.0)

    def write(name: str, data: np.ndarray, its: np.ndarray) -> str:
        image = nib.Nifti1Image(data, its).as_reoriented([[1, 1], [2, 1], [0, -1]])
        nib.save(image, folder / f"{name}.nii.gz")
        return str(folder / f"{name}.nii.gz")

    return {
        "scan": write("scan", pair.acquire(changed), affine),
        "enhanced": write("enhanced", pair.estimate, thin),
        "mask": write("mask", pair.mask.astype(np.uint8), affine),
        "place": nib.affines.apply_affine(affine, PLACE),
    }


def test_places_are_in_world_mm_and_slices_are_those_of_the_file(files, tmp_path):
    from iqtflow.cli.commands.audit import main

    out = tmp_path / "audit.json"
    residual = tmp_path / "residual.nii.gz"
    arguments = [files["scan"], files["enhanced"], "--mask", files["mask"], "--thickness", str(THICKNESS_MM)]
    assert main([*arguments, "--json", str(out), "--residual", str(residual)]) == 0
    found = json.loads(out.read_text())["DataConsistency"]
    first, image = found["Places"][0], nib.load(files["scan"])
    assert first["Kind"] == MISSING
    assert np.linalg.norm(np.subtract(first["PositionMM"], files["place"])) < 4.5
    voxel = nib.affines.apply_affine(np.linalg.inv(image.affine), files["place"])
    axis = int(np.argmax(nib.affines.voxel_sizes(image.affine)))
    assert round(voxel[axis]) in first["Slices"]
    assert (found["UncheckedShare"], found["ThicknessStated"]) == (0.25, True)
    written = nib.load(residual)
    assert written.shape == image.shape
    assert np.allclose(written.affine, image.affine)
    assert written.get_fdata()[tuple(np.round(voxel).astype(int))] < -3


def test_a_volume_that_does_not_belong_to_the_scan_is_refused(files, tmp_path):
    image = nib.load(files["enhanced"])
    moved = image.affine.copy()
    moved[:3, 3] += 10
    nib.save(nib.Nifti1Image(image.get_fdata(), moved), tmp_path / "moved.nii.gz")
    with pytest.raises(InputError, match="another grid") as refused:
        audit_files(files["scan"], tmp_path / "moved.nii.gz", mask=files["mask"])
    assert "moved.nii.gz" in str(refused.value)


def test_a_thickness_that_nobody_states_is_the_middle_of_the_training_range(files):
    geometry = find_slice_geometry(nib.load(files["scan"]))
    card = {"slice_profile": {"fwhm_over_spacing": [0.5, 1.0]}}
    assert assumed_thickness(geometry, card) == (pytest.approx(4.5), False)
    assert assumed_thickness(geometry) == (pytest.approx(4.5), False)
    stated = find_slice_geometry(nib.load(files["scan"]), {"SliceThickness": 5.0})
    assert assumed_thickness(stated, card) == (5.0, True)
