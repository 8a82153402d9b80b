"""A job's token is random, long enough, and shows in no text."""

import pytest

from kvstore.job_token import JobToken


def test_a_token_shows_in_no_text():
    token = JobToken(b"0123456789abcdef")
    assert "0123" not in f"{token!r} {token}"


def test_two_tokens_differ():
    assert JobToken.draw() != JobToken.draw()


def test_a_token_that_can_be_guessed_is_refused():
    with pytest.raises(ValueError, match="16 bytes, got 3"):
        JobToken(b"abc")
