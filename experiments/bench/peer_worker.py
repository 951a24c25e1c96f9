"""A worker that runs another library's own extraction in that library's environment. It does not import the suite.

    python peer_worker.py LIBRARY MODEL_FOLDER

Reads one JSON object a line, {"strings": [...], "layers": [...], "out": PATH or null}, and answers with one,
{"seconds": ...}. With `out` the last token's states, [strings, layers, d_model], are written there by numpy.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 32


def with_repeng(model: Any, tokenizer: Any, strings: list[str], layers: list[int]) -> Any:
    """Read strings as `repeng` does when it trains a control vector."""
    from repeng.extract import batched_get_hiddens  # type: ignore[import-not-found]

    found = batched_get_hiddens(model, tokenizer, strings, layers, BATCH)
    return np.stack([found[layer] for layer in layers], axis=1)


def with_steering_vectors(model: Any, tokenizer: Any, strings: list[str], layers: list[int]) -> Any:
    """Read strings as `steering-vectors` does when it trains a steering vector: as pairs."""
    from steering_vectors.train_steering_vector import extract_activations  # type: ignore[import-not-found]

    pairs = list(zip(strings[::2], strings[1::2], strict=True))
    positive, negative = extract_activations(model, tokenizer, pairs, layers=layers, batch_size=BATCH)
    width = positive[layers[0]][0].shape[-1]
    out = np.empty((len(strings), len(layers), width), dtype=np.float32)
    for slot, layer in enumerate(layers):
        out[::2, slot] = torch.cat([batch.reshape(-1, width) for batch in positive[layer]]).float().cpu().numpy()
        out[1::2, slot] = torch.cat([batch.reshape(-1, width) for batch in negative[layer]]).float().cpu().numpy()
    return out


def main() -> None:
    """Load the model once, and answer requests until the input ends."""
    read = {"repeng": with_repeng, "steering-vectors": with_steering_vectors}[sys.argv[1]]
    model = AutoModelForCausalLM.from_pretrained(sys.argv[2], torch_dtype=torch.float32)  # nosec B615 # a folder on disk
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])  # nosec B615 # the same folder
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        with torch.no_grad():
            states = read(model, tokenizer, request["strings"], request["layers"])
        seconds = time.perf_counter() - start
        if request["out"]:
            np.save(request["out"], states)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
