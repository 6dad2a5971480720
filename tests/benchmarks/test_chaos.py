"""The chaos command: its audit finds missing pushes and growing memory; the page that it writes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.accident_page import TITLE, Played, section  # noqa: E402
from benchmarks.accidents import ACCIDENTS, Ended, problems  # noqa: E402
from benchmarks.chaos import ACCIDENT_DATA, PAGE, audit, growth  # noqa: E402
from benchmarks.failure_page import Measured, measure, page  # noqa: E402
from benchmarks.failures import FAILURES, Failure, Outcome, Runtime, restarts  # noqa: E402
from benchmarks.recorded_runs import read_runs  # noqa: E402
from benchmarks.replay_data import CARTPOLE, random_block  # noqa: E402
from replay_service.codec import encode  # noqa: E402
from replay_service.journal import writer as journal_writer  # noqa: E402
from replay_service.journal.delivered import Delivered  # noqa: E402
from replay_service.journal.segments import BLOCK, segment_paths  # noqa: E402

TRANSITIONS = 8


def write_journal(folder: Path, pushes: list[tuple[int, int, int]]) -> None:
    """A shard's journal of pushes (writer, incarnation, sequence), two in each segment."""
    with mock.patch.object(journal_writer, "SEGMENT_BYTES", 1_000):
        journal = journal_writer.JournalWriter(folder / "shard-0", number=0, next_key=0)
        delivered = Delivered({}, 0, 0)
        for writer, incarnation, sequence in pushes:
            block = random_block(CARTPOLE, TRANSITIONS)
            block = replace(block, writer=writer, incarnation=incarnation, sequence=sequence)
            key = journal.next_key
            journal.append(BLOCK, key, key + TRANSITIONS, encode(block), delivered)
            delivered = delivered.after(block)
        journal.close()


PUSHES = [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 0, 2), (1, 1, 1), (0, 0, 3)]


def test_a_whole_journal_has_no_gap(tmp_path: Path) -> None:
    write_journal(tmp_path, PUSHES)
    found = audit(tmp_path)
    assert len(segment_paths(tmp_path / "shard-0")) > 2
    assert found.gaps == ()
    assert (found.transitions, found.blocks) == (TRANSITIONS * len(PUSHES), len(PUSHES))


def test_the_oldest_segments_may_be_gone(tmp_path: Path) -> None:
    write_journal(tmp_path, PUSHES)
    segment_paths(tmp_path / "shard-0")[0].unlink()
    found = audit(tmp_path)
    assert found.gaps == ()
    assert found.transitions == TRANSITIONS * len(PUSHES)
    assert found.blocks < len(PUSHES)


# Not the last of an incarnation: nobody can tell that there was one. It would be missing in the totals.
@pytest.mark.parametrize("missing", [0, 1, 2, 4, 5])
def test_a_missing_push_is_seen(tmp_path: Path, missing: int) -> None:
    write_journal(tmp_path, PUSHES[:missing] + PUSHES[missing + 1 :])
    assert audit(tmp_path).gaps


def test_a_missing_or_altered_segment_is_seen(tmp_path: Path) -> None:
    write_journal(tmp_path, PUSHES)
    paths = segment_paths(tmp_path / "shard-0")
    held = bytearray(paths[1].read_bytes())
    paths[1].unlink()
    assert audit(tmp_path).gaps
    held[len(held) // 2] ^= 1
    paths[1].write_bytes(held)
    with pytest.raises(ValueError, match="checksum"):
        audit(tmp_path)


def test_memory_is_compared_between_two_quarters() -> None:
    samples = [(float(at), 100 + at) for at in range(0, 100, 5)]
    assert growth(samples, 100.0) == (int(np.median(range(125, 150, 5))), int(np.median(range(175, 200, 5))))
    assert growth(samples[:10], 100.0) is None


def test_restarts_are_summed_over_causes() -> None:
    line = {"role_restarts_total": {"actor": {"process": 2, "frozen": 1}}}
    assert (restarts(line, "actor"), restarts(line, "shard"), restarts({}, "actor")) == (3, 0, 0)


def test_the_page_says_what_was_measured_and_what_could_not_be() -> None:
    actor, shard = FAILURES[0], FAILURES[1]
    outcomes = tuple(
        Outcome("an episode", seconds, ("actor 0 (process 12) died",), limit)
        for seconds, limit in ((9.0, 6.0), (7.5, 6.0), (30.0, 6.0))
    )
    text = page([Measured(actor, "local", outcomes), Measured(shard, "ray", (), "not injected: needs luck")])
    assert (
        f"| {actor.title} | `local` | an episode | the limit + 3.0 s (3) | actor 0 (process …) died |" in text
    ), text
    assert f"| {shard.title} | `ray` | | not injected: needs luck | |" in text


def test_the_page_has_a_line_for_every_failure_and_the_words_of_today() -> None:
    written, _, accidents = PAGE.read_text(encoding="utf-8").partition(TITLE)
    before, after = page([]).split("\n\n*Soak.*")
    assert TITLE + accidents == section(read_runs(ACCIDENT_DATA, Played))
    lines = [f"| {failure.title} | `{runtime}` |" for failure in FAILURES for runtime in failure.runtimes]
    assert [line for line in lines if line not in written] == []
    assert written.startswith(before)
    assert written.endswith(after)


def test_an_accident_that_did_not_end_well_is_shown() -> None:
    term = next(accident for accident in ACCIDENTS if accident.name == "term")
    well = Ended(143, 2.0, 0.5, ("END stopped by SIGTERM",), 96, ())
    assert problems(term, well, checkpoint=True) == []
    ill = Ended(1, 21.0, 0.5, ("END no word",), 0, ("ray::IDLE",))
    assert len(problems(term, ill, checkpoint=True)) == 5
    text = section([Played("term", "local", True, ill), Played("term", "serial", True, well)])
    assert "begins anew **it ended with 1 instead of 143**" in text
    assert "| serial | not played | ends in 2.0 s, goes on from version 96 | stopped by SIGTERM |" in text


def test_a_table_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    played: list[Runtime] = []

    def play(folder: Path, runtime: Runtime) -> Outcome:
        played.append(runtime)
        return Outcome("an episode", float(len(played)), ("actor 0 died",))

    failure = Failure("actor", "An actor", play)
    data = tmp_path / "failures.json"
    first = measure(failure, "local", 2, data)
    measure(failure, "ray", 1, data)
    again = measure(failure, "local", 3, data)
    assert played == ["local", "local", "ray", "local"]
    assert [outcome.seconds for outcome in again.outcomes] == [1.0, 2.0, 4.0]
    assert again.outcomes[:2] == first.outcomes
