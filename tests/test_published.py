"""Published numbers: what is shipped is whole and named rightly, and it stands beside its like alone."""

from __future__ import annotations

import dataclasses

import pytest
from run_records import finished

from dgharness import registry
from dgharness.names import slug
from dgharness.preset import presets
from dgharness.report.cells import build_tables
from dgharness.report.published import beside, differences, published
from dgharness.report.render import render, shown
from dgharness.report.table import block_of
from dgharness.selection.rule import Evaluation

MNIST = ("+90%", "+80%", "-90%")
PACS = ("art_painting", "cartoon", "photo", "sketch")
VALIDATION = registry.load("selection", "training-domain-validation")
ORACLE = registry.load("selection", "test-domain-validation")
LAST = registry.load("selection", "last")


def run(algorithm, target, trial=0, dataset="colored-mnist", domains=MNIST, **fields):
    metrics = {f"val/acc/{slug(domain)}": 0.5 for domain in domains if domain != target}
    metrics |= {f"{split}/acc/{slug(target)}": 0.6 for split in ("test", "test_holdout")}
    metrics |= {"test/official/acc_avg": 0.7}
    tags = {"dg.model": "mnist-cnn", "dg.settings": "train.steps 100; train.sampler by-domain"}
    return finished(algorithm, dataset, target, trial, metrics, **({"tags": tags} | fields))


def compared(records, *rules, **options):
    found = build_tables(records, rules or [VALIDATION], gaps=False, **options)
    return [beside(table, records) for table in found]


def column(table, name):
    place = [found.name for found in table.columns].index(name)
    return {row.label: shown(row.cells[place], table.columns[place]) for row in table.rows}


def test_every_number_is_of_something_that_is_here_and_says_where_it_is_from():
    datasets = {entry.name for entry in registry.entries("datasets")}
    rules = {entry.name for entry in registry.entries("selection")}
    known = set(presets())
    for number in published():
        source = number.source
        assert number.dataset in datasets and number.rule in rules
        assert source.url.startswith("https://") and source.about and source.source and source.spread
        assert source.trials and source.draws and source.caveats
        assert source.datasets[number.dataset].get("preset", "domainbed/PACS") in known
        assert 0 <= number.value <= 1 and (number.spread is None or 0 <= number.spread < 0.2)


def test_no_number_is_there_twice():
    keys = [(n.dataset, n.source.protocol, n.rule, n.column, n.label) for n in published()]
    assert len(keys) == len(set(keys))


def test_the_tables_of_domainbed_are_whole():
    found = [n for n in published() if n.source.name == "domainbed-2020" and n.column == "average"]
    assert len(found) == 3 * 14 * 7
    known = {entry.name for entry in registry.entries("algorithms")}
    ours = {n.label for n in found} & known
    assert {"erm", "irmv1", "group-dro", "vrex", "coral", "mmd", "dann", "cdann"} <= ours


@pytest.mark.parametrize(("dataset", "domains"), [("colored-mnist", MNIST), ("domainbed:PACS", PACS)])
def test_published_averages_are_those_of_the_published_domains(dataset, domains):
    checked = 0
    numbers = {(n.rule, n.label, n.column): n.value for n in published() if n.dataset == dataset}
    for (rule, label, name), average in numbers.items():
        own = [numbers.get((rule, label, domain)) for domain in domains]
        if name == "average" and None not in own:
            assert average == pytest.approx(sum(own) / len(own), abs=0.0015), (rule, label)
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize(
    ("label", "average"),  # over the five datasets, as the same tables have it
    [
        *[("sam", 64.5), ("gsam", 65.1), ("sagm", 66.1), ("fish", 63.9), ("mixstyle", 60.3), ("miro", 65.9)],
        *[("selfreg", 64.2), ("mdsdi", 65.1), ("erm + swad", 66.9), ("coral + swad", 67.3)],
        *[("miro + swad", 68.1), ("diwa", 68.0), ("erm++", 68.9)],
    ],
)
def test_quoted_averages_make_the_average_that_is_quoted_with_them(label, average):
    own = [n.value for n in published() if n.label == label and n.source.name in ("sagm", "quoted-2023")]
    assert len(own) == 5 and 100 * sum(own) / 5 == pytest.approx(average, abs=0.1)


def test_published_numbers_stand_beside_measured_ones():
    (table,) = compared([run(a, t, n) for a in ("erm", "irmv1") for t in MNIST for n in range(2)])
    assert column(table, "published: average") == {"erm": "51.5 ± 0.1", "irmv1": "52.0 ± 0.1"}
    assert column(table, "published: -90%") == {"erm": "10.0 ± 0.1", "irmv1": "10.2 ± 0.3"}
    assert column(table, "average") == {"erm": "60.0 ± 0.0", "irmv1": "60.0 ± 0.0"}
    said = " ".join(table.caption)
    for part in ("Gulrajani and Lopez-Paz", "commit 7df6f06", "Trials: 3", "Draws: 20", "ddof = 0"):
        assert part in said
    assert "train.steps 100 (published: 5001)" in said
    for form in ("text", "markdown", "latex", "csv", "json"):
        assert "51.5" in render([table], form) or "0.515" in render([table], form)


def test_methods_that_were_not_run_have_a_row_if_that_is_wanted():
    records = [run(a, t, n, "domainbed:PACS", PACS) for a in ("erm", "coral") for t in PACS for n in range(2)]
    (plain,) = build_tables(records, [VALIDATION], gaps=False)
    table = beside(plain, records, others=True)
    rows = [row.label for row in table.rows]
    assert rows[:2] == ["erm", "coral"] and len(rows) == len(set(rows))
    assert {"sagnet", "fishr", "sagm", "miro + swad"} <= set(rows)
    assert column(table, "published: average")["miro + swad"] == "88.4"
    assert column(table, "average")["miro + swad"] == column(table, "published: photo")["miro + swad"] == "–"
    assert column(table, "average")["coral"] == column(plain, "average")["coral"]
    assert "Published (selfreg, mdsdi, erm + swad" in " ".join(table.caption)
    (elsewhere,) = build_tables([run("erm", t, dataset="mine") for t in MNIST], [VALIDATION], gaps=False)
    assert [row.label for row in beside(elsewhere, [], others=True).rows] == ["erm"]


def test_what_was_imported_under_its_old_name_is_the_same_method():
    facts = {"dataset": "domainbed:PACS", "domains": PACS}
    (plain,) = build_tables([run("SagNet", t, **facts) for t in PACS], [VALIDATION], gaps=False)
    table = beside(plain, [], others=True)
    assert column(table, "published: average")["SagNet"] == "86.3 ± 0.2"
    assert "sagnet" not in [row.label for row in table.rows]


def test_the_rule_decides_which_number_is_shown():
    (table,) = compared([run("erm", target) for target in MNIST], ORACLE)
    assert column(table, "published: average") == {"erm": "57.8 ± 0.2"}
    (table,) = compared([run("erm", target) for target in MNIST], LAST)
    assert not any(found.kind == "published" for found in table.columns)
    assert "average by training-domain-validation" in table.notes[-1]


def test_rules_side_by_side_have_their_own_numbers():
    (table,) = compared([run("erm", "-90%")], VALIDATION, ORACLE)
    assert column(table, "published: training-domain-validation") == {"erm": "10.0 ± 0.1"}
    assert column(table, "published: test-domain-validation (oracle)") == {"erm": "28.7"}


def test_an_average_over_other_domains_is_no_published_average():
    (table,) = compared([run("erm", target) for target in MNIST[:2]])
    assert "published: average" not in [found.name for found in table.columns]


def test_a_row_that_is_more_than_its_algorithm_has_no_published_number():
    records = [run("erm", t, averaging=a) for t in MNIST for a in ("none", "swad")]
    (table,) = compared(records)
    assert column(table, "published: average") == {"erm": "51.5 ± 0.1", "erm + swad": "–"}


def test_a_dataset_that_nobody_published_is_said_to_have_none():
    (table,) = compared([run("erm", target, dataset="mine") for target in MNIST])
    assert table.notes[-1] == (
        "No published number is known for mine under leave-one-domain-out by training-domain-validation in "
        "the rows and columns of this table."
    )


def test_a_folder_of_the_same_photographs_is_not_the_benchmark():
    (table,) = compared([run("erm", t, dataset="folder:PACS", domains=PACS) for t in PACS])
    assert not any(found.kind == "published" for found in table.columns)


def test_an_official_metric_is_compared_with_itself():
    records = [run("erm", "hospital2", dataset="wilds:camelyon17", protocol="official")]
    official = registry.load("selection", "official-validation")
    records = [
        dataclasses.replace(
            record,
            evaluations=tuple(
                Evaluation(e.step, {**e.metrics, "val/official_score": 0.9}) for e in record.evaluations
            ),
        )
        for record in records
    ]
    (table,) = compared(records, official, extras=["official/acc_avg"])
    assert column(table, "published: official/acc_avg") == {"erm": "0.703 ± 0.064"}
    assert "standard deviation" in table.caption[-1]


def test_the_same_preset_differs_by_its_deviations_alone():
    (pacs,) = {
        n.source.datasets["domainbed:PACS"]["preset"] for n in published() if n.dataset == "domainbed:PACS"
    }
    facts = {"dataset": "domainbed:PACS", "preset": pacs, "domains": PACS}
    plain = run("erm", "photo", **facts)
    assert differences({"preset": pacs}, block_of(plain), [plain]) == []
    changed = run("erm", "photo", tags={"dg.deviations": "train.steps 9 (preset: 5001)"}, **facts)
    assert differences({"preset": pacs}, block_of(changed), [changed]) == ["train.steps 9 (preset: 5001)"]


def test_another_preset_is_compared_setting_by_setting():
    facts = {"dataset": "domainbed:PACS", "domains": PACS, "weights": "augmix"}
    own = run("erm", "photo", tags={"dg.model": "resnet18", "dg.settings": "train.steps 5001"}, **facts)
    assert differences({"preset": "domainbed/PACS"}, block_of(own), [own]) == [
        "preset none (published: as domainbed/PACS has it)",
        "model.name resnet18 (published: resnet50)",
        "model.weights augmix (published: in1k-v1)",
    ]
