"""Trying a training step out without the machine it is for."""
