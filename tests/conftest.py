"""Shared by all tests."""

import torch

# Tensors in tests are tiny: a second thread only makes them wait for each other, for ages on a busy machine.
torch.set_num_threads(1)
