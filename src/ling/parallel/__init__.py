"""This model on many ranks: what is sharded, what is sent, what is computed again. The mathematics stays in `model`."""
