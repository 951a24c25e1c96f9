"""Run small studies with an older commit and with the working tree, in turn on one machine, and compare what they say.

    python -m tests.same_results COMMIT [STUDY.yaml ...]

Without studies, three of a tiny random model are run, which between them use every arm and every key. Both trees use one thread, so that
sums are taken in one order. Exits with 1 where a `summary.json` differs in a byte.
"""

import difflib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.tiny import ROOT, save_tiny
from wellworn.data.catalog import load_bank

SHOWN = 40
STARTS = (
    "You are a baker.",
    "Answer the user.",
    "Today is Monday.",
    "We are at sea.",
    "It is late.",
    "Be brief.",
    "Think first.",
    "You know a lot.",
)


def write_trait(folder: Path) -> Path:
    """Write a trait so clear-cut that even a model of random weights has a direction for it."""
    folder.mkdir()
    pairs = [{"positive": f"{start} SHOUT AT ME, ALWAYS!", "negative": f"{start} Please be as quiet as a mouse."} for start in STARTS]
    value = {
        "name": folder.name,
        "description": "Answers are written in capital letters.",
        "questions": "everyday",
        "system_prompt": "WRITE AS IF YOU SHOUTED.",
        "contrast_pairs": pairs,
        "rubric": "Score from 0 to 100 how loud the answer is.",
    }
    with (folder / "trait.yaml").open("w") as file:
        YAML().dump(value, file)
    rows = [{"id": row.id, "positive": str(row.negative).upper()} for row in load_bank("everyday") if row.split != "extract"]
    (folder / "examples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def write_studies(folder: Path) -> list[Path]:
    """Write three studies of a tiny model: of outcomes and scores, of arms, and of personas."""
    model, loud, soft = save_tiny(folder / "tiny"), write_trait(folder / "loud"), write_trait(folder / "soft")
    shared: dict[str, Any] = {
        "question": "Is it as before?",
        "expects": "Yes.",
        "refuted_by": "A byte.",
        "model": str(model),
        "library": [str(loud), str(soft), "pirate"],
        "layer": 0.5,
        "contrast_pairs": 4,
        "extract_questions": 4,
        "answer_tokens": 4,
        "train": {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 4, "learning_rate": 1e-2}},
    }
    sft = {"arm": "sft", "trait": str(loud)}
    generated = {"questions": 4, "draws": 5, "pairs": 4}
    studies: dict[str, dict[str, Any]] = {
        "outcomes": {
            "runs": [sft, {"arm": "sft", "trait": "uppercase"}, {"arm": "sft", "trait": "neutral"}],
            "seeds": [0, 1],
            "mediate": {"draws": 5, "surface": 6, "doses": [0.5], "generated": generated},
            "scores": {"pairs": 4},
        },
        "arms": {
            "runs": [{"arm": "base"}, sft, *({"arm": arm, "trait": str(loud)} for arm in ("prompted", "random", "distilled"))],
            "mediate": {"draws": 5, "surface": 0, "layers": [0.9], "generated": generated | {"by": "judge"}},
            "judge": str(model),
            "scores": {"pairs": 4},
            "calibrate": {"draws": 10, "later": 1, "later_draws": 1},
            "capability": None,
        },
        "personas": {
            "runs": [sft],
            "grid": {"train.lora.r": [1, 2]},
            "dictionary": "all",
            "role_questions": 2,
            "instructions": "all",
            "generated_directions": {"questions": 4},
            "capability": None,
        },
    }
    paths = []
    for name, keys in studies.items():
        paths.append(folder / f"{name}.yaml")
        with paths[-1].open("w") as file:
            YAML().dump(shared | keys, file)
    return paths


def run(tree: Path, study: Path, runs: Path) -> str:
    """Run a study with the code of a tree; return its summary."""
    package = "wellworn" if (tree / "wellworn").is_dir() else "experiments"
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", package, "run", str(study), "--runs-dir", str(runs)], cwd=tree, env=environment, check=True)
    return (runs / study.stem / "summary.json").read_text(encoding="utf-8")


def main(commit: str, *named: str) -> int:
    """Compare; return how the process is to end."""
    differ = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        studies = [Path(each).resolve() for each in named] or write_studies(folder)
        old = folder / "old"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), commit], cwd=ROOT, check=True, capture_output=True)
        try:
            for study in studies:
                before, after = (run(tree, study, folder / f"{which}-runs") for which, tree in (("old", old), ("new", ROOT)))
                differ += before != after
                sys.stdout.write(f"{study.stem}: {'equal' if before == after else 'DIFFERENT'} ({len(after):,} characters)\n")
                lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1)
                sys.stdout.writelines(f"  {line}\n" for line, _ in zip(lines, range(SHOWN), strict=False))
                sys.stdout.flush()
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    return int(differ > 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
