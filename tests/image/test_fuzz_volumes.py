"""Random headers and random damage: a scan comes back in its place, or a message says why not.

Each example is a NIfTI file that goes the way of `iqtflow-enhance`, from its bytes to those of the enhanced
volume; only the network is a cubic spline. A few hundred are tried here; ``IQTFLOW_FUZZ=20000`` asks for so
many of each kind.
"""

from __future__ import annotations

import gzip
import itertools
import os
import struct
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.quaternions import quat2mat
from small_models import write_model

from iqtflow.cli.commands.enhance import main
from iqtflow.image.geometry import cubic_upsample
from iqtflow.image.nifti_file import peek_nifti
from iqtflow.image.orientation import affine_error
from iqtflow.image.validate import check_scan
from iqtflow.inference.predict import Enhanced
from iqtflow.models.model_file import load_model
from iqtflow.utils.errors import IQTFlowError

EXAMPLES = int(os.environ.get("IQTFLOW_FUZZ", "0"))
many = settings(
    max_examples=EXAMPLES or 150,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
)

SHAPE, VOXEL_MM = (20, 18, 5), (2.0, 2.0, 8.0)
#: First byte and type of fields in a NIfTI-1 header.
FIELDS = {
    "dim": (40, "8h"),
    "datatype": (70, "2h"),  # and bitpix
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "slope": (112, "2f"),  # and scl_inter
    "xyzt_units": (123, "B"),
    "codes": (252, "2h"),
    "quaternion": (256, "3f"),
    "offset": (268, "3f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
}


def scan_bytes() -> bytes:
    """Return a skull-stripped oblique head in 16-bit integers, with equal sform and qform."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.7
    data = np.where(inside, 600 + 300 * np.cos(4 * axes[0]) + 50 * axes[2], 0).astype(np.int16)
    image = nib.Nifti1Image(data, make_affine(VOXEL_MM))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, 1)
    return image.to_bytes()


WHOLE = scan_bytes()


def put(content: bytearray, field: str, *values) -> None:
    offset, kind = FIELDS[field]
    struct.pack_into("<" + kind, content, offset, *values)


# --- contents of a header ---

odd_number = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, 1e-3, 3.0, 1e3, 1e30, -1e30, float("nan"), float("inf"), -float("inf")]
)
any_number = odd_number | st.floats(width=32)
near_one = st.floats(0.999999, 1.00001)
code = st.sampled_from([0, 1, 2, 3, 4, 5, -1, 99])


@st.composite
def rotations(draw):
    """Unit quaternions (b, c, d). Half are rotations by 180 degrees, longer than 1 by rounding."""
    vector = np.array([draw(st.floats(-1, 1)) for _ in range(4)])
    if draw(st.booleans()):
        vector[0] = 0
    length = np.linalg.norm(vector)
    vector = vector / length if length > 1e-3 else np.array([0, 0, 1.0, 0])
    return tuple(np.sign(vector[0] or 1) * vector[1:] * draw(near_one))


@st.composite
def matrices(draw):
    """Twelve numbers of an sform: that of the scan, rotated, scaled, sheared, moved, mirrored or wrong."""
    affine = make_affine(VOXEL_MM)
    turn = np.eye(4)
    a = draw(rotations())
    turn[:3, :3] = quat2mat((np.sqrt(max(1 - np.dot(a, a), 0)), *a))
    scale = np.diag([*(draw(st.floats(0.8, 1.25)) for _ in range(3)), 1])
    scale[0, 1], scale[1, 2] = draw(st.floats(-0.3, 0.3)), draw(st.floats(-0.3, 0.3))
    if draw(st.booleans()):
        scale[0] *= -1
    affine = scale @ turn @ affine
    affine[:3, 3] += [draw(st.floats(-200, 200)) for _ in range(3)]
    values = affine[:3].ravel()
    if draw(st.integers(0, 4)) == 0:
        values[draw(st.integers(0, 11))] = draw(any_number)
    if draw(st.integers(0, 9)) == 0:
        values = values * draw(st.sampled_from([0.001, 1000.0, 0.0, 3.0]))
    return tuple(np.clip(values, -3e38, 3e38))


def edges(shape=None):
    """Voxel sizes, after the sign of the qform's third axis."""
    good = st.tuples(st.sampled_from([-1.0, 1.0, 0.0]), *(st.just(v) for v in VOXEL_MM))
    odd = st.tuples(odd_number, *(st.floats(-10, 10) | any_number for _ in range(3)))
    return good | odd


EDITS = st.fixed_dictionaries(
    {},
    optional={
        "codes": st.tuples(code, code),
        "quaternion": rotations() | st.tuples(any_number, any_number, any_number),
        "offset": st.tuples(*(st.floats(-300, 300) | any_number for _ in range(3))),
        "pixdim": edges().map(lambda e: (*e, 1.0, 1.0, 1.0, 1.0)),
        "srow": matrices(),
        "xyzt_units": st.sampled_from([(n,) for n in (0, 1, 2, 3, 10, 255)]),
        "rare": st.sampled_from(["none"] * 6 + ["dim", "datatype", "vox_offset", "slope", "magic", "bytes"]),
    },
)
RARE = st.fixed_dictionaries(
    {
        "dim": st.tuples(
            st.sampled_from([3, 3, 3, 4, 5, 7, 0, 2, 8, -1]),
            *(st.sampled_from([n, n, n, 1, 0, -1, n + 1, n - 1, 32767]) for n in SHAPE),
            *(st.sampled_from([1, 1, 1, 0, 2, -1, 32767]) for _ in range(4)),
        ),
        "datatype": st.tuples(
            st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304, 0, 1, 77]),
            st.sampled_from([8, 16, 32, 64, 0, 7]),
        ),
        "vox_offset": st.tuples(any_number | st.sampled_from([352.0, 368.0, 351.0, 348.0, 353.5])),
        "slope": st.tuples(any_number, any_number),
        "magic": st.tuples(st.sampled_from([b"n+1\0", b"ni1\0", b"n+2\0", b"\0\0\0\0", b"n+1 "])),
        "bytes": st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=6),
    }
)


def edited(edits: dict, rare: dict) -> bytes:
    content = bytearray(WHOLE)
    which = edits.get("rare")
    for field in FIELDS:
        if field in edits:
            put(content, field, *edits[field])
    if which == "bytes":
        for offset, value in rare["bytes"]:
            content[offset] = value
    elif which in rare:
        put(content, which, *rare[which])
    return bytes(content)


# --- the tests ---

#: Details of an enhanced volume.
SAID = dict.fromkeys(("Device", "Precision", "Tiling", "PredictedMemoryGB", "FreeMemoryGB"), "none")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Replace the network by a cubic spline: it would take most of the time."""

    def spline(data, networks, **_):
        return Enhanced(np.clip(cubic_upsample(data, networks.k), 0, None), None, SAID, ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iqtflow.inference.pipeline.enhance_volume", spline)
        patch.setattr("iqtflow.inference.pipeline.load_model", lru_cache(load_model))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scans")


def enhanced(scan: Path, model: Path) -> nib.Nifti1Image | None:
    """Enhance a file with the command; None if it is refused. The scan must not change."""
    before, out = scan.read_bytes(), scan.with_name("out.nii.gz")
    out.unlink(missing_ok=True)
    ended = main([str(scan), str(out), "--model", str(model), "--skull-stripped", "yes", "--force"])
    assert scan.read_bytes() == before
    assert ended in (0, 1)
    assert out.exists() == (ended == 0)
    return nib.load(out) if ended == 0 else None


def ends_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the corners of a field of view in world mm."""
    return nib.affines.apply_affine(affine, list(itertools.product(*((-0.5, n - 0.5) for n in shape[:3]))))


def stated_forms(content: bytes) -> dict[str, np.ndarray]:
    """Return both forms in mm, read from the bytes, without a form that is wrong for a head."""
    read = {name: struct.unpack_from("<" + kind, content, at) for name, (at, kind) in FIELDS.items()}
    shape, (qform_code, sform_code) = read["dim"][1:4], read["codes"]
    units = {1: 1000.0, 3: 0.001}.get(read["xyzt_units"][0] & 7, 1.0)
    sform = np.vstack([np.reshape(read["srow"], (3, 4)), [0, 0, 0, 1]])
    b, c, d = read["quaternion"]
    length = np.sqrt(np.float64(b) ** 2 + np.float64(c) ** 2 + np.float64(d) ** 2)
    qform = np.eye(4)
    if length <= 1.005:
        turn = quat2mat((np.sqrt(max(1 - length**2, 0)), b, c, d))
        flip = -1 if read["pixdim"][0] == -1 else 1
        with np.errstate(all="ignore"):
            qform[:3, :3] = turn * np.abs(read["pixdim"][1:4]) * [1, 1, flip]
        qform[:3, 3] = read["offset"]
    else:
        qform[:] = np.nan
    if units != 1 and affine_error(sform if 0 < sform_code < 6 else qform, shape):
        sform[:3] *= units
        qform[:3] *= units
    forms = {"sform": (sform_code, sform), "qform": (qform_code, qform)}
    return {n: form for n, (code, form) in forms.items() if 0 < code < 6 and not affine_error(form, shape)}


@many
@given(edits=EDITS, rare=RARE)
def test_with_any_header_the_scan_stays_in_its_place_or_is_refused(edits, rare, folder, model):
    content = edited(edits, rare)
    scan = folder / "scan.nii"
    scan.write_bytes(content)
    result = enhanced(scan, model)
    try:
        planned = peek_nifti(scan)
    except IQTFlowError:
        assert result is None, "what a dry run refuses is not enhanced"
        return
    if result is None:
        with pytest.raises(IQTFlowError):
            check_scan(scan)
        return
    checked = check_scan(scan)
    np.testing.assert_array_equal(planned.affine, checked.affine)
    forms, shape = stated_forms(content), checked.shape
    replaced = " ".join(checked.extra["notes"])
    assert forms
    assert (
        min(np.abs(ends_mm(form, shape) - ends_mm(checked.affine, shape)).max() for form in forms.values())
        < 0.5
    )
    for name, code in (("sform", "sform_code"), ("qform", "qform_code")):
        if result.header[code] == 0:
            continue
        written = result.get_sform() if name == "sform" else result.get_qform()
        kept = name in forms and f"replaces the {name}" not in replaced
        expected = forms[name] if kept else checked.affine
        apart = np.abs(ends_mm(written, result.shape) - ends_mm(expected, shape)).max()
        # A resampled plane has a whole number of voxels: its ends move by up to half a voxel.
        resampled = sum(a != b for a, b in zip(result.shape, shape, strict=True)) > 1
        rounding = np.sqrt(2) / 2 * max(result.header.get_zooms()) if resampled else 0
        assert apart < 0.5 + rounding, (name, apart)
    for name in forms:
        assert result.header[f"{name}_code"] > 0


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "add", "zeros", "member", "drop"]),
        st.floats(0, 1),
        st.integers(0, 7),
    ),
    max_size=3,
)


@many
@given(damage=DAMAGE, level=st.integers(0, 9))
def test_a_compressed_scan_is_whole_or_refused(damage, level, folder, model):
    """What Python's gzip refuses is refused; everything else gives the voxels of the scan."""
    packed = bytearray(gzip.compress(WHOLE, level, mtime=0))
    for kind, where, bit in damage:
        at = min(int(where * len(packed)), len(packed) - 1)
        if kind == "flip" and packed:
            packed[at] ^= 1 << bit
        elif kind == "cut":
            del packed[at:]
        elif kind == "drop":
            del packed[at : at + bit + 1]
        elif kind == "add":
            packed += os.urandom(bit + 1) if EXAMPLES else bytes(range(1, bit + 2))
        elif kind == "zeros":
            packed += bytes(64 * bit)
        elif kind == "member":
            packed += gzip.compress(bytes(bit), mtime=0)
    scan = folder / "scan.nii.gz"
    scan.write_bytes(packed)
    try:
        content = gzip.decompress(bytes(packed))
    except Exception:  # gzip finds it damaged
        content = b""
    same = content.rstrip(b"\0") == WHOLE.rstrip(b"\0")
    voxels, why = None, ""
    try:
        voxels = np.asarray(check_scan(scan).dataobj)
    except IQTFlowError as fault:
        why = str(fault)
    if voxels is None:
        # Python's gzip ignores reserved flags, and the checksum of a header.
        assert not same or "header" in why
        assert enhanced(scan, model) is None
    else:
        assert same
        np.testing.assert_array_equal(voxels, np.asarray(nib.Nifti1Image.from_bytes(WHOLE).dataobj))
