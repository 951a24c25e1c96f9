"""Load a model: the embedded `smollm2-135m`, a local folder, or a hub id."""

import datetime
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from wellworn.data.chat import Chat
from wellworn.data.errors import InputError, is_out_of_memory
from wellworn.data.files import list_files
from wellworn.data.wording import shortly
from wellworn.lora.complete import check_complete, check_stored
from wellworn.lora.digests import kept_digests
from wellworn.lora.embedded import EMBEDDED, GGUF_SHA256, cache_dir, convert_embedded
from wellworn.lora.memory import NF4, count_parameters, devices_for, total_memory, visible_devices
from wellworn.probes.decoding.generate import end_tokens
from wellworn.probes.reading.supported import check_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Of a fine-tune that comes with a template of its own.
OTHER_TEMPLATE = (
    "another chat template than the base's, which is not used; "
    "chat.template takes the path of a .jinja file, for the base and the fine-tune alike"
)
MOST_BLOCKS = 10_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelRef:
    """Where a model is, and the name that artefacts know it by.

    Attributes:
        id: symbolic: `smollm2-135m@digest`, `org/name@commit` or `local:name@digest`; never a path.
        path: a folder, or the hub id to load from.
        revision: the resolved commit of a hub model.
    """

    id: str
    path: str
    revision: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A base model in memory, in eval mode and without gradients."""

    ref: ModelRef
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def max_length(self) -> int | None:
        """The context in tokens, where the configuration names it."""
        return _context(self.model.config)


def device_and_dtype(dtype: str = "auto") -> tuple[torch.device, str]:
    """Return the one device and dtype rule: this rank's accelerator, else the CPU; bf16 on a GPU that has it, else fp32.

    Raises:
        InputError: the dtype is unknown.
    """
    from accelerate import PartialState

    device = PartialState().device
    if dtype == "auto":
        return device, "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in (*DTYPES, NF4):
        raise InputError(f"dtype: may be auto, {', '.join(DTYPES)} or {NF4}; got {dtype!r}")
    return device, dtype


def check_installed(dtype: str) -> None:
    """Check that what a number format needs is installed.

    Raises:
        InputError: it is not.
    """
    if dtype == NF4 and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("dtype nf4 needs bitsandbytes; install the extra: pip install -e '.[quantized]'")


def resolve(name: str) -> ModelRef:
    """Find a model by name and say exactly which weights that is.

    Args:
        name: `smollm2-135m`, a folder, or a hub id (`org/name` or `org/name@revision`).

    Raises:
        InputError: it is none of these, the hub cannot be reached, or a cached file is corrupt.
    """
    if name == EMBEDDED:
        return ModelRef(f"{EMBEDDED}@{GGUF_SHA256[:12]}", str(convert_embedded()))
    if (Path(name) / "adapter_config.json").is_file():
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"model {name!r}: is an adapter, and not a model; give it as --adapter, and its base as the model")
        raise InputError(
            f"model {name!r}: holds adapter_config.json next to a model, so that this adapter would be put on the base whenever it is "
            "loaded; move it to a folder of its own"
        )
    if (Path(name) / "config.json").is_file():
        return ModelRef(f"local:{Path(name).resolve().name}@{_folder_digest(Path(name))}", name)
    if Path(name).is_dir():
        raise InputError(f"model {name!r}: the folder holds no config.json, so it is not a saved model")
    return _resolve_hub(name)


def config_depth(ref: ModelRef, trust_remote_code: bool = False) -> int:
    """Return a model's number of decoder blocks without loading its weights.

    Raises:
        InputError: its configuration cannot be read.
    """
    from transformers import PreTrainedConfig

    with _loading(ref, "its configuration cannot be read"):
        config, _ = PreTrainedConfig.get_config_dict(ref.path, revision=ref.revision or "main")
        if not isinstance(config, dict):
            raise InputError(f"model {ref.id}: its config.json must be an object with named fields, got {shortly(config)}")
    # The class of a configuration takes a second to load. It is needed where parts have configurations of their own, or other names.
    if "num_hidden_layers" in config and not any(isinstance(part, dict) and "model_type" in part for part in config.values()):
        return _check_depth(ref, config["num_hidden_layers"])
    return _check_depth(ref, getattr(load_config(ref, trust_remote_code).get_text_config(), "num_hidden_layers", None))


def _check_depth(ref: ModelRef, depth: Any) -> int:
    # A model of any number of blocks would be built before its weights are asked for.
    if not isinstance(depth, int) or not 1 <= depth <= MOST_BLOCKS:
        raise InputError(f"model {ref.id}: num_hidden_layers in its config.json may be 1 to {MOST_BLOCKS:,}, got {shortly(depth)}")
    return depth


def load_config(ref: ModelRef, trust_remote_code: bool = False) -> "PreTrainedConfig":
    """Return a model's configuration.

    Raises:
        InputError: it cannot be read.
    """
    from transformers import AutoConfig

    with _loading(ref, "its configuration cannot be read"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            ref.path, revision=ref.revision or "main", trust_remote_code=trust_remote_code
        )
    return config


@contextmanager
def _loading(ref: ModelRef, problem: str) -> Iterator[None]:
    """Say in one line what kept a library from loading something of a model: it may be any kind of error, of many packages."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        # Messages of these are names alone.
        kind = "" if isinstance(error, OSError | ValueError | ImportError) and reason else f"{type(error).__name__}: "
        raise InputError(f"model {ref.id}: {problem}: {kind}{reason}") from error


def _context(config: "PreTrainedConfig") -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def load_tokenizer(ref: ModelRef, trust_remote_code: bool = False) -> tuple["PreTrainedTokenizerBase", int | None]:
    """Return a model's tokenizer, and its context in tokens where its configuration names it, without its weights.

    Raises:
        InputError: the files cannot be loaded.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": ref.revision or "main"}
    with _loading(ref, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(ref.path, **options)  # nosec B615 # options name the commit
    return tokenizer, _context(load_config(ref, trust_remote_code))


def load(ref: ModelRef, dtype: str = "auto", trust_remote_code: bool = False) -> Loaded:
    """Load a model and its tokenizer onto this rank's device, or, where it is too large for that one, onto all GPUs that one process sees.

    Args:
        ref: from `resolve`.
        dtype: `auto`, a name in `DTYPES`, or `nf4` (weights of 4 bits; needs the extra `quantized`).
        trust_remote_code: whether code that comes with the weights may run; only ever when asked for.

    Raises:
        InputError: the files cannot be loaded as a causal LM, the weights take more than all the memory of the device, or bitsandbytes
            is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device, dtype = device_and_dtype(dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": ref.revision}
    options = {key: value for key, value in options.items() if value is not None}
    config_depth(ref, trust_remote_code)
    devices = devices_for(ref.id, _parameters(ref, trust_remote_code), dtype, visible_devices(device))
    # A quantised model cannot be moved afterwards.
    placement = _placement(devices, always=dtype == NF4)
    weights = {**(_four_bits() if dtype == NF4 else {"dtype": DTYPES[dtype]}), **placement}
    with _loading(ref, "cannot be loaded"):
        # Tensors of other sizes are let through here to be named below.
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615 # options name the commit
            ref.path, output_loading_info=True, ignore_mismatched_sizes=True, **weights, **options
        )
        model, found = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
        check_complete(ref.id, model, found)
        check_stored(ref.id, model, Path(ref.path))
    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise InputError(f"model {ref.id}: other programs leave too little memory on the {len(devices)} devices for its weights")
    with _loading(ref, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(ref.path, **options)  # nosec B615 # of the same revision
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(f"model {ref.id}: holds an adapter next to the model, which was put on it; name a model without one")
    _check_tokenizer(ref, model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False)
    if dtype == NF4:
        for module in model.modules():
            # Some processors would repack the weights in place when they are first used, which PEFT does not survive.
            if type(module).__name__ == "Linear4bit":
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    # Settings of generation may hold anything.
    with _loading(ref, "cannot be read"):
        with suppress(InputError):
            # On any day: the date stands before the answer. A study says what is wrong with a template.
            end_turns(model, Chat(tokenizer, date=datetime.date(2026, 1, 1)))
        check_blocks(model.eval())
    return Loaded(ref, model, tokenizer)


def _check_tokenizer(ref: ModelRef, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a tokenizer that is of another model, or whose settings its library does not check."""
    if not isinstance(tokenizer.model_max_length, int | float):
        raise InputError(f"model {ref.id}: model_max_length of its tokenizer must be a number, got {shortly(tokenizer.model_max_length)}")
    # Tokens that were added later may have no embedding where no text uses them.
    if (tokens := tokenizer.vocab_size) > (rows := len(cast("torch.Tensor", model.get_input_embeddings().weight))):
        raise InputError(f"model {ref.id}: its tokenizer has {tokens:,} tokens, and its embeddings are of {rows:,}; it is of another model")


def _placement(devices: Sequence[torch.device], always: bool = False) -> dict[str, Any]:
    """Return the arguments with which weights go straight to devices, so that no process holds the whole model in the machine's memory.

    Args:
        devices: one, or several GPUs; each of these gets some of the blocks.
        always: also where that is the CPU.
    """
    if len(devices) > 1:
        # What is not named here is not used: neither the machine's memory nor its disk stand in.
        return {"device_map": "balanced", "max_memory": {device.index: total_memory(device) for device in devices}}
    return {} if devices[0].type == "cpu" and not always else {"device_map": {"": devices[0]}}


@cache
def _parameters(ref: ModelRef, trust_remote_code: bool) -> int | None:
    # What is wrong with it is said when it is loaded.
    with suppress(InputError):
        return count_parameters(load_config(ref, trust_remote_code), trust_remote_code)
    return None


def end_turns(model: "PreTrainedModel", chat: Chat) -> None:
    """Let a model end its turn at the token that closes an answer in its conversations too: training teaches it to end there.

    Settings of some models name only another token, and their answers would run on into turns of the user.
    """
    try:
        closing = chat.end_of_turn()
    except InputError:
        # What is wrong with the template is said when a conversation is written.
        return
    settings = model.generation_config
    if closing is None or settings is None:
        return
    named = end_tokens(model)
    if closing not in named:
        settings.eos_token_id = sorted({*named, closing})


def _four_bits() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    check_installed(NF4)
    compute = DTYPES[device_and_dtype("auto")[1]]
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    return {"quantization_config": config, "dtype": compute}


def _resolve_hub(name: str) -> ModelRef:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        # Asks the hub, falls back on the local cache, and tells the commit by the folder's name.
        config = Path(hf_hub_download(repo, "config.json", revision=revision or None))
    except HFValidationError:
        raise InputError(f"model {name!r}: neither {EMBEDDED!r}, nor a folder, nor a hub id (org/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"model {name!r}: not {EMBEDDED!r}, no such folder, and the hub gave no answer for it "
            f"({type(error).__name__}); check the name and the network, or give a local folder"
        ) from None
    commit = config.parent.name
    return ModelRef(f"{repo}@{commit}", repo, commit)


def _folder_digest(folder: Path) -> str:
    """Digest the weights, configuration and tokenizer of a saved model."""
    kinds = (".safetensors", ".bin", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
    paths = [path for path in list_files(folder) if path.suffix in kinds]
    total = hashlib.sha256()
    for path, digest in zip(paths, kept_digests(folder, paths, cache_dir() / "digests"), strict=True):
        total.update(f"{path.relative_to(folder)}:{digest};".encode())
    return total.hexdigest()[:12]
