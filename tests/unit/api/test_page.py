"""The page's files: hashed names, an import map that leads to them, a strict policy, and vendored bytes as locked."""

import hashlib
import json
import re
from base64 import b64encode
from http import HTTPStatus
from pathlib import Path

import pytest

from control_plane.api.http import Refused
from control_plane.api.openapi import describe
from control_plane.api.page import Page, page_routes
from supply_chain.vendored import UI, VENDOR, read_vendor_lock

PAGE = Page.read(UI)
IMPORTS = json.loads(re.search(r'<script type="importmap">(.*?)</script>', PAGE.html)[1])["imports"]  # type: ignore[index]


def test_vendored_files_are_those_of_the_lock() -> None:
    locked = {file.name: file.sha256 for package in read_vendor_lock() for file in package.files}
    assert locked == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in VENDOR.iterdir()}
    for package in read_vendor_lock():
        assert f"LICENSE.{package.name}" in locked
        assert package.licence in {"MIT", "Apache-2.0"}


def test_every_module_is_served_under_its_hash_for_ever() -> None:
    assert {path.removeprefix("./ui/") for path in IMPORTS.values()} == PAGE.assets.keys()
    for name in PAGE.assets:
        answer = PAGE.answer_asset(name).to_proxy(instance="")
        assert answer["statusCode"] == HTTPStatus.OK
        assert answer["headers"]["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer["headers"]["Content-Type"].split(";")[0] in {"text/javascript", "text/css"}
        assert answer["headers"]["X-Content-Type-Options"] == "nosniff"
        digest = hashlib.sha256(answer["body"].encode()).hexdigest()
        assert name.split(".")[-2] == digest[:12]


def test_every_import_leads_to_a_file() -> None:
    for name, asset in PAGE.assets.items():
        if asset.content_type.startswith("text/javascript") and not name.startswith("uplot"):
            wanted = set(re.findall(r"""(?:from|import)\s*\(?["']([^"']+)["']""", asset.text))
            assert wanted <= IMPORTS.keys(), name


def test_the_html_is_asked_for_anew_under_a_strict_policy() -> None:
    headers = PAGE.answer().to_proxy(instance="")["headers"]
    assert headers["Cache-Control"] == "no-cache"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Set-Cookie" not in headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["trusted-types"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search("unsafe|https?:|\\*|blob:", headers["Content-Security-Policy"])
    for directive, element in (("script-src", 'script type="importmap"'), ("style-src", "style")):
        text = re.search(f"<{element}>(.*?)</{element.split()[0]}>", PAGE.html, re.DOTALL)
        assert text is not None
        digest = b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert policy[directive] == f"'self' 'sha256-{digest}'"


def test_no_file_styles_inline_or_writes_html() -> None:
    """The policy would refuse it at work; here it is found earlier."""
    for file in UI.glob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        assert not re.search(r"\sstyle=|\son[a-z]+=[\"']", text), file
        assert not re.search(r"https?://", text), file


def test_our_own_modules_are_as_wide_and_long_as_other_files() -> None:
    for file in UI.glob("*.js"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == [], file
        assert len(lines) <= 450, file


def test_the_page_names_nothing_but_its_own_files() -> None:
    """URLs are relative, because deployments have different base paths."""
    linked = re.findall(r'(?:href|src)="([^"]*)"', PAGE.html)
    assert {one for one in linked if one != "data:,"} <= set(IMPORTS.values())
    assert all(path.startswith("./ui/") for path in IMPORTS.values())


@pytest.mark.parametrize("name", ["gone.js", "vendor.lock", "../app.py", "LICENSE.htm", "index.html", ""])
def test_what_is_no_file_of_this_release_says_what_to_do(name: str) -> None:
    with pytest.raises(Refused, match="reload the page") as refusal:
        PAGE.answer_asset(name)
    assert refusal.value.response.status == HTTPStatus.NOT_FOUND


def test_a_change_of_any_file_is_another_release(tmp_path: Path) -> None:
    seen = {PAGE.release}
    for changed in ("index.html", "app.css", "kit.js", "vendor/htm.mjs"):
        folder = tmp_path / changed.replace("/", "-")
        for file in [*UI.glob("*.*"), *VENDOR.iterdir()]:
            copy = folder / file.relative_to(UI)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes() + (b"\n" if file == UI / changed else b""))
        seen.add(Page.read(folder).release)
    assert len(seen) == 5


def test_the_document_says_what_a_files_name_looks_like() -> None:
    described = describe(page_routes(lambda: PAGE))["paths"]["/ui/{asset}"]["get"]["parameters"][0]["schema"]["pattern"]
    assert all(re.fullmatch(described, name) for name in PAGE.assets)
