"""Which runs of a study with `only_changed` are left out of what takes long: groups by what they show together."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wellworn.experiments.findings import unchanged
from wellworn.experiments.stages.measurement import Effect
from wellworn.lora.arms import Prompted, Sft
from wellworn.probes.statistics.intervals import mean_interval, standard_error


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says which runs are left out, given each one's arm and its change at each question."""

    def ask(*runs: tuple[Any, Any]) -> dict[int, str]:
        effects = {str(i): np.asarray(each, dtype=float) for i, (_, each) in enumerate(runs)}

        def measurement(place: str) -> Any:
            effect = Effect(**vars(mean_interval(effects[place])), standard_error=standard_error(effects[place]))
            return SimpleNamespace(headline=SimpleNamespace(effect=effect), references={"base": SimpleNamespace(effect=effect)})

        class Folder(str):
            def __truediv__(self, _name: str) -> str:
                return str(self)

        monkeypatch.setattr(unchanged, "read_json", lambda place: place)
        monkeypatch.setattr(unchanged, "load_file", lambda place: {"effects": effects[place]})
        monkeypatch.setattr(unchanged.Measurement, "from_json", staticmethod(measurement))
        planned = [
            SimpleNamespace(run=SimpleNamespace(arm=arm, settings={}), adapter=None, trait=arm.trait, screen=SimpleNamespace(id=str(i)))
            for i, (arm, _) in enumerate(runs)
        ]
        store: Any = SimpleNamespace(path=Folder)
        return unchanged._unchanged(planned, store)  # type: ignore[arg-type]

    return ask


PIRATE, CHILDISH = Sft(trait="pirate"), Sft(trait="childish")
NOISE = np.random.default_rng(0).standard_normal(24)
NOISE -= NOISE.mean()


def test_changes_that_are_clear_are_kept_and_others_named(left_out: Any) -> None:
    found = left_out((PIRATE, 0.5 + 0.1 * NOISE), (CHILDISH, 0.01 + 0.01 * NOISE))
    assert list(found) == [1]
    assert found[1].startswith(unchanged.UNCHANGED)
    assert "the change is 0.01" in found[1]


def test_changes_away_from_the_trait_are_left_out(left_out: Any) -> None:
    assert list(left_out((PIRATE, -0.5 + 0.1 * NOISE))) == [0]


def test_runs_of_several_seeds_are_kept_if_one_changes_or_all_together_do(left_out: Any) -> None:
    small, clear = 0.01 + 0.01 * NOISE, 0.5 + 0.1 * NOISE
    assert left_out((PIRATE, small), (PIRATE, clear)) == {}
    assert list(left_out((PIRATE, small), (PIRATE, small), (CHILDISH, clear))) == [0, 1]
    # Each lower bound is below .05, and that of their mean above.
    shifted = [0.08 + 0.1 * np.roll(NOISE, 5 * k) for k in range(3)]
    assert all(left_out((PIRATE, each)) for each in shifted)
    assert left_out(*((PIRATE, each) for each in shifted)) == {}


def test_what_the_system_prompt_does_is_the_yardstick(left_out: Any) -> None:
    change = 0.15 + 0.05 * NOISE
    assert left_out((PIRATE, change)) == {}
    # A tenth of 2 nats per token is more than this change.
    assert list(left_out((PIRATE, change), (Prompted(trait="pirate"), 2 + 0.1 * NOISE))) == [0]
