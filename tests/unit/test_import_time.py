import json
import subprocess
import sys


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, json, tl_l2norm, tl_l2norm.cli; tl_l2norm.cli._parser(); print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    assert not loaded & {"torch", "transformers", "transformer_lens", "pandas", "plotly", "numpy", "sae_lens"}
