from .sources import reasoning_gym_problems as reasoning_gym_problems
from .verifiers import is_correct as is_correct
