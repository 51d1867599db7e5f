"""Unusual environments: no user name, no home, files named like libraries, no network, a closed pipe."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from clinics import ENVIRONMENT, dataset, execute, python, write_thick_scan
from training_phantoms import train_command, write_libraries

from iqtflow.bids.validation import _ask_validator
from iqtflow.utils import environment
from iqtflow.utils.command import LenientStream, lost_output
from iqtflow.utils.environment import LONGEST_FOLDER, command_line, place_sockets, settle_environment
from iqtflow.utils.errors import EXIT_CANTCREAT, EXIT_USAGE, UsageError
from iqtflow.utils.gpus import _ASK_TORCH

#: Names of libraries that are imported.
STRAY = ("numpy", "scipy", "nibabel", "torch", "nipype", "json", "random", "socket", "multiprocessing")
COMMANDS = [
    "cli.main",
    *(
        f"cli.commands.{name}"
        for name in ["enhance", "simulate", "segment", "calibrate", "train", "evaluate", "audit"]
    ),
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            {"USER": "reader", "MPLCONFIGDIR": "/somewhere"}, {"USER": "reader"}, id="set by the user"
        ),
        pytest.param({"USER": "reader"}, {"USER": "reader", "MPLCONFIGDIR": None}, id="writable home"),
        pytest.param({"MPLBACKEND": "module://inline"}, {"MPLBACKEND": "Agg"}, id="figures go to files"),
        pytest.param(
            {"PYTHONPATH": ":/libraries:mine:", "TMPDIR": "here"},
            {"PYTHONPATH": "/libraries:{here}/mine", "TMPDIR": "{here}/here"},
            id="an empty part of PYTHONPATH is not the current folder",
        ),
    ],
)
def test_variables_of_the_user_stay_and_paths_become_absolute(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    variables = {"HOME": os.fspath(tmp_path), **given}
    settle_environment(variables)
    assert variables["HOME"] == os.fspath(tmp_path) and list(tmp_path.iterdir()) == []
    assert variables.get("MPLCONFIGDIR") == given.get("MPLCONFIGDIR")
    for name, value in expected.items():
        assert variables.get(name) == (value and value.format(here=tmp_path))


def test_a_user_without_name_and_home_gets_a_name_and_a_folder_for_matplotlib(monkeypatch):
    monkeypatch.setattr(environment, "_account", lambda: None)
    monkeypatch.setattr(environment, "_writable", lambda folder: "nonexistent" not in folder.parts)
    variables = {"HOME": "/nonexistent"}
    settle_environment(variables)
    assert variables["USER"] == f"uid{os.getuid()}"
    assert Path(variables["MPLCONFIGDIR"]).is_dir()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert getpass.getuser() == variables["USER"]  # PyTorch calls it


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_left_alone(tmp_path):
    tmp_path.chmod(0o500)
    variables = {"HOME": os.fspath(tmp_path), "USER": "reader"}
    settle_environment(variables)
    assert Path(variables["MPLCONFIGDIR"]).is_dir()


def test_matplotlib_s_folder_goes_when_the_program_ends(tmp_path):
    code = (
        "import os; from iqtflow.utils.environment import settle_environment;"
        "settle_environment(); print(os.environ['MPLCONFIGDIR'])"
    )
    # A file in the place of the home: not even root can write into it.
    home = tmp_path / "home"
    home.write_text("")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPLCONFIGDIR"))}
    done = python("-c", code, env={**kept, "HOME": os.fspath(home)}, check=True)
    assert not Path(done.stdout.strip()).exists()


def strange_folder(folder: Path) -> Path:
    """Make a folder with files named like libraries. A file that runs writes its name to `ran`."""
    folder.mkdir()
    note = f"open({os.fspath(folder / 'ran')!r}, 'a').write(__file__)\n"
    for name in STRAY:
        (folder / f"{name}.py").write_text(note)
    (folder / "iqtflow").mkdir()
    (folder / "iqtflow/__init__.py").write_text(note)
    (folder / "nipype.cfg").write_text("[logging]\nlog_to_file = true\n[execution\nno configuration at all\n")
    return folder


#: Prints the number of attempts to send something. Without a network the kernel counts each of them.
COUNT_ATTEMPTS = """
awk '/^Ip: F/ {for (i = 1; i <= NF; i++) if ($i == "OutNoRoutes") k = i; getline; print $k}' /proc/net/snmp
"""


def without_network() -> list[str]:
    """Return the beginning of a command that runs without a network; empty if this user cannot."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except OSError:
            break
    return []


@dataclass
class Road:
    """An enhancement and a training in an unusual environment."""

    folder: Path
    codes: list[int]
    said: str
    attempts: list[int]


@pytest.fixture(scope="module")
def road(untrained_model, tmp_path_factory) -> Road:
    """Enhance a scan and train a network, in a folder of strange files, without a home and a network, with a
    temporary folder of a long path; nobody reads what is said.
    """
    root = tmp_path_factory.mktemp("road")
    here = strange_folder(root / "here")
    bids = dataset(root / "bids")
    write_thick_scan(bids / "sub-1/anat/sub-1_T1w.nii.gz")
    libraries = write_libraries(root, n_draws=1)
    long = root / ("temporary" * 10)
    long.mkdir()
    (root / "home").write_text("a file: not even root can write into it")
    enhance = [*command_line("iqtflow.cli.main"), bids, root / "out", "participant", "-w", root / "work"]
    enhance += ["--model", untrained_model, "--nprocs", "1"]
    train = [
        *command_line("iqtflow.cli.commands.train"),
        *train_command(libraries[:2], libraries[2:], root, steps=2),
    ]
    script, codes = root / "script.sh", root / "codes"
    lines = [
        f"{shlex.join(map(str, command))} 2> {root / 'errors'}{i} | true; echo ${{PIPESTATUS[0]}} >> {codes}"
        for i, command in enumerate((enhance, train))
    ]
    attempt = 'import socket; socket.create_connection(("192.0.2.1", 80))'
    provoke = f"cd /; {shlex.join([sys.executable, '-c', attempt])} 2> /dev/null"
    script.write_text("\n".join([COUNT_ATTEMPTS, *lines, COUNT_ATTEMPTS, provoke, COUNT_ATTEMPTS]))
    kept = {name: value for name, value in ENVIRONMENT.items() if name not in ("NIPYPE_NO_ET", "NO_ET")}
    environment = {**kept, "HOME": os.fspath(root / "home"), "TMPDIR": os.fspath(long)}
    done = execute(*without_network(), "bash", script, cwd=here, env=environment, timeout=600)
    said = "".join((root / f"errors{i}").read_text() for i in range(2))
    counts = [int(count) for count in done.stdout.split()]
    return Road(root, [int(code) for code in codes.read_text().split()], said, counts)


@pytest.mark.slow
def test_the_road_is_gone_to_its_end_in_odd_surroundings(road):
    assert road.codes == [0, 0], road.said
    assert (road.folder / "out/sub-1/anat/sub-1_desc-iqt_T1w.nii.gz").exists()
    assert (road.folder / "model.safetensors").exists()
    assert "Traceback" not in road.said and "BrokenPipe" not in road.said


@pytest.mark.slow
def test_no_file_of_the_current_folder_is_run_or_obeyed(road):
    here = road.folder / "here"
    assert not (here / "ran").exists()
    assert sorted(path.stem for path in here.iterdir()) == sorted([*STRAY, "iqtflow", "nipype"])


@pytest.mark.slow
def test_nothing_is_sent_to_another_machine(road):
    """Also nipype does not ask for updates. The last attempt is made on purpose, to test the count."""
    if not without_network():
        pytest.skip(
            "no place without a network can be made here (unshare --net needs user namespaces or root)"
        )
    before, after, provoked = road.attempts
    assert provoked > after, "attempts are counted"
    assert after == before


def test_the_validator_s_engine_asks_for_no_update(tmp_path):
    """Deno would after half a second, longer than the run above may take."""
    validator = tmp_path / "validator"
    validator.write_text(
        "#!/bin/sh\n"
        'printf \'{"issues": {"issues": [{"code": "%s", "severity": "error"}]}}\' "$DENO_NO_UPDATE_CHECK"\n'
    )
    validator.chmod(0o755)
    (fault,) = _ask_validator(os.fspath(validator), tmp_path)
    assert fault.code == "1"


def test_children_and_questions_run_no_file_of_the_current_folder(tmp_path):
    here = strange_folder(tmp_path / "here")
    for command in (
        [*command_line("iqtflow.cli.commands.evaluate"), "no.nii", "no.nii"],
        [sys.executable, "-c", _ASK_TORCH],
    ):
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
    assert not (here / "ran").exists()


def test_a_module_that_is_started_by_python_runs_no_file_of_the_current_folder(tmp_path):
    here = strange_folder(tmp_path / "here")
    shutil.rmtree(here / "iqtflow")  # python -m would import this package
    for name in ("json", "random", "socket", "multiprocessing"):  # Python itself can import them first
        (here / f"{name}.py").unlink()
    bids = dataset(tmp_path / "bids")
    write_thick_scan(bids / "sub-1/anat/sub-1_T1w.nii.gz")
    command = [sys.executable, "-m", "iqtflow.cli", bids, tmp_path / "out", "participant", "--dry-run"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (here / "ran").exists()


def test_nodes_run_no_file_of_the_current_folder(tmp_path):
    """Their processes come from a server whose path begins with the current folder."""
    here = strange_folder(tmp_path / "here")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nsys.path[0] = sys.argv[1]\n"
        "from jobs import chain, graph\nfrom pathlib import Path\n"
        "from iqtflow.workflows.execution.nipype_config import configure_nipype\n"
        "from iqtflow.workflows.execution.local import LocalProcesses\n"
        "from iqtflow.workflows.execution.scheduler import Limits, SchedulerPlugin\n"
        "if __name__ == '__main__':\n"
        "    configure_nipype(crash_dir=sys.argv[2], level='CRITICAL')\n"
        "    plugin = SchedulerPlugin(LocalProcesses(), Limits(1, 1.0))\n"
        "    work = graph(Path(sys.argv[2]), chain('a'))\n"
        "    work.run(plugin=plugin)\n"
        "    raise SystemExit(len(plugin.crashes))\n"
    )
    (here / "nipype.cfg").unlink()  # nipype reads it in this program
    command = [sys.executable, program, Path(__file__).parents[1], tmp_path / "work"]
    done = subprocess.run(list(map(str, command)), cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "work/graph/a/job2/out.txt").read_text() == "a0 a1 a2 "
    assert not (here / "ran").exists()


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_can_be_read_by_a_pipe_that_closes(module):
    """Like ``| head -1``, or a closed terminal."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*command_line(f"iqtflow.{module}"), "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_stream_may_be_closed():
    program = shlex.join([*command_line("iqtflow.cli.main"), "--help"])
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        done = subprocess.run(
            ["bash", "-c", f"{program} {closed}"], stderr=subprocess.PIPE, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), closed


def test_a_closed_stream_is_open_in_child_processes_too():
    """Otherwise a pipe between the processes takes its number, and is closed with it."""
    child = "import os; [os.fstat(n) for n in range(3)]"
    program = (
        "import subprocess, sys; from iqtflow.utils.command import lenient_streams\n"
        f"with lenient_streams(): sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    )
    closed = shlex.join([sys.executable, "-c", program]) + " <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", closed], check=False).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_is_said_into_a_full_disk_is_told_on_the_other_stream():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command_line("iqtflow.cli.main"), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode in (0, EXIT_CANTCREAT)
    assert "Traceback" not in done.stderr


def test_a_stream_knows_a_full_disk_from_a_pipe_that_closed():
    with open("/dev/full", "w") as full:
        stream = LenientStream(full)
        stream.write("x" * 100_000)
        stream.flush()
        assert lost_output(stream).strerror == os.strerror(28)


@pytest.mark.parametrize("module", COMMANDS)
def test_a_deleted_current_folder_is_told_in_a_sentence(module, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    program = shlex.join(command_line(f"iqtflow.{module}"))
    done = execute("bash", "-c", f"rmdir {here}; {program} /a /b participant", cwd=here)
    assert done.returncode == EXIT_USAGE, done.stderr
    (line,) = done.stderr.splitlines()
    assert "the current folder" in line and "deleted" in line and "(cd)" in line


def test_a_long_temporary_folder_is_replaced_for_sockets_by_a_short_one_of_its_own(monkeypatch, tmp_path):
    long = tmp_path / ("x" * LONGEST_FOLDER)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(long))
    folder = place_sockets()
    assert len(os.fsencode(folder)) <= LONGEST_FOLDER
    assert tempfile.gettempdir() == os.fspath(long), "large files stay where the user wants them"
    monkeypatch.setattr(environment, "SHORT_FOLDERS", (os.fspath(tmp_path / "gone"),))
    with pytest.raises(UsageError, match="TMPDIR to a folder with a shorter path"):
        place_sockets()
