"""Columns are mapped as they are written; faults of one kind are counted together."""

from collections import defaultdict

import pytest

from wellworn.data.errors import InputError
from wellworn.data.import_options import LONGEST, LeftOut, Options, Unusable, count_fields, parse_columns


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question", "a mapping is written question=FIELD"),
        ("question=a,question=b", "each once"),
        ("question=a,answer=b", "'answer' is not a field of a row here; it may be one of: question, positive, negative, system, split, id"),
        ("positive=a", "which field holds the question?"),
    ],
)
def test_a_mapping_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_columns(text)
    assert said in str(raised.value)


def test_faults_of_one_kind_are_counted_together() -> None:
    left: LeftOut = defaultdict(int)
    unusable = Unusable(Options(skip=True), left)
    for said in ("a:1: messages.3.content: must not be blank, got ' '", "a:2: messages.12.content: must not be blank, got ''"):
        with unusable.noted():
            raise InputError(said)
    for question in ("'What?'", '"What\'s that?"'):
        with unusable.noted():
            raise InputError(f"a:7: --plain has no answer to {question}")
    assert left == {"unusable: messages.….content: must not be blank": 2, "unusable: --plain has no answer to …": 2}
    unusable.settle()


def test_names_of_fields_can_be_written_whatever_they_hold() -> None:
    left: LeftOut = defaultdict(int)
    count_fields({"half \ud800": 1, "two\nlines": 1, "nothing": None, "none": [], "nobody": "", "zero": 0, "x" * 500: 1}, left, "messages.")
    assert list(left) == [r"messages.half \ud800", r"messages.two\nlines", "messages.zero", f"messages.{'x' * (LONGEST - 9)}…"]
