"""What other libraries print: the lines that teach nothing go, all others stay."""

import logging

import pytest

from asrlib import noise

BESIDE = "Passing `generation_config` together with generation-related arguments=({%s}) is deprecated"


@pytest.mark.parametrize(
    ("arguments", "heard"),
    [
        ("'suppress_tokens', 'begin_suppress_tokens'", False),  # a set's order changes from process to process
        ("'begin_suppress_tokens', 'suppress_tokens'", False),
        ("'max_new_tokens', 'use_cache', 'min_new_tokens'", False),
        ("'num_beams'", True),
        ("'suppress_tokens', 'begin_suppress_tokens', 'num_beams'", True),
    ],
)
def test_a_warning_about_a_callers_own_arguments_is_heard(caplog, arguments, heard):
    logger = logging.getLogger("transformers.generation.utils")
    logger.addHandler(caplog.handler)
    logger.warning(BESIDE, arguments)
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
