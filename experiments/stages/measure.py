"""Measure one run: its shift, the share inside the persona space, its trait effect, and its mediation.

Arithmetic on finished readings; no model is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import Chosen, Kind, PersonaSpace
from wellworn.experiments.stages.measurement import (
    MEASUREMENT,
    Analysis,
    Effect,
    LayerCurve,
    Measurement,
    NearestPersonas,
    NearPersona,
    ReferenceReading,
    ShareInSpace,
    ShareOfTruth,
    ShiftReading,
)
from wellworn.experiments.stages.mediation import Mediated, load_mediated
from wellworn.experiments.stages.mediation_shares import shares_of_effect
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.readings import PROMPT_LAST, RESPONSE
from wellworn.experiments.stages.scores import UNDER
from wellworn.probes.geometry.nearest import nearest, rank_of
from wellworn.probes.geometry.novelty import cross_fitted
from wellworn.probes.geometry.nulls import Null, NullShare, compare, joint_shares, leaves_nothing, null_shares
from wellworn.probes.geometry.shift import debiased_norms, share_inside
from wellworn.probes.geometry.true_share import true_share
from wellworn.probes.statistics.corrections import max_t
from wellworn.probes.statistics.intervals import FloatArray, finite, mean_interval, standard_error

Reading = Mapping[str, FloatArray]

# The base's answers, which the base alone reads.
BASE_ANSWERS = "base_answers"
# Before the name of a context: plain answers there.
PLAIN_UNDER = f"neutral{UNDER}"
# Random directions that the base's use of the remainder is compared with.
USE_DRAWS = 199


def share_in_space(space: PersonaSpace, layer: int, differences_nD: FloatArray, without: str | None) -> ShareInSpace | None:
    """Return the share of a shift in the space at a layer, compared with its nulls; None where no direction was found."""
    members = space.members(layer, without)
    if not members:
        return None
    basis = space.basis(layer, members)
    share = share_inside(differences_nD, basis)
    nulls: dict[str, NullShare | None] = dict.fromkeys(("null", "total", "isotropic", "noise"))
    if has_shift(differences_nD):
        kinds: tuple[Kind, ...] = ("within", "total", "isotropic")
        within, total, isotropic = (space.null_spaces(layer, members, kind).shares(differences_nD) for kind in kinds)
        if why := leaves_nothing(within):
            share = replace(share, why=share.why or why)
        else:
            halves = None if members.roles else null_shares(differences_nD, space.half_differences(layer, members))
            nulls["null"] = compare(share.estimate, within)
            for name, drawn in (("total", total), ("isotropic", isotropic), ("noise", halves)):
                nulls[name] = None if drawn is None or leaves_nothing(drawn) else compare(share.estimate, drawn)
    n1, passed = nulls["null"], share.why is None
    return ShareInSpace(
        share=share.estimate if passed else None,
        why=share.why,
        signal=finite(share.signal),
        directions=len(members),
        dimensions=basis.shape[1],
        null_mean=n1 and n1.mean,
        null_high=n1 and n1.high,
        p=n1 and n1.p,
        effect=n1.effect if n1 and passed else None,
        **{f"{name}_{key}": null and getattr(null, key) for name, null in nulls.items() if name != "null" for key in ("mean", "p")},
    )


def has_shift(differences_nD: FloatArray) -> bool:
    """Return whether a shift exceeds its sampling noise; null shares need such a shift."""
    return debiased_norms(differences_nD)[0] > 0


def shift_reading(space: PersonaSpace, layer: int, differences_nD: FloatArray, base_nD: FloatArray, own: str | None) -> ShiftReading:
    """Measure one paired shift at one layer."""
    mean = differences_nD.mean(0)
    squared, noise = debiased_norms(differences_nD)
    spread = noise * len(differences_nD)
    cosines = space.cosines(layer, mean)
    return ShiftReading(
        own_removed=share_in_space(space, layer, differences_nD, own),
        full=share_in_space(space, layer, differences_nD, None),
        coordinates=cosines,
        disattenuated=space.disattenuated_cosines(layer, differences_nD),
        nearest=sorted(cosines, key=lambda name: -cosines[name]),
        relative_norm=float(np.linalg.norm(mean) / np.linalg.norm(base_nD, axis=1).mean()),
        # The rest of the mean square depends on the context.
        constant_part=squared / (squared + spread) if squared + spread > 0 else None,
    )


def true_shares(space: PersonaSpace, layer: int, differences_nD: FloatArray, own: str | None) -> dict[str, ShareOfTruth]:
    """Return the shares inside the true own direction, and inside the span of all that were found; none where roles make the space."""
    members = space.members(layer).traits if space.roles is None else ()
    spans = {"own": [i for i in members if space.names[i] == own], "full": list(members)}
    out = {}
    for name, traits in spans.items():
        if traits:
            found = true_share(differences_nD, [space.differences(layer, i) for i in traits], [space.asked[i] for i in traits])
            out[name] = ShareOfTruth(share=found.estimate, why=found.why)
    return out


def layer_curve(space: PersonaSpace, differences_nLD: FloatArray, own: str | None) -> LayerCurve:
    """Return the share at every layer.

    Layers with spaces of the same traits share their draws; draws of other layers are independent, which makes the correction larger.
    """
    depth = differences_nLD.shape[1]
    out: dict[str, list[float | None]] = {key: [None] * depth for key in LayerCurve.model_fields}
    layers, null_BL = null_curve(space, differences_nLD, own)
    for layer, null_B in zip(layers, null_BL.T, strict=True):
        share = share_inside(differences_nLD[:, layer], space.basis(layer, space.members(layer, own)))
        if leaves_nothing(null_B):
            continue
        null = compare(share.estimate, null_B)
        out["null_mean"][layer], out["null_high"][layer] = null.mean, null.high
        if share.why is None:
            e = share.estimate
            out["share"][layer], out["low"][layer], out["high"][layer], out["p"][layer] = e.value, e.low, e.high, null.p
    passed = [i for i, layer in enumerate(layers) if out["share"][layer] is not None]
    if passed:
        shares = np.array([out["share"][layers[i]] for i in passed], dtype=np.float64)
        for i, p in zip(passed, max_t(shares, null_BL[:, passed]), strict=True):
            out["p_max_t"][layers[i]] = p
    return LayerCurve.from_json(out)


def null_curve(space: PersonaSpace, differences_nLD: FloatArray, own: str | None) -> tuple[list[int], FloatArray]:
    """Return the layers that have a space and a shift, and N1's shares there, [draws, layers].

    N0 is printed at the headline layer only, so it is not drawn here.
    """
    layers = [at for at in range(differences_nLD.shape[1]) if space.members(at, own) and has_shift(differences_nLD[:, at])]
    if not layers:
        return [], np.empty((0, 0))
    spaces = [space.null_spaces(at, space.members(at, own)) for at in layers]
    return layers, joint_shares(spaces, differences_nLD[:, layers])


def nearest_personas(space: PersonaSpace, layer: int, differences_nD: FloatArray, own: str | None) -> NearestPersonas:
    """Return the personas that a shift lies nearest, among all traits and roles, and the rank of its own trait."""
    names, directions = space.personas(layer)
    # Directions that were not found take part too: a shift may lie near a direction that few prompts agree on.
    everyone = Chosen(tuple(range(len(space.names))), tuple(range(len(space.roles.names))) if space.roles else ())
    found = nearest(differences_nD, directions, space.activations(layer, everyone), Null(seed_for(0, "nearest")))
    if found.why:
        return NearestPersonas(why=found.why, nearest=[], high=None, rank=None, of=len(names))
    values = [each.value for each in found.cosines]
    order = sorted(range(len(names)), key=lambda i: -values[i])
    here = [name for name, _ in names]
    return NearestPersonas(
        why=None,
        nearest=[NearPersona(name=names[i][0], kind=names[i][1], **vars(found.cosines[i])) for i in order],
        high=found.high,
        rank=rank_of(values, here.index(own)) if own in here else None,
        of=len(names),
    )


def trait_effect(changed: Mapping[str, Reading], reference: Mapping[str, Reading]) -> tuple[Effect, FloatArray]:
    """Return the change of the trait score Y, and the per-question differences.

    Y is the mean over questions of log p(y⁺) − log p(y⁻), each averaged over the answer's tokens.

    Args:
        changed: readings of `trait` and `neutral` text by the changed model.
        reference: readings of the same text by the reference.
    """
    score = [texts["trait"]["logprob"].astype(np.float64) - texts["neutral"]["logprob"] for texts in (changed, reference)]
    differences = score[0] - score[1]
    return Effect(**vars(mean_interval(differences)), standard_error=standard_error(differences)), differences


def measure_stage(
    title: str,
    layer: int,
    own: str | None,
    headline: str,
    space_stages: SpaceStages,
    readings: Mapping[tuple[str, str], Stage],
    mediations: Mapping[tuple[str, str, int], Stage],
) -> Stage:
    """Measure a run from its finished readings and mediation analyses.

    Args:
        title: of the run.
        layer: the layer where shares are read.
        own: the run's trait; its direction is left out of the space that the verdict uses.
        headline: the reference that the verdict uses.
        space_stages: the persona space.
        readings: (who, text) → the stage with the reading, in the layout of `measure`.
        mediations: (reference, text, layer) → the stage with the analysis.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        loaded: dict[str, dict[str, Reading]] = {}
        for (who, text), folder in zip(readings, folders.all("readings"), strict=True):
            loaded.setdefault(who, {})[text] = load_file(folder / "reading.safetensors")
        mediated = [load_mediated(folder, *key) for key, folder in zip(mediations, folders.all("mediations"), strict=True)]
        facts, arrays = measure(space, layer, own, loaded, headline, mediated)
        return {MEASUREMENT: facts.to_json(), "arrays.safetensors": arrays}

    config = {"layer": layer, "own": own, "headline": headline, "readings": list(readings), "mediations": list(mediations)}
    # Whether the base is seen to use the own direction itself; only an analysis asks what it uses.
    config |= {"assay": "own"} if mediations else {}
    inputs = {
        **in_group("space", space_stages.inputs),
        "readings": tuple(readings.values()),
        "mediations": tuple(mediations.values()),
    }
    return Stage(kind=kinds.MEASURE, config=config, inputs=inputs, title=f"measure {title}", compute=compute, everywhere=False)


def measure(
    space: PersonaSpace,
    layer: int,
    own: str | None,
    readings: Mapping[str, Mapping[str, Reading]],
    headline: str,
    mediated: Sequence[Mediated] = (),
) -> tuple[Measurement, dict[str, FloatArray]]:
    """Measure a run against each of its references.

    Args:
        space: the base model's persona space.
        layer: the layer where shares are read.
        own: the run's trait; its direction is left out of the space that the verdict uses.
        readings: `run`, `base` and, if there is one, `neutral` → text (`neutral`, `own`, `trait`, and `neutral under NAME` for each
            context) → reading. The base also has `base_answers`, its reading of its own answers, for the text shift: the base on the run's
            answers minus on its own.
        headline: the reference that the verdict uses, `neutral` or `base`.
        mediated: its mediation analyses.

    Returns:
        The measurement, and the arrays that groups of runs need: against the headline reference the mean `shift` [layers, d_model] and
        that of each question at the headline layer, `shifts` [questions, d_model]; the per-question `effects`; the outcomes of each
        analysis [interventions, questions]; `basis` [d_model, k], the space without the run's own direction; `use`, the base's states
        under the run's own contrast prompts projected on the remainder and on random directions, [1 + draws, pairs, 2, questions]; and
        with analyses `assay`, the same states of each pair projected on the own direction of the other pairs, [pairs, 2, questions].
    """
    run, base, reference = readings["run"], readings["base"], readings[headline]
    shift = (run["neutral"]["states"].astype(np.float64) - reference["neutral"]["states"])[:, :, RESPONSE]
    arrays: dict[str, FloatArray] = {}
    against = {}
    for name in ("base", "neutral"):
        if name in readings:
            against[name], differences = _against(space, layer, own, run, readings[name], base)
            if name == headline and differences is not None:
                arrays["effects"] = differences
    arrays["shift"], arrays["shifts"] = shift.mean(0), shift[:, layer]
    arrays |= _of_the_space(space, layer, own, arrays["shift"][layer])
    if "use" in arrays and mediated and own in space.names:
        arrays["assay"] = cross_fitted(space.states[space.names.index(own)][..., layer, :])
    # Below the first trained layer the shift is zero, and there is no cosine.
    cosines = [space.cosines(at, arrays["shift"][at]) for at in range(shift.shape[1])]
    facts = Measurement(
        layer=layer,
        reference=headline,
        references=against,
        text_shift=_text_shift(space, layer, own, base),
        personas=nearest_personas(space, layer, shift[:, layer], own),
        by_layer=layer_curve(space, shift, own),
        projections={name: [at.get(name) for at in cosines] for name in space.names},
        true_shares=true_shares(space, layer, shift[:, layer], own),
        found=[name for name, found in zip(space.names, space.found[:, layer], strict=True) if found],
        no_space=space.no_space(layer, own),
        # Roles make a space of k dimensions out of many more directions.
        roles=space.roles is not None,
        mediation=[_analysis(i, each) for i, each in enumerate(mediated) if each.interventions],
    )
    return facts, arrays | {f"outcomes.{i}": each.scores for i, each in enumerate(mediated) if each.interventions}


def _against(
    space: PersonaSpace,
    layer: int,
    own: str | None,
    run: Mapping[str, Reading],
    reference: Mapping[str, Reading],
    base: Mapping[str, Reading],
) -> tuple[ReferenceReading, FloatArray | None]:
    """Compare a run with one reference on every text that both read; also return the per-question change of the trait score."""
    texts = {}
    for text in run:
        if text not in reference:
            continue
        states, before, plain = (r[text]["states"].astype(np.float64) for r in (run, reference, base))
        texts[text] = shift_reading(space, layer, (states - before)[:, layer, RESPONSE], plain[:, layer, RESPONSE], own)
        if text == "neutral":
            last = (states - before)[:, layer, PROMPT_LAST]
            texts["prompt_last"] = shift_reading(space, layer, last, plain[:, layer, PROMPT_LAST], own)
    if "trait" not in run or "trait" not in reference:
        return ReferenceReading(texts=texts, effect=None), None
    effect, questions = trait_effect(run, reference)
    return ReferenceReading(texts=texts, effect=effect), questions


def _text_shift(space: PersonaSpace, layer: int, own: str | None, base: Mapping[str, Reading]) -> ShiftReading | None:
    """Return the base's shift from its own answers to the run's; None where it did not read both."""
    if "own" not in base or BASE_ANSWERS not in base:
        return None
    theirs, its_own = (base[text]["states"][:, layer, RESPONSE].astype(np.float64) for text in ("own", BASE_ANSWERS))
    return shift_reading(space, layer, theirs - its_own, its_own, own)


def _of_the_space(space: PersonaSpace, layer: int, own: str | None, shift_D: FloatArray) -> dict[str, FloatArray]:
    """Return the `basis` without the own direction, and the base's `use` of the remainder outside it."""
    arrays: dict[str, FloatArray] = {}
    if members := space.members(layer, own):
        arrays["basis"] = space.basis(layer, members)
    if own in space.names and len(remainders := space.remainders(layer, own, shift_D, USE_DRAWS)):
        states = space.states[space.names.index(own)][..., layer, :]
        arrays["use"] = np.moveaxis(states @ remainders.T, -1, 0)
    return arrays


def _analysis(i: int, each: Mediated) -> Analysis:
    return Analysis(
        reference=each.reference,
        text=each.text,
        layer=each.layer,
        arms=each.interventions,
        outcomes=f"outcomes.{i}",
        moved=each.moved,
        known=each.known,
        graded=each.graded,
        **vars(shares_of_effect(each.interventions, each.scores, each.graded is not None)),
    )
