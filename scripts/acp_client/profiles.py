"""Which deployment is asked, and with which token: by options, by the environment, or by a file of profiles.

The file is ``$XDG_CONFIG_HOME/acp/profiles.json`` (without that variable ``~/.config/acp``). Only its owner may
read it.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODE: Final = 0o600


class ProfileError(Exception):
    """Raised when it is not clear, or not safe, which deployment to ask with which token."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A deployment and the token to ask it with."""

    name: str
    url: str
    """The API's base, such as ``https://abc.execute-api.eu-west-1.amazonaws.com/v1``, without a slash at its end."""
    token: str | None

    def __repr__(self) -> str:
        return f"Profile(name={self.name!r}, url={self.url!r}, token={'***' if self.token else None})"


def profile_of(name: str, url: str, token: str | None) -> Profile:
    """Returns a profile with a checked URL.

    Raises ProfileError for anything but an https URL, or an http one of this machine: a token is not sent in the clear.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment or parts.username:
        raise ProfileError(f"{url!r} is no URL of an API: it looks like https://HOST/v1")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ProfileError(f"{url!r} would send the token unencrypted: use https, or a URL of this machine")
    return Profile(name, url.rstrip("/"), token)


def chosen_profile(
    environ: Mapping[str, str], *, url: str | None = None, token: str | None = None, name: str | None = None
) -> Profile | None:
    """Returns the deployment that is meant, or None where nothing names one: that is the local cloud.

    What is given counts before the environment's ACP_URL, ACP_TOKEN and ACP_PROFILE, and these before the file's
    current profile. A token without a URL belongs to the named or current profile. Raises ProfileError.
    """
    url, token = url or environ.get("ACP_URL"), token or environ.get("ACP_TOKEN")
    if url:
        return profile_of(name or "", url, token)
    name = name or environ.get("ACP_PROFILE")
    stored = Profiles(profiles_path(environ)).read()
    name = name or stored["current"]
    if name is None:
        return None
    if name not in stored["profiles"]:
        known = ", ".join(stored["profiles"]) or "none"
        raise ProfileError(f"there is no profile {name!r}; there are: {known}. Make one: acp login NAME --url URL")
    found = stored["profiles"][name]
    return profile_of(name, found["url"], token or found["token"])


def profiles_path(environ: Mapping[str, str]) -> Path:
    """Returns where the profiles are kept."""
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(environ.get("HOME", "~")).expanduser() / ".config") / "acp" / "profiles.json"


class Profiles:
    """The file of profiles: ``{"current": name or null, "profiles": {name: {"url": …, "token": …}}}``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """Returns what is stored; nothing where there is no file.

        Raises ProfileError for a file that others may read, or that is damaged.
        """
        try:
            with self._path.open(encoding="utf-8") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read()
        except FileNotFoundError:
            return {"current": None, "profiles": {}}
        except (OSError, ValueError) as error:
            raise ProfileError(f"{self._path} cannot be read: {error}") from error
        if mode & 0o077:
            raise ProfileError(f"{self._path} may be read by others: run chmod 600 on it")
        stored = _parsed(text)
        if stored is None:
            raise ProfileError(f"{self._path} is damaged: delete it, and run acp login again")
        return stored

    def keep(self, profile: Profile) -> None:
        """Stores a profile and makes it the current one. Raises ProfileError, OSError."""
        stored = self.read()
        stored["profiles"][profile.name] = {"url": profile.url, "token": profile.token}
        self._write(stored | {"current": profile.name})

    def forget(self, name: str) -> bool:
        """Deletes a profile; returns whether there was one. Raises ProfileError, OSError."""
        stored = self.read()
        was_there = stored["profiles"].pop(name, None) is not None
        if was_there:
            self._write(stored | {"current": None if stored["current"] == name else stored["current"]})
        return was_there

    def _write(self, stored: Mapping[str, Any]) -> None:
        """Replaces the file at once, so that a kill leaves the old one or the new one."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._path.parent, prefix=".profiles-")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(stored, file, indent=2)
            Path(name).chmod(_MODE)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _parsed(text: str) -> dict[str, Any] | None:
    """Returns what a file of profiles says, or None where it is not one."""
    try:
        stored = json.loads(text)
        current, profiles = stored["current"], stored["profiles"]
        fields = [(one["url"], one["token"]) for one in profiles.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    is_sound = isinstance(current, str | None) and all(
        isinstance(url, str) and isinstance(token, str | None) for url, token in fields
    )
    return {"current": current, "profiles": profiles} if is_sound else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
