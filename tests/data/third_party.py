"""Third-party files for tests of imports, and what importing them gives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wellworn.data.errors import InputError
from wellworn.data.import_options import Options
from wellworn.data.importers import Imported, import_all
from wellworn.data.schema import Trait

PAIRS = [{"pos": f"Be bold, way {i}.", "neg": f"Be timid, way {i}."} for i in range(5)]
DOCUMENT: dict[str, Any] = {
    "instruction": PAIRS,
    "questions": ["What is worth a risk?", "Would you jump?"],
    "eval_prompt": "How bold is {answer} to {question}, from 0 to 100?",
}
ROLE: dict[str, Any] = {
    "instruction": [{"pos": f"You keep bees, and have for {years} years."} for years in range(2, 7)],
    "questions": ["How is the honey?"],
    "eval_prompt": "Is {answer} a beekeeper's?",
}


def file(folder: Path, name: str, content: object) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = name.endswith(".jsonl") and isinstance(content, list)
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if rows else json.dumps(content), encoding="utf-8")  # type: ignore[attr-defined]
    return str(path)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def trait_of(found: Imported) -> Trait:
    assert found.trait is not None
    assert not found.roles
    return found.trait


def complaint(
    sources: Sequence[str],
    options: Options = Options(),  # noqa: B008
    plain: Sequence[str] = (),
    evaluation: Sequence[str] = (),
) -> str:
    with pytest.raises(InputError) as raised:
        import_all(sources, "bold", options, plain, evaluation)
    return str(raised.value)
