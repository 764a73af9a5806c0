from .backends import backend_of as backend_of
from .twin import random_twin as random_twin
