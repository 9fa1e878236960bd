"""`ling serve`: its flags as a table, and what becomes of them: an engine here, or another program's command line."""
