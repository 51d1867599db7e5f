"""Every command of the documents works as it is shown. Those of the main pages are run.

Runs are smaller than shown, to be quick: phantoms, an untrained network, a few steps of training (`reduced`).
On the other pages, each command of iqtflow goes through its own parser and through all checks that need no
image. For Docker and Apptainer, the command inside the container is checked in the same way.
"""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from clinics import python
from documents import (
    KNOWN,
    ROOT,
    SHELLS,
    Command,
    Sandbox,
    check,
    check_example,
    check_toml,
    list_pages,
    make_data,
    plain,
    read_blocks,
    read_commands,
)
from pretend_spm import make_program, make_spm

from iqtflow.utils.errors import UsageError

BLOCKS = {page: read_blocks(page) for page in list_pages()}
#: Pages that take minutes to run and repeat others: run only if $IQTFLOW_LONG_TESTS is set.
LONG = ("docs/enhancement.md", "docs/tasks/function.md")
#: Pages whose commands are run, in their order.
RUN = ("README.md", "docs/tasks/bids.md", "docs/tasks/dicom.md", *LONG)
#: What makes a training small.
TRAINING = shlex.split("--filters 2 --steps 2 --steps-per-epoch 2 --max-epochs 1 --batch-size 2")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sandbox(tmp_path, untrained_model, data, monkeypatch) -> Sandbox:
    place = Sandbox(tmp_path, untrained_model, data)
    for name in ("spm12", "spm"):
        make_spm(tmp_path / "opt" / name)
    octave = make_program(tmp_path / "octave-cli", "exit 0")
    monkeypatch.setenv("OCTAVE_EXEC", os.fspath(octave))
    monkeypatch.setenv("SPM_HOME", os.fspath(tmp_path / "opt/spm12"))
    monkeypatch.chdir(place.cwd)
    return place


@pytest.mark.parametrize(
    "page", [page for page, blocks in BLOCKS.items() if any(block.language in SHELLS for block in blocks)]
)
def test_every_command_can_be_typed_as_it_is_shown(page, sandbox):
    for block in BLOCKS[page]:
        if block.language in SHELLS:
            for command in read_commands(block):
                check_all(command, sandbox)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_command_of_the_main_pages_does_what_it_says(page, sandbox):
    if page in LONG and not os.environ.get("IQTFLOW_LONG_TESTS"):
        pytest.skip("takes minutes: set IQTFLOW_LONG_TESTS=1")
    done: set[tuple[str, ...]] = set()
    for block in BLOCKS[page]:
        for command in read_commands(block) if block.language == "console" else ():
            for call in sandbox.record(command):
                if call[0].startswith("iqtflow") and tuple(call) not in done:
                    done.add(tuple(call))
                    run(call, command, sandbox)
    assert done, f"{page} shows no command of iqtflow"


def test_every_block_has_a_language_and_is_right(tmp_path, monkeypatch):
    """A block without a language would be neither coloured nor tested."""
    monkeypatch.chdir(tmp_path)
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        assert block.language in KNOWN, f"{block}: a block in '{block.language}'; tests know {sorted(KNOWN)}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            check_toml(block)
        elif block.language == "python" and ">>>" in block.text:
            example = doctest.DocTestParser().get_doctest(block.text, {}, str(block), block.page, block.line)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
            assert result.failed == 0 < result.attempted, str(block)
        elif block.language == "python":
            check_example(block)


@pytest.mark.parametrize("page", BLOCKS)
def test_modules_and_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in set(re.findall(r"`(iqtflow(?:\.\w+)+)", text)) - {"iqtflow.networks"}:  # of entry points
        pkgutil.resolve_name(name)
    for path in re.findall(r"`((?:iqtflow|interfaces|workflows|tests|benchmarks|docs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path


def test_examples_in_docstrings_are_right():
    """Public functions show how they are called; each example is run as it stands."""
    attempted = 0
    for path in sorted(path for path in (ROOT / "iqtflow").rglob("*.py") if ">>> " in path.read_text()):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
        assert result.failed == 0, module
        attempted += result.attempted
    assert attempted >= 12


def test_an_unknown_program_is_an_error(sandbox):
    with pytest.raises(AssertionError, match="CHECKS"):
        sandbox.record(Command("here", "no-such-program --now"))


@pytest.mark.parametrize(
    "text",
    [
        "iqtflow /data/bids /out participant --no-such-option",
        "iqtflow /data/missing /out participant",
        "iqtflow /data/bids /out participant --split split.json",  # an option of another mode
        "docker run --rm -v /data/bids:/in:ro iqtflow /elsewhere /out participant",
        "docker run --gpu all iqtflow /in /out participant",
        "iqtflow-simulate T1w.nii.gz out.nii.gz --wm wm.nii.gz",
        "make no-such-target",
        "pip install torch==1.0",
    ],
)
def test_a_command_that_would_fail_a_reader_is_found(text, sandbox):
    with pytest.raises((AssertionError, SystemExit, UsageError)):
        check_all(Command("here", text), sandbox)


def check_all(command: Command, sandbox: Sandbox) -> None:
    for call in sandbox.record(command):
        check(call, command, sandbox)


# --- running ---


def run(call: list[str], command: Command, sandbox: Sandbox) -> None:
    """Run a command of iqtflow, smaller than shown, and compare its messages with the page."""
    program, *arguments = call
    arguments += reduced(program, arguments, sandbox)
    module = "cli" if program == "iqtflow" else f"commands.{program.removeprefix('iqtflow-')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": os.fspath(sandbox.root / "home")}
    done = python("-m", f"iqtflow.{module}", *arguments, cwd=sandbox.cwd, env=environment, timeout=1200)
    said = done.stdout + done.stderr
    refusal = any("error:" in line for line in command.answer)
    assert (done.returncode != 0) == refusal, f"{command.where}: {shlex.join(call)}\n{said}"
    for line in command.answer:
        wanted = plain(sandbox.place(line))
        assert wanted in ("", "...") or wanted in plain(said), f"{command.where}: {line!r} is not in\n{said}"


def reduced(program: str, arguments: list[str], sandbox: Sandbox) -> list[str]:
    """Options that make a command quick. They come last, so they replace those that are shown."""
    if program == "iqtflow-enhance":
        return [] if "--model" in arguments else ["--model", os.fspath(sandbox.model)]
    if program != "iqtflow" or {"--version", "--list-models", "--doctor", "--help"} & set(arguments):
        return []
    small = ["--nprocs", "2", "--mem-gb", "8"]
    if "--mode" not in arguments:
        model = find_trained(sandbox) if "--model" in arguments else sandbox.model
        return [*small, "--model", os.fspath(model)]
    mode = arguments[arguments.index("--mode") + 1]
    if "participant" in arguments and mode == "train":
        maps = sandbox.root / "data/derivatives/smriprep"
        small += ["--segmentation", "derivatives", "--derivatives", os.fspath(maps)]
    return small + (TRAINING if mode == "train" else [])


def find_trained(sandbox: Sandbox) -> Path:
    """The model that an earlier command of the page has trained."""
    found = sorted((sandbox.root / "out").rglob("models/*.safetensors"))
    assert found, "no model was trained"
    return found[0]
