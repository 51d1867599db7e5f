"""Several scans of one head become one volume: motion is found, a scan that does not fit is told."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from phantoms import make_brain
from scipy import ndimage
from scipy.spatial.transform import Rotation

from iqtflow.cli.commands.combine import main as combine
from iqtflow.image.geometry import cubic_upsample, slices_back, slices_last, thick_affine, thin_affine
from iqtflow.inference.fusion import Aligned, fuse
from iqtflow.inference.pipeline import enhance
from iqtflow.inference.rigid import Brain, compare, register, resample
from iqtflow.inference.stack_fit import why_apart, why_unfit
from iqtflow.inference.stacks import Stack, combine_stacks, combined_grid
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix
from iqtflow.utils.errors import InputError

EDGE, K = 2.0, 4
SHAPE = (40, 44, 40)


def motion_of(affine: np.ndarray, *, mm=(2.0, -1.5, 1.0), degrees=(2.0, -1.0, 2.5)) -> np.ndarray:
    """Return a rigid motion about the middle of the phantom, world to world."""
    centre = (affine @ [*((np.array(SHAPE) - 1) / 2), 1])[:3]
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = centre - motion[:3, :3] @ centre + mm
    return motion


def moved(volume: np.ndarray, affine: np.ndarray, motion: np.ndarray, order: int = 3) -> np.ndarray:
    step = np.linalg.inv(affine) @ np.linalg.inv(motion) @ affine
    return resample(volume, step, volume.shape, order=order)


def make_stack(head: np.ndarray, affine: np.ndarray, axis: int, name: str, *, noise=8.0, **sidecar) -> Stack:
    """Return a scan of a phantom with thick slices, "enhanced" by its spline."""
    n = head.shape[axis] // K * K
    matrix = profile_matrix(n, K, 0.9 * K)
    head = np.take(head, range(n), axis=axis)
    thick = np.empty([n // K if a == axis else m for a, m in enumerate(head.shape)], np.float32)
    apply_profile(head, axis, matrix, out=thick)
    thick = thick + np.random.default_rng(axis).normal(0, noise, thick.shape).astype(np.float32) * (
        thick > 20
    )
    data, grid = slices_last(thick, affine, axis)
    grid = thick_affine(grid, K)
    fine = np.maximum(cubic_upsample(data, K), 0)
    spread = np.full(fine.shape, np.float32(60))

    def image(volume: np.ndarray, its: np.ndarray) -> nib.Nifti1Image:
        return nib.Nifti1Image(*slices_back(volume, its, axis))

    thin = thin_affine(grid, K)
    return Stack(
        name,
        image(data, grid),
        image(fine, thin),
        image(spread, thin),
        image((data > 100).astype(np.uint8), grid),
        sidecar,
        {"SkullStripped": True, "SliceAxis": "ijk"[axis], "Warnings": []},
    )


@pytest.fixture(scope="module")
def head():
    brain = make_brain(SHAPE)
    return brain.intensity, make_affine((EDGE,) * 3)


@pytest.fixture(scope="module")
def session(head):
    """Three scans with orthogonal slices, the second of a moved head; the combined volume; the motion."""
    volume, affine = head
    motion = motion_of(affine)
    stacks = [
        make_stack(volume, affine, 2, "axial.nii.gz"),
        make_stack(moved(volume, affine, motion), affine, 1, "coronal.nii.gz"),
        make_stack(volume, affine, 0, "sagittal.nii.gz"),
    ]
    return stacks, combine_stacks(stacks, voxel_mm=EDGE), motion


@pytest.fixture(scope="module")
def still(head):
    """Two scans, with axial and sagittal slices, of a small head that does not move."""
    volume = make_brain((32, 36, 32)).intensity
    names = {2: "axial.nii.gz", 0: "sagittal.nii.gz"}
    return [make_stack(volume, head[1], axis, name) for axis, name in names.items()]


def error_inside(image: nib.Nifti1Image, head) -> float:
    """Root mean square difference from the phantom, in its brain, on the grid of the image."""
    volume, affine = head
    truth = resample(volume, np.linalg.inv(affine) @ image.affine, image.shape)
    inside = truth > 200
    return float(np.sqrt(np.mean((np.asarray(image.dataobj) - truth)[inside] ** 2)))


def test_the_motion_between_two_scans_is_found(session, head):
    _, combined, motion = session
    found = np.array(combined.details["Stacks"][1]["Matrix"])
    box = [[n // 4, 3 * n // 4] for n in SHAPE]
    corners = head[1] @ np.array([[x, y, z, 1] for x in box[0] for y in box[1] for z in box[2]]).T
    assert np.abs((found - motion) @ corners)[:3].max() < 0.5 * EDGE
    still = np.array(combined.details["Stacks"][2]["Matrix"])
    assert np.abs((still - np.eye(4)) @ corners)[:3].max() < 0.5 * EDGE


def test_the_combined_volume_is_closer_to_the_head_than_each_scan(session, head):
    stacks, combined, _ = session
    errors = [error_inside(stacks[0].mean, head), error_inside(stacks[2].mean, head)]
    assert error_inside(combined.mean, head) < 0.85 * min(errors)
    assert error_inside(combined.mean, head) < error_inside(combined.single, head)


def test_a_head_that_moved_is_told_with_its_motion(session):
    stacks, combined, _ = session
    second = combined.details["Stacks"][1]
    assert second["TranslationMm"] == pytest.approx(np.linalg.norm([2.0, -1.5, 1.0]), abs=0.5)
    assert second["RotationDegrees"] > 1
    assert any(stacks[1].name in warning and "mm" in warning for warning in combined.details["Warnings"])


def test_every_scan_is_compared_with_its_own_slices(session):
    audits = [stack["DataConsistency"] for stack in session[1].details["Stacks"]]
    assert all(0.3 < audit["ResidualRMS"] < 6 for audit in audits)
    assert session[1].residual.shape == session[0][0].scan.shape


def test_the_weights_of_the_scans_sum_to_one(session):
    assert sum(stack["Weight"] for stack in session[1].details["Stacks"]) == pytest.approx(1, abs=0.01)


def test_another_person_is_left_out_by_name_and_the_others_go_on(session, head):
    stacks, _, _ = session
    stranger = make_stack(make_brain(SHAPE, seed=5).intensity, head[1], 1, "stranger.nii.gz")
    combined = combine_stacks([stacks[0], stacks[2], stranger], voxel_mm=EDGE)
    used = {stack["Scan"]: stack["Used"] for stack in combined.details["Stacks"]}
    assert used == {"axial.nii.gz": True, "sagittal.nii.gz": True, "stranger.nii.gz": False}
    told = next(warning for warning in combined.details["Warnings"] if "stranger.nii.gz" in warning)
    assert "person" in told and "correlation" in told


def test_a_copy_of_a_scan_is_left_out_by_name(session):
    stacks, _, _ = session
    copy = Stack(**{**vars(stacks[0]), "name": "copy.nii.gz"})
    with pytest.raises(InputError, match=r"copy\.nii\.gz.*same voxels as axial\.nii\.gz"):
        combine_stacks([stacks[0], copy])


def test_a_missing_scan_is_named_before_a_scan_is_enhanced(session, tmp_path, untrained_model):
    first, said = session[0][0].scan, []
    options = {"model": untrained_model, "device": "cpu", "report": said.append}
    with pytest.raises(InputError, match=r"absent\.nii\.gz"):
        enhance(first, stacks=[tmp_path / "absent.nii.gz"], **options)
    with pytest.raises(InputError, match="acquired_spacing"):
        enhance(first, stacks=[session[0][2].scan], acquired_spacing=5.0, **options)
    assert said == []


def test_without_a_second_scan_that_fits_nothing_is_combined(session):
    first = session[0][0]
    other = Stack(**{**vars(session[0][2]), "name": "x.nii.gz", "sidecar": {"MagneticFieldStrength": 3.0}})
    low = Stack(**{**vars(first), "sidecar": {"MagneticFieldStrength": 0.064}})
    with pytest.raises(InputError, match=r"x\.nii\.gz.*3 T.*0\.064 T"):
        combine_stacks([low, other])


@pytest.mark.parametrize(
    ("other", "fields", "named"),
    [
        ("sub-02_acq-cor_T1w.nii.gz", {}, "subject 02"),
        ("sub-01_ses-2_T1w.nii.gz", {}, "session 2"),
        ("sub-01_acq-cor_T2w.nii.gz", {}, "contrast T2w"),
        ("sub-01_ce-gd_T1w.nii.gz", {}, "contrast agent gd"),
        ("sub-01_acq-cor_T1w.nii.gz", {"ContrastBolusIngredient": "GADOLINIUM"}, "GADOLINIUM"),
        ("sub-01_acq-cor_T1w.nii.gz", {"MagneticFieldStrength": 1.5}, "1.5 T"),
    ],
)
def test_scans_of_other_people_sessions_and_contrasts_are_named(other, fields, named):
    first = {"MagneticFieldStrength": 0.36}
    assert named in why_apart("sub-01_acq-tra_T1w.nii.gz", first, other, fields)
    assert why_apart("sub-01_acq-tra_T1w.nii.gz", first, "sub-01_acq-cor_T1w.nii.gz", first) == ""
    assert why_apart("axial.nii.gz", first, "coronal.nii.gz", first) == ""


def test_a_scan_that_hardly_overlaps_is_named():
    brain = make_brain((40, 40, 40))
    here, far = np.diag([3.0, 3, 3, 1]), np.diag([3.0, 3, 3, 1])
    far[2, 3] = 90
    found = compare(
        Brain(brain.intensity, brain.mask, here), Brain(brain.intensity, brain.mask, far), np.eye(4)
    )
    assert found.coverage < 0.3
    assert "overlaps" in why_unfit(found)


def test_the_same_two_scans_give_the_same_motion_bit_by_bit(head):
    volume, affine = (ndimage.zoom(head[0], 0.5, order=1), make_affine((3.0,) * 3))
    one = Brain(volume, volume > 100, affine)
    other = Brain(moved(volume, affine, motion_of(affine)), volume > 100, affine)
    assert (register(one, other).matrix == register(one, other).matrix).all()


@pytest.mark.parametrize("voxel_mm", [None, 1.2])
def test_the_combined_grid_has_cubic_voxels_and_the_field_of_view_of_the_first_scan(voxel_mm):
    scan = nib.Nifti1Image(np.zeros((120, 100, 30), np.float32), make_affine((1.0, 1.1, 5.0)))
    affine, shape, edge = combined_grid(scan, voxel_mm)
    assert edge == (voxel_mm or 1.0)
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx([edge] * 3)
    middles = [a @ [*((np.array(s) - 1) / 2), 1] for a, s in ((affine, shape), (scan.affine, scan.shape))]
    assert middles[0] == pytest.approx(middles[1])
    assert np.array(shape) * edge == pytest.approx([120, 110, 150], abs=edge)


def test_detail_along_an_axis_comes_from_the_scan_that_measured_it():
    """A wave that only one of two scans has along the slice axis of the other stays."""
    x = np.arange(48, dtype=np.float32)
    wave = np.broadcast_to(100 + 10 * np.sin(2 * np.pi * x / 4), (48, 48, 48)).astype(np.float32)
    flat = np.full_like(wave, 100)
    shown, spread = np.ones(wave.shape, bool), np.full_like(wave, 5)
    scans = [
        Aligned(flat, spread, shown, 5.0, np.array([0.0, 0.0, 1.0])),
        Aligned(wave, spread, shown, 5.0, np.array([1.0, 0.0, 0.0])),
    ]
    fused = fuse(scans, shown, edge_mm=1.0)
    middle = (slice(12, 36),) * 3
    assert np.abs(fused.volume - wave)[middle].max() < 2.0


def test_a_place_that_one_scan_does_not_show_comes_from_the_other():
    rng = np.random.default_rng(0)
    one, other = (
        ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 2).astype(np.float32) + 5 for _ in "ab"
    )
    shown, half = np.ones(one.shape, bool), np.ones(one.shape, bool)
    half[:, :, 20:] = False
    spread = np.full_like(one, 0.1)
    scans = [
        Aligned(one, spread, shown, 4.0, np.array([0.0, 0.0, 1.0])),
        Aligned(np.where(half, other, 0), spread, half, 4.0, np.array([1.0, 0.0, 0.0])),
    ]
    fused = fuse(scans, shown, edge_mm=1.0)
    assert np.abs(fused.volume - one)[:, :, 28:].max() < 0.1


def test_the_predicted_error_grows_with_what_scans_share_and_with_what_they_differ_by():
    rng = np.random.default_rng(1)
    truth = np.full((40, 40, 40), np.float32(100))
    spread, inside = np.full_like(truth, 5), np.ones(truth.shape, bool)
    common = rng.normal(0, 5, truth.shape)

    def fused(noises):
        scans = [
            Aligned((truth + n).astype(np.float32), spread, inside, 4.0, axis)
            for n, axis in zip(noises, np.eye(3), strict=True)
        ]
        return fuse(scans, inside, edge_mm=1.0)

    usual = fused([np.sqrt(0.5) * (common + rng.normal(0, 5, truth.shape)) for _ in "abc"])
    same = fused([common] * 3)
    wild = fused([rng.normal(0, 15, truth.shape) for _ in "abc"])
    assert usual.correlation == pytest.approx(0.5, abs=0.02) and usual.scale == pytest.approx(1, abs=0.02)
    assert same.correlation == pytest.approx(1, abs=0.02) and same.scale == 1
    assert wild.scale == pytest.approx(3 * np.sqrt(2), rel=0.05)
    medians = [float(np.median(one.error)) for one in (usual, same, wild)]
    assert medians[0] < medians[1] < medians[2]


def test_the_record_is_valid_json(session):
    assert json.loads(json.dumps(session[1].details))["VoxelSizeMm"] == [EDGE] * 3


def test_the_command_makes_the_same_volume_as_python(still, tmp_path):
    stacks = []
    arguments = [str(tmp_path / "combined.nii.gz"), "--voxel-size", "1.5", "--json", str(tmp_path / "c.json")]
    for stack in still:
        folder = tmp_path / stack.name.partition(".")[0]
        folder.mkdir()
        files = {"scan": stack.scan, "enhanced": stack.mean, "std": stack.std, "mask": stack.mask}
        for kind, image in files.items():
            nib.save(image, folder / f"{kind}.nii.gz")
        (folder / "details.json").write_text(json.dumps(stack.details))
        read = [nib.load(folder / f"{kind}.nii.gz") for kind in files]  # headers have single precision
        stacks.append(Stack(stack.name, *read, {}, stack.details))
        arguments += ["--name", stack.name, "--details", str(folder / "details.json")]
        arguments += [word for kind in files for word in (f"--{kind}", str(folder / f"{kind}.nii.gz"))]
    assert combine(arguments) == 0
    made = np.asarray(nib.load(tmp_path / "combined.nii.gz").dataobj)
    assert (made == np.asarray(combine_stacks(stacks, voxel_mm=1.5).mean.dataobj)).all()
    assert [one["Scan"] for one in json.loads((tmp_path / "c.json").read_text())["Stacks"]] == [
        stack.name for stack in stacks
    ]


def test_python_enhances_and_combines_and_tells_which_scan_is_near_isotropic(session, head, untrained_model):
    first, second = (session[0][number].scan for number in (0, 2))
    isotropic = nib.Nifti1Image(*head)
    options = {"model": untrained_model, "skull_stripped": True, "device": "cpu", "return_std": True}
    said: list[str] = []
    mean, std = enhance(first, stacks=[second, isotropic], report=said.append, voxel_size=1.5, **options)
    assert np.linalg.norm(mean.affine[:3, :3], axis=0) == pytest.approx([1.5] * 3)
    assert std.shape == mean.shape
    assert any(line.startswith("image 2: used") for line in said)
    assert any(line.startswith("image 3: left out") and "force" in line for line in said)
