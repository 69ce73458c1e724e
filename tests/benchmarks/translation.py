"""Translation beside its peers: training, searching with and without a cache, serving, and reading a version.

Models have the sizes of the `cpu` preset. Those that only search have random weights and write the same number of
pieces for every sentence, so that each does the same work; the one that is served has learnt something.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from support import Stack
from torch import Tensor

from benchmarks import Benchmark
from ml.datasets.freeze import LAYOUTS, Content
from ml.datasets.read import Version
from ml.tasks import MARTS
from ml.training.config import Request
from ml.training.trainer import prepare
from ml.translation import serving, subwords
from ml.translation.data import Encoded, encode, pad, read
from ml.translation.model import PRESETS, build
from ml.translation.search import beam_search
from ml.translation.subwords import EOS, Subwords
from ml.translation.train import TranslationTask, train
from ml.translation.translate import load

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data" / "multi30k"
MODEL, TRAIN = PRESETS["cpu"]
LENGTH = 20  # pieces written for each sentence


def benchmarks(stack: Stack, scale: float) -> Iterator[Benchmark]:
    """All of them, the longest first."""
    with tempfile.TemporaryDirectory(prefix="lyrebird-bench-") as folder:
        version = freeze(Path(folder) / "version")
        prepare(TRAIN)
        yield training(version, Path(folder), max(12, int(24 * scale)))
        yield reading(version)
        yield from searching(version, Path(folder), max(20, int(200 * scale)))
        yield served(version, Path(folder), max(20, int(400 * scale)))


def freeze(folder: Path) -> Path:
    """Multi30k as a frozen version: the layout, the names and the identity that a freeze of the mart would give."""
    layout = LAYOUTS[MARTS["translation"]]
    rows = []
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        sides = [
            gzip.decompress((DATA / f"{name}.{side}.gz").read_bytes()).decode().splitlines() for side in ("en", "de")
        ]
        for source, target in zip(*sides, strict=True):
            key = hashlib.md5(f"{split}-{len(rows)}".encode(), usedforsecurity=False).hexdigest()
            rows.append([key, "multi30k", "eng", "deu", source, target, key, split, "research"])
    content = Content(layout)
    for row in sorted(rows):
        content.add(row)
    folder.mkdir()
    shards = []
    for split in ("train", "valid", "test"):
        chosen = [dict(zip(layout.columns, row, strict=True)) for row in sorted(rows) if row[7] == split]
        path = folder / f"{split}-00000.parquet"
        pq.write_table(pa.Table.from_pylist(chosen, layout.arrow), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append({"file": path.name, "split": split, "rows": len(chosen), "sha256": digest})
    manifest = {
        "version": content.id, "name": "translation-en-de", "schema": layout.described, "shards": shards,
        "simulated": False, "splits": {shard["split"]: {"rows": shard["rows"]} for shard in shards},
        "licences": {"research": len(rows)},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@cache
def learnt(version: Path) -> tuple[Subwords, Encoded]:
    """The vocabulary of the training split, and the split in its numbers."""
    pairs = read(Version(version), "train")
    texts = [text for both in zip(pairs.sources, pairs.targets, strict=True) for text in both]
    pieces = subwords.train(texts, ["deu"], MODEL.vocabulary, version.parent / "spm.model")
    return pieces, encode(pairs, pieces, MODEL.longest)


def environment(name: str) -> Path:
    """The Python of a peer's environment, made when it is missing."""
    python = ROOT / ".bench" / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", PEERS / f"{name}.txt"], check=True)
    return python


def ask(command: Sequence[Any]) -> float:
    """What a peer's program prints last."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------- training


def step_by_step(task: TranslationTask, steps: int, optimizer: torch.optim.Optimizer) -> float:
    """Target tokens a second of plain training steps, without the first ones."""
    tokens, begin = 0, 0.0
    for number, item in enumerate(task.plan(0, 1)[: steps + 3]):
        if number == 3:
            begin = time.perf_counter()
        batch = task.batch(item)
        optimizer.zero_grad(set_to_none=True)
        task.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), TRAIN.clip)
        optimizer.step()
        tokens += task.size(batch) if number >= 3 else 0
    return tokens / (time.perf_counter() - begin)


def training(version: Path, folder: Path, steps: int) -> Benchmark:
    """Training steps of the `cpu` preset's model, beside JoeyNMT's of the same model, batch and dropout."""
    pieces, encoded = learnt(version)
    joey = folder / "joeynmt"
    joey.mkdir()
    settings = {"layers": MODEL.encoder_layers, "batch": TRAIN.batch, "steps": steps, **asdict(MODEL)}
    (joey / "settings.json").write_text(json.dumps(settings))
    for name, rows in (("src", encoded.sources), ("trg", [target[1:-1] for target in encoded.targets])):
        (joey / f"train.{name}").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    (joey / "vocabulary.txt").write_text("".join(f"{number}\n" for number in range(4, pieces.size)))
    torch.manual_seed(1)
    model = build(MODEL, pieces.size)
    task = TranslationTask(model, [encoded], encoded, TRAIN.batch, MODEL.label_smoothing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    rates: dict[str, float] = {}
    amount = 10_000

    def ours() -> float:
        rates["ours"] = step_by_step(task, steps, optimizer)
        return amount / rates["ours"]

    def peer() -> float:
        rates["peer"] = ask([environment("joeynmt"), PEERS / "joeynmt_train.py", joey])
        return amount / rates["peer"]

    def check() -> None:
        assert min(rates.values()) > 0

    versions = {"joeynmt": "2.3.0", "torch": torch.__version__}
    return Benchmark("train a Transformer", "tokens/s", amount, ours, peer, "JoeyNMT", 1.5, check, versions)


def reading(version: Path) -> Benchmark:
    """Batches of an epoch, beside what training them consumes."""
    pieces, encoded = learnt(version)
    torch.manual_seed(1)
    model = build(MODEL, pieces.size)
    task = TranslationTask(model, [encoded], encoded, TRAIN.batch, MODEL.label_smoothing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    seen: list[int] = []
    amount = sum(len(target) - 1 for target in encoded.targets)

    def ours() -> float:
        begin = time.perf_counter()
        seen.append(sum(task.size(task.batch(item)) for item in task.plan(0, len(seen))))
        return time.perf_counter() - begin

    def peer() -> float:
        return amount / step_by_step(task, 10, optimizer)

    def check() -> None:
        assert set(seen) == {amount}

    return Benchmark(
        "batches of a frozen version", "tokens/s", amount, ours, peer, "what training consumes", 5.0, check
    )


# ---------------------------------------------------------------- search


@dataclass
class Forgetful:
    """A State that remembers the numbers alone: each step computes all positions again."""

    memory: Tensor
    mask: Tensor
    tokens: Tensor

    def reorder(self, rows: Tensor) -> None:
        self.tokens = self.tokens.flatten(0, 1)[rows].view(self.tokens.shape)

    def keep(self, sentences: Tensor) -> None:
        self.memory, self.mask, self.tokens = self.memory[sentences], self.mask[sentences], self.tokens[sentences]


@dataclass
class WithoutCache:
    """A model whose steps remember what the encoder said, and of the decoder nothing."""

    model: Any

    def start(self, source: Tensor, beam: int) -> Forgetful:
        return Forgetful(*self.model.encode(source), torch.empty(source.shape[0], beam, 0, dtype=torch.int64))

    def step(self, tokens: Tensor, state: Forgetful) -> Tensor:
        state.tokens = torch.cat([state.tokens, tokens[:, :, None]], dim=2)
        sentences, beam, _ = state.tokens.shape
        memory, mask = (each.repeat_interleave(beam, dim=0) for each in (state.memory, state.mask))
        hidden = self.model.decode(state.tokens.flatten(0, 1), memory, mask)[:, -1]
        return self.model.logits(hidden).view(sentences, beam, -1)


def searching(version: Path, folder: Path, sentences: int) -> Iterator[Benchmark]:
    """Beam 5 over sentences of the valid split: without the cache, and beside Hugging Face's `generate`."""
    pieces, _ = learnt(version)
    pairs = read(Version(version), "valid")
    sources = sorted(pieces.encode_source(pairs.sources[:sentences], ["deu"] * sentences), key=len)
    groups = [sources[first : first + 20] for first in range(0, sentences, 20)]
    torch.manual_seed(1)
    model = build(MODEL, pieces.size).eval()
    found: dict[str, list[list[list[int]]]] = {}

    def decode(name: str, searched: Any) -> None:
        found[name] = []
        for group in groups:
            most, banned = [LENGTH] * len(group), [*pieces.banned, EOS]
            hypotheses = beam_search(searched, pad(group), most, banned, beam=5, length_penalty=1.0)
            found[name] += [[one.tokens for one in each] for each in hypotheses]

    def same() -> None:
        first = [a[0] == b[0] for a, b in zip(found["cached"], found["plain"], strict=True)]
        assert sum(first) >= 0.98 * len(first)  # sums in another order can turn a tie

    cached = partial(decode, "cached", model)
    yield Benchmark(
        "beam 5 with the cache", "sentences/s", sentences, cached, partial(decode, "plain", WithoutCache(model)),
        "without it", 3.0, same,
    )  # fmt: skip

    settings = folder / "generate.json"
    given = {"layers": MODEL.encoder_layers, "threads": TRAIN.threads, "length": LENGTH, "batches": groups}
    settings.write_text(json.dumps(asdict(MODEL) | given | {"vocabulary": pieces.size}))

    def written() -> None:
        assert all(len(tokens) == LENGTH for each in found["cached"] for tokens in each)

    yield Benchmark(
        "beam 5 at equal sizes", "sentences/s", sentences, cached,
        lambda: ask([environment("transformers"), PEERS / "transformers_generate.py", settings]),
        "Hugging Face generate", 1.0, written, {"transformers": "5.24.0"},
    )  # fmt: skip


def served(version: Path, folder: Path, sentences: int) -> Benchmark:
    """CTranslate2 over a model that has learnt something, beside our own search with it."""
    run = folder / "run"
    short = replace(TRAIN, steps=120, batch=1500, warmup=60, average=0.0, evaluate_every=120, minutes=0)
    train(Request(str(version), run, False, MODEL, short))
    translator = load(run)
    serving.export(translator, folder / "served")
    fast = serving.served(translator, folder / "served", TRAIN.threads)
    lines = read(Version(version), "valid").sources[:sentences]
    found: dict[str, list[str]] = {}

    def ours() -> None:
        found["ours"] = fast.translate(lines, beam=5)

    def peer() -> None:
        found["peer"] = translator.translate(lines, beam=5)

    def check() -> None:
        same = [a == b for a, b in zip(found["ours"], found["peer"], strict=True)]
        assert sum(same) >= 0.98 * len(same)

    versions = {"ctranslate2": installed("ctranslate2")}
    return Benchmark("translate, served", "lines/s", sentences, ours, peer, "our own search", 2.0, check, versions)
