"""The OpenAI API over the engine: HTTP, streaming, tools, metrics and a page to chat in."""
