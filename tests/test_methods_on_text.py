"""Methods on batches of text, whose inputs are dictionaries: they do what they do on one tensor.

Shapes: E rows of a batch, B examples per row, N = E*B, C outputs, L tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_runs import differences
from torch import Tensor, nn

from dgharness import registry
from dgharness.config import compose
from dgharness.data.source import make_batch
from dgharness.data.text import TextOptions, text_dataset
from dgharness.errors import NotApplicable
from dgharness.hparams import checked
from dgharness.models.model import Model, build_model
from dgharness.models.transformer import distilbert
from dgharness.plugin import Dims, Step
from dgharness.step import TokenShape
from dgharness.training.averaging import AveragingConfig
from dgharness.training.evaluation import Evaluator
from dgharness.training.learner import Learner
from dgharness.training.optimizers import OptimizerConfig
from dgharness.training.prepare import prepare

pytest.importorskip("transformers")

E, B, C = 3, 4, 3
SHAPE = TokenShape(length=12, vocabulary=50)
TINY = {"weights": "scratch", "layers": 2, "heads": 2, "width": 16}


def built(shape: TokenShape = SHAPE) -> Model:
    return build_model(distilbert, shape, C, checked(distilbert.options, TINY, "model"), seed=0)[0]


def texts(lengths: tuple[int, ...] = (8, 3, 5, 1), seed: int = 0) -> dict[str, Tensor]:
    """Tokens with padding behind the shorter texts."""
    longest, generator = max(lengths), torch.Generator().manual_seed(seed)
    mask_NL = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    ids_NL = torch.randint(1, SHAPE.vocabulary, mask_NL.shape, generator=generator) * mask_NL
    return {"input_ids": ids_NL, "attention_mask": mask_NL.long()}


class OfNumbers(nn.Module):
    """Takes the tokens alone, as one tensor; 0 is padding."""

    def __init__(self, featurizer: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer

    def forward(self, ids_NL: Tensor) -> Tensor:
        return self.featurizer({"input_ids": ids_NL, "attention_mask": (ids_NL > 0).long()})


def learner(model: Model, method: str, **given: Any) -> Learner:
    spec = registry.load("algorithms", method)
    dims = Dims(outputs=C, features=16, domains=E, groups=E, rows=100, input_shape=tuple(SHAPE))
    config = OptimizerConfig(lr=0.01, weight_decay=0.0)
    return Learner(spec, model, dims, spec.hparams(), config, seed=0, **given)


@pytest.mark.parametrize("method", ["erm", "irmv1", "vrex", "coral", "mmd", "group-dro", "fishr", "iga"])
def test_a_method_does_on_a_dictionary_what_it_does_on_one_tensor(method: str) -> None:
    of_dictionary, of_tensor = built(), built()
    of_tensor = Model(OfNumbers(of_tensor.featurizer), of_tensor.classifier)
    first, second = learner(of_dictionary, method), learner(of_tensor, method)
    for t in range(3):
        x, y_EB = texts((8, 3, 5, 2) * E, seed=t), torch.arange(E * B).view(E, B) % C
        one, other = first.step(x, y_EB), second.step(x["input_ids"], y_EB)
        assert not differences(one, other)
        assert one["risk"].isfinite()
    assert torch.equal(first.predict(texts()), second.predict(texts()["input_ids"]))


def test_a_row_of_a_step_holds_its_own_part_of_the_dictionary() -> None:
    ids_EB = torch.arange(E * B).view(E, B)
    step = Step(
        x=texts((8, 3, 5, 2) * E),
        targets_EB=ids_EB,
        domain_EB=ids_EB,
        group_EB=ids_EB,
        index_EB=ids_EB,
        model=built().eval(),
        loss=nn.functional.cross_entropy,
    )
    rows = list(step.rows())
    assert all(
        torch.equal(row.x["input_ids"], step.x["input_ids"][e * B : e * B + B]) for e, row in enumerate(rows)
    )
    torch.testing.assert_close(torch.cat([row.features_EBD for row in rows]), step.features_EBD)


def test_the_average_of_the_weights_predicts_on_a_dictionary() -> None:
    averaged = learner(built(), "erm", averaging=AveragingConfig(name="sma", start=1))
    for t in range(2):
        averaged.step(texts((8, 3, 5, 2) * E, seed=t), torch.arange(E * B).view(E, B) % C)
    assert averaged.predict(texts()).isfinite().all()


def test_a_text_has_the_same_outputs_whatever_stands_beside_it_in_a_batch() -> None:
    written = [" ".join(["so"] * (number % 9)) for number in range(300)]
    manifest = pd.DataFrame(
        {
            "y": pd.Categorical.from_codes([number % C for number in range(300)], ["a", "b", "c"]),
            "domain": pd.Categorical(["here"] * 300),
        }
    )
    given = checked(TextOptions, {"tokenizer": "hashing", "max_tokens": 12}, "data")
    dataset = text_dataset("texts", manifest, written, given)
    model = built(dataset.input_shape).eval()
    cpu, rows = torch.device("cpu"), torch.arange(300)
    evaluator = Evaluator(dataset, dataset.reader, None, cpu)  # type: ignore[arg-type]
    outputs_NC = evaluator.outputs(model, rows.numpy())  # in batches, each as long as its own longest text
    unknown_M = torch.full((300,), -1)
    batch = make_batch(dataset, dataset.reader, rows[None, 290:], unknown_M, unknown_M, 0, cpu)
    with torch.no_grad():
        torch.testing.assert_close(model(batch.x), outputs_NC[290:])
        torch.testing.assert_close(model(dataset.reader(rows[4:5])), outputs_NC[4:5])


@pytest.mark.parametrize("method", ["nw-head", "par", "ddg"])
def test_a_method_for_inputs_of_one_tensor_says_so_before_training(method: str, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(
        "text,y,domain\n" + "so,a,here\nno,b,here\nso,a,there\nno,b,there\n" * 6
    )
    config = compose(
        sets=[
            f"data.name=csv:{tmp_path / 'reviews.csv'}",
            "data.tokenizer=hashing",
            f"algorithm={method}",
            "model.name=distilbert",
            "model.weights=scratch",
        ]
    )
    with pytest.raises(NotApplicable, match=f"{method} cannot run here: it needs inputs of one tensor"):
        prepare(config)
