"""Text to subword numbers and back, with a vocabulary learnt from the train split.

Any text can be encoded: what the vocabulary does not hold is spelled in UTF-8 bytes (sentencepiece's byte fallback).
One vocabulary serves both languages, as names and placeholders are written alike in them. A source begins with a token
that names the target language, so that one model can hold several pairs (Johnson et al. 2017).
"""

import io
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from ml.training.files import write
from storage.errors import Problem

PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3


class Subwords:
    """A trained vocabulary."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise Problem(f"{path.parent} holds no {path.name}", "Name the folder of a finished translation run")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise Problem(f"The vocabulary {path} is damaged", "Train the model again") from error
        self.size: int = self._pieces.get_piece_size()
        self.languages = [
            self._pieces.id_to_piece(i)[2:-1]
            for i in range(self.size)
            if self._pieces.is_control(i) and self._pieces.id_to_piece(i).startswith("<2")
        ]
        # What a translation never holds: everything that stands for no text, except the end.
        self.banned = [i for i in range(self.size) if (self._pieces.is_control(i) or i == UNKNOWN) and i != EOS]

    def encode_source(
        self, texts: Sequence[str], languages: Sequence[str], sampling: float = 0.0, seed: int = 0
    ) -> list[list[int]]:
        """Numbers of each text with its target language before it and the end after it."""
        first = [self._language(language) for language in languages]
        encoded = self._encode(texts, sampling, seed)
        return [[token, *pieces, EOS] for token, pieces in zip(first, encoded, strict=True)]

    def encode_target(self, texts: Sequence[str], sampling: float = 0.0, seed: int = 0) -> list[list[int]]:
        """Numbers of each text between the beginning and the end."""
        return [[BOS, *pieces, EOS] for pieces in self._encode(texts, sampling, seed)]

    def _encode(self, texts: Sequence[str], sampling: float, seed: int) -> list[list[int]]:
        """Each text cut in the likeliest way; with `sampling` by chance, the likelier the oftener (Kudo 2018)."""
        if not sampling:
            return self._pieces.encode(list(texts), out_type=int, num_threads=1)  # type: ignore[no-any-return]
        # A pool of one thread is a new thread, and its generator starts from the seed just set.
        sentencepiece.set_random_generator_seed(seed)
        return self._pieces.encode(  # type: ignore[no-any-return]
            list(texts), out_type=int, num_threads=1, enable_sampling=True, alpha=sampling, nbest_size=-1
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of numbers, without the marks; bytes that are no UTF-8 become U+FFFD."""
        return str(self._pieces.decode([int(token) for token in tokens]))

    def names(self, tokens: Sequence[int]) -> list[str]:
        """The pieces as written in the vocabulary, for pictures; ▁ is a space."""
        return [self._pieces.id_to_piece(int(token)) for token in tokens]

    def _language(self, language: str) -> int:
        if language not in self.languages:
            known = ", ".join(self.languages)
            raise Problem(f"This model does not translate into {language!r}", f"It translates into {known}")
        return int(self._pieces.piece_to_id(f"<2{language}>"))


def train(texts: Iterable[str], languages: Sequence[str], size: int, path: Path) -> Subwords:
    """Learn at most `size` pieces (unigram model, Kudo 2018) from texts and write them to `path`.

    One thread and the whole input, so that the same texts give the same file.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="unigram",
            hard_vocab_limit=False, byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity",
            pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNKNOWN, control_symbols=[f"<2{name}>" for name in languages],
            num_threads=1, max_sentence_length=100_000, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise Problem(
            f"No vocabulary of {size} pieces can be learnt from this text ({str(error).splitlines()[-1]})",
            "Change --set vocabulary=…, or freeze a version with more text",
        ) from error
    write(path, lambda temporary: temporary.write_bytes(model.getvalue()))
    return Subwords(path)


def clean(text: str) -> str:
    """One line of composed Unicode: control characters and runs of white space become one space."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in unicodedata.normalize("NFC", text))
    return " ".join("".join(kept).split())
