"""The page of a calibration, and the picture of where a scan was measured."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from report_phantoms import Page, make_head, write_calibration

from iqtflow.reports.assemble.calibration import write_calibration_page
from iqtflow.reports.assemble.index import rebuild
from iqtflow.reports.draw.measured import NOISE, draw_measurement
from iqtflow.utils.errors import InputError

UNLIKE = (90.0, 20.0)


def cloud(n: int) -> list[tuple[float, float]]:
    """SNR of n scans, near each other."""
    rng = np.random.default_rng(0)
    return [(wm, 0.75 * wm + rng.normal(0, 0.5)) for wm in rng.normal(35, 3, n)]


def test_the_page_of_a_good_calibration_says_so_and_lists_each_scan(tmp_path):
    snr = cloud(24)
    page = Page(rebuild(write_calibration(tmp_path / "out", snr)))
    assert page.path.name == "calibration.html"
    assert page.says("Good. All 3 checks passed")
    assert all(page.says(f"sub-{i:02d}_T1w no picture {wm:.1f} {gm:.1f}") for i, (wm, gm) in enumerate(snr))
    assert page.says("Slice thickness / spacing 0.75 (0.71 to 0.79) 0.05 24 of 24")
    assert page.says("Bias field amplitude not measurable") and page.says("Bias field not measured.")
    assert page.says("3.25") and page.says("--snr-prior calibration/prior.json")
    assert {path.name for path in page.image_files()} == {"prior.png"}


def test_a_scan_unlike_the_others_few_scans_and_two_ways_of_measuring_are_named(tmp_path):
    snr = [*cloud(14), UNLIKE]
    page = Page(
        write_calibration_page(write_calibration(tmp_path / "out", snr, ("air-rayleigh", "tissue-mad")))
    )
    assert page.says("Look closer.") and page.says("Left out: sub-14_T1w. Look at their pictures")
    assert page.says("The noise was measured in several ways") and page.says("Measure more scans")


def test_among_few_scans_none_is_called_unlike(tmp_path):
    page = Page(write_calibration_page(write_calibration(tmp_path / "out", cloud(3))))
    assert page.says("Look closer.") and page.says("found among 10 or more")


@pytest.mark.parametrize("content", ["", "[]", '{"mean": [1, 2]}', '{"scans": {"a": {}}, "mean": []}'])
def test_a_prior_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/prior.json").write_text(content)
    with pytest.raises(InputError, match=r"prior\.json.*group level"):
        write_calibration_page(tmp_path)


def test_the_picture_shows_where_noise_was_measured(tmp_path):
    data, brain, affine = make_head()
    image = nib.Nifti1Image(data, affine)
    air = np.zeros(data.shape, bool)
    air[:6] = True
    regions = {"wm": data > 150, "gm": (data > 80) & (data < 150), "mask": brain, "noise": air}

    def purple(noise: np.ndarray) -> int:
        drawn = draw_measurement(tmp_path / "snr.png", image, {**regions, "noise": noise})
        pixels = np.asarray(Image.open(drawn).convert("RGB"), int)
        tint = np.array([int(NOISE[0][i : i + 2], 16) for i in (1, 3, 5)]) * NOISE[1]
        return int((np.abs(pixels - tint).max(axis=2) < 25).sum())

    with_air = purple(air)
    first = (tmp_path / "snr.png").read_bytes()
    assert with_air > 2000 > 20 * purple(np.zeros_like(air))
    purple(air)
    assert (tmp_path / "snr.png").read_bytes() == first, "the same scan gives the same bytes"
