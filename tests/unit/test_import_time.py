import json
import subprocess
import sys


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, json, tl_l2norm, tl_l2norm.cli; tl_l2norm.cli._parser(); print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & {"torch", "transformers", "transformer_lens", "pandas", "plotly", "numpy", "sae_lens"}


def test_every_public_name_is_there() -> None:
    import tl_l2norm as l2

    assert sorted(l2.__all__) == l2.__all__ or set(l2.__all__) == set(l2._HOME) | {"widgets"}
    for name in l2.__all__:
        assert getattr(l2, name) is not None
    assert set(l2.__all__) <= set(dir(l2))
