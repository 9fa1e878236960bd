"""Checkpoints by their name on a hub: found in its cache, downloaded, verified.

names.py        what a name is, which ones are published
wanted.py       which files of a repository are needed
huggingface.py  modelscope.py   the two hubs, through their own client libraries and caches
resolve.py      a directory or a name to a directory
verify.py       what lies on disk against what the hub says
"""

from ling.checkpoint.hub.names import PUBLISHED
from ling.checkpoint.hub.resolve import download, resolve_checkpoint
from ling.checkpoint.hub.verify import verify_snapshot

__all__ = ["PUBLISHED", "download", "resolve_checkpoint", "verify_snapshot"]
