"""GPU twins in Triton, same file names as the ops they stand in for.

Here are the twins: when they can run, tile sizes, launches, backward passes. The kernels themselves are in `kernels/`,
which is imported by the first call that can run: Triton takes 0.4 s to import, and need not be installed. All of them
are compared with the references in Triton's interpreter and compiled for Hopper without a GPU (tests/ops/kernels);
`make gpu` compares them on the device.
"""
