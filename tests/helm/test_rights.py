"""The roles in the chart: nothing that was not asked for, and only where it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from .conftest import FULL, S3, Manifest, render

ROLES = ("Role", "ClusterRole")
Right = tuple[str, str, str]
"""API group, resource, verb."""


def rights(manifests: list[Manifest], component: str) -> Iterator[tuple[str | None, Right]]:
    """Give each right of a component with its namespace, None for all."""
    for one in manifests:
        if one["kind"] in ROLES and one["metadata"]["labels"]["app.kubernetes.io/component"] == component:
            for rule in one["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            yield one["metadata"].get("namespace"), (group, resource, verb)


def test_no_role_has_a_wildcard_or_reaches_for_more_power(manifests: list[Manifest]) -> None:
    for component in ("operator", "gateway"):
        found = {right for _, right in rights(manifests, component)}
        assert found
        for group, resource, verb in found:
            assert "*" not in (group, resource, verb)
            assert verb not in ("escalate", "bind", "impersonate", "deletecollection")
            assert resource not in ("pods", "pods/exec", "nodes", "serviceaccounts", "roles", "clusterroles")


def test_nodes_are_read_only_by_who_counts_their_accelerators() -> None:
    for values in (S3, FULL):
        counted = render({**values, "models": {"accelerators": "nodes"}})
        more = set(rights(counted, "operator")) - set(rights(render(values), "operator"))
        assert more == {(None, ("", "nodes", verb)) for verb in ("list", "watch")}


def test_secrets_are_out_of_reach_but_for_the_one_that_the_operator_makes() -> None:
    def secret_rights(values: Manifest) -> list[tuple[str | None, str]]:
        return [
            (place, verb) for place, (_, resource, verb) in rights(render(values), "operator") if resource == "secrets"
        ]

    assert secret_rights({**S3, "alerts": {"existingSecret": "mine"}}) == []
    made = secret_rights(S3)
    assert {place for place, _ in made} == {"belvedere-system"}
    assert sorted(verb for _, verb in made) == ["create", "get", "patch"]


def test_the_gateway_only_reads_routes_and_replicas(manifests: list[Manifest]) -> None:
    assert {right for _, right in rights(manifests, "gateway")} == {
        ("", "configmaps", "list"),
        ("", "configmaps", "watch"),
        ("discovery.k8s.io", "endpointslices", "list"),
        ("discovery.k8s.io", "endpointslices", "watch"),
    }


def test_watched_namespaces_are_the_only_ones_that_rights_reach() -> None:
    manifests = render(FULL)
    assert not [one for one in manifests if one["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    assert {place for place, _ in rights(manifests, "gateway")} == {"team-a", "team-b"}
    assert {place for place, _ in rights(manifests, "operator")} == {"team-a", "team-b", "belvedere-system"}
    wide = {right for place, right in rights(render({**S3, "alerts": {"token": "0123456789abcdef"}}), "operator")}
    assert wide == {right for place, right in rights(manifests, "operator")}


def test_each_binding_is_of_a_role_that_exists_to_an_account_that_exists(manifests: list[Manifest]) -> None:
    def identities(kind: str) -> set[tuple[str | None, str]]:
        return {(one["metadata"].get("namespace"), one["metadata"]["name"]) for one in manifests if one["kind"] == kind}

    accounts = identities("ServiceAccount")
    bound = set()
    for one in manifests:
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = (one["metadata"].get("namespace"), one["roleRef"]["name"])
            assert role in identities(one["roleRef"]["kind"])
            bound.add(role)
            [subject] = one["subjects"]
            assert (subject["namespace"], subject["name"]) in accounts
    assert bound == identities("Role") | identities("ClusterRole")
