"""Ling 2.0 inside other people's libraries: packages we ship, no patches."""
