"""Processes that work together: starting them, and what they say to each other. Knows no model."""
