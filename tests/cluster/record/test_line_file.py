"""Files of lines: whole lines whatever happens to disk and process, against a twin in memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cluster.record import line_file
from cluster.record.line_file import LineFile, read_objects, tail


def test_lines_are_there_at_once_and_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    first = LineFile(path)
    first.write("one")
    assert path.read_text() == "one\n"
    first.close()
    LineFile(path).write("zwei €")
    assert path.read_text() == "one\nzwei €\n"


@pytest.mark.parametrize("held", ["", "one\n", "one\ntw", "tor", "one\n" + "x" * 50, "a\n" * 40 + "b"])
def test_a_line_that_a_killed_process_left_is_removed(
    held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "_LOOK_BACK_BYTES", 7)
    path = tmp_path / "lines"
    path.write_text(held)
    LineFile(path).write("next")
    assert path.read_text() == held[: held.rfind("\n") + 1] + "next\n"


class FullAtTimes:
    """A raw file on a disk that takes a part of what is written, then nothing, whenever it is full."""

    def __init__(self, file: object, room: list[int]) -> None:
        self._file = file
        self._room = room

    def write(self, data: memoryview) -> int:
        taken = min(len(data), self._room[0])
        if not taken:
            raise OSError(28, "No space left on device")
        self._room[0] -= taken
        return self._file.write(data[:taken])  # type: ignore[attr-defined, no-any-return]

    def truncate(self, size: int) -> int:
        return self._file.truncate(size)  # type: ignore[attr-defined, no-any-return]


def test_a_full_disk_loses_the_line_that_it_has_no_room_for_and_no_other(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "lines"
    lines = LineFile(path)
    room = [0]
    lines._file = FullAtTimes(lines._file, room)  # type: ignore[assignment]
    expected = ""
    refused = 0
    for number in range(300):
        line = f"{number}:" + "x" * rng.randrange(20)
        room[0] = rng.choice([0, 3, 10, 100, 100])
        try:
            lines.write(line)
        except OSError:
            refused += 1
        else:
            expected += line + "\n"
        assert path.read_text() == expected
    assert 50 < refused < 250


def test_the_tail_of_a_file_has_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert tail(path) == []
    path.write_text("one\ntwo\nthree\n")
    assert tail(path) == ["one", "two", "three"]
    assert tail(path, 8) == ["three"]


def test_objects_are_read_and_other_lines_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n[1]\nno json\n{"a": 2}\n{"a": ')
    assert read_objects(path) == [{"a": 1}, {"a": 2}]
    assert read_objects(path, 18) == [{"a": 2}]
