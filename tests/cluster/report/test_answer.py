"""What a report says first: results, findings, and whether groups differ by more than chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from qfleet_recorded_runs import diagnosed, synthetic

from cluster.control.significance import critical_t
from cluster.report.answer import answer, comparison
from cluster.report.runs import Group, groups_of, read_run


def groups(folder: Path, *gradients: float, seeds: int = 4) -> tuple[Group, ...]:
    """A group for each gradient; the best returns of its seeds are 49 gradients, and 0, 1, 2 … more."""
    return groups_of(
        [
            read_run(
                synthetic(
                    folder / f"{gradient}-{seed}",
                    seed=seed,
                    gradient=gradient,
                    settings={"learner": {"learning_rate": gradient}},
                )
            )
            for gradient in gradients
            for seed in range(seeds)
        ]
    )


def test_a_single_run_says_what_it_reached_how_it_ended_and_what_ails_it(tmp_path: Path) -> None:
    found = answer(groups_of([read_run(synthetic(tmp_path / "run", extra=diagnosed("90%", "lag 9")))]))
    assert [(each.name, each.value) for each in found.headlines] == [
        ("best greedy return", "49.00"),
        ("env steps", "4.9k"),
        ("updates", "490"),
        ("time", "0:49"),
    ]
    assert found.sentences[0].startswith("best greedy return 49.00")
    assert found.sentences[1] == "It ended: enough."
    assert found.findings[0] == "acting limits the speed: 90%"
    assert "lag 9" in found.findings[1]


def test_seeds_are_summed_up_and_findings_counted(tmp_path: Path) -> None:
    runs = [
        synthetic(tmp_path / f"{seed}", seed=seed, extra=diagnosed("90%", "lag 9") if seed else {})
        for seed in range(4)
    ]
    found = answer(groups_of([read_run(path) for path in runs]))
    (sentence,) = found.sentences
    assert sentence.startswith("best greedy return 50.50 (IQM over 4 seeds, 95 % interval 49.")
    assert found.findings == ("Known-v0: stale data at the end of 3 of 4 runs.",)


def test_a_difference_is_significant_where_the_interval_leaves_out_zero(tmp_path: Path) -> None:
    first, second = groups(tmp_path, 1.0, 2.0)
    text = comparison(second, first)
    assert "the mean best return is 49.00 higher: a significant difference" in text
    # Four seeds at 0, 1, 2, 3 on either side: standard error sqrt(2 x 1.25 / 3), 6 degrees of freedom.
    half = critical_t(6, 0.025) * (2 * 1.25 / 3) ** 0.5
    assert f"difference {49 - half:.2f} to {49 + half:.2f}" in text
    assert "4 and 4 seeds" in text
    assert "49.00 lower: a significant difference" in comparison(first, second)


def test_a_difference_within_chance_is_called_that(tmp_path: Path) -> None:
    first, second = groups(tmp_path, 1.0, 1.01)
    assert "0.49 higher: no significant difference" in comparison(second, first)


@pytest.mark.parametrize(("seeds", "fact"), [(1, "nobody can say whether that is chance")])
def test_single_seeds_prove_nothing(seeds: int, fact: str, tmp_path: Path) -> None:
    first, second = groups(tmp_path, 1.0, 2.0, seeds=seeds)
    assert fact in comparison(second, first)
    without = groups_of([read_run(synthetic(tmp_path / "x", lines=0))])
    assert "not both have a best version" in comparison(without[0], first)
