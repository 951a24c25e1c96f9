"""The model of a study and its chat format, which every stage computes with."""

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from wellworn.data.chat import Chat
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.stage import Config
from wellworn.experiments.engine.store import Store
from wellworn.experiments.study import Study
from wellworn.lora import models
from wellworn.lora.adapters import merge_adapter
from wellworn.lora.memory import NF4
from wellworn.lora.sharded import refuse_fsdp
from wellworn.probes.scoring.endpoint import Budget, check


@dataclass
class StudyContext:
    """The model of a study, loaded when first needed, and its chat format; `budget` counts the requests to its server.

    `store` holds finished stages and servers' replies. `taught_by` is the stage whose adapter is merged into the model, if there is one.
    """

    study: Study
    ranks: Ranks
    ref: models.ModelRef
    device: torch.device
    dtype: str
    depth: int
    store: Store | None = None
    taught_by: str | None = None
    budget: Budget = field(default_factory=Budget)
    _base: models.Loaded | None = field(default=None, repr=False)

    @classmethod
    def of(cls, study: Study, ranks: Ranks, store: Store | None = None) -> "StudyContext":
        """Find the study's model without loading its weights."""
        ref = ranks.from_main(lambda: models.resolve(study.model))
        device, dtype = models.device_and_dtype(study.dtype)
        if dtype == NF4:
            refuse_fsdp("dtype nf4")
        return cls(study, ranks, ref, device, dtype, models.config_depth(ref, study.trust_remote_code), store)

    def taught(self, stage_id: str) -> "StudyContext":
        """Return the context of the same model with the adapter of a stage merged into its weights."""
        return replace(self, ref=replace(self.ref, id=f"{self.ref.id}+{stage_id}"), taught_by=stage_id, _base=None)

    @property
    def replies(self) -> Path | None:
        """The file that keeps servers' replies."""
        return self.store.replies if self.store else None

    def load(self) -> models.Loaded:
        """Load a fresh copy of the base."""
        # A trainer and its model hold each other, so that another copy of the weights would stay until the collector happens to run.
        gc.collect()
        base = models.load(self.ref, self.dtype, self.study.trust_remote_code)
        # The study's template may be another one than the model's own.
        models.end_turns(base.model, self.chat(base))
        if self.taught_by is None:
            return base
        assert self.store is not None  # finished stages are loaded from there
        return merge_adapter(base, self.store.path(self.taught_by) / "adapter")

    @property
    def base(self) -> models.Loaded:
        """The shared copy of the base; changes last only for a `with` block."""
        if self._base is None:
            self._base = self.load()
        return self._base

    def drop(self) -> None:
        """Free the shared copy, to make room for training."""
        self._base = None

    def chat(self, base: models.Loaded) -> Chat:
        """Return the chat format of the model."""
        return self.study.chat.of(base.tokenizer, base.max_length)

    def identity(self) -> Config:
        """Return the model's part of every stage's hash."""
        return {"model": self.ref.id, "dtype": self.dtype, "chat": self.study.chat.identity()}

    def speaker(self) -> Config:
        """Return the further part of the hash of a stage with answers: the server that gives them, by its name for the model."""
        server = self.study.server
        return {"server": server.model, "more": server.more} if server else {}

    def check_speaker(self) -> None:
        """Check, before anything is computed and without a request, that the server, if there is one, can be used."""
        if self.study.server:
            check(self.study.server)
