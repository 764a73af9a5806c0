"""The families of problems that we make."""
