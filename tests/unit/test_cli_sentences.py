"""What commands say of their results without --json: sentences and short lists, no Python."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from infra import sentences
from ml.predict import Predicted
from ml.registry import ModelVersion, Promotion
from ml.training.evaluation import Evaluation, from_sums, metric


def accuracy(right: list[int]) -> Evaluation:
    sums = np.array([[one, 1] for one in right], dtype=np.float64)
    return from_sums([str(i) for i in range(len(right))], sums, lambda s: s[:, 0] / s[:, 1], "more")


METRIC = metric("top-1 accuracy", accuracy([1, 1, 1, 0]), "commonest answer", accuracy([0, 0, 0, 0]))
SIGNED = {"name": "chrF", "value": 45.125, "low": 40.0, "high": 50.0, "signature": "nrefs:1|case:mixed"}
BIRDS = {
    "model": "birds-aviary@2", "files": 4, "metrics": [METRIC, METRIC],
    "species": [{"species": "Parus major", "average_precision": 0.5, "prior": 0.1, "clips": 3}],
    "unknown": list("abcdefg"),
}  # fmt: skip
MUSIC = {"nll_per_frame": 1.25, "low": 1.0, "high": 1.5, "frames": 1234, "model": "music-chorales", "version": 3}
FILED = {"name": "birds-aviary", "version": 2, "run_id": "1f", "dataset": "0abc", "new": True}


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (
            sentences.birds(BIRDS),
            [
                "birds-aviary@2 on 4 files:",
                f"  top-1 accuracy 0.750 [{METRIC['low']:.3f}, 1.000]; commonest answer 0.000 [0.000, 0.000]",
                f"  top-1 accuracy 0.750 [{METRIC['low']:.3f}, 1.000]; commonest answer 0.000 [0.000, 0.000]",
                "  It does not know a, b, c, d, e and 2 more; they count all the same",
                "  With --json: the scores of each species",
            ],
        ),
        (
            sentences.music(MUSIC | {"variants": ["test[3]"], "nll_per_frame_without_variants": 1.5}),
            [
                "music-chorales version 3: 1.250 [1.000, 1.500] nats per frame over 1,234 frames (less is better)",
                "  Variants of pieces it was trained on: test[3]; without them 1.500",
            ],
        ),
        (
            sentences.translation({"model": "translation-en-ru@1", "lines": 2000, "metrics": [SIGNED]}),
            ["translation-en-ru@1 on 2,000 lines:", "  chrF 45.125 [40.000, 50.000]  (nrefs:1|case:mixed)"],
        ),
        (
            sentences.trained(FILED | {"trained": True}),
            ["birds-aviary version 2, trained now on dataset 0abc, is filed in MLflow"],
        ),
        (
            sentences.trained(FILED | {"trained": False}),
            ["birds-aviary version 2, which was trained before on dataset 0abc, is filed in MLflow"],
        ),
        (
            sentences.imported(ModelVersion("birds-aviary", 2, "1f", "0abc", False)),
            ["birds-aviary version 2, trained on dataset 0abc, was filed in MLflow before"],
        ),
        (
            sentences.promoted(Promotion("birds-aviary", 2, True, "the first to beat its baseline: …", 2, None)),
            ["birds-aviary version 2 is champion now: the first to beat its baseline: …"],
        ),
        (
            sentences.promoted(Promotion("birds-aviary", 2, False, "it is the champion already", 2, 2)),
            ["birds-aviary version 2 is not promoted: it is the champion already"],
        ),
        (
            sentences.predicted(Predicted("birds-aviary", 2, "0abc", 1200, 1500)),
            ["birds-aviary version 2: 1,200 new predictions, 1,500 in all"],
        ),
        (
            sentences.predicted(Predicted("birds-aviary", None, None, 0, 0)),
            ["birds-aviary has no champion yet: nothing was predicted"],
        ),
        (
            sentences.verified({"version": "0abc", "shards": 3, "rows": 1500, "intact": True}),
            ["0abc is intact: 1,500 rows in 3 shards"],
        ),
    ],
    ids=[
        "birds",
        "music",
        "translation",
        "trained",
        "old",
        "imported",
        "promoted",
        "not",
        "predicted",
        "none",
        "verified",
    ],
)
def test_a_result_is_told_as_a_person_would(said: str, lines: list[str]) -> None:
    assert said.split("\n") == lines


HOSTILE = "[/x]\x1b]0;mine\x07\x9b2J\u202e\x7f\r\n\tключ 🐦"


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert sentences.visible(HOSTILE) == "[/x]␛]0;mine␇\\u009b2J\\u202e\\u007f␍\n\tключ 🐦"
    assert sentences.visible(HOSTILE, but="") == "[/x]␛]0;mine␇\\u009b2J\\u202e\\u007f␍␊␉ключ 🐦"


def test_a_document_says_the_same_to_a_script_and_nothing_to_a_terminal() -> None:
    said = sentences.document({HOSTILE: [HOSTILE]}, indent=2)
    assert json.loads(said) == {HOSTILE: [HOSTILE]}
    assert not sentences.CONTROL.search(said.replace("\n", ""))
    assert "ключ 🐦" in said


def test_a_file_name_that_is_no_text_can_be_printed_anywhere() -> None:
    name = os.fsdecode(b"caf\xe9\x9b.wav")
    for said in (sentences.visible(name), sentences.document(name)):
        assert "caf\\udce9\\udc9b.wav" in said.encode("utf-8", "strict").decode()
    assert json.loads(sentences.document(name)) == name
