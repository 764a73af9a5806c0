"""Who a model is: by its weights, tokenizer, template and hooks, never by its name."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tl_l2norm as l2
from tests import models
from tests.traces import trace_of
from tl_l2norm.core.identity import UNKNOWN, same_weights
from tl_l2norm.core.trace import require_comparable
from tl_l2norm.experiments.selfcheck import selfcheck
from tl_l2norm.models.backends import backend_of
from tl_l2norm.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from tl_l2norm.models.hooks import foreign_hooks

TEXT = "one two three four"


def fingerprint(model: Any) -> str:
    return backend_of(model).fingerprint


def saved(place: Path, model: Any) -> Path:
    model.save_pretrained(place)
    models.tokenizer().save_pretrained(place)
    return place


def _one_step(model: Any) -> None:
    """Of fine-tuning, at a usual rate."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.arange(5, 25)[None]
    model(tokens, labels=tokens).loss.backward()
    optimiser.step()


def _merged_lora(model: Any) -> None:
    weight = model.model.layers[3].self_attn.v_proj.weight
    weight.data += 1e-3 * torch.randn(len(weight), 1) @ torch.randn(1, weight.shape[1])


def _without_a_head(model: Any) -> None:
    model.model.layers[2].self_attn.o_proj.weight.data[:, 12:24] = 0


def _one_value(model: Any) -> None:
    model.model.layers[4].mlp.down_proj.weight.data[7, 3] *= 1.0001


def _one_row(model: Any) -> None:
    model.model.embed_tokens.weight.data[3_137] += 0.01


def _layers_exchanged(model: Any) -> None:
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]


def _shuffled(model: Any) -> None:
    """The same values in another order: a control that some use."""
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.flatten()[torch.randperm(weight.numel())].reshape(weight.shape)


def _other_base(model: Any) -> None:
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}


def _other_eps(model: Any) -> None:
    model.config.rms_norm_eps = 1e-5


CHANGES: list[Callable[[Any], None]] = [
    _one_step,
    _merged_lora,
    _without_a_head,
    _one_value,
    _one_row,
    _layers_exchanged,
    _shuffled,
    _other_base,
    _other_eps,
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A llama and what is made of it, all in folders of one name."""
    saved_as = {"as it was": l2.load_model(models.folder("llama"))}
    for change in CHANGES:
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_pretrained(models.folder("llama"), dtype=torch.float32)
        change(model)
        place = tmp_path_factory.mktemp("run") / "checkpoint-500"
        saved_as[change.__name__] = l2.load_model(saved(place, model))
    return saved_as


def test_each_change_of_a_checkpoint_is_seen(checkpoints: dict[str, Any]) -> None:
    hashes = {name: fingerprint(model) for name, model in checkpoints.items()}
    assert UNKNOWN not in hashes.values()
    for (first, a), (second, b) in itertools.combinations(hashes.items(), 2):
        assert a != b, f"{first} and {second} look the same"
    traces = {name: l2.collect(model, TEXT, progress=False)[0] for name, model in checkpoints.items()}
    assert len({trace.provenance.model for trace in traces.values()}) == 2, "all but the first are called checkpoint-500"
    for first, second in itertools.combinations(traces.values(), 2):
        assert not first.provenance.comparable(second.provenance)


@pytest.mark.slow
def test_the_same_weights_are_the_same_wherever_they_lie(tmp_path: Path, checkpoints: dict[str, Any]) -> None:
    before = checkpoints["as it was"]
    moved = saved(tmp_path / "moved", models.hugging_face("llama"))
    other = l2.load_model(moved)
    assert other.cfg.model_name != before.cfg.model_name
    assert fingerprint(other) == fingerprint(before)
    code = f"""
import tl_l2norm as l2
from tl_l2norm.models.backends import backend_of
print(backend_of(l2.load_model({str(moved)!r})).fingerprint)
"""
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == fingerprint(before)
    traces = [l2.collect(m, [TEXT, "five"], batch_size=size, progress=False)[0] for m, size in ((before, 1), (other, 2))]
    require_comparable(traces)
    options: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True, "progress": False}
    tau = l2.quantile_thresholds(l2.generate(before, TEXT, **options).traces, 0.5)
    out = l2.generate(other, TEXT, interventions=[l2.Suppression(tau)], **options)
    assert len(out.events()), "thresholds of the same weights under another name are taken"


def test_thresholds_and_selection_tell_checkpoints_of_one_name_apart(checkpoints: dict[str, Any]) -> None:
    first, second = checkpoints["_one_step"], checkpoints["_one_value"]
    options: dict[str, Any] = {"max_new_tokens": 4, "n": 2, "temperature": 1.0, "ignore_eos": True, "progress": False}
    tau = l2.quantile_thresholds(l2.generate(first, TEXT, **options).traces, 0.5)
    with pytest.raises(ValueError, match=r"thresholds are of checkpoint-500 .*weights .* the model is checkpoint-500"):
        l2.generate(second, TEXT, interventions=[l2.Suppression(tau)], **options)
    with pytest.raises(ValueError, match="not comparable"):
        l2.select(l2.generate(second, TEXT, **options), by="event_area", thresholds=tau)
    with pytest.raises(ValueError, match=r"trace 1 is of checkpoint-500 .* but trace 0 is of checkpoint-500"):
        require_comparable([l2.collect(m, TEXT, progress=False)[0] for m in (first, second)])


@pytest.mark.parametrize("edit", ["in place", "through data", "by a new tensor"])
def test_an_edit_in_memory_is_seen_and_so_is_its_undoing(tiny: Any, edit: str) -> None:
    before, weight = fingerprint(tiny), next(p for p in tiny.blocks[1].mlp.parameters() if p.ndim > 1)
    kept = weight.detach().clone()
    if edit == "in place":
        with torch.no_grad():
            weight[2, 1] += 0.5
    elif edit == "through data":
        weight.data[2, 1] += 0.5
    else:
        weight.data = kept + 0.5
    assert fingerprint(tiny) != before
    weight.data = kept
    assert fingerprint(tiny) == before


@pytest.mark.skipif(not models.HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_both_backends_of_one_file_are_comparable_and_of_two_files_are_not(
    architecture: str, checkpoints: dict[str, Any]
) -> None:
    bridge, hooked = (models.use(models.Case(architecture, name)) for name in ("bridge", "hooked"))
    ours, theirs = (l2.collect(model, TEXT, progress=False)[0].provenance for model in (bridge, hooked))
    assert ours.comparable(theirs) and theirs.comparable(ours)
    if architecture == "llama":
        for name in ("_one_step", "_merged_lora", "_without_a_head", "_one_value"):
            other = l2.collect(checkpoints[name], TEXT, progress=False)[0].provenance
            assert not theirs.comparable(other), name


def test_memory_layout_is_not_part_of_it() -> None:
    torch.manual_seed(0)
    block = torch.nn.Module()
    block.W_in = torch.nn.Parameter(torch.randn(4, 12, 7))
    before = model_fingerprint(block, [block], {})
    block.W_in.data = block.W_in.data.transpose(0, 2).contiguous().transpose(0, 2)
    assert not block.W_in.is_contiguous() and model_fingerprint(block, [block], {}) == before
    block.W_in.data = block.W_in.data.transpose(0, 1).contiguous().reshape(4, 12, 7)
    other = model_fingerprint(block, [block], {})
    assert other != before and same_weights(other, before, same_kind=False), "another order, the same values"


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.complex64]
)
def test_every_single_value_counts_in_every_dtype(dtype: torch.dtype) -> None:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.randn(3, 5).mul(9).to(dtype), requires_grad=False)
    before = model_fingerprint(module, [], {})
    for i, j in itertools.product(range(3), range(5)):
        bits = module.weight.data.view(torch.uint8)
        bits[i, j * dtype.itemsize] ^= 1
        assert model_fingerprint(module, [], {}) != before
        bits[i, j * dtype.itemsize] ^= 1
    assert model_fingerprint(module, [], {}) == before


def test_weights_that_are_not_there_are_unknown() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(3, 3)
    assert model_fingerprint(module, [module], {}) == UNKNOWN


def of_linear(bias: torch.Tensor | None, kept_as: str) -> str:
    """Fingerprint of an unembedding that keeps this bias so."""
    module = torch.nn.Linear(3, 4, bias=False)
    torch.nn.init.ones_(module.weight)
    if kept_as == "parameter":
        module.bias = None if bias is None else torch.nn.Parameter(bias)
    else:
        del module.bias
        module.register_buffer("bias", bias, persistent=kept_as == "buffer")
    return model_fingerprint(module, [], {})


@pytest.mark.parametrize("kept_as", ["parameter", "buffer", "derived buffer"])
def test_a_bias_of_zeros_counts_nowhere_and_any_other_does(kept_as: str) -> None:
    """TransformerLens 3 gives an unembedding without a bias one of zeros as a parameter, TransformerLens 4 as a buffer."""
    plain = of_linear(None, "parameter")
    assert of_linear(torch.zeros(4), kept_as) == plain
    assert of_linear(torch.eye(4)[3], kept_as) != plain


def test_where_a_fingerprint_is_not_known_the_name_decides() -> None:
    known = trace_of([[1.0]], provenance={"fingerprint": "a-b"}).provenance
    unknown = dataclasses.replace(known, fingerprint=UNKNOWN)
    renamed = dataclasses.replace(unknown, model="another")
    assert known.comparable(unknown) and unknown.comparable(known) and not known.comparable(renamed)


def test_files_from_before_there_were_fingerprints_are_read_with_a_warning(tmp_path: Path) -> None:
    l2.save_traces(tmp_path, [trace_of([[1.0, 2.0]])])
    index = json.loads((tmp_path / "traces.json").read_text())
    index["version"] = 1
    for name in ("fingerprint", "tokenizer", "chat_template", "foreign_hooks"):
        del index["traces"][0]["provenance"][name]
    (tmp_path / "traces.json").write_text(json.dumps(index))
    with pytest.warns(UserWarning, match="known by name alone"):
        old = l2.load_traces(tmp_path)[0]
    assert old.provenance.fingerprint == UNKNOWN and old.provenance.comparable(trace_of([[1.0]]).provenance)


def test_tokenizer_and_template_are_told_apart(tmp_path: Path) -> None:
    model = l2.load_model(models.folder("qwen3"))
    first = l2.collect(model, TEXT, progress=False)[0].provenance
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer("a text", padding="max_length", max_length=30, truncation=True)
    assert l2.collect(model, TEXT, progress=False)[0].provenance == first, "what a call pads to is no part of a tokenizer"
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    second = l2.collect(model, TEXT, progress=False)[0].provenance
    assert second.chat_template != first.chat_template and second.tokenizer == first.tokenizer
    model.tokenizer.add_tokens(["<new>"])
    third = l2.collect(model, TEXT, progress=False)[0].provenance
    assert third.tokenizer != first.tokenizer
    assert first.comparable(third), "norms are of weights and tokens"


def test_hooks_of_others_are_counted_and_ours_are_not(tiny: Any) -> None:
    def hooks_in(trace: l2.Trace) -> int:
        return trace.provenance.foreign_hooks

    options: dict[str, Any] = {"max_new_tokens": 3, "ignore_eos": True, "progress": False}
    tau = {2: 1.0}
    ours = l2.generate(tiny, TEXT, interventions=[l2.Suppression(tau)], **options)
    assert hooks_in(ours[0].trace) == 0
    point, block = backend_of(tiny).resid_post(2), tiny.blocks[1]
    point.add_hook(lambda stream, hook: stream * 0.5)
    handle = block.register_forward_pre_hook(lambda module, args: None)
    try:
        assert hooks_in(l2.collect(tiny, TEXT, progress=False)[0]) == 2
        assert hooks_in(l2.generate(tiny, TEXT, **options)[0].trace) == 2
    finally:
        tiny.reset_hooks()
        handle.remove()
    with pytest.warns(UserWarning, match="nothing was changed"), l2.Suppression(tau).hooks(tiny):
        assert hooks_in(l2.collect(tiny, TEXT, progress=False)[0]) >= 1, "not of this run, and not among its interventions"
    selfcheck(tiny)  # after which transformers leaves hooks of its own
    assert hooks_in(l2.collect(tiny, TEXT, progress=False)[0]) == 0


def test_an_sae_in_a_hook_points_place_and_hooks_inside_it_count() -> None:
    class Sae(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_dec = torch.nn.Parameter(torch.zeros(2, 2))
            self.inner = torch.nn.Identity()

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Sae())
    assert foreign_hooks(model) == 1
    model[1].inner.register_forward_hook(lambda *_: None)
    assert foreign_hooks(model, model) == 2


def _in_place(change: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], None]:
    def changed(weight: torch.Tensor) -> None:
        weight.data.copy_(change(weight.data))

    return changed


@pytest.mark.skipif(not models.HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize(
    "change", [lambda w: -w, lambda w: 2 * w, lambda w: w + 1e-3], ids=["negated", "doubled", "with a little more"]
)
@pytest.mark.parametrize(
    "part", ["embed_tokens", "norm", "lm_head", "layers.1.input_layernorm", "layers.2.self_attn.q_proj", "layers.3.mlp.up_proj"]
)
def test_an_edit_shows_on_the_other_backend(
    part: str, change: Callable[[torch.Tensor], Any], tiny_pair: tuple[Any, Any]
) -> None:
    bridge, hooked = tiny_pair
    theirs, before = fingerprint(hooked), fingerprint(bridge)
    assert same_weights(before, theirs, same_kind=False)
    names = {name.replace("._original_component", ""): p for name, p in bridge.original_model.named_parameters()}
    weight = next(p for name, p in names.items() if name.removeprefix("model.") == f"{part}.weight")
    kept = weight.detach().clone()
    _in_place(change)(weight)
    try:
        assert not same_weights(fingerprint(bridge), theirs, same_kind=False)
    finally:
        weight.data.copy_(kept)
    assert fingerprint(bridge) == before


@pytest.fixture(scope="module")
def tiny_pair() -> tuple[Any, Any]:
    """A llama of our own to change, on both backends."""
    return tuple(l2.load_model(models.folder("llama"), backend=b, device="cpu") for b in ("bridge", "hooked"))  # type: ignore


@pytest.mark.skipif(not models.HAS_HOOKED, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("setting", [{"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}])
def test_other_settings_of_the_same_weights_show_on_the_other_backend(
    tmp_path: Path, setting: dict[str, Any], tiny_pair: tuple[Any, Any]
) -> None:
    config = copy.deepcopy(models.hugging_face("llama").config)
    for name, value in setting.items():
        setattr(config, name, value)
    other = transformers.AutoModelForCausalLM.from_config(config)
    other.load_state_dict(models.hugging_face("llama").state_dict())
    place = saved(tmp_path / "other", other)
    bridge, hooked = (fingerprint(l2.load_model(place, backend=b, device="cpu")) for b in ("bridge", "hooked"))  # type: ignore
    assert same_weights(bridge, hooked, same_kind=False)
    first = [fingerprint(model) for model in tiny_pair]
    for a, b in itertools.product(first, (bridge, hooked)):
        assert not same_weights(a, b, same_kind=False)


def _mixture(architecture: str) -> Any:
    common = {
        **models._SMALL,
        "num_hidden_layers": 2,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    if architecture == "glm4":
        return transformers.Glm4MoeForCausalLM(transformers.Glm4MoeConfig(**common, head_dim=16))
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**{**common, "num_key_value_heads": 4}, **latent))


@pytest.mark.parametrize("architecture", ["glm4", "deepseek"])
def test_a_buffer_that_routes_is_part_of_the_weights(architecture: str) -> None:
    model = _mixture(architecture).eval()
    before = model_fingerprint(model, model.model.layers, {})
    model(torch.arange(5, 25)[None])
    assert model_fingerprint(model, model.model.layers, {}) == before, "a pass changes nothing"
    bias = next(b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    bias[0] += 5
    assert model_fingerprint(model, model.model.layers, {}) != before


@pytest.mark.parametrize("case", models.TINY, ids=str)
def test_rotations_and_scales_edited_in_place_are_seen_and_use_is_not(case: models.Case) -> None:
    model = l2.load_model(models.folder(case.architecture), backend=case.backend, device="cpu")  # type: ignore[arg-type]
    before = fingerprint(model)
    l2.collect(model, [list(range(5, 200))], progress=False)
    model.to(torch.float64).to(torch.float32)
    assert fingerprint(model) == before == fingerprint(models.lens(case))
    derived = ("inv_freq", "embed_scale", "rotary_cos")
    for name, buffer in backend_of(model)._weights.named_buffers():
        if name.endswith(derived) and "original" not in name:
            buffer.mul_(0.5)
            assert fingerprint(model) != before, name
            buffer.mul_(2)


def _times_two(module: Any) -> None:
    own = module.forward
    module.forward = lambda *args, **kwargs: 2 * own(*args, **kwargs)


def _times_three(module: Any) -> None:
    own = module.forward
    module.forward = lambda *args, **kwargs: 3 * own(*args, **kwargs)


def _of(kind: str, name: str, value: float) -> Callable[[Any], None]:
    def change(weights: Any) -> None:
        module = next(m for n, m in weights.named_modules() if n.endswith(kind) and isinstance(getattr(m, name, None), float))
        setattr(module, name, value)

    return change


NUMBERS: dict[str, dict[str, Callable[[Any], None]]] = {
    "bridge": {
        "eps": _of("post_attention_layernorm", "variance_epsilon", 0.1),
        "rotation": _of("rotary_emb", "attention_scaling", 1.5),
        "scale": _of("self_attn", "scaling", 1.0),
        "forward": lambda weights: _times_two(weights.model.layers[1].mlp.original_component),
        "another forward": lambda weights: _times_three(weights.model.layers[1].mlp.original_component),
    },
    "hooked": {
        "eps": lambda model: setattr(model.blocks[1].ln1, "eps", 0.1),
        "scale": lambda model: setattr(model.blocks[0].attn, "attn_scale", 1.0),
        "forward": lambda model: _times_two(model.blocks[1].mlp),
        "another forward": lambda model: _times_three(model.blocks[1].mlp),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in models.TINY if c.architecture == "llama"], ids=str)
def test_numbers_beside_the_weights_and_code_in_their_place_are_seen(case: models.Case) -> None:
    place, names = models.folder(case.architecture), {}
    for name, change in {"nothing": lambda weights: None, **NUMBERS[case.backend]}.items():
        model = l2.load_model(place, backend=case.backend, device="cpu")  # type: ignore[arg-type]
        before = l2.collect(model, [[1, 5, 6, 7]], progress=False)[0]
        change(backend_of(model)._weights)
        after = l2.collect(model, [[1, 5, 6, 7]], progress=False)[0]
        names[name] = fingerprint(model)
        assert (
            (name == "nothing")
            == torch.equal(before.l2_norms, after.l2_norms)
            == before.provenance.comparable(after.provenance)
        )
        l2.generate(model, [[1, 5, 6], [1, 8]], max_new_tokens=8, ignore_eos=True, progress=False)
        model(torch.tensor([[1, 2, 3]]))
        assert fingerprint(model.to(torch.float64).to(torch.float32)) == names[name], "use and moves change nothing"
    assert len({name: hash for hash, name in names.items()}) == len(names)
    assert {name.partition("-")[0] for name in names.values()} == {names["nothing"].partition("-")[0]}


def test_dynamic_rotations_change_with_use_and_the_model_does_not() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = transformers.LlamaConfig(**{**models._SMALL, "max_position_embeddings": 16, "rope_parameters": rope})
    model = transformers.LlamaForCausalLM(config).eval()
    before, table = model_fingerprint(model, [], {}), model.model.rotary_emb.inv_freq.clone()
    model(torch.arange(5, 45)[None])
    assert not torch.equal(model.model.rotary_emb.inv_freq, table) and model_fingerprint(model, [], {}) == before


def _lowercase(fast: Any) -> None:
    from tokenizers import normalizers

    fast.normalizer = normalizers.Lowercase()


def _with_a_first_token(fast: Any) -> None:
    from tokenizers import processors

    fast.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])


def _by_whole_words(fast: Any) -> None:
    from tokenizers import pre_tokenizers

    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


@pytest.mark.parametrize("change", [_lowercase, _with_a_first_token, _by_whole_words])
def test_a_step_of_a_tokenizer_changed_in_place_is_seen(change: Callable[[Any], None]) -> None:
    tokenizer = copy.deepcopy(models.tokenizer())
    before = tokenizer_fingerprint(tokenizer)
    change(tokenizer.backend_tokenizer)
    assert tokenizer_fingerprint(tokenizer) != before == tokenizer_fingerprint(models.tokenizer())


def test_traces_under_another_number_of_hooks_are_not_comparable(tiny: Any) -> None:
    plain = l2.collect(tiny, TEXT, progress=False)[0]
    backend_of(tiny).resid_post(2).add_hook(lambda stream, hook: stream * 0)
    try:
        ablated = l2.collect(tiny, TEXT, progress=False)[0]
    finally:
        tiny.reset_hooks()
    assert not plain.provenance.comparable(ablated.provenance)
    with pytest.raises(ValueError, match=r"1 hooks of others.*not comparable, nor those with other numbers of foreign hooks"):
        require_comparable([plain, ablated])
