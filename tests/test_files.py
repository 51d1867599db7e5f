"""A file has its final name only when it is whole."""

from __future__ import annotations

import pytest

from iqtflow.errors import OutputError
from iqtflow.files import write_atomically, write_text


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
