"""`ling demo`: the whole system on a small scale, from real text to a chat."""
