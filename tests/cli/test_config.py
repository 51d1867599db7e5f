"""Settings survive being written and read, and a mistake in a settings file is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqtflow.cli.parser import parse
from iqtflow.config import (
    EnhanceSettings,
    PathSettings,
    RunSettings,
    Settings,
    TrainSettings,
    format_settings,
    read_sections,
    read_settings,
    write_settings,
)
from iqtflow.utils.errors import UsageError

PATHS = PathSettings(bids_dir=Path("/data/in"), output_dir=Path("/data/out"), work_dir=Path("/scratch/w"))


def test_settings_come_back_as_they_were_written(tmp_path):
    settings = Settings(
        paths=PATHS,
        run=RunSettings(
            levels=("participant", "group"), mode="train", participant_labels=("01", "A"), mem_gb=7.5
        ),
        enhance=EnhanceSettings(model="aniso-k4"),
        train=TrainSettings(
            split=Path("/data/split.json"), slice_axes=("x", "y"), snr_scale=(0.5, 1.5), draws=8, steps=100
        ),
    )
    assert read_settings(write_settings(settings, tmp_path / "settings.toml")) == settings


def test_fresh_draws_and_unset_values_come_back(tmp_path):
    settings = Settings(paths=PATHS)
    back = read_settings(write_settings(settings, tmp_path / "settings.toml"))
    assert back == settings
    assert back.train.draws == "fresh"
    assert back.train.steps is None


@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_of_a_model_survives(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("toml") / "settings.toml"
    settings = Settings(paths=PATHS, enhance=EnhanceSettings(model=name))
    assert read_settings(write_settings(settings, path)).enhance.model == name


def test_the_same_settings_give_the_same_bytes():
    assert format_settings(Settings(paths=PATHS)) == format_settings(Settings(paths=PATHS))


def test_settings_cannot_be_changed_in_flight():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(paths=PATHS).run.nprocs = 4


def test_a_whole_number_serves_where_a_number_is_wanted(tmp_path):
    (tmp_path / "s.toml").write_text("[run]\nmem_gb = 8\n")
    assert read_sections(tmp_path / "s.toml") == {"run": {"mem_gb": 8.0}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nfilter = 8\n", "'filter' in [train]"),
        ("[trian]\nfilters = 8\n", "'trian'"),
        ("filters = 8\n", "'filters'"),
        ('[train]\nfilters = "8"\n', "a whole number"),
        ("[train]\nfilters = true\n", "a whole number"),
        ("[run]\nforce = 1\n", "true or false"),
        ('[train]\ndraws = "some"\n', 'a whole number or "fresh"'),
        ('[train]\nslice_axes = "z"\n', "a list, each a text"),
        ("[train\n", "TOML"),
        ('[train]\nfilters = 8\n[run]\nmode = "train"\n', "bids_dir, output_dir, work_dir"),
    ],
)
def test_a_mistake_in_a_settings_file_is_named(tmp_path, text, named):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path / "s.toml")
    assert named in str(caught.value)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="absent"):
        read_settings(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[run]\nmode = "enhence"\n', "none of enhance, train, calibrate"),
        ('[run]\ndevice = "gpu"\n', "device = 'gpu'"),
        ("[run]\nnprocs = 0\n", "0 is less than 1"),
        ("[run]\nnprocs = 99999999999\n", "is more than 1024"),
        ("[run]\nmem_gb = nan\n", "not above 0"),
        ("[run]\nseed = -1\n", "-1 is less than 0"),
        ("[run]\nseed = 99999999999\n", "99999999999 is more than 2147483647"),
        ("[run]\nverbose = -5\n", "less than 0"),
        ("[run]\nlevels = []\n", "nothing"),
        ('[enhance]\nmodel = ""\n', "an empty text"),
        ('[segmentation]\noctave = ""\n', "an empty text"),
        ('[run]\nparticipant_labels = ["../x"]\n', "no BIDS label"),
        ("[train]\nthickness_fraction = [0.5]\n", "1 values instead of 2"),
        ("[train]\nthickness_fraction = [0.5, 2.0]\n", "slices would overlap"),
        ('[train]\nslice_axes = ["x", "x"]\n', "each once"),
        ("[train]\nupsampling_factor = 5\n", "none of 2, 3, 4, 6, 8"),
        ("[train]\ndraws = 0\n", "0 is less than 1"),
        ('[train]\nnetwork_options = ["a"]\n', "NAME=VALUE"),
    ],
)
def test_a_value_of_a_settings_file_is_checked_as_on_the_command_line(tmp_path, text, named):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(named)):
        parse(["in", "out", "participant", "--config-file", str(tmp_path / "s.toml")])


def test_a_settings_file_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "s.toml").write_bytes(b'[enhance]\nmodel = "\xff"\n')
    with pytest.raises(UsageError, match=r"s\.toml"):
        read_sections(tmp_path / "s.toml")


def test_labels_in_a_settings_file_lose_their_prefix(tmp_path):
    (tmp_path / "s.toml").write_text('[run]\nparticipant_labels = ["sub-01"]\n')
    options = parse(["in", "out", "participant", "--config-file", str(tmp_path / "s.toml")])
    assert options.run__participant_labels == ("01",)
