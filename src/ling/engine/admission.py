"""What a request must satisfy before the engine takes it."""

from collections.abc import Sequence

from ling.engine.request import SamplingParams
from ling.errors import RequestError


def check_request(prompt: Sequence[int], params: SamplingParams, vocab_size: int, max_model_len: int) -> None:
    """Raise RequestError that says why `prompt` can never be answered with `params`."""
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token")
    if len(prompt) >= max_model_len:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens, the context {max_model_len}, and the answer needs one too"
        )
    for token in prompt:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise RequestError(f"token id {token} is not in a vocabulary of {vocab_size}")
    for token in (*params.logit_bias, *params.stop_token_ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise RequestError(
                f"logit_bias or stop_token_ids names token id {token}, which is not in a vocabulary of {vocab_size}"
            )
