"""The types of `measurement.json`, the measurement of one run. Its arrays are in a file next to it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from wellworn.experiments.engine.record import Interval, Record
from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS, ChanceShares
from wellworn.probes.statistics.intervals import Estimate, FloatArray, crossed_interval, standard_error

MEASUREMENT = "measurement.json"


class ShareInSpace(Record):
    """The share F of a shift that lies inside a space, compared with its nulls.

    Attributes:
        share: F, debiased; null where it failed a gate.
        why: the gate that it failed, in words.
        signal: ‖m‖² over trΣ̂/n, the shift's squared norm over its sampling noise.
        directions: the number of directions that span the space.
        dimensions: the number of its dimensions; fewer where some directions are combinations of others.
        null_mean: the mean share in null N1: spaces made of random directions with the covariance of activations within a question.
        null_high: its 95 % quantile.
        p: (1 + draws of N1 with at least F) / (1 + draws).
        effect: F* = (F − null_mean) / (1 − null_mean), the share beyond chance.
        total_mean: the mean of N1 with the covariance of all activations, which is too lenient.
        total_p: its p.
        noise_mean: the mean of null N3: spaces of half-differences of the traits' contrast pairs.
        noise_p: its p.
        isotropic_mean: the mean of null N0: isotropic random directions, for comparison only.
        isotropic_p: its p.
    """

    share: Interval | None
    why: str | None
    signal: float | None
    directions: int
    dimensions: int
    null_mean: float | None
    null_high: float | None
    p: float | None
    effect: Interval | None
    total_mean: float | None
    total_p: float | None
    noise_mean: float | None
    noise_p: float | None
    isotropic_mean: float | None
    isotropic_p: float | None


class ShareOfTruth(Record):
    """The share of a shift inside the span of the true directions, without the noise of the measured ones (errors-in-variables).

    Attributes:
        share: the share; null where it is refused.
        why: what refused it, in words.
    """

    share: Interval | None
    why: str | None


class ShiftReading(Record):
    """One paired shift at the run's layer.

    Attributes:
        own_removed: its share in the space without the run's own direction; null where no other direction was found.
        full: its share in the space with that direction.
        coordinates: the signed cosine of its mean with every direction of the library.
        disattenuated: the same, corrected for the noise of both; null where either is too noisy.
        nearest: the library's names, largest cosine first.
        relative_norm: ‖m‖ over the mean norm of the base's states.
        constant_part: the fraction of the mean square shift that does not depend on the context; null without any shift.
    """

    own_removed: ShareInSpace | None
    full: ShareInSpace | None
    coordinates: Mapping[str, float]
    disattenuated: Mapping[str, float | None]
    nearest: Sequence[str]
    relative_norm: float
    constant_part: float | None


class Effect(Record):
    """The change of the trait score: the mean over questions of log p(y⁺) − log p(y⁻), in nats per token.

    Attributes:
        value: the change.
        low: lower 95 % bound.
        high: upper 95 % bound.
        standard_error: of the change.
    """

    value: float
    low: float
    high: float
    standard_error: float

    @property
    def estimate(self) -> Estimate:
        """The change with its interval."""
        return Estimate(self.value, self.low, self.high)

    @classmethod
    def over_runs(cls, effects_RQ: FloatArray) -> "Effect":
        """Return the joint change of runs that differ in their seed alone, from their changes at each question."""
        return cls(**vars(crossed_interval(effects_RQ)), standard_error=standard_error(effects_RQ))

    @property
    def yardstick(self) -> Estimate | None:
        """The change of a system prompt, which others are compared with; None where it is not seen to be above 0."""
        return self.estimate if self.value > 0 and not self.within_noise else None

    @property
    def within_noise(self) -> bool:
        """Whether it is no more than 3 standard errors, so that shares of it mean nothing."""
        return abs(self.value) <= MIN_STANDARD_ERRORS * self.standard_error


class ReferenceReading(Record):
    """A run compared with one of its references.

    Attributes:
        texts: text (`neutral`, `trait`, `own` answers, and `prompt_last`; in each context of the study also `neutral under NAME`) → the
            shift on it.
        effect: the change of the trait score; null where the run has no trait of its own.
    """

    texts: Mapping[str, ShiftReading]
    effect: Effect | None


class NearPersona(Record):
    """A persona near a shift.

    Attributes:
        name: the trait or role.
        kind: `trait` or `role`.
        value: the cosine of the shift with its direction, corrected for the shift's noise.
        low: lower 95 % bound over prompts.
        high: upper 95 % bound.
    """

    name: str
    kind: Literal["trait", "role"]
    value: float
    low: float
    high: float


class NearestPersonas(Record):
    """The personas that a shift lies nearest.

    Attributes:
        why: why there are none, in words.
        nearest: all traits and roles, nearest first.
        high: the 95 % quantile of the largest cosine with as many random directions.
        rank: the rank of the run's own trait among them, from 1; null where it is not among them.
        of: how many personas there are.
    """

    why: str | None
    nearest: Sequence[NearPersona]
    high: float | None
    rank: int | None
    of: int


class LayerCurve(Record):
    """The headline share at every layer; null where there is none.

    Attributes:
        share: F.
        low: lower 95 % bound.
        high: upper 95 % bound.
        null_mean: the mean of N1.
        null_high: its 95 % quantile.
        p: against N1.
        p_max_t: p corrected for all layers by max-T.
    """

    share: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    null_mean: Sequence[float | None]
    null_high: Sequence[float | None]
    p: Sequence[float | None]
    p_max_t: Sequence[float | None]


class PartShares(Record):
    """The share of an effect that goes through one part of the state.

    Attributes:
        sufficiency: S, the part put into the reference.
        necessity: N, the part taken out of the run.
        mediated: M, the mean of the two.
        order_dependence: the smaller and the larger of S and N; not an interval.
    """

    sufficiency: Interval
    necessity: Interval
    mediated: Interval
    order_dependence: Sequence[float]


class Dose(Record):
    """The share of the effect that the persona part alone causes at one scale.

    Attributes:
        scale: the factor that multiplies it.
        value: the share.
        low: lower 95 % bound; null where it is infinite.
        high: upper 95 % bound; null where it is infinite.
    """

    scale: float
    value: float
    low: float | None
    high: float | None


class EffectShares(Record):
    """An effect (TE, the total effect), and the share of it that goes through each part of the state.

    Attributes:
        effect: TE, after minus before.
        standard_error: of TE.
        why: why there are no shares, in words.
        shares: part of the state → its shares. `inside` is the persona space without the own direction, `outside` the rest. `whole` is
            the whole state, `full` the space with the own direction, `own` that direction. `everywhere` is `inside` at all layers.
            `remainder` is the part of the mean shift outside the space.
        null: the shares that random spaces of the same size mediate.
        mediated_of_carried: C = (M − chance) / (M of the whole − chance), as a share of what the layer carries.
        carried_why: why there is no C, in words.
        shapley: TE shared out among `existing` (the persona part), `new` (the rest of the state) and `reading` (above the layer).
        doses: the persona part at several scales.
        left_out: number of questions without a grade under some intervention; null where nothing was graded.
        bounds: TE if each missing grade were 0 or 100, whichever is worse.
    """

    effect: Interval | None
    standard_error: float | None
    why: str | None
    shares: Mapping[str, PartShares]
    null: ChanceShares | None
    mediated_of_carried: Interval | None
    carried_why: str | None
    shapley: Mapping[str, Interval]
    doses: Sequence[Dose]
    left_out: int | None = None
    bounds: Sequence[float] | None = None


class Known(Record):
    """How well a score discriminates answers of known label.

    Attributes:
        shown: its mean over answers that show the trait.
        absent: its mean over answers that do not.
        separation: AUROC: how often the former score above the latter.
        of: how many answers have a score, and how many there are.
    """

    shown: float | None
    absent: float | None
    separation: float | None
    of: Sequence[int]


class Graded(Record):
    """The judge that graded answers.

    Attributes:
        judge: the model's name.
        drawn: whether grades are means of sampled replies.
        failures: reason → how many grades are missing for it.
    """

    judge: str
    drawn: bool
    failures: Mapping[str, int]


class Analysis(EffectShares):
    """One mediation analysis of a run.

    Attributes:
        reference: `neutral` or `base`.
        text: the scored text. `trait`: held-out answers. `surface`: training-like answers. `response`: held-out answers, patched at the
            response's tokens alone. `generated`: the patched models' own answers.
        layer: the layer where activations were patched.
        arms: names of the interventions.
        outcomes: the array with the outcomes, [interventions, questions].
        moved: part → its share of Σ‖h1 − h0‖² over all patched tokens.
        known: how well the score of generated answers discriminates answers of known label; null for fixed text.
        graded: the judge of the generated answers; null where none graded them.
    """

    reference: str
    text: str
    layer: int
    arms: Sequence[str]
    outcomes: str
    moved: Mapping[str, float]
    known: Known | None = None
    graded: Graded | None = None


class Measurement(Record):
    """The measurement of one run.

    Attributes:
        layer: the layer where shares are read.
        reference: the headline's reference, `neutral` or `base`.
        references: name → the run compared with it.
        text_shift: the base on the run's answers minus on its own: the change of the text, not of the weights.
        personas: the personas that the headline's shift lies nearest.
        by_layer: the headline's share at every layer.
        projections: trait → the cosine of the headline's shift with its direction at every layer.
        true_shares: `own` (the run's own direction alone) and `full` (all that were found) → the headline's share without the noise of
            directions. Empty where roles make the space.
        found: the traits with a direction found at the layer.
        no_space: why there is no persona space without the own direction, in words.
        roles: whether roles make the space together with the traits.
        mediation: the mediation analyses.
    """

    layer: int
    reference: str
    references: Mapping[str, ReferenceReading]
    text_shift: ShiftReading | None
    personas: NearestPersonas
    by_layer: LayerCurve
    projections: Mapping[str, Sequence[float | None]]
    true_shares: Mapping[str, ShareOfTruth]
    found: Sequence[str]
    no_space: str | None
    roles: bool
    mediation: Sequence[Analysis]

    @property
    def headline(self) -> ReferenceReading:
        """The run compared with its headline reference."""
        return self.references[self.reference]

    @property
    def plain(self) -> ShiftReading:
        """The headline's shift, on plain answers."""
        return self.headline.texts["neutral"]

    def analysis(self, text: str) -> Analysis | None:
        """Return the analysis of a text at the headline layer, against the headline reference (the base for `response`)."""
        where = ("base" if text == "response" else self.reference, text, self.layer)
        return next((each for each in self.mediation if (each.reference, each.text, each.layer) == where), None)

    @property
    def headline_analysis(self) -> Analysis | None:
        """The analysis that the verdict uses: of all tokens, or of the response's tokens where the change is a prompt."""
        return self.analysis("trait") or self.analysis("response")
