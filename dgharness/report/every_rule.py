"""Every selection rule side by side: which of them the runs allow, and how often the target was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dgharness.report.cost import queries
from dgharness.report.outcomes import Comparable, NotApplicable, comparable, outcome
from dgharness.report.table import Table, block_of
from dgharness.selection.rule import Rule, RunRecord

if TYPE_CHECKING:
    from dgharness.report.load import Runs


def applicable(rules: Sequence[Rule], found: Sequence[Runs], shown: str) -> list[Rule]:
    """The rules that some row allows: first the one ``shown``, at the end the oracles."""
    groups = [(group, each) for each in found for group in comparable(each.records, each.expected)]
    allowed = [
        rule for rule in rules if any(applies(rule, group, each.not_applicable) for group, each in groups)
    ]
    return sorted(allowed, key=lambda rule: (rule.oracle, rule.name != shown))


def applies(rule: Rule, group: Comparable, exempt: NotApplicable) -> bool:
    """Whether this rule could choose in every column of some row; runs may be missing or have failed."""
    return any(
        all(
            outcome(rule, group.runs, label, column, exempt).problem != "n/a" for column in group.runs.columns
        )
        for label in group.runs.labels
    )


def with_queries(tables: Sequence[Table], records: Sequence[RunRecord]) -> list[Table]:
    """The tables with the number of test-set queries of each row in their captions."""
    told = []
    for table in tables:
        sentence = queries([record for record in records if block_of(record) == table.block])
        told.append(replace(table, caption=(*table.caption, sentence)) if sentence else table)
    return told
