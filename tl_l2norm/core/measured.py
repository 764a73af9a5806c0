"""Schemas of the tables that are read off a model, and that statistics are made of."""

from __future__ import annotations

from tl_l2norm.core.schema import LAYER, MODEL, SEED, Column, Schema, ends

_MODE = Column("mode", str, '"think" or "direct"', optional=True)
_PROMPT = Column("prompt", str, "the problem's id")
_FAMILY, _LEVEL = Column("family", str, "the problem's family"), Column("level", int, "steps of the problem")

PRESSURES = Schema(
    "pressures",
    "optimisation_pressure(..., labels=[{'mode': ..., 'prompt': ...}])",
    (
        Column("sequence", int, "number of the sequence"),
        Column("position", int, "whose state it is"),
        Column("token_id", int, "of the next token"),
        Column("token", str, "text of the next token"),
        Column("segment", str, "of the next token: prompt, think or answer"),
        Column("p_true", float, "probability of the next token"),
        Column("loss", float, "nats"),
        Column("pressure", float, "||dL/dh||, nats per unit of the stream"),
        Column("pull", float, "||dL/dy||, y after the final norm, nats per unit of it: no 1/||h|| is in it"),
        Column("state_token_id", int, "of the token whose state it is"),
        Column("l2_norm", float, "of the state"),
        Column("is_sink", bool, "whether the state is an attention sink"),
        Column("next_l2_norm", float, "of the next token's own state, one position later, where it is read back"),
        Column("next_is_sink", bool, "whether that state is an attention sink"),
        _MODE,
        Column("prompt", str, "the problem's id", optional=True),
    ),
)

TOKEN_IMPORTANCES = Schema(
    "tokens' importances",
    "token_importance(model, results of run_modes)",
    (
        Column("sequence", int, "number of the response"),
        Column("prompt", str, "the problem's id"),
        Column("position", int, "of the token that was swapped"),
        Column("token_id", int, "its id"),
        Column("previous_token_id", int, "id of the token before it", optional=True),
        Column("second_previous_token_id", int, "id of the token before that", optional=True),
        Column("occurrence", int, "tokens of its id before it in the response", optional=True),
        Column("left", int, "tokens of the thought behind it", optional=True),
        Column("layer", int, "after which it was swapped"),
        Column("importance", float, "nats that the answer loses"),
        Column("entropy", float, "nats, of the distribution from which it was drawn"),
        Column("next_entropy", float, "nats, of that behind it", optional=True),
        Column("cosine", float, "of old and new direction"),
        Column("late_norm", float, "mean over late layers; missing where none was recorded"),
        Column("late_norm_but_the_last", float, "without the model's last block", optional=True),
        SEED,
        MODEL,
    ),
)

EXPLAINED = Schema(
    "SAEs' errors",
    "evaluate_saes",
    (
        LAYER,
        Column("explained_variance", float, "1 - sum ||h - sae(h)||^2 / sum ||h - mean h||^2"),
        *ends("explained_variance", kind="95% interval over sequences"),
        Column("residual", float, "sum ||h - sae(h)||^2 / sum ||h||^2"),
        *ends("residual", prefix=True, kind="95% interval over sequences"),
        Column("l0", float, "mean active latents of a token"),
        Column("dead", int, "latents that are never active here"),
        Column("d_sae", int, "latents of the SAE"),
        Column("n", int, "sequences"),
        Column("n_tokens", int, "tokens"),
        SEED,
    ),
)

OUTCOMES = Schema(
    "outcomes",
    "suppress_and_ask",
    (
        Column("arm", str, "what was suppressed: one of `analysis.causal.ARMS`"),
        Column("quantile", float, 'of the threshold; NaN for the arm "none"'),
        Column("draw", int, "which draw of a random arm, from 0; 0 of the others"),
        _PROMPT,
        _FAMILY,
        _LEVEL,
        Column("correct", bool, "whether the answer is right"),
        Column("positions", int, "decode positions changed at any layer"),
        Column("events", int, "positions and layers changed"),
        Column("tokens", int, "length of the response"),
        Column("cut_off", bool, "whether it ran into max_new_tokens"),
        Column("seed", int, "of the random arms"),
        MODEL,
    ),
)
