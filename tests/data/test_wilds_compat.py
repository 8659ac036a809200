"""The ``wilds`` package runs on this pandas, numpy and torch, and starts nothing when it is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgharness.data.wilds.compat import constructing, group_means, import_wilds

# A package that checks for updates as the real one does, on the network and on a thread of its own.
OUTDATED = """
    import socket

    def check_outdated(package, version):
        socket.create_connection(("192.0.2.1", 443), timeout=30)
"""
GUARDED = """
    import socket, sys, threading

    def refused(*args, **kwargs):
        raise AssertionError(f"the network was used: {args}")

    socket.create_connection = socket.getaddrinfo = socket.socket.connect = refused
    started, start = [], threading.Thread.start
    threading.Thread.start = lambda thread: (started.append(thread.name), start(thread))
"""


def run(folder: Path, code: str) -> str:
    """The output of code in a process of its own, where ``outdated`` is the package above."""
    (folder / "outdated.py").write_text(textwrap.dedent(OUTDATED))
    script = textwrap.dedent(GUARDED) + f"sys.path.insert(0, {str(folder)!r})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_starts_no_thread_and_asks_no_network(tmp_path: Path):
    said = run(
        tmp_path,
        """
        from dgharness.data.wilds.compat import constructing, import_wilds

        wilds = import_wilds()
        with constructing():
            try:
                import outdated
            except ImportError as error:
                blocked = "halted" in str(error)
        import wilds.datasets.camelyon17_dataset
        print(blocked, started, threading.active_count(), "torch_scatter" in sys.modules, wilds.__version__)
        import outdated  # is there again for whoever else wants it
        """,
    )
    assert said == "True [] 1 False 2.0.0"


def test_the_guard_of_that_test_sees_what_the_package_would_do(tmp_path: Path):
    assert run(tmp_path, "import wilds\nprint(len(started))") == "1"


def test_the_package_itself_is_not_imported_by_what_only_lists_datasets(tmp_path: Path):
    code = "import dgharness.data.wilds.images\nprint('wilds' in sys.modules)"
    assert run(tmp_path, code) == "False"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_means_are_those_of_a_loop(dtype: torch.dtype):
    value_N = torch.rand(100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    group_N = torch.arange(100) % 3 * 2  # groups 1, 3, 5 and 6 are empty
    mean_G, count_G = group_means(value_N, group_N, 7)
    for group in range(7):
        chosen = value_N[group_N == group]
        assert count_G[group] == len(chosen)
        assert mean_G[group].item() == pytest.approx(chosen.mean().item() if len(chosen) else 0.0)


def test_group_means_have_the_gradient_of_a_mean():
    value_N = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    group_means(value_N, torch.tensor([0, 2, 2]), 3)[0].sum().backward()
    assert value_N.grad is not None and value_N.grad.tolist() == [1.0, 0.5, 0.5]


def test_the_package_averages_groups_without_torch_scatter():
    import_wilds()
    from wilds.common.metrics.all_metrics import Accuracy

    metric = Accuracy()
    found = metric.compute_group_wise(
        torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]), 3
    )
    assert found == {
        "acc_group:0": 0.5,
        "count_group:0": 2.0,
        "acc_group:1": 0.0,
        "count_group:1": 0.0,
        "acc_group:2": 1.0,
        "count_group:2": 1.0,
        "acc_wg": 0.5,
    }


def test_inside_constructing_pandas_does_what_the_package_expects():
    stamps = pd.Series(["2015-01-01T00:00:00Z", "2015-01-01T00:00:00.250Z"])
    with constructing():
        values = pd.Series([1, 2]).values
        values[0] = 7
        cells = pd.DataFrame({"a": [1, -1], "b": [-1, 1]}).values
        cells[cells == -1] = 0
        assert (values[0], cells.tolist()) == (7, [[1, 0], [0, 1]])
        assert pd.to_datetime(stamps).dt.microsecond.tolist() == [0, 250000]
        assert pd.to_datetime("03.02.2015", format="%d.%m.%Y").month == 2
        assert (pd.get_dummies(pd.DataFrame({"a": ["x", "y"]})).dtypes == np.uint8).all()
        text = pd.Series(["0.7", "yes"])
        text[text == "yes"] = 0  # a number in a column of text
        assert text.tolist() == ["0.7", 0]


def test_after_constructing_everything_is_as_it_was(capsys: pytest.CaptureFixture[str]):
    kept = [pd.to_datetime, pd.get_dummies, torch.load, Image.MAX_IMAGE_PIXELS, list(warnings.filters)]
    own = {owner: owner.__dict__.get("values") for owner in (pd.Series, pd.DataFrame)}
    with pytest.raises(ZeroDivisionError), constructing():
        Image.MAX_IMAGE_PIXELS = 1
        print("a remark of the package")
        raise ZeroDivisionError
    assert kept == [
        pd.to_datetime,
        pd.get_dummies,
        torch.load,
        Image.MAX_IMAGE_PIXELS,
        list(warnings.filters),
    ]
    assert own == {owner: owner.__dict__.get("values") for owner in own}
    assert "outdated" not in sys.modules or sys.modules["outdated"] is not None
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a remark of the package\n")
