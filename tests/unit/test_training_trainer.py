"""The training loop: it learns, repeats itself, survives a kill without a trace, and stops clearly when it must."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ml.training.config import TrainConfig
from ml.training.layers import Dropout
from ml.training.trainer import fit, learning_rate, load_weights, move, prepare
from storage.errors import Problem

CONFIG = TrainConfig(steps=24, batch=8, accumulate=2, warmup=4, evaluate_every=6, log_every=3, learning_rate=0.02)


class Line:
    """Learn a line from noisy points; dropout and noise draw from the three random states a run depends on."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 16), Dropout(0.2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.calls = 0

    def train_batches(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = np.random.default_rng((seed, epoch))
        for _ in range(7):
            x = torch.from_numpy(generator.normal(size=(8, 4)).astype(np.float32))
            yield x, x.sum(dim=1, keepdim=True)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.calls += 1
        noise = float(np.random.normal(0, 0.01)) + torch.randn(()) * 0.01
        return ((self.model(batch[0]) - batch[1] + noise) ** 2).mean()

    def valid_loss(self) -> float:
        x = torch.linspace(-1, 1, 40).view(10, 4)
        return ((self.model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean().item()


def train(run: Path, config: TrainConfig = CONFIG, kind: type[Line] = Line, resume: bool = False) -> Line:
    prepare(config)
    task = kind()
    fit(task, config, run, resume)
    return task


def events(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_the_loss_goes_down_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    task = train(tmp_path, replace(CONFIG, steps=200, evaluate_every=20))
    losses = [event["valid_loss"] for event in events(tmp_path) if event["event"] == "valid"]
    assert min(losses) < 0.3 * losses[0]
    assert task.valid_loss() == pytest.approx(min(losses), rel=1e-6)
    again = Line()
    load_weights(again.model, tmp_path)
    assert again.valid_loss() == pytest.approx(min(losses), rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, replace(CONFIG, seed=seed))
    a, b, c = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b != c


# Killed inside an accumulation and, after a resumption, again; each in a process of its own.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_training_trainer import CONFIG, Line, train

class Killed(Line):
    def loss(self, batch):
        loss = super().loss(batch)
        if self.calls == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

train(Path(sys.argv[3]), kind=Killed, resume=True)
"""


def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole)
    here = Path(__file__).parent
    for calls in (15, 17):  # the second count begins at the checkpoint of step 6, in batch 13
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(here.parent.parent), str(here), str(broken), str(calls)], check=False
        )
        assert done.returncode == -9
        assert not (broken / "weights.safetensors").exists()
    train(broken, resume=True)
    assert (broken / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()

    def told(run: Path) -> list[tuple[float, ...]]:
        return [(e["event"], e["step"], e.get("loss", e.get("valid_loss", 0.0))) for e in events(run)]

    assert told(broken) == told(whole)


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    assert train(tmp_path, resume=True).calls == 0
    assert (tmp_path / "weights.safetensors").read_bytes() == before


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    train(tmp_path)
    assert train(tmp_path).calls == CONFIG.steps * CONFIG.accumulate


def test_patience_ends_a_run(tmp_path: Path) -> None:
    class Stuck(Line):
        def valid_loss(self) -> float:
            return 1.0

    train(tmp_path, replace(CONFIG, patience=2), Stuck)
    assert events(tmp_path)[-1] | {"step": 18, "best_step": 6} == events(tmp_path)[-1]


def test_minutes_end_a_run_with_an_evaluation(tmp_path: Path) -> None:
    train(tmp_path, replace(CONFIG, steps=10**9, minutes=0.5 / 60, evaluate_every=10**9))
    kinds = [event["event"] for event in events(tmp_path)]
    assert kinds[-2:] == ["valid", "end"]
    assert 0.5 <= events(tmp_path)[-1]["seconds"] < 5
    # The rate has come down with the time, as it would have with the steps.
    assert [e for e in events(tmp_path) if e["event"] == "train"][-1]["lr"] < 0.2 * CONFIG.learning_rate


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_is_a_problem_that_names_the_step(tmp_path: Path, poison: float) -> None:
    class Poisoned(Line):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return super().loss(batch) * (poison if self.calls == 15 else 1.0)

    with pytest.raises(Problem, match=r"step 8.*learning_rate"):
        train(tmp_path, kind=Poisoned)
    assert events(tmp_path)[-1]["event"] == "failed"
    # What was right so far is kept: resumed without the poison, the run ends as if nothing had happened.
    train(tmp_path / "clean")
    train(tmp_path, resume=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "clean/weights.safetensors").read_bytes()


def test_memory_that_ends_is_a_problem_with_a_way_out(tmp_path: Path) -> None:
    class Huge(Line):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            raise torch.OutOfMemoryError(f"no memory for {len(batch)} tensors")

    with pytest.raises(Problem, match=r"out of memory at step 1.*batch=4 accumulate=4"):
        train(tmp_path, kind=Huge)


def test_a_split_without_a_batch_is_a_problem(tmp_path: Path) -> None:
    class Empty(Line):
        def train_batches(self, epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
            return (batch for batch in super().train_batches(epoch, seed) if batch is None)

    with pytest.raises(Problem, match="no batch"):
        train(tmp_path, kind=Empty)


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    other = Line()
    other.model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(Problem, match=r"checkpoint.pt is damaged or belongs to another model"):
        fit(other, CONFIG, tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(Problem, match="damaged"):
        train(tmp_path, resume=True)
    with pytest.raises(Problem, match="does not fit"):
        load_weights(other.model, tmp_path)


def test_the_schedule_warms_up_and_comes_down() -> None:
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step, (step - 10) / 90) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_a_plain_line_every_few_seconds_when_stderr_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path)
    assert "step 24/24, loss" in capsys.readouterr().err


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.3), torch.ones(300, 333)
    y = layer(x)
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


def test_batches_of_any_shape_move() -> None:
    batch = {"a": torch.ones(2), "b": [torch.zeros(1), ("text", torch.ones(1))]}
    moved = move(batch, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][1][1].is_meta
    assert moved["b"][1][0] == "text"
