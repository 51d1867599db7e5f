"""Several devices train one network: the same command, the same batches, the same curve."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
from training_phantoms import train_command, write_libraries

from iqtflow.utils.errors import EXIT_USAGE

#: A network without batch normalisation: what several processes make of a batch is exactly what one makes.
PLAIN = """
from torch import nn

class Plain(nn.Module):
    min_multiple = (1, 1, 1)

    def __init__(self, k, filters):
        super().__init__()
        self.k = k
        thin = nn.ConvTranspose3d(filters, 1, (1, 1, k), (1, 1, k))
        self.layers = nn.Sequential(nn.Conv3d(1, filters, 3, padding=1), nn.ReLU(), thin)

    def forward(self, x):
        return self.layers(x)
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return write_libraries(tmp_path_factory.mktemp("libraries"))


def curves(libraries, folder, *options, path=None):
    arguments = train_command(libraries[:2], libraries[2:], folder, "--batch-size", "8", *options, steps=8)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.fspath(path)
    command = [sys.executable, "-m", "iqtflow.cli.commands.train", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("epoch 4:") == 1  # said once, not by each process
    assert (folder / "model.safetensors").exists()
    with open(folder / "checkpoints/curves.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return run.stdout, [float(row[name]) for row in rows for name in ("train_loss", "val_loss")]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(libraries, tmp_path):
    (tmp_path / "plain_network.py").write_text(PLAIN)
    own = ["--network", "plain_network:Plain"]
    _, alone = curves(libraries, tmp_path / "one", *own, path=tmp_path)
    said, shared = curves(libraries, tmp_path / "two", *own, "--devices", "2", path=tmp_path)
    assert "2 x cpu" in said
    assert shared == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_batch_normalisation_by_device_bends_the_curve_but_little(libraries, tmp_path):
    """Each process normalises by its own 4 of the 8 patches."""
    _, alone = curves(libraries, tmp_path / "one")
    _, shared = curves(libraries, tmp_path / "two", "--devices", "2")
    assert shared != alone
    assert shared == pytest.approx(alone, rel=0.1)


def test_a_batch_that_devices_cannot_share_is_refused(libraries, tmp_path, capsys):
    from iqtflow.cli.commands.train import main

    arguments = train_command(libraries[:2], libraries[2:], tmp_path, "--batch-size", "5", "--devices", "2")
    assert main(arguments) == EXIT_USAGE
    assert "5 patches for 2 devices" in capsys.readouterr().err


def test_a_single_process_within_a_job_of_several_tasks_stays_alone(libraries, tmp_path, monkeypatch):
    """As when a job's script has asked for eight tasks, and starts the command once."""
    from iqtflow.cli.commands.train import main

    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8"}
    for name, value in {**job, "SLURM_NODELIST": "node[1-2]", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert main(train_command(libraries[:2], libraries[2:], tmp_path, steps=2)) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_on_several_computers_slurm_starts_one_process_for_each_device(libraries):
    from iqtflow.interfaces.train import TrainModel

    given = {"train_libraries": libraries[:2], "validation_libraries": libraries[2:]}
    one = TrainModel(**given, devices=4).cmdline
    several = TrainModel(**given, devices=4, num_nodes=2).cmdline
    assert "srun" not in one and "--devices 4" in one
    assert several.startswith("srun --nodes=2 --ntasks-per-node=4 ") and "--num-nodes 2" in several
