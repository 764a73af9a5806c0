from .load import load_engine as load_engine
from .vllm import VLLMEngine as VLLMEngine
