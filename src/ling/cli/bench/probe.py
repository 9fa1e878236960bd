"""What a server is asked before the clock starts: its model, and whether it takes our prompts."""

import asyncio

from ling.cli.bench.client import Client, RefusedError
from ling.cli.bench.load import Ask, Load
from ling.cli.bench.prompts import Prompt
from ling.errors import RequestError


def first_model(client: Client) -> str:
    """Return the name of the first model that the server lists. Raises RequestError."""
    try:
        models = asyncio.run(client.models())
    except RefusedError as error:
        what = "give its key with --api-key" if error.status in (401, 403) else "say what to ask for with --model"
        raise RequestError(f"{client.url}/v1/models answers {error}; {what}") from None
    return models[0] if models else "auto"


def takes(client: Client, ask: Ask, prompt: Prompt) -> bool:
    """Send one request; False: the server refuses token ids, but takes text.

    Raises ConfigError for a prompt that the path does not take, RequestError for a server that does not answer.
    """
    ask.body(prompt)
    error = _error(client, ask, prompt)
    if error is None:
        return True
    if isinstance(prompt.content, list) and not ask.is_chat and error.startswith(("HTTP 400", "HTTP 422")):
        first_id = Prompt(prompt.content[:1], 1)  # taken: something else is wrong, such as the length
        if _error(client, ask, first_id) is not None and _error(client, ask, Prompt("one", 1)) is None:
            return False
    raise RequestError(f"{client.url}{ask.path} does not answer a first request: {error}")


def _error(client: Client, ask: Ask, prompt: Prompt) -> str | None:
    load = Load(client, ask, [prompt])
    load.run()
    return load.outcomes[0].error
