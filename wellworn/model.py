"""A model to experiment with from Python, and how conversations are written for it."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from wellworn.data.chat import Chat, Encoded
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.lora import adapters as lora_adapters
from wellworn.lora import models
from wellworn.lora.addresses import find_adapter
from wellworn.lora.embedded import EMBEDDED
from wellworn.probes.reading.layers import depth, resolve_layer, text_config

# A question with its answer; a `Turn` may also have a system prompt, and earlier turns of the conversation.
Text = Turn | tuple[str, str]


@dataclass(frozen=True)
class Model:
    """A base model in memory. Adapters are put on it for the length of a call alone.

    Attributes:
        base: the model with its tokenizer, in eval mode and without gradients.
        chat: how conversations are written for it.
    """

    base: models.Loaded
    chat: Chat

    @property
    def depth(self) -> int:
        """The number of decoder blocks; layers are 0 to depth − 1."""
        return depth(self.base.model)

    @property
    def width(self) -> int:
        """The size of the residual stream, d_model."""
        return int(text_config(self.base.model).hidden_size)

    @property
    def pad_id(self) -> int:
        """The token that fills up rows."""
        return int(self.base.tokenizer.pad_token_id)

    def layer(self, layer: int | float) -> int:
        """Return the index of a layer that is given as one, or as a fraction of the depth.

        Raises:
            InputError: the layer is out of range.
        """
        return resolve_layer(layer, self.depth)

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Tokenise conversations.

        Raises:
            InputError: there are none, or one that cannot be encoded, as `Chat.encode` says.
        """
        if not texts:
            raise InputError("texts: there are none to read")
        return [self.chat.encode(text if isinstance(text, Turn) else Turn(*text)) for text in texts]

    @contextmanager
    def adapted(self, *adapters: str | Path | None) -> Iterator[tuple[nn.Module, list[str | None]]]:
        """Put LoRA adapters on the model for a while; yield it with the name that each has there, None for the base.

        Raises:
            InputError: a folder is not a safetensors LoRA adapter, or was made for another model.
        """
        names = [None if adapter is None else f"adapter{i}" for i, adapter in enumerate(adapters)]
        folders = {name: find_adapter(adapter) for name, adapter in zip(names, adapters, strict=True) if name and adapter}
        with lora_adapters.adapted(self.base, folders) as module:
            yield module, names

    def __repr__(self) -> str:
        return f"Model({self.base.ref.id}, {self.depth} layers of width {self.width}, {self.base.model.dtype}, {self.base.model.device})"


def load(
    name: str | Path = EMBEDDED,
    dtype: str = "auto",
    *,
    template: Literal["model", "plain"] = "model",
    template_kwargs: Mapping[str, Any] | None = None,
    date: datetime.date | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a base model onto the accelerator if there is one, else the CPU.

    Args:
        name: `smollm2-135m` (embedded, no download), a folder, or a hub id (`org/name` or `org/name@revision`).
        dtype: `auto` (bfloat16 on a GPU that has it, else float32), `float32`, `bfloat16`, `float16` or `nf4`.
        template: the model's own chat template, or `plain` for a base model that has none.
        template_kwargs: passed to the model's template, such as `{"enable_thinking": False}`.
        date: the day that the template writes as today's; needed where it writes one.
        trust_remote_code: whether code that comes with the weights may run.

    Raises:
        InputError: there is no such model, it cannot be loaded as a causal language model, or it has no chat template.

    Example:
        >>> model = ww.load(folder)
        >>> model.depth, model.width
        (4, 32)
    """
    base = models.load(models.resolve(str(name)), dtype, trust_remote_code)
    chat = Chat(base.tokenizer, template, dict(template_kwargs or {}), base.max_length, date)
    models.end_turns(base.model, chat)
    return Model(base, chat)
