from .rerun import Rerun as Rerun
from .vectors import mean_difference as mean_difference
from .words import thinking_tokens as thinking_tokens
