"""The batch that grows: against a run counted step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling.config.optimizer import BatchRampConfig
from ling.config.recipe import load_recipe
from ling.errors import ConfigError
from ling.optim.batch_ramp import BatchRamp


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 8), st.integers(1, 400))
def test_every_step_is_that_of_a_run_counted_sequence_by_sequence(start: int, by: int, stages: int, total: int) -> None:
    end = start + by * stages
    ramp = BatchRamp.of(BatchRampConfig(start=start, increment=by, sequences=total), end)
    consumed = 0
    for step in range(total // start + 5):
        # The rule of Megatron's rampup-batch-size, in whole numbers.
        size = end if consumed >= total else start + consumed * stages // total * by
        assert (ramp.batch_size_at(step), ramp.consumed_before(step)) == (size, consumed), step
        consumed += size
    assert ramp.batch_size_at(10**9) == end


def test_the_published_ramp_of_the_mini_model_reaches_its_batch() -> None:
    """spec training.md 3: from 3,024 to 4,400 sequences of 4,096 tokens over 500 billion tokens."""
    sequences = 500_000_000_000 // 4096
    ramp = BatchRamp.of(BatchRampConfig(start=3024, increment=172, sequences=sequences), 4400, multiple_of=4)
    assert len(ramp.stages) == 9
    last = ramp.stages[-1]
    assert last.batch_size == 4400
    assert 0 <= last.first_sequence - sequences < 4400


def test_without_a_ramp_every_step_is_the_global_batch() -> None:
    ramp = BatchRamp.of(BatchRampConfig(), 8)
    assert [ramp.batch_size_at(i) for i in (0, 1, 99)] == [8, 8, 8]
    assert ramp.consumed_before(7) == 56


def test_a_step_that_the_ranks_cannot_share_is_refused() -> None:
    config = BatchRampConfig(start=4, increment=6, sequences=100)
    BatchRamp.of(config, 16, multiple_of=2)
    with pytest.raises(ConfigError, match=r"a step of 10 sequences cannot be cut into 4, .* multiples of 4"):
        BatchRamp.of(config, 16, multiple_of=4)


@pytest.mark.parametrize(
    ("given_keys", "line"),
    [
        (["start=2"], "go together"),
        (["start=2", "increment=4", "sequences=10"], "does not reach train.global_batch_size 8"),
        (["start=8", "increment=2", "sequences=10"], "does not reach train.global_batch_size 8"),
        (["start=-2", "increment=2", "sequences=10"], "must not be negative"),
    ],
)
def test_a_ramp_that_leads_nowhere_is_refused(given_keys: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_recipe(preset_name="tiny", overrides=[f"optim.batch_ramp.{text}" for text in given_keys])
