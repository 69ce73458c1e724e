"""The one training loop of all models.

    prepare(config)                    # seeds and threads, before the model is built
    fit(task, config, run, resume)     # leaves the best weights in task.model and in run/weights.safetensors

A run killed at any moment and resumed on CPU, with as many threads, ends with the same bits as one that was never
interrupted, so long as it is limited by steps. The position in the data, the optimizer and the weights are in
`checkpoint.pt`; what is drawn on a batch (dropout, noise) comes from a seed of the batch's own, made of the run's seed
and the batch's place. So it also does not matter how many processes a step is dealt out to, or who makes the batches.
A run limited by `minutes` depends on the machine's speed and cannot be repeated.
"""

import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ml.training import processes
from ml.training.config import TrainConfig, check
from ml.training.files import write
from ml.training.loading import Batch, Loader, Planner
from storage.errors import Problem

Moved = TypeVar("Moved")


@dataclass
class _State:
    """What the loop has to know to go on, beside the model and the optimizer."""

    best_weights: dict[str, Tensor]
    average: dict[str, Tensor]  # of the weights, where the settings ask for one
    step: int = 0
    epoch: int = 0
    index: int = 0  # batches of this epoch taken
    units: int = 0  # examples or tokens seen, as the task counts them
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0  # looks at the valid split since the best one


class _NotANumberError(Exception):
    """A loss or a gradient is infinite or NaN, at this step."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step


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
                if event["step"] <= keep_until and event["event"] not in ("end", "failed"):
                    kept.append(line + "\n")
        path.write_text("".join(kept))
        self._path = path

    def write(self, **event: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")


@dataclass
class _Window:
    """The steps since the last line of events: losses and norms, still on the device, and where the time went."""

    first: int
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    units: int = 0
    waited: float = 0.0  # seconds, for batches
    began: float = field(default_factory=time.monotonic)
    busy: float = field(default_factory=time.process_time)

    def means(self) -> tuple[float, float, int]:
        """Loss, norm and units of all processes. Raises _NotANumberError for the first step that went wrong."""
        losses = processes.mean(torch.stack(self.losses).double())
        norms = torch.stack(self.norms).double()
        units = processes.count() * processes.mean(torch.tensor([float(self.units)], device=losses.device).double())
        wrong = (~(losses.isfinite() & norms.isfinite())).nonzero().flatten().tolist()
        if wrong:
            loss, norm = losses[wrong[0]].item(), norms[wrong[0]].item()
            raise _NotANumberError(f"the loss is {loss:g} and its gradient's norm {norm:g}", self.first + wrong[0])
        return losses.mean().item(), norms[-1].item(), round(units.item())

    def wall(self) -> float:
        """Seconds so far."""
        return max(1e-9, time.monotonic() - self.began)

    def spent(self, device: torch.device, threads: int) -> dict[str, float]:
        """Shares of the wall clock: waiting for batches, the CPU threads at work, the CUDA device at work."""
        wall = self.wall()
        shares = {"waiting": self.waited / wall, "cpu": (time.process_time() - self.busy) / wall / threads}
        if device.type == "cuda":
            with suppress(ModuleNotFoundError, RuntimeError):  # the driver tells where nvidia-ml-py is installed
                shares["gpu"] = torch.cuda.utilization(device) / 100  # of the last second or so
        return {name: round(share, 3) for name, share in shares.items()}


class _Progress:
    """A bar on a terminal; elsewhere (a task's log) a plain line every few seconds. Both on stderr."""

    def __init__(self, steps: int, done: int, silent: bool, every: float = 5.0) -> None:
        self._steps, self._silent, self._every, self._told = steps, silent, every, time.monotonic()
        bar = sys.stderr.isatty() and not silent
        self._bar: Any = tqdm(total=steps, initial=done, unit="step") if bar else None

    def step(self, step: int, loss: float, best: float, rate: float) -> None:
        text = f"loss {loss:.3f}" + (f", best valid {best:.3f}" if math.isfinite(best) else "")
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif not self._silent and (time.monotonic() - self._told >= self._every or step == self._steps):
            self._told = time.monotonic()
            print(f"step {step}/{self._steps}, {text}, learning rate {rate:.2g}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Task(Planner, Protocol):
    """What a family gives the trainer, beside a plan of its batches.

    A task may also have `size(batch) -> int`: the examples or tokens in a batch, for the throughput on record.
    """

    model: nn.Module

    def loss(self, batch: Batch) -> Tensor:
        """The batch's loss to go down on, a scalar. The batch is already on the model's device."""
        ...

    def valid_loss(self) -> float:
        """The loss on the valid split, less is better. Called in eval mode without gradients; moves its own batches."""
        ...


def prepare(config: TrainConfig) -> torch.device:
    """Set threads and the seeds of everything that draws numbers; returns the device. Call before building a model."""
    check(config)
    torch.set_num_threads(config.threads)
    _seed(config.seed)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Problem("This machine has no CUDA device that torch can use", "Train with --set device=cpu")
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or processes.local_rank())
        torch.cuda.set_device(device)
    processes.join(device)
    # On CUDA some kernels have no deterministic form; there a seed makes runs alike, not equal.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, hides nothing
    return device


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-9, fused=True
    )


class _Step(nn.Module):
    """The loss of a batch as a module: what torch.compile compiles, and what DistributedDataParallel wraps."""

    def __init__(self, task: Task, device: torch.device, precision: str) -> None:
        super().__init__()
        self.model = task.model
        self._task, self._device = task, device
        good_at_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.precision = "bf16" if precision == "bf16" or (precision == "auto" and good_at_it) else "fp32"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def forward(self, batch: Batch) -> Tensor:
        with self.autocast():
            return self._task.loss(batch)


@dataclass
class _Run:
    """What the loop works with; `checkpoint` is None in a process that does not lead."""

    task: Task
    config: TrainConfig
    device: torch.device
    state: _State
    optimizer: torch.optim.Optimizer
    events: _Events
    shown: _Progress
    checkpoint: Path | None


def fit(task: Task, config: TrainConfig, run: Path, resume: bool = False) -> bool:
    """Train `task.model` and leave the weights that were best on the valid split in it and in `weights.safetensors`.

    With `resume`, goes on from the folder's checkpoint if it has one. Returns whether this process is the one that goes
    on to write the run folder: of several, the first. Raises Problem when the loss is no longer a number, memory ends
    or the data cannot be read; the last checkpoint is then kept, and the last event says what happened.
    """
    run.mkdir(parents=True, exist_ok=True)
    device = prepare(config)
    leads = processes.rank() == 0
    model = task.model.to(device)
    optimizer = optimizer_for(model, config)
    checkpoint = run / "checkpoint.pt"
    if resume and checkpoint.exists():
        state = _restore(checkpoint, model, optimizer)
    else:
        checkpoint.unlink(missing_ok=True)
        state = _State(_copy(model), _copy(model) if config.average else {})
    events = _Events(run / "events.jsonl" if leads else Path(os.devnull), keep_until=state.step)
    shown = _Progress(config.steps, state.step, silent=not leads)
    model.train()
    step = _Step(task, device, config.precision)
    try:
        _loop(_Run(task, config, device, state, optimizer, events, shown, checkpoint if leads else None), step)
    except _NotANumberError as error:
        events.write(event="failed", step=error.step, reason=str(error))
        raise Problem(
            f"Training stopped at step {error.step}: {error}",
            f"Start again with --set learning_rate={config.learning_rate / 3:.1g}; the last checkpoint is kept",
        ) from None
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):  # what torch says on CPU
            raise
        events.write(event="failed", step=state.step + 1, reason="out of memory")
        raise Problem(
            f"Training ran out of memory at step {state.step + 1}",
            f"Use --set batch={max(1, config.batch // 2)} accumulate={config.accumulate * 2}, "
            "which is the same step in half the memory",
        ) from error
    except Problem as problem:
        events.write(event="failed", step=state.step + 1, reason=str(problem))
        raise
    finally:
        shown.close()
    model.load_state_dict(state.best_weights)
    model.eval()
    if leads:
        write(run / "weights.safetensors", lambda path: save_file(state.best_weights, path))
    events.write(
        event="end", step=state.step, best_step=state.best_step, best=state.best, seconds=round(state.seconds, 3),
        units=state.units, peak_mb=_peak_mb(device), device=_name(device), threads=config.threads,
        processes=processes.count(), precision=step.precision,
    )  # fmt: skip
    processes.leave()
    return leads


def _loop(run: _Run, plain: _Step) -> None:
    config, state = run.config, run.state
    step: nn.Module = torch.compile(plain, dynamic=True) if config.compile else plain  # type: ignore[assignment]
    if processes.count() > 1:
        step = DistributedDataParallel(step)
    started = time.monotonic() - state.seconds
    window = _Window(state.step + 1)
    with Loader(
        run.task, seed=config.seed, epoch=state.epoch, index=state.index, each=config.accumulate,
        workers=config.workers, pinned=run.device.type == "cuda",
    ) as batches:  # fmt: skip
        while not _finished(config, state):
            rate = learning_rate(config, state.step, _progress(config, state.step, state.seconds))
            _take(run, step, batches, rate, window)
            looks = state.step % config.evaluate_every == 0 or state.step == config.steps
            if looks or state.step % config.log_every == 0:
                _note(run, window, rate, started)
                if looks or _finished(config, state):
                    _evaluate(run, plain)
                    (state.seconds,) = processes.leaders([time.monotonic() - started], run.device)
                    if run.checkpoint is not None:
                        _save(run.checkpoint, state, run.task.model, run.optimizer)
                window = _Window(state.step + 1)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model with a folder's `weights.safetensors` and put it in eval mode."""
    path = folder / "weights.safetensors"
    if not path.exists():
        raise Problem(f"{folder} holds no weights.safetensors", "Name the folder of a finished run")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise several kinds: a broken file, another model's names
        raise Problem(f"{path} does not fit the model that model.json describes", "Train it again") from error
    model.eval()


def _progress(config: TrainConfig, step: int, seconds: float) -> float:
    """The share of the run gone after the warm-up; a run that time will end comes down with the time."""
    of_steps = (step - config.warmup) / max(1, config.steps - config.warmup)
    return max(of_steps, seconds / (60 * config.minutes)) if config.minutes else of_steps


def _finished(config: TrainConfig, state: _State) -> bool:
    out_of_time = bool(config.minutes) and state.seconds >= 60 * config.minutes
    out_of_patience = bool(config.patience) and state.worse >= config.patience
    return state.step >= config.steps or out_of_time or out_of_patience


def _take(run: _Run, step: nn.Module, batches: Loader, rate: float, window: _Window) -> None:
    """One optimizer step over `accumulate` batches, which all processes share. Nothing here waits for the device."""
    config, state, model = run.config, run.state, run.task.model
    mine = len(processes.share(config.accumulate))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    losses = []
    for number in range(1, mine + 1):
        asked = time.monotonic()
        loaded = next(batches)
        window.waited += time.monotonic() - asked
        _seed(loaded.seed)
        later = step.no_sync() if number < mine and isinstance(step, DistributedDataParallel) else nullcontext()
        with later:  # gradients are exchanged once a step
            loss = step(move(loaded.batch, run.device)) / mine
            loss.backward()
        losses.append(loss.detach())
        window.units += run.task.size(loaded.batch) if hasattr(run.task, "size") else 0
        state.epoch, state.index = loaded.epoch, loaded.taken
    window.losses.append(torch.stack(losses).sum())
    window.norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
    run.optimizer.step()
    state.step += 1
    if config.average:
        _average(state.average, model, min(config.average, state.step / (state.step + 9)))


def _note(run: _Run, window: _Window, rate: float, started: float) -> None:
    """A line of events and one for the person who waits. Raises _NotANumberError."""
    state = run.state
    loss, norm, units = window.means()
    state.units += units
    (state.seconds,) = processes.leaders([time.monotonic() - started], run.device)
    run.events.write(
        event="train", step=state.step, epoch=state.epoch, loss=loss, lr=rate, norm=norm, units=state.units,
        seconds=round(state.seconds, 3), units_per_second=round(units / window.wall(), 1),
        memory_mb=_peak_mb(run.device), **window.spent(run.device, run.config.threads),
    )  # fmt: skip
    run.shown.step(state.step, loss, state.best, rate)


@torch.no_grad()
def _average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average towards the weights (Polyak & Juditsky 1992). Statistics that are not learnt are copied."""
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    now = model.state_dict()
    torch._foreach_lerp_([average[n] for n in now if n in learnt], [now[n] for n in now if n in learnt], 1 - decay)
    for name in now.keys() - learnt:
        average[name].copy_(now[name])


@contextmanager
def _averaged(model: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """The model with the averaged weights, if there are any, for as long as this lasts."""
    if not average:
        yield
        return
    weights = _copy(model)
    model.load_state_dict(average)
    try:
        yield
    finally:
        model.load_state_dict(weights)


def _evaluate(run: _Run, step: _Step) -> None:
    """Look at the valid split and keep the weights if they are the best so far."""
    state, model = run.state, run.task.model
    with _averaged(model, state.average):
        model.eval()
        with torch.no_grad(), step.autocast():
            (valid,) = processes.leaders([float(run.task.valid_loss())], run.device)
        model.train()
        if not math.isfinite(valid):
            raise _NotANumberError(f"the loss on the valid split is {valid:g}", state.step)
        improved = valid < state.best
        if improved:
            state.best, state.best_step, state.worse, state.best_weights = valid, state.step, 0, _copy(model)
        else:
            state.worse += 1
    run.events.write(
        event="valid", step=state.step, epoch=state.epoch, valid_loss=valid, best=improved,
        seconds=round(state.seconds, 3),
    )  # fmt: skip


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}


def _peak_mb(device: torch.device) -> int:
    """The most memory that was in use so far: the CUDA device's, else this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _save(path: Path, state: _State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    checkpoint = {"state": vars(state), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    write(path, lambda temporary: torch.save(checkpoint, temporary))


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    """Put everything back as it was when the checkpoint was written."""
    device = next(model.parameters()).device
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return _State(**saved["state"])
    except Exception as error:  # torch raises many kinds: a truncated file, another model's names, other shapes
        raise Problem(
            f"The checkpoint {path} is damaged or belongs to another model", "Leave out --resume to start again"
        ) from error
