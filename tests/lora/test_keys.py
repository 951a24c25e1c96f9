"""Names of PEFT's and TRL's keys: what is known without loading them is true of them, and a wrong name leads to the right one."""

import subprocess
import sys

import pytest

from wellworn.lora.keys import OWNED, SYNONYMS, USUAL, Section, field_names, unknown_keys

SECTIONS: tuple[Section, ...] = ("lora", "sft")


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_known_without_loading_is_true(section: Section) -> None:
    names = field_names(section)
    assert names >= USUAL[section]
    assert names >= set(SYNONYMS[section].values())
    assert not names & SYNONYMS[section].keys()
    # Not a field of TRL's: a shorter name of one.
    assert names >= OWNED[section].keys() - {"batch_size"}


@pytest.mark.parametrize(
    ("section", "key", "meant"),
    [
        ("lora", "rank", "r"),
        ("lora", "alpha", "lora_alpha"),
        ("lora", "target_module", "target_modules"),
        ("sft", "lr", "learning_rate"),
        ("sft", "epochs", "num_train_epochs"),
        ("sft", "learning_rat", "learning_rate"),
        ("sft", "max_seq_length", "max_length"),
    ],
)
def test_a_wrong_name_leads_to_the_right_one(section: Section, key: str, meant: str) -> None:
    [(got, message)] = unknown_keys(section, [key]).items()
    assert got == key
    assert message.endswith(f"has no such key; did you mean {meant!r}?")


def test_right_names_are_not_complained_of_and_odd_ones_say_where_the_list_is() -> None:
    assert unknown_keys("lora", ["r", "use_dora", "rank_pattern"]) == {}
    assert unknown_keys("sft", ["qqqq"]) == {"qqqq": "SFTConfig has no such key; it may be any field of trl.SFTConfig"}


def test_usual_names_and_common_mistakes_load_neither_library() -> None:
    code = (
        "import sys; from wellworn.lora.train_config import TrainConfig;"
        "wrong = TrainConfig(lora={'r': 4, 'alpha': 8}, sft={'lr': 1, 'max_steps': 3}).find_unknown_keys();"
        "print(sorted(wrong), [m for m in ('torch', 'peft', 'trl', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[('lora', 'alpha'), ('sft', 'lr')] []"
