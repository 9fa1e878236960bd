"""The `ling` command: the only place that prints and configures logging. torch is imported inside commands."""
