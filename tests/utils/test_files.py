"""A file gets its final name only when it is complete; pipes are not waited for."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from iqtflow.bids import check_owner
from iqtflow.bids.index import read_filters
from iqtflow.cli.commands.calibrate import read_scan
from iqtflow.cli.commands.train import _read_card
from iqtflow.config import read_sections
from iqtflow.image.metadata import read_fields
from iqtflow.models.card import read_header
from iqtflow.simulation.recipe import recall
from iqtflow.simulation.snr_prior import read_prior
from iqtflow.training.library import read_library
from iqtflow.training.pairs import read_pairs
from iqtflow.training.split import read_split
from iqtflow.utils.errors import InputError, OutputError, UsageError
from iqtflow.utils.files import remove_leftovers, require_name, write_atomically, write_text
from iqtflow.workflows.execution.cluster import read_plugin_file


def test_what_was_there_before_stays_until_the_new_is_whole(tmp_path):
    path = write_text(tmp_path / "x.txt", "before")

    def interrupted(stream):
        stream.write(b"half of the n")
        stream.flush()
        assert path.read_text() == "before"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


WAITING = """
import sys, time
from iqtflow.utils.files import write_atomically
def fill(stream):
    print("begun", flush=True)
    time.sleep(600)
write_atomically(sys.argv[1], fill)
"""


def test_unfinished_files_stay_while_their_process_lives_and_no_longer(tmp_path):
    """A process that has been killed is a zombie until its parent takes note."""
    command = [sys.executable, "-c", WAITING, tmp_path / "out/x.txt"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            (unfinished,) = (tmp_path / "out").iterdir()
            assert remove_leftovers(tmp_path) == 0 and unfinished.exists()
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
        assert remove_leftovers(tmp_path) == 1 and not unfinished.exists()


REMOVING = """
import os, sys
import psutil
from iqtflow.utils.files import remove_leftovers
os.setgroups([]), os.setgid(65534), os.setuid(65534)
raise SystemExit(remove_leftovers(sys.argv[1]))
"""


def test_an_unfinished_file_of_another_user_stays_even_where_processes_are_hidden():
    """Clusters mount /proc so that users see only their own processes."""
    isolated = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-euc"]
    hide = "mount -o remount,hidepid=2 /proc"
    if not shutil.which("unshare") or subprocess.run([*isolated, hide], capture_output=True).returncode:
        pytest.skip("processes cannot be hidden here (needs root)")
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are for one user
        os.chmod(place, 0o777)
        waiting = shlex.join([sys.executable, "-c", WAITING, f"{place}/x.txt"])
        removing = shlex.join([sys.executable, "-c", REMOVING, place])
        script = f"{hide}; exec 3< <(exec {waiting}); read -r -u 3; {removing}"  # all end with the shell
        done = subprocess.run([*isolated, script], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert [path.suffix for path in Path(place).iterdir()] == [".partial"]


def test_files_have_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").touch()
    path = write_text(tmp_path / "x.txt", "x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_missing_folders_are_made(tmp_path):
    assert write_text(tmp_path / "a" / "b" / "x.txt", "α").read_bytes() == "α".encode()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_text(tmp_path / "file" / "x.txt", "x")


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folders_after(tmp_path, monkeypatch):
    """After a power cut there is the old file or the complete new one."""
    steps = []
    sync, rename = os.fsync, os.replace

    def note_sync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content"
        steps.append((kind, os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        sync(handle)

    def note_rename(*paths):
        steps.append(("rename", ""))
        rename(*paths)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_text(tmp_path / "new" / "deep" / "x.txt", "x")
    assert [kind for kind, _ in steps] == ["content", "rename", "folder", "folder", "folder"]
    assert [name for kind, name in steps if kind == "folder"] == ["deep", "new", tmp_path.name]


def test_a_file_system_that_cannot_sync_takes_files_all_the_same(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    assert write_text(tmp_path / "x.txt", "x").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_is_named_and_leaves_the_old_file(tmp_path, number):
    path = write_text(tmp_path / "x.txt", "before")

    def fail(stream):
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=os.strerror(number)):
        write_atomically(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(OutputError, match=r"x\.txt: found a folder of this name"):
        write_text(tmp_path / "x.txt", "x")


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path):
    assert write_text(tmp_path / ("é" * 127), "x").read_text() == "x"


@pytest.mark.parametrize("name", ["iqt-k4", "Ibadan_0.36T", "a+b", "x" * 100])
def test_names_are_taken_as_they_are(name):
    assert require_name(name, "--model-name") == name


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", "..", ".hidden", "", "-x", "a b", "a;b", "x" * 101, "a\nb", "a\0", "é"]
)
def test_a_name_that_is_a_path_or_means_something_to_a_shell_is_refused(name):
    with pytest.raises(UsageError, match="--model-name: found"):
        require_name(name, "--model-name")


#: All readers of files of a user.
READERS = {
    "settings": read_sections,
    "filters": lambda path: read_filters(path, "T1w"),
    "description of the output": lambda path: check_owner(path.parent),
    "cluster": read_plugin_file,
    "prior": read_prior,
    "split": read_split,
    "recipe": recall,
    "sidecar": read_fields,
    "measured scan": read_scan,
    "library": read_library,
    "pairs": read_pairs,
    "model": read_header,
    "card": _read_card,
}


@pytest.mark.parametrize("kind", READERS)
def test_a_named_pipe_is_not_waited_for(tmp_path, kind):
    pipe = tmp_path / "dataset_description.json"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=r"dataset_description\.json.*a pipe or a device"):
        READERS[kind](pipe)
