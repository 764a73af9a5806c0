from .arms_file import load_arms as load_arms
from .calibration import split_problems as split_problems
from .curve import selection_curve as selection_curve
from .evaluation_results import Results as Results
from .samples import sample_thinking as sample_thinking
from .suppression import suppress_and_ask as suppress_and_ask
from .thought_texts import replaced_thoughts as replaced_thoughts
