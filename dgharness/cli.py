"""The command line: a thin shell. Every heavy import is inside the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any

import typer

from dgharness.cli_results import diagnose, evaluate, report
from dgharness.flags import (
    Algorithm,
    Algorithms,
    AsJson,
    ConfigFile,
    DataRoot,
    DatasetName,
    DryRun,
    Experiment,
    Output,
    Plugins,
    Preset,
    Sets,
    Targets,
    commas,
    flags,
)

app = typer.Typer(
    name="dgharness",
    help="Train, measure and compare domain generalization algorithms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
algorithms_app = typer.Typer(help="The algorithms there are: list them, or show one.")
datasets_app = typer.Typer(help="The datasets there are: list them, show one, or check one for faults.")
app.add_typer(algorithms_app, name="algorithms")
app.add_typer(datasets_app, name="datasets")


@app.command()
def train(
    algorithm: Algorithm = "",
    dataset: DatasetName = "",
    target: Targets = [],  # noqa: B006
    data_root: DataRoot = "",
    preset: Preset = "",
    config: ConfigFile = None,
    set_: Sets = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    hparams_seed: Annotated[int | None, typer.Option(help="0: the defaults; others: a random draw.")] = None,
    trial_seed: Annotated[
        int | None, typer.Option(help="Data generation, split, initialisation, order.")
    ] = None,
    output: Output = "",
    experiment: Experiment = "",
    resume: Annotated[str | None, typer.Option("--resume", help="Continue this run id.")] = None,
    register: Annotated[
        str | None, typer.Option("--register", help="Register the chosen model in MLflow.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one algorithm on one split, tracked in MLflow."""
    from dgharness.commands.running import run_train

    given = flags(
        algorithm=algorithm,
        dataset=dataset,
        target=target,
        data_root=data_root,
        plugin=plugin,
        output=output,
        experiment=experiment,
        hparams_seed=hparams_seed,
        trial_seed=trial_seed,
    )
    layers = {"preset": preset, "file": config, "sets": set_, "flags": given}
    run_train(layers, resume=resume, register=register, dry_run=dry_run, as_json=as_json)


@app.command()
def sweep(
    algorithms: Algorithms = ["all"],  # noqa: B006
    dataset: DatasetName = "",
    target: Targets = [],  # noqa: B006
    trials: Annotated[int, typer.Option(help="Trial seeds 0..N-1.", min=1)] = 3,
    hparams: Annotated[int, typer.Option(help="Draws: the defaults and N-1 random ones.", min=1)] = 1,
    rule: Annotated[list[str], typer.Option("--rule", help="Selection rules to prepare for.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(help="Processes (default: one per GPU, or per core).", min=0)] = 0,
    data_root: DataRoot = "",
    preset: Preset = "",
    config: ConfigFile = None,
    set_: Sets = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    output: Output = "",
    experiment: Experiment = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train algorithms x targets x hyperparameter draws x trials; run it again to continue."""
    from dgharness.commands.running import run_sweep

    given = flags(
        dataset=dataset,
        data_root=data_root,
        plugin=plugin,
        output=output,
        experiment=experiment,
    )
    if rule:
        given["selection"] = {"rules": commas(rule)}
    layers = {"preset": preset, "file": config, "sets": set_, "flags": given}
    run_sweep(
        layers,
        algorithms=commas(algorithms),
        targets=target,
        trials=trials,
        hparams=hparams,
        workers=workers,
        dry_run=dry_run,
        as_json=as_json,
    )


app.command()(report)
app.command()(evaluate)
app.command()(diagnose)


@algorithms_app.callback(invoke_without_command=True)
def list_algorithms(
    context: typer.Context,
    pattern: Annotated[str, typer.Option("--pattern", help="Names like this: '*coral*'.")] = "*",
    unverified: Annotated[bool, typer.Option(help="Also those from incomplete sources.")] = False,
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """List the algorithms with their source and trust tier."""
    if context.invoked_subcommand is None:
        from dgharness.commands.listing import list_entries

        list_entries("algorithms", pattern, unverified, plugin, as_json)


@algorithms_app.command("show")
def show_algorithm(name: str, plugin: Plugins = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Paper, equation, hyperparameters, needs, trust tier and source of one algorithm."""
    from dgharness.commands.listing import show_entry

    show_entry("algorithms", name, plugin, as_json)


@datasets_app.callback(invoke_without_command=True)
def list_datasets(context: typer.Context, as_json: AsJson = False) -> None:
    """List the datasets."""
    if context.invoked_subcommand is None:
        from dgharness.commands.listing import list_entries

        list_entries("datasets", "*", False, [], as_json)


@datasets_app.command("show")
def show_dataset(
    name: str,
    data_root: DataRoot = "",
    set_: Sets = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Options of a dataset and, where it can be loaded, its examples by domain and group."""
    from dgharness.commands.listing import show_dataset

    show_dataset(name, data_root, as_json, set_, plugin)


@datasets_app.command("check")
def check_dataset(
    name: Annotated[str, typer.Argument(help="NAME, or folder:PATH and the like.")],
    root: Annotated[str, typer.Option("--root", "--data-root", help="Where its files lie.")] = "",
    set_: Sets = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Say what is missing or wrong; exits with 1 if anything is, with 2 if it cannot be loaded."""
    from dgharness.commands.checking import check_dataset

    check_dataset(name, root, set_, as_json, plugin)


@app.command("config")
def config_(
    algorithm: Annotated[str, typer.Argument(help="Whose hyperparameters to list.", show_default="erm")] = "",
    preset: Preset = "",
) -> None:
    """Print the settings as commented YAML, to be edited and given to --config."""
    from dgharness.commands.listing import print_config

    print_config(algorithm, preset)


@app.command()
def sync(output: Output = "") -> None:
    """Deliver to MLflow what runs could not deliver when the store was away."""
    from dgharness.commands.running import run_sync

    run_sync(output)


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are, and whether the MLflow store can be used."""
    from dgharness.commands.running import run_doctor

    run_doctor()


def main() -> None:
    """Run the command line: a user's mistake is one sentence and exit code 2, never a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    # PyTorch's own forward-mode derivative warns about PyTorch's own use of torch.jit.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
    from dgharness.errors import DivergenceError, Interrupted, UsageError

    try:
        sys.exit(app(prog_name="dgharness", standalone_mode=False))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DivergenceError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:  # the command has said what was saved
        sys.exit(128 + error.signal)
    except BrokenPipeError:  # whoever read stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)
    except CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            print(f"error: {_one_sentence(error)}", file=sys.stderr)
        sys.exit(2)


# What the parser raises; typer carries a click of its own since 0.26, and only this is the same in both.
CommandLineError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _one_sentence(error: Any) -> str:
    """The parser's complaint without its box."""
    said = " ".join(error.format_message().split()).rstrip(".?").replace(". Did you", "; did you")
    context = getattr(error, "ctx", None)
    helped = f"; see {context.command_path} --help" if context else ""
    return f"{said[0].lower()}{said[1:]}{helped}"


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing is under way that has to be saved, and an exception amid an import may end anywhere.
    os._exit(128 + number)
