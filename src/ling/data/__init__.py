"""Data: text that ships with the package, text you bring, and how both become training sequences."""
