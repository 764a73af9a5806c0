"""The tokenizer's side: sequences, prompts, where a thought, an answer and a turn end. Never a model.

Imports from: core.
"""
