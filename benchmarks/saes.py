"""What encoding costs with our reader of SAEs, against SAELens' own on the same files; needs SAELens.

python -m benchmarks.saes [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from benchmarks.run import Row, seconds
from tl_l2norm.core.tables import render_table
from tl_l2norm.models.sources import bundled_folder
from tl_l2norm.saes.config import CONFIG_FILE, Kind, SaeConfig
from tl_l2norm.saes.reader import WEIGHTS_FILE, Sae, read_sae


@contextmanager
def random_sae(kind: Kind, d_in: int, d_sae: int) -> Iterator[Path]:
    """The files of an SAE with random weights."""
    torch.manual_seed(0)
    sae = Sae(SaeConfig(kind=kind, d_in=d_in, d_sae=d_sae, k=32 if kind == "topk" else None))
    config = {"architecture": kind, "d_in": d_in, "d_sae": d_sae, "metadata": {"sae_lens_version": "6.54.0"}}
    with tempfile.TemporaryDirectory() as name:
        Path(name, CONFIG_FILE).write_text(json.dumps({**config, **({"k": 32} if kind == "topk" else {})}))
        save_file(dict(sae.state_dict()), Path(name, WEIGHTS_FILE))
        yield Path(name)


def row(what: str, folder: Path, n_states: int, repeats: int) -> Row:
    from sae_lens import SAE

    ours, theirs = read_sae(folder), SAE.load_from_disk(folder, dtype="float32")
    torch.manual_seed(0)
    states = 10 * torch.randn(n_states, ours.cfg.d_in)
    with torch.no_grad():
        found, plain = seconds(lambda: ours.encode(states), lambda: theirs.encode(states), repeats=repeats)
        acts = theirs.encode(states)
        differ = float((ours.encode(states) - acts).abs().max() / acts.abs().max())
    names = {"what": what, "states": n_states, "ours ms": 1e3 * found, "SAELens ms": 1e3 * plain, "ratio": found / plain}
    return {**names, "largest difference": differ}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    rows = [row("tiny-reasoner, layer 9", bundled_folder("tiny-reasoner") / "saes" / "layer_9", n, repeats) for n in (64, 2048)]
    for kind in ("standard", "topk", "jumprelu", "gated"):
        with random_sae(kind, 2304, 16384) as folder:
            rows += [row(f"2304 x 16384, {kind}", folder, n, repeats) for n in (1, 256)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {repeats}")
    print(render_table(pd.DataFrame(rows), width=140))


if __name__ == "__main__":
    main()
