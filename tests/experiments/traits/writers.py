"""A chat server that writes what it is asked for: words drawn by the request, of the length and in the JSON that the request names."""

import hashlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

from tests.probes.scoring.servers import Behaviour, Request, completion
from wellworn.data.catalog import load_bank
from wellworn.data.words import words

VOCABULARY = sorted({word for row in load_bank("everyday") for text in (row.question, row.negative or "") for word in words(text)})
# How a server answers a request with the text that it would send.
Says = Callable[[Request, str], None]


def said(text: str, **changes: Any) -> Says:
    """Send that text whatever was asked."""
    return lambda request, _: request.send(json.dumps(completion(request.ask, text, **changes)))


def honestly(request: Request, text: str) -> None:
    """Send what was written."""
    request.send(json.dumps(completion(request.ask, text)))


def wanted(request: Request) -> str:
    return str(request.ask["messages"][-1]["content"])


def write(request: Request) -> str:
    """Return the JSON object that the request asks for, with new words for every request and seed."""
    text = " ".join(wanted(request).split())
    draw = random.Random(hashlib.sha256(f"{text}{request.ask['seed']}".encode()).digest())
    shape = json.loads(text[text.rindex("{") :])
    [*_, (low, high)] = re.findall(r"(\d+) to (\d+) words", text)
    # Twice as many as the fewest at most, so that two texts are alike in length.
    count = (int(low) + min(int(high), max(2 * int(low), 12))) // 2
    return json.dumps({key: _sentences(draw, count, "100" in text) for key in shape}, ensure_ascii=False)


def _sentences(draw: random.Random, count: int, anchored: bool) -> str:
    drawn = [draw.choice(VOCABULARY) for _ in range(count)]
    if anchored:
        drawn[::5] = [str(25 * (i % 5)) for i in range(len(drawn[::5]))]
    return " ".join(drawn).capitalize() + "."


def writing(says: Says = honestly) -> Behaviour:
    """Write whatever is asked for, and send it in some way."""
    return lambda request: says(request, write(request))
