"""Positions of slices are found, and stay when slices are thickened, thinned or permuted."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import voxel_sizes
from scipy import ndimage

from iqtflow.image.geometry import (
    SliceGeometry,
    choose_upsampling,
    cubic_upsample,
    find_slice_geometry,
    require_ratio,
    slices_back,
    slices_last,
    spline_matrix,
    thick_affine,
    thin_affine,
)
from iqtflow.image.resampling import resample_inplane
from iqtflow.utils.errors import InputError


def image_of(shape, affine):
    return nib.Nifti1Image(np.zeros(shape, np.float32), affine)


def centroid_mm(data, affine):
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(data))


def blob(shape, centre, width=3.0):
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return np.exp(-0.5 * sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) / width**2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_found_along_any_axis_of_an_oblique_scan(axis):
    sizes = [0.9, 0.9, 0.9]
    sizes[axis] = 7.2
    geometry = find_slice_geometry(image_of((20, 20, 20), make_affine(tuple(sizes))))
    assert geometry.axis == axis
    assert geometry.spacing_mm == pytest.approx(7.2)
    assert geometry.ratio == pytest.approx(8)


def test_the_sidecar_tells_thickness_and_gap_and_the_header_the_spacing():
    image = image_of((20, 20, 10), make_affine((0.9, 0.9, 7.2)))
    geometry = find_slice_geometry(image, {"SliceThickness": 6.0, "SpacingBetweenSlices": 7.2})
    assert (geometry.thickness_mm, geometry.gap_mm) == (pytest.approx(6.0), pytest.approx(1.2))
    assert "SliceThickness" in geometry.source and "agrees" in geometry.source
    contradicted = find_slice_geometry(image, {"SpacingBetweenSlices": 5.0})
    assert contradicted.spacing_mm == pytest.approx(7.2) and "not used" in contradicted.source


@pytest.mark.parametrize("value", ["6 mm", -1, 0, True, float("nan")])
def test_a_thickness_that_is_no_length_is_refused(value):
    with pytest.raises(InputError, match="SliceThickness"):
        find_slice_geometry(image_of((20, 20, 10), make_affine()), {"SliceThickness": value})


def test_a_thick_slice_sits_at_the_centre_of_its_slab():
    thin = make_affine((1, 1, 0.7))
    for k in (2, 3, 4, 8):
        thick = thick_affine(thin, k)
        slab = np.mean([nib.affines.apply_affine(thin, (5, 6, z)) for z in range(2 * k, 3 * k)], axis=0)
        np.testing.assert_allclose(nib.affines.apply_affine(thick, (5, 6, 2)), slab)
        np.testing.assert_allclose(thin_affine(thick, k), thin, atol=1e-12)


def test_a_phantoms_centroid_does_not_move_when_the_spline_thins_its_slices():
    data = blob((24, 26, 20), (11, 13, 9.5))
    affine = make_affine((1, 1, 4))
    upsampled = cubic_upsample(data, 4)
    assert upsampled.shape == (24, 26, 80)
    np.testing.assert_allclose(
        centroid_mm(upsampled, thin_affine(affine, 4)), centroid_mm(data, affine), atol=0.02
    )


def test_the_spline_passes_through_the_slices_and_equals_scipys():
    rng = np.random.default_rng(0)
    data = rng.random((3, 4, 30))
    odd = cubic_upsample(data, 3)
    np.testing.assert_allclose(odd[..., 1::3], data, atol=1e-5)
    reference = ndimage.zoom(data, (1, 1, 4), order=3, mode="mirror", grid_mode=True)
    np.testing.assert_allclose(cubic_upsample(data, 4)[..., 20:-20], reference[..., 20:-20], atol=1e-5)


@given(n=st.integers(1, 60), k=st.sampled_from([2, 3, 4, 6, 8]))
@settings(max_examples=40, deadline=None)
def test_a_constant_stays_constant_under_the_spline(n, k):
    matrix = spline_matrix(n, k)
    assert matrix.shape == (n * k, n)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_putting_slices_last_and_back_moves_no_voxel_in_the_world(axis):
    data, affine = np.random.default_rng(0).random((5, 6, 7)), make_affine((1, 2, 3))
    last, last_affine = slices_last(data, affine, axis)
    assert last.shape[2] == data.shape[axis]
    voxel = (1, 2, 3)
    moved = [voxel[i] for i in range(3) if i != axis] + [voxel[axis]]
    assert last[tuple(moved)] == data[voxel]
    np.testing.assert_allclose(
        nib.affines.apply_affine(last_affine, moved), nib.affines.apply_affine(affine, voxel)
    )
    back, back_affine = slices_back(last, last_affine, axis)
    np.testing.assert_array_equal(back, data)
    np.testing.assert_allclose(back_affine, affine)


@given(edge=st.floats(0.4, 2.5), target=st.floats(0.5, 2.0))
@settings(max_examples=25, deadline=None)
def test_resampling_the_plane_moves_no_landmark(edge, target):
    affine = make_affine((edge, edge, 5.0))
    data = blob((50, 46, 3), (26, 21, 1), width=8 * max(target / edge, 1) / 2)
    out, out_affine = resample_inplane(data, affine, target)
    np.testing.assert_allclose(voxel_sizes(out_affine)[:2], target, rtol=1e-9)
    inside = out[..., 1:2]
    before, after = centroid_mm(data[..., 1:2], affine), centroid_mm(inside, out_affine)
    assert np.linalg.norm(before - after) < 0.25 * max(edge, target)


@pytest.mark.parametrize(
    ("spacing", "inplane", "k", "resampled"),
    [
        (3.0, 0.72, 4, None),
        (3.0, 0.91, 4, None),
        (10.0, 0.977, 8, None),
        (7.2, 0.9, 8, None),
        (3.0, 0.25, 8, None),
        (3.0, 0.2, 8, 0.375),
        (2.0, 1.0, 4, None),
        (6.3, 1.0, 4, None),
        (6.5, 1.0, 8, None),
        (1.4, 1.0, 4, 0.35),
    ],
)
def test_the_smallest_factor_that_suits_the_spacing_is_chosen_and_the_plane_kept(
    spacing, inplane, k, resampled
):
    chosen = choose_upsampling(
        SliceGeometry(2, spacing, spacing, 0, (inplane, inplane), spacing / inplane, ""), [4, 8]
    )
    assert chosen.k == k
    assert chosen.inplane_mm == (pytest.approx(resampled) if resampled else None)


@given(
    spacing=st.floats(1.5, 14),
    ratio=st.floats(1.5, 12),
    voxel=st.sampled_from(["native", 0.7, 1.0, 1.5]),
    factors=st.sampled_from([(4, 8), (2, 4, 8)]),
)
@settings(max_examples=60, deadline=None)
def test_no_scan_loses_its_plane_to_the_choice_of_a_model(spacing, ratio, voxel, factors):
    """From a ratio of 1.5 to 12 the plane is resampled for the wanted voxel size only."""
    plane = spacing / ratio
    geometry = SliceGeometry(2, spacing, spacing, 0, (plane, plane), ratio, "")
    chosen = choose_upsampling(geometry, factors, voxel)
    if voxel == "native" or plane <= 1.05 * voxel:
        assert chosen.inplane_mm is None
        assert 0.37 <= ratio / chosen.k <= 1.6
    elif spacing / voxel <= 12:
        assert (chosen.inplane_mm, chosen.ratio) == (voxel, pytest.approx(spacing / voxel))
    else:
        with pytest.raises(InputError, match="at most 12"):
            require_ratio(geometry, voxel, "scan.nii")


def test_slices_too_far_apart_name_the_voxel_size_that_helps_if_there_is_one():
    for spacing, plane, advice in ((6.0, 0.4, "--voxel-size 0.7"), (13.0, 0.9, "--voxel-size 1.1")):
        geometry = SliceGeometry(2, spacing, spacing, 0, (plane, plane), spacing / plane, "")
        with pytest.raises(InputError, match=f"{advice}.*--force"):
            require_ratio(geometry, "native", "scan.nii")
        require_ratio(geometry, float(advice.split()[1]), "scan.nii")
    with pytest.raises(InputError, match="Use --force"):
        require_ratio(SliceGeometry(2, 20.0, 20, 0, (1, 1), 20.0, ""), "native", "scan.nii")


def test_a_sidecar_that_the_header_contradicts_is_named_and_not_used():
    image = image_of((20, 20, 10), make_affine((1, 1, 10)))
    image.set_filename("sub-01_T1w.nii.gz")
    overlapping = find_slice_geometry(image, {"SliceThickness": 12.0})
    assert overlapping.thickness_mm == 12 and overlapping.notes == ()
    for stated in (20.0, 999.0):
        geometry = find_slice_geometry(image, {"SliceThickness": stated})
        assert geometry.thickness_mm == pytest.approx(10) and geometry.gap_mm == 0
        assert f"{stated:g} mm in the JSON sidecar of sub-01_T1w.nii.gz" in geometry.notes[0]
    (note,) = find_slice_geometry(image, {"SpacingBetweenSlices": 99.0}).notes
    assert "99 mm" in note and "10 mm in the NIfTI header" in note
