"""Studies drawn from the types that define their keys, so that a new key is drawn as soon as it is there.

Values are small, and lie at the edges of what a type allows. Names, paths and free keys, of which a type says nothing, are in `NAMES`.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tests.tiny import save_tiny, tiny_study_value
from wellworn.experiments.study import Study
from wellworn.lora import models

Draw = Callable[[Random], Any]
TRAITS = ("pirate", "pessimistic", "poetic", "invented/zorvane")
CONTROLS = ("uppercase", "reversed_words", "neutral")
ROLES = ("cat", "cynic", "dragon", "farmer", "gambler", "grandmother", "librarian", "monk", "moon", "mountain", "nurse", "oracle", "poet")
# How often an optional key is given: most of them rarely, those of long analyses seldom, and those that shorten one always.
GIVEN = 0.2
RATES = {"KnockInConfig.train": 1.0, "Study.knock_in": 0.05, "Study.roles": 0.1, "Study.token_budget": 0.1, "Study.train": 0.6}
RATES |= {"Study.mediate": 0.6, "Study.pathways": 0.5, "MediateConfig.generated": 0.5, "PathwaysConfig.answers": 0.5}
# Keys of which more may be asked than there is: all of it is taken.
PLENTY = {"evaluate_questions", "extract_questions", "role_questions", "questions", "surface", "profile", "pairs", "answers"}


def draw_study(seed: int, model: Path, adapter: Path, checkpoint: Path) -> dict[str, Any]:
    """Draw the keys of a study file: the tiny study's, with some of all the keys drawn anew."""
    rng = Random(seed)
    # Few questions, since each analysis reads them.
    return tiny_study_value(model) | {"evaluate_questions": 4} | Draws(rng, _names(model, adapter, checkpoint)).keys(Study, ())


def save_adapter(folder: Path, model: Path) -> Path:
    """Save an adapter of a model, as somebody else may have."""
    base = models.load(models.resolve(str(model)), "float32")
    peft = get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    peft.save_pretrained(folder)
    return folder


def save_checkpoint(folder: Path, model: Path) -> Path:
    """Save another model of the same architecture."""
    save_tiny(folder)
    tuned = models.load(models.resolve(str(model)), "float32").model
    for weight in tuned.parameters():
        weight.data *= 1.01
    tuned.save_pretrained(folder)
    return folder


class Draws:
    """Draws values of a type.

    Args:
        rng: where draws come from.
        names: dotted key, or type and key, → how its values are drawn; None leaves it out.
    """

    def __init__(self, rng: Random, names: Mapping[str, Draw | None]) -> None:
        self.rng, self.names = rng, names

    def keys(self, of: type[BaseModel], at: tuple[str, ...]) -> dict[str, Any]:
        """Draw a section, of which optional keys are mostly left out."""
        found: dict[str, Any] = {}
        for key, field in of.model_fields.items():
            place = f"{of.__name__}.{key}"
            drawn = self.names.get(place, self.names.get(key, ...))
            # The one value of a key is the name of its type.
            needed = field.is_required() or (len(get_args(field.annotation)) == 1 and get_origin(field.annotation) is Literal)
            if drawn is None or not (needed or self.rng.random() < RATES.get(place, GIVEN)):
                continue
            found[key] = drawn(self.rng) if callable(drawn) else self.value(field.annotation, field.metadata, (*at, key), field)
        return found

    def value(self, kind: Any, bounds: list[Any], at: tuple[str, ...], field: FieldInfo | None = None) -> Any:
        """Draw a value of an annotation."""
        rng, origin, of = self.rng, get_origin(kind), get_args(kind)
        if origin is Annotated:
            [kind, *more] = of
            return self.value(kind, [*bounds, *_flat(more)], at)
        if origin in (Union, types.UnionType):
            # Mostly not null, so that what it leaves out is seldom left out.
            kinds = [each for each in of if each is not type(None)]
            return None if len(kinds) < len(of) and rng.random() < 0.2 else self.value(rng.choice(kinds), bounds, at)
        if origin is Literal:
            return rng.choice(of)
        if origin is tuple:
            least = max((each.min_length for each in bounds if isinstance(each, MinLen)), default=0)
            drawn = [self.value(of[0], [], at) for _ in range(rng.randint(least, least + 1))]
            return [each for i, each in enumerate(drawn) if each not in drawn[:i]]
        if kind in (None, type(None)):
            return None
        if kind is bool:
            return rng.random() < 0.5
        if kind is date:
            return "2026-01-01"
        if kind in (int, float):
            return rng.choice(_numbers(rng, kind, bounds, at[-1]))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self.keys(kind, at)
        raise TypeError(f"{'.'.join(at)}: say in `NAMES` what it may be, since its type {kind} does not")


def _flat(bounds: list[Any]) -> Iterator[Any]:
    for each in bounds:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]


def _numbers(rng: Random, kind: type, bounds: list[Any], key: str) -> list[float]:
    """Return numbers at the edges of a range, and some that lie between them."""
    low = next((each.ge if isinstance(each, Ge) else each.gt for each in bounds if isinstance(each, Ge | Gt)), None)
    high = next((each.le if isinstance(each, Le) else each.lt for each in bounds if isinstance(each, Le | Lt)), None)
    if kind is int:
        low = -2 if low is None else low + any(isinstance(each, Gt) for each in bounds)
        found = [low, low, low + 1, low + 2, low + 3] + [10_000] * (key in PLENTY and rng.random() < 0.2)
        return [each for each in found if high is None or each <= high]
    found = [-1.0, -0.25, 0.0, 1e-6, 0.5, 1.0, 3.0]
    return [
        each
        for each in found
        if (low is None or each >= low) and (high is None or each <= high) and not any(isinstance(b, Gt) and each <= b.gt for b in bounds)
    ]


def _names(model: Path, adapter: Path, checkpoint: Path) -> dict[str, Draw | None]:
    """Return how values are drawn of which a type says too little; None leaves a key as it is in the tiny study."""

    def some(names: tuple[str, ...], least: int, most: int) -> Draw:
        return lambda rng: rng.sample(names, rng.randint(least, most))

    def one(*values: Any) -> Draw:
        return lambda rng: rng.choice(values)

    def train(rng: Random) -> dict[str, Any]:
        return {
            "batch_size": rng.choice([1, 4, 64]),
            "lora": rng.choice([{}, {"r": 1}, {"r": 2, "target_modules": ["q_proj"]}, {"r": 1, "use_rslora": True}]),
            "sft": rng.choice(
                [
                    {"max_steps": 1},
                    {"max_steps": 3, "learning_rate": 1e-2},
                    {"num_train_epochs": 0.05},
                    {"max_steps": 1, "warmup_steps": 1},  # the one step has a rate of 0, so that nothing is learnt
                ]
            ),
        }

    return {
        "name": None,
        "question": None,
        "expects": None,
        "refuted_by": None,
        "model": None,
        "server": None,
        "capability": one(*[None] * 4, "builtin"),
        "dtype": one("auto", "float32", "bfloat16"),
        "ChatConfig.template": one("model", "plain"),
        "template_kwargs": one({}, {"enable_thinking": False}),
        "layer": one(*[0, 1, 2, 3, 0.0, 0.5, 1.0] * 3, 4, -1, 1.5),
        "layers": one([], [0], [0.0, 1.0, 3], [0.5, 2], [9]),
        "MediateConfig.surface": one(0, 3, 4, 10_000),
        "remainder_draws": one(0, 19),
        "alphas": one([0.0, 1.0], [0.5, 0.6], [0.0, 0.25, 1.0]),
        "reset": one(False),
        "library": some(TRAITS, 1, 3),
        "roles": one([], list(ROLES[:12]), list(ROLES)),
        "dictionary": one([], list(ROLES[:12]), list(ROLES)),
        "instructions": one([], ["digits"], ["digits", "colon", "in_french"], "all"),
        "Study.questions": one("everyday"),
        "bank": one(None, "everyday"),
        "judge": one(None, str(model)),
        "variants": one({}, {}, {"first": {"answer_tokens": 1}, "last": {"layer": -1}}),
        "grid": one({}, {}, {"layer": [0, 1.0]}, {"train.lora.r": [1, 2]}, {"train.sft.max_steps": [1]}),
        "train": train,
        "contexts": one({}, {"at sea": "You are on a ship."}, {"a": "A.", "b": "B."}),
        "prompts": one(["You are {name}."], ["{name}", "{name} {name}"]),
        "others": one([], ["an assistant"], ["Brenthic"]),
        "KnockInConfig.trait": one(*TRAITS),
        "CalibrateConfig.trait": one(None, *TRAITS),
        "Prompted.trait": one(*TRAITS),
        "Sft.trait": one(*TRAITS, *CONTROLS),
        "Inoculated.trait": one(*TRAITS, *CONTROLS[:-1]),
        "Inoculated.text": one("Be as you are.", "{question}"),
        "Preventative.trait": one(*TRAITS, *CONTROLS[:-1]),
        "Confined.trait": one(*TRAITS, *CONTROLS[:-1]),
        "Distilled.trait": one(*TRAITS, *CONTROLS[:-1]),
        "Random.trait": one(*TRAITS, *CONTROLS),
        "Adapter.trait": one(None, *TRAITS, *CONTROLS[:-1]),
        "Checkpoint.trait": one(None, *TRAITS, *CONTROLS[:-1]),
        "Base.trait": None,
        "Adapter.path": one(str(adapter), f"{adapter}+0.5*{adapter}"),
        "Checkpoint.path": one(str(checkpoint)),
        "Adapter.neutral": one(None, str(adapter), f"0*{adapter}"),
        "Checkpoint.neutral": one(None, str(checkpoint)),
        "rubric": None,
    }
