"""How good a model is: bits per byte, held-out tasks, and baselines to compare with.

Nothing here imports the engine: what is measured is passed in as a function.
"""
