"""Other libraries, each a warm worker process in its own environment."""

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from rich.console import Console

from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.experiments.bench.timing import Timed
from wellworn.lora.embedded import cache_dir
from wellworn.lora.models import Loaded
from wellworn.probes.statistics.intervals import FloatArray

# They cannot share the suite's environment: one requires numpy < 2, the other transformers < 5.
PEERS = {
    "repeng": ("repeng==0.4.0", "numpy==1.26.4", "transformers==5.23.0", "accelerate==1.15.0"),
    "steering-vectors": ("steering-vectors==0.12.2", "transformers==4.57.6", "accelerate==1.15.0"),
}
_WORKER = Path(__file__).with_name("peer_worker.py")


@dataclass
class Peer:
    """A library in its own process."""

    name: str
    process: "subprocess.Popen[str]"
    errors: Path

    def read(self, strings: Sequence[str], layers: Sequence[int], out: Path | None = None) -> Timed:
        """Read strings with it; with `out` the result is the last token's states [strings, layers, d_model].

        Raises:
            InputError: the worker ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"strings": list(strings), "layers": list(layers), "out": None if out is None else str(out)}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self.errors.read_text(errors="replace").strip().splitlines()
            raise InputError(f"--peers: the worker of {self.name} ended: {lines[-1] if lines else 'without a word'}")
        states: FloatArray | None = None if out is None else np.load(out)
        return Timed(float(json.loads(answer)["seconds"]), states)


@contextmanager
def peers(base: Loaded, torch_version: str, console: Console) -> Iterator[list[Peer]]:
    """Start the workers; create their environments at first use.

    Raises:
        InputError: an environment cannot be created.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base.model.save_pretrained(folder / "model")
        base.tokenizer.save_pretrained(folder / "model")
        _readable_by_older(folder / "model")
        started = []
        for name, requirements in PEERS.items():
            python = _environment(name, (f"torch=={torch_version}", *requirements), console)
            errors = folder / f"{name}.log"
            command = [str(python), str(_WORKER), name, str(folder / "model")]
            log = stack.enter_context(errors.open("w"))
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(process.kill)
            started.append(Peer(name, process, errors))
        yield started


def _environment(name: str, requirements: Sequence[str], console: Console) -> Path:
    folder = cache_dir() / "peers" / f"{name}-{digest([sys.version_info[:2], list(requirements)])}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "ready").is_file():
            return python
        console.print(f"making an environment for {name} in {folder} (once)", highlight=False, markup=False)
        venv.create(folder, with_pip=True, clear=True)
        # First torch, from the user's package index; then packages that pin other versions than the suite.
        for step in (requirements[:1], requirements[1:]):
            done = subprocess.run([str(python), "-m", "pip", "install", "-q", *step], capture_output=True, text=True, check=False)
            if done.returncode:
                last = done.stderr.strip().splitlines()
                raise InputError(f"--peers: {name} cannot be installed: {last[-1] if last else 'pip gave no reason'}")
        (folder / "ready").touch()
    return python


def _readable_by_older(folder: Path) -> None:
    """Add the names of transformers 4 for the rotary base, the dtype and the tokenizer's class to those of transformers 5."""
    config = json.loads((folder / "config.json").read_text())
    if "rope_theta" in config.get("rope_parameters", {}):
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config.get("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        path.write_text(json.dumps(tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}))
