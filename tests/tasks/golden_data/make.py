"""Golden data: what the library datasets writes, for tests that run without it.

python tests/tasks/golden_data/make.py     # writes its folders and files beside itself; needs datasets 5
"""

import shutil
import sys
from pathlib import Path
from typing import Any

REVIEWS = {
    "train": [(" a fine film ", 1), ("so dull", 0), ("a fine film", 1)],
    "test": [("no end of it", 0), ("who knows", -1)],
}
CAPITALS = [("France", "Paris"), ("Atlantis", "none"), ("Été", "Hiver"), ("Peru", "Lima"), ("Nepal", "Kathmandu")]
EXAM = [("1 + 1", ["1", "2"], 1), ("2 + 2", ["4", "3"], 0)]


def reviews(datasets: Any) -> Any:
    """Two splits, a class label, and one record without a label."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    tables = {
        name: dict(zip(("text", "label"), zip(*rows, strict=True), strict=True)) for name, rows in REVIEWS.items()
    }
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({k: list(v) for k, v in table.items()}, features=features)
            for name, table in tables.items()
        }
    )


def capitals(datasets: Any) -> Any:
    """Rows that were chosen from others."""
    table = {"country": [x for x, _ in CAPITALS], "city": [y for _, y in CAPITALS]}
    return datasets.Dataset.from_dict(table).filter(lambda row: row["city"] != "none")


def exam(datasets: Any) -> Any:
    """Questions with options, in the two forms that data sets have, and the number or the letter of the right one."""
    table = {
        "question": [row[0] for row in EXAM],
        "choices": [row[1] for row in EXAM],
        "answer": [row[2] for row in EXAM],
        "labelled": [{"label": ["A", "B"], "text": row[1]} for row in EXAM],
        "answerKey": ["AB"[row[2]] for row in EXAM],
    }
    return datasets.Dataset.from_dict(table).cast_column("answer", datasets.ClassLabel(names=["A", "B"]))


def write(folder: Path) -> None:
    """Write all of them into `folder`."""
    import datasets

    datasets.disable_progress_bars()
    reviews(datasets).save_to_disk(folder / "reviews")
    capitals(datasets).save_to_disk(folder / "capitals", num_shards=2)
    exam(datasets).save_to_disk(folder / "exam")
    (folder / "tables").mkdir(exist_ok=True)
    reviews(datasets)["test"].to_parquet(folder / "tables" / "reviews.parquet")


if __name__ == "__main__":
    here = Path(__file__).parent
    for name in ("reviews", "capitals", "exam", "tables"):
        shutil.rmtree(here / name, ignore_errors=True)
    write(here)
    sys.exit(0)
