from .completions import Completion as Completion
from .completions import Generations as Generations
from .pressure import optimisation_pressure as optimisation_pressure
