"""Whether an answer, in words or in symbols, is the one that is known to be right."""
