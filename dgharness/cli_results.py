"""Commands that look at finished runs, for the command line; every heavy import is inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgharness.flags import AsJson, DataRoot, DatasetName, Output, Plugins, Shown, commas


def report(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT...", help="MLflow experiments, as runs print them."),
    ] = None,
    rule: Shown = [],  # noqa: B006
    baseline: Annotated[str, typer.Option(help="Differences are to this algorithm.")] = "erm",
    extra: Annotated[
        list[str], typer.Option("--extra", help="Metrics beside: cost/seconds, ...; none. (default: wga,ece)")
    ] = [],  # noqa: B006
    gaps: Annotated[bool, typer.Option("--gaps", help="What each rule loses to the oracle.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="What the runs of each row cost, failed ones too.")
    ] = False,
    ddof: Annotated[
        int, typer.Option(min=0, max=1, help="Standard errors: 1 unbiased, 0 as in DomainBed.")
    ] = 1,
    against: Annotated[
        list[str],
        typer.Option(
            "--against",
            help="Beside it: reference (published numbers), every-reference (also of methods that were not "
            "run), or earlier runs in DIR.",
        ),
    ] = [],  # noqa: B006
    imported: Annotated[
        list[Path], typer.Option("--import", help="Results of DomainBed: a directory of results.jsonl.")
    ] = [],  # noqa: B006
    format_: Annotated[
        str, typer.Option("--format", help="text, markdown, latex, csv, json or html.")
    ] = "text",
    to: Annotated[Path | None, typer.Option("--to", help="Write to this file instead of stdout.")] = None,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Compare tracked runs: mean ± standard error over trials, one selection rule stated."""
    from dgharness.commands.reporting import Asked, run_report

    run_report(
        Asked(
            experiments=experiments or [],
            rules=commas(rule) if rule else None,
            baseline=baseline,
            extras=commas(extra),
            gaps=gaps,
            cost=cost,
            ddof=0 if ddof == 0 else 1,
            against=against,
            imported=imported,
            plugins=plugin,
            format_=format_,
            to=to,
        )
    )


def evaluate(
    run_id: Annotated[str, typer.Argument(help="A finished run, as it printed its id.")],
    checkpoint: Annotated[
        str, typer.Option(help="The rule that chose it, last, or a step. (default: the rule that it shows)")
    ] = "",
    split: Annotated[list[str], typer.Option("--split", help="test, val, test_holdout, ...")] = ["test"],  # noqa: B006
    metric: Annotated[list[str], typer.Option("--metric", help="These alone: acc, ece, auroc, ...")] = [],  # noqa: B006
    by: Annotated[list[str], typer.Option("--by", help="all, domain, group or class.")] = [],  # noqa: B006
    bootstrap: Annotated[int, typer.Option(help="Resamplings for intervals of 95 %.", min=0)] = 0,
    min_group_size: Annotated[
        int | None, typer.Option(help="Smaller groups are no worst group. (default: as in the run)", min=1)
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also after one temperature, fitted to source validation.")
    ] = False,
    dataset: DatasetName = "",
    data_root: DataRoot = "",
    tta: Annotated[str, typer.Option("--tta", help="Also with this test-time method.")] = "",
    set_: Annotated[
        list[str], typer.Option("--set", help="data.KEY=VALUE of --dataset, tta.KEY=VALUE of --tta.")
    ] = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    output: Output = "",
    format_: Annotated[str, typer.Option("--format", help="text, csv or json.")] = "text",
    as_json: AsJson = False,
    track: Annotated[bool, typer.Option("--track/--no-track", help="Keep the result in MLflow.")] = True,
) -> None:
    """Measure a finished run anew: other metrics, other data or another test-time method; nothing trains."""
    if as_json and format_ not in ("text", "json"):
        raise typer.BadParameter(f"--json and --format {format_} ask for two formats; leave one of them out")
    from dgharness.commands.evaluating import Asked, run_evaluate

    run_evaluate(
        Asked(
            run_id=run_id,
            output=output or "runs",
            checkpoint=checkpoint,
            splits=commas(split),
            metrics=commas(metric),
            by=commas(by),
            bootstrap=bootstrap,
            min_group_size=min_group_size,
            calibrate=calibrate,
            dataset=dataset,
            data_root=data_root,
            tta=tta,
            sets=set_,
            plugins=plugin,
            format_="json" if as_json else format_,
            track=track,
        )
    )


def diagnose(
    what: Annotated[str, typer.Argument(help="An MLflow experiment, or the id of a finished run.")],
    only: Annotated[list[str], typer.Option("--only", help="These diagnoses (default: all).")] = [],  # noqa: B006
    rule: Annotated[str, typer.Option("--rule", help="Selection rule that chooses the checkpoints.")] = "",
    baseline: Annotated[str, typer.Option(help="Effective robustness is beyond its line.")] = "erm",
    x: Annotated[str, typer.Option("--x", help="Metric in distribution, as val/acc_domain_mean.")] = "",
    y: Annotated[str, typer.Option("--y", help="Metric out of distribution, as test/wga.")] = "",
    chosen: Annotated[bool, typer.Option("--chosen", help="Of each run the one by the rule.")] = False,
    output: Output = "",
    data_root: DataRoot = "",
    to: Annotated[Path | None, typer.Option("--to", help="Write tables and figures to this folder.")] = None,
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """What lies behind the numbers: shift, spurious features, calibration, agreement; printed and tracked."""
    from dgharness.commands.diagnosing import Asked, run_diagnose

    run_diagnose(
        Asked(
            what=what,
            only=commas(only) if only else None,
            rule=rule,
            baseline=baseline,
            x=x,
            y=y,
            checkpoints="chosen" if chosen else "scored",
            output=output or "runs",
            data_root=data_root,
            plugins=plugin,
            to=to,
            as_json=as_json,
        )
    )
