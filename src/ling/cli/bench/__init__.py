"""`ling bench`: how fast a server, or the engine by itself, answers."""
