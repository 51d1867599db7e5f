"""The package has all files of the repository, and facts that are stated twice agree."""

from __future__ import annotations

import configparser
import importlib
import re
from pathlib import Path

import pytest
from test_rooms import ROOMS

import iqtflow

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def listed(section: str, key: str) -> list[str]:
    return [line.strip() for line in SETUP[section][key].splitlines() if line.strip()]


def test_every_folder_of_code_is_installed():
    installed_as = {
        "iqtflow": "iqtflow",
        "interfaces": "iqtflow.interfaces",
        "workflows": "iqtflow.workflows",
    }
    found = set()
    for folder, name in installed_as.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == set(listed("options", "packages"))


@pytest.mark.parametrize("script", listed("options.entry_points", "console_scripts"))
def test_every_command_has_a_function_behind_it(script):
    module, _, function = script.partition("=")[2].strip().partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_version_and_the_tested_torch_are_stated_alike_everywhere():
    pin = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()
    assert f"TORCH  ?= {pin}\n" in (ROOT / "Makefile").read_text()
    assert f"pip install {pin}\n" in (ROOT / "Dockerfile").read_text()
    assert f"\nversion: {iqtflow.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    label = f'org.opencontainers.image.version="{iqtflow.__version__}"'
    assert label in (ROOT / "Dockerfile").read_text()
    assert f"\n## {iqtflow.__version__}" in (ROOT / "CHANGES.md").read_text()


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_layout_for_contributors_names_every_room_and_only_files_that_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`([\w.-]+/[\w./-]*)`", page)) - {"mixed/", "highfield/", "app/", "execution/"}
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = re.findall(r"^\| `(?:iqtflow/)?(\w+)(?:/|\.py)` ", page.split("**A room")[1], re.MULTILINE)
    assert rooms[: len(ROOMS)] == list(ROOMS)


def test_the_source_distribution_holds_what_tests_and_pages_read():
    grafted = re.findall(r"^graft (\S+)$", (ROOT / "MANIFEST.in").read_text(), re.MULTILINE)
    assert {".ci", "benchmarks", "docs", "tests"} <= set(grafted)
    assert all((ROOT / folder).is_dir() for folder in grafted)


def test_lint_is_what_pre_commit_runs():
    hooks = re.findall(r"entry: python -m (\w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert hooks == re.findall(r"-m (\w+)", lint)
