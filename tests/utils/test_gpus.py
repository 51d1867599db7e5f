"""Each job gets a GPU of its own, and never falls back to the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clinics import ENVIRONMENT, python

from iqtflow.utils import gpus
from iqtflow.utils.errors import UsageError
from iqtflow.utils.gpus import claim_gpu, resolve_device, visible_gpus

HAS_DRIVER = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
HOLD = """
import sys, time
from iqtflow.utils.gpus import claim_gpu
with claim_gpu(gpus=sys.argv[2:], lock_dir=sys.argv[1]) as card:
    print(card, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["GPU-a", "GPU-b"]),
        ("1", ["GPU-b"]),
        ("1,0", ["GPU-b", "GPU-a"]),
        ("GPU-b", ["GPU-b"]),
        ("MIG-x", ["MIG-x"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["GPU-a"]),
    ],
)
def test_what_slurm_or_a_user_has_hidden_is_not_taken(monkeypatch, variable, expected):
    monkeypatch.setattr(gpus, "_ask_driver", lambda: ["GPU-a", "GPU-b"])
    assert visible_gpus({} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}) == expected


@contextmanager
def hold(folder: Path, *cards: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Let another process lock one of the GPUs; yield the process and the GPU."""
    command = [sys.executable, "-c", HOLD, folder, *cards]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_each_process_gets_a_gpu_of_its_own_and_a_killed_one_releases_it(tmp_path):
    with hold(tmp_path, "a", "b") as (first, one), hold(tmp_path, "a", "b") as (_, two):
        assert {one, two} == {"a", "b"}
        first.kill()
        began = time.monotonic()
        with claim_gpu(gpus=["a", "b"], lock_dir=tmp_path) as card:
            assert card == one
            assert os.environ["CUDA_VISIBLE_DEVICES"] == one
        assert time.monotonic() - began < 30
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_job_that_has_to_wait_says_so(tmp_path):
    lines: list[str] = []
    with hold(tmp_path, "only") as (holder, _):

        def report(line: str) -> None:
            lines.append(line)
            holder.kill()

        with claim_gpu(gpus=["only"], lock_dir=tmp_path, report=report):
            assert lines == ["waiting for 1 GPU(s): only in use by other jobs"]


def test_a_training_on_two_gpus_locks_both_or_waits_for_both(tmp_path):
    with claim_gpu(count=2, gpus=["a", "b", "c"], lock_dir=tmp_path) as cards:
        assert cards == os.environ["CUDA_VISIBLE_DEVICES"] == "a,b"
        with hold(tmp_path, "a", "b", "c") as (_, card):
            assert card == "c"
    with (
        pytest.raises(UsageError, match="2 GPUs: found 1"),
        claim_gpu(count=2, gpus=["a"], lock_dir=tmp_path),
    ):
        pass


def test_locks_may_be_taken_by_all_users(tmp_path):
    with claim_gpu(gpus=["x"], lock_dir=tmp_path / "locks"):
        pass
    assert (tmp_path / "locks/gpu-x.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("name", ["enhance", "train"])
def test_a_command_without_a_usable_gpu_fails_and_computes_nothing(tmp_path, name):
    if resolve_device("auto").name == "cuda":
        pytest.skip("there is a GPU")
    scan = tmp_path / "scan.nii.gz"
    scan.touch()
    arguments = {
        "enhance": [scan, tmp_path / "out.nii.gz"],
        "train": ["--train", scan, "--validation", scan, "--output", tmp_path / "out.safetensors",
                  "--checkpoint-dir", tmp_path / "c"],
    }[name]  # fmt: skip
    environment = {**ENVIRONMENT, "IQTFLOW_LOCK_DIR": str(tmp_path / "locks")}
    command = ["-m", f"iqtflow.cli.commands.{name}", *arguments, "--device", "cuda"]
    done = python(*command, env=environment)
    assert done.returncode == {"enhance": 2, "train": 1}[name]
    assert "--gpus all" in done.stderr and "--nv" in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(HAS_DRIVER, reason="there is an NVIDIA driver")
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error_with_a_next_step():
    with pytest.raises(UsageError, match=r"no NVIDIA driver.*--gpus all.*--nv"):
        resolve_device("cuda")
    for requested in ("auto", "cpu"):
        assert resolve_device(requested).name == "cpu"
    assert "NVIDIA driver" in resolve_device("auto").reason


def test_a_driver_without_a_usable_gpu_is_no_gpu(tmp_path, monkeypatch):
    """As on a node whose GPU was not reserved: the driver's tool is there, PyTorch finds no device."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="PyTorch"):
        resolve_device("cuda")
    assert resolve_device("auto").name == "cpu"


def test_for_a_cluster_the_gpus_of_this_machine_do_not_matter():
    assert resolve_device("cuda", elsewhere=True).name == "cuda"
    assert resolve_device("auto", elsewhere=True).name == "cpu"
