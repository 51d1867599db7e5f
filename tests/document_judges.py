"""Whether a command of a page would work for a reader, without running it."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from documents import ROOT, Block, Command, Sandbox, add_subject
from phantoms import make_brain

from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.utils.errors import UsageError

DOCKER_FLAGS = {"--rm", "-it", "-i", "-t", "--read-only"}
DOCKER_VALUES = {
    "-v", "-u", "-e", "-w", "--gpus", "--network", "--tmpfs", "--shm-size", "--memory", "-m", "--cpus",
    "--build-arg",
}  # fmt: skip
APPTAINER_FLAGS = {"--nv", "--cleanenv", "--containall"}
APPTAINER_VALUES = {"--bind", "-B", "--env"}


def check(call: list[str], command: Command, sandbox: Sandbox) -> None:
    """Judge one call of a program; a program without a judge is an error."""
    program, *arguments = call
    if program == "iqtflow":
        check_iqtflow(arguments, command, sandbox)
    elif program.startswith("iqtflow-"):
        parser = importlib.import_module(
            f"iqtflow.cli.commands.{program.removeprefix('iqtflow-')}"
        ).build_parser()
        parser.parse_args(arguments)
    elif not any((ROOT / ".ci").rglob(program)):  # its scripts take what they are given
        judge = JUDGES.get(program)
        assert judge is not None, f"{command.where}: no judge for {program}"
        judge(arguments, command, sandbox)


def check_iqtflow(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    """Parse and settle: all that a run checks before it opens an image."""
    arguments = [argument for argument in arguments if argument != "..."]
    if {"--help", "--version", "--list-models"} & set(arguments):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 0
        return
    options = parse(arguments)
    if options.doctor:
        return
    provide(arguments, options, sandbox)
    if "cuda" in arguments:  # the machine that tests may have none
        arguments[arguments.index("cuda")] = "cpu"
    try:
        cli.settle(parse(arguments))
    except UsageError as fault:
        if plain(str(fault)) not in plain(
            sandbox.place("".join(command.answer))
        ):  # unless the page shows the refusal
            raise


def provide(arguments: list[str], options: argparse.Namespace, sandbox: Sandbox) -> None:
    """Make the people and the files that a command names, where the sandbox has none of that name."""
    root = Path(options.paths__bids_dir)
    if (root / "dataset_description.json").exists():
        for label in options.run__participant_labels:
            if not (root / f"sub-{label}").exists():
                add_subject(root, label, make_brain((16, 16, 16)), thick=False)
    for flag, value in pairwise(arguments):
        path = Path(value)
        if flag.startswith("-") and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if value.endswith(".safetensors"):
                path.write_bytes(sandbox.model.read_bytes())
            elif flag == "--snr-prior" and value.endswith(".json"):
                path.write_text(json.dumps({"mean": [64.5, 54.1], "covariance": [[78, 71], [71, 73]]}))
            elif flag == "--bids-filter-file":
                path.write_text("{}")
            elif flag == "--use-plugin":
                path.write_text("plugin: SLURM\n")
            elif flag == "--config-file":
                path.write_text("[run]\nseed = 0\n")
            elif flag == "--use-plugin":
                path.write_text("plugin: SLURM\n")


def check_docker(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    verb, *rest = arguments
    if verb == "save":
        assert rest[0] == "iqtflow"
        return
    assert verb in ("build", "run"), f"{command.where}: docker {verb}"
    mounts: dict[str, str] = {}
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "-t" and verb == "build":
            assert rest.pop(0).startswith("iqtflow")
            continue
        name, _, value = flag.partition("=")
        assert name in DOCKER_FLAGS | DOCKER_VALUES, f"{command.where}: docker {verb} {flag}"
        if name in DOCKER_VALUES:
            value = value or rest.pop(0)
            if name == "-v":
                host, inside = value.split(":")[:2]
                mounts[inside] = host
            if name == "--build-arg":
                assert f"ARG {value.partition('=')[0]}" in (ROOT / "Dockerfile").read_text()
    if verb == "build":
        assert rest == ["."], f"{command.where}: {rest}"
        return
    image, *inside = rest
    assert image.partition(":")[0] == "iqtflow", f"{command.where}: image {image}"

    def outside(argument: str) -> str:
        place = next((at for at in mounts if argument == at or argument.startswith(f"{at}/")), None)
        assert place or not argument.startswith("/"), f"{command.where}: {argument} is not mounted"
        return mounts[place] + argument.removeprefix(place) if place else argument

    for option in ("--split", "--model"):
        if option in inside:
            ready = Path(outside(inside[inside.index(option) + 1]))
            if option == "--split" and not ready.exists():
                ready.write_text((sandbox.cwd / "split.json").read_text())
    check_iqtflow([outside(argument) for argument in inside], command, sandbox)


def check_apptainer(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    verb, *rest = arguments
    if verb == "build":
        image, source = rest
        assert image.endswith(".sif")
        assert source == "Apptainer.def" or re.match(r"docker-(daemon|archive)://iqtflow", source), source
        return
    assert verb in ("run", "exec"), f"{command.where}: apptainer {verb}"
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0).partition("=")
        assert flag[0] in APPTAINER_FLAGS | APPTAINER_VALUES, f"{command.where}: {flag[0]}"
        if flag[0] in APPTAINER_VALUES and not flag[1]:
            rest.pop(0)
    image, *inside = rest
    assert image.endswith(".sif"), image
    if verb == "exec":
        check(inside, command, sandbox)
    else:
        check_iqtflow(inside, command, sandbox)


def check_make(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, given, _ = argument.partition("=")
        pattern = rf"^{name} *\?=" if given else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"{command.where}: make {argument}"


def check_pip(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    needs = re.findall(r"^    ([\w-]+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert arguments[0] == "install", f"{command.where}: pip {arguments}"
    for argument in (a for a in arguments[1:] if not a.startswith("-")):
        if "==" in argument:
            assert re.search(rf"^{re.escape(argument)}( *;|$)", pins, re.MULTILINE), argument
        else:
            known = {".", "constraints.txt", "iqtflow", *needs}
            assert re.sub(r"\[\w+\]$", "", argument) in known, f"{command.where}: {argument}"


def check_python(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    first, *rest = arguments
    if first == "-m" and rest[0] == "pip":
        check_pip(rest[1:], command, sandbox)
    elif first == "-m" and rest[0].startswith("iqtflow."):
        importlib.import_module(rest[0])
    elif first == "-m" and rest[0] == "benchmarks.paper":
        own = rest[1 : rest.index("--")] if "--" in rest else rest[1:]
        importlib.import_module("benchmarks.paper.__main__").build_parser().parse_args(own)
    elif first == "-m" and rest[0].startswith("benchmarks."):
        place = ROOT / rest[0].replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), rest[0]
    elif first == "-m":
        assert rest[0] in ("venv", "pytest", "build", "sphinx"), f"{command.where}: {rest}"
    elif first != "-c":
        script = ROOT / first
        assert script.is_file(), f"{command.where}: no {first}"
        for option in (argument for argument in rest if argument.startswith("--")):
            assert option in script.read_text(), f"{command.where}: {first} knows no {option}"


def check_example(block: Block) -> None:
    """Judge an example in Python: what it imports is there, and the rest is Python."""
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), str(block), "exec"), {})


def check_scheduler(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    """Judge what SLURM is told to run like anything else."""
    started = [option.partition("=")[2] for option in arguments if option.startswith("--wrap=")]
    while arguments and arguments[0].startswith("-"):
        arguments = arguments[1:]
    if arguments and not arguments[0].endswith((".sh", ".sbatch", ".slurm")):
        started.append(shlex.join(arguments))
    for text in started:
        for call in sandbox.record(Command(command.where, text)):
            check(call, command, sandbox)


def check_nothing(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    """Judge a program whose arguments cannot be wrong here: ``git clone URL``, ``module load NAME``."""
    assert arguments


def check_buildah(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    assert arguments[0] == "build", f"{command.where}: buildah {arguments[0]}"
    assert arguments[-3:] == ["-t", "iqtflow", "."], f"{command.where}: {arguments}"


JUDGES = {
    "buildah": check_buildah,
    "apptainer": check_apptainer,
    "singularity": check_apptainer,
    "docker": check_docker,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "sbatch": check_scheduler,
    "srun": check_scheduler,
    "git": check_nothing,
    "module": check_nothing,
}


def check_toml(block: Block) -> None:
    from iqtflow.config import SECTIONS, read_sections

    tables = {line.strip("[] ") for line in block.text.splitlines() if line.startswith("[")}
    if tables <= set(SECTIONS):
        path = Path("settings.toml")
        path.write_text(block.text)
        read_sections(path)


def plain(text: str) -> str:
    """Text without white space, which a terminal and a page break differently."""
    return re.sub(r"\s+", "", text)
