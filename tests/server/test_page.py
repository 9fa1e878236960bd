"""The page to chat in: what its one file may hold, and that it works in a browser against a server that is a script."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ling.server.page import read_page
from tests.server import chromium

HTML = read_page()[0].decode()
WORDS = json.loads(re.search(r'id="language-table">(.*?)</script>', HTML, re.DOTALL)[1])

ATTACK = '<img src=x onerror="document.title=\'broken in\'"> <script>document.title="broken in"</script>'
MARKDOWN = f"""## A *title*

Some **bold**, _slanted_, ~~wrong~~ and `x < 1` text, 2 * 3 * 4 = 24, snake_case_name.
Its second line, with a [link](https://example.org/a_b_c "t"), a [trap](javascript:alert(1)) and ![a picture](https://example.org/p.png).

1. first
   - inner *one*
   - inner two

   ```python
   print("<b>&amp;</b>")
   ```
2. second

> quoted
> > twice

| left | right |
| :--- | ----: |
| a | **1** |
| b \\| c | 2 |

---
{ATTACK}

```html
{ATTACK}
"""


def test_the_page_names_no_address_outside_its_server():
    known = {"http://www.w3.org/2000/svg", "https?:\\/\\/"}  # a name of XML, and what links in answers look like
    text = HTML
    for name in known:
        text = text.replace(name, "")
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+|@import|url\(|\bsrc=|\.innerHTML|\beval\(|\son\w+=\"", text)


def test_the_page_is_small():
    assert len(HTML.encode()) < 40_000


def test_both_languages_say_everything_and_nothing_else():
    assert set(WORDS) == {"en", "zh"}
    used = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', HTML))
    used |= set(
        re.findall(r'\b(?:said|say|label|button|fact|ServerError|fail)\((?:[^()"]*(?:\([^()]*\))?, )?"(\w+)"', HTML)
    )
    for language, words in WORDS.items():
        assert used <= set(words), f"{language} lacks {used - set(words)}"
        assert all(f'"{key}"' in HTML.replace(f'"{key}":', "") for key in words), language
        assert set(words) == set(WORDS["en"])
        assert all(re.findall(r"\{\w\}", words[key]) == re.findall(r"\{\w\}", WORDS["en"][key]) for key in words)


def test_the_policy_names_each_script_and_style_and_lets_nothing_else_in():
    policy = read_page()[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2 == HTML.count("<style>") + HTML.count("<script>")


class StandIn(BaseHTTPRequestHandler):
    """Serves the page under /some/path/, and answers what `answers` has for the last message."""

    answers: dict[str, list[Any]]
    asked: list[dict[str, Any]]
    key: str | None
    more: threading.Event

    def do_GET(self) -> None:
        if self.path.startswith("/some/path/v1/models"):
            return self.reply(200, {"object": "list", "data": [{"id": "ling-tiny", "object": "model"}]})
        page, headers = read_page()
        return self.reply(200 if self.path.split("?")[0] == "/some/path/" else 404, page, headers)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/some/path/v1/chat/completions":
            return self.reply(404, {"error": {"message": self.path}})
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}":
            return self.reply(401, {"error": {"message": "no key"}})
        self.asked.append(request)
        answer = self.answers[request["messages"][-1]["content"]]
        if isinstance(answer, tuple):
            return self.reply(*answer)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in answer:
            if piece is None:
                self.more.wait(20)
            else:
                data = piece if isinstance(piece, str) else json.dumps(piece)
                self.wfile.write(f"data: {data}\n\n".encode())
                self.wfile.flush()
        return None

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def chunk(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def answer(text: str, reason: str = "stop", **usage: Any) -> list[Any]:
    pieces = [chunk(content=text[at : at + 7]) for at in range(0, len(text), 7)]
    usage = {"prompt_tokens": 9, "completion_tokens": len(pieces), "total_tokens": 9 + len(pieces)} | usage
    return [chunk(role="assistant"), *pieces, chunk(reason), {"choices": [], "usage": usage}, "[DONE]"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    if not chromium.PATH:
        pytest.skip("no chromium on this machine")
    with chromium.open_chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def server() -> Iterator[type[StandIn]]:
    handler = type("Scripted", (StandIn,), {"answers": {}, "asked": [], "key": None, "more": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}/some/path/"
    yield handler
    handler.more.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(tab: chromium.Tab, server: type[StandIn]) -> Iterator[chromium.Tab]:
    """A tab with the page open in English, with nothing kept from before."""
    tab.call("Emulation.setUserAgentOverride", userAgent="", acceptLanguage="en-US")
    tab.complaints.clear()
    tab.open(server.url)
    tab.until("document.getElementById('model').value === 'ling-tiny'")
    yield tab
    refused = [line for line in tab.complaints if "status of" not in line and "net::ERR" not in line]
    assert not refused, refused


def ask(tab: chromium.Tab, words: str) -> None:
    tab.run("document.getElementById('words').focus()")
    tab.call("Input.insertText", text=words)
    tab.press_enter()


def last(tab: chromium.Tab, selector: str, what: str = "textContent") -> Any:
    return tab.run(f"document.querySelector('article:last-child {selector}')?.{what}")


def wait_for_end(tab: chromium.Tab) -> None:
    tab.until("document.querySelector('article:last-child .foot:not([hidden])') && !running")


@pytest.mark.slow
def test_an_answer_streams_in_with_its_markdown_and_its_figures(page, server):
    server.answers["hello"] = [
        chunk(content="Hi **th"),
        None,
        *answer("ere**", completion_tokens=12, ling={"drafted": 8, "accepted": 6}),
    ]
    ask(page, "hello")
    page.until("document.querySelector('.answer .text')?.textContent === 'Hi **th'")
    time.sleep(0.1)
    server.more.set()
    wait_for_end(page)
    assert last(page, ".text", "innerHTML") == "<p>Hi <strong>there</strong></p>"
    assert re.fullmatch(r"12 tokensfirst after \d\.\d\d s[\d.]+ tokens/s75% of drafts accepted", last(page, ".facts"))
    (request,) = server.asked
    assert request == {
        "model": "ling-tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


@pytest.mark.slow
def test_markdown_becomes_elements_and_html_stays_text(page, server):
    server.answers["show"] = answer(MARKDOWN)
    ask(page, "show")
    wait_for_end(page)
    shown = page.run("document.querySelector('.answer .text').cloneNode(true).innerHTML")
    for piece in (
        "<h3>A <em>title</em></h3>",
        "<strong>bold</strong>, <em>slanted</em>, <del>wrong</del> and <code>x &lt; 1</code> text",
        "text, 2 * 3 * 4 = 24, snake_case_name.<br>Its",
        '<a href="https://example.org/a_b_c" target="_blank" rel="noopener noreferrer">link</a>',
        "trap (javascript:alert(1))",
        '<a href="https://example.org/p.png" target="_blank" rel="noopener noreferrer">a picture</a>',
        '<ol start="1"><li><p>first</p><ul><li><p>inner <em>one</em></p></li><li><p>inner two</p></li></ul>',
        '<pre><code>print("&lt;b&gt;&amp;amp;&lt;/b&gt;")</code></pre></div></li><li><p>second</p></li></ol>',
        "<blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>",
        '<th style="text-align: right;">right</th>',
        '<td style="text-align: right;"><strong>1</strong></td></tr><tr><td style="text-align: left;">b | c</td>',
        "<hr><p>&lt;img src=x",
    ):
        assert piece in shown, shown
    assert page.run("document.querySelectorAll('#log :is(img, script)').length") == 0
    assert page.run("document.querySelector('.answer .text > .code:last-child pre').textContent").strip() == ATTACK
    assert page.run("document.title") == "Ling: chat"


@pytest.mark.slow
def test_stopping_keeps_what_was_written_and_the_conversation_goes_on(page, server):
    server.answers |= {"count": [chunk(content="one two"), None], "go on": answer("three")}
    ask(page, "count")
    page.until("document.querySelector('.answer .text')?.textContent === 'one two'")
    page.run("document.getElementById('stop').click()")
    wait_for_end(page)
    assert last(page, ".facts") == "stopped"
    ask(page, "go on")
    wait_for_end(page)
    assert [message["content"] for message in server.asked[-1]["messages"]] == ["count", "one two", "go on"]
    page.run("document.querySelector('article:last-child .again').click()")
    page.until("!running && turns.length === 4")
    assert server.asked[-1] == server.asked[-2]
    page.run("document.getElementById('new').click()")
    assert page.run("[turns.length, document.querySelector('#welcome').hidden]") == [0, False]


@pytest.mark.slow
def test_reasoning_stands_apart_and_is_not_sent_back(page, server):
    server.answers |= {
        "why": [chunk(reasoning_content="be"), chunk(reasoning_content="cause"), *answer("so")],
        "and": answer("x", "length"),
    }
    ask(page, "why")
    wait_for_end(page)
    assert (last(page, ".thought div"), last(page, ".thought", "open"), last(page, ".text")) == ("because", False, "so")
    ask(page, "and")
    wait_for_end(page)
    assert "because" not in json.dumps(server.asked[-1])
    assert "cut off" in last(page, ".facts")


@pytest.mark.slow
def test_settings_go_with_the_request_and_a_key_is_asked_for(page, server):
    server.answers["q"] = answer("a")
    server.key = "secret"
    ask(page, "q")
    page.until("document.getElementById('settings').open && !document.getElementById('ask-key').hidden")
    for name, value in {"system": "Be brief.", "temperature": "0.5", "max-tokens": "77", "key": "secret"}.items():
        page.run(f"document.getElementById('{name}').value = '{value}'")
    page.run("document.querySelector('#settings button.main').click()")
    page.until("document.querySelector('.answer .text')?.textContent === 'a' && !running")
    request = server.asked[-1]
    assert (request["temperature"], request["max_tokens"]) == (0.5, 77)
    assert request["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    assert page.run("localStorage.length") == 0
    page.run("sessionStorage.clear()")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((400, {"error": {"message": "too long"}}), "The server answered with an error (400): too long"),
        (
            (503, {"error": {"message": "Queue full."}}),
            "The server has too much to do (503). Try again in a moment. Queue",
        ),
        ([chunk(content="a"), {"error": {"message": "out of blocks"}}], "could not finish this answer: out of blocks"),
        ([chunk(content="a")], "The connection ended before the answer did."),
    ],
)
def test_failures_are_told_in_words(page, server, given, said):
    server.answers["q"] = given
    ask(page, "q")
    wait_for_end(page)
    assert said in last(page, ".error")


@pytest.mark.slow
def test_the_page_speaks_the_browsers_language_and_can_switch(page, server):
    page.call("Emulation.setUserAgentOverride", userAgent="", acceptLanguage="zh-CN")
    page.open(server.url)
    server.answers["q"] = answer("a")
    ask(page, "q")
    wait_for_end(page)
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert last(page, ".facts").startswith("1 个 token")
    page.run("document.getElementById('language').click()")
    assert last(page, ".facts").startswith("1 token")
    assert page.run("document.getElementById('words').placeholder") == WORDS["en"]["yourMessage"]
    page.run("localStorage.clear()")


@pytest.mark.slow
def test_enter_belongs_to_an_input_method_while_it_composes(page, server):
    page.run("document.getElementById('words').focus()")
    page.call("Input.imeSetComposition", text="ni", selectionStart=2, selectionEnd=2)
    page.press_enter(windowsVirtualKeyCode=229, text="")
    page.call("Input.insertText", text="你")
    assert page.run("[turns.length, document.getElementById('words').value]") == [0, "你"]
