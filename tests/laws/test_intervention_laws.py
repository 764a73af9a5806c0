"""What every intervention promises, on every architecture and backend, against plain Hugging Face."""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import tl_l2norm as l2
from tests import models, oracles
from tests.slow import slow, slow_but
from tests.texts import ids, prompts, relative
from tl_l2norm.core.batch import Batch, Rows
from tl_l2norm.core.random_draws import uniform
from tl_l2norm.interventions.intervener import Intervener
from tl_l2norm.interventions.observing import hooks
from tl_l2norm.models.backends import backend_of
from tl_l2norm.text.sequences import pad_left

N_NEW = 62
N_NEW_SMOLLM2 = 28  # the oracle's time grows with the square
SWAP = 0x53574150  # sets the draws of the action "swap" apart from the others of its layer
BANK, DIRECTION = 0x42414E4B, 0x44495245  # and those of what a control steers to
COMBINATIONS = (
    "suppress",
    "clamp",
    "random",
    "swap",
    "swap random",
    "swap mixed",
    "swap zeros",
    "alrr",
    "alrr fresh",
    "erss",
    "erss authors",
    "controls",
    "all",
)
SHARED = ["sequence", "position", "layer", "decision", "fired"]


def generate(model: Any, which: Any, **options: Any) -> l2.recording.Generations:
    defaults = {"max_new_tokens": N_NEW, "ignore_eos": True, "progress": False, "batch_size": 3}
    return l2.generate(model, which, **{**defaults, **options})


def n_new(case: models.Case) -> int:
    return N_NEW if case in models.TINY else N_NEW_SMOLLM2


def ragged(case: models.Case) -> list[list[int]]:
    return prompts()[:3] if case in models.TINY else prompts()[:2]


@functools.cache
def thresholds(case: models.Case) -> l2.Thresholds:
    """Over the last six layers, among the middle norms of what decoding without intervention gives: in the middle of a gap, as
    a model that repeats itself has the same norm again and again, and a threshold on it would be a tie."""
    plain = generate(models.use(case), ragged(case), max_new_tokens=n_new(case))
    layers = plain.traces[0].layers[-6:]
    traces = [trace.select(layers) for trace in plain.traces]
    values = {}
    for index, layer in enumerate(layers):
        norms = torch.cat([t.l2_norms[index, t.is_response & ~t.is_sink[index]] for t in traces]).sort().values
        near = norms[int(0.3 * len(norms)) : int(0.9 * len(norms))]
        gap = int(near.diff().argmax())
        values[layer] = float(near[gap : gap + 2].mean())
    return l2.Thresholds(values, provenance=traces[0].provenance)


def interventions(case: models.Case, which: str) -> list[Any]:
    tau = thresholds(case)
    loose = {layer: 1.3 * value for layer, value in tau.items()}
    made = {
        "suppress": lambda: [l2.Suppression(tau)],
        "clamp": lambda: [l2.Suppression(tau, which="low", how="clamp")],
        "random": lambda: [l2.Suppression(which="random", p=0.1, seed=3, layers=list(tau))],
        "swap": lambda: [l2.Suppression(tau, how="swap", seed=2)],
        "swap random": lambda: [l2.Suppression(which="random", how="swap", p=0.2, seed=3, layers=list(tau))],
        "swap mixed": lambda: [
            l2.ALRR(tau, growth_eps=0.01, blowup=2.0, layers=list(tau)[:4]),
            l2.Suppression(tau, which="low", how="swap", layers=list(tau)[1:]),
            l2.Suppression(which="random", p=0.1, seed=4, layers=list(tau)[::2]),
            l2.Suppression(loose, how="swap", seed=4, positions=9),
        ],
        "swap zeros": lambda: [
            l2.Suppression(tau, scale=0.0, positions=3, include_sinks=True, layers=list(tau)[:-1]),  # else all logits are 0
            l2.Suppression(which="random", how="swap", p=0.5, seed=5, layers=list(tau), positions=9),
        ],
        "alrr": lambda: [l2.ALRR(tau, max_iters=3, growth_eps=0.02, blowup=2.0, alpha=0.7)],
        "alrr fresh": lambda: [l2.ALRR(tau, max_iters=2, growth_eps=-0.5, blowup=2.0, kv="fresh")],
        "erss": lambda: [l2.ERSS(tau, patience=2, cooldown=2, bank_size=3, cos_min=0.1, p=0.7, seed=1)],
        "erss authors": lambda: [
            l2.ERSS(tau, patience=1, cooldown=1, bank_size=2, cos_min=-1.0, beta=0.3, p=1.0, mix="authors")
        ],
        "controls": lambda: [
            l2.interventions.Rerun(p=0.2, seed=6, layers=list(tau)[:2], kv="fresh", alpha=0.8),
            l2.interventions.Rerun(p=0.9, seed=7, tokens=range(0, 60_000, 3), thresholds=tau, layers=list(tau)[1:4]),
            l2.ERSS(tau, patience=2, cooldown=2, bank_size=3, cos_min=0.1, p=0.7, seed=1, towards="random"),
            l2.ERSS(loose, patience=2, cooldown=1, cos_min=0.0, p=1.0, seed=2, towards="direction", layers=list(tau)[::2]),
            l2.ERSS(
                loose,
                patience=3,
                cooldown=2,
                cos_min=0.0,
                p=1.0,
                mix="interpolate",
                towards="vectors",
                vectors={layer: torch.linspace(-1, 2, 48) + layer for layer in tau},
            ),
        ],
        "all": lambda: [
            l2.ALRR(tau, growth_eps=0.01, blowup=2.0, layers=list(tau)[:4]),
            l2.ERSS(loose, patience=2, cooldown=3, cos_min=0.0, p=0.5, mix="interpolate"),
            l2.Suppression(loose, layers=list(tau)[3:]),
            l2.Suppression(which="random", p=0.05, layers=list(tau)[::2]),
        ],
    }
    return made[which]()


def as_steps(acting: list[Any], tokens: list[int], n_layers: int, key: int) -> list[dict[str, Any]]:
    """The same interventions in the words of the oracle."""

    def draw(x: Any) -> Any:
        p = 0.05 if x.p is None else x.p
        return lambda layer, position: bool(uniform(x.seed or 0, key, layer, position) < p)

    def enter(x: Any) -> Any:
        return lambda layer, position: float(uniform(x.seed or 0, key, layer, SWAP, position))

    def allowed(x: Any) -> Any:
        return lambda layer, position: (x.tokens is None or tokens[position] in x.tokens) and draw(x)(layer, position)

    def pick(x: Any) -> Any:
        return lambda layer, position: float(uniform(x.seed, key, layer, BANK, position))

    def direction(x: Any) -> Any:
        """Normally distributed, by the distribution function of the standard library."""
        return lambda layer, position, width: torch.tensor(
            [NormalDist().inv_cdf(float(uniform(x.seed, key, layer, DIRECTION, position, i))) for i in range(width)]
        )

    steps = []
    for x in acting:
        layers = list(range(n_layers))[-6:] if x.layers is None else x.layers
        step: dict[str, Any] = {"layers": layers, "tau": dict(x.thresholds or {}), "positions": x.positions}
        match x:
            case l2.Suppression():
                step |= {"kind": "suppress", "which": x.which, "how": x.how, "scale": 0.1 if x.scale is None else x.scale}
                step |= {"draw": draw(x), "enter": enter(x)}
            case l2.ALRR():
                names = ("max_iters", "growth_eps", "blowup", "alpha", "kv")
                step |= {"kind": "alrr", **{name: getattr(x, name) for name in names}}
            case l2.interventions.Rerun():
                step |= {"kind": "rerun", "draw": allowed(x), "alpha": x.alpha, "kv": x.kv}
            case l2.ERSS():
                names = ("patience", "beta", "cooldown", "bank_size", "cos_min", "gamma", "mix", "towards", "vectors")
                step |= {"kind": "erss", "draw": draw(x), **{name: getattr(x, name) for name in names}}
                step |= {"pick": pick(x), "direction": direction(x)}
        steps.append(step)
    return steps


def of_sequence(events: pd.DataFrame, sequence: int) -> pd.DataFrame:
    own = events[events["sequence"] == sequence].drop(columns="sequence")
    return own.sort_values(["layer", "intervention", "position"], kind="stable", ignore_index=True)


def assert_same_events(ours: pd.DataFrame, truth: pd.DataFrame, *, tolerance: float = 1e-3) -> None:
    exact = ["position", "layer", "intervention", "decision", "fired"]
    pd.testing.assert_frame_equal(ours[exact], truth[exact])
    rest = ["l2_norm_before", "l2_norm_after", *(name for name in ("reruns", "cosine") if name in ours)]
    assert truth.drop(columns=truth.columns.intersection(ours.columns)).isna().to_numpy().all(), "a column is missing"
    pd.testing.assert_frame_equal(ours[rest], truth[rest], rtol=tolerance, atol=1e-4)


def oracle_events(noted: list[dict[str, Any]], names: tuple[str, ...]) -> pd.DataFrame:
    entries = [
        {
            "intervention": names[event["step"]],
            "l2_norm_before": event["before"],
            "l2_norm_after": event["after"],
            "reruns": float("nan"),
            "cosine": float("nan"),
            **{k: v for k, v in event.items() if k in ("position", "layer", "decision", "fired", "reruns", "cosine")},
        }
        for event in noted
    ]
    frame = pd.DataFrame(entries).astype({"intervention": object, "decision": object, "reruns": float})
    return frame.sort_values(["layer", "intervention", "position"], kind="stable", ignore_index=True)


def cases_of(*architectures: str) -> list[models.Case]:
    return [case for case in models.CASES if case.architecture in architectures]


GRID = [
    *((case, which) for case in cases_of("llama", "gpt2") for which in COMBINATIONS),
    *((case, which) for case in cases_of("qwen3", "gemma3", "mistral") for which in ("swap", "alrr", "erss authors", "all")),
    *((case, "alrr fresh") for case in cases_of("gemma3", "mistral")),
    *((case, which) for case in models.SMOLLM2 for which in ("swap", "alrr", "all")),
]
QUICK = ("swap mixed", "all")
"""Of several kinds of interventions at once; those of one kind are slow beside them."""


@pytest.mark.parametrize(("case", "which"), [pair if pair[1] in QUICK else slow(*pair) for pair in GRID], ids=str)
def test_decoding_is_what_the_oracle_does_and_one_pass_over_the_result(case: models.Case, which: str) -> None:
    """Tokens, decisions and norms of cached, batched decoding against a pass of plain Hugging Face layers without a cache, and
    against our own pass over the finished tokens (promises 3 and 5)."""
    model, plain, acting = models.use(case), models.hugging_face(case.architecture), interventions(case, which)
    out = generate(model, ragged(case), interventions=acting, max_new_tokens=n_new(case))
    again = l2.collect(model, out, interventions=acting, progress=False)
    events = out.events()
    assert events["fired"].sum() > 24, "an effect that is not there proves nothing"
    for i, (completion, forced) in enumerate(zip(out, again, strict=True)):
        trace = completion.trace
        assert relative(forced.l2_norms, trace.l2_norms) < 1e-4
        if case in models.SMOLLM2 and i:
            continue  # the oracle is slow
        tokens, start = trace.tokens.tolist(), trace.prompt_len
        truth = oracles.intervened(plain, tokens, start, as_steps(acting, tokens, len(trace.layers), completion.seed))
        assert truth.logits[start - 1 :].argmax(-1).tolist() == list(completion.tokens)
        assert relative(trace.l2_norms.double(), truth.norms) < 1e-3
        assert_same_events(of_sequence(events, i), oracle_events(truth.events, out.log.names))


ACROSS = [
    ("all", cases_of("llama", "gpt2")),
    *((which, cases_of("llama")) for which in ("swap random", "alrr fresh", "erss", "controls")),
    *((which, cases_of("gpt2")) for which in ("swap mixed", "swap zeros")),
]
"""Each on both backends; rotations and learned positions take turns."""


@pytest.mark.filterwarnings("ignore:nothing was changed by")
@pytest.mark.parametrize(
    ("case", "which"), [(case, which) if which == "all" else slow(case, which) for which, on in ACROSS for case in on], ids=str
)
def test_a_sequence_is_treated_the_same_alone_and_in_any_batch(case: models.Case, which: str) -> None:
    """Promise 2, while rows of many lengths come and go."""
    model, acting = models.use(case), interventions(case, which)
    five = prompts()
    n = 36
    alone = [generate(model, [p], interventions=acting, seed=[i], max_new_tokens=n) for i, p in enumerate(five)]
    stop = [alone[0][0].tokens[5], alone[2][0].tokens[16], alone[3][0].tokens[27]]
    for batch_size in (2, 5):
        out = generate(model, five, interventions=acting, seed=range(5), stop=stop, batch_size=batch_size, max_new_tokens=n)
        events = out.events()
        for i, whole in enumerate(alone):
            end = next((j for j, token in enumerate(whole[0].tokens) if token in stop), n - 1)
            assert out[i].tokens == whole[0].tokens[: end + 1]
            truth = of_sequence(whole.events(), 0)
            truth = truth[truth["position"] < len(out[i].trace)].reset_index(drop=True)
            assert_same_events(of_sequence(events, i), truth)


def test_samples_of_a_prompt_are_treated_like_prompts_of_their_own(tiny_case: models.Case) -> None:
    model = models.use(tiny_case)
    for positions in ("decode", "all", 3):
        acting = [
            l2.Suppression(which="random", p=0.3, layers="all", positions=positions),
            l2.Suppression(which="random", how="swap", p=0.2, seed=1, layers="all", positions=positions),
        ]
        options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12}
        out = generate(model, [prompts()[0], [77]], n=3, interventions=acting, **options)  # [77] is read like a decode step
        assert out.events()["sequence"].nunique() == 6
        for i in (1, 5):
            alone = generate(model, [list(out[i].prompt_tokens)], seed=[out[i].seed], interventions=acting, **options)
            assert alone[0].tokens == out[i].tokens
            assert_same_events(of_sequence(out.events(), i), of_sequence(alone.events(), 0))


NEVER = {
    "suppress": lambda tau: l2.Suppression(tau),
    "swap": lambda tau: l2.Suppression(tau, how="swap"),
    "low": lambda tau: l2.Suppression(dict.fromkeys(tau, 0.0), which="low"),
    "random": lambda tau: l2.Suppression(which="random", p=0.0, layers="all"),
    "alrr": lambda tau: l2.ALRR(tau),
    "alrr fresh": lambda tau: l2.ALRR(tau, kv="fresh"),
    "rerun": lambda tau: l2.interventions.Rerun(p=0.0, layers="all"),
    "erss": lambda tau: l2.ERSS(tau, patience=1),
    "adaptive": lambda tau: l2.ALRR(l2.AdaptiveIQR(warmup=10**6), layers="all"),
}


@pytest.mark.parametrize("never", NEVER)
def test_what_never_triggers_changes_no_bit(model: Any, never: str) -> None:
    """Promise 1, with a cache and without; and the run says that nothing happened."""
    backend = backend_of(model)
    acting = NEVER[never](dict.fromkeys(range(backend.n_layers), float("inf")))
    tokens, mask = pad_left([ids("The quick brown fox jumps over the lazy dog."), ids("Hi there")], backend.device)

    def passes(intervener: Intervener | None) -> tuple[torch.Tensor, ...]:
        if intervener:
            zeros = torch.zeros(2, dtype=torch.long)
            batch = Batch(Rows.of(number=zeros, key=zeros, prompt_len=mask.sum(1) - 3, padding=mask.argmax(1)))
            intervener.begin(batch)
            intervener.next_pass(batch.next_pass(tokens.shape[1]))
        first, cache = backend.forward(tokens, mask, keep_cache=True, logits="all")
        if intervener:
            intervener.next_pass(batch.next_pass(1))
        longer = torch.cat([mask, mask.new_ones(2, 1)], 1)
        second, cache = backend.forward(tokens[:, -1:], longer, cache=cache, logits="all")
        if intervener:
            batch = Batch(Rows.of(number=zeros, key=zeros, prompt_len=mask.sum(1) - 3, padding=mask.argmax(1)))
            intervener.begin(batch)
            intervener.next_pass(batch.next_pass(tokens.shape[1]))
        return first, second, backend.forward(tokens, mask, logits="all")[0]

    with torch.no_grad():
        truth = passes(None)
        intervener = Intervener(backend, [acting])
        with pytest.warns(UserWarning, match="nothing was changed by"), intervener.attached():
            ours = passes(intervener)
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    assert intervener.log.live(), "there were tokens to judge"


RERUNS = {
    "first_pass": lambda layers: l2.ALRR(dict.fromkeys(layers, 1e-3), growth_eps=-9.0, blowup=1e9, positions="all"),
    "fresh": lambda layers: l2.ALRR(dict.fromkeys(layers, 1e-3), growth_eps=-9.0, blowup=1e9, positions="all", kv="fresh"),
    "chosen": lambda layers: l2.interventions.Rerun(p=0.9, layers=layers, positions="all", kv="fresh"),
}


@pytest.mark.parametrize("which", RERUNS)
def test_after_reruns_the_cache_is_that_of_plain_decoding(case: models.Case, which: str) -> None:
    """Promise 4: as long everywhere, and the same contents at every layer up to the first that was run again."""
    model = models.use(case)
    backend, first = backend_of(model), 3
    acting = RERUNS[which](range(first, backend.n_layers))
    tokens, mask = pad_left([ids("The quick brown fox jumps over the lazy dog."), ids("Hi there")], backend.device)

    def contents(intervener: Intervener | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        cache, width, zeros = None, tokens.shape[1], torch.zeros(2, dtype=torch.long)
        if intervener:
            batch = Batch(Rows.of(number=zeros, key=zeros, prompt_len=zeros + 1, padding=mask.argmax(1)))
            intervener.begin(batch)
        for start, end in ((0, width - 2), (width - 2, width - 1), (width - 1, width)):
            if intervener:
                intervener.next_pass(batch.next_pass(end - start))
            _, cache = backend.forward(tokens[:, start:end], mask[:, :end], cache=cache, keep_cache=True)
        if case.backend == "hooked":
            return [(entry.past_keys, entry.past_values) for entry in cache.entries]
        return [(layer.keys, layer.values) for layer in cache.layers]

    with torch.no_grad():
        truth = contents(None)
        intervener = Intervener(backend, [acting])
        with intervener.attached():
            ours = contents(intervener)
    assert intervener.log.counts().set_index("decision").loc["rerun", "n"] > 20
    real = mask.bool()
    for layer, (mine, plain) in enumerate(zip(ours, truth, strict=True)):
        for a, b in zip(mine, plain, strict=True):
            assert a.shape == b.shape
            if layer <= first:
                assert torch.equal(a, b)
            elif layer == first + 1 and not real.all():
                assert not torch.equal(a, b), "the first re-run should show in the layer behind it"


def test_an_event_holds_the_norm_before_and_after_and_the_trace_what_the_next_layer_reads(tiny_case: models.Case) -> None:
    """Promise 5, seen by a hook of the user's before ours and by the input of the next block."""
    model, acting = models.use(tiny_case), interventions(tiny_case, "alrr")
    out = generate(model, ragged(tiny_case), interventions=acting)
    for i, completion in enumerate(out):
        for event in of_sequence(out.events(), i).itertuples():
            assert float(completion.trace.at(event.layer)[event.position]) == pytest.approx(event.l2_norm_after, rel=1e-6)
    backend, seen = backend_of(model), {}
    layer = 2
    trace = out[0].trace
    backend.resid_post(layer).add_hook(lambda tensor, hook: seen.update(before=tensor.clone()))
    model.blocks[layer + 1].hook_resid_pre.add_hook(lambda tensor, hook: seen.update(after=tensor.clone()))
    try:
        l2.collect(model, trace, interventions=acting, progress=False)
    finally:
        model.reset_hooks()
    events = out.events().query("sequence == 0 and layer == @layer")
    assert events["fired"].any()
    norms = {name: stream[0].double().norm(dim=-1) for name, stream in seen.items()}
    for event in events.itertuples():
        assert float(norms["before"][event.position]) == pytest.approx(event.l2_norm_before, rel=1e-4)
        assert float(norms["after"][event.position]) == pytest.approx(event.l2_norm_after, rel=1e-4)


@pytest.mark.filterwarnings("ignore:nothing was changed by")  # a re-run that grows too little is judged all the same
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_decisions_are_taken_in_float32(tiny_case: models.Case, dtype: torch.dtype) -> None:
    """States that a hook of the user's puts there: their norms are over the largest float16, and closer together than half
    precision can tell."""
    model = l2.load_model(models.folder(tiny_case.architecture), backend=tiny_case.backend, dtype=dtype, device="cpu")
    ulp = torch.finfo(dtype).eps * 2**15
    states = torch.zeros(1, 13, 48, dtype=dtype)
    states[..., 5] = 49152
    states[0, :, 7] = 49152 + ulp * torch.tensor([0, *torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()])
    norms = states[0].double().norm(dim=-1)
    assert norms.to(dtype).unique().numel() < norms.unique().numel() == 12
    tau = {2: float(norms[1:].sort().values[5:7].mean())}
    high = {i for i in range(1, 13) if norms[i] > tau[2]}
    low = set(range(1, 13)) - high
    backend_of(model).resid_post(2).add_hook(lambda tensor, hook: states)
    everything: dict[str, Any] = {"patience": 1, "cooldown": 0, "p": 1.0, "cos_min": -1.0}
    for x, expected in [
        (l2.Suppression(tau, include_sinks=True), high),
        (l2.Suppression(tau, which="low", how="clamp", include_sinks=True), low),
        (l2.Suppression(tau, how="swap", include_sinks=True), high),
        (l2.ALRR(tau, include_sinks=True), high),
        (l2.ERSS(tau, include_sinks=True, **everything), low),
    ]:
        tokens = torch.arange(5, 18)[None]
        with torch.no_grad(), hooks(model, [x], prompt_lens=[1]) as log:
            model(tokens)
        events = log.events()
        assert set(events["position"]) == expected and len(expected) == 6
        assert events["l2_norm_before"].tolist() == pytest.approx([float(norms[i]) for i in events["position"]], rel=1e-6)


# Under somebody else's forward passes


@pytest.mark.parametrize("which", slow_but(QUICK, ["clamp", "swap mixed", "alrr", "erss authors", "all"]))
def test_plain_generate_inside_the_context_is_our_generate(tiny_case: models.Case, which: str) -> None:
    model, acting = models.use(tiny_case), interventions(tiny_case, which)
    seeds = [11, 12, 13]
    ours = generate(model, ragged(tiny_case), interventions=acting, seed=seeds, max_new_tokens=24)
    tokens, mask = pad_left(ragged(tiny_case), torch.device("cpu"))
    with torch.no_grad(), hooks(model, acting, seeds=seeds, stop_ids=()) as log:
        out = plain_generate(tiny_case, model, tokens, mask, 24)
    assert [row[tokens.shape[1] :] for row in out.tolist()] == [list(c.tokens) for c in ours]
    for i in range(3):
        assert_same_events(of_sequence(log.events(), i), of_sequence(ours.events(), i))


def plain_generate(case: models.Case, model: Any, tokens: Any, mask: Any, n: int, **options: Any) -> torch.Tensor:
    if not backend_of(model).decodes_without_us:
        pytest.skip("refused: the model's own generate doesn't see its cache")
    if case.backend == "hooked":  # takes its mask from the ids
        tokens = tokens.masked_fill(mask == 0, model.tokenizer.pad_token_id)
    padding = {"padding_side": "left"} if case.backend == "hooked" else {"attention_mask": mask}
    defaults = {"max_new_tokens": n, "do_sample": False, "stop_at_eos": False, "return_type": "tokens", "verbose": False}
    out: torch.Tensor = model.generate(tokens, **{**defaults, **options}, **padding)
    return out


def test_a_finished_row_is_left_alone_under_plain_generate(tiny_case: models.Case) -> None:
    model, acting = models.use(tiny_case), interventions(tiny_case, "all")
    seeds = [1, 2, 3]
    free = generate(model, ragged(tiny_case), interventions=acting, seed=seeds, max_new_tokens=30)
    stop = free[1].tokens[9]
    ours = generate(model, ragged(tiny_case), interventions=acting, seed=seeds, max_new_tokens=30, stop=[stop])
    tokens, mask = pad_left(ragged(tiny_case), torch.device("cpu"))
    with torch.no_grad(), hooks(model, acting, seeds=seeds, stop_ids=[stop]) as log:
        plain_generate(tiny_case, model, tokens, mask, 30, stop_at_eos=True, eos_token_id=stop)
    assert len({len(c.tokens) for c in ours}) > 1
    for i in range(3):
        assert_same_events(of_sequence(log.events(), i), of_sequence(ours.events(), i))


@pytest.mark.filterwarnings("ignore:nothing was changed by")
@pytest.mark.parametrize("which", ["clamp", "alrr fresh", "all"])
def test_run_with_hooks_is_collect(case: models.Case, which: str) -> None:
    model, acting = models.use(case), interventions(case, which)
    tokens = torch.tensor([prompts()[1][:24]])
    with torch.no_grad():
        with hooks(model, acting, prompt_lens=[6]) as log:
            truth = model(tokens)
        ours, logs = tokens, []
        model_hooks = [x.fwd_hooks(model, prompt_lens=[6]) for x in acting]
        ours = model.run_with_hooks(tokens, fwd_hooks=[pair for pairs in model_hooks for pair in pairs])
        logs = [pairs.log for pairs in model_hooks]
    assert torch.equal(ours, truth)
    l2.collect(model, tokens, prompt_lens=[6], interventions=acting, progress=False)
    fired = [int(found_log.events()["fired"].sum()) for found_log in logs]
    assert sum(fired) == log.events()["fired"].sum() > 0


def test_two_calls_of_generate_in_one_context_are_two_runs(tiny_case: models.Case) -> None:
    """State begins anew with every batch, sequences are counted on."""
    model, acting = models.use(tiny_case), interventions(tiny_case, "erss")
    tokens, mask = pad_left(ragged(tiny_case), torch.device("cpu"))
    with torch.no_grad(), hooks(model, acting, seeds=[1, 2, 3]) as log:
        first = plain_generate(tiny_case, model, tokens, mask, 12)
        second = plain_generate(tiny_case, model, tokens, mask, 12)
    assert torch.equal(first, second)
    for i in range(3):
        assert_same_events(of_sequence(log.events(), i), of_sequence(log.events(), i + 3))


# Any parameters


def kinds(n_layers: int) -> st.SearchStrategy[tuple[type, dict[str, Any]]]:
    """Classes and parameters; made inside the test, as beartype draws at random what it checks."""
    share = st.floats(0.0, 1.0)
    shared = {
        "thresholds": st.dictionaries(st.integers(0, n_layers - 1), st.floats(4.0, 24.0), min_size=1),  # the norms' range here
        "positions": st.sampled_from(["decode", "all", 3, 17]),
        "include_sinks": st.booleans(),
    }
    suppression = {
        "which": st.sampled_from(["high", "low", "random"]),
        "how": st.sampled_from(["scale", "clamp", "swap"]),
        "scale": st.floats(0.0, 1.5),
        "p": share,
        "seed": st.integers(0, 9),
    }
    alrr = {
        "max_iters": st.integers(1, 4),
        "growth_eps": st.floats(-0.5, 0.3),
        "blowup": st.floats(1.05, 3.0),
        "alpha": st.floats(0.1, 1.0),  # with less a state stays as it is, and its growth is a tie with growth_eps=0
        "kv": st.sampled_from(["first_pass", "fresh"]),
    }
    erss = {
        "patience": st.integers(1, 4),
        "beta": st.floats(-1.0, 1.0),
        "cooldown": st.integers(0, 4),
        "bank_size": st.integers(1, 4),
        "cos_min": st.floats(-0.5, 0.9),
        "gamma": st.floats(0.5, 1.5),
        "p": share,
        "mix": st.sampled_from(["add", "interpolate", "authors"]),
        "towards": st.sampled_from(["closest", "random", "direction"]),
    }
    options = {l2.Suppression: suppression, l2.ALRR: alrr, l2.ERSS: erss}
    return st.one_of(*(st.tuples(st.just(kind), st.fixed_dictionaries(shared | own)) for kind, own in options.items()))


def of_effect(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Without the parameters of a suppression that do nothing, which are refused."""
    if kind is not l2.Suppression:
        return options
    drawn = options["which"] == "random"
    idle = {"scale": options["how"] != "scale", "p": not drawn, "seed": not drawn and options["how"] != "swap"}
    return {name: value for name, value in options.items() if not idle.get(name)}


ZEROED = (
    l2.Suppression,
    {"thresholds": {3: 14.5}, "which": "high", "how": "scale", "scale": 0.0, "positions": 3, "include_sinks": True},
)
"""Takes the direction of some states, over half of the prompt's among them."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:nothing was changed by", "ignore:.*tokens were raised over")
@example(chosen=[ZEROED, (l2.Suppression, {"thresholds": {3: 11.0}, "which": "low", "how": "swap", "positions": 17})], start=7)
@example(chosen=[ZEROED, (l2.Suppression, {"thresholds": {3: 11.0}, "which": "low", "how": "clamp"})], start=7)
@example(chosen=[ZEROED, (l2.ERSS, {"thresholds": {3: 13.0}, "patience": 1, "cos_min": -0.5, "p": 1.0})], start=7)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(kinds(6), min_size=1, max_size=3), start=st.integers(2, 30))
def test_any_parameters_do_what_the_oracle_does(chosen: list[tuple[type, dict[str, Any]]], start: int) -> None:
    acting: list[Any] = [kind(**of_effect(kind, options)) for kind, options in chosen]
    model, plain = models.use(models.Case("llama", "bridge")), models.hugging_face("llama")
    tokens = [(37 * i) % 997 + 5 for i in range(40)]
    with torch.no_grad(), hooks(model, acting, prompt_lens=[start], seeds=[4]) as log:
        logits = model(torch.tensor([tokens]))[0]
    steps = [
        step | {"layers": sorted(x.thresholds), "include_sinks": x.include_sinks}
        for step, x in zip(as_steps(acting, tokens, 6, 4), acting, strict=True)
    ]
    truth = oracles.intervened(plain, tokens, start, steps)
    assume(not any("ties" in step for step in steps))  # which state is the closest is for rounding to say
    assert (logits - truth.logits).abs().max() < 1e-3 * truth.logits.abs().max()
    ours = of_sequence(log.events(), 0)
    if truth.events or len(ours):
        assert_same_events(ours, oracle_events(truth.events, log.names))
