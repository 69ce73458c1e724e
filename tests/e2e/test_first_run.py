"""The first `lyrebird run` of an installation, with the presets that people get: models beat their baselines by far.

The factors are those that a small honest model must reach to be worth showing; intervals may not overlap.
"""

from __future__ import annotations

import re

import pytest
from installed import finish, installation, outcome, query, workplace

# What a run makes, if there is something to make: loads with news, published marts, models, predictions.
MADE = """
    select 'load ' || source, max(load) from ops.load where versions > 0 group by 1
    union all select 'marts ' || domain, max(version) from ops.publication where domain <> 'platform' group by 1
    union all select 'model ' || model, max(model_version) from ml.score group by 1
    union all select 'predictions ' || model, count(*) from ml.prediction group by 1
    order by 1
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_models_of_a_first_run_are_worth_showing_and_a_second_run_changes_nothing() -> None:
    with workplace() as folder, installation(folder, "first") as home:
        said = finish(home)
        rows = query(
            home,
            "select model, metric, value, low, high, baseline, baseline_low, baseline_high from ml.score "
            "where split = 'valid' and baseline is not null",
        )
        scores = {(model, metric): values for model, metric, *values in rows}
        value, low, _, prior, _, prior_high = scores["birds-aviary", "macro average precision"]
        assert value >= 3 * prior
        assert low > prior_high
        value, _, high, markov, markov_low, _ = scores["music-chorales", "nll_per_frame"]
        assert value <= 0.8 * markov
        assert high < markov_low
        value, low, _, copied, _, copied_high = scores["translation-en-ru", "chrF"]
        assert value >= copied + 10
        assert low > copied_high
        for command in ("identify", "compose", "translate"):
            assert re.search(rf"lyrebird {command} .*", said)
        assert "simulated" in said

        before = outcome(home), query(home, MADE)
        finish(home)
        assert (outcome(home), query(home, MADE)) == before
