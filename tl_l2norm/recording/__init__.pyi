from .completions import Completion as Completion
from .completions import Generations as Generations
from .importance import token_importance as token_importance
from .pressure import optimisation_pressure as optimisation_pressure
from .reading_signals import read_signals as read_signals
from .signals import Signals as Signals
from .think_on import ThinkOn as ThinkOn
