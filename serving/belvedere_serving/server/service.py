"""The server apart from protocols: which models there are, whether they are ready, and the way of a request through them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from belvedere_platform.errors import InvalidInput
from belvedere_platform.protocol import (
    EMBED_IMAGE,
    EMBED_TEXT,
    EMBEDDING,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Reason,
    ServerMetadata,
    V2Error,
    embedding_metadata,
)
from belvedere_serving.engines.lengths import buckets
from belvedere_serving.engines.runtime import TOWER_INPUT, Runtime
from belvedere_serving.plugins.folder import Plugins
from belvedere_serving.server import describe
from belvedere_serving.server.admission import Lane
from belvedere_serving.server.batching import Batcher, on_thread
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.engine_cache import LoadedEngine
from belvedere_serving.server.head_models import EnginePlace, head_models, warm_up_heads
from belvedere_serving.server.metrics import ServerMetrics
from belvedere_serving.server.models import Model, ServedModel, no_tokens
from belvedere_serving.server.patience import Patience
from belvedere_serving.server.statistics import ModelStatistics
from belvedere_serving.server.timing import Timing
from belvedere_serving.server.tracing import Tracing, tracing_of
from belvedere_serving.server.waiting import Sizing

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
Rendered = TypeVar("Rendered")
STUCK_SECONDS = 120.0
SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another waits for it. By Python's own 5 ms, the thread that prepares pictures would
wait as long for each of its steps while the event loop is busy with refusing: it then prepares a few dozen a second."""
SELDOM = (20_000, 20, 20)
"""After how many more objects than have gone Python looks for circles among the youngest, and how many times before among older ones."""
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Call:
    """A request on its way: what is known of it by now."""

    started: float
    timing: Timing = field(default_factory=Timing)
    model: Model | None = None
    rows: int = 0


class InferenceService:
    """Answers V2 requests with some models, whatever they came over."""

    def __init__(
        self,
        models: Sequence[Model],
        metrics: ServerMetrics,
        *,
        request_timeout_seconds: float = 60,
        model_name: str = "",
        version: str = "",
        tracing: Tracing | None = None,
        executors: Sequence[Executor] = (),
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._metrics = metrics
        self._request_timeout_seconds = request_timeout_seconds
        self.model_name = model_name
        self.version = version
        self._tracing = tracing or Tracing()
        self._executors = executors
        self._patience = patience
        self._clock = clock
        self._closing = False
        self._plugins: Plugins | None = None

    def use_plugins(self, plugins: Plugins) -> None:
        """Let these have a look at each request and each answer."""
        self._plugins = plugins

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return not self._closing

    def server_metadata(self) -> ServerMetadata:
        """Return who answers."""
        return ServerMetadata(name="belvedere", version=package_version("belvedere"), extensions=EXTENSIONS)

    def model(self, name: str, version: str = "") -> Model:
        """Return a model, or raise NOT_FOUND."""
        found = self._models.get(name)
        if found is None:
            raise V2Error(Reason.NOT_FOUND, f"there is no model '{name[:64]}'; there are {', '.join(self._models)}")
        if version not in ("", found.version):
            raise V2Error(
                Reason.NOT_FOUND, f"model '{name}' has no version '{version[:64]}'; this server has '{found.version}'"
            )
        return found

    def has(self, name: str, version: str = "") -> bool:
        """Return whether there is such a model."""
        found = self._models.get(name)
        return found is not None and version in ("", found.version)

    def num_tokens(self, name: str, elements: Sequence[bytes]) -> int:
        """Return how many tokens some inputs of a model have; pictures have none."""
        return self.model(name).num_tokens(elements)

    def models(self, name: str = "", version: str = "") -> tuple[Model, ...]:
        """Return the models of this name, all without one, or raise NOT_FOUND."""
        return (self.model(name, version),) if name else tuple(self._models.values())

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Return a model's configuration in Triton's form, or raise NOT_FOUND."""
        model = self.model(name, version)
        return describe.model_config(model.metadata, model.max_batch_size, decoupled=model.decoupled)

    def model_statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return the counters of a model, or of all, in Triton's form. Raises NOT_FOUND."""
        return describe.statistics(self.models(name, version))

    def repository_index(self) -> list[dict[str, str]]:
        """Return the models with their states, in Triton's form."""
        return describe.repository_index(self.models(), ready=self.ready)

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Return a model's inputs and outputs, or raise NOT_FOUND."""
        return self.model(name, version).metadata

    async def infer(
        self,
        read: Callable[[], InferRequest],
        render: Callable[[InferRequest, InferResponse], Rendered],
        protocol: str,
        *,
        timeout_seconds: float | None = None,
        carrier: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Rendered, Timing]:
        """Read a request, answer it, and count it with its outcome. Raises V2Error and nothing else."""
        with self._counted(protocol, carrier) as call:
            request, model, deadline = await self._opened(call, read, timeout_seconds)
            response = await model.infer(request, deadline, call.timing)
            if self._plugins is not None:
                response = await self._plugins.after(response, deadline)
            rendered, call.rows = self._render(render, request, response, call.timing), response.rows
        return rendered, call.timing

    async def stream(
        self,
        read: Callable[[], InferRequest],
        protocol: str,
        *,
        timeout_seconds: float | None = None,
        carrier: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncGenerator[InferResponse]:
        """Read a request and give its answers as they come; count it when it is over. Raises V2Error and nothing else."""
        with self._counted(protocol, carrier) as call:
            request, model, deadline = await self._opened(call, read, timeout_seconds)
            async with contextlib.aclosing(model.stream(request, deadline, call.timing)) as answers:
                async for answer in answers:
                    call.rows = answer.rows
                    yield answer

    async def _opened(
        self, call: _Call, read: Callable[[], InferRequest], timeout_seconds: float | None
    ) -> tuple[InferRequest, Model, float]:
        """Return the request as its plugins would have it, the model that it asks, and its deadline."""
        request = read()
        model = call.model = self.model(request.model_name, request.model_version)
        deadline = call.started + self._timeout(request, timeout_seconds)
        if self._plugins is not None:
            request = await self._plugins.before(request, deadline)
        return request, model, deadline

    @contextlib.contextmanager
    def _counted(self, protocol: str, carrier: Mapping[str, str]) -> Iterator[_Call]:
        """Count a request with its outcome, whatever that is. Lets V2Error and the end of the caller through, and nothing else."""
        call, code = _Call(started=self._clock()), Reason.INTERNAL.name
        try:
            yield call
            code = "OK"
        except V2Error as error:
            code = error.reason.name
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = Reason.CANCELLED.name
            raise
        except Exception as error:
            log.exception("request failed")
            raise V2Error(Reason.INTERNAL, f"the server failed: {type(error).__name__}") from error
        finally:
            name = call.model.name if call.model is not None else "unknown"
            self._metrics.count_request(name, protocol, code)
            seconds = self._clock() - call.started
            if call.model is not None:
                call.model.count(seconds, call.timing, call.rows if code == "OK" else None)
            self._tracing.record(name, carrier, seconds, call.timing, code=code, version=self.version)

    def _render(
        self,
        render: Callable[[InferRequest, InferResponse], Rendered],
        request: InferRequest,
        response: InferResponse,
        timing: Timing,
    ) -> Rendered:
        started = self._clock()
        rendered = render(request, response)
        timing.postprocess_seconds = self._clock() - started
        self._metrics.observe_seconds("postprocess", response.model_name, timing.postprocess_seconds)
        return rendered

    def _timeout(self, request: InferRequest, timeout_seconds: float | None) -> float:
        """Return the shortest of what the connection, the request (in microseconds, as in Triton) and the server allow."""
        limits = [self._request_timeout_seconds]
        if timeout_seconds is not None:
            limits.append(timeout_seconds)
        asked = request.parameters.get("timeout")
        if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
            limits.append(asked / 1e6)
        return min(limits)

    def check_health(self) -> None:
        """Raise when the engine has been in one run for so long that it won't come back."""
        for model in self._models.values():
            since = model.running_since
            if since is not None and self._clock() - since > STUCK_SECONDS:
                raise RuntimeError(f"model '{model.name}' has been running one batch for {STUCK_SECONDS:.0f} s")

    def retry_after(self, model: str, timeout_seconds: float | None, inside: int) -> int | None:
        """Return after how many seconds to come again, where one more request beside so many could not be answered in time."""
        found = self._models.get(model)
        if found is None:
            return None
        limit = self._request_timeout_seconds
        return found.retry_after(limit if timeout_seconds is None else min(limit, timeout_seconds), inside)

    def count_refused(self, model: str, protocol: str, number: int = 1) -> None:
        """Count requests that were refused before they were read."""
        if self._patience is not None:
            self._patience.refused()
        name = model if model in self._models else "unknown"
        self._metrics.count_dropped(name, "busy", number)
        self._metrics.count_request(name, protocol, Reason.RESOURCE_EXHAUSTED.name, number)

    async def close(self) -> None:
        """Stop taking requests and end the workers."""
        self._closing = True
        if self._patience is not None:
            self._patience.close()
        for model in self._models.values():
            await model.close()
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)
        if self._plugins is not None:
            await self._plugins.close()
        self._tracing.close()


def on_rows(runtime: Runtime, tower: str) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return a tower as a function of its rows."""
    return lambda rows: runtime.run(tower, {TOWER_INPUT[tower]: rows})[EMBEDDING]


def assemble(engine: LoadedEngine, config: ServerConfig, metrics: ServerMetrics) -> InferenceService:
    """Return the service of an engine. One worker thread runs both towers: a replica has the cores of one."""
    place = EnginePlace(
        executor=ThreadPoolExecutor(1, thread_name_prefix="engine"),
        preparing=ThreadPoolExecutor(1, thread_name_prefix="prepare"),
        lane=Lane(),
        policy=config.batch_policy,
    )
    models: list[Model] = [_tower_model(engine, tower, config, metrics, place) for tower in engine.towers]
    if engine.heads is not None:
        models += head_models(engine.heads, engine.text, engine.image, config, metrics, place)
    models = chosen(models, config.models)
    told = {"namespace": config.namespace, "service": config.service, "version": config.version}
    service = InferenceService(
        models,
        metrics,
        request_timeout_seconds=config.request_timeout_seconds,
        model_name=config.model,
        version=config.version,
        tracing=tracing_of(resource={f"belvedere.{name}": value for name, value in told.items()}),
        executors=(place.executor, place.preparing),
        patience=Patience(),
    )
    if config.plugins:
        service.use_plugins(Plugins(Path(config.plugins)))
    return service


def _tower_model(
    engine: LoadedEngine, tower: str, config: ServerConfig, metrics: ServerMetrics, place: EnginePlace
) -> ServedModel:
    """Return the model that embeds with a tower."""
    # Texts take microseconds; pictures may be large, so they are decoded off the event loop.
    preprocess, preparing = (engine.text, None) if tower == EMBED_TEXT else (engine.image, place.preparing)
    counters = ModelStatistics()
    batcher = Batcher(
        tower,
        on_thread(on_rows(engine.runtime, tower), place.executor, place.lane.lag),
        place.policy,
        metrics,
        version=config.version,
        lane=place.lane,
        statistics=counters,
        sizing=_sizing(engine, tower),
    )
    return ServedModel(
        metadata=embedding_metadata(tower, config.version, PLATFORM, engine.runtime.dimension(tower)),
        version=config.version,
        preprocess=preprocess,
        batcher=batcher,
        statistics=counters,
        metrics=metrics,
        max_rows=config.max_rows_a_request,
        preparing=preparing,
        num_tokens=engine.text.num_tokens if tower == EMBED_TEXT else no_tokens,
    )


def _sizing(engine: LoadedEngine, tower: str) -> Sizing | None:
    """Return how the inputs of a tower are sized: texts by their tokens, where the engine takes any number of them."""
    if tower != EMBED_TEXT or not engine.runtime.flexible(tower):
        return None
    return Sizing(full=engine.text.context_length, lengths=engine.text.lengths)


def chosen(models: Sequence[Model], names: Sequence[str]) -> list[Model]:
    """Return the models of these names, all without any. Raises InvalidInput for one that the engine has not."""
    there = {model.name: model for model in models}
    if missing := [name for name in names if name not in there]:
        raise InvalidInput(
            f"argument models names {missing[0]!r}; this engine has {', '.join(there) or 'none of them'}"
        )
    return [there[name] for name in names or there]


def take_short_turns() -> None:
    """Let this process's threads change often enough for each to do its part under overload."""
    sys.setswitchinterval(SWITCH_SECONDS)


def collect_seldom() -> None:
    """Let Python look for circles of objects seldom, and never among what a server that has started consists of.

    What requests leave behind has no circles, and each look goes through all that are under way. It cost most when there was least
    time for it: under overload a replica on Ray answered 0.82 of its peak in time with Python's own numbers, 0.93 with these.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)


def warm_up(engine: LoadedEngine, max_batch_size: int) -> None:
    """Run each tower once alone and once full, so that no client pays for first allocations."""
    full: Mapping[str, Callable[[], npt.NDArray[Any]]] = {
        EMBED_TEXT: lambda: engine.text([b""]),
        EMBED_IMAGE: engine.image.blank,
    }
    for tower in engine.towers:
        (sample,), sizing = full[tower](), _sizing(engine, tower)
        for length in buckets(sizing.full) if sizing else (len(sample),):
            for rows in (1, max_batch_size * len(sample) // length):
                engine.runtime.run(tower, {TOWER_INPUT[tower]: np.repeat(sample[np.newaxis, :length], rows, axis=0)})
    if engine.heads is not None:
        warm_up_heads(engine.heads, engine.image, engine.text)
