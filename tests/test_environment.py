"""A user without a name or a home, as containers have them."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iqtflow import environment
from iqtflow.environment import settle_environment


def test_a_user_without_a_name_gets_one(monkeypatch):
    monkeypatch.setattr(environment, "_account", lambda: None)
    variables = {"HOME": "/nonexistent"}
    settle_environment(variables)
    assert variables["USER"] == f"uid{os.getuid()}"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert getpass.getuser() == variables["USER"]  # what PyTorch asks


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_left_alone(tmp_path):
    tmp_path.chmod(0o500)
    variables = {"HOME": os.fspath(tmp_path), "USER": "reader"}
    settle_environment(variables)
    assert Path(variables["MPLCONFIGDIR"]).is_dir()


def test_a_home_that_is_not_there_is_replaced_for_matplotlib(monkeypatch):
    monkeypatch.setattr(environment, "_writable", lambda folder: "nonexistent" not in folder.parts)
    variables = {"HOME": "/nonexistent"}
    settle_environment(variables)
    assert Path(variables["MPLCONFIGDIR"]).is_dir()


def test_what_the_user_has_set_stays(tmp_path):
    variables = {"HOME": os.fspath(tmp_path), "USER": "reader", "MPLCONFIGDIR": "/somewhere"}
    before = dict(variables)
    settle_environment(variables)
    assert variables == before


def test_a_home_that_can_be_written_is_used(tmp_path):
    variables = {"HOME": os.fspath(tmp_path), "USER": "reader"}
    settle_environment(variables)
    assert "MPLCONFIGDIR" not in variables
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_s_folder_goes_when_the_program_ends(tmp_path):
    code = (
        "import os; from iqtflow.environment import settle_environment;"
        "settle_environment(); print(os.environ['MPLCONFIGDIR'])"
    )
    # A file in the place of the home: not even root can write into it.
    home = tmp_path / "home"
    home.write_text("")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPLCONFIGDIR"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HOME": os.fspath(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(done.stdout.strip()).exists()
