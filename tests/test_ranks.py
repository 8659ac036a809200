"""Average ranks over datasets: against Demšar's worked example and scipy; no test on too few datasets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dgharness.figures import as_svg, drawn
from dgharness.report.cells import build_tables
from dgharness.report.ranks import Values, critical_difference, draw, friedman_p, ranks, scores
from dgharness.report.table import Block, Cell, Column, Row, Table
from dgharness.selection.last import last
from dgharness.selection.rule import Evaluation, RunRecord
from dgharness.selection.training_domain_validation import training_domain_validation

# Demšar 2006, table 6: AUC of C4.5 and its variants with m, cf and both, on 14 datasets of UCI.
DEMSAR = """
.763 .768 .771 .798   .599 .591 .590 .569   .954 .971 .968 .967   .628 .661 .654 .657   .882 .888 .886 .898
.936 .931 .916 .931   .661 .668 .609 .685   .583 .583 .563 .625   .775 .838 .866 .875   1.0 1.0 1.0 1.0
.940 .962 .965 .962   .619 .666 .614 .669   .972 .981 .9751 .975   .957 .978 .946 .970
"""
SCORE_Nk = np.array(DEMSAR.split(), dtype=float).reshape(14, 4)
NAMES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")


def one_domain_each(score_Nk: np.ndarray, names: tuple[str, ...] = NAMES) -> Values:
    return {
        f"dataset {n}": {"domain": dict(zip(names, row, strict=True))}
        for n, row in enumerate(score_Nk.tolist())
    }


def test_demsars_example_has_his_ranks_and_his_critical_difference():
    found = ranks(one_domain_each(SCORE_Nk))
    assert found is not None
    assert {name: round(rank, 3) for name, rank in found.mean.items()} == {
        "C4.5+m+cf": 1.964,
        "C4.5+m": 2.0,
        "C4.5+cf": 2.893,
        "C4.5": 3.143,
    }
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert round(critical_difference(4, 14), 2) == 1.25
    assert round(critical_difference(4, 14, level=0.10), 2) == 1.12


@pytest.mark.parametrize(("algorithms", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (8, 3.031), (10, 3.164)])
def test_critical_values_are_those_of_his_table(algorithms, q):
    k, datasets = algorithms, 10
    assert critical_difference(k, datasets) / np.sqrt(k * (k + 1) / (6 * datasets)) == pytest.approx(
        q,
        abs=1e-3,  # his are cut off after three digits
    )


def test_friedmans_test_is_that_of_scipy_also_with_ties():
    rank_Nk = stats.rankdata(-SCORE_Nk, axis=1)
    assert friedman_p(rank_Nk) == pytest.approx(stats.friedmanchisquare(*SCORE_Nk.T).pvalue)
    assert friedman_p(np.full((5, 3), 2.0)) == 1


def test_ties_share_the_middle_of_their_places():
    found = ranks({"d": {"x": {"a": 0.9, "b": 0.5, "c": 0.5}}})
    assert found is not None and found.mean == {"a": 1.0, "b": 2.5, "c": 2.5}


def test_domains_of_one_dataset_are_averaged_and_are_not_datasets():
    a_first, b_first = {"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.9}
    found = ranks({"many": {str(n): a_first for n in range(9)}, "one": {"x": b_first}})
    assert found is not None and found.mean == {"a": 1.5, "b": 1.5}
    assert (found.datasets, found.domains) == (("many", "one"), 10)
    assert found.p is None and found.critical_difference is None and not found.cliques
    assert "No test and no critical-difference plot" in str(found)


def test_the_test_begins_at_five_datasets():
    four, five = (ranks(one_domain_each(SCORE_Nk[:n])) for n in (4, 5))
    assert four is not None and four.p is None
    assert five is not None and five.p == pytest.approx(stats.friedmanchisquare(*SCORE_Nk[:5].T).pvalue)
    assert "Friedman" in str(five) and "Nemenyi" in str(five)


def test_an_algorithm_without_a_number_somewhere_is_left_out_and_named():
    found = ranks({"d": {"x": {"a": 0.9, "b": 0.5, "c": 0.1}, "y": {"a": 0.9, "b": 0.5}}})
    assert found is not None and found.mean == {"a": 1.0, "b": 2.0}
    assert found.left_out == ("c",) and "every held-out domain: c." in str(found)
    assert ranks({"d": {"x": {"a": 0.9}}}) is None and ranks({}) is None


def test_cliques_are_the_neighbours_that_the_critical_difference_does_not_part():
    found = ranks(one_domain_each(SCORE_Nk))
    assert found is not None and found.cliques == [("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")]
    apart = ranks(one_domain_each(np.tile([0.9, 0.5, 0.1], (20, 1)), ("a", "b", "c")))
    assert apart is not None and apart.cliques == []
    swapped = np.array([[0.9, 0.8, 0.1]] * 10 + [[0.8, 0.9, 0.1]] * 10)
    pair = ranks(one_domain_each(swapped, ("a", "b", "c")))
    assert pair is not None and pair.cliques == [("a", "b")]


def test_the_plot_names_every_algorithm_and_the_critical_difference():
    found = ranks(one_domain_each(SCORE_Nk))
    figure, (axes,) = drawn()
    assert found is not None
    draw(found, axes)
    svg = as_svg(figure)
    assert all(name in svg for name in NAMES) and "1.25" in svg
    bars = [line for line in axes.lines if line.get_linewidth() == 4]
    assert len(bars) == len(found.cliques)


def test_scores_come_from_the_columns_of_one_rule_without_averages_and_differences():
    def run(algorithm: str, target: str, trial: int, test: float) -> RunRecord:
        metrics = {"val/acc/z": 0.5, f"test/acc/{target}": test, "test/wga": 0.1}
        return RunRecord(
            run_id=f"{algorithm}{target}{trial}",
            algorithm=algorithm,
            dataset="digits",
            protocol="leave-one-domain-out",
            targets=(target,),
            hparams_seed=0,
            trial_seed=trial,
            status="FINISHED",
            evaluations=(Evaluation(1, metrics),),
        )

    runs = [
        run(name, target, trial, base + 0.1 * trial)
        for name, base in (("erm", 0.3), ("vrex", 0.5))
        for target in ("a", "b")
        for trial in range(2)
    ]
    tables = build_tables(runs, [last, training_domain_validation], extras=["wga"])
    found = scores(tables, "last")
    assert list(found) == ["digits"] and len(found["digits"]) == 2
    for by_algorithm in found["digits"].values():
        assert by_algorithm == pytest.approx({"erm": 0.35, "vrex": 0.55})


def test_a_squared_error_is_better_when_it_is_small():
    block = Block("wells", "official", "scratch", "", "", "", False)
    rows = tuple(Row(name, (Cell({0: error}),)) for name, error in (("erm", 4.0), ("vrex", 2.0)))
    found = ranks(scores([Table("t", block, (Column("test", "number", "last"),), rows, ())], "last"))
    assert found is not None and found.mean == {"vrex": 1.0, "erm": 2.0}
