"""What the tests with a real SPM share: the installation, a head of known tissues, and one run on it.

A test module takes them by ``pytest_plugins = ["spm_fixtures"]``. Nothing is made unless it is asked for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from spm_phantom import SAMPLING_MM, Phantom, make_phantom

from iqtflow.segmentation.spm.install import SpmInstallation, SpmNotFoundError, find_spm
from iqtflow.segmentation.spm.job import UnifiedSegmentationRun, run_unified_segmentation
from iqtflow.segmentation.spm.script import DEFAULT_TISSUES, UnifiedSegmentationSettings

#: A folder as users have them: with a quote, a double quote, spaces and letters outside ASCII.
AWKWARD = 'it\'s "raw" dätä'

#: Every class written, air too, so that the sum can be tested.
SETTINGS = UnifiedSegmentationSettings(
    tissues=tuple(replace(tissue, native=(True, False)) for tissue in DEFAULT_TISSUES),
    sampling_mm=SAMPLING_MM,
    write_bias=(True, True),
    write_deformation=(True, True),
)


@pytest.fixture(scope="session")
def installation() -> SpmInstallation:
    """Return the SPM of this machine, found as users' SPM is."""
    try:
        found = find_spm()
    except SpmNotFoundError as fault:
        pytest.skip(f"no SPM to test with: {fault}")
    if found.tpm is None:
        pytest.skip("standalone SPM whose tissue priors are not unpacked yet")
    return found


@pytest.fixture(scope="session")
def phantom(installation: SpmInstallation) -> Phantom:
    return make_phantom(installation.tpm)


@pytest.fixture(scope="session")
def scan(phantom: Phantom, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spm") / AWKWARD / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    phantom.image.to_filename(path)
    return path


@pytest.fixture(scope="session")
def run(installation: SpmInstallation, scan: Path, tmp_path_factory) -> UnifiedSegmentationRun:
    """Return the one run that most tests look at."""
    out_dir = tmp_path_factory.mktemp("alone") / AWKWARD
    return run_unified_segmentation(scan, out_dir, installation=installation, settings=SETTINGS)


@pytest.fixture
def linux() -> None:
    if not Path("/proc/self/cwd").exists():
        pytest.skip("finds Octave's process by /proc, which this system does not have")


def octaves_in(folder: Path) -> list[int]:
    """Process ids of the children that work in `folder` or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder.resolve()):
                found.append(int(process.name))
        except OSError:  # it ended, or is not ours
            continue
    return found


def wait_for_octave(folder: Path, *, seconds: float = 180) -> int:
    """Process id of the child that works in a folder below `folder` and has begun to segment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for log in folder.glob("**/iqtflow_job.log"):
            if "Segment" in log.read_text(errors="replace"):
                for process in octaves_in(log.parent):
                    return process
        time.sleep(0.05)
    raise AssertionError("Octave did not start")


def killed(
    call: Callable[[], object], folder: Path, number: signal.Signals, *, look: Callable[[int], object] = bool
) -> tuple[Exception, float]:
    """Run `call` in a thread, `look` at its Octave, end that by a signal; what it raised and how soon."""
    caught: list[Exception] = []

    def body() -> None:
        try:
            call()
        except Exception as fault:
            caught.append(fault)

    thread = threading.Thread(target=body)
    thread.start()
    process = wait_for_octave(folder)
    look(process)
    os.kill(process, number)
    start = time.monotonic()
    thread.join(30)
    assert caught, "the run did not fail"
    return caught[0], time.monotonic() - start
