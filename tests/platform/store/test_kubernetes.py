"""What the answers of an API server mean, and which cluster a URL names: without a cluster."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from belvedere_platform.errors import BelvedereError, Conflict, Gone, InvalidInput, NotFound, NotInstalled, Unavailable
from belvedere_platform.store import connect
from belvedere_platform.store.kinds import CONFIG_MAP
from belvedere_platform.store.kubernetes import KubernetesStore
from belvedere_platform.store.kubernetes_transport import kubeconfig_path, proxy_for, refusal

PATH = "/api/v1/namespaces/default/configmaps/a"


def status(code: int, message: str, *causes: dict[str, str], **details: str) -> bytes:
    answer: dict[str, Any] = {"kind": "Status", "code": code, "message": message, "details": details}
    if causes:
        answer["details"] = {**details, "causes": list(causes)}
    return json.dumps(answer).encode()


def kubeconfig_for(folder: Path, server: str) -> str:
    path = folder / "kubeconfig"
    cluster = f"{{name: c, cluster: {{server: '{server.rstrip('/')}'}}}}"
    context = "{name: c, context: {cluster: c, user: u}}"
    path.write_text(
        f"apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{cluster}]\ncontexts: [{context}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    return str(path)


def kubeconfig(**cluster: str) -> str:
    return json.dumps(
        {
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **cluster}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "clusters: 3", "a: 1", kubeconfig().replace("127.0.0.1:1", "[::"),
     kubeconfig(**{"certificate-authority-data": "no base64"}), kubeconfig(**{"certificate-authority-data": "Zm9v"})],
)  # fmt: skip
async def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    store = KubernetesStore(kubeconfig=str(path))
    try:
        with pytest.raises(
            (InvalidInput, Unavailable), match=r"the kubeconfig .*kubeconfig cannot be used: |does not answer"
        ):
            await store.list(CONFIG_MAP)
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("code", "body", "error", "says"),
    [
        (404, status(404, 'configmaps "a" not found', name="a", kind="configmaps"), NotFound, 'configmaps "a"'),
        (404, b"404 page not found\n", NotInstalled, "install the resource definition"),
        (409, status(409, "the object has been modified", name="a"), Conflict, "modified"),
        (410, status(410, "too old resource version: 1 (7)"), Gone, "list again"),
        (504, status(504, "Too large", {"reason": "ResourceVersionTooLarge"}), Gone, "list again"),
        (403, status(403, "forbidden: User a cannot list"), Unavailable, "check the credentials"),
        (401, status(401, "Unauthorized"), Unavailable, "check the credentials"),
        (429, status(429, "too many requests"), Unavailable, "429"),
        (500, b"<html>bad gateway</html>", Unavailable, "bad gateway"),
        (400, status(400, 'unknown field "spec.wokers"'), InvalidInput, "wokers"),
        (413, b"Request entity too large", InvalidInput, "too large"),
        (
            500,
            status(500, "failed to create typed patch object (a/b; v1): .spec.wokers: field not declared in schema"),
            InvalidInput,
            "wokers: field not declared",
        ),
        (422, status(422, "invalid", {"field": "metadata.uid", "message": "immutable"}, name="a"), Conflict, "invalid"),
    ],
)
def test_each_refusal_is_the_error_that_a_user_can_act_on(
    code: int, body: bytes, error: type[BelvedereError], says: str
) -> None:
    refused = refusal(code, body, PATH)
    assert type(refused) is error
    assert says in str(refused)


def test_a_refused_object_is_told_field_by_field() -> None:
    body = status(
        422,
        "a long message",
        {"field": "spec.version", "message": "Required value"},
        {"field": "spec.scaling", "message": 'Invalid value: "object": min must not be greater than max'},
        {"field": "<nil>", "message": "Invalid value: null: some validation rules were not checked because …"},
        kind="ModelService",
        name="emoji",
    )
    expected = "ModelService emoji: spec.version: Required value; spec.scaling: min must not be greater than max"
    assert str(refusal(422, body, PATH)) == expected


def test_the_kubeconfig_given_wins_over_the_environments(tmp_path: Path) -> None:
    given, other = tmp_path / "given", tmp_path / "other"
    given.touch()
    other.touch()
    environment = {"KUBECONFIG": str(other), "HOME": str(tmp_path)}
    assert kubeconfig_path(str(given), environment) == str(given)
    assert kubeconfig_path(None, environment) == str(other)


def test_without_any_other_the_kubeconfig_is_that_of_the_home(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.kube/config does not exist"):
        kubeconfig_path(None, {"HOME": str(tmp_path)})
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert kubeconfig_path(None, {"HOME": str(tmp_path)}) == str(tmp_path / ".kube" / "config")


async def test_a_kubeconfig_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("apiVersion: v1\nkind: Config\n")
    store = KubernetesStore(kubeconfig=str(path), environment={})
    with pytest.raises(InvalidInput, match=str(path)):
        await store.get(CONFIG_MAP, "a", "default")
    await store.close()


@pytest.mark.parametrize("url", ["kubernetes://host:6443", "kubernetes://?kubeconfg=x", "postgres://x", "sqlite://x"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="the store is"):
        connect(url)


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    path = kubeconfig_for(tmp_path, "http://127.0.0.1:1")
    store = connect(f"kubernetes://?kubeconfig={path}&context=c")
    with pytest.raises(Unavailable, match="does not answer"):
        await store.list(CONFIG_MAP)
    await store.close()


class CountingThreads(ThreadPoolExecutor):
    """A loop's default threads, and how often they were asked."""

    asked = 0

    def submit(self, *arguments: Any, **named: Any) -> Any:
        self.asked += 1
        return super().submit(*arguments, **named)


async def test_a_request_asks_no_thread_for_proxies_and_passwords(tmp_path: Path) -> None:
    async def listing(_: web.Request) -> web.Response:
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    application = web.Application()
    application.router.add_get("/api/v1/configmaps", listing)
    threads = CountingThreads()
    asyncio.get_running_loop().set_default_executor(threads)
    async with TestServer(application, host="127.0.0.1") as server:
        store = KubernetesStore(kubeconfig=kubeconfig_for(tmp_path, str(server.make_url("/"))), environment={})
        assert (await store.list(CONFIG_MAP)).items == []
        await store.close()
    assert threads.asked == 0


async def test_a_server_that_has_only_older_objects_in_memory_reads_them_anew(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    async def listing(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        if "resourceVersion" in request.query:
            return web.Response(status=504, body=status(504, "Too large", {"reason": "ResourceVersionTooLarge"}))
        item = {"metadata": {"name": "a", "managedFields": [{"manager": "m"}]}}
        more = {} if "continue" in request.query else {"continue": "page-2"}
        return web.json_response({"metadata": {"resourceVersion": "9", **more}, "items": [item]})

    application = web.Application()
    application.router.add_get("/api/v1/configmaps", listing)
    async with TestServer(application, host="127.0.0.1") as server:
        store = KubernetesStore(kubeconfig=kubeconfig_for(tmp_path, str(server.make_url("/"))), environment={})
        found = await store.list(CONFIG_MAP, not_older_than="8")
        await store.close()
    assert found.items == 2 * [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}]
    assert found.resource_version == "9"
    assert asked == [
        {"resourceVersion": "8", "resourceVersionMatch": "NotOlderThan"},
        {"limit": "500"},
        {"limit": "500", "continue": "page-2"},
    ]


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://small:1", "HTTPS_PROXY": "http://proxy:3128"}, "http://small:1"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other,.cluster.local"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other"}, "http://proxy:3128"),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(environment: dict[str, str], proxy: str | None) -> None:
    assert proxy_for("https://api.cluster.local:6443", environment) == proxy
