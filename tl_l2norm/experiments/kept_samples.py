"""The responses that an evaluation selects among, as `sample_thinking` gives them."""

from __future__ import annotations

from tl_l2norm.experiments.arms import Arm
from tl_l2norm.experiments.evaluation_run import Run, Source
from tl_l2norm.experiments.samples import sampled
from tl_l2norm.tasks.results import Result


def samples_of(run: Run, arm: Arm, source: Source) -> tuple[Result, ...]:
    """An arm's responses, judged and labelled; none where their norms weren't kept, or the model doesn't think."""
    if not source.scored or run.asked.mode != "think" or arm.selection is not None:
        return ()
    asked, n = run.asked, arm.n or run.asked.n
    responses = [run.response(source, (i, sample)) for i in range(len(asked.problems)) for sample in range(n)]
    return tuple(
        sampled(
            asked.problems[own.prompt_index],
            asked.prompts[own.prompt_index],
            own,
            log_prob=float(own.logprobs.double().mean()),
            temperature=source.sampling.temperature,
        )
        for own in responses
        if own.logprobs is not None
    )
