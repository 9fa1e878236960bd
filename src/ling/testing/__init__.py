"""Things that only tests use: tolerances with reasons, small models, damaged files."""
