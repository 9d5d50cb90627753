"""The page: a static shell under a strict Content Security Policy, served by the API whose client it is."""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Final

from control_plane.api.http import Refused, Response
from control_plane.api.routes import Example, Route
from control_plane.api.scopes import Scope

RELEASE_HEADER: Final = "Acp-Release"
"""Names the page that belongs to this API, so that an older one that is still open can say that it is old."""

_HTML: Final = "text/html; charset=utf-8"
_MODULE: Final = "text/javascript; charset=utf-8"
_STYLE: Final = "text/css; charset=utf-8"
_CONTENT_TYPES: Final = {".js": _MODULE, ".mjs": _MODULE, ".css": _STYLE}
_VENDORED: Final = {
    "preact.mjs": "preact",
    "hooks.mjs": "preact/hooks",
    "htm.mjs": "htm",
    "uplot.mjs": "uplot",
}
"""The names by which modules import what is vendored."""
_SHELL: Final = ("app", "kit")
"""The modules that are no view."""
_INLINE_STYLE: Final = "app.css"
_ENTRY: Final = "#app"

_FOR_EVER: Final = "public, max-age=31536000, immutable"
_NO_REFERRER: Final = {"Referrer-Policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that the page loads. Its name has its hash, so its bytes never change."""

    content_type: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """The page's HTML, its policy and its assets, which were read and hashed when the function started."""

    html: str
    policy: str
    release: str
    """A digest of all that the page consists of."""
    assets: Mapping[str, Asset]
    """By the name in the URL."""

    @classmethod
    def read(cls, folder: Path) -> "Page":
        """Returns the page whose files are in ``folder``: ``index.html``, modules, styles, and ``vendor``."""
        files = sorted([*folder.glob("*.*"), *folder.glob("vendor/*.*")])
        texts = {file: file.read_bytes() for file in files if file.suffix in _CONTENT_TYPES}
        style = texts.pop(folder / _INLINE_STYLE).decode()
        template = (folder / "index.html").read_text(encoding="utf-8")
        names = {
            file: f"{file.stem}.{sha256(content).hexdigest()[:12]}{file.suffix}" for file, content in texts.items()
        }
        imports = {_specifier(file): f"./ui/{name}" for file, name in names.items()}
        import_map = json.dumps({"imports": imports}, separators=(",", ":"))
        release = sha256(f"{template}\n{style}\n{import_map}".encode()).hexdigest()[:12]
        return cls(
            html=Template(template).substitute(
                release=release,
                import_map=import_map,
                style=style,
                entry=escape(imports[_ENTRY]),
            ),
            policy=_policy(import_map, style),
            release=release,
            assets={name: Asset(_CONTENT_TYPES[file.suffix], texts[file].decode()) for file, name in names.items()},
        )

    def answer(self) -> Response:
        """Returns the HTML. It is asked for anew each time, so that page and API change together."""
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": self.policy, **_NO_REFERRER}
        return Response(HTTPStatus.OK, None, headers, _HTML, text=self.html)

    def answer_asset(self, name: str) -> Response:
        """Returns an asset, which may be kept for ever. Raises Refused for a name that this release does not have."""
        asset = self.assets.get(name)
        if asset is None:
            raise Refused(
                HTTPStatus.NOT_FOUND,
                "This release of the page has no such file: reload the page, which names the files that there are.",
            )
        headers = {"Cache-Control": _FOR_EVER, **_NO_REFERRER}
        return Response(HTTPStatus.OK, None, headers, asset.content_type, text=asset.text)


# A gateway takes /ui/ for /ui, and from there the page's relative addresses would lead nowhere. The fragment is kept.
_WITHOUT_SLASH: Final = Response(
    HTTPStatus.PERMANENT_REDIRECT,
    None,
    {"Location": "../ui", "Cache-Control": "no-cache", **_NO_REFERRER},
    _HTML,
    text="",
)


def page_routes(page: Callable[[], Page]) -> Sequence[Route]:
    """Returns the routes of the page, which anybody may load: it shows nothing without a token."""
    return [
        Route(
            "GET",
            "/ui",
            Scope.PUBLIC,
            lambda call: _WITHOUT_SLASH if call.path.endswith("/") else page().answer(),
            "Loads the page.",
            content_types=("text/html",),
        ),
        Route(
            "GET",
            "/ui/{asset}",
            Scope.PUBLIC,
            lambda call: page().answer_asset(call.parameters["asset"]),
            "Loads a file of the page.",
            examples=(Example(parameters={"asset": "kit.000000000000.js"}, status=HTTPStatus.NOT_FOUND),),
            content_types=("text/javascript", "text/css"),
        ),
    ]


def _specifier(file: Path) -> str:
    """Returns the name by which modules import a file: ``#kit``, ``#views/flow``, or a package's own."""
    if file.parent.name == "vendor":
        return _VENDORED.get(file.name, f"#vendor/{file.name}")
    return f"#{file.stem}" if file.stem in _SHELL else f"#views/{file.stem}"


def _policy(import_map: str, style: str) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' {_source(import_map)}",
            f"style-src 'self' {_source(style)}",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
