"""Images per second that reach the model, augmented at 224: this package against PyTorch's DataLoader.

This package fetches rows from the uint8 cache and augments the batch. The DataLoader decodes the files of
torchvision's ImageFolder and applies DomainBed's transforms image by image, in this process or in workers
that stay alive between epochs, as DomainBed keeps them. Both give standardised float32 batches of the same
size, in shuffled epochs over the same photographs, in one run: a round of one after a round of the next, so
that a disturbance hits them alike, and the ratio is of medians over the rounds.

The photographs lie as ROOT/<domain>/<class>/<image>, by default DGHARNESS_DATA/PACS; without it, random ones
of the same shape stand in, whose decoding costs more than that of photographs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, quartiles, table
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dgharness.data.dataset import Dataset
from dgharness.data.folder import folder
from dgharness.data.images import MEAN, STD, ImageOptions
from dgharness.data.source import make_batch
from dgharness.seeds import generator

SIZE = 224
OURS = "uint8 cache"
Fetch = Callable[[int], int]  # images wanted -> images given


@contextmanager
def photographs(given: str) -> Iterator[tuple[Path, str]]:
    """Where the images lie, and what to call them."""
    data = os.environ.get("DGHARNESS_DATA")
    if given or data:
        root = Path(given) if given else Path(data or "", "PACS")
        yield root, root.name
        return
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0)
        for number in range(64):
            path = Path(folder, "ab"[number % 2], "cd"[number // 2 % 2], f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (227, 227, 3), dtype=np.uint8)).save(path)
        yield Path(folder), "random images of PACS' size"


def from_the_cache(dataset: Dataset, batch_size: int) -> Fetch:
    """Batches as the training loop makes them."""
    nothing_M = torch.zeros(len(dataset.manifest), dtype=torch.long)
    began = 0

    def fetch(images: int) -> int:
        nonlocal began
        stream = generator(0, "order", began)
        epochs = -(-images // len(nothing_M))
        rows = torch.cat([torch.randperm(len(nothing_M), generator=stream) for _ in range(epochs)])[:images]
        for index_N in rows.split(batch_size):
            began += 1
            augmentation = generator(0, "augmentation", began)
            device = torch.device("cpu")
            batch = make_batch(
                dataset, dataset.reader, index_N[None], nothing_M, nothing_M, began, device, augmentation
            )
            assert batch.x.shape == (len(index_N), 3, SIZE, SIZE)
        return len(rows)

    return fetch


def from_a_loader(root: Path, batch_size: int, workers: int, images: int) -> Fetch:
    """Batches as DomainBed makes them, over all its domains at once."""
    domainbed = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    domains = [ImageFolder(path, domainbed) for path in sorted(root.iterdir()) if path.is_dir()]
    files: Any = ConcatDataset(domains)
    loader: Any = DataLoader(
        files,
        batch_size,
        sampler=RandomSampler(files, num_samples=images),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda images: sum(len(x) for x, _ in loader)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="", help="the folder with <domain>/<class>/<image>")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=672, help="of each pipeline in a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with photographs(args.root) as (root, data), tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        dataset = folder.load(str(root), None, 0, ImageOptions(size=SIZE, cache_dir=Path(cache)))
        built = time.perf_counter() - began
        pipelines = {OURS: from_the_cache(dataset, args.batch_size)} | {
            f"DataLoader, {workers} workers": from_a_loader(root, args.batch_size, workers, args.images)
            for workers in args.workers
        }
        speeds: dict[str, list[float]] = {name: [] for name in pipelines}
        for turn in range(-1, args.rounds):  # the first is not counted: workers start, pages are read
            for name, fetch in pipelines.items():
                began = time.perf_counter()
                given = fetch(args.images)
                if turn >= 0:
                    speeds[name].append(given / (time.perf_counter() - began))
        medians = {name: quartiles(values) for name, values in speeds.items()}
        rows = [
            [
                name,
                f"{median:.0f}",
                f"{lower:.0f} to {upper:.0f}",
                "" if name == OURS else f"{medians[OURS][1] / median:.1f}",
            ]
            for name, (lower, median, upper) in medians.items()
        ]
        about = f"{args.rounds} rounds of {args.images} images each, batches of {args.batch_size}"
        print(f"{data}, {len(dataset.manifest)} images; {about}; {machine()}\n")
        print(table(["pipeline", "images/s", "quartiles", "cache / it"], rows))
        print(f"\nthe cache was built in {built:.1f} s, once")


if __name__ == "__main__":
    main()
