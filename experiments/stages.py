"""The stages that a study expands into, and what each computes; those of the persona space are in `library.py`.

directions → space;  train → answer → read → measure. Each stage is a function of its configuration and
its inputs; its folder is named by a hash of both, so studies share whatever they have in common. The
integer beside a stage's name is raised when its results change.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save

from data.chat import Chat, Encoded
from data.files import digest, sha256
from data.mixtures import Turn, fingerprint
from data.schema import Example, seed_for
from experiments.ranks import Ranks
from experiments.store import WORK, read_json, write_json
from experiments.study import Study
from lora import models
from lora.arms import TrainConfig
from lora.random_lora import random_lora
from probes.capture import Spec, read_variants
from probes.endpoint import check
from probes.stats import FloatArray
from probes.variants import Variant

# What a run is read at, in the order of the stored readings.
SPANS_READ = ("prompt_last", "response")
PROMPT_LAST, RESPONSE = range(2)

Output = Mapping[str, Any]
TickFn = Callable[..., None]


@dataclass(frozen=True)
class Together:
    """How several stages are computed in one go.

    Attributes:
        key: the same for all stages that may be.
        compute: (bench, input folders of each, own folder of each, tick) → files to write, of each.
    """

    key: str
    compute: Callable[["Bench", Sequence[list[Path]], Sequence[Path], TickFn], list[Output]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work.

    Attributes:
        kind: name of the stage, with `version` the integer beside it.
        config: plain JSON; all that decides the result apart from the inputs.
        inputs: stages whose folders are read.
        title: what to call it on screen; not part of the hash.
        compute: (bench, input folders, own folder, tick) → files to write.
        everywhere: whether all ranks take part, or rank 0 alone.
        check: run before anything is computed, if the stage is not finished.
        together: how to compute it along with others like it, where that is faster; results are the same.
    """

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple["Stage", ...]
    title: str
    compute: Callable[["Bench", list[Path], Path, TickFn], Output]
    everywhere: bool = True
    check: Callable[[], None] | None = None
    together: Together | None = None

    @cached_property
    def id(self) -> str:
        """`<kind>-<hash>`."""
        return f"{self.kind}-{digest([self.kind, self.version, self.config, [stage.id for stage in self.inputs]])}"

    def facts(self, seconds: float, along: Sequence["Stage"] = ()) -> dict[str, Any]:
        """Return what the manifest records: its part of the time, and which stages were computed in the same go."""
        return {
            "stage": self.kind,
            "version": self.version,
            "title": self.title,
            "config": self.config,
            "inputs": [stage.id for stage in self.inputs],
            "seconds": round(seconds, 3),
            "computed_with": [stage.id for stage in along if stage is not self],
        }


@dataclass
class Bench:
    """The model of a study, loaded when first needed, and how to talk to it; `spent` are dollars for answers of its server."""

    study: Study
    ranks: Ranks
    ref: models.ModelRef
    device: torch.device
    dtype: str
    depth: int
    replies: Path | None = None
    spent: float = 0.0
    _base: models.Loaded | None = field(default=None, repr=False)

    @classmethod
    def of(cls, study: Study, ranks: Ranks, replies: Path | None = None) -> "Bench":
        """Find the study's model without loading its weights; `replies` is the file that keeps what servers answer."""
        ref = ranks.from_main(lambda: models.resolve(study.model))
        device, dtype = models.device_and_dtype(study.dtype)
        return cls(study, ranks, ref, device, dtype, models.config_depth(ref, study.trust_remote_code), replies)

    def load(self) -> models.Loaded:
        """Load a fresh copy of the base."""
        return models.load(self.ref, self.dtype, self.study.trust_remote_code)

    @property
    def base(self) -> models.Loaded:
        """The shared copy of the base, never changed for longer than a `with`."""
        if self._base is None:
            self._base = self.load()
        return self._base

    def drop(self) -> None:
        """Free the shared copy, to make room for training."""
        self._base = None

    def chat(self, base: models.Loaded) -> Chat:
        """Return how to write conversations for the model."""
        return Chat(base.tokenizer, self.study.chat.template, self.study.chat.template_kwargs, base.max_length)

    def identity(self) -> dict[str, Any]:
        """Return what every stage's hash holds of the model."""
        return {"model": self.ref.id, "dtype": self.dtype, "chat": self.study.chat.model_dump(mode="json")}

    def speaker(self) -> dict[str, Any]:
        """Return what the hash of a stage that holds answers adds to that: the server that gives them, by its name for the model."""
        server = self.study.server
        return {"server": server.model, "more": server.more} if server else {}

    def check_speaker(self) -> None:
        """Find out before anything is computed whether that server, if there is one, can be asked at all."""
        if self.study.server:
            check(self.study.server)


@dataclass(frozen=True)
class Condition:
    """What the base is run under: a trained adapter, a system prompt, or nothing."""

    title: str = "base"
    adapter: Stage | None = None
    system: str | None = None

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The stage that makes the adapter, if any."""
        return (self.adapter,) if self.adapter else ()

    def under(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns as they are read under this condition."""
        return [Turn(t.question, t.answer, self.system) for t in turns] if self.system else list(turns)


def chat_stage(bench: Bench) -> Stage:
    """Note how conversations are written; a model that cannot be talked to is found out first of all."""

    def compute(bench: Bench, _inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        folded = bench.chat(bench.base).folds_system
        return {"chat.json": {"system_prompt": "folded into the first user turn" if folded else "taken by the template"}}

    return Stage("chat", 1, bench.identity(), (), "chat template", compute)


def train_stage(bench: Bench, turns: Sequence[Turn], config: TrainConfig, seed: int, title: str, answers_of: Stage | None = None) -> Stage:
    """Fine-tune a LoRA adapter; equal data and settings make an equal stage, whatever the trait is called.

    Args:
        bench: the study's model.
        turns: what it is trained on.
        config: how.
        seed: of the run.
        title: on screen.
        answers_of: a stage whose answers stand in place of the turns' own, in their order.
    """

    def compute(bench: Bench, inputs: list[Path], out: Path, tick: TickFn) -> Output:
        from lora.train import train_sft

        bench.drop()
        base = bench.load()
        taught = written(inputs[0], [turn.question for turn in turns]) if answers_of else turns
        rows = [bench.chat(base).training_row(turn) for turn in taught]
        curve = train_sft(
            base,
            rows,
            config,
            seed=seed_for(seed, "train"),
            out=out / "adapter",
            work=out / WORK,
            progress=lambda step, steps, loss: tick(step, steps, "" if loss is None else f"loss {loss:.2f}"),
        )
        return {"training.json": curve}

    def check() -> None:
        from lora.train import check_keys

        check_keys(config)

    plain = {**bench.identity(), "turns": fingerprint(turns), "train": config.model_dump(mode="json"), "seed": seed}
    return Stage("train", 2, plain, (answers_of,) if answers_of else (), title, compute, check=check)


def adapter_stage(bench: Bench, folder: Path, title: str) -> Stage:
    """Take in someone else's adapter: a copy, so that results never depend on the user's folder."""
    models.check_adapter(folder)
    names = ("adapter_config.json", "adapter_model.safetensors")

    def compute(bench: Bench, _inputs: list[Path], out: Path, _tick: TickFn) -> Output:
        models.check_fit(bench.base, folder)
        (out / "adapter").mkdir()
        (out / "adapter" / names[1]).write_bytes((folder / names[1]).read_bytes())
        models.copy_adapter_config(folder, out / "adapter")
        return {}

    config = {**bench.identity(), "files": {name: sha256(folder / name) for name in names}}
    return Stage("adapter", 1, config, (), title, compute, everywhere=False)


def random_stage(bench: Bench, real: Stage, turns: Sequence[Turn], layer: int, seed: int) -> Stage:
    """Draw a LoRA of random weights that shifts states at a layer, in the mean over some turns, as far as a trained one does."""

    def compute(bench: Bench, inputs: list[Path], out: Path, _tick: TickFn) -> Output:
        base, like = bench.base, adapter_of(inputs)
        assert like is not None  # the input is a `train` stage
        rows = [bench.chat(base).encode(turn) for turn in turns]
        # Every rank draws the same weights, into a folder of its own: the reading in between is shared.
        own = out / WORK / str(bench.ranks.rank)
        norm = random_lora(base, like, rows, layer, own, seed_for(seed, "random LoRA"))
        if bench.ranks.main:
            own.rename(out / "adapter")
        return {"random.json": {"norm": norm}}

    config = {**bench.identity(), "turns": fingerprint(turns), "layer": layer, "seed": seed}
    return Stage("random", 1, config, (real,), f"random weights in place of {real.title.removeprefix('train ')}", compute)


def written(folder: Path, asked: Sequence[str]) -> list[Turn]:
    """Return the turns of a stage's answers to questions."""
    return [Turn(question, full_stop(answer)) for question, answer in zip(asked, read_json(folder / "answers.json"), strict=True)]


def turns_of(texts: Sequence[Turn] | Stage, asked: Sequence[Example | Turn], inputs: Sequence[Path]) -> list[Turn]:
    """Return texts that are given, or what an answer stage, the last of the inputs, answered to questions."""
    return written(inputs[-1], [example.question for example in asked]) if isinstance(texts, Stage) else list(texts)


def full_stop(answer: str) -> str:
    """Return an answer, or a full stop in place of an empty one, which has no tokens to pool over, or to learn."""
    return answer or "."


def read_stage(bench: Bench, condition: Condition, texts: Sequence[Turn] | Stage, asked: Sequence[Example], title: str) -> Stage:
    """Read fixed text: states [rows, layers, spans, d_model] and log-probabilities [rows].

    Stages that read the same tokens, each with another adapter or with none, are computed together.

    Args:
        bench: the study's model.
        condition: how to run it.
        texts: the turns, or the answer stage whose answers are to be read.
        asked: the questions that an answer stage answered.
        title: what the texts are called on screen.
    """
    own = texts if isinstance(texts, Stage) else None

    def compute_all(bench: Bench, inputs: Sequence[list[Path]], folders: Sequence[Path], tick: TickFn) -> list[Output]:
        turns = turns_of(texts, asked, inputs[0])
        chat = bench.chat(bench.base)
        rows = [chat.encode(turn) for turn in condition.under(turns)]
        readings = read(bench, rows, [adapter_of(each) for each in inputs], folders[0], tick, SPANS_READ, logprob=True)
        return [{"reading.safetensors": reading} for reading in readings]

    def compute(bench: Bench, inputs: list[Path], out: Path, tick: TickFn) -> Output:
        return compute_all(bench, [inputs], [out], tick)[0]

    config = {**bench.identity(), "turns": None if own else fingerprint(texts), "system": condition.system}  # type: ignore[arg-type]
    together = Together(digest([config, own.id if own else None]), compute_all)
    inputs = (*condition.inputs, own) if own else condition.inputs
    return Stage("read", 2, config, inputs, f"{condition.title} reads {title}", compute, together=together)


def responses(folder: Path, layer: int) -> FloatArray:
    """Return the states of the response at a layer, [rows, d_model], that a `read` stage left."""
    return np.asarray(load_file(folder / "reading.safetensors")["states"][:, layer, RESPONSE], dtype=np.float64)


def adapter_of(inputs: Sequence[Path]) -> Path | None:
    """Return the adapter among a stage's inputs, if there is one."""
    return next((folder / "adapter" for folder in inputs if (folder / "adapter").is_dir()), None)


def named(adapters: Sequence[Path | None]) -> dict[str, Path]:
    """Name adapters after the stages that made them."""
    return {adapter.parent.name: adapter for adapter in adapters if adapter}


def read(
    bench: Bench,
    rows: Sequence[Encoded],
    adapters: Sequence[Path | None],
    out: Path,
    tick: TickFn,
    spans: Sequence[str],
    logprob: bool = False,
    layers: Sequence[int] | None = None,
) -> list[dict[str, FloatArray]]:
    """Read rows with adapters, and with the base for None: all at once, or in turn as far as memory holds them."""
    spec = Spec(
        layers=layers,
        spans=spans,
        logprob=logprob,
        pad_id=bench.base.tokenizer.pad_token_id,
        token_budget=bench.study.token_budget,
        progress=counter(tick, len(adapters) * sum(len(row) for row in rows) // bench.ranks.world, "tokens"),
    )
    found = []
    for some in bench.ranks.from_main(lambda: models.fitting(adapters, bench.device)):
        with models.adapted(bench.base, named(some)) as model:
            variants = [Variant(adapter.parent.name if adapter else None) for adapter in some]
            # After a kill others may be ready, or less memory free: what was read is of use to the same group alone.
            work = out / WORK / digest([variant.adapter for variant in variants])
            for reading in read_variants(model, rows, variants, spec, work=work):
                arrays = {"states": reading.states.numpy()}
                found.append(arrays if reading.logprob is None else arrays | {"logprob": reading.logprob.numpy()})
    return found


def counter(tick: TickFn, total: int, unit: str) -> Callable[[int], None]:
    """Return a function that adds to what is done and shows it, with its rate."""
    done, start = 0, time.perf_counter()

    def progress(more: int) -> None:
        nonlocal done
        done += more
        tick(done, total, f"{done / (time.perf_counter() - start):,.0f} {unit}/s")

    return progress


def write_output(folder: Path, output: Output) -> None:
    """Write a stage's files: tensors for `.safetensors`, JSON for `.json`."""
    for name, value in output.items():
        if name.endswith(".safetensors"):
            (folder / name).write_bytes(save({key: np.ascontiguousarray(array) for key, array in value.items()}))
        else:
            write_json(folder / name, value)
