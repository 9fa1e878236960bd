"""Triton kernels, one family per file. Arithmetic is float32 whatever is loaded; a cast down is written where it is.

Names: a pointer argument has the name of its tensor; sizes that a model fixes are compile-time constants in capitals,
numbers of tokens and rows are not, so a kernel is compiled once per model.
"""
