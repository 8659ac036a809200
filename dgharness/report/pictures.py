"""The figures of a report: what one rule chose on the runs of one table.

Colours belong to algorithms and are the same in every figure of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from dgharness.figures import Axes, Figure, look
from dgharness.metrics.measure import Measure
from dgharness.report.captions import title
from dgharness.report.outcomes import POOLED, Comparable, NotApplicable, Outcome, measured, outcome
from dgharness.report.panels import Picture, leftmost, legend, on_the_left, panels, plain
from dgharness.report.table import Cell, label_of
from dgharness.selection.rule import Choice, Rule, RunRecord, choose, mean, measured_on, validation_score

MOST_PANELS = 12
MANY = 2000  # points; of more, a picture is smaller than their outlines

Read = Callable[[Choice], float]


def pictures(group: Comparable, rule: Rule, exempt: NotApplicable) -> list[Picture]:
    """Every figure that the runs of one block have the numbers for, by one rule."""
    drawer = _Drawer(group, rule, exempt)
    found = [drawer.by_domain(), drawer.by_group(), drawer.curves(), drawer.id_ood()]
    return [picture for picture in found if picture]


@dataclass(frozen=True)
class _Drawer:
    group: Comparable
    rule: Rule
    exempt: NotApplicable

    @property
    def measure(self) -> Measure:
        return self.group.measure

    @property
    def columns(self) -> tuple[tuple[str, ...], ...]:
        return self.group.runs.columns

    @property
    def labels(self) -> tuple[str, ...]:
        return self.group.runs.labels

    @cached_property
    def chosen(self) -> dict[tuple[tuple[str, ...], str], Outcome]:
        """(column, row) -> what the rule chose."""
        return {
            (column, label): outcome(self.rule, self.group.runs, label, column, self.exempt)
            for column in self.columns
            for label in self.labels
        }

    def by_domain(self) -> Picture | None:
        """A panel per held-out domain, a bar per row."""
        found: dict[str, Mapping[str, Cell]] = {}
        for column in self.columns:
            for domain in column:
                name = (
                    domain
                    if len(column) == 1 or len(self.columns) == 1
                    else f"{domain} of {'+'.join(column)}"
                )
                found[name] = {
                    label: measured(self.chosen[column, label], self._on(column, domain))
                    for label in self.labels
                }
        shown = dict(list(found.items())[:MOST_PANELS])
        return self._bars(
            "by domain",
            shown,
            f"{self.measure.name.capitalize()} on each held-out domain at the checkpoints that "
            f"{title(self.rule)} chose: {_MEAN_SE}."
            + (f" The first {len(shown)} of {len(found)} domains." if len(shown) < len(found) else ""),
        )

    def by_group(self) -> Picture | None:
        """A panel per group, the worst first, a bar per row."""
        keys = dict.fromkeys(
            key
            for each in self.chosen.values()
            for choice in each.choices.values()
            for key in choice.evaluation.metrics
            if key.startswith(f"test/group_{self.measure.key}/")
        )
        found = {
            key.rpartition("/")[2]: {label: self._in_group(label, key) for label in self.labels}
            for key in keys
        }
        order = sorted(found, key=lambda name: self.measure.sign * _level(found[name].values()))
        shown = {name: found[name] for name in order[:MOST_PANELS]}
        over = ", averaged over the held-out domains within each trial" if len(self.columns) > 1 else ""
        return self._bars(
            "by group",
            shown,
            f"{self.measure.name.capitalize()} on each group of the test split at the checkpoints that "
            f"{title(self.rule)} chose{over}; the group that is hardest on average first: {_MEAN_SE}."
            + (f" The hardest {len(shown)} of {len(found)} groups." if len(shown) < len(found) else ""),
        )

    def curves(self) -> Picture | None:
        """A panel per column, a line per row: the validation mean by step."""
        shown = [
            column for column in self.columns if any(self.chosen[column, row].choices for row in self.labels)
        ]
        shown = shown[:MOST_PANELS]
        if not any(
            len(c.run.evaluations) > 1 for found in self.chosen.values() for c in found.choices.values()
        ):
            return None
        figure, axes = panels(len(shown), height=2.6)
        looks = look(self.labels)
        for ax, column in zip(axes, shown, strict=False):
            ax.set_title(plain("held out: " + "+".join(column)), fontsize=9)
            for label in self.labels:
                self._curve(ax, self.chosen[column, label], looks[label][0])
            ax.set_xlabel("update")
        on_the_left(axes, f"validation {self.measure.axis}")
        legend(figure, axes[0], looks)
        return self._picture(
            "learning curves",
            "Validation of the training domains by update, in the runs whose hyperparameters "
            f"{title(self.rule)} chose: line, mean over trials; band, from the lowest to the highest trial; "
            "dots, the checkpoints that were chosen. The held-out domains are not shown: what they would say "
            "along the way is not for choosing.",
            figure,
        )

    def id_ood(self) -> Picture | None:
        """A panel per column, a point per run: validation mean against the held-out domains."""
        points = {column: self._points(column) for column in self.columns[:MOST_PANELS]}
        points = {column: found for column, found in points.items() if found}
        if not points:
            return None
        figure, axes = panels(len(points), height=3.2)
        looks = look(self.labels)
        values = [value for found in points.values() for _, x, y in found for value in (x, y)]
        edge = 0.04 * (max(values) - min(values)) or 1.0
        low, high = min(values) - edge, max(values) + edge
        for ax, (column, found) in zip(axes, points.items(), strict=False):
            ax.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle="--", zorder=1)
            for label in self.labels:
                here = [(x, y) for name, x, y in found if name == label]
                colour, marker = looks[label]
                ax.scatter(
                    [x for x, _ in here],
                    [y for _, y in here],
                    s=22,
                    color=colour,
                    marker=marker,
                    alpha=0.8,
                    linewidths=0,
                    rasterized=len(values) > MANY,
                    zorder=2,
                )
            ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            ax.set_title(plain("held out: " + "+".join(column)), fontsize=9)
            ax.set_xlabel(f"validation {self.measure.axis}")
        on_the_left(axes, f"held-out {self.measure.axis}")
        legend(figure, axes[0], looks, lines=False)
        return self._picture(
            "in and out of distribution",
            f"Each point is one run, every draw among them, at the checkpoint that {title(self.rule)} "
            "chooses within it: validation mean over the training domains, against the held-out domains. On "
            "the dashed line nothing is lost between the two.",
            figure,
        )

    def _on(self, column: tuple[str, ...], domain: str) -> Read:
        if column == POOLED:
            return lambda choice: mean(measured_on(choice.evaluation, "test", t) for t in choice.run.targets)
        return lambda choice: measured_on(choice.evaluation, "test", domain)

    def _in_group(self, label: str, key: str) -> Cell:
        """The mean over the columns in which every trial has the group; a column without it is left out."""
        cells = [
            measured(self.chosen[column, label], lambda choice: choice.evaluation.metrics.get(key, math.nan))
            for column in self.columns
        ]
        whole = [cell for cell in cells if not cell.problem]
        if not whole:
            return cells[0]
        trials = set.intersection(*(set(cell.trials) for cell in whole))
        return Cell({t: mean(cell.trials[t] for cell in whole) for t in sorted(trials)})

    def _bars(self, name: str, shown: Mapping[str, Mapping[str, Cell]], caption: str) -> Picture | None:
        if not any(cell.trials for cells in shown.values() for cell in cells.values()):
            return None
        figure, axes = panels(len(shown), height=0.7 + 0.2 * len(self.labels))
        looks = look(self.labels)
        values = [v for cells in shown.values() for cell in cells.values() for v in cell.trials.values()]
        for ax, (panel, cells) in zip(axes, shown.items(), strict=False):
            ax.set_title(plain(panel), fontsize=9)
            for y, label in enumerate(self.labels):
                self._bar(ax, y, cells[label], looks[label][0])
            ax.set_ylim(len(self.labels) - 0.4, -0.6)
            ax.set_xlim(0, 1.08 * self.measure.plotted(max(values)) or 1)
            ax.grid(visible=False, axis="y")
            ax.set_xlabel(self.measure.axis)
        for ax in axes:
            names = [plain(label) for label in self.labels] if leftmost(ax) else []
            ax.set_yticks(range(len(names)), names)
            ax.tick_params(axis="y", length=0)
        return self._picture(name, caption, figure)

    def _bar(self, ax: Axes, y: int, cell: Cell, colour: str) -> None:
        if cell.mean is None or cell.problem:
            ax.text(0, y, f" {plain(cell.problem or 'n/a')}", va="center", fontsize=7, color="#777777")
            return
        ax.barh(y, self.measure.plotted(cell.mean), height=0.72, color=colour, alpha=0.75)
        ax.plot(
            [self.measure.plotted(v) for v in cell.trials.values()],
            [y] * cell.n,
            "k.",
            markersize=2.5,
            alpha=0.7,
        )
        if cell.se is not None:
            ax.errorbar(
                self.measure.plotted(cell.mean),
                y,
                xerr=self.measure.plotted(cell.se),
                color="black",
                capsize=2,
                linewidth=1,
            )

    def _curve(self, ax: Axes, found: Outcome, colour: str) -> None:
        lines = [self._validation(choice.run) for choice in found.choices.values()]
        steps = sorted(set.intersection(*map(set, lines))) if lines else []
        means = [mean(line[step] for line in lines) for step in steps]
        ax.plot(steps, means, color=colour, linewidth=1.4)
        lowest = [min(line[step] for line in lines) for step in steps]
        highest = [max(line[step] for line in lines) for step in steps]
        ax.fill_between(steps, lowest, highest, color=colour, alpha=0.1, linewidth=0)
        for choice, line in zip(found.choices.values(), lines, strict=True):
            step = choice.evaluation.step
            if step in line:
                ax.plot(step, line[step], "o", color=colour, markersize=3, clip_on=False)

    def _validation(self, run: RunRecord) -> dict[int, float]:
        scores = {
            e.step: self.measure.plotted(self.measure.sign * validation_score(e)) for e in run.evaluations
        }
        return {step: value for step, value in scores.items() if math.isfinite(value)}

    def _points(self, column: tuple[str, ...]) -> list[tuple[str, float, float]]:
        """(row, validation mean, held-out mean) of every finished run of a column."""
        found = []
        runs = [
            run for slot, runs in self.group.runs.runs.items() for run in runs if run.status == "FINISHED"
        ]
        for run in runs:
            if column not in (POOLED, run.targets) and set(run.targets) != set(column):
                continue
            pairs = [
                other
                for other in (runs if self.rule.pairs else ())
                if label_of(other) == label_of(run)
                and len(other.targets) > len(run.targets)
                and set(run.targets) < set(other.targets)
            ]
            choice = choose(self.rule, [run], pairs)
            if choice is None:
                continue
            x = self.measure.sign * validation_score(choice.evaluation)
            y = mean(measured_on(choice.evaluation, "test", target) for target in run.targets)
            if math.isfinite(x) and math.isfinite(y):
                found.append((label_of(run), self.measure.plotted(x), self.measure.plotted(y)))
        return found

    def _picture(self, name: str, caption: str, figure: Figure) -> Picture:
        return Picture(name, caption, figure, self.group.block)


_MEAN_SE = "bars, mean over trials; whiskers, its standard error (ddof = 1); dots, the trials"


def _level(cells: Iterable[Cell]) -> float:
    return mean(cell.mean for cell in cells if cell.mean is not None)
