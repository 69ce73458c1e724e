"""What a translation model is: its settings, and the four things that training and search ask of it."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from ml.training.config import TrainConfig
from storage.errors import Problem


@dataclass(frozen=True)
class ModelConfig:
    kind: str = "transformer"  # or recurrent
    vocabulary: int = 2000  # subwords at most, all languages together
    sampling: float = 0.0  # alpha of subword regularization (Kudo 2018), 1 = as likely as the cut is; 0 = none
    width: int = 192  # of the embeddings and between the layers
    heads: int = 4  # of the transformer
    encoder_layers: int = 2
    decoder_layers: int = 2
    inner: int = 512  # width inside the transformer's feed-forward layers
    dropout: float = 0.1
    label_smoothing: float = 0.1
    longest: int = 128  # numbers on a side: longer pairs are not trained on, longer lines are translated in parts
    beam: int = 4
    length_penalty: float = 1.0


_SMOKE = TrainConfig(preset="smoke", steps=800, batch=500, learning_rate=3e-3, warmup=100, evaluate_every=200)
# How these were found, and what else was tried: docs/decisions/translation-recipe.md.
_CPU = TrainConfig(
    preset="cpu", steps=8_600, batch=3000, learning_rate=4e-3, warmup=800, final_learning_rate=0.02, average=0.999,
    evaluate_every=400, minutes=57, threads=2, weight_decay=0.05,
)  # fmt: skip
_GPU = TrainConfig(
    preset="gpu", steps=8_000, batch=8000, learning_rate=2e-3, warmup=1000, final_learning_rate=0.02, average=0.999,
    evaluate_every=400, minutes=7, threads=4, workers=2, weight_decay=0.05, log_every=50, compile=True,
)  # fmt: skip
PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    "smoke": (ModelConfig(vocabulary=4000, width=128, inner=384), _SMOKE),
    "cpu": (
        ModelConfig(vocabulary=4000, width=128, encoder_layers=4, decoder_layers=4, dropout=0.2, beam=5),
        _CPU,
    ),
    "gpu": (
        ModelConfig(vocabulary=8000, width=256, encoder_layers=4, decoder_layers=4, inner=1024, dropout=0.3, beam=5),
        _GPU,
    ),
    "recurrent-smoke": (
        ModelConfig(kind="recurrent", vocabulary=4000, width=128, encoder_layers=1),
        replace(_SMOKE, preset="recurrent-smoke"),
    ),
    "recurrent-cpu": (
        ModelConfig(kind="recurrent", vocabulary=4000, width=256, encoder_layers=1, dropout=0.3, beam=5),
        replace(_CPU, preset="recurrent-cpu", steps=6_000, learning_rate=2e-3),
    ),
    "recurrent-gpu": (
        ModelConfig(kind="recurrent", vocabulary=8000, width=384, encoder_layers=1, dropout=0.4, beam=5),
        # torch.compile has no recurrent layers: cuDNN's are fused already
        replace(_GPU, preset="recurrent-gpu", batch=6000, learning_rate=1.5e-3, compile=False),
    ),
}


class State(Protocol):
    """What a decoder remembers between two steps of a search over `sentences` x `beam` hypotheses."""

    def reorder(self, rows: Tensor) -> None:
        """Hypothesis i goes on from what was hypothesis rows[i] of the same sentence; shape (sentences * beam,)."""

    def keep(self, sentences: Tensor) -> None:
        """Forget all sentences but these; shape (kept,)."""


class Translation(Protocol):
    """An encoder and a decoder. Numbers are int64; a source ends with EOS and is padded with PAD on the right."""

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """(batch, S), (batch, T) -> what the decoder has in mind before each next number, (batch, T, width)."""

    def output(self) -> Tensor:
        """The output layer's weights, (vocabulary, width)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary): the products with those weights."""

    def start(self, source: Tensor, beam: int) -> Any:
        """Encode (sentences, S) and return the State before the first number."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Take the latest number of every hypothesis, (sentences, beam); logits (sentences, beam, vocabulary)."""

    def attention(self, source: Tensor, target: Tensor) -> Tensor:
        """How much each target position looks at each source position: (batch, T, S), rows add up to 1."""


def build(config: ModelConfig, vocabulary: int) -> nn.Module:
    """A model of the kind that the settings name, with random weights."""
    from ml.translation.recurrent import Recurrent
    from ml.translation.transformer import Transformer

    kinds: dict[str, type[nn.Module]] = {"transformer": Transformer, "recurrent": Recurrent}
    if config.kind not in kinds:
        raise Problem(f"There is no translation model of kind {config.kind!r}", f"The kinds are {', '.join(kinds)}")
    # Heads, or the recurrent encoder's two directions.
    parts, called = (max(1, config.heads), "heads") if config.kind == "transformer" else (2, "ways")
    if config.width < parts or config.width % parts or config.width % 2:
        raise Problem(
            f"A width of {config.width} cannot be shared by {parts} {called}",
            f"Give an even multiple of {parts}, with --set width=…",
        )
    for name in ("heads", "encoder_layers", "decoder_layers", "inner"):
        if getattr(config, name) < 1:
            raise Problem(f"The setting {name} cannot be {getattr(config, name)}", "Give 1 or more")
    for name in ("dropout", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            raise Problem(f"The setting {name} cannot be {getattr(config, name)}", "Give a share below 1")
    return kinds[config.kind](config, vocabulary)
