"""Files too large for one request go into the object store in parts, and come back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import Stack

from ingestion.journal import digest
from storage import objects
from storage.errors import Problem


def test_a_large_file_goes_up_in_parts_and_comes_back(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LARGE", 5 << 20)  # the least that S3 takes for a part
    file, back = tmp_path / "large", tmp_path / "back"
    file.write_bytes(np.random.default_rng(1).bytes(12_345_678))
    store = objects.Objects(stack.settings("loader"))
    store.put("landing", "large/one", file, "text/csv")
    head = store.client.head_object(Bucket="landing", Key="large/one")
    assert head["ETag"].endswith('-3"')  # of three parts
    assert head["ContentType"] == "text/csv"
    store.download("landing", "large/one", back)
    assert digest(back) == digest(file)
    with pytest.raises(Problem, match="could not write nowhere/large/one"):
        store.put("nowhere", "large/one", file)
