"""Hugging Face, as models (`ling.checkpoint.hub`) and data sets (`ling.data.hub`) ask it for their files.

huggingface.py   its client library: what its errors come to, whether there is a network
listing.py       what a hub says of files, and whether those that arrived are as large
"""

from ling.hub.huggingface import SECONDS, Kind, client, is_offline, one_line
from ling.hub.listing import NAME, Listing, Told, check_sizes, damaged

__all__ = ["NAME", "SECONDS", "Kind", "Listing", "Told", "check_sizes", "client", "damaged", "is_offline", "one_line"]
