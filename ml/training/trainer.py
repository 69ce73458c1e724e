"""The one training loop of all models.

    prepare(config)                    # seeds and threads, before the model is built
    fit(task, config, run, resume)     # leaves the best weights in task.model and in run/weights.safetensors

A run killed at any moment and resumed on CPU, with as many threads, ends with the same bits as one that was never
interrupted, so long as it is limited by steps: everything that the next step depends on is in `checkpoint.pt`. A run
limited by `minutes` depends on the machine's speed and cannot be repeated.
"""

import json
import math
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from tqdm import tqdm

from ml.training.config import TrainConfig
from ml.training.files import write
from storage.errors import Problem

Batch = Any  # whatever the task makes of it: a tensor, or a tuple, list or dict of tensors
Moved = TypeVar("Moved")


@dataclass
class _State:
    """What the loop has to know to go on, beside the model, the optimizer and the random states."""

    best_weights: dict[str, Tensor]
    step: int = 0
    epoch: int = 0
    index: int = 0  # batches of this epoch taken
    units: int = 0  # examples or tokens seen, as the task counts them
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # looks at the valid split since the best one


class _NotANumberError(Exception):
    """A loss or a gradient is infinite or NaN."""


class _Events:
    """`events.jsonl`, one JSON object a line. Lines later than the checkpoint are dropped: their steps come again."""

    def __init__(self, path: Path, keep_until: int) -> None:
        kept: list[str] = []
        if keep_until and path.exists():
            for line in path.read_text().splitlines():
                try:  # a killed process can leave half a line
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event["step"] <= keep_until and event["event"] != "end":
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self._path, self._losses = path, list[float]()

    def step(self, config: TrainConfig, state: _State, loss: float, lr: float, norm: float) -> None:
        """Note a step; a line is written every `log_every` steps, with the mean loss and the units so far."""
        self._losses.append(loss)
        if state.step % config.log_every == 0 or _finished(config, state):
            self.write(
                event="train", step=state.step, epoch=state.epoch, loss=sum(self._losses) / len(self._losses), lr=lr,
                norm=norm, units=state.units, seconds=round(state.seconds, 3),
            )  # fmt: skip
            self._losses.clear()

    def write(self, **event: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")


class _Progress:
    """A bar on a terminal; elsewhere (a task's log) a plain line every few seconds. Both on stderr."""

    def __init__(self, steps: int, done: int, every: float = 5.0) -> None:
        self._steps, self._every, self._told = steps, every, time.monotonic()
        self._bar: Any = tqdm(total=steps, initial=done, unit="step") if sys.stderr.isatty() else None

    def step(self, step: int, loss: float, best: float, rate: float) -> None:
        text = f"loss {loss:.3f}" + (f", best valid {best:.3f}" if math.isfinite(best) else "")
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
        elif time.monotonic() - self._told >= self._every or step == self._steps:
            self._told = time.monotonic()
            print(f"step {step}/{self._steps}, {text}, learning rate {rate:.2g}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Task(Protocol):
    """What a family gives the trainer.

    A task may also have `size(batch) -> int`: the examples or tokens in a batch, for the throughput on record.
    """

    model: nn.Module

    def train_batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        """The batches of one epoch (0, 1, …) in an order that depends on `epoch` and `seed` alone."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The batch's loss to go down on, a scalar. The batch is already on the model's device."""
        ...

    def valid_loss(self) -> float:
        """The loss on the valid split, less is better. Called in eval mode without gradients; moves its own batches."""
        ...


def prepare(config: TrainConfig) -> torch.device:
    """Set threads and the seeds of everything that draws numbers; returns the device. Call before building a model."""
    torch.set_num_threads(config.threads)
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Problem("This machine has no CUDA device that torch can use", "Train with --set device=cpu")
    device = torch.device(name)
    # On CUDA some kernels have no deterministic form; there a seed makes runs alike, not equal.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, hides nothing
    return device


def move(batch: Moved, device: torch.device) -> Moved:
    """The batch with every tensor in it on `device`."""
    moved: Any = batch
    if isinstance(batch, Tensor):
        moved = batch.to(device, non_blocking=True)
    elif isinstance(batch, tuple):
        parts = [move(part, device) for part in batch]
        moved = type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    elif isinstance(batch, list):
        moved = [move(part, device) for part in batch]
    elif isinstance(batch, dict):
        moved = {key: move(part, device) for key, part in batch.items()}
    return moved  # type: ignore[no-any-return]


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine down to the final share; `progress` is the share of the run gone, 0 to 1."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * share)


def optimizer_for(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases, norms and other vectors are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-9)


def fit(task: Task, config: TrainConfig, run: Path, resume: bool = False) -> None:
    """Train `task.model` and leave the weights that were best on the valid split in it and in `weights.safetensors`.

    With `resume`, goes on from the folder's checkpoint if it has one. Raises Problem when the loss is no longer a
    number or memory ends; the last checkpoint is then kept.
    """
    run.mkdir(parents=True, exist_ok=True)
    device = prepare(config)
    model = task.model.to(device)
    optimizer = optimizer_for(model, config)
    checkpoint = run / "checkpoint.pt"
    if resume and checkpoint.exists():
        state = _restore(checkpoint, model, optimizer)
    else:
        checkpoint.unlink(missing_ok=True)
        state = _State(best_weights=_copy(model))
    events = _Events(run / "events.jsonl", keep_until=state.step)
    batches = _stream(task, config.seed, state.epoch, state.index)
    started = time.monotonic() - state.seconds
    shown = _Progress(config.steps, state.step)
    model.train()
    try:
        while not _finished(config, state):
            rate = learning_rate(config, state.step, _progress(config, state.step, time.monotonic() - started))
            loss, norm = _step(task, batches, optimizer, state, config=config, rate=rate)
            state.seconds = time.monotonic() - started
            shown.step(state.step, loss, state.best, rate)
            events.step(config, state, loss=loss, lr=rate, norm=norm)
            if state.step % config.evaluate_every == 0 or _finished(config, state):
                _evaluate(task, state, events)
                state.seconds = time.monotonic() - started
                _save(checkpoint, state, model, optimizer)
    except _NotANumberError as error:
        events.write(event="failed", step=state.step + 1, reason=str(error))
        raise Problem(
            f"Training stopped at step {state.step + 1}: {error}",
            f"Start again with --set learning_rate={config.learning_rate / 3:.1g}; the last checkpoint is kept",
        ) from None
    except (torch.OutOfMemoryError, MemoryError) as error:
        events.write(event="failed", step=state.step + 1, reason="out of memory")
        raise Problem(
            f"Training ran out of memory at step {state.step + 1}",
            f"Use --set batch={max(1, config.batch // 2)} accumulate={config.accumulate * 2}, "
            "which is the same step in half the memory",
        ) from error
    finally:
        shown.close()
    model.load_state_dict(state.best_weights)
    model.eval()
    write(run / "weights.safetensors", lambda path: save_model(model, str(path)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024 * 1024)
    events.write(
        event="end", step=state.step, best_step=state.best_step, best=state.best, seconds=round(state.seconds, 3),
        peak_mb=round(peak), device=device.type, threads=config.threads,
    )  # fmt: skip


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model with a folder's `weights.safetensors` and put it in eval mode."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise Problem(f"{folder} holds no weights.safetensors", "Name the folder of a finished run")
    try:
        load_model(model, str(path))
    except Exception as error:  # safetensors and torch raise several kinds: a broken file, another model's names
        raise Problem(f"{path} does not fit the model that model.json describes", "Train it again") from error
    model.eval()


def _stream(task: Task, seed: int, epoch: int, index: int) -> Iterator[tuple[int, int, Batch]]:
    """Batches without end from a position on: (epoch, number of batches of this epoch taken, batch)."""
    while True:
        taken = 0
        for batch in task.train_batches(epoch, seed):
            taken += 1
            if taken > index:
                yield epoch, taken, batch
        if taken == 0:
            raise Problem("The training split gives no batch", "Freeze a version whose train split has rows")
        epoch, index = epoch + 1, 0


def _progress(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the run gone after the warm-up; a run that time will end comes down with the time."""
    of_steps = (step - config.warmup) / max(1, config.steps - config.warmup)
    return max(of_steps, seconds / (60 * config.minutes)) if config.minutes else of_steps


def _finished(config: TrainConfig, state: _State) -> bool:
    out_of_time = bool(config.minutes) and state.seconds >= 60 * config.minutes
    out_of_patience = bool(config.patience) and state.worse >= config.patience
    return state.step >= config.steps or out_of_time or out_of_patience


def _step(
    task: Task, batches: Iterator[tuple[int, int, Batch]], optimizer: torch.optim.Optimizer, state: _State,
    *, config: TrainConfig, rate: float,
) -> tuple[float, float]:  # fmt: skip
    """One optimizer step over `accumulate` batches; returns the mean loss and the gradient's norm before clipping."""
    device = next(task.model.parameters()).device
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for _ in range(config.accumulate):
        state.epoch, state.index, batch = next(batches)
        with _autocast(device):
            loss = task.loss(move(batch, device)) / config.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        state.units += task.size(batch) if hasattr(task, "size") else 0
    norm = nn.utils.clip_grad_norm_(task.model.parameters(), config.clip or math.inf).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise _NotANumberError(f"the loss is {total:g} and its gradient's norm {norm:g}")
    optimizer.step()
    state.step += 1
    return total, norm


def _evaluate(task: Task, state: _State, events: _Events) -> None:
    """Look at the valid split and keep the weights if they are the best so far."""
    task.model.eval()
    with torch.no_grad(), _autocast(next(task.model.parameters()).device):
        valid = float(task.valid_loss())
    task.model.train()
    if not math.isfinite(valid):
        raise _NotANumberError(f"the loss on the valid split is {valid:g}")
    improved = valid < state.best
    if improved:
        state.best, state.best_step, state.worse, state.best_weights = valid, state.step, 0, _copy(task.model)
    else:
        state.worse += 1
    events.write(
        event="valid", step=state.step, epoch=state.epoch, valid_loss=valid, best=improved,
        seconds=round(state.seconds, 3),
    )  # fmt: skip


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA; on CPU nothing: there it is not faster everywhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _save(path: Path, state: _State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    kind, keys, *rest = np.random.get_state(legacy=True)
    checkpoint = {
        "state": vars(state), "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, torch.tensor(np.asarray(keys, dtype=np.int64)), *rest), "python": random.getstate(),
    }  # fmt: skip
    write(path, lambda temporary: torch.save(checkpoint, temporary))


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    """Put everything back as it was when the checkpoint was written."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    except Exception as error:  # torch raises many kinds: a truncated file, another model's names, other shapes
        raise Problem(
            f"The checkpoint {path} is damaged or belongs to another model", "Leave out --resume to start again"
        ) from error
    torch.set_rng_state(saved["torch"])
    if torch.cuda.is_available() and saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(saved["python"])
    return _State(**saved["state"])
