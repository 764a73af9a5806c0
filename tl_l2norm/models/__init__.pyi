from .backends import backend_of as backend_of
from .sources import bundled_file as bundled_file
from .twin import random_twin as random_twin
