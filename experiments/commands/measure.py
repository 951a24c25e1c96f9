"""`wellworn measure`: a study of third-party adapters, made from the command line."""

from collections.abc import Sequence
from pathlib import Path

from wellworn.data.catalog import control_names, load_trait, trait_names
from wellworn.data.files import digest, short_names, validate
from wellworn.experiments.study import Study
from wellworn.experiments.study_sections import ChatConfig


def study_of(model: str, adapters: Sequence[Path], suspected: Sequence[str], chat: ChatConfig, neutral: Path | None = None) -> Study:
    """Build the study that measures adapters.

    Args:
        model: their base.
        adapters: folders.
        suspected: traits and controls that they may have been trained on. Traits outside the library join it for this study.
        chat: how conversations are written.
        neutral: the folder of a neutral adapter of the same recipe, which all are compared with.

    Raises:
        InputError: an unknown trait, or one that does not fit.
    """
    traits = {name: load_trait(name) for name in suspected if name not in control_names()}
    own = [name for name, found in traits.items() if found.name not in trait_names() and found.contrast_pairs]
    # A third-party trait may have fewer contrast pairs than a study reads by default.
    pairs = min([Study.model_fields["contrast_pairs"].default, *(len(traits[name].contrast_pairs) for name in own)])
    folders = [folder.resolve() for folder in adapters]
    names = ", ".join(short_names(folders))
    # The name stays short for any number of adapters, and the digest keeps results of others from being written over.
    rest = f"-and-{len(folders) - 1}-more" if len(folders) > 1 else ""
    what = digest([model, list(map(str, folders)), list(suspected), chat.model_dump(mode="json"), str(neutral and neutral.resolve())], 6)
    study = {
        "name": f"measure-{folders[0].name}{rest}-{what}",
        "question": f"Does a fine-tune ({names}) move the model along persona directions that it already had?",
        "expects": "Nothing: it was trained elsewhere.",
        "refuted_by": "Nothing.",
        "model": model,
        "chat": chat,
        "library": [name for name in trait_names() if load_trait(name).contrast_pairs] + own,
        "contrast_pairs": pairs,
        "runs": [
            {"arm": "adapter", "path": str(folder), "trait": name, "neutral": str(neutral) if neutral else None}
            for folder in adapters
            for name in (suspected or (None,))
        ],
    }
    return validate(Study, study, "measure")
