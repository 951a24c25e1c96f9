"""Capabilities that a fine-tune loses on public benchmarks: tasks of lm-evaluation-harness (the extra `eval`), on the model in memory.

Prompts, metrics, standard errors and seeds are lm-eval's own: figures of the base equal those of its command line. Base and adapters
answer the same items, so items lost and gained are counted one by one.
"""

import difflib
import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from wellworn.data.errors import Complaints, InputError
from wellworn.experiments.stages.capability import BUILTIN, Compared, compare_items
from wellworn.lora import adapters as lora_adapters
from wellworn.lora import models
from wellworn.probes.reading.variants import Variant, applied

# The index has some fifteen thousand names.
MOST_NEAR = 5
# (task, metric, filter) → item → value
Items = dict[tuple[str, str, str], dict[Any, float]]


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        tasks_dir: folder of further tasks, as YAML.
        limit: number of items of each task, from its first; None for all.
        fewshot: examples before each item; None for the number that the task names, or else none.
        chat_template: write items as turns of a user, by the model's own template.
        batch_size: rows at a time.
    """

    tasks_dir: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    chat_template: bool = False
    batch_size: int = 8


@dataclass(frozen=True)
class Figure:
    """One metric of one task.

    Attributes:
        task: name of a task, or of a group of tasks.
        metric: its name in lm-eval.
        filter: how answers are parsed, where a task has several ways; mostly `none`.
        value: over items, as the task aggregates them; None where it is not finite.
        stderr: lm-eval's standard error over items; None where it gives none.
        higher_is_better: None where the task does not say.
        version: version of the task.
        fewshot: examples before each item.
        compared: items right, and items lost and gained relative to the base; None for metrics other than 0 or 1 per item.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    version: str | None
    fewshot: int | None
    compared: Compared | None


@dataclass(frozen=True)
class Row:
    """The results of one model: its name, and a figure for each metric of each task."""

    name: str
    figures: list[Figure]


@dataclass(frozen=True)
class Tasks:
    """Tasks with their data sets.

    Attributes:
        manager: lm-eval's index of tasks.
        roots: tasks and groups that were asked for.
    """

    manager: Any
    roots: list[Any]


def set_up(names: Sequence[str], settings: Settings) -> Tasks:
    """Find tasks by name and fetch their data sets, before a model is loaded.

    Args:
        names: tasks, groups or tags of lm-eval, with its wild cards.
        settings: names the folder of further tasks.

    Raises:
        InputError: lm-eval is not installed, or a name is unknown, or a task cannot be set up or is not supported. One error names all.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(f"--suite {','.join(names)}: needs lm_eval; install the extra: pip install -e '.[eval]'")
    from lm_eval.tasks import TaskManager

    if settings.tasks_dir is not None and not settings.tasks_dir.is_dir():
        raise InputError(f"--tasks-dir {settings.tasks_dir}: the folder does not exist; it must hold lm-eval tasks, as YAML")
    manager = TaskManager(include_path=str(settings.tasks_dir) if settings.tasks_dir else None)
    complaints, roots = Complaints(), dict[str, Any]()
    for name in names:
        with complaints.noted():
            for found in _match(name, manager, settings.tasks_dir):
                roots |= _load(found, manager)
    complaints.settle()
    try:
        manager.load(list(roots.values()))
    except ValueError as error:  # a task, and a group that contains it
        raise InputError(f"--suite {','.join(names)}: {error}; name only one of the two") from None
    return Tasks(manager, list(roots.values()))


def _match(name: str, manager: Any, tasks_dir: Path | None) -> list[str]:
    if found := manager.match_tasks([name]):
        return list(found)
    near = difflib.get_close_matches(name, [BUILTIN, *manager.all_tasks], n=MOST_NEAR)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them"
    # lm-eval skips files that it cannot read.
    own = f", nor a task in {tasks_dir} whose YAML can be read" if tasks_dir else ""
    raise InputError(f"--suite: {name!r} is neither {BUILTIN!r} nor a task of lm-eval{own}; {hint}")


def _load(name: str, manager: Any) -> dict[str, Any]:
    """Return the top-level tasks and groups of a name: those that are not in another group of it."""
    from datasets.exceptions import DatasetsError

    try:
        loaded = manager.load([name])
    except OSError as error:
        raise InputError(
            f"task {name}: its data set or a metric cannot be loaded ({_line(error)}); lm-eval downloads them from the hub once, "
            "which needs the network, and HF_HUB_OFFLINE unset"
        ) from None
    except (DatasetsError, ImportError, KeyError, ValueError) as error:
        raise InputError(f"task {name}: cannot be set up ({type(error).__name__}: {_line(error)})") from None
    for task in loaded["tasks"].values():
        # A task has these keys only where they apply.
        for mark, does in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "shows more than text")):
            if getattr(task, mark, False):
                raise InputError(f"task {task.task_name}: {does}, which is not supported; remove it")
    inside = {child for children in loaded["group_map"].values() for child in children}
    return {key: each for kind in ("groups", "tasks") for key, each in loaded[kind].items() if key not in inside}


def _line(error: Exception) -> str:
    return (str(error).strip("'\"").splitlines() or [type(error).__name__])[0]


def measure(base: models.Loaded, adapters: Mapping[str, Path], tasks: Tasks, settings: Settings) -> Iterator[Row]:
    """Yield the results of the base and of each adapter, in that order, as each is finished.

    Args:
        base: the model, which is not loaded again.
        adapters: name → folder.
        tasks: from `set_up`.
        settings: how they are run.

    Raises:
        InputError: an adapter that does not fit, or a chat template that was asked for and is missing.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    if settings.chat_template and not base.tokenizer.chat_template:
        raise InputError(f"--chat-template: {base.ref.id} has no chat template; remove the option")
    before: Items = {}
    with lora_adapters.adapted(base, adapters) as model:
        # lm-eval warns about a model that is already in memory, which is intended here. Its other warnings are kept.
        log = logging.getLogger(HFLM.__module__)
        level = log.level
        log.setLevel(logging.ERROR)
        lm = HFLM(pretrained=model, tokenizer=base.tokenizer, batch_size=settings.batch_size)
        log.setLevel(level)
        for name in (None, *adapters):
            with applied(model, Variant(name)):
                found = simple_evaluate(
                    lm,
                    tasks=tasks.roots,
                    task_manager=tasks.manager,
                    num_fewshot=settings.fewshot,
                    limit=settings.limit,
                    apply_chat_template=settings.chat_template,
                )
            items = _items(found)
            yield Row(name or "base", list(_figures(found, items, before if name else None)))
            before = before or items


def _items(found: Mapping[str, Any]) -> Items:
    """Return every metric that is a number for each item, of tasks and of groups of tasks."""
    items: Items = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], Real | np.bool_):
                    items.setdefault((task, metric, sample["filter"]), {})[task, sample["doc_id"]] = float(sample[metric])
    for group in found["group_subtasks"]:
        leaves = _leaves(group, found["group_subtasks"])
        for (task, metric, how), values in list(items.items()):
            if task in leaves:
                items.setdefault((group, metric, how), {}).update(values)
    return items


def _leaves(name: str, children: Mapping[str, Sequence[str]]) -> set[str]:
    return set().union(*(_leaves(child, children) for child in children[name])) if name in children else {name}


def _figures(found: Mapping[str, Any], items: Items, before: Items | None) -> Iterator[Figure]:
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            of_task = found["versions"].get(task)
            yield Figure(
                task,
                metric,
                how,
                _finite(value),
                _finite(metrics.get(f"{metric}_stderr,{how}")),
                found["higher_is_better"].get(task, {}).get(metric),
                None if of_task is None else str(of_task),
                found["n-shot"].get(task),
                _compare(items.get((task, metric, how)), None if before is None else before.get((task, metric, how), {})),
            )


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _compare(now: Mapping[Any, float] | None, before: Mapping[Any, float] | None) -> Compared | None:
    """Compare items with the base's (None for the base itself), if all are either right or wrong and both have the same items."""
    if not now or not {*now.values(), *(before or {}).values()} <= {0.0, 1.0} or (before is not None and now.keys() != before.keys()):
        return None
    right = np.array([value == 1 for value in now.values()])
    return compare_items(right, None if before is None else np.array([before[item] == 1 for item in now]))


def settings_json(settings: Settings) -> dict[str, Any]:
    """Return settings as they are written with figures: without local folders, with lm-eval's version."""
    return {key: value for key, value in asdict(settings).items() if key != "tasks_dir"} | {"lm_eval": version("lm_eval")}


def table(rows: Sequence[Row], base: str, settings: Settings) -> Table:
    """Return a line for each metric of each task, and each model."""
    shown = "as a user's turn of the chat template" if settings.chat_template else "without a chat template"
    few = "" if settings.limit is None else f"; the first {settings.limit} items of each task"
    caption = (
        f"{escape(base)}, {shown}{few}; ± standard error, − lost and + gained items compared with the base, p of a sign test over items"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    for column in ("task", "metric", "shots", "", "value", "lost, gained", "p"):
        table.add_column(column, justify="left" if column in ("task", "metric", "") else "right")
    for k, first in enumerate(rows[0].figures):
        metric = first.metric if first.filter == "none" else f"{first.metric} ({first.filter})"
        shots = "" if first.fewshot is None else str(first.fewshot)
        for row in rows:
            figure = row.figures[k]
            value = "–" if figure.value is None else f"{figure.value:.4g}"
            value += "" if figure.stderr is None else f" ± {figure.stderr:.2g}"
            by_item = figure.compared
            change = ("", "") if by_item is None or by_item.p is None else (f"−{by_item.lost} +{by_item.gained}", f"{by_item.p:.2g}")
            named = (escape(first.task), escape(metric), shots) if row is rows[0] else ("", "", "")
            table.add_row(*named, escape(row.name), value, *change)
    return table
