"""`python -m ling` is the `ling` command (and what torchrun launches)."""

from ling.cli.app import main

if __name__ == "__main__":
    main()
