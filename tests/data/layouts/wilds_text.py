"""The text datasets of WILDS, each with a few dozen texts of a few words."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from layouts import Layout

WORDS = ("good", "bad", "it", "was", "never", "again", "a", "lovely", "place", "and", "broken")
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
AUXILIARY = (
    "identity_any",
    "severe_toxicity",
    "obscene",
    "threat",
    "insult",
    "identity_attack",
    "sexual_explicit",
)
SCRATCH = (
    "data.tokenizer=hashing",
    "data.max_tokens=12",
    "model.weights=scratch",
    "model.layers=1",
    "model.heads=2",
    "model.width=16",
    "train.batch_size=4",
)
LEFT_OUT, UNLABELED = -1, {"val": 11, "test": 12, "extra": 13}


def sentences(count: int, stream: np.random.Generator) -> list[str]:
    """Texts of 1 to 20 words, with commas, quotes, line ends and letters beyond ASCII."""
    texts = [" ".join(stream.choice(WORDS, stream.integers(1, 21))) for _ in range(count)]
    texts[0] = 'Ça va, "mon ami"?\nNon. 好'
    return texts


def write_civilcomments(root: Path) -> None:
    """72 comments, every group in every split; 9 without labels."""
    stream = np.random.default_rng(0)
    rows = 72
    scores = stream.random((rows, len(IDENTITIES) + len(AUXILIARY)))
    scores[:, IDENTITIES.index("black")] = np.arange(rows) // 2 % 2
    table = pd.DataFrame(scores, columns=[*IDENTITIES, *AUXILIARY])
    table.insert(0, "comment_text", sentences(rows, stream))
    table.insert(1, "split", np.repeat(["train", "val", "test"], 24))
    table.insert(2, "toxicity", np.arange(rows) % 2 * 0.7)
    write_table(table, root / "civilcomments_v1.0" / "all_data_with_identities.csv", index=True)
    unlabeled = pd.DataFrame({"comment_text": sentences(9, stream), "toxicity": stream.random(9)})
    write_table(
        unlabeled, root / "civilcomments_unlabeled_v1.0" / "unlabeled_data_with_identities.csv", index=True
    )
    for folder in ("civilcomments_v1.0", "civilcomments_unlabeled_v1.0"):
        (root / folder / "RELEASE_v1.0.txt").write_text("")


def write_amazon(root: Path) -> None:
    """10 reviews of each of 10 reviewers, two of them unlabeled; some are left out."""
    stream = np.random.default_rng(1)
    user = np.repeat(np.arange(10), 10)
    rows = len(user)
    table = pd.DataFrame(
        {
            "reviewerID": [f"A{number:03}" for number in user],
            "asin": [f"B{number % 7:03}" for number in range(rows)],
            "overall": stream.integers(1, 6, rows).astype(float),
            "reviewTime": "01 1, 2014",
            "unixReviewTime": 1388534400,
            "reviewText": sentences(rows, stream),
            "summary": "so so",
            "verified": True,
            "category": np.array(["Books", "Music", "Toys_and_Games"])[np.arange(rows) % 3],
            "reviewYear": 2005 + np.arange(rows) % 9,
        }
    )
    folder = root / "amazon_v2.1"
    write_table(table, folder / "reviews.csv", quoting=csv.QUOTE_NONNUMERIC)
    (folder / "RELEASE_v2.1.txt").write_text("")
    place = np.arange(rows) % 10
    seen = np.select([place < 6, place < 8], [0, 2], 4)  # of a training reviewer: train, id_val, id_test
    split = np.select([user < 4, user < 6, user < 8], [seen, 1, 3], UNLABELED["test"])
    split[user == 9] = UNLABELED["extra"]
    split[place == 9] = np.where(user[place == 9] < 8, LEFT_OUT, split[place == 9])
    labeled = np.where(split > 4, LEFT_OUT, split)
    year = table["reviewYear"].to_numpy()
    write_splits(folder, "user", np.where(split > 4, split, labeled))
    write_splits(folder, "time", np.select([year < 2009, year < 2011], [seen, 1], 3))
    write_splits(folder, "category_subpopulation", np.arange(rows) // 3 % 3)


def write_yelp(root: Path) -> None:
    """8 reviews of each of 9 years."""
    stream = np.random.default_rng(2)
    year = np.repeat(np.arange(2006, 2015), 8)
    rows = len(year)
    table = pd.DataFrame(
        {
            "review_id": [f"r{number}" for number in range(rows)],
            "user_id": [f"u{number % 12}" for number in range(rows)],
            "business_id": [f"b{number % 5}" for number in range(rows)],
            "stars": stream.integers(1, 6, rows),
            "useful": 0,
            "funny": 0,
            "cool": 0,
            "text": sentences(rows, stream),
            "date": [f"{number}-05-01 10:00:00" for number in year],
            "year": year,
            "city": np.array(["Phoenix", "Las Vegas"])[np.arange(rows) % 2],
            "state": np.array(["AZ", "NV"])[np.arange(rows) % 2],
            "categories": "Food, Bars",
        }
    )
    folder = root / "yelp_v1.0"
    write_table(table, folder / "reviews.csv", quoting=csv.QUOTE_NONNUMERIC)
    seen = np.select([np.arange(rows) % 8 < 5, np.arange(rows) % 8 < 6], [0, 2], 4)
    write_splits(folder, "time", np.select([year < 2011, year < 2012], [seen, 1], 3))
    user = np.arange(rows) % 12
    write_splits(folder, "user", np.select([user < 6, user < 9], [seen, 1], 3))


def write_table(
    table: pd.DataFrame, file: Path, index: bool = False, quoting: int = csv.QUOTE_MINIMAL
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=index, quoting=quoting)


def write_splits(folder: Path, scheme: str, split: np.ndarray) -> None:
    """The split of every review, in the order of the table."""
    write_table(pd.DataFrame({"split": split}), folder / "splits" / f"{scheme}.csv")


PROOF = "test_wilds_text.py::test_the_official_scores_are_those_of_wilds_and_of_a_plain_recomputation"
LAYOUTS = {
    "wilds:civilcomments": Layout(write_civilcomments, SCRATCH, needs=("transformers",), proof=PROOF),
    "wilds:amazon": Layout(write_amazon, SCRATCH, needs=("transformers",), proof=PROOF),
    "wilds:yelp": Layout(write_yelp, SCRATCH, needs=("transformers",), proof=PROOF),
}
