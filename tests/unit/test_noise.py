"""What other libraries print: the lines that teach nothing go, all others stay."""

import logging

import pytest

from asrlib.io import noise

BESIDE = "Passing `generation_config` together with generation-related arguments=({%s}) is deprecated"
BOTH = "Both `%s_new_tokens` (=%d) and `%s_length`(=%d) seem to have been set."


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (BESIDE % "'suppress_tokens', 'begin_suppress_tokens'", False),  # a set's order changes from process to process
        (BESIDE % "'begin_suppress_tokens', 'suppress_tokens'", False),
        (BESIDE % "'max_new_tokens', 'use_cache', 'min_new_tokens'", False),
        (BESIDE % "'num_beams'", True),
        (BESIDE % "'suppress_tokens', 'begin_suppress_tokens', 'num_beams'", True),
        (BOTH % ("min", 4, "min", 0), False),
        (BOTH % ("min", 4, "min", 7), True),
        (BOTH % ("max", 4, "max", 448), True),
    ],
)
def test_a_warning_about_a_callers_own_arguments_is_heard(caplog, line, heard):
    logger = logging.getLogger("transformers.generation.utils")
    logger.addHandler(caplog.handler)
    logger.warning(line)
    logger.removeHandler(caplog.handler)
    assert bool(caplog.records) is heard


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_as_before_afterwards_even_after_an_error(shown):
    from transformers.utils import logging as messages

    before = messages.is_progress_bar_enabled()
    try:
        (messages.enable_progress_bar if shown else messages.disable_progress_bar)()
        with pytest.raises(OSError), noise.no_bars():
            assert not messages.is_progress_bar_enabled()
            raise OSError
        assert messages.is_progress_bar_enabled() is shown
    finally:
        (messages.enable_progress_bar if before else messages.disable_progress_bar)()
