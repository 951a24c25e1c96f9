"""Where third-party adapters are: a folder, an address on the hub, or a weighted sum of these."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from wellworn.data.errors import InputError
from wellworn.data.files import short_names
from wellworn.data.wording import some

# A repository of the hub, a folder in it, and a revision.
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<folder>[\w./-]+?))?/?(?:@(?P<revision>[\w./-]+))?")
# What is read of an adapter's folder: its files, and what it says of its base's conversations.
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Of an update, a direction or a dose: activations stay finite numbers up to it.
LARGEST_FACTOR = 1000
_FILES = (CONFIG, WEIGHTS, "chat_template.jinja", "tokenizer_config.json")


def terms(address: str) -> list[tuple[float, str]]:
    """Return the adapters of a weighted sum, each with its weight; one adapter is a sum of one.

    Args:
        address: such as `pirate`, `pirate+0.5*poetic`, or `0.5*org/name@main`. A folder whose own name reads like a sum is that folder.

    Raises:
        InputError: a term that is not an adapter with an optional weight, or a weight that is too large.

    Example:
        >>> terms("pirate+0.5*poetic")
        [(1.0, 'pirate'), (0.5, 'poetic')]
    """
    if is_folder(address):
        return [(1.0, address)]
    found = []
    for term in address.split("+"):
        weight, star, rest = term.partition("*")
        name = (rest if star else term).strip()
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        if not name or "\0" in name or not math.isfinite(value):
            raise InputError(f"adapter {address!r}: a sum of adapters is written one+0.5*other, and {term!r} is not a part of one")
        if abs(value) > LARGEST_FACTOR:
            raise InputError(f"adapter {address!r}: the factor {value:g} must lie between {-LARGEST_FACTOR} and {LARGEST_FACTOR}")
        found.append((value, name))
    return found


def is_folder(address: str | Path) -> bool:
    """Return whether there is a folder of that name."""
    try:
        return bool(str(address)) and Path(address).is_dir()
    except (OSError, ValueError):
        # A name that no file may have.
        return False


def labels(addresses: Sequence[str]) -> list[str]:
    """Return short names of adapters, each unlike those of other adapters; a sum is written as one.

    Example:
        >>> labels(["/a/one/final", "/a/two/final+0.5*/a/pirate"])
        ['one/final', 'two/final+0.5*pirate']
    """
    sums = [terms(address) for address in addresses]
    single = list(dict.fromkeys(name for parts in sums for _, name in parts))
    shown = dict(zip(single, short_names([Path(name) for name in single]), strict=True))
    return ["+".join(shown[name] if weight == 1 else f"{weight!r}*{shown[name]}" for weight, name in parts) for parts in sums]


def find_adapter(address: str | Path) -> Path:
    """Return the folder of one adapter, which is downloaded from the hub if it is not a folder here.

    Args:
        address: a folder, or `org/name[/folder][@revision]` of a model's or a data set's repository.

    Raises:
        InputError: there is no adapter; names those that a folder or a repository holds deeper.
    """
    folder = Path(address)
    if is_folder(address):
        if not (folder / CONFIG).is_file() and (inside := sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))):
            raise InputError(f"{folder}: is not a PEFT adapter (no {CONFIG}), and holds several folders that may be: {some(inside)}")
        return folder
    hub = None if str(address).startswith(".") else _HUB.fullmatch(str(address))
    if hub is None:
        raise InputError(f"{address}: is not a PEFT adapter (no such folder)")
    return _download(str(address), hub["repo"], (hub["folder"] or "").strip("/"), hub["revision"])


@cache
def _download(address: str, repo: str, folder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{folder}/" if folder else ""
    problem: Exception | None = None
    for kind in ("model", "dataset"):
        try:
            here = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=[f"{prefix}{name}" for name in _FILES]))
        except HFValidationError:
            raise InputError(f"{address}: is not a PEFT adapter (no such folder, and not an address on the hub)") from None
        except RevisionNotFoundError:
            raise InputError(f"adapter {address!r}: {repo} has no revision {revision!r}") from None
        except RepositoryNotFoundError as error:
            problem = problem or error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            problem = error
            break
        else:
            if (here / folder / CONFIG).is_file():
                return here / folder
            raise InputError(f"adapter {address!r}: {repo} holds no {prefix}{CONFIG}{_elsewhere(repo, kind, revision)}")
    raise InputError(
        f"adapter {address!r}: no such folder here, and the hub gave no answer for it ({type(problem).__name__}); "
        "check the name and the network, or give a local folder"
    ) from None


def _elsewhere(repo: str, kind: str, revision: str | None) -> str:
    """Return where else a repository holds adapters, in words."""
    from huggingface_hub import list_repo_files

    files: list[str] = []
    # A hint is not worth an error of the network.
    with suppress(Exception):
        files = list_repo_files(repo, repo_type=kind, revision=revision)
    names = [name.removesuffix(CONFIG).strip("/") for name in files if name.endswith(CONFIG)]
    return f"; it holds adapters at {some([f'{repo}/{name}' for name in sorted(names)])}" if names else ""
