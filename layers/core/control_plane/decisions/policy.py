"""Policies in Cedar, behind one port: what they allow, why, and what was wrong. docs/decisions/0025 has the reasons.

A domain's policies are asked twice. ``Release`` must be permitted, or the proposal is refused; where
``ReleaseWithoutApproval`` is not permitted too, a person is asked. What no policy permits is refused, and so is
whatever any error occurred in: Cedar by itself skips a policy that fails, even one that forbids.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

import cedarpy

from control_plane.model.errors import ControlPlaneError
from control_plane.model.ids import canonical_json

RELEASE: Final = "Release"
RELEASE_WITHOUT_APPROVAL: Final = "ReleaseWithoutApproval"
DEEPEST: Final = 200
"""How deep brackets may be nested. Cedar's parser recurses, and some thousands of them end the whole process."""

_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|([(\[{])|([)\]}])', re.DOTALL)
"""A bracket, or a text or a comment, whose brackets are none."""


class PolicyUnusable(ControlPlaneError):
    """Raised when policies or their schema are missing, unreadable, empty or invalid; nothing is released then."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Policies that were parsed and validated against their schema."""

    text: bytes
    schema_text: bytes
    sha256: bytes
    schema_sha256: bytes
    names: Mapping[str, str]
    """Cedar's number of each policy → its @id."""
    parsed: cedarpy.PolicySet
    parsed_schema: cedarpy.Schema


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the policies say to one request."""

    verdict: str
    """permitted, needs_approval or refused."""
    reasons: tuple[str, ...]
    """The @ids of the policies that made it so."""
    errors: tuple[str, ...] = ()


class PolicySource(Protocol):
    """Where policies come from: a domain's gate."""

    @property
    def policies(self) -> str:
        """Cedar policies."""

    @property
    def schema(self) -> str:
        """Their Cedar schema."""


def load_from(source: PolicySource) -> Policy:
    """Returns a domain's policies. Raises PolicyUnusable, whatever was wrong."""
    try:
        policies, schema = source.policies, source.schema
    except Exception as error:
        raise PolicyUnusable(f"the policies cannot be read: {error or type(error).__name__}") from error
    return load(policies, schema)


@lru_cache(maxsize=16)
def load(policies: str, schema: str) -> Policy:
    """Returns policies parsed and validated, once per text. Raises PolicyUnusable with everything that is wrong."""
    if not isinstance(policies, str) or not policies.strip():
        raise PolicyUnusable("there are no policies: an empty text permits nothing, and is taken for a mistake")
    if not isinstance(schema, str) or not schema.strip():
        raise PolicyUnusable("there is no schema to validate policies and requests against")
    for what, given in (("policies", policies), ("schema", schema)):
        if _depth(given) > DEEPEST:
            raise PolicyUnusable(f"the {what} nest brackets deeper than {DEEPEST}: write them flatter")
    try:
        parsed_schema = cedarpy.Schema.from_str(schema)
    except ValueError as error:
        raise PolicyUnusable(f"the schema cannot be parsed: {error}") from None
    try:
        parsed = cedarpy.PolicySet.from_str(policies)
        names = _names(policies)
    except ValueError as error:
        raise PolicyUnusable(f"the policies cannot be parsed: {error}") from None
    except RecursionError:  # of the JSON that Cedar writes of them
        raise PolicyUnusable("a policy is one expression of too many parts: cut it into several policies") from None
    found = cedarpy.validate_policies(policies, parsed_schema)
    if not found.validation_passed or found.errors:
        told = sorted({f"{names.get(error.policy_id, error.policy_id)}: {error.error}" for error in found.errors})
        raise PolicyUnusable(f"the policies do not fit their schema: {'; '.join(told) or 'no reason was given'}")
    text, schema_text = policies.encode(), schema.encode()
    return Policy(
        text,
        schema_text,
        hashlib.sha256(text).digest(),
        hashlib.sha256(schema_text).digest(),
        names,
        parsed,
        parsed_schema,
    )


def _depth(text: str) -> int:
    """Returns how deep a text nests brackets."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):
        if found[1]:
            depth += 1
            deepest = max(deepest, depth)
        elif found[2]:
            depth -= 1
    return deepest


def _names(policies: str) -> dict[str, str]:
    """Each policy's @id. Raises PolicyUnusable where one has none, or another's, and for what authorises nothing."""
    nodes = cedarpy.policies_to_json_str(policies)
    content: dict[str, Any] = json.loads(nodes)
    if content.get("templates"):
        raise PolicyUnusable("there is a template among the policies: it applies to nothing until it is linked")
    static = content.get("staticPolicies", {})
    if not static:
        raise PolicyUnusable("there are no policies, only comments")
    names = {number: policy.get("annotations", {}).get("id") or "" for number, policy in static.items()}
    unnamed = [number for number, name in names.items() if not name]
    if unnamed:
        raise PolicyUnusable(f"{len(unnamed)} of the policies have no @id: verdicts name their reasons by it")
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise PolicyUnusable(f"an @id is given to two policies: {', '.join(twice)}")
    return names


def as_recorded(request: Mapping[str, Any]) -> bytes:
    """Returns a request as it is put on record: canonical JSON. Raises ContractViolation for what is no JSON."""
    return canonical_json(dict(request), field="policy request")


def from_record(recorded: bytes) -> dict[str, Any]:
    """Returns a recorded request. Policies are asked about this alone, so that asking again later asks the same."""
    request: dict[str, Any] = json.loads(recorded)
    return request


def rule(policy: Policy, request: Mapping[str, Any], *, is_approved: bool = False) -> Ruling:
    """Returns what policies say to a request. ``is_approved``: a person has approved this very action.

    ``request`` is ``{"principal", "resource", "context", "entities"}``. Anything but two clean answers refuses.
    """
    release = decide(policy, request, RELEASE)
    if release.errors or not release.is_allowed:
        return Ruling("refused", release.reasons or ("no policy permits it",), release.errors)
    if is_approved:
        return Ruling("permitted", release.reasons)
    alone = decide(policy, request, RELEASE_WITHOUT_APPROVAL)
    if alone.errors:
        return Ruling("refused", alone.reasons, alone.errors)
    if not alone.is_allowed:
        return Ruling("needs_approval", alone.reasons or ("no policy permits it without a person",))
    return Ruling("permitted", alone.reasons)


def rule_again(policies: bytes, schema: bytes, request: Mapping[str, Any], *, is_approved: bool) -> Ruling:
    """Returns what policies that are given as bytes say to a recorded request; they may be unusable by this Cedar."""
    try:
        return rule(load(policies.decode(), schema.decode()), request, is_approved=is_approved)
    except PolicyUnusable as error:
        return Ruling("refused", (), (str(error),))


@dataclass(frozen=True, slots=True)
class Decided:
    """One answer of Cedar's."""

    is_allowed: bool
    reasons: tuple[str, ...]
    errors: tuple[str, ...]


def decide(policy: Policy, request: Mapping[str, Any], action: str) -> Decided:
    """Asks Cedar one question. Allowed is only what is permitted without any diagnostic error."""
    try:
        result = cedarpy.is_authorized(
            {
                "principal": request["principal"],
                "action": {"type": "Action", "id": action},
                "resource": request["resource"],
                "context": request["context"],
            },
            policy.parsed,
            request["entities"],
            schema=policy.parsed_schema,
        )
        reasons = tuple(sorted(policy.names[number] for number in result.diagnostics.reasons))
        errors = tuple(str(error) for error in result.diagnostics.errors)
        decision = result.decision
    except Exception as error:  # noqa: BLE001 - whatever the binding raises, nothing is released
        return Decided(False, (), (f"{type(error).__name__}: {error}",))
    if decision is cedarpy.Decision.NoDecision and not errors:
        errors = ("Cedar came to no decision, and did not say why",)
    return Decided(decision is cedarpy.Decision.Allow and not errors, reasons, errors)
