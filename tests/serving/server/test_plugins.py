"""Plugins in real, confined processes around a real server's models: loaded, unloaded, killed, greedy, and shut out of network and files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from belvedere_platform.errors import InvalidInput
from belvedere_platform.protocol import EMBED_TEXT, EMBEDDING, InferRequest, InferResponse, Reason, Tensor, V2Error
from belvedere_platform.protocol.grpc_messages import render_infer_request
from belvedere_serving.plugins.folder import Plugins
from belvedere_serving.plugins.settings import PluginSettings
from belvedere_serving.server.service import InferenceService

CODE = """
import os, socket

def before(request):
    text = request.raw_input_contents[0][4:].decode()
    if text == "die":
        os._exit(1)
    if text == "burn":
        while True:
            pass
    if text == "hoard":
        bytearray(4 << 30)
    if text == "refuse":
        raise ValueError("not this word")
    if text == "write":
        open(os.path.join(os.path.dirname(__file__), "left behind"), "w")
    if text == "call":
        socket.create_connection(("127.0.0.1", 1), timeout=2)
    if text == "read":
        assert open(__file__).read()
        text = "red"
    text = text.upper().lower().replace("crimson", "red").encode()
    request.raw_input_contents[0] = len(text).to_bytes(4, "little") + text
    return request

def after(response):
    response.parameters["seen"].bool_param = True
    return response
"""


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the kernel gives no confinement: it is asked in a process of its own."""
    code = "import pathlib, sys; from belvedere_serving.plugins.confinement import confine; confine(pathlib.Path(sys.argv[1]), 1 << 40)"
    words = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("sockets"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path, confined: None) -> Path:
    return tmp_path


def add(folder: Path, name: str, program: str = CODE, **settings: Any) -> None:
    (folder / f"{name}.py").write_text(program)
    (folder / f"{name}.json").write_text(json.dumps({"code": f"{name}.py", **settings}))


@pytest.fixture
def ask(folder: Path, a_service: InferenceService) -> Callable[[str], Any]:
    plugins = Plugins(folder)
    a_service.use_plugins(plugins)

    async def asked(text: str) -> Any:
        request = InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes("TEXT", [text.encode()]),))
        vector, _ = await a_service.infer(lambda: request, lambda _, answer: answer.output(EMBEDDING).array[0], "http")
        return vector

    asked.plugins = plugins  # type: ignore[attr-defined]
    return asked


async def reason_of(asking: Any) -> tuple[Reason, str]:
    with pytest.raises(V2Error) as caught:
        await asking
    return caught.value.reason, caught.value.message


async def test_a_plugin_comes_and_goes_without_a_restart(folder: Path, ask: Any, tiny: ModuleType) -> None:
    unknown = tiny.expected_text(["[UNK]"])
    np.testing.assert_allclose(await ask("crimson"), unknown, atol=1e-6)
    add(folder, "colours", timeoutSeconds=30)
    await ask.plugins.look()
    np.testing.assert_allclose(await ask("crimson"), tiny.expected_text(["red"]), atol=1e-6)
    (folder / "colours.json").unlink()
    await ask.plugins.look()
    np.testing.assert_allclose(await ask("crimson"), unknown, atol=1e-6)


async def test_what_a_plugin_does_wrong_fails_its_request_only(folder: Path, ask: Any, tiny: ModuleType) -> None:
    add(folder, "colours", cpuSeconds=1, timeoutSeconds=30)
    red = tiny.expected_text(["red"])
    for text, reason, said in (
        ("refuse", Reason.INVALID_ARGUMENT, "not this word"),
        ("die", Reason.INTERNAL, "died on this request"),
        ("hoard", Reason.INTERNAL, "failed on this request"),
        ("write", Reason.INTERNAL, "failed on this request"),
        ("call", Reason.INTERNAL, "failed on this request"),
        ("burn", Reason.INTERNAL, "died on this request"),
    ):
        got = await reason_of(ask(text))
        assert (got[0], said in got[1]) == (reason, True), got
        np.testing.assert_allclose(await ask("crimson"), red, atol=1e-6, err_msg=text)
    np.testing.assert_allclose(await ask("read"), red, atol=1e-6)
    assert not (folder / "left behind").exists()


async def test_one_that_does_not_answer_in_time_is_ended(folder: Path, ask: Any, tiny: ModuleType) -> None:
    add(folder, "slow", "import time\ndef after(response):\n    time.sleep(60)\n", timeoutSeconds=0.2)
    assert (await reason_of(ask("red")))[0] is Reason.DEADLINE_EXCEEDED
    ((_, plugin),) = ask.plugins._running.values()
    assert plugin.pid is None


HELD = """
import os, time
def before(request):
    if request.raw_input_contents[0][4:] == b"apple":
        while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
            time.sleep(0.01)
    return request
"""


async def test_a_client_without_patience_harms_nobody_else(folder: Path, ask: Any, tiny: ModuleType) -> None:
    add(folder, "held", HELD, timeoutSeconds=60)
    await ask("red")
    ((_, plugin),) = ask.plugins._running.values()
    before = plugin.pid
    message = render_infer_request(
        InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes("TEXT", [b"apple"]),))
    ).SerializeToString()
    late = asyncio.create_task(plugin.call("Before", message, 0.1))
    assert (await reason_of(late))[0] is Reason.DEADLINE_EXCEEDED
    gone = asyncio.create_task(plugin.call("Before", message, 60))
    patient = asyncio.create_task(ask("red"))
    await asyncio.sleep(0)
    gone.cancel()
    (folder / "go").touch()
    np.testing.assert_allclose(await patient, tiny.expected_text(["red"]), atol=1e-6)
    assert plugin.pid == before


async def test_a_client_that_leaves_while_it_is_started_again_leaves_it_whole(
    folder: Path, ask: Any, tiny: ModuleType
) -> None:
    add(folder, "colours", timeoutSeconds=60)
    await ask("crimson")
    ((_, plugin),) = ask.plugins._running.values()
    await plugin.close()
    leaving = asyncio.create_task(ask("crimson"))
    while plugin._process is None:  # noqa: ASYNC110 - in the middle of being started
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    np.testing.assert_allclose(await ask("crimson"), tiny.expected_text(["red"]), atol=1e-6)


async def test_a_talkative_one_goes_on(folder: Path, ask: Any, tiny: ModuleType) -> None:
    add(folder, "talks", "def before(request):\n    print('x' * 400_000)\n    return request\n", timeoutSeconds=30)
    for _ in range(2):
        np.testing.assert_allclose(await ask("red"), tiny.expected_text(["red"]), atol=1e-6)


async def test_one_that_was_killed_is_started_again(folder: Path, ask: Any, tiny: ModuleType) -> None:
    add(folder, "colours", timeoutSeconds=30)
    await ask("crimson")
    ((_, plugin),) = ask.plugins._running.values()
    os.kill(plugin.pid, signal.SIGKILL)
    await plugin._process.wait()
    np.testing.assert_allclose(await ask("crimson"), tiny.expected_text(["red"]), atol=1e-6)


@pytest.mark.parametrize(
    ("code", "settings"),
    [("raise RuntimeError('broken')", {}), ("x = 1", {}), (CODE, {"cpuSeconds": 0}), (CODE, {"code": "../x.py"})],
)
async def test_a_broken_one_is_left_out(
    folder: Path, ask: Any, tiny: ModuleType, code: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, "broken", code, **settings)
    np.testing.assert_allclose(await ask("red"), tiny.expected_text(["red"]), atol=1e-6)
    assert [record.message for record in caplog.records if record.name.startswith("belvedere")] == ["plugin not loaded"]


async def test_steps_go_by_order_and_come_back_in_reverse() -> None:
    """The order alone, without processes."""

    class Noted:
        def __init__(self, name: str, order: int) -> None:
            self.name, self.settings = name, PluginSettings(code="x.py", order=order, models=(EMBED_TEXT,))

        async def call(self, step: str, message: bytes, seconds: float) -> bytes:
            seen.append((self.name, step))
            return message

    seen: list[tuple[str, str]] = []
    plugins = Plugins(Path("nowhere"))
    await plugins.look()
    plugins._running = {name: ((0, 0), Noted(name, order)) for name, order in (("b", 1), ("a", 2))}  # type: ignore[misc]
    request = InferRequest(model_name=EMBED_TEXT, inputs=(Tensor.of_bytes("TEXT", [b"x"]),))
    plugins._looking = None
    plugins.look = _nothing  # type: ignore[method-assign]
    await plugins.before(request, 1e12)
    vector = Tensor(EMBEDDING, "FP32", np.zeros((1, 2), np.float32))
    await plugins.after(InferResponse(model_name=EMBED_TEXT, model_version="1", id="", outputs=(vector,)), 1e12)
    assert seen == [("b", "Before"), ("a", "Before"), ("a", "After"), ("b", "After")]


async def _nothing() -> None:
    return None


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"code": "x.py", "memoryMebibytes": 1}')
    with pytest.raises(InvalidInput, match=r"x\.json: memoryMebibytes"):
        PluginSettings.read(tmp_path / "x.json")
