"""The text datasets of WILDS: comments and reviews, to be told toxic or given their stars.

Koh et al., *WILDS: A Benchmark of in-the-Wild Distribution Shifts* (2021); their unlabeled texts: Sagawa et
al., *Extending the WILDS Benchmark for Unsupervised Adaptation* (2022).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgharness.data.dataset import Dataset, DatasetSpec, Defaults
from dgharness.data.text import TextOptions, not_utf8, text_dataset, text_reader
from dgharness.data.wilds.load import WildsOptions, data_root, manifest_of, official_eval, open_wilds
from dgharness.data.wilds.unlabeled import unlabeled_manifest, with_unlabeled
from dgharness.errors import UsageError

IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
COMMENT_DEFAULTS = Defaults(model="distilbert", eval_every=300, protocol="official")
AMAZON_DEFAULTS = dataclasses.replace(COMMENT_DEFAULTS, rows=2)  # of some thousand reviewers
YELP_DEFAULTS = dataclasses.replace(AMAZON_DEFAULTS, model="bert")

COMMENTS = """
civilcomments_v1.0/
  RELEASE_v1.0.txt
  all_data_with_identities.csv
    comment_text, split (train, val, test), toxicity, male, female, LGBTQ, christian, muslim, other_religions,
    black, white, identity_any, severe_toxicity, obscene, threat, insult, identity_attack, sexual_explicit
civilcomments_unlabeled_v1.0/ (for data.unlabeled=extra alone)
  RELEASE_v1.0.txt
  unlabeled_data_with_identities.csv
    comment_text, toxicity
"""
AMAZON = """
amazon_v2.1/
  RELEASE_v2.1.txt
  reviews.csv
    reviewerID, asin, overall (1 to 5), reviewTime, unixReviewTime, reviewText, summary, verified, category,
    reviewYear
  splits/user.csv, splits/time.csv, ... (one for each split scheme, a row for each review)
    split: 0 train, 1 val, 2 id_val, 3 test, 4 id_test; 11, 12 and 13 unlabeled val, test and extra;
    -1 left out
"""
YELP = """
yelp_v1.0/
  reviews.csv
    review_id, user_id, business_id, stars (1 to 5), useful, funny, cool, text, date, year, city, state,
    categories
  splits/time.csv, splits/user.csv, ... (one for each split scheme, a row for each review)
    split: 0 train, 1 val, 2 id_val, 3 test, 4 id_test; -1 left out
"""


class CommentOptions(WildsOptions, TextOptions):
    """As in the benchmark."""


class AmazonOptions(WildsOptions, TextOptions):
    """As in the benchmark; ``split_scheme`` may be user, time, category_subpopulation and others."""

    max_tokens: int = 512


class YelpOptions(WildsOptions, TextOptions):
    """As in the benchmark; ``split_scheme`` may be time, user and time_baseline."""

    tokenizer: str = "bert-base-uncased"
    max_tokens: int = 512


def _load_civilcomments(
    argument: str | None, root: Path | None, seed: int, options: CommentOptions
) -> Dataset:
    source = _opened("civilcomments", root, options)
    _check_comments(source)
    yes_no = {field: ["0", "1"] for field in source.metadata_fields}
    dataset = _labeled(
        source,
        _by_black(manifest_of(source, ["black"], names={**yes_no, "y": ["non-toxic", "toxic"]})),
        source._text_array,
        options,
        defaults=COMMENT_DEFAULTS,
        groups=("y", "+".join(IDENTITIES)),
        train_groups=("black", "y"),
        official_metric="acc_wg",
        replicates=5,
    )
    if not options.unlabeled:
        return dataset
    further = _opened("civilcomments", root, options, unlabeled=True)
    unlabeled = _by_black(unlabeled_manifest(further, options.unlabeled, ["black"]))
    return _followed_by(dataset, unlabeled, further._text_array, options)


def _load_reviews(
    name: str,
    defaults: Defaults,
    replicates: int,
    argument: str | None,
    root: Path | None,
    seed: int,
    options: AmazonOptions | YelpOptions,
) -> Dataset:
    source = _opened(name, root, options)
    domain = source._eval_grouper.groupby_fields  # user, year or category, as the split has it
    dataset = _labeled(
        source,
        manifest_of(source, domain),
        source._input_array,
        options,
        defaults=defaults,
        groups=tuple(domain),
        official_metric="10th_percentile_acc" if source.split_scheme == "user" else "acc_wg",
        replicates=replicates,
    )
    if not options.unlabeled:
        return dataset
    further = _opened(name, root, options, unlabeled=True)
    unlabeled = unlabeled_manifest(further, options.unlabeled, domain)
    return _followed_by(dataset, unlabeled, further._input_array, options)


def _labeled(
    source: Any, manifest: pd.DataFrame, texts: list[str], options: TextOptions, **fields: Any
) -> Dataset:
    """The texts that are in a split. Amazon's table also holds the unlabeled ones, which are in none."""
    row_M = np.flatnonzero(manifest["split"].notna())
    manifest = manifest.iloc[row_M].reset_index(drop=True)
    return text_dataset(
        f"wilds:{source.dataset_name}",
        manifest.assign(domain=manifest["domain"].cat.remove_unused_categories()),
        [texts[row] for row in row_M],
        options,
        official=official_eval(source, lambda logits_NC: logits_NC.argmax(-1), row_M),
        **fields,
    )


def _followed_by(dataset: Dataset, manifest: pd.DataFrame, texts: list[str], options: TextOptions) -> Dataset:
    """The dataset with unlabeled texts behind its own, all read by one reader."""
    own = dataset.reader.text_M.tolist()  # type: ignore[attr-defined]
    further = [texts[row] for row in manifest["row"]]
    unlabeled = text_dataset(f"the unlabeled {dataset.name}", manifest, further, options, task=dataset.task)
    joined = with_unlabeled(dataset, unlabeled.manifest, unlabeled.reader)
    return dataclasses.replace(joined, reader=text_reader(own + further, options, dataset.name))


def _opened(name: str, root: Path | None, options: WildsOptions, **kwargs: Any) -> Any:
    try:
        return open_wilds(name, root, options.split_scheme, **kwargs)
    except UsageError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        found = filter(None, map(not_utf8, sorted(data_root(root).glob(f"{name}*_v*/*.csv"))))
        raise UsageError(f"wilds:{name} cannot be read: {next(found)}; save the file as UTF-8") from error


def _by_black(manifest: pd.DataFrame) -> pd.DataFrame:
    """Domains by whether a comment mentions black people: of the identities, the one that WILDS trains by."""
    named = {"0": "not black", "1": "black", "2": "unknown"}
    return manifest.assign(domain=manifest["domain"].cat.rename_categories(named))


def _check_comments(source: Any) -> None:
    """A comment without a label would count as not toxic, and one of another split be left out."""
    table = source._metadata_df
    for column, known in (
        ("toxicity", table["toxicity"].notna()),
        ("split", table["split"].isin(list(source.split_dict.values()))),
    ):
        if len(unknown := np.flatnonzero(~known)):
            row = int(unknown[0])
            raise UsageError(
                f"row {row} of wilds:civilcomments has the {column} '{table[column].iloc[row]}' "
                f"({len(unknown)} such rows); mend it or take the row out"
            )


civilcomments = DatasetSpec(_load_civilcomments, CommentOptions, layout=COMMENTS, doc=__doc__)
"""Toxic or not of comments on news that mention one of eight identities or none."""

amazon = DatasetSpec(
    partial(_load_reviews, "amazon", AMAZON_DEFAULTS, 3), AmazonOptions, layout=AMAZON, doc=__doc__
)
"""One to five stars of product reviews, by reviewers whom training has not seen."""

yelp = DatasetSpec(partial(_load_reviews, "yelp", YELP_DEFAULTS, 0), YelpOptions, layout=YELP, doc=__doc__)
"""One to five stars of reviews of places, of years after those of training."""
