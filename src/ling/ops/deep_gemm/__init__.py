"""Products of FP8 operands by DeepGEMM; asked for by name, never chosen.

The package is `sgl-deep-gemm` on the registry, or DeepSeek's own from source: both are the module `deep_gemm`. Written
against its documented contract and tested with a double that checks it; not yet measured on a GPU. It compiles a kernel
for every size of weight when that is first multiplied.
"""
