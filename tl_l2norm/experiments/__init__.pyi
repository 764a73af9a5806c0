from .suppression import suppress_and_ask as suppress_and_ask
