"""Twins written in C for the processor: one call per sub-layer, over weights in float32, int8 or int4.

They take float32 activations without gradients. Each output element is computed by the same operations in the same
order whatever the number of rows, sequences and threads, so a model that runs through them alone is batch invariant.
`kernels/` holds the C, `library.py` opens it.
"""
