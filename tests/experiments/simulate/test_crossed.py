import pytest

from wellworn.experiments.simulate.crossed import PROPORTIONS, missed_targets, simulate_crossed

READINGS = ("mean", "ratio", "ratio_offset", "ratio_offset_few")


def test_a_few_cells() -> None:
    rows = simulate_crossed(300, 0, runs=(3, 10), proportions=PROPORTIONS[1:2])
    assert [row["runs"] for row in rows] == [3, 10]
    for row in rows:
        for name in READINGS:
            assert 0.89 <= row[name] <= 0.99
    # Of three runs the denominator is now and then not told from zero.
    assert rows[0]["unbounded"] > 0 == rows[1]["unbounded"]
    assert simulate_crossed(300, 0, runs=(3, 10), proportions=PROPORTIONS[1:2]) == rows


def test_a_missed_target_is_said_in_words() -> None:
    assert missed_targets({"mean": 0.95, "ratio": 0.9, "ratio_offset": 0.98, "ratio_offset_few": 0.94}) == [
        "ratio: coverage 0.900, 0.92 to 0.97",
        "ratio_offset: coverage 0.980, 0.92 to 0.97",
    ]


@pytest.mark.slow
def test_the_whole_grid_meets_its_targets() -> None:
    for row in simulate_crossed(2000, 0):
        if row["sd_run"] or row["sd_question"]:
            assert missed_targets(row) == [], row
        else:
            # Both floors then estimate the residual alone, and the larger of them is taken: too wide, never too narrow.
            assert all(row[name] >= 0.95 for name in READINGS), row
