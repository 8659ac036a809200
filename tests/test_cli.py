"""The command line as a stranger uses it: one sentence for a mistake, exit codes, data on stdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dgharness import cli, rundir
from dgharness.config import compose
from dgharness.training.prepare import prepare
from dgharness.training.signals import StopFlag

FAST = ["--set", "train.steps=4", "--set", "train.eval_every=2", "--set", "model.width=8"]
CAMELYON = "wilds/camelyon17/meta-dmoe"
EXPERIMENT = "colored-digits/leave-one-domain-out"


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What a mistake says: exactly one line on stderr, nothing on stdout, exit code 2."""
        assert self.code == 2, self
        assert self.out == "" and self.err.count("\n") == 1, self
        assert self.err.startswith("error: ") and "Traceback" not in self.err, self
        return self.err.removeprefix("error: ").rstrip()


@pytest.fixture
def dgharness(tmp_path, monkeypatch, capsys):
    """Run a command in an empty directory, in this process."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["dgharness", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Said(left.value.code or 0, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def store(monkeypatch, mlflow_store):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    return mlflow_store


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trian", "no such command 'trian'; did you mean 'train'; see dgharness --help"),
        ("train --bogus", "no such option: --bogus; see dgharness train --help"),
        ("train extra", "got unexpected extra argument(s) (extra); see dgharness train --help"),
        ("sweep --trials 0", "invalid value for '--trials': "),
        ("train -a vrx", "there is no algorithm 'vrx'; did you mean 'vrex'?"),
        ("train -d colord-digits", "there is no dataset 'colord-digits'; did you mean 'colored-digits'?"),
        ("train -d folder:nowhere", "there is no folder nowhere; folder:PATH expects images in PATH/"),
        ("train -d folder", "folder needs a path, as in folder:PATH"),
        ("train -d colored-mnist", "colored-mnist needs --data-root DIR with MNIST's files in"),
        (
            "train -d colored-mnist --data-root nowhere",
            "colored-mnist misses train-images-idx3-ubyte, train-labels-idx1-ubyte, ",
        ),
        ("train --target=-9%", "colored-digits has no domain '-9%'; did you mean '-90%'?"),
        ("train -d rotated-digits --target 16", "rotated-digits has no domain '16'; did you mean '60'?"),
        (
            "train --target=-90% --target=-90%",
            "a target is named twice: -90%, -90%; name each domain once",
        ),
        ("train --set trian.steps=1", "trian is not a setting here; did you mean 'train'?"),
        ("train -a vrex --set hp.weigth=1", "hp.weigth is not a setting here; did you mean 'weight'?"),
        ("train --set model.widht=1", "model.widht is not a setting here; did you mean 'width'?"),
        ("train --set model.width=-1", "model.width=-1 is not valid: input should be greater than 0"),
        ("train --set model.name=mpl", "there is no model 'mpl'; did you mean 'mlp'?"),
        ("train --set data.color_nois=1", "data.color_nois is not a setting here; did you mean"),
        ("train --set data.groups=colour", "cannot group by 'colour'; did you mean 'color'?"),
        ("train --set tta.name=t3b", "there is no TTA method 't3b'; did you mean 't3a'?"),
        ("train --set selection.rules=lst", "there is no selection rule 'lst'; did you mean 'last'?"),
        ("train --preset nope", "there is no preset 'nope'; known: "),
        ("train --config nope.yaml", "there is no configuration file nope.yaml"),
        ("train --plugin nope:x", "--plugin nope:x cannot be used: importing nope failed: ModuleNotFound"),
        ("train --resume nope", "there is no run 'nope': runs holds no runs"),
        ("train --resume=", "there is no run '': runs holds no runs"),
        ("train --resume nope --dry-run", "--resume continues nope as it was configured, so it goes without"),
        (
            "train --resume nope -a erm",
            "--resume continues nope as it was configured, so it goes without",
        ),
        (
            "train -a vrex --target=-90% --target=+80%",
            "vrex cannot run here: it needs at least 2 training domains, and this split leaves 1 (+90%)",
        ),
        (
            "train --register digits --set execution.keep=results",
            "--register needs weights, and execution.keep=results keeps none; add --set",
        ),
        (
            "train --register digits --set execution.keep=results --dry-run",
            "--register needs weights, and execution.keep=results keeps none; add --set",
        ),
        (
            "train --set execution.keep=none",
            "execution.keep='none' is not valid: input should be 'results', ",
        ),
        ("sweep -a zz*", "no algorithm matches 'zz*'; see dgharness algorithms"),
        ("sweep -a erm --rule lst", "there is no selection rule 'lst'; did you mean 'last'?"),
        ("algorithms show vrx", "there is no algorithm 'vrx'; did you mean 'vrex'?"),
        ("datasets show nope", "there is no dataset 'nope'; known: cifar-10-c, "),
        ("config nope", "there is no algorithm 'nope'; known: "),
        ("sync --output nope", "there is no directory nope; --output names the one with the runs"),
        ("report x --rule lst", "there is no selection rule 'lst'; did you mean 'last'?"),
        (
            "report x --format pdf",
            "there is no report format 'pdf'; known: csv, html, json, ",
        ),
        ("report x", "there is no MLflow store sqlite:///"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(dgharness, command, said):
    assert dgharness(*command.split()).sentence.startswith(said)
    assert not list(Path().iterdir())


def test_a_corrupt_image_is_named(dgharness, tmp_path):
    from PIL import Image

    for domain in ("art", "photo"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / domain / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "1.png")
    (tmp_path / "images/art/cat/2.png").write_bytes(b"not an image")
    cache = ["--set", f"data.cache_dir={tmp_path / 'cache'}", "--set", "data.size=4"]
    said = dgharness("train", "-d", f"folder:{tmp_path / 'images'}", *cache).sentence
    assert "2.png" in said and "skip_unreadable" in said


def test_a_broken_plugin_is_listed_with_the_reason_and_breaks_nothing_else(dgharness, tmp_path, monkeypatch):
    package = tmp_path / "site"
    info = package / "sad-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "sad.py").write_text("raise RuntimeError('no luck')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dgharness.algorithms]\nsad = sad:sad\n")
    monkeypatch.syspath_prepend(str(package))
    from dgharness import registry

    registry._installed.cache_clear()
    try:
        said = dgharness("algorithms")
        (line,) = [line for line in said.out.splitlines() if line.startswith("sad ")]
        assert "broken: importing sad failed: RuntimeError: no luck" in line
        assert said.code == 0 and "vrex" in said.out
        assert "RuntimeError: no luck" in dgharness("train", "-a", "sad").sentence
        assert dgharness("train", "-a", "erm", "--dry-run").code == 0
    finally:
        registry._installed.cache_clear()


# --- the tracking store ----------------------------------------------------------------------------


def test_an_mlruns_folder_is_refused_with_the_remedy(dgharness):
    Path("mlruns/0").mkdir(parents=True)
    Path("mlruns/0/meta.yaml").write_text("name: Default\n")
    for command in (["train"], ["sweep", "-a", "erm"], ["report", "x"]):
        said = dgharness(*command, *(FAST if command[0] != "report" else []))
        assert said.code == 2 and "Traceback" not in said.err
        assert "mlruns is a file store" in said.err and "mlflow migrate-filestore" in said.err
    assert sorted(path.name for path in Path().iterdir()) == ["mlruns"]


def test_a_database_of_another_mlflow_is_refused_with_the_remedy(dgharness, store):
    import sqlite3

    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    said = dgharness("train", *FAST).sentence
    assert "was written by another version of MLflow" in said and "mlflow db upgrade" in said
    assert not list(Path().iterdir())


def test_an_output_that_cannot_be_written_is_named(dgharness, store):
    Path("taken").write_text("")
    said = dgharness("train", *FAST, "--output", "taken")
    assert said.code == 2 and "Traceback" not in said.err
    assert "error: cannot write taken/" in said.err and "part of the path is a file" in said.err


def test_a_full_disk_fails_the_run_and_says_so(dgharness, store, monkeypatch):
    import errno

    from dgharness.training import checkpoint

    def full(state, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    said = dgharness("train", *FAST)
    assert said.code == 2 and "the disk is full" in said.err and "Traceback" not in said.err
    (failed,) = rundir.runs(Path("runs"))
    assert (failed.state.status, failed.state.stored_status) == ("FAILED", "FAILED")


# --- dry runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["train", "-a", "irm"], ["train", "--json"], ["sweep"], ["sweep", "--json", "-a", "erm"]]
)
def test_a_dry_run_writes_nothing_at_all(dgharness, command):
    said = dgharness(*command, *FAST, "--dry-run")
    assert said.code == 0 and not list(Path().iterdir())
    if "--json" in command:
        json.loads(said.out)


def test_a_dry_run_says_what_would_happen(dgharness):
    said = dgharness("train", "-a", "irm", *FAST, "--dry-run")
    assert yaml.safe_load(said.out)["train"]["steps"] == 4
    assert "1 run of 4 steps; nothing is written" in said.err
    said = dgharness("sweep", "-a", "erm,irm", "--trials", "2", "--target=-90%", *FAST, "--dry-run")
    assert "4 runs of 16 steps in all" in said.err and "erm, irmv1" in said.err


@pytest.mark.parametrize("command", [("train",), ("sweep", "-a", "erm", "--trials", "1")])
def test_a_dry_run_fetches_no_weights(dgharness, tmp_path, monkeypatch, command):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    model = ("--set", "model.name=resnet18", "--set", "model.weights=in1k-v1")
    said = dgharness(*command, *model, "--dry-run")
    assert said.code == 0 and not list(Path().iterdir()) and not (tmp_path / "home").exists()
    assert "the weights resnet18/in1k-v1 are not here and would be fetched from https://" in said.err


# --- naming things ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (["--target=-90%"], ["-90%"]),
        (["--target", "-90%"], ["-90%"]),
        (["-t", "-90%"], ["-90%"]),
        (["-t", "+90%", "-t", "-90%"], ["+90%", "-90%"]),
        (["--set", "protocol.targets=[-90%]"], ["-90%"]),
        (["-d", "rotated-digits", "--target", "15"], ["15"]),
        (["-d", "rotated-digits", "--set", "protocol.targets=[30,15]"], ["15", "30"]),
    ],
)
def test_domains_may_be_named_like_options_and_like_numbers(dgharness, words, targets):
    said = dgharness("train", *words, "--dry-run", "--json")
    assert json.loads(said.out)["protocol"]["targets"] == targets


@pytest.mark.parametrize("words", [[], ["--preset", "toy-colored-digits"]])
def test_the_printed_configuration_can_be_given_back(dgharness, words):
    said = dgharness("config", "irm", *words)
    Path("mine.yaml").write_text(said.out)
    given_back = prepare(compose(file="mine.yaml"))
    asked = prepare(compose(flags={"algorithm": "irm"}, preset=words[1] if words else ""))
    assert given_back.config == asked.config
    assert given_back.config_hash == asked.config_hash
    # It pins nothing that a random draw would fill in.
    draw = {"algorithm": "irm", "hparams_seed": 1}
    drawn = prepare(compose(file="mine.yaml", flags=draw)).config
    assert drawn.hp == prepare(compose(flags=draw, preset=asked.config.preset)).config.hp


def test_the_printed_configuration_explains_itself(dgharness):
    text = dgharness("config", "irm").out
    assert "  # weight: 100.0  # Weight of the penalty" in text and "[log-uniform [0.1, 100000]]" in text
    assert "  holdout: 0.2  # Part of every domain kept from training" in text
    assert "  # color_noise: [0.1, 0.2, 0.9]  # For each domain" in text


# --- lists and pages -------------------------------------------------------------------------------


def test_the_algorithms_are_listed_one_a_line(dgharness):
    lines = dgharness("algorithms").out.splitlines()
    assert [line.split()[0] for line in lines][:3] == ["and-mask", "causirl-coral", "causirl-mmd"]
    (irm,) = [line for line in lines if line.startswith("irmv1")]
    assert " core " in irm and irm.endswith("(also irm)")
    assert json.loads(dgharness("algorithms", "--json").out)[0]["name"] == "and-mask"
    assert dgharness("algorithms", "--pattern", "zz*").err == "no algorithm matches 'zz*'\n"


def test_the_list_says_how_many_algorithms_it_leaves_out(dgharness):
    listed, every = dgharness("algorithms"), dgharness("algorithms", "--unverified")
    left_out = every.out.count("\n") - listed.out.count("\n")
    unverified, beside = listed.err.splitlines()
    assert left_out and unverified == f"{left_out} more are unverified; --unverified lists them too"
    assert beside == "TTA methods: drm-online, meta-dmoe, t3a; annotators: eiil" == every.err.strip()
    for name in ("drm-online", "eiil"):
        assert dgharness("algorithms", "show", name).out.startswith(f"{name}: ")
    assert dgharness("algorithms", "--pattern", "erm").err == ""


def test_a_page_names_the_values_that_a_setting_may_have(dgharness):
    # Without them "by a network that tells domains apart" does not say what to write after hp.selection=.
    assert (
        '"entropy", one of uniform, entropy, prototype, cosine, discriminator'
        in dgharness("algorithms", "show", "drm").out
    )
    kernel = '"euclid", one of euclid, hypersphere, cosine; drawn: one of euclid, hypersphere, structural'
    assert kernel in dgharness("algorithms", "show", "nw-head").out


def test_the_printed_configuration_names_what_can_be_chosen(dgharness):
    text = dgharness("config").out
    for names in (
        "drm-online, ",
        "[one of none, eiil]",
        "linear, mlp, mnist-cnn, ",
        "[any of auroc, balanced-accuracy",
        "synthetic:zin",
    ):
        assert names in text
    assert "[one of adam, adamw, sgd, sam, rk2, rk4]" in text
    assert "\n# Meta-DMoE on Camelyon17 of WILDS" in dgharness("config", "--preset", CAMELYON).out


def test_an_algorithm_is_shown_whole(dgharness):
    text = dgharness("algorithms", "show", "irm").out
    for part in (
        "irmv1: ",
        "\npaper        Arjovsky",
        "\nequation     min_Phi",
        "\nneeds ",
        "\nrung         1 of 3, a penalty",
        "\ntrust tier   core",
        "\nsource       built-in, dgharness.algorithms.irmv1:irmv1",
        "\n  weight        100.0, log-uniform [0.1, 100000]\n",
        "\n  unbiased      true, structural\n",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(dgharness("algorithms", "show", "irm", "--json").out)["name"] == "irmv1"


def test_a_dataset_is_shown_with_its_counts(dgharness):
    text = dgharness("datasets", "show", "colored-digits").out
    assert text.startswith("colored-digits (a toy): 1797 examples\nsummary      the bundled digits, colored.")
    assert "\nprotocol     leave-one-domain-out\n" in text and "\ninput        2 x 8 x 8\n" in text
    toy = dgharness("datasets", "show", "synthetic:unit-test-2").out
    assert "\npaper        Aubin, " in toy and "\nprotocol     official\n" in toy
    assert "\ndomains      +90% 599 · +80% 599 · -90% 599\n" in text
    assert "\noptions\n  label_noise  0.25\n" in text
    facts = json.loads(dgharness("datasets", "show", "colored-digits", "--json").out)
    assert facts["domains"] == {"+90%": 599, "+80%": 599, "-90%": 599}
    folder = dgharness("datasets", "show", "folder").out
    assert folder.startswith("folder:      folder:PATH, photographs as PATH/") and "`" not in folder
    assert "`" not in dgharness("datasets").out


# --- runs ------------------------------------------------------------------------------------------


def test_a_report_goes_by_the_rule_that_its_runs_show(dgharness, store):
    def rules(*words: str) -> tuple[set[str], str]:
        said = dgharness("report", EXPERIMENT, "--format", "json", *words)
        return {column["rule"] for table in json.loads(said.out) for column in table["columns"]}, said.err

    dgharness("train", *FAST, "--set", "selection.shown=worst-group")
    assert rules() == ({"worst-group"}, "")
    assert rules("--rule", "last")[0] == {"last"}
    dgharness("train", "-a", "irm", *FAST)
    found, said = rules()
    assert found == {"training-domain-validation"}
    assert "the runs show their results by training-domain-validation and worst-group; here by" in said


def test_a_run_is_trained_reported_and_trained_again(dgharness, store):
    said = dgharness("train", *FAST, "--json")
    record = json.loads(said.out)
    assert said.code == 0 and record["status"] == "FINISHED"
    assert f"compare: dgharness report {EXPERIMENT}" in said.err
    again = json.loads(dgharness("train", *FAST, "--json").out)
    assert again["run_id"] == f"{record['run_id']}-2"
    assert again["chosen"] == record["chosen"]
    (table,) = json.loads(dgharness("report", EXPERIMENT, "--format", "json").out)
    assert [row["algorithm"] for row in table["rows"]] == ["erm"]
    assert dgharness("report", EXPERIMENT).out.count("\n\n\n") == 0
    for words, said in [
        ([EXPERIMENT[:-1]], f"has no experiment {EXPERIMENT[:-1]!r}; did you mean {EXPERIMENT!r}?"),
        (["Default"], "the experiment 'Default' holds no training runs yet"),
        ([EXPERIMENT, "--baseline", "vrex"], "no run of this experiment has the baseline 'vrex'; known: erm"),
        ([EXPERIMENT, "--extra", "wgaa"], "no run has logged the metric 'wgaa'; did you mean 'wga'?"),
        ([EXPERIMENT, "--rule", ","], "--rule names no selection rule"),
        ([EXPERIMENT, "--to", "."], "cannot write .: Is a directory; choose another file with --to"),
    ]:
        assert said in dgharness("report", *words).sentence
    assert f"run {record['run_id']} is finished; there is nothing to resume" in (
        dgharness("train", "--resume", record["run_id"]).sentence
    )
    assert dgharness("sync").err == "nothing to deliver\n"


def test_a_stopped_run_says_how_to_continue_it_and_exits_with_the_signal(dgharness, store, monkeypatch):
    whole = json.loads(dgharness("train", *FAST, "--json", "--output", "whole").out)
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__enter__", lambda self: setattr(self, "signal", signal.SIGTERM) or self)
        said = dgharness("train", *FAST, "--output", "cut")
    run_id = whole["run_id"]
    assert said.code == 143
    resume = f"dgharness train --resume {run_id} --output cut"
    hint = f"run {run_id} KILLED, its state is saved; {resume} continues it"
    assert said.err.splitlines()[-1] == hint
    (stopped,) = rundir.runs(Path("cut"))
    assert (stopped.state.status, stopped.state.stored_status) == ("KILLED", "KILLED")
    with stopped.lock():
        busy = dgharness("train", "--resume", run_id, "--output", "cut")
        assert busy.code == 2 and "is being worked on by another process" in busy.err
    refused = dgharness("train", "--resume", run_id, "--output", "cut", "--set", "train.steps=9").sentence
    assert "goes without train" in refused
    continued = dgharness(
        "train", "--resume", run_id, "--output", "cut", "--json", "--set", "execution.device=cpu"
    )
    assert json.loads(continued.out)["chosen"] == whole["chosen"]


def test_a_diverging_loss_fails_the_run_with_its_first_step_and_term(dgharness, store):
    said = dgharness("train", "-a", "irm", *FAST, "--set", "optimizer.lr=1e30")
    assert said.code == 1 and "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("FAILED: training diverged: 'penalty' was not finite at step 2;")
    (failed,) = rundir.runs(Path("runs"))
    assert (failed.state.status, failed.state.stored_status) == ("FAILED", "FAILED")
    assert "at step 2" in failed.state.error


def test_a_sweep_with_failed_runs_exits_with_3(dgharness, store, monkeypatch):
    from dgharness.sweep import run as sweeping
    from dgharness.sweep.pool import Outcome

    def run_jobs(worker, jobs, *, on_done, **given):
        outcomes = [Outcome("died", message="killed by signal 9") for _ in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            on_done(job, outcome)
        return outcomes

    monkeypatch.setattr(sweeping, "run_jobs", run_jobs)
    said = dgharness("sweep", "-a", "erm", "--target=-90%", "--trials", "1", *FAST, "--json")
    assert said.code == 3
    name = "erm/-90%/h0t0"
    assert json.loads(said.out)["failed"] == {name: "its process ended early: killed by signal 9"}


def test_the_doctor_speaks(dgharness, store):
    said = dgharness("doctor")
    assert said.code == 0 and "plugins all ok" in said.out and said.out.rstrip().endswith("ok")


# --- starting quickly ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["algorithms"], ["train", "--help"]])
def test_help_and_lists_import_nothing_heavy(words):
    code = (
        "import sys; from dgharness.cli import main\n"
        "try: main()\nexcept SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'torchvision', 'mlflow', 'pandas', 'sklearn', 'numpy', 'scipy'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
