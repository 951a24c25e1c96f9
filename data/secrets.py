"""What must be neither stored nor shown: names of secrets, shapes of keys and tokens, and a text without them.

A name is judged by its words: `hub_token` and `api_key` are secrets, `eos_token`, `max_tokens`, `key_env` and `prompt_cache_key` are not.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from wellworn.data.errors import Location

BLANK = "[secret]"
# Shorter values ("none", "EMPTY") are not secrets, but words that a text may hold.
SHORTEST = 8

# A word of the first kind anywhere makes a name a secret's; one of the second kind at its end, unless the word before it says otherwise.
_ALWAYS = frozenset(
    {"apikey", "authorization", "bearer", "cookie", "credential", "credentials", "passphrase", "passwd", "password", "passwords"}
    | {"secret", "secrets"}
)
_ENDINGS = ("apikey", "authtoken", "accesstoken", "passwd", "password")
_AT_END = frozenset({"auth", "key", "token"})
# Tokens of a tokenizer, and keys by which something is found.
_OTHER_TOKENS = frozenset(
    {"additional", "answer", "assistant", "audio", "begin", "bos", "cls", "end", "eos", "eot", "first", "image", "last", "mask", "max"}
    | {"min", "next", "num", "pad", "per", "reasoning", "sep", "special", "start", "stop", "system", "think", "thinking", "tool", "unk"}
    | {"user", "video", "word"}
)
_OTHER_KEYS = frozenset({"cache", "column", "dict", "foreign", "group", "index", "lookup", "partition", "primary", "public", "row", "sort"})
_PLURALS = {"keys": "key", "tokens": "token"}
_BEFORE_PLURALS = frozenset({"access", "api", "auth", "hub", "private"})
# Under these a user's own names are, and not keys: of system prompts, of variants, and of properties in a JSON schema.
_NAMED = frozenset({"contexts", "properties", "variants"})

# Each pattern has a bound wherever a match may fail only at the end of a long run: else a text of such runs would take hours.
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|sk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{16,}|gsk_[A-Za-z0-9]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|nvapi-[A-Za-z0-9_-]{20,}|r8_[A-Za-z0-9]{20,}"
    r"|eyJ[A-Za-z0-9_-]{8,1000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r")"
)
# What follows the name of a scheme: a long word with a digit, or any after the header's name.
_SCHEME = re.compile(
    r"(?i:(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+))[^\s\"'<>,;]{4,}"
    r"|(\bBearer\s+)(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,}"
)
_USER = re.compile(r"(?<=://)[^\s/\"'<>?#\\]+@")
# An address with a user, a query or a fragment, where a password may have any character in it.
_ADDRESS = re.compile(r"(?<=://)[^\s\"',}]{0,1000}[@?#][^\s\"',}]*")
_PARAMETER = re.compile(r"(?<=[?&;#])([\w.-]{2,60})=([^\s&#;\"'<>\\]+)")
_PAIR = re.compile(r"(?<![\w.-])(?:([\w.-]+)[\"']?\s*[:=]\s*|([\w.-]+)[\"']?\s+)")
# Variables that hold a server's key, whatever they are called.
_VARIABLES: set[str] = set()


class SecretError(ValueError):
    """A complaint about a value that may be a secret, so that the value must not be quoted."""


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Return whether a key, header or variable of this name holds a secret; of a dotted key the last part counts.

    Example:
        >>> [name for name in ("api_key", "X-Auth-Token", "hubToken", "eos_token", "max_tokens", "key_env") if is_secret_name(name)]
        ['api_key', 'X-Auth-Token', 'hubToken']
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if not words or words[-1] in ("env", "file", "id", "ids", "name", "path", "type"):
        return False
    if any(word in _ALWAYS or word.endswith(_ENDINGS) for word in words):
        return True
    *before, last = words
    if last in _PLURALS:
        return before[-1:] != [] and before[-1] in _BEFORE_PLURALS
    if last == "pwd":  # alone it is the working directory
        return bool(before)
    others = {"token": _OTHER_TOKENS, "key": _OTHER_KEYS}.get(last, frozenset())
    return last in _AT_END and (not before or before[-1] not in others)


def looks_secret(value: str) -> bool:
    """Return whether a text holds a key or token of a well-known shape, or an address with a password."""
    return _without_shapes(value) != value


def find_secrets(value: Any, at: Location = ()) -> Iterator[Location]:
    """Yield the places in plain values where a secret is, or what looks like one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = (*at, key)
            named = bool(at) and str(at[-1]).rpartition(".")[2] in _NAMED
            if not named and is_secret_name(str(key)) and _holds_text(inner):
                yield place
            elif looks_secret(str(key)):
                yield at
            else:
                yield from find_secrets(inner, place)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from find_secrets(inner, (*at, i))
    elif isinstance(value, str) and looks_secret(value):
        yield at


def refuse_secrets(mapping: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping that holds no secret.

    Raises:
        SecretError: it holds one; names its key.
    """
    for place in find_secrets(mapping):
        raise SecretError(f"{'.'.join(map(str, place)) or 'a key'} {SECRET_HERE}")
    return mapping


SECRET_HERE = (
    "holds a secret, or what looks like one, and settings are stored and shown; remove it. "
    "A server's key comes from the environment variable that key_env names, a hub's token from HF_TOKEN"
)


def note_variable(name: str) -> None:
    """Note that an environment variable holds a key, so that `blanked` blanks out its value whatever its name."""
    _VARIABLES.add(name)


def blanked(text: str) -> str:
    """Return a text without secrets: values of the environment's secrets, passwords in addresses, and tokens of well-known shapes."""
    if len(text) < SHORTEST:  # most are first tokens of replies
        return text
    for secret in _known():
        if secret in text:
            text = text.replace(secret, BLANK)
    return _without_shapes(text)


def without_secrets(text: str) -> str:
    """Return a setting as it was typed, cut after the first name of a secret; otherwise as `blanked`.

    Example:
        >>> without_secrets("judge.more={user: me, password: hunter2}")
        'judge.more={user: me, password: [secret]'
    """
    # A key may be given where the name of its variable belongs, and a space in place of the equals sign.
    found = next((pair for pair in _PAIR.finditer(text) if _before_secret(pair[1] or ("" if "=" in text else pair[2]))), None)
    return blanked(_ADDRESS.sub(BLANK, text if found is None else text[: found.end()] + BLANK))


def _before_secret(name: str) -> bool:
    return is_secret_name(name) or name.rpartition(".")[2] == "key_env"


def _without_shapes(text: str) -> str:
    text = _SCHEME.sub(lambda found: (found[1] or found[2]) + BLANK, text)
    if "://" in text:
        text = _USER.sub(f"{BLANK}@", text)
    text = _PARAMETER.sub(_without_value, text)
    return _SHAPES.sub(BLANK, text)


def _without_value(found: re.Match[str]) -> str:
    name = found[1]
    return f"{name}={BLANK}" if is_secret_name(name) or name.lower().endswith(("sig", "signature")) else found[0]


def _known() -> list[str]:
    """Return the values of the environment's secrets, as they are and as JSON, an address or a page would write them, the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        value = value.strip()
        # A variable may name the file that holds the secret.
        if len(value) >= SHORTEST and (name in _VARIABLES or is_secret_name(name)) and not os.path.exists(value):
            found |= {value, value.replace("/", "\\/"), value.replace("\\", "\\\\").replace('"', '\\"'), quote(value, safe="")}
            found.add(value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return sorted(found, key=len, reverse=True)


def _holds_text(value: Any) -> bool:
    """Whether a secret may be in this value; null, true and small numbers are not secrets."""
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    # A number of fewer digits is a setting.
    return bool(value) if isinstance(value, str) else isinstance(value, int) and abs(value) >= 10**5
