import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import datasets
import filelock
import numpy as np
import pytest

from trainer_loop.data import row_cache
from trainer_loop.data.row_cache import load_or_make


class Maker:
    """Writes three rows, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: str) -> None:
        self.calls += 1
        rows = datasets.Dataset.from_dict({"ids": [[1], [2, 3], []]})
        rows.map(lambda row: row, cache_file_name=path, load_from_cache_file=False)
        np.save(Path(path).with_name("length.npy"), np.array([1, 2, 0]))


def test_rows_are_made_once_and_mapped_from_the_disk(tmp_path: Path):
    make = Maker()
    first, second = (load_or_make(tmp_path / "kept" / "key", make) for _ in range(2))
    assert make.calls == 1
    assert list(first["ids"]) == list(second["ids"]) == [[1], [2, 3], []]
    assert second.cache_files == [{"filename": str(tmp_path / "kept" / "key" / "rows.arrow")}]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def no_json(path: Path) -> None:
    path.write_text("{")


def other_type(path: Path) -> None:
    path.write_text("[7]")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", ["rows.arrow", "length.npy", "facts.json"])
@pytest.mark.parametrize("damage", [Path.unlink, empty, cut_short, no_json, other_type, deep, folder])
def test_damaged_rows_are_made_again(tmp_path: Path, file: str, damage: Callable[[Path], None]):
    make = Maker()
    load_or_make(tmp_path / "key", make)
    damage(tmp_path / "key" / file)
    for _ in range(2):
        assert list(load_or_make(tmp_path / "key", make)["ids"]) == [[1], [2, 3], []]
    assert make.calls == 2


@pytest.mark.parametrize("file", ["rows.arrow", "length.npy"])
def test_rows_with_one_wrong_bit_are_made_again(tmp_path: Path, file: str):
    make = Maker()
    load_or_make(tmp_path / "key", make)
    rows = tmp_path / "key" / file
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    rows.write_bytes(content)
    os.utime(rows, (0, 0))  # clocks of files tick slowly
    assert list(load_or_make(tmp_path / "key", make)["ids"]) == [[1], [2, 3], []]
    assert make.calls == 2


def test_what_was_copied_elsewhere_is_not_made_again(tmp_path: Path):
    make = Maker()
    load_or_make(tmp_path / "key", make)
    os.utime(tmp_path / "key" / "rows.arrow", (0, 0))
    assert len(load_or_make(tmp_path / "key", make)) == 3
    assert make.calls == 1


def test_what_killed_processes_left_behind_under_any_key_is_removed_once_it_is_old(tmp_path: Path):
    for name in ("key.here-1.partial", "key.here-2.partial", "key2.here-1.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.arrow").write_bytes(b"half of it")
        if name != "key.here-2.partial":
            for path in (tmp_path / name / "rows.arrow", tmp_path / name):
                os.utime(path, (0, 0))
    assert len(load_or_make(tmp_path / "key", Maker())) == 3
    assert {path.name for path in tmp_path.glob("*.partial")} == {"key.here-2.partial"}


def test_hosts_whose_locks_do_not_bind_each_other_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_cache, "_lock", lambda folder: contextlib.nullcontext())
    make = Maker()
    first: list[datasets.Dataset] = []

    def make_beside_another_host(path: str) -> None:
        make(path)
        first.append(load_or_make(tmp_path / "key", make))
        inodes.append((tmp_path / "key" / "rows.arrow").stat().st_ino)

    inodes: list[int] = []
    second = load_or_make(tmp_path / "key", make_beside_another_host)
    assert list(first[0]["ids"]) == list(second["ids"]) == [[1], [2, 3], []]
    assert make.calls == 2
    assert [(tmp_path / "key" / "rows.arrow").stat().st_ino] == inodes, "the first was mapped already"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]


def test_a_host_that_mends_damaged_rows_does_not_take_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_cache, "_lock", lambda folder: contextlib.nullcontext())
    make = Maker()
    load_or_make(tmp_path / "key", make)
    cut_short(tmp_path / "key" / "rows.arrow")
    move_away = row_cache._move_away
    others: list[datasets.Dataset] = []

    def after_another_host(folder: Path, abandoned: Path) -> None:
        monkeypatch.setattr(row_cache, "_move_away", move_away)
        others.append(load_or_make(tmp_path / "key", make))
        move_away(folder, abandoned)

    monkeypatch.setattr(row_cache, "_move_away", after_another_host)
    mine = load_or_make(tmp_path / "key", make)
    assert list(mine["ids"]) == list(others[0]["ids"]) == [[1], [2, 3], []]
    assert make.calls == 3
    mapped = Path(others[0].cache_files[0]["filename"])
    kept = [path for path in tmp_path.glob("*/rows.arrow") if path.stat().st_size == mapped.stat().st_size]
    assert len(kept) == 2, "those of the other host are still there, for it has mapped them"


def test_where_files_cannot_be_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def acquire(lock: filelock.FileLock) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="cannot be locked"):
        load_or_make(tmp_path / "key", Maker())


def test_nothing_is_kept_when_the_making_fails(tmp_path: Path):
    def fail(path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        load_or_make(tmp_path / "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert len(load_or_make(tmp_path / "key", Maker())) == 3


def test_processes_that_ask_at_one_time_have_it_made_once(tmp_path: Path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import datasets
        from trainer_loop.data.row_cache import load_or_make

        folder = Path(sys.argv[1])

        def make(path):
            with (folder / "log").open("a") as log:
                log.write("made\\n")
            time.sleep(0.5)
            datasets.Dataset.from_dict({"n": [1, 2]}).map(lambda row: row, cache_file_name=path)

        while not (folder / "go").exists():
            time.sleep(0.01)
        print(sum(load_or_make(folder / "key", make)["n"]))
    """)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["3"] * 3
    assert (tmp_path / "log").read_text() == "made\n"
