"""Decoding of AuthorizationPolicy (security.istio.io v1, v1beta1), strict."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from nodeagent.controlplane.decode import Fields, Problems
from nodeagent.controlplane.istio import authorization_checks as check
from nodeagent.controlplane.istio.security_values import (
    CREDENTIALS,
    Action,
    Attribute,
    AuthorizationPolicy,
    Condition,
    Rule,
)
from nodeagent.controlplane.istio.selection import common
from nodeagent.controlplane.kubernetes.metadata import read_metadata
from nodeagent.controlplane.kubernetes.objects import MeshScope
from nodeagent.controlplane.report import Severity
from nodeagent.controlplane.sources.base import RawObject

DRY_RUN: Final = "istio.io/dry-run"
"""Annotation: the policy's outcome is only counted and logged."""
# What Go's strconv.ParseBool takes.
_TRUTHS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
# Fields of Source and Operation with what they look at; their not- forms are notPrincipals, ...
_SOURCE_FIELDS: Final = {
    "principals": Attribute.PRINCIPAL,
    "requestPrincipals": Attribute.REQUEST_PRINCIPAL,
    "serviceAccounts": Attribute.SERVICE_ACCOUNT,
    "trustDomains": Attribute.TRUST_DOMAIN,
    "namespaces": Attribute.NAMESPACE,
    "remoteIpBlocks": Attribute.REMOTE_IP,
    "ipBlocks": Attribute.SOURCE_IP,
}
_OPERATION_FIELDS: Final = {
    "hosts": Attribute.HOST,
    "methods": Attribute.METHOD,
    "paths": Attribute.PATH,
    "ports": Attribute.DESTINATION_PORT,
}
_KEYED: Final = (Attribute.HEADERS, Attribute.CLAIMS)
_PLAIN_KEYS: Final = {
    attribute.value: attribute
    for attribute in Attribute
    if "." in attribute.value and attribute not in (*_KEYED, Attribute.ENVOY_METADATA)
}
_REPLACED_KEYS: Final = {
    "destination.namespace": "use metadata.namespace",
    "destination.name": "use spec.selector",
    "destination.user": "use spec.selector",
    "destination.labels": "use spec.selector",
}
_BRACKETED: Final = re.compile(r"\[([^\[\]]+)\]")


def decode_authorization_policy(
    raw: RawObject, problems: Problems, scope: MeshScope
) -> AuthorizationPolicy | None:
    """An AuthorizationPolicy; what is wrong is in `problems`."""
    with Fields(raw.body, "", problems) as top:
        top.ignore("apiVersion", "kind", "status")
        annotations = read_metadata(top).annotations
        spec = top.message("spec") or Fields({}, "spec", problems)
        with spec:
            action = Action(spec.choice("action", [item.value for item in Action], "ALLOW"))
            policy = AuthorizationPolicy(
                **common(raw, spec, scope.root_namespace),
                action=action,
                rules=tuple(_rule(item, raw.key.namespace, action) for item in spec.messages("rules")),
                provider=_provider(spec, action),
                dry_run=_dry_run(annotations, problems),
            )
            _check_action(spec, policy)
    return policy


def _alternatives(fields: Fields, name: str) -> Iterable[Fields]:
    """The objects of a list that must not be empty if it is there."""
    if fields.data.get(name) == []:
        fields.error(name, "required, but empty; leave it out to match any", "missing-field")
    return fields.messages(name)


def _dry_run(annotations: dict[str, str], problems: Problems) -> bool:
    text = annotations.get(DRY_RUN, "false")
    if text not in _TRUTHS:
        problems.error(f"metadata.annotations[{DRY_RUN}]", f"must be true or false, got {text!r}")
    return _TRUTHS.get(text, False)


def _provider(spec: Fields, action: Action) -> str:
    nested = spec.message("provider", required=action is Action.CUSTOM)
    if nested is None:
        return ""
    with nested:
        name = nested.string("name", required=True)
    if action is not Action.CUSTOM:
        spec.error("provider", f"only an action CUSTOM has a provider, this one is {action.value}")
    return name


def _check_action(spec: Fields, policy: AuthorizationPolicy) -> None:
    """What goes with an action, and what is most likely meant otherwise."""
    action = policy.action
    if action in (Action.DENY, Action.CUSTOM) and not policy.rules and not spec.problems.failed:
        message = f"{action.value} without rules matches nothing; write `rules: [{{}}]` to match everything"
        spec.error("rules", message, "missing-field")
    if action is Action.CUSTOM and policy.dry_run:
        message = "an action CUSTOM has no dry run; the policy is left out"
        spec.problems.add(Severity.WARNING, "not-supported-yet", f"metadata.annotations[{DRY_RUN}]", message)
    for index, rule in enumerate(policy.rules):
        conditions = rule.conditions()
        if action is Action.DENY and conditions and all(item.attribute.is_http for item in conditions):
            message = "has HTTP fields only: on TCP ports it denies everything; name ports to mean some only"
            spec.problems.add(Severity.WARNING, "IST0133", f"{spec.at('rules')}[{index}]", message)


def _rule(fields: Fields, namespace: str, action: Action) -> Rule:
    with fields:
        sources = [_part(item, "source", _SOURCE_FIELDS, namespace) for item in _alternatives(fields, "from")]
        operations = [
            _part(item, "operation", _OPERATION_FIELDS, namespace) for item in _alternatives(fields, "to")
        ]
        when = [_when(item, namespace) for item in fields.messages("when")]
    rule = Rule(tuple(sources), tuple(operations), tuple(item for item in when if item is not None))
    if action is Action.CUSTOM:
        for condition in rule.conditions():
            if condition.attribute in CREDENTIALS:
                message = (
                    f"{condition.attribute.value} cannot be used with CUSTOM: it is not known yet by then"
                )
                fields.problems.error(fields.path, message)
    return rule


def _part(
    fields: Fields, name: str, attributes: dict[str, Attribute], namespace: str
) -> tuple[Condition, ...]:
    """The `source` of a `from`, or the `operation` of a `to`."""
    with fields:
        nested = fields.message(name, required=True)
        if nested is None:
            return ()
        with nested:
            found = [
                _condition(nested, field, _not_form(field), attribute, namespace)
                for field, attribute in attributes.items()
            ]
            set_ones = tuple(item for item in found if item is not None)
            _check_service_accounts(nested, set_ones)
        if not any(nested.data.values()):
            nested.problems.error(nested.path, "required, but empty; leave it out to match any")
    return set_ones


def _not_form(field: str) -> str:
    return "not" + field[0].upper() + field[1:]


def _check_service_accounts(fields: Fields, conditions: Iterable[Condition]) -> None:
    attributes = {condition.attribute for condition in conditions}
    if Attribute.SERVICE_ACCOUNT in attributes and attributes & {Attribute.PRINCIPAL, Attribute.NAMESPACE}:
        fields.problems.error(
            fields.path, "serviceAccounts cannot be set together with principals or namespaces"
        )


def _condition(
    fields: Fields,
    name: str,
    not_name: str,
    attribute: Attribute,
    namespace: str,
    path: tuple[str, ...] = (),
) -> Condition | None:
    """A field and its not- form; None if neither is set."""
    values, excluded = (_values(fields, field, attribute, namespace) for field in (name, not_name))
    return Condition(attribute, values, excluded, path) if values or excluded else None


def _values(fields: Fields, name: str, attribute: Attribute, namespace: str) -> tuple[str, ...]:
    found = []
    for index, value in enumerate(fields.strings(name)):
        reason = check.why_wrong(attribute, value)
        if reason:
            fields.problems.error(f"{fields.at(name)}[{index}]", reason)
        elif attribute is Attribute.SERVICE_ACCOUNT and "/" not in value:
            found.append(f"{namespace}/{value}")
        else:
            found.append(value)
    if attribute is Attribute.SERVICE_ACCOUNT and len(found) > check.MAX_SERVICE_ACCOUNTS:
        message = f"there are {len(found)}; at most {check.MAX_SERVICE_ACCOUNTS} are allowed"
        fields.error(name, message, "out-of-range")
    return tuple(found)


def _when(fields: Fields, namespace: str) -> Condition | None:
    with fields:
        key = fields.string("key", required=True)
        attribute, path = _attribute(key) or (None, ())
        if attribute is None:
            fields.ignore("values", "notValues")
            if key:
                fields.error("key", _unknown_key(key))
            return None
        found = _condition(fields, "values", "notValues", attribute, namespace, path)
        if found is None and not fields.problems.failed:
            fields.problems.error(fields.path, "one of values, notValues must be set", "missing-field")
    return found


def _attribute(key: str) -> tuple[Attribute, tuple[str, ...]] | None:
    """The attribute of a key of `when`, and what is in its brackets; None if there is no such key."""
    if key in _PLAIN_KEYS:
        return _PLAIN_KEYS[key], ()
    stem, bracket, rest = key.partition("[")
    names = _BRACKETED.findall(bracket + rest)
    if not bracket or "".join(f"[{name}]" for name in names) != bracket + rest:
        return None
    if stem.startswith(Attribute.ENVOY_METADATA.value) and len(names) == 1:
        return Attribute.ENVOY_METADATA, (stem.removeprefix("experimental."), *names)
    if stem == Attribute.CLAIMS.value:
        return Attribute.CLAIMS, tuple(names)
    if stem == Attribute.HEADERS.value and len(names) == 1 and check.is_header(names[0]):
        return Attribute.HEADERS, (names[0].lower(),)
    return None


def _unknown_key(key: str) -> str:
    stem = key.partition("[")[0]
    if stem in _REPLACED_KEYS:
        return f"{key} is not supported; {_REPLACED_KEYS[stem]}"
    if stem in (attribute.value for attribute in _KEYED):
        return f"{key!r}: write it as {stem}[NAME]"
    known = ", ".join([*sorted(_PLAIN_KEYS), *(f"{attribute.value}[NAME]" for attribute in _KEYED)])
    return f"{key!r} is not known; there are: {known}"
