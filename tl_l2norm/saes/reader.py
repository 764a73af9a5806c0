"""Read SAEs in SAELens' format and run them, without SAELens.

`encode` and `decode` are SAELens' own to rounding. Unlike there nothing is kept between calls: where the input is normalised,
`decode` takes the states that were encoded and works their scale out again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tl_l2norm.core.errors import InputError, MissingFile, Unsupported
from tl_l2norm.saes.config import CONFIG_FILE, SaeConfig, read_sae_config

WEIGHTS_FILE = "sae_weights.safetensors"

_EPS = 1e-5  # SAELens' own, beside the standard deviation
_BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}


class Sae(nn.Module):
    """A sparse autoencoder for inference. Made from a configuration it has the weights that training starts from.

    Parameters, under SAELens' names: `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_in], `b_dec` [d_in], and [d_sae] each: `b_enc`
    (standard, topk, jumprelu), `threshold` (jumprelu), `b_gate`, `r_mag`, `b_mag` (gated).
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter
    b_gate: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter

    def __init__(self, cfg: SaeConfig, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cfg = cfg
        W_dec = nn.init.kaiming_uniform_(torch.empty(cfg.d_sae, cfg.d_in, dtype=dtype))
        weights = {"b_dec": torch.zeros(cfg.d_in, dtype=dtype), "W_dec": W_dec, "W_enc": W_dec.T.clone()}
        weights |= {name: torch.zeros(cfg.d_sae, dtype=dtype) for name in _BIASES[cfg.kind]}
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.contiguous(), requires_grad=False))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights; states are encoded in it."""
        return self.W_enc.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations of states."""
        x = self._normalise(x.to(self.dtype))
        if self.cfg.apply_b_dec_to_input:
            x = x - self.b_dec
        if self.cfg.kind == "gated":  # two products, as in SAELens: to scale the one of the gate would round otherwise
            is_open = x @ self.W_enc + self.b_gate > 0
            return is_open * torch.relu(x @ (self.W_enc * self.r_mag.exp()) + self.b_mag)
        hidden = x @ self.W_enc + self.b_enc
        if self.cfg.kind == "jumprelu":
            return torch.relu(hidden) * (hidden > self.threshold)
        return self._top_k(hidden) if self.cfg.kind == "topk" else torch.relu(hidden)

    def decode(
        self, feature_acts: Float[Tensor, "*batch d_sae"], states: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """States of feature activations.

        Args:
            feature_acts: from `encode`.
            states: what was encoded; needed where the input is normalised, as the scale of the output is theirs.

        Raises:
            ValueError: the input is normalised and no states are given.
        """
        if self.cfg.rescale_acts_by_decoder_norm:
            feature_acts = feature_acts * (1 / self.W_dec.norm(dim=-1))
        out = feature_acts @ self.W_dec + self.b_dec
        if self.cfg.normalize_activations == "none":
            return out
        if states is None:
            raise InputError(
                f"this SAE reads normalised states ({self.cfg.normalize_activations}): decode(feature_acts, states) takes the "
                "states that were encoded as well"
            )
        return self._denormalise(out, states.to(self.dtype))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """States as they are reconstructed."""
        return self.decode(self.encode(x), x)

    def extra_repr(self) -> str:
        """What stands in its repr."""
        return f"{self.cfg.kind}, {self.cfg.d_in} -> {self.cfg.d_sae}, {self.cfg.metadata.hook_name}"

    def _top_k(self, hidden: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        assert self.cfg.k is not None, "checked by the configuration"
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden = hidden * self.W_dec.norm(dim=-1)
        values, latents = torch.topk(hidden, self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(hidden).scatter_(-1, latents, values.relu())

    def _normalise(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        if self.cfg.normalize_activations == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            return x / (x.std(dim=-1, keepdim=True) + _EPS)
        if self.cfg.normalize_activations == "constant_norm_rescale":
            return x * self._to_constant_norm(x)
        return x

    def _denormalise(self, out: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        if self.cfg.normalize_activations == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            return out * (x - mean).std(dim=-1, keepdim=True) + mean
        return out / self._to_constant_norm(x)

    def _to_constant_norm(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
        factor: Tensor = self.cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        return factor


def read_sae(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Sae:
    """The SAE in a folder in SAELens' format: `cfg.json` and `sae_weights.safetensors`, of SAELens 6 or before.

    Raises:
        FileNotFoundError: one of the files isn't there.
        ValueError: a file that is broken, files that don't belong together, or an SAE that can't be read, with what and why.
    """
    folder = Path(folder)
    cfg = read_sae_config(folder)
    weights = _read_weights(folder / WEIGHTS_FILE, cfg, device)
    with torch.device("meta"):
        sae = Sae(cfg, dtype=dtype)
    sae.load_state_dict({name: weight.to(dtype).contiguous() for name, weight in weights.items()}, assign=True)
    return sae.requires_grad_(False).eval()


def _read_weights(file: Path, cfg: SaeConfig, device: str | torch.device) -> dict[str, Tensor]:
    if not file.is_file():
        others = ", ".join(sorted(path.name for path in file.parent.iterdir()))
        raise MissingFile(f"no {file.name} beside {CONFIG_FILE} in {file.parent}: there are {others}")
    try:
        weights = load_file(file, device=str(device))
    except SafetensorError as error:
        raise InputError(f"{file} can't be read as safetensors: {error}") from error
    if "log_threshold" in weights:  # of old JumpReLU checkpoints
        weights["threshold"] = weights.pop("log_threshold").exp()
    scaling = weights.pop("scaling_factor", None)
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise Unsupported(f"{file}: the SAE has a fine-tuned scaling_factor for each latent, which SAELens 6 dropped")
    shapes = {"W_enc": (cfg.d_in, cfg.d_sae), "W_dec": (cfg.d_sae, cfg.d_in), "b_dec": (cfg.d_in,)}
    shapes |= dict.fromkeys(_BIASES[cfg.kind], (cfg.d_sae,))
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    if wrong := sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)):
        told = "; ".join(f"{n} is {given.get(n, 'not there')}, expected {shapes.get(n, 'none')}" for n in wrong)
        raise InputError(f"{file} doesn't hold the weights of the {cfg.kind} SAE in {CONFIG_FILE}: {told}")
    if broken := sorted(name for name, weight in weights.items() if weight.isnan().any()):
        raise InputError(f"{file} holds NaN in {', '.join(broken)}: it is broken")
    return weights
