"""Tokens in the place of a response's end."""

from __future__ import annotations

from typing import Any

import pytest

import tl_l2norm as l2
from tests import models, oracles
from tests.texts import prompts, relative
from tl_l2norm.core.errors import InputError
from tl_l2norm.recording import ThinkOn

MOST = 20


def by_hand(prompt: list[int], stop: int, phrase: list[int], times: int) -> tuple[list[int], list[int]]:
    """Plain Hugging Face, a token at a time."""
    new: list[int] = []
    forced: list[int] = []
    while len(new) < MOST:
        (token,) = oracles.greedy(models.hugging_face("llama"), prompt + new, 1, eos=False)
        if token == stop and len(forced) < times * len(phrase) and len(new) + len(phrase) < MOST:
            forced += range(len(new), len(new) + len(phrase))
            new += phrase
            continue
        new.append(token)
        if token == stop:
            break
    return new, forced


@pytest.mark.parametrize(("phrase", "times"), [([77], 1), ([77, 78], 9)], ids=str)
def test_a_response_goes_on_from_what_was_written_for_its_end(phrase: list[int], times: int) -> None:
    model, options = models.use(models.Case("llama", "bridge")), {"max_new_tokens": MOST, "ignore_eos": True, "progress": False}
    three: Any = prompts()[:3]
    plain = l2.generate(model, three, **options)
    stop = plain[1].tokens[4]
    longer = ThinkOn(tokens=phrase, times=times)
    out = l2.generate(model, three, stop=[stop], think_on=longer, **options)
    for completion, prompt in zip(out, three, strict=True):
        new, forced = by_hand(prompt, stop, phrase, times)
        assert (list(completion.tokens), list(completion.forced)) == (new, forced)
        assert completion.finish_reason == ("stop" if new[-1] == stop else "length")
        assert completion.trace.tokens.tolist() == prompt + new[:-1]
    assert out[1].forced[0] == 4 and len(out[1].tokens) > 5
    again = l2.collect(model, out, progress=False)
    assert all(relative(a.l2_norms, b.l2_norms) < 1e-4 for a, b in zip(again, out.traces, strict=True))


@pytest.mark.parametrize(
    ("state", "written"),
    [
        ({"token": 5, "n_written": 3, "n_forced": 0}, 8),  # an end: the phrase begins
        ({"token": 1, "n_written": 4, "n_forced": 1}, 9),  # and goes on whatever is chosen
        ({"token": 1, "n_written": 5, "n_forced": 2}, None),
        ({"token": 5, "n_written": 5, "n_forced": 2}, 8),
        ({"token": 5, "n_written": 7, "n_forced": 4}, None),  # twice is enough
        ({"token": 5, "n_written": 8, "n_forced": 0}, None),  # no room for a token behind it
        ({"token": 6, "n_written": 3, "n_forced": 0}, None),  # another end
    ],
    ids=str,
)
def test_what_is_written_instead(state: dict[str, int], written: int | None) -> None:
    assert ThinkOn(tokens=[8, 9], ends=[5], times=2).instead(**state, ends=frozenset({5, 6}), most=10) == written


def test_what_would_end_the_response_or_does_not_exist_is_refused() -> None:
    model = models.use(models.Case("llama", "bridge"))
    for think_on, says in (
        (ThinkOn(tokens=[3], ends=[4]), "the token 3 ends a response itself"),
        (ThinkOn(tokens=[10**7]), "think_on has the token id 10000000, the vocabulary"),
    ):
        with pytest.raises(InputError, match=says):
            l2.generate(model, [[5, 6]], stop=[3], think_on=think_on)
    for given in ({"tokens": []}, {"tokens": [1], "ends": []}, {"tokens": [1], "times": 0}):
        with pytest.raises(InputError):
            ThinkOn(**given)
