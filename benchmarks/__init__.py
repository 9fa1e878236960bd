"""Measurements. Each prints hardware, shape and command, and compares both sides in one run."""
