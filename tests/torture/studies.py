"""Small studies of a tiny model that together compute every kind of stage."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from torch import nn
from transformers import AutoModelForCausalLM

from tests.same_results.__main__ import write_trait
from tests.tiny import save_tiny
from wellworn.data.catalog import control_names, role_names
from wellworn.experiments.engine.stage import Kind
from wellworn.experiments.stages import kinds

# Characters that make a dictionary.
CHARACTERS = 12
TRAINING: dict[str, Any] = {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 4, "save_steps": 1, "learning_rate": 1e-2}}
PATHWAYS = {"draws": 19, "questions": 3, "surface": 3, "profile": 0, "references": "headline", "answers": 3, "stand_ins": ["singles"]}
MEDIATION = {"draws": 5, "surface": 0, "doses": [], "references": "headline", "everywhere": False, "matched": False, "remainder_draws": 0}


def write_studies(folder: Path) -> list[Path]:
    """Write studies, and the models, traits and adapters that they name; return the paths of the studies."""
    model, loud, soft = save_tiny(folder / "tiny", layers=3), write_trait(folder / "loud"), write_trait(folder / "soft")
    other = _save_checkpoint(folder / "other", model)
    one, two = (_save_adapter(folder / f"adapter{seed}", model, seed) for seed in (1, 2))
    shared: dict[str, Any] = {
        "question": "Does it survive?",
        "expects": "It does.",
        "refuted_by": "Another byte.",
        "model": str(model),
        "library": [str(loud), str(soft)],
        "layer": 0.5,
        "contrast_pairs": 4,
        "extract_questions": 4,
        "evaluate_questions": 3,
        "answer_tokens": 3,
        "token_budget": 512,
        "capability": None,
        "mediate": None,
        "pathways": None,
        "neutral": None,
        "train": TRAINING,
    }
    sft = {"arm": "sft", "trait": str(loud)}
    studies: dict[str, dict[str, Any]] = {
        "trained": {"runs": [sft], "neutral": "self", "mediate": MEDIATION, "capability": "builtin"},
        "taught": {"runs": [sft], "knock_in": {"trait": str(soft), "copies": 1, "train": TRAINING, "strength": 0.5}},
        "patched": {
            "runs": [{"arm": "sft", "trait": "pirate"}],
            "library": [str(loud), "pirate"],
            "pathways": PATHWAYS,
            "written": {"questions": 3},
            "judge": str(model),
        },
        "distilled": {
            "runs": [{"arm": "distilled", "trait": str(loud)}],
            "scores": {"pairs": 2},
            "judge": str(model),
            "generated_directions": {"questions": 4, "filter": {}},
            "mediate": MEDIATION | {"generated": {"questions": 3, "draws": 5, "pairs": 2}},
        },
        "outside": {
            "runs": [
                {"arm": "confined", "trait": str(loud)},
                {"arm": "preventative", "trait": str(loud)},
                {"arm": "adapter", "path": str(one), "trait": str(loud)},
                {"arm": "adapter", "path": f"{one}+0.5*{two}", "trait": str(loud)},
                {"arm": "checkpoint", "path": str(other), "trait": str(loud)},
            ],
            "dictionary": role_names()[:CHARACTERS],
            "role_questions": 2,
            "instructions": ["one_sentence", "metric_units"],
        },
        "controls": {
            "runs": [sft, {"arm": "random", "trait": str(loud)}, *({"arm": "sft", "trait": name} for name in control_names()[:5])],
            "neutral": "plain",
            "train": TRAINING | {"sft": TRAINING["sft"] | {"max_steps": 1}},
            "calibrate": {"draws": 2, "later": 1, "later_draws": 1},
        },
    }
    return [_write(folder / f"{name}.yaml", shared | keys) for name, keys in studies.items()]


def kinds_missing(runs: Path) -> set[str]:
    """Return the kinds of stages of the suite of which a runs folder has none."""
    every = {kind.name for kind in vars(kinds).values() if isinstance(kind, Kind)}
    return every - {path.name.rpartition("-")[0] for path in (runs / "stages").iterdir() if path.is_dir()}


def _write(path: Path, value: dict[str, Any]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(value, file)
    return path


def _save_checkpoint(folder: Path, model: Path) -> Path:
    """Save the model with another last norm and head, as a full fine-tune would."""
    save_tiny(folder, layers=3)
    changed = AutoModelForCausalLM.from_pretrained(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if "down_proj" in name:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    changed.save_pretrained(folder)
    return folder


def _save_adapter(folder: Path, model: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["down_proj", "v_proj"]))
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1, generator=generator)
    peft.save_pretrained(folder)
    return folder
