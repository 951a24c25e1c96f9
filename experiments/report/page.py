"""The report as one HTML file: it opens from disk, makes no network requests, and treats all model text as hostile."""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from wellworn.data.wording import visible
from wellworn.experiments.findings.false_verdicts import COUNTED
from wellworn.experiments.findings.group_rows import GroupRow
from wellworn.experiments.findings.nearest_personas import SHOWN, Persona
from wellworn.experiments.findings.projected_shift import TEXTS
from wellworn.experiments.findings.results import Results, RunResult, run_name
from wellworn.experiments.findings.run_rows import RUNS_FOR_A_CLAIM, RunRow
from wellworn.experiments.findings.summary import Summary
from wellworn.experiments.findings.verdict import RULE
from wellworn.experiments.report import mediation, own_answers, panels, pathways, stand_ins, wording, written
from wellworn.experiments.report.figures import (
    Figure,
    Shown,
    Style,
    cosine_bars,
    cosines_by_layer,
    dimension_curve,
    reliability_by_layer,
    run_style,
    share_by_layer,
    share_limits,
    training_curves,
)
from wellworn.experiments.report.scores import in_contexts, side_by_side
from wellworn.experiments.stages.measurement import Dose, Measurement, ShiftReading
from wellworn.experiments.stages.scores import UNDER
from wellworn.probes.geometry.directions import FOUND_RELIABILITY
from wellworn.probes.statistics.intervals import Estimate, decimal

# With more panels than this, a group of figures starts folded.
OPEN_PANELS = 12
SAYINGS = 4

_ABSOLUTE = re.compile(r"[/\\]|~\w*[/\\]|[A-Za-z]:[/\\]")
_PLAIN = {
    "along existing persona directions": "most of the behaviour change that this layer carries goes through the base's persona directions",
    "new directions": "little of the behaviour change goes through the base's persona directions; the run needs what it adds outside them, "
    "and the base is shown not to use that",
    "existing, but not in the library": "little of the behaviour change goes through the persona space; what lies outside is a direction "
    "that the base model uses and this space lacks",
    "mixed": "a part of the behaviour change goes through the base's persona directions, and a part does not",
    "carried elsewhere": "the state at this layer carries too little of the change in behaviour to ask what part of it does",
    "share above chance": "more of the change lies along persona directions that the base model already had than chance explains",
    "share at chance": "no more of the change lies along the base model's persona directions than chance explains",
    "undecided": "it stays open how much of the change goes along persona directions that the base model already had",
    "too noisy": "the shift is too noisy to say how much of it lies along the base model's persona directions",
    "no trait change": "the trait itself did not clearly change, so there is no change to explain",
}
_TEXTS = {
    "neutral": "plain answers",
    "own": "its own answers",
    "trait": "trait answers",
    "prompt_last": "last prompt token",
}


def page(results: Results, summary: Summary) -> str:
    """Return the report of a study as one self-contained HTML page; the same input gives the same bytes.

    Args:
        results: the study's finished stages.
        summary: the result of `summarise`.
    """
    names = _names(results)
    curves = [run.facts.by_layer for run in results.runs if run.facts]
    limits = share_limits(curves)
    runs = [
        _run(results, run, row, number, name, limits)
        for number, (run, row, name) in enumerate(zip(results.runs, summary.runs, names, strict=True))
    ]
    trained = [(view["name"], view["style"], run.curve) for view, run in zip(runs, results.runs, strict=True) if run.curve]
    loss = training_curves("training", trained) if trained else None
    directions = _directions(results, summary)
    figures = [figure for view in runs for figure in view["figures"].values()]
    figures += [each["figure"] for each in directions] + ([loss] if loss else [])
    together = [_group(group) for group in summary.groups]
    named = [(view["name"], group) for view, group in zip(together, summary.groups, strict=True)]
    over_runs = panels.shares_of_groups("over-runs", named)
    figures += [over_runs] if over_runs else []
    planted = panels.calibration_figures(summary.calibration)
    figures += planted.values()
    dimension = dimension_curve(summary.dimension)
    figures += [dimension] if dimension else []
    # A group's sentence also covers its runs.
    shown_alone = {id(row) for row in summary.alone}
    alone = [view for view in runs if id(view["row"]) in shown_alone]
    together_and_alone = [*named, *((view["name"], view["row"]) for view in alone)]
    ways, drawn = pathways.view([(name, row.pathways, row.statement) for name, row in together_and_alone])
    figures += drawn
    near = [_resemblance(name, None, group) for name, group in named]
    near += [_resemblance(view["name"], view["style"], view["row"]) for view in alone]
    return render_page(
        "page.html",
        summary.study,
        figures,
        summary=summary,
        runs=runs,
        groups=together,
        alone=alone,
        pathways=ways,
        own_answers=own_answers.view([(name, row.own_answers) for name, row in together_and_alone]),
        stand_ins=stand_ins.view([(view["name"], view["row"].stand_ins) for view in runs], summary.direction_matrices),
        wording=wording.view([(name, row.wording) for name, row in together_and_alone]),
        written=written.view([(name, row.written) for name, row in together_and_alone]),
        resembles=[each for each in near if each["nearest"]],
        nearest_shown=SHOWN,
        over_runs=over_runs,
        scored=side_by_side(summary, [(name, row.scores) for name, row in together_and_alone]),
        contexts=in_contexts([(name, row.contexts) for name, row in together_and_alone]),
        directions=directions,
        dimension=dimension,
        unfound=[each.trait for each in summary.directions if not each.found],
        library=results.index.library,
        loss=loss,
        planted=planted,
        saying=list(mediation.SAYING.values()),
        rule=re.split(r" (?=\d\. )", RULE),
        runs_for_a_claim=RUNS_FOR_A_CLAIM,
        counted=COUNTED,
        projected_at=TEXTS,
        threshold=FOUND_RELIABILITY,
        open_panels=OPEN_PANELS,
        study=json.dumps(_symbolic(results.index.study), indent=2, ensure_ascii=False),
        made=_provenance(results),
    )  # fmt: skip


def render_page(template: str, title: str, figures: Sequence[Figure], **shown: Any) -> str:
    """Return a self-contained HTML page: a template in the frame that draws its figures."""
    specs = _script_json({figure.id: figure.spec() for figure in figures})
    script = get_plotlyjs()
    plotly = Markup(script)  # nosec B704 # plotly's own
    return _environment().get_template(template).render(title=title, plotly=plotly, figures=specs, **shown)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("wellworn.experiments.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,
    )
    environment.filters |= {"number": _number, "interval": _interval, "csp": _csp, "breakable": _breakable}
    return environment


def _run(results: Results, run: RunResult, row: RunRow, number: int, name: str, limits: tuple[float, float]) -> Shown:
    facts, own, style = run.facts, run.entry.own, run_style(number)
    figures: dict[str, Figure] = {}
    if facts and row.coordinates:
        figures["nearest"] = cosine_bars(f"nearest-{number}", style, row.coordinates, own, facts.found)
    if facts:
        figures["share"] = share_by_layer(f"share-{number}", style, facts.by_layer, facts.layer, limits)
        drawn = {
            "mediation": mediation.shares_of_parts(f"mediation-{number}", style, facts),
            "shapley": mediation.shapley_bars(f"shapley-{number}", facts),
            "mediation_layers": mediation.shares_by_layer(f"mediation-layers-{number}", style, facts),
            "weights": panels.writes_by_layer(f"weights-{number}", style, run.weights, results.index.depth),
        }
        figures |= {name: figure for name, figure in drawn.items() if figure}
        if any(facts.projections.values()):
            figures["cosines"] = cosines_by_layer(f"cosines-{number}", facts.projections, facts.layer, own)
    base = dict(zip(results.index.questions, results.base_answers, strict=False))
    reasons = dict.fromkeys(reason for reason in (row.why, *row.missing.values()) if reason)
    return {
        "name": name,
        "style": style,
        "row": row,
        "own": own,
        "trained": bool(run.curve),
        "figures": figures,
        "answer": _sentence(row),
        "reasons": list(reasons),
        "nearest": row.nearest or [],
        "readings": list(_readings(facts)) if facts else [],
        "mediation": list(mediation.rows(facts)) if facts else [],
        "answers": [
            {"question": question, "base": base.get(question), "run": answer}
            for question, answer in zip_longest(run.entry.questions, run.answers)
        ],
        "sayings": mediation.shown_answers(run.said, run.entry.questions[:SAYINGS]) if run.said else [],
    }


def _resemblance(name: str, style: Style | None, row: RunRow | GroupRow) -> Shown:
    """Return the personas that a run, or a group of runs, lies nearest, and the rank of the trained one (in each run of a group)."""
    if isinstance(row, GroupRow):
        ranks, of = (row.own_ranks.ranks, row.own_ranks.of) if row.own_ranks else ([], 0)
    else:
        ranks, of = ([row.own_rank.rank], row.own_rank.of) if row.own_rank else ([], 0)
    return {
        "name": name,
        "style": style,
        "nearest": row.nearest or [],
        "high": row.nearest_high,
        "ranks": f"{', '.join(map(str, ranks))} of {of}" if ranks else "–",
    }


def _sentence(row: RunRow | GroupRow) -> str:
    """Return a run's result in plain words, with the numbers behind it."""
    if row.verdict is None:
        reason = row.why or (row.missing.get("verdict") if isinstance(row, RunRow) else None)
        return "no verdict" + (f": {reason}" if reason else "")
    return _PLAIN.get(row.verdict, row.verdict) + (f" ({row.why})" if row.why else "")


def _readings(facts: Measurement) -> Iterator[Shown]:
    """Yield every reading of a run, starting with those against its headline reference."""
    for reference in sorted(facts.references, key=lambda name: name != facts.reference):
        for text, shift in facts.references[reference].texts.items():
            headline = reference == facts.reference and text == "neutral"
            kind, under, context = text.partition(UNDER)
            yield _reading(reference, f"{_TEXTS.get(kind, kind)}{under}{context}", shift, headline)
    if facts.text_shift:
        yield _reading("base", "text shift", facts.text_shift, headline=False)


def _reading(reference: str, text: str, shift: ShiftReading, headline: bool) -> Shown:
    return {
        "reference": reference,
        "text": text,
        "headline": headline,
        "spaces": [("own removed", shift.own_removed), ("full", shift.full)],
        "relative_norm": shift.relative_norm,
        "constant_part": shift.constant_part,
    }


def _directions(results: Results, summary: Summary) -> list[Shown]:
    space, layer = results.space, results.index.layer
    return [
        {
            "facts": facts,
            "figure": reliability_by_layer(
                f"reliability-{i}", space["reliability"][i], space["null_reliability"][i], space["found"][i], layer
            ),
        }
        for i, facts in enumerate(summary.directions)
    ]


def _group(group: GroupRow) -> Shown:
    verdicts = Counter(verdict or "no verdict" for verdict in group.verdicts)
    counted = ", ".join(f"{verdict} × {count}" for verdict, count in verdicts.items())
    name = run_name(group.arm, _symbol(group.trait or ""), _symbolic(group.settings))
    return {**vars(group), "name": name, "answer": _sentence(group), "verdicts": counted}


def _provenance(results: Results) -> Shown:
    """Return the stages, versions and commits behind the results."""
    local = [arm["trait"] for arm in results.index.study["runs"] if arm.get("trait")]
    stages = []
    versions: dict[str, dict[str, None]] = {}
    for stage_id, manifest in results.manifests.items():
        title = manifest.title
        for trait in local:
            title = title.replace(trait, _symbol(trait))
        stages.append({"id": stage_id, "title": title, "seconds": manifest.seconds})
        for name, version in {**manifest.versions, "commit": manifest.commit}.items():
            versions.setdefault(name, {})[version or "not recorded"] = None
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages),
        "versions": {name: ", ".join(values) for name, values in versions.items()},
    }


def _names(results: Results) -> list[str]:
    """Return each run's name; runs of the same name (two adapters, for instance) are numbered."""
    entries = [run.entry for run in results.runs]
    names = [
        run_name(
            each.arm, _symbol(each.trait or ""), _symbolic(each.settings), adapter=each.adapter and _symbol(each.adapter), seed=each.seed
        )
        for each in entries
    ]
    return [f"{name} · run {i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _symbolic(value: Any) -> Any:
    """Return JSON with every absolute path cut to its last part, so that local folders stay private."""
    if isinstance(value, Mapping):
        return {key: _symbolic(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_symbolic(each) for each in value]
    return _symbol(value) if isinstance(value, str) else value


def _symbol(text: str) -> str:
    # Windows paths may have both kinds of slash.
    return f"…/{PureWindowsPath(text).name}" if _ABSOLUTE.match(text) else text


def _script_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)  # nosec B704 # there is no tag in it


def _csp(script: str) -> str:
    """Return the source expression that lets a browser run this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _breakable(name: str) -> Markup:
    """Return a name that may break across lines after an underscore."""
    return escape(visible(name)).replace("_", Markup("_<wbr>"))


def _visible(value: Any) -> Any:
    """Return a text with unseen characters written out: some would turn all that follows it around."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return decimal(value, digits, signed=signed)


def _interval(estimate: Estimate | Dose | Persona | None, signed: bool = False) -> str:
    if estimate is None:
        return "–"
    bounds = [
        infinite if bound is None or not math.isfinite(bound) else _number(bound, signed=signed)
        for bound, infinite in ((estimate.low, "−∞"), (estimate.high, "∞"))
    ]
    return f"{_number(estimate.value, signed=signed)} [{', '.join(bounds)}]"
