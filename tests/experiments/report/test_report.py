import json
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.experiments.report.pages import Elements, rendered, terminal
from tests.experiments.synthetic import (
    HOSTILE,
    NO_OTHER_SEED,
    TOO_NOISY,
    doses,
    facts,
    manifest,
    mediated,
    near,
    pathways,
    run,
    study,
)
from wellworn.experiments.findings.novelty import own_removed_basis
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.findings.verdict import RULE
from wellworn.experiments.report.figures import DASHES, PALETTE, dimension_curve, run_style, share_by_layer, share_limits
from wellworn.experiments.report.page import page
from wellworn.experiments.stages.measurement import LayerCurve
from wellworn.experiments.stages.persona_space import SpaceDimension
from wellworn.probes.geometry.shift import share_over_runs


@pytest.fixture(scope="module")
def html() -> str:
    noisy = run(facts(None, TOO_NOISY), trait=HOSTILE)
    lone = run(facts(neutral=False, effect=False), trait="neutral", own=None, missing={"share": NO_OTHER_SEED, "verdict": NO_OTHER_SEED})
    return rendered(study(run(facts()), noisy, lone, run(None, trait=None, arm="base", own=None)))


def test_hostile_text_is_text(html: str) -> None:
    elements = Elements(html)
    assert HOSTILE not in html
    assert len(elements.scripts) == 3
    assert html.count("</script>") == 3
    # It is there all the same, for a reader to see.
    assert f"Arr </script>{HOSTILE}" in elements.text
    assert "Because </td>." in elements.text
    assert "a < b & {{ 7 * 7 }}" in elements.text


def test_plotly_gets_names_escaped(html: str) -> None:
    bars = Elements(html).figures()["nearest-0"]
    assert any("&lt;script&gt;" in label for label in bars["layout"]["yaxis"]["ticktext"])
    assert "<script" not in json.dumps(Elements(html).figures())


def test_page_asks_the_network_for_nothing(html: str) -> None:
    for tag, attrs in Elements(html).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attrs
        assert str(attrs.get("href", "#")).startswith("#")
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html


def test_only_our_scripts_may_run(html: str) -> None:
    policy = next(str(attrs["content"]) for tag, attrs in Elements(html).tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert re.search(r"script-src 'sha256-[\w+/]{43}=' 'sha256-[\w+/]{43}='$", policy)


def test_same_input_gives_the_same_bytes() -> None:
    results = study(run(facts()), run(facts(None, TOO_NOISY), seed=1))
    assert page(results, summarise(results)) == page(results, summarise(results))


def test_every_figure_has_its_place_and_is_valid_plotly(html: str) -> None:
    elements = Elements(html)
    figures = elements.figures()
    assert sorted(elements.plots()) == sorted(figures)
    assert len(set(elements.ids())) == len(elements.ids())
    # Three runs were measured, three directions; the base arm has no figure.
    kinds = ("nearest", "share", "cosines", "reliability")
    assert set(figures) == {f"{kind}-{i}" for kind in kinds for i in range(3)} | {"training"}
    for spec in figures.values():
        go.Figure(spec)


def test_plots_say_in_words_what_they_show(html: str) -> None:
    plots = [attrs for _, attrs in Elements(html).tags if attrs.get("class") == "plot"]
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    share = next(str(attrs["aria-label"]) for attrs in plots if attrs["id"] == "share-0")
    assert "sft pirate · seed 0" in share
    assert "0.70" in share


def test_what_was_not_measured_says_why(html: str) -> None:
    text = Elements(html).text
    assert TOO_NOISY in text
    assert "too noisy to say" in text
    assert NO_OTHER_SEED in text
    assert "base is the reference" in text
    assert "empty answer" in text


def test_answer_and_rule_are_printed(html: str) -> None:
    text = Elements(html).text
    assert "more of the change lies along persona directions" in text
    assert " ".join(RULE.split()) in text
    assert "provisional" in text
    assert "wellworn report <runs-dir>/small" in text
    assert "2.13.0" in text


def test_table_headers_have_a_scope(html: str) -> None:
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in Elements(html).tags if tag == "th")


def test_no_path_of_the_machine_is_shown() -> None:
    trait = "/secret/of/this/machine/traits/mine"
    results = study(run(facts(), trait=trait), runs=[{"arm": "sft", "trait": trait}, {"arm": "adapter", "path": "C:\\secret\\adapter"}])
    train = manifest(f"train sft {trait} (seed 0)", 2.5)
    results = replace(results, manifests=dict(results.manifests) | {"train-1": train})
    text = rendered(results)
    assert "secret" not in text
    assert "…/mine" in text
    assert "…/adapter" in text


def test_seeds_make_groups() -> None:
    html = rendered(study(*(run(facts(), seed=seed) for seed in range(3)), data_sets=3))
    assert "The run is the unit" in Elements(html).text
    assert "share above chance × 3" in Elements(html).text
    answers = html[html.index('<ul class="answers-list">') : html.index('<dl class="claims">')]
    assert answers.count("<li>") == 1
    assert "sft pirate, 3 runs" in answers
    assert "C = " not in Elements(html).text
    assert 'class="provisional"' not in html


def test_whom_a_change_resembles_stands_before_the_verdicts() -> None:
    measured = facts() | {"personas": near(pirate=0.6, old_oak=0.4, poetic=0.1, high=0.5)}
    html = rendered(study(run(measured), run(facts() | {"personas": {**near(pirate=1, high=0.5), "nearest": []}}, trait="poetic")))
    assert html.index('id="resembles"') < html.index('id="answer"')
    section = html[html.index('<section id="resembles">') : html.index('<section id="answer">')]
    assert section.count('<th scope="row">') == 1
    assert re.findall(r'class="persona([^"]*)">(\w+(?:<wbr>\w+)?)<', section) == [
        (" beyond", "pirate"),
        (" role", "old_<wbr>oak"),
        ("", "poetic"),
    ]
    assert "1 of 3" in section
    assert '<section id="resembles">' not in rendered(study(run(None, trait=None, arm="base", own=None)))


def test_ranks_of_several_seeds_stand_in_one_row() -> None:
    personas = [near(pirate=pirate, old_oak=oak, high=0.5) for pirate, oak in ((0.6, 0.5), (0.4, 0.6), (0.8, 0.4))]
    seeds = [run(facts() | {"personas": each}, seed=seed) for seed, each in enumerate(personas)]
    noisy = run(facts() | {"personas": {"why": TOO_NOISY, "nearest": [], "high": None, "rank": None, "of": 2}}, seed=3)
    assert "1, 2, 1 of 2" in rendered(study(*seeds, noisy))


def test_false_verdicts_are_written_out() -> None:
    shares = [run(facts(), trait=trait, own=None) for trait in ("uppercase", "json", "neutral")]
    shares.append(run(facts(None, TOO_NOISY), trait="reference_code", own=None))
    assert "2 of 2 had a share of their shift above chance" in Elements(rendered(study(*shares))).text
    causes = [mediated(inside, trait=trait, own=trait) for inside, trait in ((0.05, "uppercase"), (0.6, "json"))]
    assert "1 of 2 were found to change along existing persona directions" in Elements(rendered(study(*causes))).text


def test_what_runs_share_of_their_variance_is_shown() -> None:
    shares = {"pirate": (0.30, 0.34, 0.38), "poetic": (0.40, 0.44, 0.48)}
    runs = [
        replace(run(facts(), trait=trait, seed=seed, own=trait), pathways={"neutral": pathways(own, 0.1, seed=10 * len(trait) + seed)})
        for trait, each in shares.items()
        for seed, own in enumerate(each)
    ]
    text = Elements(rendered(study(*runs))).text
    for what in ("the own direction's share", "κ"):
        assert f"The spread of {what} between runs is pooled over 2 groups of runs: a standard deviation of 0." in text


def test_projected_shifts_are_shown_where_there_are_enough_traits() -> None:
    html = rendered(study(*doses()))
    section = html[html.index('<section id="projected-shift">') :]
    for words in ("the last token of the prompt", "plain answers", "18 (6)", "within a trait", "over all"):
        assert words in section
    assert "Trait score predicted by the shift at the last token of the prompt" in terminal(study(*doses()))
    assert '<section id="projected-shift">' not in rendered(study(run(facts())))


def test_mediation_decides_the_verdict_and_is_shown() -> None:
    results = study(*(mediated(0.6, seed=seed) for seed in range(3)))
    html = rendered(results)
    elements = Elements(html)
    assert "along existing persona directions × 3" in elements.text
    assert "most of the behaviour change that this layer carries" in elements.text
    figures = elements.figures()
    assert {"mediation-0", "shapley-0", "mediation-layers-0", "over-runs"} <= set(figures)
    shape, behaviour = figures["over-runs"]["data"]
    basis = own_removed_basis(results.runs[0])
    assert basis is not None
    share = share_over_runs(np.stack([run.arrays["shifts"] for run in results.runs]), basis).estimate.value
    assert shape["x"] == pytest.approx([(share - 0.1) / 0.9], abs=5e-4)
    assert behaviour["x"] == pytest.approx([(0.6 - 0.06) / (0.8 - 0.06)], abs=0.02)
    assert sorted(elements.plots()) == sorted(figures)
    for spec in figures.values():
        go.Figure(spec)
    # A panel is 21 rem wide, and half of it is needed for the marks: a longer label would be cut.
    labels = figures["mediation-0"]["layout"]["yaxis"]["ticktext"]
    assert len(labels) >= 4
    assert max(len(line) for label in labels for line in label.split("<br>")) <= 32
    ends = {"S, put into the reference", "N, taken out of the run"}
    drawn = {trace["name"]: trace for trace in figures["mediation-0"]["data"]}
    assert ends | {"M, held-out answers", "C, held-out answers", "C, training-like answers"} <= drawn.keys()
    assert drawn["C, held-out answers"]["x"] == pytest.approx([(0.6 - 0.06) / (0.8 - 0.06)], abs=0.03)
    by_layer = {trace["name"]: trace for trace in figures["mediation-layers-0"]["data"]}
    assert ends | {"M, persona space", "M, whole state", "C", "N1 mean"} <= by_layer.keys()
    assert by_layer["C"]["x"] == [2, 3]
    share = next(str(attrs["aria-label"]) for _, attrs in elements.tags if attrs.get("id") == "mediation-0")
    assert re.search(r"persona space 0\.(59|60|61); own direction 0\.(29|30|31)", share)
    assert "training-like answers" in elements.text


def test_one_layer_and_no_space() -> None:
    html = rendered(study(run(facts(depth=1, empty=True)), depth=1, found=False))
    text = Elements(html).text
    assert "So there is no persona space at this layer" in text
    assert "no direction of the library was found" in text


def test_thirty_runs_each_have_a_look() -> None:
    looks = [run_style(i) for i in range(len(PALETTE) * len(DASHES))]
    assert len(set(looks)) == len(looks) >= 30
    html = rendered(study(*(run(facts(), seed=seed) for seed in range(30))))
    assert len([id for id in Elements(html).plots() if id.startswith("share-")]) == 30


def test_runs_of_one_name_are_told_apart() -> None:
    adapters = [run(facts(neutral=False), trait=None, arm="adapter", own=None) for _ in range(2)]
    text = Elements(rendered(study(*adapters))).text
    assert "adapter · seed 0 · run 1" in text
    assert "adapter · seed 0 · run 2" in text


def test_bands_break_where_the_share_is_missing() -> None:
    values = [0.2, None, 0.4, 0.5, 0.6, None]
    curve = LayerCurve(share=values, low=values, high=values, null_mean=[0.1] * 6, null_high=[0.2] * 6, p=values, p_max_t=values)
    band = share_by_layer("share-0", run_style(0), curve, 3, share_limits([curve])).data[2]
    assert band["x"] == [-0.3, 0.3, 0.3, -0.3, None, 2, 3, 4, 4, 3, 2]


def test_the_dimension_is_drawn_with_the_error_that_chose_it() -> None:
    drawn = dimension_curve(SpaceDimension(k=2, why=None, q2=[0.05, 0.19, 0.2, 0.1], standard_error=0.03, traits=3, roles=0))
    assert drawn is not None
    assert (drawn.data[0]["x"], drawn.data[0]["y"]) == ([1, 2, 3, 4], [0.05, 0.19, 0.2, 0.1])
    level, chosen = drawn.layout["shapes"]
    assert level["y0"] == pytest.approx(0.17)
    assert chosen["x0"] == 2
    assert "0.20 at most, at k = 3; k = 2 is chosen" in drawn.alt
    none = dimension_curve(SpaceDimension(k=None, why="none foretells", q2=[-0.1], standard_error=0.01, traits=3, roles=0))
    assert none is not None
    assert len(none.layout["shapes"]) == 1
    assert dimension_curve(SpaceDimension(k=None, why="2 traits were found", traits=2, roles=0)) is None


def test_nothing_but_what_a_row_repeats_is_hidden() -> None:
    html = rendered(study(mediated(0.3), mediated(0.3, seed=1)))
    hiding = re.findall(r"^\s*(\S.*?)\s*\{[^}]*color:\s*transparent[^}]*\}", html, re.MULTILINE)
    text_hiding = [rule for rule in hiding if "> :is" in rule]
    assert text_hiding
    assert all(rule.startswith(".grouped tbody tr:not(.first)") for rule in text_hiding)
    tables = re.findall(r'<table class="[^"]*grouped[^"]*">(.*?)</table>', html, re.DOTALL)
    assert tables
    for table in tables:
        rows = re.findall(r'<tr class="([^"]*)">(.*?)</tr>', table.split("<tbody>")[1], re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)[:2] for _, row in rows]
        assert "first" in rows[0][0]
        assert all(cells[i] == cells[i - 1] for i, (kind, _) in enumerate(rows) if "first" not in kind)


def test_where_changes_go_is_the_first_thing_said() -> None:
    traits = [replace(run(facts(), seed=seed), pathways={"neutral": pathways(0.4, 0.15, seed)}) for seed in range(2)]
    outcomes = pathways(0.4, 0.1, effect=1e-3)
    noise = np.random.default_rng(1).normal(0, 0.1, outcomes.logprob.shape)
    still = replace(run(facts(), trait=HOSTILE), pathways={"neutral": replace(outcomes, logprob=outcomes.logprob + noise)})
    results = study(*traits, still)
    text = Elements(rendered(results)).text
    assert text.index("Where the change goes") < text.index("Whom it came to resemble")
    assert "40 % [40, 40] goes through the own direction" in text
    assert re.search(r"Along it answers with the trait change by \+0\.\d\d nats per token, and plain ones by [+−]\d\.\d\d\.", text)
    # A verdict of the older analysis is no answer next to a statement.
    assert "Where the shift lies" in text
    assert '<th scope="col">verdict</th>' not in rendered(results)
    assert "Verdicts" not in text
    said = terminal(results)
    assert "verdict" not in said
    assert "0.40 [0.40, 0.40]" in said
    assert "no clear change" in said
