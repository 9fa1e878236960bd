"""What tests of a guarded server send, and how its engine answers."""

from ling.engine.request import Delta

MESSAGES = [{"role": "user", "content": "a secret prompt"}]
KEYS = ("first-key", "second-key")


def finished(id, n):
    return [Delta(request_id=id, index=i, text="ok", token_ids=[1], finish_reason="stop") for i in range(n)]
