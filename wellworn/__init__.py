"""Does a fine-tune walk the persona paths that a model already has, or does it cut new ones?

From a notebook, `import wellworn as ww` gives the names in `__all__`; each is loaded when it is first used, so that the import itself takes
no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Exchange",
    "InputError",
    "Model",
    "Turn",
    "direction",
    "directions",
    "generate",
    "load",
    "mediate",
    "read",
    "results",
    "share",
    "shift",
    "space",
    "steer",
]

if TYPE_CHECKING:
    from wellworn.activations import read, share, shift
    from wellworn.behaviour import generate, mediate, steer
    from wellworn.data.errors import InputError
    from wellworn.data.mixtures import Turn
    from wellworn.data.schema import Exchange
    from wellworn.finished import results
    from wellworn.model import Model, load
    from wellworn.personas import direction, directions, space
else:
    # No file here has the name of a public function: once imported, it would take the function's place.
    _HOMES = {
        "Exchange": "data.schema",
        "InputError": "data.errors",
        "Turn": "data.mixtures",
        "results": "finished",
        **dict.fromkeys(("Model", "load"), "model"),
        **dict.fromkeys(("read", "share", "shift"), "activations"),
        **dict.fromkeys(("direction", "directions", "space"), "personas"),
        **dict.fromkeys(("generate", "mediate", "steer"), "behaviour"),
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
