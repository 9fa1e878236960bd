"""Tensor functions, one file per operation: the public function's body is the specification in plain torch.

`ops/torch/` holds faster twins made of torch's own kernels under the same file names. `ops/backend.py` says how a
twin is chosen, forced and refused.
"""
