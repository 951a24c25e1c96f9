"""Runs whose trait score does not rise enough: in a study with `only_changed`, what causes a change is not measured of them."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.files import read_json
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.store import Store
from wellworn.experiments.findings.statements import too_small
from wellworn.experiments.plan.planned import Plan, PlannedRun
from wellworn.experiments.plan.runs import plan_run
from wellworn.experiments.stages.measurement import MEASUREMENT, Effect, Measurement
from wellworn.lora.arms import Prompted

UNCHANGED = "what causes a change is measured only where the trait score rises by enough for a statement (only_changed)"


def settled(planned: Plan, store: Store, ranks: Ranks | None = None) -> Plan:
    """Return the plan of a study with `only_changed` without what is not measured, once the trait scores have been read; else the plan.

    Args:
        planned: all that might be measured.
        store: finished stages.
        ranks: the processes, if all of them ask.
    """
    if not planned.screens:
        return planned

    def look() -> dict[int, str]:
        return _unchanged(planned.runs, store) if all(store.done(stage.id) for stage in planned.screens) else {}

    why = ranks.from_main(look) if ranks else look()
    return replace(planned, runs=[plan_run(replace(layout, unchanged=why.get(i))) for i, layout in enumerate(planned.layouts)])


def _unchanged(runs: Sequence[PlannedRun], store: Store) -> dict[int, str]:
    """Return place of a run → why its causes are not measured.

    Runs that differ in their seed alone are kept together: what may be said of them is said of all. So each has to be too small by itself,
    and all of them together.
    """
    folders = {i: store.path(run.screen.id) for i, run in enumerate(runs) if run.screen is not None}
    read = {i: Measurement.from_json(read_json(folder / MEASUREMENT)) for i, folder in folders.items()}
    under_prompts = {runs[i].trait: each.references["base"].effect for i, each in read.items() if isinstance(runs[i].run.arm, Prompted)}
    prompted = {trait: each.yardstick for trait, each in under_prompts.items() if each}

    def reason(effect: Effect | None, trait: str | None) -> str | None:
        found = too_small(effect.estimate, effect.within_noise, prompted.get(trait)) if effect else None
        return found and f"{UNCHANGED}, and {found[1]}"

    found: dict[int, str] = {}
    for _, group in itertools.groupby(read, key=lambda i: (runs[i].run.arm, runs[i].adapter, dict(runs[i].run.settings))):
        places, effects = list(group), list[Effect | None]()
        if len(places) > 1:
            effects.append(Effect.over_runs(np.stack([load_file(folders[i] / "arrays.safetensors")["effects"] for i in places])))
        effects += [read[i].headline.effect for i in places]
        reasons = [reason(effect, runs[places[0]].trait) for effect in effects]
        if all(reasons):
            found |= {i: why for i, why in zip(places, reasons[-len(places) :], strict=True) if why}
    return found
