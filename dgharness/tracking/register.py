"""A trained model in MLflow's model registry: a file that needs torch alone, with signature and example."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dgharness.errors import UsageError
from dgharness.tracking.store import client, explained
from dgharness.tracking.tracker import cut

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

ARTIFACT = "model"  # where it stands among the run's artifacts
NEEDED = ("mlflow", "torch", "numpy")


def register_model(
    uri: str,
    mlflow_run_id: str,
    name: str,
    module: nn.Module,
    example_N: np.ndarray,
    tags: Mapping[str, str],
) -> str:
    """Register a module under a name, as a version of its own; gives the version's number.

    ``example_N`` is a batch of at least two inputs. The module is exported as a graph of tensor operations:
    whoever loads it needs neither this package nor the code of the model. One that cannot be exported is a
    UsageError, and nothing is registered.
    """
    with explained(uri):
        opened = client(uri)  # before the import: it keeps MLflow's messages off the terminal
        import mlflow.pytorch
        from mlflow.exceptions import MlflowException

        if "serialization_format" not in inspect.signature(mlflow.pytorch.save_model).parameters:
            raise UsageError(
                f"MLflow {version('mlflow')} cannot store a model without pickling it; registering needs a "
                "newer one: pip install --upgrade mlflow"
            )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / ARTIFACT
            _save(module, example_N, folder)
            opened.log_artifacts(mlflow_run_id, str(folder), ARTIFACT)
        try:
            opened.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = opened.create_model_version(
            name, f"runs:/{mlflow_run_id}/{ARTIFACT}", run_id=mlflow_run_id, tags=cut(tags)
        )
        return str(found.version)


def _save(module: nn.Module, example_N: np.ndarray, folder: Path) -> None:
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.no_grad():
        outputs_N = module(torch.from_numpy(example_N)).numpy()
    signature = ModelSignature(
        Schema([TensorSpec(example_N.dtype, (-1, *example_N.shape[1:]))]),
        Schema([TensorSpec(outputs_N.dtype, (-1, *outputs_N.shape[1:]))]),
    )
    requirements = [f"{package}=={version(package)}" for package in NEEDED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's about type hints and torch's about its own exporter
        try:
            mlflow.pytorch.save_model(
                module,
                str(folder),
                signature=signature,
                input_example=example_N,
                pip_requirements=requirements,
                serialization_format="pt2",
            )
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
            raise UsageError(
                "this model cannot be exported as a graph of tensor operations, which the registry needs "
                f"({str(error).strip().splitlines()[0]}); its weights lie in the run's directory"
            ) from error
