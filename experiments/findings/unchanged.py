"""Runs whose trait score is not seen to change: in a study with `only_changed`, what causes a change is not measured of them."""

import itertools
from collections.abc import Sequence

from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.store import Store, read_json
from wellworn.experiments.findings.statements import too_small
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.plan.planned import Plan, PlannedRun
from wellworn.experiments.stages.measurement import MEASUREMENT, Measurement
from wellworn.lora.arms import Prompted

UNCHANGED = "what causes a change is measured only where the trait score changes (only_changed)"


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

    unchanged = ranks.from_main(look) if ranks else look()
    return plan(planned.study, planned.knock_in.context if planned.knock_in else planned.context, unchanged) if unchanged else planned


def _unchanged(runs: Sequence[PlannedRun], store: Store) -> dict[int, str]:
    """Return place of a run → why its causes are not measured; runs that differ in their seed alone are kept together."""
    read = {
        i: Measurement.from_json(read_json(store.path(run.screen.id) / MEASUREMENT)) for i, run in enumerate(runs) if run.screen is not None
    }
    prompted = {
        runs[i].trait: effect.estimate
        for i, each in read.items()
        if isinstance(runs[i].run.arm, Prompted)
        and (effect := each.references["base"].effect)
        and effect.value > 0
        and not effect.within_noise
    }

    def why(i: int) -> str | None:
        effect = read[i].headline.effect
        found = too_small(effect.estimate, effect.within_noise, prompted.get(runs[i].trait)) if effect else None
        return found and f"{UNCHANGED}, and {found[1]}"

    found: dict[int, str] = {}
    alike = itertools.groupby(read, key=lambda i: (runs[i].run.arm, runs[i].adapter, dict(runs[i].run.settings)))
    for reasons in ({i: why(i) for i in places} for _, places in alike):
        if all(reasons.values()):
            found |= {i: reason for i, reason in reasons.items() if reason}
    return found
