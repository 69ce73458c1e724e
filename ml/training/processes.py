"""The processes of one training run, as `torchrun` starts them: who leads, and what they tell each other.

    torchrun --nproc-per-node 2 -m ml.translation.train --version … --out RUN --set accumulate=2

Without `torchrun` there is one process, and nothing here does anything.
"""

import os
from collections.abc import Sequence

import torch
from torch import distributed

from storage.errors import Problem


def join(device: torch.device) -> None:
    """Meet the other processes, if there are any: over NCCL on CUDA devices, over gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_rank() -> int:
    """This process's number on its machine, which is the number of its CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of the processes' values."""
    if distributed.is_initialized():
        values = values.clone()
        distributed.all_reduce(values)
        values /= count()
    return values


def leaders(values: Sequence[float], device: torch.device) -> list[float]:
    """What the leading process has: where clocks and roundings differ, all go by its."""
    if not distributed.is_initialized():
        return list(values)
    told = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.broadcast(told, src=0)
    return [float(value) for value in told.tolist()]


def share(batches: int) -> range:
    """Which of a step's batches are this process's. Raises Problem when they cannot be dealt out evenly."""
    if batches % count():
        raise Problem(
            f"{count()} processes cannot share the {batches} batches of a step evenly",
            f"Give a multiple, e.g. --set accumulate={count()}: a step has as many batches for any number of processes",
        )
    return range(rank(), batches, count())
