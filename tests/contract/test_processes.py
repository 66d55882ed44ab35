"""What only the embedded store promises: many processes on one file, killed at any moment, on a disk that may be full."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from belvedere_platform.errors import BelvedereError, CorruptData, Gone, InvalidInput, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP, SECRET

WRITERS = 3
ROUNDS = 25

PREAMBLE = """
import asyncio, sys
from belvedere_platform.errors import Conflict
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP

def config_map(name, data, **metadata):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", **metadata}, "data": data}
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start other processes that run a script on the store; those that still run afterwards are killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[str]:
        code = PREAMBLE + textwrap.dedent(script)
        command = [sys.executable, "-c", code, *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def config_map(name: str, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


def names_of(listing_items: list[Manifest]) -> list[str]:
    return [item["metadata"]["name"] for item in listing_items]


async def test_no_increment_of_several_processes_is_lost(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "store.db"
    store = EmbeddedStore(path)
    await store.apply(config_map("counter", {"count": "0"}), field_manager="test")
    script = """
    async def main():
        store = EmbeddedStore(sys.argv[1])
        done = 0
        while done < int(sys.argv[2]):
            found = await store.get(CONFIG_MAP, "counter", "default")
            count = str(int(found["data"]["count"]) + 1)
            try:
                await store.apply(config_map("counter", {"count": count}, resourceVersion=found["metadata"]["resourceVersion"]), field_manager=sys.argv[3])
                done += 1
            except Conflict:
                pass
        await store.close()
    asyncio.run(main())
    """
    processes = [start(script, path, ROUNDS, f"writer-{number}") for number in range(WRITERS)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, timeout=120)
        assert process.returncode == 0, errors
    found = await store.get(CONFIG_MAP, "counter", "default")
    assert found["data"]["count"] == str(WRITERS * ROUNDS)
    assert found["metadata"]["resourceVersion"] == str(2 + WRITERS * ROUNDS)
    await store.close()


async def test_a_watch_sees_every_write_of_other_processes_in_order(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "store.db"
    store = EmbeddedStore(path)
    since = (await store.list(CONFIG_MAP)).resource_version
    script = """
    async def main():
        store = EmbeddedStore(sys.argv[1])
        for number in range(int(sys.argv[2])):
            await store.apply(config_map(sys.argv[3], {"count": str(number)}), field_manager="test")
        await store.close()
    asyncio.run(main())
    """
    for number in range(WRITERS):
        start(script, path, ROUNDS, f"writer-{number}")
    seen: dict[str, list[str]] = {}
    versions: list[int] = []
    async with asyncio.timeout(60):
        async for event in store.watch(CONFIG_MAP, resource_version=since):
            if event.type != "BOOKMARK":
                versions.append(int(event.object["metadata"]["resourceVersion"]))
                seen.setdefault(event.object["metadata"]["name"], []).append(event.object["data"]["count"])
            if len(versions) == WRITERS * ROUNDS:
                break
    assert versions == sorted(versions)
    assert seen == {f"writer-{number}": [str(count) for count in range(ROUNDS)] for number in range(WRITERS)}
    await store.close()


@pytest.mark.parametrize("after_lines", [1, 7, 20])
async def test_a_writer_killed_at_any_moment_leaves_whole_objects(
    tmp_path: Path, start: Start, after_lines: int
) -> None:
    """Each write changes an object, its child and the log. After kill -9 they agree, and what was confirmed is there."""
    path = tmp_path / "store.db"
    script = """
    async def main():
        store = EmbeddedStore(sys.argv[1])
        number = 0
        while True:
            number += 1
            data = {"a": str(number), "b": str(number), "padding": "x" * 100_000}
            owner = await store.apply(config_map("owner", data), field_manager="test")
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
            await store.apply(config_map("child", data, ownerReferences=[reference]), field_manager="test")
            print(number, flush=True)
            await store.delete(CONFIG_MAP, "owner", "default")
    asyncio.run(main())
    """
    process = start(script, path)
    assert process.stdout is not None
    for _ in range(after_lines):
        confirmed = int(await asyncio.to_thread(process.stdout.readline))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)

    store = EmbeddedStore(path)
    listing = await store.list(CONFIG_MAP)
    for item in listing.items:
        assert item["data"]["a"] == item["data"]["b"]
        assert int(item["data"]["a"]) >= confirmed
    # A child never outlives its owner: both went in one write.
    assert names_of(listing.items) in ([], ["owner"], ["child", "owner"])
    replayed: dict[str, Manifest] = {}
    async with asyncio.timeout(60):
        async for event in store.watch(CONFIG_MAP, resource_version="1"):
            replayed[event.object["metadata"]["name"]] = event.object
            if event.type == "DELETED":
                del replayed[event.object["metadata"]["name"]]
            if event.object["metadata"]["resourceVersion"] == listing.resource_version:
                break
    assert sorted(replayed) == names_of(listing.items)
    assert await store.apply(config_map("after", {}), field_manager="test")
    await store.close()


def full_disk_script() -> str:
    return """
    import json
    from belvedere_platform.errors import BelvedereError
    async def main():
        store = EmbeddedStore(sys.argv[1])
        written = 0
        try:
            for number in range(200):
                await store.apply(config_map(f"object-{number}", {"padding": "x" * 50_000}), field_manager="test")
                written += 1
        except BelvedereError as error:
            print(json.dumps({"written": written, "error": type(error).__name__, "message": str(error)}))
        listing = await store.list(CONFIG_MAP)
        print(json.dumps([item["metadata"]["name"] for item in listing.items]))
        await store.close()
    asyncio.run(main())
    """


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_said_and_nothing_is_half_written(small_disk: Path, start: Start) -> None:
    process = start(full_disk_script(), small_disk / "store.db")
    output, errors = await asyncio.to_thread(process.communicate, timeout=120)
    assert process.returncode == 0, errors
    refusal, names = map(json.loads, output.splitlines())
    assert refusal["error"] == "CorruptData"
    assert "full" in refusal["message"]
    assert str(small_disk) in refusal["message"]
    assert len(names) == refusal["written"] > 5


async def test_a_file_size_limit_is_said_too(tmp_path: Path, start: Start) -> None:
    script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += f"resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, {resource.RLIM_INFINITY}))\n"
    process = start(script + textwrap.dedent(full_disk_script()), tmp_path / "store.db")
    output, errors = await asyncio.to_thread(process.communicate, timeout=120)
    assert process.returncode == 0, errors
    refusal, names = map(json.loads, output.splitlines())
    assert refusal["error"] == "CorruptData"
    assert len(names) == refusal["written"]


async def test_history_that_was_dropped_is_gone(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.db", events_kept=10)
    since = (await store.list(CONFIG_MAP)).resource_version
    for number in range(30):
        await store.apply(config_map("a", {"count": str(number)}), field_manager="test")
    with pytest.raises(Gone, match="list again"):
        await anext(store.watch(CONFIG_MAP, resource_version=since))
    current = int((await store.list(CONFIG_MAP)).resource_version)
    event = await anext(store.watch(CONFIG_MAP, resource_version=str(current - 5)))
    assert event.object["metadata"]["resourceVersion"] == str(current - 4)
    with pytest.raises(Gone):
        await anext(store.watch(CONFIG_MAP, resource_version=str(current + 1)))
    await store.close()


async def test_a_quiet_watch_gets_bookmarks_that_follow_other_kinds(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.db", bookmark_seconds=0.01)
    since = (await store.list(SECRET)).resource_version
    changed = await store.apply(config_map("a", {}), field_manager="test")
    async with asyncio.timeout(60):
        async for event in store.watch(SECRET, resource_version=since):
            assert event.type == "BOOKMARK"
            if event.object["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]:
                break
    await store.close()


async def test_a_closed_store_ends_its_watches(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store.db")
    since = (await store.list(CONFIG_MAP)).resource_version
    watching = asyncio.ensure_future(anext(store.watch(CONFIG_MAP, resource_version=since)))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await watching


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "home" / "store.db")
    await store.apply({**config_map("a", {}), "kind": "Secret"}, field_manager="test")
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "home").iterdir()} == {"0o600"}
    await store.close()


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"no database at all" * 100, CorruptData), (b"SQLite format 3\0" + b"\xff" * 4096, CorruptData)],
)
async def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes, error: type[BelvedereError]) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    store = EmbeddedStore(path)
    with pytest.raises(error, match=r"store\.db"):
        await store.list(CONFIG_MAP)
    await store.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Gadget"}, "Gadget"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "Not_A_Name"}}, "Not_A_Name"),
        ({"metadata": {"name": "a", "labels": {"x": 1}}}, r"metadata\.labels\[x\] is 1"),
        ({"metadata": {"name": "a", "ownerReferences": [{"name": "x"}]}}, "apiVersion, kind, uid"),
        ({"data": {"x": float("nan")}}, "JSON"),
        ({"data": {"x": "x" * 2_000_000}}, "make it smaller"),
    ],
)
async def test_a_manifest_that_cannot_be_stored_is_refused(tmp_path: Path, change: Manifest, message: str) -> None:
    store = EmbeddedStore(tmp_path / "store.db")
    with pytest.raises(InvalidInput, match=message):
        await store.apply(config_map("a", {}) | change, field_manager="test")
    assert (await store.list(CONFIG_MAP)).resource_version == "1"
    await store.close()
