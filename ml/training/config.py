"""What can be set about a training run, and the command line that sets it.

The three families have the same flags. A family keeps `PRESETS: dict[str, tuple[ModelConfig, TrainConfig]]`;
`--preset` picks a pair and `--set key=value` changes a field of either. `config.json` in the run folder keeps them.
"""

import argparse
import dataclasses
import json
import math
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from ml.training.files import write_json
from storage.errors import Problem

Config = TypeVar("Config")
Model = TypeVar("Model")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. A run limited by `steps` is reproducible; one that `minutes` ends is not."""

    preset: str = "smoke"
    seed: int = 1
    steps: int = 500  # optimizer steps at most
    batch: int = 32  # size of a batch in the family's unit: clips, sequences or target tokens
    accumulate: int = 1  # batches whose gradients are averaged into one step, dealt out to the processes
    learning_rate: float = 1e-3  # the highest, reached after the warm-up
    final_learning_rate: float = 0.05  # where the cosine ends, as a share of learning_rate
    warmup: int = 50  # steps from nearly zero to learning_rate
    weight_decay: float = 0.01
    clip: float = 1.0  # the gradient's norm at most; 0 = unlimited
    average: float = 0.0  # decay of the weights' moving average, which is what is judged and kept; 0 = none
    evaluate_every: int = 100  # steps between two looks at the valid split, each with a checkpoint
    log_every: int = 10  # steps between two lines of events.jsonl, and two looks at the clock
    patience: int = 0  # looks without a better valid loss before stopping; 0 = never stop early
    minutes: float = 0.0  # wall-clock limit on training; 0 = none
    threads: int = 1  # CPU threads of torch
    workers: int = 0  # processes that make batches; 0 = the training process makes them itself
    device: str = "auto"  # auto, cpu, cuda
    precision: str = "auto"  # fp32, bf16 (products only; weights stay fp32), auto = bf16 on CUDA devices that have it
    compile: bool = False  # whether torch.compile makes the step; on CPU it needs a C++ compiler


@dataclass(frozen=True)
class Request(Generic[Model]):
    """A parsed command line: what to train on, where to write, and the settings after `--set`."""

    version: str
    out: Path
    resume: bool
    model: Model
    train: TrainConfig


def override(config: Config, assignments: Sequence[str]) -> Config:
    """A copy of a dataclass with `key=value` strings applied; a wrong name or value raises Problem."""
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, value = _split(assignment)
        if key not in hints:
            raise _unknown(key, list(hints))
        changes[key] = _convert(key, value, hints[key])
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def override_both(model: Model, train: TrainConfig, assignments: Sequence[str]) -> tuple[Model, TrainConfig]:
    """Apply each `key=value` to whichever of the two configurations has that field (the trainer's first)."""
    of_train, of_model = get_type_hints(TrainConfig), get_type_hints(type(model))
    for assignment in assignments:
        key, _ = _split(assignment)
        if key in of_train:
            train = override(train, [assignment])
        elif key in of_model:
            model = override(model, [assignment])
        else:
            raise _unknown(key, [*of_train, *of_model])
    return model, train


def check(config: TrainConfig) -> None:
    """Refuse numbers that no training can go by. Raises Problem that names the setting."""
    for name in ("steps", "batch", "accumulate", "evaluate_every", "log_every", "threads"):
        if getattr(config, name) < 1:
            raise Problem(f"The setting {name} cannot be {getattr(config, name)}", "Give 1 or more")
    for name in ("learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip", "patience", "minutes",
                 "workers"):  # fmt: skip
        if not 0 <= getattr(config, name) < math.inf:
            raise Problem(f"The setting {name} cannot be {getattr(config, name)}", "Give 0 or more")
    if not 0 <= config.average < 1:
        raise Problem(f"The setting average cannot be {config.average}", "Give a decay below 1, such as 0.999, or 0")
    if config.precision not in ("auto", "fp32", "bf16"):
        raise Problem(f"There is no precision {config.precision!r}", "Give auto, fp32 or bf16")


def parse(
    description: str, presets: dict[str, tuple[Model, TrainConfig]], argv: Sequence[str] | None = None
) -> Request[Model]:
    """Read the flags that every `python -m ml.<family>.train` has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--version", required=True, metavar="URI", help="frozen version: a folder or s3://bucket/prefix"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="run folder to write")
    parser.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="assignments",
        help="change a setting: " + ", ".join(_fields(presets)),
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint, if it has one")
    given = parser.parse_args(argv)
    model, train = override_both(*presets[given.preset], given.assignments)
    return Request(given.version, given.out, given.resume, model, train)


def command(main: Callable[[], None]) -> None:
    """Run a command: a Problem becomes one sentence on stderr and exit code 1, Ctrl-C becomes exit code 130."""
    try:
        main()
    except Problem as problem:
        print(f"lyrebird: {problem}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("lyrebird: interrupted. The same command with --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def settle(run: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write `config.json`; when resuming, refuse settings that differ from the ones the run was started with.

    `settings` holds {"family", "dataset", "model": {…}, "train": {…}}. Only `minutes`, `patience` and `workers` may
    change on the way: they decide when training ends and who makes the batches, not what a step does.
    """
    run.mkdir(parents=True, exist_ok=True)
    path, settings = run / "config.json", json.loads(json.dumps(settings))
    if resume and path.exists() and (run / "checkpoint.pt").exists():
        before, now = _flat(json.loads(path.read_text())), _flat(settings)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        changed = [k for k in changed if k not in {"train.minutes", "train.patience", "train.workers"}]
        if changed:
            told = ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in changed)
            raise Problem(
                f"The run in {run} was started with other settings ({told})",
                "Resume with the same settings, or leave out --resume to start again",
            )
    write_json(path, settings)


def _fields(presets: dict[str, tuple[Model, TrainConfig]]) -> list[str]:
    model, _ = next(iter(presets.values()))
    return [*get_type_hints(TrainConfig), *get_type_hints(type(model))]


def _split(assignment: str) -> tuple[str, str]:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise Problem(f"The setting {assignment!r} has no value", "Write it as key=value")
    return key.strip(), value.strip()


def _unknown(key: str, names: Sequence[str]) -> Problem:
    return Problem(f"There is no setting {key!r}", "The settings are " + ", ".join(sorted(set(names))))


def _convert(key: str, value: str, hint: Any) -> Any:
    """Turn text into the field's type: int, float, bool, str, a tuple of one of these ("1,2,3"), or `… | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        if value.lower() in ("none", "null"):
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is tuple:
        return tuple(_convert(key, part, get_args(hint)[0]) for part in value.split(",") if part)
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return hint(value)
    except (ValueError, KeyError):
        raise Problem(f"The setting {key} cannot be {value!r}", f"Give it a value of type {hint.__name__}") from None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
