"""The stage `averaged`: the states that chance is drawn from where a share is compared with those of other fine-tunes."""

from pathlib import Path

from safetensors.numpy import load_file

from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.nested_space import averaged_rows
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.probes.statistics.intervals import FloatArray

STATES = "states.safetensors"


def averaged_stage(layer: int, own: str | None, space_stages: SpaceStages) -> Stage:
    """Average the states of the persona space over questions, one a persona and prompt, without the run's own trait: [N, d_model].

    Args:
        layer: the layer where shares are read.
        own: the run's trait.
        space_stages: the persona space.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        return {STATES: {"rows": averaged_rows(space_stages.load(folders.within("space")), layer, layer, own)}}

    title = f"averaged states of the persona space without {own}" if own else "averaged states of the persona space"
    config, inputs = {"layer": layer, "own": own}, in_group("space", space_stages.inputs)
    return Stage(kind=kinds.AVERAGED, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)


def load_averaged(folder: Path) -> FloatArray:
    """Load the states of a finished stage, [N, d_model]."""
    return load_file(folder / STATES)["rows"].astype("float64")
