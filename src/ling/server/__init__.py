"""The OpenAI API over one engine.

run.py        a socket, uvicorn, signals: start, drain, end
guard.py      what every request passes: host, origin, key, size, time
app.py        the routes; openapi.py says what they take; service.py is what they share
endpoints.py  a request from its bytes to its answer: checked in a worker thread, aborted when the client leaves
schema/       the requests, field by field
prompts.py    a request to token ids; sampling.py: to SamplingParams; constraints.py: to the form of its answer
session.py    one HTTP request's answers, from the engine's thread into the event loop
chat.py  completions.py   what the API calls them; streamed.py sends them as they come
answer_parser.py          text to content, reasoning and tool calls
page.py       the page to chat in, page.html
errors.py  logprobs.py  metrics.py  usage.py  settings.py
"""
