"""The HTML page of a report: self-contained, escaped, and its figures show the numbers of the tables."""

from __future__ import annotations

import dataclasses
import re
import sqlite3
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_runs import run_small

from dgharness.commands.reporting import Asked, run_report
from dgharness.names import slug
from dgharness.report.budget import budget_curves
from dgharness.report.budget_picture import budget_picture
from dgharness.report.cells import build_tables
from dgharness.report.cost import cost_tables
from dgharness.report.html import Subject, page
from dgharness.report.outcomes import comparable
from dgharness.report.over_datasets import over_datasets
from dgharness.report.pictures import pictures
from dgharness.report.render import render
from dgharness.report.render import shown as shown_cell
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation as rule

DOMAINS = ("art", "photo")
STEPS = (10, 20)
HOSTILE = '<b>"A" & $x$</b>'


def run(algorithm="erm", target="art", trial=0, draw=0, status="FINISHED", domains=DOMAINS):
    """A run whose validation rises with the step, and whose groups differ by what their names say."""

    def metrics(step):
        value = 0.5 + step / 100 + trial / 50 + draw / 200
        (source,) = (domain for domain in domains if domain != target)
        return {
            f"val/acc/{slug(source)}": value,
            f"test/acc/{slug(target)}": value - 0.3,
            "test/group_acc/easy": value,
            "test/group_acc/hard": value / 2,
        }

    return RunRecord(
        run_id=f"{algorithm}-{target}-{draw}-{trial}",
        algorithm=algorithm,
        dataset="d",
        protocol="leave-one-domain-out",
        targets=(target,),
        hparams_seed=draw,
        trial_seed=trial,
        status=status,
        evaluations=tuple(Evaluation(step, metrics(step)) for step in STEPS),
        cost={"seconds": 5.0},
        ended=1_600_000_000_000,
    )


def sweep(algorithms=("erm", "vrex"), domains=DOMAINS, draws=(0,), **fields):
    return [
        run(algorithm, target, trial, draw, domains=domains, **fields)
        for algorithm in algorithms
        for target in domains
        for draw in draws
        for trial in range(3)
    ]


def drawn(records):
    (group,) = comparable(records, None)
    return {picture.name: picture for picture in pictures(group, rule, {})}


def shown(records):
    (group,), (budget,) = comparable(records, None), budget_curves(records, rule)
    figures = [*pictures(group, rule, {}), budget_picture(budget, group.measure)]
    return page(
        Subject(["d/x"], [rule], records), build_tables(records, [rule]), figures, cost_tables(records)
    )


class Content(HTMLParser):
    """Every tag with its attributes, the text, and whether what is opened is closed."""

    VOID = ("meta", "!doctype")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def whole():
    return shown(sweep(draws=(0, 1)))


def test_the_page_needs_no_network_and_no_script(whole):
    content = Content(whole)
    assert not content.open
    names = {name for name, _ in content.tags}
    assert not names & {"script", "link", "iframe", "img", "object"}
    for _, attributes in content.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "@import" not in whole and not re.search(r"url\((?!#)", whole)


def test_every_figure_is_well_formed_and_has_a_caption_that_names_the_rule(whole):
    figures = re.findall(r"<figure>.*?</figure>", whole, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])
        assert rule.name in figure[figure.index("<figcaption>") :]


def test_a_page_of_some_runs_stays_small(whole):
    assert len(whole.encode()) < 400_000


def test_the_header_says_rule_runs_date_and_version(whole):
    head = whole[: whole.index("<section")]
    for said in ("d/x", rule.name, "24 FINISHED", "13 September 2020, 12:26 UTC", "dgharness 0."):
        assert said in head


def test_names_are_escaped_wherever_they_stand():
    domains = (HOSTILE, "<i>photo</i>")
    text = shown(sweep((HOSTILE, "erm"), domains))
    content = Content(text)
    figures_aside = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert not {"i"} & {name for name, _ in content.tags}
    assert "<b>&quot;" not in figures_aside and HOSTILE not in text
    assert HOSTILE in content.words  # as text, dollars and all
    assert any(HOSTILE in words for words in content.words)


def test_an_incomplete_row_is_named_in_the_table_and_in_the_figure():
    records = sweep()
    records[-1] = run("vrex", "photo", 2, status="FAILED")
    text = shown(records)
    assert re.search(r'<td class="problem" title="[^"]*FAILED run vrex-photo-0-2[^"]*">FAILED 1 of 3', text)
    assert "blocked by photo" in text
    by_domain = drawn(records)["by domain"].figure
    assert "FAILED" in " ".join(label.get_text() for ax in by_domain.axes for label in ax.texts)


def test_bars_are_the_means_of_the_table():
    records = sweep()
    (table,) = build_tables(records, [rule])
    figure = drawn(records)["by domain"].figure
    for place, name in enumerate(DOMAINS):
        ax = figure.axes[place]
        assert ax.get_title() == name
        widths = [bar.get_width() for bar in ax.patches]
        assert widths == pytest.approx([100 * row.cells[place].mean for row in table.rows])


def test_groups_are_shown_hardest_first():
    figure = drawn(sweep())["by group"].figure
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["hard", "easy"]
    hard = figure.axes[0].patches[0].get_width()
    assert hard == pytest.approx(100 * (0.5 + 0.2 + 0.02) / 2)  # at step 20, the mean over trials


def test_learning_curves_show_validation_and_never_the_target():
    figure = drawn(sweep())["learning curves"].figure
    (steps, means) = figure.axes[0].lines[0].get_data()
    assert list(steps) == list(STEPS)
    assert list(means) == pytest.approx([62.0, 72.0])
    heights = [y for ax in figure.axes for line in ax.lines for y in line.get_ydata()]
    assert min(heights) > 59.9  # the target is 30 points below


def test_every_run_is_a_point_of_validation_against_target():
    figure = drawn(sweep(draws=(0, 1)))["in and out of distribution"].figure
    points = [point for ax in figure.axes for found in ax.collections for point in found.get_offsets()]
    assert len(points) == 24
    assert all(x - y == pytest.approx(30.0) for x, y in points)


def test_curves_of_one_checkpoint_and_groups_that_were_not_logged_are_left_out():
    few = [
        RunRecord(
            **{
                **vars(record),
                "evaluations": tuple(
                    Evaluation(e.step, {k: v for k, v in e.metrics.items() if "group" not in k})
                    for e in record.evaluations[-1:]
                ),
            }
        )
        for record in sweep()
    ]
    assert set(drawn(few)) == {"by domain", "in and out of distribution"}


def test_one_draw_has_no_budget_curve_and_the_page_says_so():
    assert "No curve: every row has one draw of its hyperparameters." in shown(sweep())


def of_datasets(number):
    records = [dataclasses.replace(record, dataset=f"d{n}") for n in range(number) for record in sweep()]
    return build_tables(records, [rule])


@pytest.mark.parametrize(("datasets", "together", "plots"), [(1, 0, 0), (2, 1, 0), (5, 1, 1)])
def test_datasets_stand_side_by_side_from_two_on_and_ranks_are_drawn_from_five(datasets, together, plots):
    tables, figures = over_datasets(of_datasets(datasets), [rule])
    assert (len(tables), len(figures)) == (together, plots)
    for table in tables:
        assert table.block.dataset == ", ".join(f"d{n}" for n in range(datasets))
        assert table.columns[-1].name == "average rank"
        assert [shown_cell(row.cells[-1], table.columns[-1]) for row in table.rows] == ["1.50", "1.50"]
        for form in ("text", "markdown", "latex", "csv", "json"):
            assert "1.5" in render([table], form)
    text = page(Subject(["several"], [rule], []), tables, figures)
    assert text.count("<svg") == plots
    assert not together or f"<h2>{tables[0].block.dataset}</h2>" in text


def test_the_command_writes_a_page_and_tracks_it(mlflow_store, tmp_path, monkeypatch, capsys):
    run_small(mlflow_store, tmp_path / "runs", protocol={"targets": ["-90%"]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.chdir(tmp_path)
    run_report(Asked(["colored-digits/leave-one-domain-out"], format_="html"))
    said = capsys.readouterr()
    assert said.out == "" and "written: report.html" in said.err
    assert "<h1>colored-digits/leave-one-domain-out</h1>" in Path("report.html").read_text()
    with sqlite3.connect(mlflow_store.removeprefix("sqlite:///")) as db:
        ((place,),) = db.execute(
            "SELECT artifact_uri FROM runs JOIN tags USING (run_uuid)"
            " WHERE key = 'dg.kind' AND tags.value = 'report'"
        )
    kept = Path(place.removeprefix("file://")) / "report.html"
    assert kept.read_text() == Path("report.html").read_text()
