"""Locks and replacements hold for what a path resolves to, by whatever name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gridcore.files import FileInUse, FileLock, write_private

TRY = """
import sys
from pathlib import Path
from gridcore.files import FileInUse, FileLock
try:
    FileLock(Path(sys.argv[1])).close()
except FileInUse:
    print("in use")
else:
    print("free")
"""


def another_process_finds(path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def real(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    path = tmp_path / "kept" / "state"
    path.write_text("before")
    return path


@pytest.fixture
def links(tmp_path: Path, real: Path) -> list[Path]:
    """Other names of the file: through a link, a link to a link, a linked directory, and a hard link."""
    once, twice, directory, hard = (tmp_path / name for name in ("once", "twice", "folder", "hard"))
    once.symlink_to(real)
    twice.symlink_to(once)
    directory.symlink_to(real.parent)
    hard.hardlink_to(real)
    return [once, twice, directory / real.name, hard]


def test_a_file_is_in_use_by_each_of_its_names_until_the_lock_is_closed(
    real: Path, links: list[Path]
) -> None:
    lock = FileLock(real)
    assert [another_process_finds(path) for path in [real, *links]] == ["in use"] * 5
    lock.close()
    assert [another_process_finds(path) for path in [real, *links]] == ["free"] * 5


def test_a_lock_taken_through_a_link_holds_for_the_file(real: Path, links: list[Path]) -> None:
    for link in links:
        lock = FileLock(link)
        assert another_process_finds(real) == "in use", link
        lock.close()


def test_two_locks_of_one_process_exclude_each_other_too(real: Path, links: list[Path]) -> None:
    lock = FileLock(real)
    for path in [real, *links]:
        with pytest.raises(FileInUse):
            FileLock(path)
    lock.close()


def test_a_file_replaced_by_its_owner_stays_locked_by_names_that_it_gets_later(
    real: Path, tmp_path: Path
) -> None:
    lock = FileLock(real)
    write_private(real, "after")
    (tmp_path / "later").hardlink_to(real)
    assert another_process_finds(tmp_path / "later") == "in use"
    lock.close()
    assert another_process_finds(tmp_path / "later") == "free"


def test_a_file_replaced_by_somebody_else_stays_locked_by_name(real: Path) -> None:
    lock = FileLock(real)
    (other := real.with_name("other")).write_text("an editor's")
    other.replace(real)
    assert another_process_finds(real) == "in use"
    lock.close()


def test_a_file_made_after_its_lock_is_locked_by_all_its_names_once_told(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "new")
    assert another_process_finds(tmp_path / "new") == "in use"
    (tmp_path / "new").write_text("made")
    lock.follow()
    (tmp_path / "hard").hardlink_to(tmp_path / "new")
    assert another_process_finds(tmp_path / "hard") == "in use"
    lock.close()


def test_a_directory_is_in_use_through_its_links(tmp_path: Path, real: Path) -> None:
    (tmp_path / "link").symlink_to(real.parent)
    lock = FileLock(tmp_path / "link")
    assert another_process_finds(real.parent) == "in use"
    assert not list(tmp_path.glob("*.lock"))
    lock.close()


def test_a_replacement_keeps_the_link_and_changes_what_it_resolves_to(real: Path, links: list[Path]) -> None:
    for text, link in enumerate(links[:3]):
        write_private(link, str(text))
        assert real.read_text() == str(text)
        assert real.stat().st_mode & 0o777 == 0o600
    assert links[0].is_symlink()
    assert links[1].is_symlink()


def test_a_replacement_through_a_link_to_nothing_makes_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_private(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
