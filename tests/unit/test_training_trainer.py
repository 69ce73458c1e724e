"""The training loop: it learns, repeats itself, survives a kill without a trace, and stops clearly when it must."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ml.training import processes
from ml.training.config import TrainConfig
from ml.training.layers import Dropout
from ml.training.trainer import fit, learning_rate, load_weights, move, prepare
from storage.errors import Problem

CONFIG = TrainConfig(
    steps=24, batch=8, accumulate=2, warmup=4, evaluate_every=6, log_every=3, learning_rate=0.02, device="cpu"
)


class Line:
    """Learn a line from noisy points; dropout and noise draw from the three random states a run depends on."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(4, 16), Dropout(0.2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.calls = 0

    def plan(self, epoch: int, seed: int) -> list[tuple[int, int, int]]:
        return [(seed, epoch, number) for number in range(7)]

    def batch(self, item: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.random.default_rng(item).normal(size=(8, 4)).astype(np.float32))
        return x, x.sum(dim=1, keepdim=True)

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


# A process that says when it is at a certain batch, and waits there to be killed.
WAITING = """
import sys, time
from dataclasses import replace
from pathlib import Path
from typing import Any
sys.path[:0] = sys.argv[1:3]
from test_training_trainer import CONFIG, Line, train

class Waiting(Line):
    def loss(self, batch):
        loss = super().loss(batch)
        if self.calls == int(sys.argv[4]):
            print("here", flush=True)
            time.sleep(60)
        return loss

train(Path(sys.argv[3]), replace(CONFIG, workers=2), kind=Waiting, resume=True)
"""
HERE = Path(__file__).parent


def kill_at(run: Path, calls: int) -> None:
    """Train in another process, and kill it when it has computed so many losses."""
    argv = [sys.executable, "-c", WAITING, str(HERE.parent.parent), str(HERE), str(run), str(calls)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def test_killed_from_outside_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Dropout on, two workers, inside an accumulation (an odd number of losses), and after the resumption again."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole)
    generator = random.Random(20)
    first = generator.randrange(13, 24, 2)  # after the checkpoint of step 6, which has seen 12 batches
    for calls in (first, generator.randrange(1, 12, 2)):
        kill_at(broken, calls)
        assert not (broken / "weights.safetensors").exists()
    train(broken, replace(CONFIG, workers=2), resume=True)
    assert (broken / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert told(broken) == told(whole)


def told(run: Path) -> list[tuple[float, ...]]:
    return [(e["event"], e["step"], e.get("loss", e.get("valid_loss", 0.0))) for e in events(run)]


PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_training_trainer import CONFIG, train

train(Path(sys.argv[3]))
"""


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """The batches of a step are dealt out, and each draws the same noise and dropout in whichever process it is."""
    train(tmp_path / "one")
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *argv, str(HERE.parent.parent), str(HERE), str(tmp_path / "two")],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = events(tmp_path / "one"), events(tmp_path / "two")
    assert [(e["event"], e["step"]) for e in two] == [(e["event"], e["step"]) for e in one]
    assert (one[-1]["processes"], two[-1]["processes"]) == (1, 2)
    for name in ("loss", "valid_loss", "units"):
        values = [e[name] for e in one if name in e]
        assert [e[name] for e in two if name in e] == pytest.approx(values, rel=1e-4), name
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


def test_a_step_that_processes_cannot_share_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert list(processes.share(4)) == [0, 2]
    with pytest.raises(Problem, match=r"2 processes cannot share the 3 batches.*accumulate=2"):
        processes.share(3)


def test_the_weights_that_are_kept_are_the_average(tmp_path: Path) -> None:
    before: list[Tensor] = []  # the weights before each step

    class Watched(Line):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            if self.calls % CONFIG.accumulate == 0:
                before.append(self.model[0].weight.detach().clone())
            return super().loss(batch)

    train(tmp_path, replace(CONFIG, evaluate_every=24, average=0.8), Watched)
    last = torch.load(tmp_path / "checkpoint.pt")["model"]["0.weight"]
    average = before[0]
    for step, weights in enumerate([*before[1:], last], start=1):
        decay = min(0.8, step / (step + 9))
        average = decay * average + (1 - decay) * weights
    kept = load_file(tmp_path / "weights.safetensors")["0.weight"]
    assert torch.allclose(kept, average, atol=1e-6)
    assert not torch.allclose(kept, last, atol=1e-3)


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


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), None])
def test_memory_that_ends_is_a_problem_with_a_way_out(tmp_path: Path, error: Exception | None) -> None:
    class Huge(Line):
        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            if error is not None:
                raise error
            return super().loss(batch) + torch.empty(2**50).sum()  # what torch raises on CPU

    with pytest.raises(Problem, match=r"out of memory at step 1.*batch=4 accumulate=4"):
        train(tmp_path, kind=Huge)
    assert events(tmp_path)[-1] == {"event": "failed", "step": 1, "reason": "out of memory"}


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_can_no_longer_be_read_ends_in_a_clear_state(tmp_path: Path, workers: int) -> None:
    class Gone(Line):
        def batch(self, item: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
            if item[1:] == (2, 3):  # the 17th batch, in step 9
                raise Problem("The shard train-00000.parquet is missing", "Restore it")
            return super().batch(item)

    with pytest.raises(Problem, match=r"^The shard train-00000.parquet is missing. Restore it$"):
        train(tmp_path, replace(CONFIG, workers=workers), kind=Gone)
    last = events(tmp_path)[-1]
    assert (last["event"], last["reason"]) == ("failed", "The shard train-00000.parquet is missing. Restore it")
    train(tmp_path / "clean")
    train(tmp_path, replace(CONFIG, workers=workers), resume=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "clean/weights.safetensors").read_bytes()


def test_a_worker_that_is_killed_is_a_problem(tmp_path: Path) -> None:
    class Killed(Line):
        def batch(self, item: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
            if item[1:] == (1, 5):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(item)

    with pytest.raises(Problem, match=r"process that makes batches ended.*workers=0"):
        train(tmp_path, replace(CONFIG, workers=2), kind=Killed)
    assert events(tmp_path)[-1]["event"] == "failed"


def test_a_worker_whose_end_is_told_while_workers_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shut = _MultiProcessingDataLoaderIter._shutdown_workers

    def told(self: Any) -> None:
        if not self._shutdown:  # a signal may come in the middle of it
            shut(self)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", told)
    train(tmp_path / "whole", replace(CONFIG, workers=2))  # all had been read

    class Cut(Line):
        error: BaseException = ConnectionResetError()

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            del batch
            raise self.error

    with pytest.raises(Problem, match=r"process that makes batches ended \(DataLoader worker \(pid 7\)"):
        train(tmp_path / "cut", replace(CONFIG, workers=2), kind=Cut)
    Cut.error = KeyboardInterrupt()  # Ctrl-C ends the workers too, and stays what it is
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", replace(CONFIG, workers=2), kind=Cut)


def test_events_tell_throughput_memory_and_where_the_time_goes(tmp_path: Path) -> None:
    class Sized(Line):
        def size(self, batch: tuple[Tensor, Tensor]) -> int:
            return len(batch[0])

    train(tmp_path, kind=Sized)
    lines = [event for event in events(tmp_path) if event["event"] == "train"]
    assert [line["units"] for line in lines] == [48 * n for n in range(1, 9)]
    for line in lines:
        assert line["units_per_second"] > 0
        assert line["memory_mb"] > 50
        assert 0 <= line["waiting"] <= 1
        assert 0 <= line["cpu"] <= 1.5
    assert events(tmp_path)[-1]["units"] == 24 * 16


def test_bf16_is_for_the_products_alone(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"no precision 'fp64'.*bf16"):
        prepare(replace(CONFIG, precision="fp64"))
    full, half = train(tmp_path / "a"), train(tmp_path / "b", replace(CONFIG, precision="bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())
    assert half.valid_loss() != full.valid_loss()
    assert half.valid_loss() == pytest.approx(full.valid_loss(), rel=0.2)


@pytest.mark.long
def test_a_compiled_step_learns_the_same(tmp_path: Path) -> None:
    class Plain(Line):
        """Without dropout, of which a compiled step draws other numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return ((self.model(batch[0]) - batch[1]) ** 2).mean()

    train(tmp_path / "a", kind=Plain)
    train(tmp_path / "b", replace(CONFIG, compile=True), kind=Plain)
    assert [loss for *_, loss in told(tmp_path / "b")] == pytest.approx([loss for *_, loss in told(tmp_path / "a")])


def test_a_split_without_a_batch_is_a_problem(tmp_path: Path) -> None:
    class Empty(Line):
        def plan(self, epoch: int, seed: int) -> list[tuple[int, int, int]]:
            return super().plan(epoch, seed)[:0]

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
