"""Data sets by their name on Hugging Face: the files of one part, downloaded into its cache.

name.py     hf://OWNER/NAME[@REVISION][/PATH]
card.py     what a data set's card says of its subsets and splits
parts.py    which files a subset, a split or a path comes to
fetch.py    a name to files that lie here
"""

from ling.data.hub.fetch import Fetched, fetch_texts
from ling.data.hub.name import PREFIX

__all__ = ["PREFIX", "Fetched", "fetch_texts"]
