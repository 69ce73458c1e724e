"""Batches from a position on, made in this process or in worker processes, always in the same order.

A task plans an epoch (which rows are a batch together) and makes a batch of each item of the plan. The plan depends on
seed and epoch alone, so a position is (epoch, batches of it taken), and going on from one reads nothing twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ml.training import processes
from storage.errors import Problem

Batch = Any  # whatever the task makes of it: a tensor, or a tuple, list or dict of tensors


class Planner(Protocol):
    def plan(self, epoch: int, seed: int) -> Sequence[Any]:
        """What each batch of an epoch (0, 1, …) is made of, in an order that depends on `epoch` and `seed` alone."""
        ...

    def batch(self, item: Any) -> Batch:
        """The batch of an item of the plan. It depends on the item alone."""
        ...


class Loaded(NamedTuple):
    """A batch, the seed of what is drawn on it, and the position after the step that it belongs to."""

    batch: Batch
    seed: int
    epoch: int
    taken: int


class Loader:
    """This process's batches without end, from a position on. A context: leaving it ends the workers."""

    def __init__(
        self, task: Planner, *, seed: int, epoch: int, index: int, each: int, workers: int, pinned: bool
    ) -> None:
        """`each` is how many batches a step has, for all processes together."""
        places, making = _places(task, seed, epoch, index, each), _Making(task)
        self._loading: Any = None
        if workers:
            loader = DataLoader(
                making, sampler=_Endless(places), batch_size=None, num_workers=workers, pin_memory=pinned,
                generator=torch.Generator(), collate_fn=_as_it_is, prefetch_factor=4,
            )  # fmt: skip
            self._loading = iter(loader)
        self._batches: Iterator[Loaded | Problem] = (
            (making[place] for place in places) if self._loading is None else self._loading
        )

    def __enter__(self) -> "Loader":
        return self

    def __next__(self) -> Loaded:
        loaded = next(self._batches)
        if isinstance(loaded, Problem):
            raise loaded
        return loaded

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if self._loading is None:
            return
        # Torch notices the end of a worker whenever a signal says so, in the middle of whatever is being done, this
        # here among it. One that ends while it hands over a batch cuts the line to it.
        try:
            # Else the workers would live on for as long as somebody holds the error.
            self._loading._shutdown_workers()
        except RuntimeError as late:
            if "DataLoader worker" not in str(late):
                raise
            if isinstance(error, ConnectionError | EOFError):
                error = late  # tells why the line was cut; any other error is a reason of its own
        ended = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if ended or isinstance(error, ConnectionError | EOFError):
            raise Problem(
                f"A process that makes batches ended ({str(error).splitlines()[0] if str(error) else kind})",
                "If the machine ran out of memory, train with --set workers=0; --resume goes on from the checkpoint",
            ) from error


@dataclass(frozen=True)
class _Place:
    item: Any
    seed: int
    epoch: int
    taken: int


class _Making(Dataset[Any]):
    """A place of the plan becomes a batch, in whichever process asks."""

    def __init__(self, task: Planner) -> None:
        self._task = task

    def __getitem__(self, place: _Place) -> Loaded | Problem:
        try:
            return Loaded(self._task.batch(place.item), place.seed, place.epoch, place.taken)
        except Problem as problem:  # a worker's exceptions come through as other ones: this goes as a value
            return problem


class _Endless(torch.utils.data.Sampler[_Place]):
    def __init__(self, places: Iterator[_Place]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[_Place]:
        return self._places


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _places(task: Planner, seed: int, epoch: int, index: int, each: int) -> Iterator[_Place]:
    mine = processes.share(each)
    all_places = _all(task, seed, epoch, index)
    while True:
        step = [next(all_places) for _ in range(each)]
        for number in mine:
            yield _Place(step[number].item, step[number].seed, step[-1].epoch, step[-1].taken)


def _all(task: Planner, seed: int, epoch: int, index: int) -> Iterator[_Place]:
    while True:
        items = task.plan(epoch, seed)
        if len(items) == 0:
            raise Problem("The training split gives no batch", "Freeze a version whose train split has rows")
        for taken in range(index, len(items)):
            drawn = int(np.random.SeedSequence([seed, epoch, taken]).generate_state(1, np.uint64)[0])
            yield _Place(items[taken], drawn, epoch, taken + 1)
        epoch, index = epoch + 1, 0
