"""The artifact store: the same content has the same digest, reads are checked, pulls are whole."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere_platform.artifacts import ArtifactKind, ArtifactNotFound, ArtifactStore, CorruptBlob
from belvedere_platform.artifacts.errors import StorageFull
from belvedere_platform.artifacts.layout import digest_of
from belvedere_platform.artifacts.storage import LocalStorage
from belvedere_platform.errors import InvalidInput, NotFound

FILES = {"model.safetensors": b"weights", "model.json": b"{}", "examples/1.png": b"picture"}
CONFIG = {"model": "emoji-clip", "version": "v1", "metrics": {"heldout_style_en_r1": 0.5}}

NAMES = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}\.[a-z]{1,4}", fullmatch=True)
CONTENTS = st.dictionaries(NAMES, st.binary(max_size=64), min_size=1, max_size=6)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store on each kind of storage."""
    return ArtifactStore(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path}")


def blob(store: ArtifactStore, digest: str) -> Path:
    return Path(store.url.removeprefix("file://")) / "blobs/sha256" / digest.removeprefix("sha256:")


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_what_is_pushed_comes_back(store: ArtifactStore, tmp_path: Path) -> None:
    pushed = store.push(ArtifactKind.MODEL, FILES, config=CONFIG, tag="models/v1")
    assert store.resolve("models/v1") == store.resolve(pushed.digest) == pushed
    assert store.config("models/v1") == {**CONFIG, "kind": "model"}
    assert store.read("models/v1", "examples/1.png") == b"picture"
    assert files_in(store.pull("models/v1", tmp_path / "out")) == FILES
    assert pushed.size_bytes == sum(map(len, FILES.values()))
    assert store.verify("models/v1") == pushed


@settings(deadline=None, max_examples=40)
@given(files=CONTENTS, config=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3))
def test_the_digest_depends_on_the_content_alone(files: dict[str, bytes], config: dict[str, int | str]) -> None:
    config.pop("kind", None)
    with tempfile.TemporaryDirectory() as folder:
        first, second = ArtifactStore(f"{folder}/a"), ArtifactStore(f"{folder}/b")
        source = Path(folder) / "source"
        for name, content in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
        for kind in ArtifactKind:
            from_bytes = first.push(kind, files, config=config, tag=kind.value)
            from_paths = second.push(kind, {name: source / name for name in reversed(files)}, config=config)
            assert from_bytes.digest == from_paths.digest
            assert first.config(from_bytes.digest) == {**config, "kind": kind.value}
            assert files_in(first.pull(kind.value, Path(folder) / kind.value)) == files


@given(files=CONTENTS, other=st.binary(min_size=65, max_size=80))
@settings(deadline=None, max_examples=25)
def test_another_file_or_config_has_another_digest(files: dict[str, bytes], other: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        first = store.push("engine", files, config={"a": 1})
        changed = {**files, next(iter(files)): other}
        assert len({first.digest, store.push("engine", changed, config={"a": 1}).digest}) == 2
        assert store.push("engine", files, config={"a": 2}).digest != first.digest


def test_it_is_an_oci_layout_with_modelpack_types(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    model = store.push("model", FILES, config=CONFIG, tag="models/v1")
    engine = store.push("engine", {"a.onnx": b"x"}, config={"modelDigest": model.digest}, subject=model.digest)
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "index.json").read_text())
    assert [entry.get("annotations") for entry in index["manifests"] if entry["digest"] == model.digest] == [
        {"org.opencontainers.image.ref.name": "models/v1"}
    ]
    manifest = json.loads(blob(store, model.digest).read_bytes())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]} == {
        "examples/1.png": "application/vnd.cncf.model.doc.v1.raw",
        "model.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "model.safetensors": "application/vnd.cncf.model.weight.v1.raw",
    }
    config = json.loads(blob(store, manifest["config"]["digest"]).read_bytes())
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert set(config) == {"descriptor", "config", "modelfs"}
    built = json.loads(blob(store, engine.digest).read_bytes())
    assert built["artifactType"] == "application/vnd.belvedere.engine.manifest.v1+json"
    assert built["subject"]["digest"] == model.digest


def test_a_tag_moves_and_the_artifact_before_it_stays(store: ArtifactStore) -> None:
    first = store.push("dataset", {"a": b"1"}, config={}, tag="datasets/emoji")
    second = store.push("dataset", {"a": b"2"}, config={}, tag="datasets/emoji")
    assert store.resolve("datasets/emoji").digest == second.digest
    assert store.resolve(first.digest).tags == ()
    store.tag(first.digest, "datasets/old")
    store.tag("datasets/old", "datasets/older")
    assert store.resolve(first.digest).tags == ("datasets/old", "datasets/older")
    store.untag("datasets/old")
    store.untag("datasets/older")
    assert [one.digest for one in store.list()] == [second.digest, first.digest]


def test_garbage_goes_and_what_is_kept_stays_whole(store: ArtifactStore, tmp_path: Path) -> None:
    model = store.push("model", FILES, config=CONFIG)
    engine = store.push(
        "engine", {"a.onnx": b"x", "same": b"weights"}, config={}, subject=model.digest, tag="engines/x"
    )
    lost = store.push("dataset", {"a": b"lost", "same": b"weights"}, config={}, tag="datasets/lost")
    planned = store.collect_garbage(["engines/x"], dry_run=True)
    assert store.resolve("datasets/lost")
    if store.url.startswith("memory"):
        # Uploads younger than an hour may belong to a push that is still running.
        assert planned.blobs == ()
        return
    garbage = store.collect_garbage(["engines/x", "no/such/tag"])
    assert garbage == planned
    assert [one.digest for one in garbage.artifacts] == [lost.digest]
    assert {one.digest for one in store.list()} == {model.digest, engine.digest}
    assert store.verify(model.digest)
    assert store.verify("engines/x")
    with pytest.raises(ArtifactNotFound):
        store.resolve("datasets/lost")
    assert store.collect_garbage(["engines/x"]).blobs == ()


def test_what_came_since_the_decision_stays(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.push("model", {"a": b"old"}, config={}, tag="models/old")
    tagged = store.push("model", {"a": b"tagged"}, config={}, tag="models/tagged")
    seen = store.list()
    pushed = store.push("model", {"a": b"new"}, config={})
    store.tag(tagged.digest, "models/again")
    store.collect_garbage([], among=seen)
    assert {one.digest for one in store.list()} == {pushed.digest, tagged.digest}


def test_a_pull_keeps_what_is_right_and_mends_what_is_not(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    store.push("model", FILES, config=CONFIG, tag="models/v1")
    out = store.pull("models/v1", tmp_path / "out")
    untouched = (out / "model.json").stat()
    (out / "model.safetensors").write_bytes(b"wEights")
    (out / "examples/1.png").unlink()
    store.pull("models/v1", out)
    assert files_in(out) == FILES
    assert (out / "model.json").stat() == untouched


def test_a_broken_pull_goes_on_and_shows_nothing_before_it_is_whole(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    pushed = store.push("model", FILES, config=CONFIG, tag="models/v1")
    last = blob(store, pushed.files[-1].digest)
    hidden = tmp_path / "hidden"
    last.rename(hidden)
    with pytest.raises(CorruptBlob, match=r"model.safetensors of models/v1 .*the blob is missing"):
        store.pull("models/v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fetched = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(".out.*.partial/*") if path.is_file()}
    assert fetched
    hidden.rename(last)
    store.pull("models/v1", tmp_path / "out")
    assert files_in(tmp_path / "out") == FILES
    assert {(tmp_path / "out" / path.name).stat().st_mtime_ns for path in fetched} == set(fetched.values())


@given(position=st.integers(min_value=0, max_value=6), flip=st.integers(min_value=1, max_value=255))
@settings(deadline=None, max_examples=20)
def test_a_corrupted_byte_is_named_and_a_push_mends_it(position: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(f"{folder}/store")
        pushed = store.push("model", FILES, config=CONFIG, tag="models/v1")
        weights = next(entry for entry in pushed.files if entry.name == "model.safetensors")
        path = blob(store, weights.digest)
        content = bytearray(path.read_bytes())
        content[position] ^= flip
        path.write_bytes(content)
        for read in (
            lambda: store.read("models/v1", "model.safetensors"),
            lambda: store.verify("models/v1"),
            lambda: store.pull("models/v1", Path(folder) / "out"),
        ):
            with pytest.raises(CorruptBlob, match="push the artifact again") as caught:
                read()
            assert caught.value.expected == weights.digest
            assert "model.safetensors of models/v1" in str(caught.value)
        assert not (Path(folder) / "out").exists()
        assert store.push("model", FILES, config=CONFIG).digest == pushed.digest
        assert store.verify("models/v1")


def test_a_corrupted_manifest_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    pushed = store.push("model", FILES, config=CONFIG, tag="models/v1")
    blob(store, pushed.digest).write_bytes(b"{}")
    with pytest.raises(CorruptBlob, match="the manifest of models/v1"):
        store.resolve("models/v1")


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "", "a//b", "./a", "a\\b"])
def test_names_cannot_leave_the_directory(store: ArtifactStore, name: str) -> None:
    with pytest.raises(InvalidInput, match="relative path"):
        store.push("model", {name: b""}, config={})


@pytest.mark.parametrize("tag", ["", "/a", "a b", "a//", "sha256:" + "0" * 64, "ä"])
def test_tags_are_checked(store: ArtifactStore, tag: str) -> None:
    with pytest.raises(InvalidInput, match="tag"):
        store.push("model", {"a": b""}, config={}, tag=tag)


def test_what_is_missing_is_said(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="it has nothing yet"):
        store.resolve("models/v1")
    store.push("model", FILES, config=CONFIG, tag="models/v1")
    with pytest.raises(ArtifactNotFound, match=r"no artifact 'models/v2' .* it has models/v1"):
        store.resolve("models/v2")
    with pytest.raises(ArtifactNotFound, match=r"has no file 'model.bin'; it has examples/1.png, model.json"):
        store.read("models/v1", "model.bin")
    with pytest.raises(NotFound, match=r"file .*absent, to be pushed as a, does not exist"):
        store.push("model", {"a": tmp_path / "absent"}, config={})
    with pytest.raises(InvalidInput, match="kind 'picture' must be one of dataset, model, engine"):
        store.push("picture", FILES, config={})
    with pytest.raises(InvalidInput, match="at least one file"):
        store.push("model", {}, config={})
    with pytest.raises(ArtifactNotFound):
        store.push("engine", FILES, config={}, subject="sha256:" + "0" * 64)


def test_a_failed_push_leaves_the_index_alone(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    store.push("model", FILES, config=CONFIG, tag="models/v1")
    before = (tmp_path / "store/index.json").read_bytes()
    with pytest.raises(NotFound):
        store.push("model", {"a": b"new", "b": tmp_path / "absent"}, config={}, tag="models/v2")
    assert (tmp_path / "store/index.json").read_bytes() == before
    assert [one.tags for one in store.list()] == [("models/v1",)]


def test_a_store_can_be_copied(tmp_path: Path) -> None:
    ArtifactStore(str(tmp_path / "a")).push("model", FILES, config=CONFIG, tag="models/v1")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert ArtifactStore(str(tmp_path / "b")).verify("models/v1")


@pytest.mark.parametrize("there", [False, True], ids=["new directory", "directory that exists"])
def test_a_second_pull_by_digest_reads_nothing_from_the_store(tmp_path: Path, there: bool) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    pushed, out = store.push(ArtifactKind.MODEL, FILES, config=CONFIG, tag="models/v1"), tmp_path / "out"
    if there:
        out.mkdir()
    store.pull(pushed.digest, out)
    away = tmp_path / "away"
    (tmp_path / "store").rename(away)
    assert files_in(ArtifactStore(str(tmp_path / "store")).pull(pushed.digest, out)) == FILES
    # A tag may name another artifact by now, and a file that is no longer right must be read again.
    with pytest.raises(ArtifactNotFound):
        store.pull("models/v1", out)
    damaged = out / sorted(FILES)[0]
    damaged.write_bytes(b"damaged")
    with pytest.raises(ArtifactNotFound):
        store.pull(pushed.digest, out)
    away.rename(tmp_path / "store")
    assert files_in(store.pull(pushed.digest, out)) == FILES


class SlowIndex(LocalStorage):
    """Counts the writes of the index, and holds the first one until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes = 0
        self.fails = False
        self.held, self.go_on = threading.Event(), threading.Event()

    def write(self, path: str, source: IO[bytes], *, expected: str | None = None) -> str:
        if path != "index.json":
            return super().write(path, source, expected=expected)
        self.writes += 1
        if self.writes == 1 and not self.go_on.is_set():
            self.held.set()
            assert self.go_on.wait(30)
            if self.fails:
                raise StorageFull(str(self.root), "writing index.json")
        return super().write(path, source)


@pytest.mark.parametrize("fails", [False, True])
def test_tags_that_wait_for_the_index_are_written_together(tmp_path: Path, fails: bool) -> None:
    plain = ArtifactStore(str(tmp_path / "store"))
    digest = plain.push(ArtifactKind.MODEL, FILES, config=CONFIG).digest
    storage = SlowIndex(tmp_path / "store")
    storage.fails = fails
    store = ArtifactStore("", storage=storage)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(store.tag, digest, "models/first")
        assert storage.held.wait(30)
        others = [threads.submit(store.tag, digest, f"models/{number}") for number in range(7)]
        while len(store._index._unwritten) < len(others):
            assert not any(one.done() for one in others)
        storage.go_on.set()
        if fails:
            with pytest.raises(StorageFull):
                first.result()
        for one in (*others, *(() if fails else (first,))):
            one.result()
    assert storage.writes == 2
    expected = {f"models/{number}" for number in range(7)} | (set() if fails else {"models/first"})
    assert set(plain.resolve(digest).tags) == expected


def test_a_tag_that_stands_is_not_written_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    pushed = store.push(ArtifactKind.MODEL, FILES, config=CONFIG, tag="models/v1")
    before = (tmp_path / "store" / "index.json").stat().st_ino
    assert store.tag(pushed.digest, "models/v1") == pushed
    assert (tmp_path / "store" / "index.json").stat().st_ino == before


def put_foreign(store: ArtifactStore) -> dict[str, str]:
    """Add what other tools put into a layout: an image for two platforms, and a signature of a model. Digests by name."""
    root = Path(store.url.removeprefix("file://"))

    def put(content: bytes) -> dict[str, object]:
        digest = digest_of(content)
        blob(store, digest).write_bytes(content)
        return {"mediaType": "application/octet-stream", "digest": digest, "size": len(content)}

    def image(name: str, **more: object) -> dict[str, object]:
        document = {
            "schemaVersion": 2,
            "config": put(f"config {name}".encode()),
            "layers": [put(name.encode())],
            **more,
        }
        return {**put(json.dumps(document).encode()), "mediaType": "application/vnd.oci.image.manifest.v1+json"}

    model = store.resolve("models/v1")
    subject = {"digest": model.digest, "size": model.manifest_size}
    inner = image("for amd64")
    several = {"schemaVersion": 2, "manifests": [{**inner, "platform": {"architecture": "amd64", "os": "linux"}}]}
    index_type = "application/vnd.oci.image.index.v1+json"
    image_index = {
        **put(json.dumps(several).encode()),
        "mediaType": index_type,
        "annotations": {"org.opencontainers.image.ref.name": "images/server", "org.example.from": "elsewhere"},
    }
    signature = image("signature", artifactType="application/vnd.example.signature", subject=subject)
    index = json.loads((root / "index.json").read_text())
    index["manifests"] += [image_index, signature]
    (root / "index.json").write_text(json.dumps(index))
    found = {"image": image_index, "inner": inner, "signature": signature}
    return {name: str(entry["digest"]) for name, entry in found.items()}


def test_what_is_foreign_is_named_and_keeps_what_it_refers_to(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    model = store.push("model", FILES, config=CONFIG, tag="models/v1")
    lost = store.push("dataset", {"a": b"lost"}, config={}, tag="datasets/lost")
    digests = put_foreign(store)
    entries = json.loads((tmp_path / "index.json").read_text())["manifests"]
    theirs = [one for one in entries if one["digest"] in digests.values()]
    assert {one.digest for one in store.list()} == {model.digest, lost.digest}
    assert [(one.digest, one.artifact_type, one.tags) for one in store.contents()[1]] == [
        (digests["image"], "application/vnd.oci.image.index.v1+json", ("images/server",)),
        (digests["signature"], "application/vnd.example.signature", ()),
    ]
    garbage = store.collect_garbage([], among=store.list())
    assert [one.digest for one in garbage.artifacts] == [lost.digest], "the signed model is referred to"
    assert set(garbage.blobs) == lost.blobs - model.blobs
    assert store.verify("models/v1")
    for foreign in store.contents()[1]:
        for digest in foreign.refers:
            assert blob(store, digest).is_file()
    after = json.loads((tmp_path / "index.json").read_text())["manifests"]
    assert len(theirs) == 2
    assert all(one in after for one in theirs), "their entries are as they were"
    with pytest.raises(InvalidInput, match=r"signature.* Belvedere reads"):
        store.resolve(digests["signature"])


def test_a_tag_taken_from_what_is_foreign_leaves_it_there(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.push("model", FILES, config=CONFIG, tag="models/v1")
    digests = put_foreign(store)
    store.tag("models/v1", "images/server")
    image = next(
        one
        for one in json.loads((tmp_path / "index.json").read_text())["manifests"]
        if one["digest"] == digests["image"]
    )
    assert image["annotations"] == {"org.example.from": "elsewhere"}
    assert image["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert digests["image"] in {one.digest for one in store.contents()[1]}
