from .evaluate import evaluate_saes as evaluate_saes
from .load import untrained_saes as untrained_saes
from .train import SaeRecipe as SaeRecipe
