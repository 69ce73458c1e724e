"""A trained Transformer served by CTranslate2, several times as fast on CPUs as our own search.

    export(load(run), folder)                  # once
    translator = served(load(run), folder)     # the same Translator, with another search

The weights are the same numbers in another file, and the search is the same, so the translations are too, and their
scores to a millionth. A test compares them. Ours stays the reference.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml.translation.search import Hypothesis, limit
from ml.translation.subwords import BOS, EOS, UNKNOWN
from ml.translation.transformer import Attention, DecoderLayer, Transformer, positions
from ml.translation.translate import Sources, Translator
from storage.errors import Problem

_MARKS = {UNKNOWN: "<unk>", BOS: "<s>", EOS: "</s>"}


def export(translator: Translator, folder: Path) -> None:
    """Write the model as CTranslate2 reads it to `folder`, whole or not at all. Raises Problem for other kinds."""
    model = translator.model
    if not isinstance(model, Transformer):
        raise Problem(
            f"CTranslate2 has no model of kind {translator.config.kind!r}", "Serve this one with our own search"
        )
    from ctranslate2.specs import TransformerSpec

    config = translator.config
    spec = TransformerSpec.from_config((config.encoder_layers, config.decoder_layers), config.heads)
    embedding = _numbers(model.embedding.weight)
    # Longer than any source taken at once, and than any translation of one (search.limits).
    places = _numbers(positions(0, 4 * config.longest, config.width, torch.device("cpu")))
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = spec.decoder.projection.weight = embedding
    spec.encoder.position_encodings.encodings = spec.decoder.position_encodings.encodings = places
    _norm(spec.encoder.layer_norm, model.norm_encoder)
    _norm(spec.decoder.layer_norm, model.norm_decoder)
    for encoding, into in zip(model.encoder_layers(), spec.encoder.layer, strict=True):
        _self_attention(into.self_attention, encoding.attention, encoding.norm_attention)
        _feed_forward(into.ffn, encoding.forward_layer, encoding.norm_forward)
    for decoding, into in zip(model.decoder_layers(), spec.decoder.layer, strict=True):
        _self_attention(into.self_attention, decoding.self_attention, decoding.norm_self)
        _cross_attention(into.attention, decoding)
        _feed_forward(into.ffn, decoding.forward_layer, decoding.norm_forward)
    names = _names(translator.subwords.size)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.validate()
    spec.optimize()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        spec.save(str(whole))
        whole.replace(folder)


def served(translator: Translator, folder: Path, threads: int = 2) -> Translator:
    """The translator with CTranslate2's search over what `export` wrote to `folder`; each thread decodes a group."""
    import ctranslate2

    try:
        engine = ctranslate2.Translator(str(folder), device="cpu", inter_threads=threads, intra_threads=1)
    except RuntimeError as error:
        raise Problem(
            f"{folder} holds no model that CTranslate2 can read ({error})", "Export the model again"
        ) from error
    names = _names(translator.subwords.size)
    banned = [[names[number]] for number in translator.subwords.banned]
    return replace(translator, search=_Search(engine, names, banned, translator.config.length_penalty))


@dataclass(frozen=True)
class _Search:
    """As `Translator.search`."""

    engine: Any
    names: list[str]
    banned: list[list[str]]
    length_penalty: float

    def __call__(self, groups: Sequence[Sources], beam: int) -> Iterator[list[list[Hypothesis]]]:
        for begun in [self._begin(sources, beam) for sources in groups]:
            results = [waiting.result() for waiting in begun]
            yield [
                [
                    Hypothesis([int(name) for name in tokens], score)
                    for tokens, score in zip(result.hypotheses, result.scores, strict=True)
                ]
                for result in results
            ]

    def _begin(self, sources: Sources, beam: int) -> list[Any]:
        """Hand sources over to CTranslate2's threads, those of a length together: they have one limit."""
        begun = []
        for length, alike in groupby(sources, key=len):
            begun += self.engine.translate_batch(
                [[self.names[number] for number in source] for source in alike], asynchronous=True, beam_size=beam,
                num_hypotheses=beam, length_penalty=self.length_penalty, suppress_sequences=self.banned,
                return_scores=True, max_decoding_length=limit(length), min_decoding_length=0, max_input_length=0,
            )  # fmt: skip
        return begun


def _names(size: int) -> list[str]:
    """CTranslate2 takes words; ours are the numbers themselves, so that no two pieces are taken for one."""
    return [_MARKS.get(number, str(number)) for number in range(size)]


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().float().cpu().numpy()


def _norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _numbers(norm.weight), _numbers(norm.bias)


def _linear(spec: Any, *layers: nn.Linear) -> None:
    """Layers over the same input side by side, as one."""
    spec.weight = _numbers(torch.cat([layer.weight for layer in layers]))
    spec.bias = _numbers(torch.cat([layer.bias for layer in layers]))


def _self_attention(spec: Any, attention: Attention, norm: nn.LayerNorm) -> None:
    _norm(spec.layer_norm, norm)
    _linear(spec.linear[0], attention.query, attention.key_value)
    _linear(spec.linear[1], attention.out)


def _cross_attention(spec: Any, layer: DecoderLayer) -> None:
    _norm(spec.layer_norm, layer.norm_cross)
    for into, part in zip(
        spec.linear,
        (layer.cross_attention.query, layer.cross_attention.key_value, layer.cross_attention.out),
        strict=True,
    ):
        _linear(into, part)


def _feed_forward(spec: Any, layers: nn.Sequential, norm: nn.LayerNorm) -> None:
    _norm(spec.layer_norm, norm)
    first, last = (layer for layer in layers if isinstance(layer, nn.Linear))
    _linear(spec.linear_0, first)
    _linear(spec.linear_1, last)
