"""From run records to tables: one rule and a column per target, or one target and a column per rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from dgharness.metrics.measure import ACCURACY, Measure
from dgharness.report import captions
from dgharness.report.outcomes import (
    POOLED,
    Comparable,
    Expected,
    Grid,
    NotApplicable,
    Outcome,
    comparable,
    metric,
    outcome,
    result,
)
from dgharness.report.paired import Comparison, compare, holm
from dgharness.report.statistics import Ddof
from dgharness.report.table import Block, Cell, Column, Kind, Row, Table, Unit, algorithm_of
from dgharness.selection.rule import Rule, RunRecord

Layout = Literal["auto", "targets", "rules", "averages"]
Cells = Mapping[str, Cell]  # row label -> its cell in one column


def build_tables(
    records: Sequence[RunRecord],
    rules: Sequence[Rule],
    *,
    baseline: str = "erm",
    expected: Sequence[Expected] | Mapping[Block, Sequence[Expected]] | None = None,
    layout: Layout = "auto",
    extras: Sequence[str] = (),
    gaps: bool = True,
    not_applicable: NotApplicable | None = None,
    ddof: Ddof = 1,
) -> list[Table]:
    """Compare algorithms; what differs in dataset, protocol, model, weights or preset never shares a table.

    ``expected`` lists the planned runs as (algorithm, targets, hparams_seed, trial_seed); without it the plan
    is the full product of what the records hold. A cell with a run that is missing or not finished is named,
    and its row has no average. ``layout`` "targets" gives a table per rule, "rules" a table per held-out
    domain with the rules side by side, "averages" one table of averages with the rules side by side; "auto"
    takes "rules" where there is one domain and several rules.
    ``extras`` are further metrics of the chosen checkpoints on the test split, such as ``wga`` or ``ece``, or
    ``cost/NAME``. ``gaps`` adds what each rule loses to the first oracle among the rules, if there is one.
    ``ddof`` is that of the standard errors beside means; intervals and tests always go by ddof=1.
    """
    tables: list[Table] = []
    for group in comparable(records, expected):
        columns, maker = group.runs.columns, _Maker(group, baseline, extras, not_applicable or {}, ddof)
        side_by_side = layout == "rules" or (layout == "auto" and len(columns) == 1 and len(rules) > 1)
        if layout == "averages":
            tables.append(maker.by_rule(columns, rules, gaps))
        elif side_by_side:
            tables += [maker.by_rule([column], rules, gaps) for column in columns]
        else:
            tables += [maker.by_target(rule, rules if gaps else ()) for rule in rules]
    return tables


@dataclasses.dataclass(frozen=True)
class _Maker:
    group: Comparable
    baseline: str
    extras: Sequence[str]
    exempt: NotApplicable
    ddof: Ddof

    @property
    def runs(self) -> Grid:
        return self.group.runs

    @property
    def measure(self) -> Measure:
        return self.group.measure

    @property
    def unit(self) -> Unit:
        return "percent" if self.measure is ACCURACY else "number"

    @property
    def difference_unit(self) -> Unit:
        return "points" if self.measure is ACCURACY else "change"

    @property
    def labels(self) -> list[str]:
        """The baseline first; the others in the plan's order, or by name."""
        exempt = [name for name, _ in self.exempt if name not in map(algorithm_of, self.runs.labels)]
        labels = list(dict.fromkeys([*self.runs.labels, *exempt]))
        others = labels if self.group.planned else sorted(labels)
        return sorted(others, key=lambda label: algorithm_of(label) != self.baseline)

    @property
    def versus(self) -> str:
        """The baseline's row, be it the only one with an averaging or test-time method."""
        rows = [label for label in self.labels if algorithm_of(label) == self.baseline]
        return rows[0] if len(rows) == 1 else self.baseline

    def by_target(self, rule: Rule, rules: Sequence[Rule]) -> Table:
        chosen = [self._chosen(rule, column) for column in self.runs.columns]
        results = [_cells(column, result) for column in chosen]
        overall = _averages(results, self._names)
        comparisons = holm(self._comparisons(results))
        table = [
            (Column(name, self.unit, rule.name), cells)
            for name, cells in zip(self._names, results, strict=True)
        ]
        if len(results) > 1:
            table.append((Column("average", self.unit, rule.name, "average", tuple(self._names)), overall))
        if self.versus in overall and len(overall) > 1:
            difference = Column(f"difference to {self.versus}", self.difference_unit, rule.name, "difference")
            table.append((difference, self._differences(overall, comparisons)))
        for name in self.extras:
            further = [{label: metric(found, name) for label, found in column.items()} for column in chosen]
            table.append((_extra(name, rule), _averages(further, self._names)))
        for oracle in _first_oracle(rules):
            if not rule.oracle:
                best = [_cells(self._chosen(oracle, column), result) for column in self.runs.columns]
                gap = self._gaps(overall, _averages(best, self._names))
                table.append((Column("gap to oracle", self.difference_unit, rule.name, "gap"), gap))
        return self._table(captions.title(rule), [rule], table, comparisons)

    def by_rule(self, columns: Sequence[tuple[str, ...]], rules: Sequence[Rule], gaps: bool) -> Table:
        """The rules side by side, on one column or on the average of several."""
        names = ["+".join(column) for column in columns]
        chosen = {rule.name: [self._chosen(rule, column) for column in columns] for rule in rules}
        by_column = {name: [_cells(each, result) for each in found] for name, found in chosen.items()}
        results = {name: _detailed(_averages(cells, names), cells) for name, cells in by_column.items()}
        comparisons = holm(
            {
                (name, label): comparison
                for name, cells in by_column.items()
                for label, comparison in self._comparisons(cells).items()
            }
        )
        table: list[tuple[Column, Cells]] = []
        for rule in rules:
            cells = {
                label: dataclasses.replace(cell, comparison=comparisons.get((rule.name, label)))
                for label, cell in results[rule.name].items()
            }
            kind: Kind = "average" if len(columns) > 1 else "result"
            table.append((Column(captions.title(rule), self.unit, rule.name, kind, tuple(names)), cells))
        for name in self.extras:
            for rule in rules:
                further = [
                    {label: metric(found, name) for label, found in each.items()}
                    for each in chosen[rule.name]
                ]
                shown = f"{name}, {captions.title(rule)}"
                table.append((_extra(name, rule, shown), _averages(further, names)))
        for oracle in _first_oracle(rules if gaps else ()):
            for rule in rules:
                if not rule.oracle:
                    gap = self._gaps(results[rule.name], results[oracle.name])
                    column_of = Column(f"gap of {rule.name}", self.difference_unit, rule.name, "gap")
                    table.append((column_of, gap))
        where = names[0] if len(names) == 1 else f"the average of {', '.join(names)}"
        title = f"{self.measure.name} on {where}, by selection rule"
        named = {
            f"{label} under {name}" if len(rules) > 1 else label: comparison
            for (name, label), comparison in comparisons.items()
        }
        return self._table(title, rules, table, named)

    @property
    def _names(self) -> list[str]:
        return ["+".join(column) for column in self.runs.columns]

    def _chosen(self, rule: Rule, column: tuple[str, ...]) -> dict[str, Outcome]:
        return {label: outcome(rule, self.runs, label, column, self.exempt) for label in self.labels}

    def _gaps(self, cells: Cells, oracle: Cells) -> dict[str, Cell]:
        """What each row loses to the oracle: a loss is positive."""
        if self.measure.sign > 0:
            return {label: _minus(oracle[label], cell) for label, cell in cells.items()}
        return {label: _minus(cell, oracle[label]) for label, cell in cells.items()}

    def _comparisons(self, columns: Sequence[Cells]) -> dict[str, Comparison]:
        """Every row against the baseline's, over trials and columns; one with a problem has no trials."""
        by_label = {label: [column[label].trials for column in columns] for label in columns[0]}
        against = by_label.pop(self.versus, [{}])
        found = {label: compare(row, against) for label, row in by_label.items()}
        return {label: comparison for label, comparison in found.items() if comparison is not None}

    def _differences(self, cells: Cells, comparisons: Mapping[str, Comparison]) -> dict[str, Cell]:
        against = cells[self.versus]
        found = {}
        for label, cell in cells.items():
            if label == self.versus:
                found[label] = Cell(problem="baseline")
            elif against.problem and not cell.problem:
                found[label] = Cell(problem="baseline incomplete")
            else:
                found[label] = dataclasses.replace(_minus(cell, against), comparison=comparisons.get(label))
        return found

    def _table(
        self,
        title: str,
        rules: Sequence[Rule],
        table: Sequence[tuple[Column, Cells]],
        comparisons: Mapping[str, Comparison],
    ) -> Table:
        labels = self.labels
        rows = tuple(
            Row(label, tuple(dataclasses.replace(cells[label], ddof=self.ddof) for _, cells in table))
            for label in labels
        )
        problems = [cell.detail for row in rows for cell in row.cells if cell.detail]
        problems += captions.unequal_trials(self.runs.shorter, self.runs.trials)
        problems += captions.never_apart(self.runs.alike(self.versus), self.versus)
        if self.runs.columns == (POOLED,):
            problems += captions.other_test_splits(self.group.records)
        problems += captions.leaderboard(self.group.records, [column for column, _ in table], rows)
        return Table(
            title=title,
            block=self.group.block,
            columns=tuple(column for column, _ in table),
            rows=rows,
            caption=captions.caption(
                self.group.block,
                rules,
                self.group.apart,
                trials=self.runs.trials,
                draws=self.runs.draws,
                baseline=self.versus,
                comparisons=comparisons,
                kinds={column.kind for column, _ in table},
                ddof=self.ddof,
                measure=self.measure,
            ),
            notes=tuple(dict.fromkeys([*problems, *captions.warnings(self.group.records)])),
        )


def _cells(chosen: Mapping[str, Outcome], read: Callable[[Outcome], Cell]) -> dict[str, Cell]:
    return {label: read(found) for label, found in chosen.items()}


def _averages(columns: Sequence[Cells], names: Sequence[str]) -> dict[str, Cell]:
    """Mean over the columns within each trial; a problem in any column blocks the row's average."""
    if len(columns) == 1:
        return dict(columns[0])
    found = {}
    for label in columns[0]:
        row = [column[label] for column in columns]
        blocked = [name for name, cell in zip(names, row, strict=True) if cell.problem]
        if all(cell.problem == "n/a" for cell in row):
            found[label] = Cell(problem="n/a")
        elif blocked:
            found[label] = Cell(problem=f"blocked by {', '.join(blocked)}")
        else:
            shared = set.intersection(*(set(cell.trials) for cell in row))
            found[label] = Cell({t: sum(cell.trials[t] for cell in row) / len(row) for t in sorted(shared)})
    return found


def _detailed(averages: Cells, columns: Sequence[Cells]) -> dict[str, Cell]:
    """What blocks an average, in full, for a table that shows the average alone."""
    if len(columns) == 1:
        return dict(averages)
    found = {}
    for label, cell in averages.items():
        details = dict.fromkeys(column[label].detail for column in columns if column[label].detail)
        found[label] = dataclasses.replace(cell, detail="; ".join(details))
    return found


def _first_oracle(rules: Sequence[Rule]) -> list[Rule]:
    """The oracle that gaps are measured to."""
    return [rule for rule in rules if rule.oracle][:1]


def _minus(left: Cell, right: Cell) -> Cell:
    """The difference in every trial that both have."""
    for cell in (left, right):
        if cell.problem:
            return Cell(problem=cell.problem)
    return Cell({t: left.trials[t] - right.trials[t] for t in left.trials if t in right.trials})


def _extra(name: str, rule: Rule, shown: str | None = None) -> Column:
    words = name.partition("/")[0].split("_")
    is_accuracy = name == "wga" or ("acc" in words and "count" not in words)
    return Column(shown or name, "percent" if is_accuracy else "number", rule.name, "extra", (name,))
