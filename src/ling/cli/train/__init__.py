"""`ling train`: its directory, its data, its display, what it leaves."""
