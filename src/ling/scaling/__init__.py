"""Arithmetic about a network that needs no network: parameters, FLOPs, bytes. Plain Python."""
