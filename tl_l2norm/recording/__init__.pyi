from .completions import Completion as Completion
from .completions import Generations as Generations
from .importance import token_importance as token_importance
from .pressure import optimisation_pressure as optimisation_pressure
from .think_on import ThinkOn as ThinkOn
