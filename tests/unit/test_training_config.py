"""Settings: typed overrides from the command line, and a run that is resumed only with the settings it began with."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ml.training.config import TrainConfig, check, command, override, override_both, parse, settle
from storage.errors import Problem


@dataclass(frozen=True)
class Model:
    width: int = 8
    dropout: float = 0.1
    tied: bool = True
    kernels: tuple[int, ...] = (3, 3)
    limit: int | None = None


def test_values_take_the_field_s_type() -> None:
    model = override(Model(), ["width=16", "dropout=0.5", "tied=false", "kernels=3,5,7", "limit=4"])
    assert model == Model(16, 0.5, False, (3, 5, 7), 4)
    assert override(model, ["limit=none"]).limit is None


def test_each_setting_finds_its_dataclass() -> None:
    model, train = override_both(Model(), TrainConfig(), ["width=32", "steps=7"])
    assert (model.width, train.steps) == (32, 7)


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(Problem, match=r"no setting 'widht'.*kernels.*learning_rate.*width"):
        override_both(Model(), TrainConfig(), ["widht=3"])


@pytest.mark.parametrize("assignment", ["width=wide", "tied=perhaps", "width"])
def test_a_wrong_value_names_the_setting(assignment: str) -> None:
    with pytest.raises(Problem, match=assignment.split("=", maxsplit=1)[0]):
        override(Model(), [assignment])


def test_the_command_line_picks_a_preset_and_changes_it() -> None:
    presets = {"smoke": (Model(), TrainConfig()), "cpu": (Model(width=64), TrainConfig(preset="cpu"))}
    request = parse("", presets, ["--version", "v", "--out", "r", "--preset", "cpu", "--set", "seed=3", "dropout=0"])
    assert (request.model, request.train.seed, request.train.preset) == (Model(width=64, dropout=0.0), 3, "cpu")
    assert (request.version, request.out, request.resume) == ("v", Path("r"), False)


def test_a_problem_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise Problem("The sky fell", "Put it back")

    with pytest.raises(SystemExit) as stop:
        command(fails)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "lyrebird: The sky fell. Put it back\n"


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    def settings(**train: object) -> dict[str, object]:
        return {"dataset": "a", "train": {"seed": 1, "minutes": 0.0} | train}

    settle(tmp_path, settings(), resume=False)
    (tmp_path / "checkpoint.pt").touch()
    settle(tmp_path, settings(minutes=5.0), resume=True)
    with pytest.raises(Problem, match=r"train.seed was 1, is 2"):
        settle(tmp_path, settings(seed=2), resume=True)
    settle(tmp_path, settings(seed=2), resume=False)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["seed"] == 2


@pytest.mark.parametrize(
    "assignment",
    ["steps=0", "batch=-1", "evaluate_every=0", "learning_rate=nan", "minutes=-2", "average=1", "workers=-1"],
)
def test_a_number_that_no_training_can_go_by_is_refused(assignment: str) -> None:
    with pytest.raises(Problem, match=f"The setting {assignment.split('=', maxsplit=1)[0]} cannot be"):
        check(override(TrainConfig(), [assignment]))
    check(TrainConfig())
