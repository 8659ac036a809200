"""A real browser on MLflow's pages: the runs, the charts and the views that the store is laid out for."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from small_runs import run_small

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 120.0
RULE = "training-domain-validation"


@pytest.fixture
def server(mlflow_store, tmp_path) -> Iterator[str]:
    """An MLflow server on a store of two runs; its address."""
    for algorithm in ("erm", "irmv1"):
        run_small(mlflow_store, tmp_path / "runs", algorithm)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", mlflow_store]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"], stdout=log, stderr=log, cwd=tmp_path
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(f"{address}/health"), "the server answers")
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1700,1100"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def until(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {PATIENCE:.0f} s: {what}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def text(browser: Any) -> str:
    return browser.find_element("tag name", "body").text


def click(browser: Any, xpath: str) -> None:
    from selenium.common.exceptions import WebDriverException

    def clicked() -> bool:
        found = browser.find_elements("xpath", xpath)
        try:
            return bool(found) and found[-1].click() is None
        except WebDriverException:  # covered by something that is still moving, or drawn anew
            return False

    until(clicked, f"{xpath} can be clicked")


def test_the_experiment_page_shows_runs_charts_and_views(server, browser, mlflow_store):
    from mlflow import MlflowClient

    name = "colored-digits/leave-one-domain-out"
    number = MlflowClient(mlflow_store).get_experiment_by_name(name).experiment_id
    runs = ["erm/-90%/h0t0", "irmv1/-90%/h0t0"]

    page = f"{server}/#/experiments/{number}/runs"
    browser.get(f"{page}?compareRunsMode=CHART")
    until(lambda: all(run in text(browser) for run in runs), "the names of both runs are read")
    until(lambda: f"chosen/{RULE}" in text(browser), "the charts of what the rule chose have a section")
    until(
        lambda: browser.find_elements("css selector", "[data-testid*='chart'] svg, .js-plotly-plot svg"),
        "charts are drawn",
    )

    browser.get("about:blank")
    browser.get(page)
    click(browser, "//button[contains(., 'Views')]")
    click(browser, f"//*[text()='Worst group against all, by {RULE}']")
    until(lambda: all(run in text(browser) for run in runs), "the view lists both runs")
    assert f"Sort: chosen/{RULE}/test_wga" in text(browser)


def test_a_runs_page_says_what_it_was_trained_on_and_what_came_out(server, browser, mlflow_store):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_store)
    experiment = client.get_experiment_by_name("colored-digits/leave-one-domain-out")
    (run,) = client.search_runs([experiment.experiment_id], "tags.dg.algorithm = 'irmv1'")
    browser.get(f"{server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}")
    until(lambda: "+90%" in text(browser) and "test -90%" in text(browser), "the data, by domain")
    until(lambda: "by training-domain-validation" in text(browser), "the result and its rule")
