"""The report page and the model card: whole in one file, readable by everyone, and honest about simulated data."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ml.training import report, results
from ml.training.files import write, write_json
from storage.errors import Problem

SCORES = {
    "family": "birds", "dataset": "0123", "split": "valid",
    "metrics": [{"name": "macro AP", "value": 0.51234, "low": 0.4, "high": 0.6, "direction": "more", "rows": 40,
                 "baseline": {"name": "class <prior>", "value": 0.1, "low": 0.05, "high": 0.15}}],
}  # fmt: skip


@pytest.fixture(params=[True, False])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    dataset = {"version": "0123", "name": "birds", "licences": {"CC BY": 7, "": 2}, "simulated": request.param}
    write_json(tmp_path / "model.json", {"family": "birds", "dataset": dataset, "code": "abcd"})
    write_json(tmp_path / "config.json", {"train": {"preset": "smoke", "seed": 1, "minutes": 0.0}})
    write_json(tmp_path / "scores.json", SCORES)
    events = [
        {"event": "train", "step": 10, "loss": 2.0}, {"event": "valid", "step": 10, "valid_loss": 1.5},
        {"event": "end", "step": 10, "best_step": 10, "seconds": 3.0},
    ]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return tmp_path


class Page(HTMLParser):
    """Collects what a reader and a browser would ask of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("data:")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_in_one_file(run: Path) -> None:
    fig, ax = report.axes()
    ax.plot([0, 1])
    sections = [("A <section>", report.figure(fig, 'the "picture"'))]
    report.write(run, "Birds & co", sections)
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.outside == []
    assert len(page.images) == 2
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert "0.5123 [0.4, 0.6]" in text
    assert "class &lt;prior&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert '<html lang="en">' in text


def test_simulated_data_is_called_simulated(run: Path) -> None:
    simulated = json.loads((run / "model.json").read_text())["dataset"]["simulated"]
    report.write(run, "Birds", [])
    report.card(run, "Birds", "Names birds.", ["Few species."])
    for name in ("report.html", "card.md"):
        assert (report.SIMULATED in (run / name).read_text()) == simulated


def test_the_card_names_data_licences_scores_and_limits(run: Path) -> None:
    report.card(run, "Birds", "Names birds.", ["Few species."])
    card = (run / "card.md").read_text()
    for part in (
        "CC BY: 7 rows",
        "no licence stated: 2 rows",
        "| macro AP | 0.5123 [0.4, 0.6] |",
        "- Few species.",
        "seed 1",
    ):
        assert part in card


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"a": 1})

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write(path, fails)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_runs_are_told_of_in_a_table(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds no finished run"):
        results.main(["--out", str(tmp_path / "page"), str(tmp_path / "nowhere")])
    write_json(run / "config.json", {"model": {"width": 8}, "train": {"preset": "gpu", "seed": 3, "compile": True}})
    events = [
        *({"event": "train", "step": n, "units_per_second": rate} for n, rate in enumerate((50.0, 900.0, 1000.0))),
        {"event": "valid", "step": 3, "valid_loss": 1.5, "seconds": 60.0},
        {"event": "end", "step": 3, "best_step": 3, "best": 1.5, "seconds": 90.0, "units": 4000, "peak_mb": 321,
         "device": "NVIDIA H200", "threads": 4, "processes": 2, "precision": "bf16"},
    ]  # fmt: skip
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    results.main(["--out", str(tmp_path / "docs" / "page"), str(run)])
    (row,) = json.loads((tmp_path / "docs" / "page.json").read_text())
    assert (row["units_per_second"], row["minutes"], row["peak_memory_mb"], row["seed"]) == (900.0, 1.5, 321, 3)
    assert row["scores"] == [{"name": "macro AP", "value": 0.51234, "low": 0.4, "high": 0.6}]
    assert row["curve"] == [{"minutes": 1.0, "step": 3, "valid_loss": 1.5}]
    page = (tmp_path / "docs" / "page.md").read_text()
    for part in ("NVIDIA H200, 2 processes", "bf16, compiled", "900", "321", "macro AP 0.51 [0.40, 0.60] on valid"):
        assert part in page
