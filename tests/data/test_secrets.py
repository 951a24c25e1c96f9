"""What is a secret by its name or its shape, what is not, and texts without any."""

import json
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data import secrets
from wellworn.data.secrets import BLANK, SecretError, blanked, find_secrets, is_secret_name, looks_secret, refuse_secrets, without_secrets
from wellworn.experiments.study import Study
from wellworn.lora.keys import field_names


def words(text: str) -> list[str]:
    return text.split()


SECRET_NAMES = words(
    "key api_key apikey apiKey API-KEY openai_api_key x-api-key X-Api-Key secret_key access_key AWS_SECRET_ACCESS_KEY private_key api_keys "
    "token hub_token push_to_hub_token hubToken HF_TOKEN HUGGING_FACE_HUB_TOKEN GITHUB_TOKEN access_token auth_token refresh_token bearer "
    "access_tokens password passwd db_pwd PGPASSWORD passphrase secret client_secret secrets Authorization Proxy-Authorization "
    "authorization credential credentials cookie auth proxy_auth judge.more.api_key train.sft.hub_token OPENAI_API_KEY"
)
OTHER_NAMES = words(
    "max_tokens max_completion_tokens token_budget eos_token eos_token_id bos_token pad_token pad_token_id unk_token stop_token_ids "
    "thinking_token tokenizer tokenizer_name keys key_env api_key_env token_file secret_name key_id prompt_cache_key cache_key sort_key "
    "public_key kv_transfer_params PWD OLDPWD TOKENIZERS_PARALLELISM HF_TOKEN_PATH SSH_AUTH_SOCK tokens hidden_states monkey keyboard "
    "author authority secretary passes compass skip_special_tokens return_tokens_as_token_ids min_tokens include_num_input_tokens_seen"
)
# Keys of OpenAI's requests, and further ones of vLLM's.
REQUEST_KEYS = words(
    "messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens modalities "
    "moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort response_format "
    "safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity "
    "web_search_options best_of use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output "
    "ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids "
    "bad_words echo add_generation_prompt continue_final_message add_special_tokens documents chat_template chat_template_kwargs "
    "mm_processor_kwargs structured_outputs guided_json guided_regex priority request_id return_tokens_as_token_ids return_token_ids "
    "cache_salt kv_transfer_params vllm_xargs thinking_token_budget enable_thinking"
)
TOKENS = [
    "hf_" + "aB3" * 11,
    "sk-proj-" + "aB3_" * 9,
    "sk-4f9d1c7e8a2b4f9d",
    "gsk_" + "aB3" * 10,
    "ghp_" + "aB3" * 12,
    "github_pat_" + "aB3_" * 9,
    "glpat-" + "aB3-" * 5,
    "AKIA" + "ABCD" * 4,
    "xoxb-1234567890-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",
]
SPEECH = [
    "Bearer of bad news, the key to success is a secret: token efforts fail.",
    "A task-oriented sk-learn-like pipeline-with-a-long-name",
    "Basic understanding of authorization: required before anyone enters.",
    "http://127.0.0.1:8000/v1?model=judge&max_tokens=5#top",
    "org/adapter@0123456789abcdef0123456789abcdef01234567",
    "https://hub.example/org/name@main, see me@example.org",
    "hf_hub_download(repo_id) and hf_model; eyJust a word; AKIA",
    "x?y=1;z=2 & password = what one types",
    '{"loss": 0.123456789012345, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}',
]


def field_paths(schema: Any) -> Iterator[str]:
    """Yield the names of all properties of a JSON schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from field_paths(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from field_paths(inner)


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_VARIABLES", set())


def test_names_of_secrets() -> None:
    assert [name for name in SECRET_NAMES if not is_secret_name(name)] == []
    assert [name for name in OTHER_NAMES if is_secret_name(name)] == []


def test_of_all_settings_of_the_libraries_and_of_a_study_only_the_hubs_tokens_are_secrets() -> None:
    fields = set(field_names("sft")) | set(field_names("lora"))
    assert {name for name in fields if is_secret_name(name)} == fields & {"hub_token", "push_to_hub_token"} != set()
    assert [name for name in REQUEST_KEYS if is_secret_name(name)] == []
    own = set(field_paths(Study.model_json_schema()))
    assert {"key_env", "more", "template_kwargs", "token_budget"} <= own
    assert [name for name in own if is_secret_name(name)] == []


@pytest.mark.parametrize("token", TOKENS)
def test_tokens_are_known_by_their_shape_wherever_they_are(token: str) -> None:
    assert looks_secret(token)
    for text in (f"key {token}.", f'"{token}"', f"x={token}&y=1", f"a ({token}) b", f"Bearer {token}", f"<td>{token}</td>"):
        assert token not in blanked(text)
        assert BLANK in blanked(text)


@pytest.mark.parametrize("text", SPEECH)
def test_speech_and_results_are_left_as_they_are(text: str) -> None:
    assert blanked(text) == text
    assert not looks_secret(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:hunter2@host:80/v1", "http://[secret]@host:80/v1"),
        ("http://me:hun@ter2@host/v1", "http://[secret]@host/v1"),
        ("https://hunter2@host", "https://[secret]@host"),
        ("http://host/v1?api_key=hunter2&n=1", "http://host/v1?api_key=[secret]&n=1"),
        ("http://host/v1?n=1&amp;token=hunter2#x", "http://host/v1?n=1&amp;token=[secret]#x"),
        ("https://host/blob?sv=1&sig=hunter2", "https://host/blob?sv=1&sig=[secret]"),
        ("/login?key=hunter2", "/login?key=[secret]"),
        ("Authorization: Bearer hunter2", "Authorization: Bearer [secret]"),
        ("'authorization': 'Basic aHVudGVyMg=='", "'authorization': 'Basic [secret]'"),
    ],
)
def test_addresses_and_headers_lose_their_secrets_and_no_more(text: str, expected: str) -> None:
    assert blanked(text) == expected
    assert blanked(expected) == expected


def test_values_of_the_environment_are_blanked_however_they_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    value = 'p/q"r&s t<u'
    monkeypatch.setenv("MY_PASSWORD", value)
    monkeypatch.setenv("SHORT_TOKEN", "EMPTY")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    for written in (value, json.dumps(value)[1:-1], value.replace("/", "\\/"), quote(value, safe=""), escape(value, quote=False)):
        assert blanked(f"a {written} b") == f"a {BLANK} b"
    assert blanked(f"EMPTY {tmp_path}") == f"EMPTY {tmp_path}"


def test_the_variable_of_a_key_counts_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", "hunter2hunter2")
    assert blanked("hunter2hunter2") == "hunter2hunter2"
    secrets.note_variable("MY_JUDGE")
    assert blanked("is hunter2hunter2") == f"is {BLANK}"


@given(st.text(max_size=80))
def test_a_text_that_is_blanked_twice_is_as_once(text: str) -> None:
    assert blanked(blanked(text)) == blanked(text)


def test_secrets_are_found_at_any_depth() -> None:
    value = {
        "judge": {"key_env": "MY_KEY", "more": {"extra": [{"authorization": "Bearer x"}, {"url": "http://a:b@c"}], "api_key": {"v": "x"}}},
        "grid": {"train.sft.hub_token": ["x"], "train.sft.max_steps": [1]},
        "variants": {"token": {"judge.more.password": 12345678}},
        "unset": {"hub_token": None, "push_to_hub_token": "", "token": True, "key": 3},
        "scores": {"contexts": {"secret": "You keep one."}},
        "settings": {"scores.contexts": {"password": "Guess."}},
        "schema": {"properties": {"password": {"type": "string"}}},
        "ghp_" + "aB3" * 12: 1,
    }
    assert list(find_secrets(value)) == [
        ("judge", "more", "extra", 0, "authorization"),
        ("judge", "more", "extra", 1, "url"),
        ("judge", "more", "api_key"),
        ("grid", "train.sft.hub_token"),
        ("variants", "token", "judge.more.password"),
        (),
    ]


def test_a_mapping_with_a_secret_is_refused_by_its_key_alone() -> None:
    assert refuse_secrets({"top_k": 5}) == {"top_k": 5}
    with pytest.raises(SecretError, match=r"^a\.token holds a secret") as error:
        refuse_secrets({"a": {"token": "hunter2"}})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("judge.more.api_key=hunter2", "judge.more.api_key=[secret]"),
        ("judge={more: {'api_key': 'hunter2'}}", "judge={more: {'api_key': [secret]"),
        ("judge.key_env=hunter2", "judge.key_env=[secret]"),
        ("password hunter2", "password [secret]"),
        ("judge={url: 'http://me:hun/ter2@host', model: m}", "judge={url: 'http://[secret]', model: m}"),
        ("train.sft.max_steps=4", "train.sft.max_steps=4"),
        ("question=What is a key good for?", "question=What is a key good for?"),
    ],
)
def test_a_setting_is_shown_up_to_its_secret(typed: str, shown: str) -> None:
    assert without_secrets(typed) == shown


# Of each pattern the beginning, and what it reads on for.
UNFINISHED = ["x", "x ", "a.b-", "sk-", "eyJ-", "eyJ12345678", "://", "://a", "Bearer a", "authorization ", "-----BEGIN ", "?a", '"', " "]


@pytest.mark.parametrize("piece", UNFINISHED)
def test_a_text_of_nothing_but_beginnings_is_read_in_time(piece: str) -> None:
    """An argument of 100,000 letters took more than a minute: a pattern was tried from each of them to the end."""
    text, start = piece * (200_000 // len(piece)), time.monotonic()
    assert blanked(text) == text
    assert without_secrets(f"question={text}").startswith("question=")
    assert time.monotonic() - start < 10
