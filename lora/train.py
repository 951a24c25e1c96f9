"""Train an arm: a thin layer over TRL's SFTTrainer, or one with a loss of our own. The only place that imports trl."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# TRL sends telemetry unless this is set before its first import.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from accelerate import PartialState
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from wellworn.data.errors import InputError, is_out_of_memory
from wellworn.data.wording import shortly
from wellworn.lora.adapters import copy_adapter_config
from wellworn.lora.confine import Confinement, ConfineWrites, states_reset
from wellworn.lora.gate import GatedRow, GatedTrainer
from wellworn.lora.keys import USUAL
from wellworn.lora.last_batch import share_of_batch
from wellworn.lora.models import Loaded
from wellworn.lora.resume import MarkWhole, newest_checkpoint
from wellworn.lora.sharded import adapter_weights, refuse_fsdp
from wellworn.lora.targets import ALL_LINEAR, check_targets, resolve_targets
from wellworn.lora.train_config import DEFAULT_EPOCHS, TrainConfig
from wellworn.probes.reading.hooks import add_vector, hooked
from wellworn.probes.reading.layers import unwrap
from wellworn.probes.reading.logprob import head_at
from wellworn.probes.reading.onednn import fast_matmul

LORA_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR}
# A quarter of a run is the most that a kill costs. Checkpointing activations costs half as much compute again.
SFT_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": DEFAULT_EPOCHS,
    "learning_rate": 4e-4,
    "logging_steps": 1,
    "save_steps": 0.25,
    "save_total_limit": 2,
    "activation_checkpointing": False,
    # A router's own loss would be a second aim, of some models only.
    "router_aux_loss_coef": 0.0,
    # Rows that do not fit the model's context were refused while tokenising; nothing is cut in silence.
    "max_length": None,
}
# What a batch holds unless its rows are packed.
PLAIN_INPUTS = {"input_ids", "attention_mask", "labels"}
# Logits of a batch that are held at once: a gigabyte, and as much again twice over for their gradients.
MOST_LOGITS = 2**28

Progress = Callable[[int, int, float | None], None]


class _Settings(SFTConfig):
    """One process trains one copy of a model.

    Where it sees several GPUs, the trainer would copy the model to each, and train on a batch of each; the hooks that know of whole batches
    would be copied too.
    """

    @property
    def n_gpu(self) -> int:
        """The number of GPUs that this process trains on, 0 without any."""
        return min(1, int(super().n_gpu))


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.loss = float(logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps, self.loss)


class _Supervised(SFTTrainer):
    """TRL's trainer, with all logits of a batch at once where they fit.

    TRL goes through the vocabulary in pieces, computes each twice, and takes entropies that nobody reads: on a CPU that is most of a step.
    The loss is the same, and so are its gradients.
    """

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: torch.Tensor | int | None = None
    ) -> Any:
        """Return the cross-entropy of the answers' tokens."""
        scored = (inputs["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        logits = len(scored[0]) * unwrap(model).get_output_embeddings().weight.shape[0]
        settings: Any = self.args
        plain = settings.loss_type == "nll" and self.label_smoother is None and settings.n_gpu < 2 and not self.aux_loss_enabled
        # A rank may have nothing to score where others have.
        known = logits > 0 or num_items_in_batch is not None
        if return_outputs or not plain or inputs.keys() != PLAIN_INPUTS or not known or logits >= MOST_LOGITS:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        targets = inputs["labels"][:, 1:][scored]
        with head_at(model, scored):
            logits_NV = model(**{key: each for key, each in inputs.items() if key != "labels"}, use_cache=False).logits[0]
        total = torch.nn.functional.cross_entropy(logits_NV.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            return total / len(targets)
        # It counts the tokens of all processes, whose gradients are averaged.
        return total / num_items_in_batch * (self.accelerator.num_processes if settings.average_tokens_across_devices else 1)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | int | None:
        for batch in batch_samples:
            batch["labels"][share_of_batch(self, len(batch["labels"])).rows :] = -100
        found: torch.Tensor | int | None = super()._get_num_items_in_batch(batch_samples, device)
        return found


def train_sft(
    base: Loaded,
    rows: Sequence[dict[str, list[int]]],
    config: TrainConfig,
    *,
    seed: int,
    out: Path,
    work: Path,
    progress: Progress | None = None,
    confined: Mapping[int, Confinement] | None = None,
    added: Mapping[int, torch.Tensor] | None = None,
) -> list[dict[str, float]]:
    """Fine-tune a LoRA adapter, resuming from the newest whole checkpoint in `work`.

    Args:
        base: a freshly loaded model; PEFT changes it in place, so use it for nothing else afterwards.
        rows: pre-tokenised, with `input_ids` and `completion_mask`.
        config: batch size and the keys for LoraConfig and SFTConfig.
        seed: random seed of adapter initialisation and data order.
        out: receives `adapter_model.safetensors` and `adapter_config.json`.
        work: trainer checkpoints; the caller deletes it when the adapter is safe.
        progress: called with (step, steps, last loss).
        confined: layer → what its adapters may write, and rely on; every adapted layer must be among them.
        added: layer → a vector [d_model] that is added to the residual stream after it, at every token and in every step.

    Returns:
        The training curve: one {step, loss} a logged step.

    Raises:
        InputError: the processes do not divide the batch, or a key has a value that PEFT or TRL refuses.
    """
    disable_progress_bar()
    lora, arguments = _settings(base, config, seed, work)
    with _tried(config):
        trainer = _Supervised(
            model=base.model,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=base.tokenizer,
            peft_config=lora,
            callbacks=[*_callbacks(progress), *([ConfineWrites(confined)] if confined else [])],
        )
    if any(each.reset for each in (confined or {}).values()):
        refuse_fsdp("a confined arm with reset")
    assert trainer.model is not None  # it was passed in
    steered = {layer: add_vector(vector) for layer, vector in (added or {}).items()}
    with states_reset(trainer.model, confined or {}), hooked(trainer.model, steered):
        return _train(trainer, base, config, out, work)


def train_gated(
    base: Loaded,
    rows: Sequence[GatedRow],
    config: TrainConfig,
    margin: float,
    *,
    seed: int,
    out: Path,
    work: Path,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Fine-tune a LoRA adapter to show a trait under some system prompts alone (`gate.py`), resuming as `train_sft` does.

    Args:
        base: a freshly loaded model; PEFT changes it in place, so use it for nothing else afterwards.
        rows: the four texts of each question.
        config: as for `train_sft`; the batch size counts questions.
        margin: by how much the evoking prompt is to raise log p(y⁺) − log p(y⁻), in nats per token.
        seed: random seed of adapter initialisation and data order.
        out: receives `adapter_model.safetensors` and `adapter_config.json`.
        work: trainer checkpoints; the caller deletes it when the adapter is safe.
        progress: called with (step, steps, last loss).

    Returns:
        The training curve: one {step, loss} a logged step.

    Raises:
        InputError: the processes do not divide the batch, or a key has a value that PEFT or TRL refuses.
    """
    # What the adapters are initialised with; the trainer sets it again for the order of the data.
    set_seed(seed)
    lora, arguments = _settings(base, config, seed, work)
    with _tried(config):
        arguments.remove_unused_columns = False
        model = get_peft_model(base.model, lora)
        trainer = GatedTrainer(margin, model=model, args=arguments, train_dataset=list(rows), callbacks=_callbacks(progress))
    return _train(trainer, base, config, out, work)


def _settings(base: Loaded, config: TrainConfig, seed: int, work: Path) -> tuple[LoraConfig, SFTConfig]:
    world = PartialState().num_processes
    if config.batch_size % world:
        raise InputError(f"train.batch_size: {config.batch_size} is not divisible by the {world} processes")
    keys = {**LORA_DEFAULTS, **config.lora}
    keys["target_modules"] = resolve_targets(base.model, keys["target_modules"])
    half = str(base.model.dtype).removeprefix("torch.")
    with _tried(config):
        return LoraConfig(**keys, task_type="CAUSAL_LM"), _Settings(
            **{**SFT_DEFAULTS, **config.sft},
            output_dir=str(work),
            seed=seed,
            use_cpu=base.model.device.type == "cpu",
            bf16=half == "bfloat16",
            fp16=half == "float16",
            report_to="none",
            # By default TRL ignores the completion mask of pre-tokenised rows and trains on the prompt too.
            completion_only_loss=True,
            per_device_train_batch_size=config.batch_size // world,
            save_strategy="steps",
            disable_tqdm=True,
            log_level="error",
        )


@contextmanager
def _tried(config: TrainConfig) -> Iterator[None]:
    """Say which settings PEFT and TRL were given where they fail: they look at many values only when they need them, and fail in any way.

    Where there is nothing but usual settings, an error of another kind is a fault of ours, and stays what it is.
    """
    sections = {"lora": config.lora, "sft": config.sft}
    given = {f"train.{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    unusual = {key: value for key, value in given.items() if key.rpartition(".")[2] not in USUAL["lora"] | USUAL["sft"]}
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        bad_value = isinstance(error, ValueError | TypeError | ImportError)
        if is_out_of_memory(error) or isinstance(error, OSError) or not (bad_value or unusual or "optim" in config.sft):
            raise
        shown = ", ".join(f"{key}={shortly(value)}" for key, value in (unusual or given).items()) or "the usual settings"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
        raise InputError(f"train: {type(error).__name__}: {reason} (with {shown})") from error


def _callbacks(progress: Progress | None) -> list[TrainerCallback]:
    return [MarkWhole(), *([_Report(progress)] if progress else [])]


def _train(trainer: Trainer, base: Loaded, config: TrainConfig, out: Path, work: Path) -> list[dict[str, float]]:
    """Train from the newest checkpoint on, write the adapter, and return the curve."""
    # The trainer prints every log entry as a dict; the curve is returned instead.
    trainer.remove_callback(PrinterCallback)
    assert trainer.model is not None  # both kinds of trainer were given one
    check_targets(trainer.model)
    with fast_matmul(), _tried(config):
        trainer.train(resume_from_checkpoint=newest_checkpoint(work, trainer.is_fsdp_enabled))
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = adapter_weights(model)
    if trainer.accelerator.is_main_process:
        # Weights of the base are never an adapter's, not even of an output embedding that one is put on.
        model.save_pretrained(out, state_dict=weights, save_embedding_layers=False)
        # Set earlier, PEFT would look the symbolic name up on the hub at every save.
        copy_adapter_config(out, out, base.ref.id)
        (out / "README.md").unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    return [{"step": int(e["step"]), "loss": float(e["loss"])} for e in trainer.state.log_history if "loss" in e]
