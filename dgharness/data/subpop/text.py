"""SubpopBench's texts: comments that mention people, and pairs of sentences.

Paper: Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec
from dgharness.data.protocols import OFFICIAL
from dgharness.data.subpop.table import (
    SubpopOptions,
    Table,
    defaults,
    read_table,
    row_numbers,
    subpopulations,
    with_domain,
)
from dgharness.data.text import TextOptions, not_utf8, text_dataset
from dgharness.data.wilds.load import data_root
from dgharness.errors import UsageError

DEFAULTS = defaults("bert", 30000, 1000)


class CivilCommentsOptions(TextOptions, SubpopOptions):
    """How comments become tokens, and what training may know."""

    tokenizer: str = "bert-base-uncased"
    max_tokens: int = 220


class MultiNLIOptions(TextOptions, SubpopOptions):
    """How pairs of sentences become tokens, and what training may know."""

    tokenizer: str = "bert-base-uncased"
    max_tokens: int = 128


# --- CivilComments ---------------------------------------------------------------------------------

COMMENTS = "civilcomments/all_data_with_identities.csv"
IDENTITIES = ["male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white"]
LABELS = ["civil", "toxic"]


def _load_fine(
    argument: str | None, root: Path | None, trial_seed: int, options: CivilCommentsOptions
) -> Dataset:
    """A comment once for each identity that it mentions; comments that mention none are left out."""
    comments, mentioned_M8 = _comments("subpop:civilcomments-fine", data_root(root))
    row_M, identity_M = np.nonzero(mentioned_M8)
    manifest = _manifest(comments.iloc[row_M], identity_M)
    known = options.attributes == "known"
    manifest = with_domain(manifest, "identity", known)
    return text_dataset(
        "subpop:civilcomments-fine",
        manifest,
        comments["comment_text"].iloc[row_M].tolist(),
        options,
        defaults=DEFAULTS,
        **subpopulations(manifest, "identity", known),
    )


def _load_coarse(
    argument: str | None, root: Path | None, trial_seed: int, options: CivilCommentsOptions
) -> Dataset:
    """Every comment once in training, which knows whether it mentions any identity; else as the fine one."""
    comments, mentioned_M8 = _comments("subpop:civilcomments", data_root(root))
    train_M = (comments["split"] == "train").to_numpy()
    row_M, identity_M = np.nonzero(mentioned_M8 & ~train_M[:, None])
    row_M = np.concatenate([np.flatnonzero(train_M), row_M])
    identity_M = np.concatenate([np.full(train_M.sum(), -1), identity_M])
    manifest = _manifest(comments.iloc[row_M], identity_M)
    any_M = np.asarray(mentioned_M8[row_M].any(axis=1), dtype=np.int64)
    manifest["any_identity"] = pd.Categorical.from_codes(any_M, pd.Index(["no", "yes"]))
    known = options.attributes == "known"
    manifest = with_domain(manifest, "any_identity", known)
    return text_dataset(
        "subpop:civilcomments",
        manifest,
        comments["comment_text"].iloc[row_M].tolist(),
        options,
        defaults=DEFAULTS,
        **subpopulations(manifest, "identity", known, train="any_identity"),
    )


def _comments(name: str, root: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """``comment_text``, ``toxicity`` and ``split`` of all comments, and who is mentioned [M, 8]."""
    path = root / COMMENTS
    if not path.is_file():
        raise UsageError(f"{name} needs {path}, which is WILDS' file of CivilComments; put it there")
    numbers = ["toxicity", *IDENTITIES]
    try:
        comments = pd.read_csv(
            path,
            usecols=["comment_text", "split", *numbers],
            dtype={"comment_text": str, "split": str},
            keep_default_na=False,  # a comment may well be "null"
            na_values={column: [""] for column in numbers},
        )
    except UnicodeDecodeError:
        raise UsageError(f"{not_utf8(path)}; write it anew as UTF-8") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UsageError(f"{path} cannot be read ({error}); fetch it again") from error
    unknown_M = (comments["toxicity"].isna() | ~comments["split"].isin(["train", "val", "test"])).to_numpy()
    if unknown_M.any():
        raise UsageError(
            f"row {int(unknown_M.argmax())} of {path} has no toxicity, or no split of train, val and test; "
            "mend it or take the row out"
        )
    return comments, (comments[IDENTITIES] >= 0.5).to_numpy()


def _manifest(comments: pd.DataFrame, identity_M: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "y": pd.Categorical.from_codes((comments["toxicity"] >= 0.5).astype("int64"), pd.Index(LABELS)),
            "identity": pd.Categorical.from_codes(identity_M, pd.Index(IDENTITIES)),
            "split": pd.Categorical(comments["split"], OFFICIAL),
        }
    )


civilcomments = DatasetSpec(
    _load_coarse,
    CivilCommentsOptions,
    layout=f"{COMMENTS}\n  as WILDS has it: comment_text, split, toxicity, {', '.join(IDENTITIES)}",
    doc=__doc__,
)
"""Toxic comments; training knows whether any of eight identities is mentioned (Borkan et al. 2019)."""

civilcomments_fine = DatasetSpec(_load_fine, CivilCommentsOptions, layout=civilcomments.layout, doc=__doc__)
"""Toxic comments, once for each identity mentioned; the others are left out (Borkan et al. 2019)."""


# --- MultiNLI --------------------------------------------------------------------------------------

RELATIONS = Table(
    "multinli/metadata_multinli.csv",
    ("contradiction", "entailment", "neutral"),
    "negation",
    ("no", "yes"),
)
PAIRS = "multinli/glue_data/MNLI"
PARTS = ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv")  # filename counts through them


def _load_multinli(
    argument: str | None, root: Path | None, trial_seed: int, options: MultiNLIOptions
) -> Dataset:
    """Premise and hypothesis with the separator of BERT between them."""
    place, known = data_root(root), options.attributes == "known"
    manifest = read_table("subpop:multinli", place, RELATIONS)
    pairs = pd.concat([_pairs(place / PAIRS / part) for part in PARTS], ignore_index=True)
    table = place / RELATIONS.file
    chosen = pairs.iloc[row_numbers(table, manifest.pop("filename"), len(pairs), PAIRS)]
    other_M = chosen["gold_label"].to_numpy() != manifest["y"].astype(str).to_numpy()
    if other_M.any():
        row = int(other_M.argmax())
        raise UsageError(
            f"row {row} of {table} says {manifest['y'].iloc[row]}, and its sentences in {place / PAIRS} say "
            f"{chosen['gold_label'].iloc[row]}: they do not belong together; fetch GLUE's files again"
        )
    manifest = with_domain(manifest, RELATIONS.attribute, known)
    return text_dataset(
        "subpop:multinli",
        manifest,
        (chosen["sentence1"] + " [SEP] " + chosen["sentence2"]).tolist(),
        options,
        defaults=DEFAULTS,
        **subpopulations(manifest, RELATIONS.attribute, known),
    )


def _pairs(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"subpop:multinli needs GLUE's file {path} with the sentences; put it there")
    try:
        return pd.read_csv(
            path,
            sep="\t",
            quoting=csv.QUOTE_NONE,
            usecols=["sentence1", "sentence2", "gold_label"],
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except UnicodeDecodeError:
        raise UsageError(f"{not_utf8(path)}; fetch it again") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UsageError(f"{path} cannot be read ({error}); fetch it again") from error


multinli = DatasetSpec(
    _load_multinli,
    MultiNLIOptions,
    layout=f"{RELATIONS.layout}\n"
    f"{PAIRS}/{{{','.join(PARTS)}}}\n  GLUE's: sentence1, sentence2, gold_label; filename counts them all",
    counts={"no": 382945, "yes": 29404},
    class_counts={
        "no": {"contradiction": 114909, "entailment": 134821, "neutral": 133215},
        "yes": {"contradiction": 22447, "entailment": 3020, "neutral": 3937},
    },
    doc=__doc__,
)
"""Whether one sentence follows from another; a negation suggests that it does not (Williams et al. 2018)."""
