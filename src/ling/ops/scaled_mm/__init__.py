"""Products of FP8 operands by `torch.nn.functional.scaled_mm`, which is cuBLASLt's; asked for by name, never chosen.

It has dense products of tiles and blocks, and no grouped ones. Written against its documented contract and tested with
a double that checks it; not yet measured on a GPU.
"""
