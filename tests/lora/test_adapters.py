"""What an adapter's folder says of its base, and how adapters are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.lora.test_fit import edit, save_adapter
from tests.tiny import CHATML
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.files import short_names, validate
from wellworn.data.mixtures import Turn
from wellworn.experiments.findings.adapted import read_adapted
from wellworn.experiments.study_sections import ChatConfig
from wellworn.lora.adapters import unlike_base
from wellworn.lora.models import Loaded, ModelRef

OTHER = "A talk with a helper.\n" + CHATML


@pytest.mark.parametrize(
    ("config", "revision", "said"),
    [
        ({"base_model_name_or_path": "/home/someone/models/tiny"}, None, []),
        ({"base_model_name_or_path": "org/Tiny"}, None, []),
        ({"base_model_name_or_path": None}, None, []),
        ({"base_model_name_or_path": "org/large"}, None, ["names the base org/large, and it is put on local:tiny@"]),
        ({"base_model_name_or_path": "/home/someone/large/"}, None, ["names the base large, and it is put on local:tiny@"]),
        ({"base_model_name_or_path": "org/tiny", "revision": "main"}, "abc123", []),
        ({"base_model_name_or_path": "org/tiny", "revision": "abc1"}, "abc123", []),
        ({"base_model_name_or_path": "org/tiny", "revision": "v2"}, "abc123", ["revision v2 of its base, and it is put on abc123"]),
        ({"base_model_name_or_path": "org/tiny", "revision": "v2"}, None, []),
    ],
)
def test_another_base_or_revision_is_said(
    config: dict[str, Any], revision: str | None, said: list[str], base: Loaded, adapter: Path
) -> None:
    edit(adapter, config)
    found = unlike_base(ModelRef(base.ref.id, base.ref.path, revision), adapter, "model")
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))
    assert not any("/home" in sentence for sentence in found)


def test_a_base_may_be_named_by_the_folder_that_it_is_kept_in(base: Loaded, adapter: Path) -> None:
    kept = ModelRef("smollm2-135m@b179c9523d0e", "/here/models/smollm2-135m-b179c9523d0e", None)
    edit(adapter, {"base_model_name_or_path": "/there/models/smollm2-135m-b179c9523d0e"})
    assert unlike_base(kept, adapter, "plain") == []
    edit(adapter, {"base_model_name_or_path": "/there/models/smollm2-135m-000000000000"})
    (said,) = unlike_base(kept, adapter, "plain")
    assert "names the base smollm2-135m-000000000000, and it is put on smollm2-135m@b179c9523d0e" in said


def test_another_chat_template_is_said_and_can_be_taken(base: Loaded, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, {"base_model_name_or_path": "tiny"})
    template = adapter / "chat_template.jinja"
    template.write_text(CHATML + "\n", encoding="utf-8")
    assert unlike_base(base.ref, adapter, "model") == []
    template.write_text(OTHER, encoding="utf-8")
    (said,) = unlike_base(base.ref, adapter, "model")
    assert "another chat template" in said
    assert unlike_base(base.ref, adapter, str(template)) == []
    # Older releases keep it in another file.
    template.rename(tmp_path / "own.jinja")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": OTHER}), encoding="utf-8")
    assert unlike_base(base.ref, adapter, "model") == [said]

    chosen = ChatConfig(template=str(tmp_path / "own.jinja"))
    written = chosen.of(base.tokenizer, None).encode_prompt("Where?")
    assert "helper" in base.tokenizer.decode(written)
    assert written != Chat(base.tokenizer).encode_prompt("Where?")
    assert chosen.of(base.tokenizer, None).encode(Turn("Where?", "There.")).completion_mask


def test_a_template_counts_by_what_it_holds(tmp_path: Path) -> None:
    for name, text in (("a", OTHER), ("b", OTHER), ("c", CHATML)):
        (tmp_path / f"{name}.jinja").write_text(text, encoding="utf-8")
    a, b, c = (ChatConfig(template=str(tmp_path / f"{name}.jinja")).identity() for name in "abc")
    assert a == b != c
    assert "template" in ChatConfig().identity()
    with pytest.raises(InputError, match=r"template: may be model, plain or the path of a \.jinja file, got 'none\.jinja'"):
        validate(ChatConfig, {"template": "none.jinja"}, "study.yaml")


def test_folders_of_one_name_are_discriminated_by_those_around_them() -> None:
    folders = [Path(name) for name in ("/r/one/seed0/final", "/r/two/seed0/final", "/r/two/seed1/final", "/r/base", "/r/one/seed0/final")]
    names = ["one/seed0/final", "two/seed0/final", "seed1/final", "r/base", "one/seed0/final"]
    assert short_names(folders, taken=("base",)) == names


@pytest.mark.parametrize(
    ("settings", "modules", "words"),
    [
        ({}, 8, "applied: all 8 modules of its file, at layers 0 to 3; the state moves from layer 0 on"),
        ({"target_modules": ["lm_head"]}, 1, "applied: all 1 modules of its file; no state moves, only what is read from the last"),
        ({"layers_to_transform": [2]}, 2, "applied: all 2 modules of its file, at layer 2; the state moves from layer 2 on"),
    ],
)
def test_what_an_adapter_changes_is_said(settings: dict[str, Any], modules: int, words: str, base: Loaded, tmp_path: Path) -> None:
    found = read_adapted(save_adapter(base, tmp_path / "adapter", **settings))
    assert found.modules == modules
    assert words in found.in_words


def test_what_stands_before_the_blocks_moves_every_state(tmp_path: Path) -> None:
    names = ["model.embed_tokens", "model.layers.3.mlp.up_proj", "model.layers.2.mlp.experts.base_layer", "model.layers.2.mlp.experts"]
    save_file({f"base_model.model.{name}.lora_A.weight": torch.zeros(1, 1) for name in names}, tmp_path / "adapter_model.safetensors")
    found = read_adapted(tmp_path)
    assert (found.modules, found.layers, found.first) == (3, [2, 3], 0)
