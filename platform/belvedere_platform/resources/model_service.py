"""ModelService: keeps a version of a model served, and replaces it safely by another."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError

from belvedere_platform.errors import InvalidInput
from belvedere_platform.resources.base import CelRule, Name, Part, PrinterColumn, Resource
from belvedere_platform.resources.engine import EngineTarget, ParityGate
from belvedere_platform.resources.model_service_status import ModelServiceStatus
from belvedere_platform.resources.pod_patch import PodPatch


class LatencyObjective(Part):
    """`objective` of the requests answer within `thresholdMilliseconds`."""

    threshold_milliseconds: Annotated[float, Field(gt=0, le=600_000)] = 250
    objective: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Slo(Part):
    """What the service promises."""

    availability: Annotated[float, Field(gt=0, lt=1, description="share of requests without an error")] = 0.99
    latency: LatencyObjective = LatencyObjective()


class Autoscaler(Part):
    """An autoscaler of the cluster in the place of Belvedere's own: it writes `scaling.minReplicas`, through `/scale`."""

    kind: Annotated[
        Literal["HorizontalPodAutoscaler", "ScaledObject"],
        Field(
            description="HorizontalPodAutoscaler scales by CPU (metrics-server), ScaledObject (KEDA) by requests in flight"
        ),
    ]
    # No defaults here: the API server would fill them in for nobody, and they would stay when the autoscaler is left out.
    min_replicas: Annotated[int | None, Field(ge=1, le=1000, description="how few it may ask for; 1 when left out")] = (
        None
    )
    target_cpu_percent: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="HorizontalPodAutoscaler: use of the CPU that a replica asks for; 70 when left out",
        ),
    ] = None


class Scaling(Part):
    """How many replicas, and when that changes."""

    min_replicas: Annotated[
        int, Field(ge=1, le=1000, description="leave it out when an autoscaler is named, which then sets it")
    ] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    target_in_flight: Annotated[float, Field(gt=0, description="requests in flight that one replica should carry")] = 4
    scale_in_delay_seconds: Annotated[float, Field(ge=0)] = 300
    autoscaler: Annotated[
        Autoscaler | None, Field(description="who else decides how many replicas there are; Belvedere when left out")
    ] = None
    cel: ClassVar = (
        CelRule(
            rule="!has(self.autoscaler) || !has(self.autoscaler.minReplicas) || self.autoscaler.minReplicas <= self.maxReplicas",
            message="scaling.autoscaler.minReplicas must not be greater than scaling.maxReplicas",
        ),
        CelRule(
            rule="self.minReplicas <= self.maxReplicas",
            message="scaling.minReplicas must not be greater than scaling.maxReplicas",
        ),
    )


class RolloutStep(Part):
    """A share of the traffic, and how long to stay at least."""

    weight: Annotated[int, Field(ge=1, le=100, description="percent of requests for the candidate")]
    hold_seconds: Annotated[float, Field(ge=0)] = 60


Enabled = Annotated[
    bool, Field(description="false switches the gate off; leaving the gate out does not, as it has defaults")
]


class ErrorGate(Part):
    """Errors of the candidate against the stable version."""

    enabled: Enabled = True
    maximum_ratio: Annotated[
        float,
        Field(
            gt=1,
            description="promotion needs proof that the candidate's error rate is below this multiple of the stable one's, or below the SLO's error budget",
        ),
    ] = 2


class LatencyGate(Part):
    """Requests slower than a limit, candidate against stable."""

    enabled: Enabled = True
    maximum_ratio: Annotated[
        float,
        Field(
            gt=1,
            description="a candidate slower by more than this factor is aborted; promotion needs proof that answers over the SLO's threshold are rarer than this multiple of the stable version's, or within its budget",
        ),
    ] = 1.5


class ShadowGate(Part):
    """Answers of the candidate compared with the stable version's on a sample of real requests."""

    enabled: Enabled = True
    sample_percent: Annotated[float, Field(gt=0, le=100)] = 10
    minimum_cosine: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="an answer agrees when its embedding's cosine with the stable one's is at least this",
        ),
    ] = 0.8
    minimum_agreement: Annotated[float, Field(gt=0, lt=1, description="share of answers that must agree")] = 0.9


Gate = TypeVar("Gate", ErrorGate, LatencyGate, ShadowGate)


class Gates(Part):
    """What a candidate must prove, and what makes it go."""

    errors: ErrorGate | None = ErrorGate()
    latency: LatencyGate | None = LatencyGate()
    shadow: ShadowGate | None = None

    def asked(self) -> Gates:
        """Return the gates without those that are switched off."""

        def on(gate: Gate | None) -> Gate | None:
            return gate if gate is not None and gate.enabled else None

        return Gates(errors=on(self.errors), latency=on(self.latency), shadow=on(self.shadow))


class Confidence(Part):
    """Error probabilities of the judge, valid however often it looks."""

    abort: Annotated[float, Field(gt=0, lt=0.5, description="chance to abort a candidate that is no worse")] = 0.05
    promote: Annotated[
        float, Field(gt=0, lt=0.5, description="chance to promote a candidate that is worse than its gates allow")
    ] = 0.05


class Rollout(Part):
    """How a new version replaces the old."""

    paused: bool = False
    steps: Annotated[tuple[RolloutStep, ...], Field(min_length=1, max_length=32)] = (
        RolloutStep(weight=5),
        RolloutStep(weight=25),
        RolloutStep(weight=50),
    )
    gates: Gates = Gates()
    confidence: Confidence = Confidence()
    no_data: Annotated[Literal["Hold"], Field(description="without traffic nothing is proven, so nothing moves")] = (
        "Hold"
    )
    interval_seconds: Annotated[float, Field(gt=0, description="how often the judge looks")] = 15
    deadline_seconds: Annotated[
        float, Field(gt=0, description="a rollout that has proven nothing by then is paused")
    ] = 3600
    keep_stable_seconds: Annotated[
        float, Field(ge=0, description="how long the replaced version stays warm after promotion")
    ] = 60
    cel: ClassVar = (
        CelRule(
            rule="self.steps.map(s, s.weight).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight))",
            message="rollout.steps: each weight must be greater than the one before it",
        ),
    )


class EnginePolicy(Part):
    """Which engine serves a version."""

    target: EngineTarget = EngineTarget()
    parity: ParityGate = ParityGate()


class Retries(Part):
    """Retries of what never reached a model: connection failures and refused streams."""

    attempts: Annotated[int, Field(ge=0, le=5)] = 3
    budget_percent: Annotated[float, Field(ge=0, le=100)] = 20


class Routing(Part):
    """How clients reach the service."""

    hosts: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    default: Annotated[bool, Field(description="gets the requests that name no service")] = False
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    retries: Retries = Retries()


class Batching(Part):
    """How a replica groups requests."""

    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    wait_milliseconds: Annotated[float, Field(ge=0, le=1000)] = 2
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)] = 256


ServedName = Literal["embed_text", "embed_image", "match", "explain", "caption", "answer"]


class WritingOptions(Part):
    """How a replica writes texts (`caption` and `answer`). What is left out is the server's to choose: docs/serving.md."""

    max_running_texts: Annotated[
        int | None, Field(ge=1, le=1024, description="texts written at once; others wait for their turn")
    ] = None
    max_new_tokens: Annotated[
        int | None, Field(ge=1, le=4096, description="words of a text at most, whatever its request asks for")
    ] = None
    cache_blocks: Annotated[
        int | None,
        Field(
            ge=1, le=1_000_000, description="blocks of the key-value cache; when they run out the youngest text waits"
        ),
    ] = None
    cache_block_size: Annotated[int | None, Field(ge=1, le=256, description="tokens in a block")] = None
    cache_precision: Annotated[
        Literal["fp32", "int8"] | None, Field(description="int8 keeps about a quarter of the bytes")
    ] = None
    feature_cache_mebibytes: Annotated[
        float | None, Field(ge=0, le=65536, description="pictures kept encoded for the next question about them")
    ] = None

    @classmethod
    def read(cls, text: str) -> WritingOptions:
        """Return what JSON says. Raises InvalidInput."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "JSON"
            raise InvalidInput(f"writing: {where} is {first['input']!r}: {first['msg']}") from error

    def chosen(self) -> dict[str, Any]:
        """Return what is given, by the names that the servers' own options have."""
        return self.model_dump(exclude_none=True)

    def arguments(self) -> dict[str, Any]:
        """Return what is given, as a command or an application is told it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ServerOptions(Part):
    """What a replica is told beyond batching."""

    models: Annotated[
        tuple[ServedName, ...],
        Field(max_length=6, description="which of the engine's models to serve, and so to load; all when left out"),
    ] = ()
    plugins: Annotated[
        str | None,
        Field(
            pattern=r"^/",
            max_length=4096,
            description="a folder of plugins as a replica sees it; `pod.volumes` may bring it there",
        ),
    ] = None
    writing: WritingOptions | None = None
    instances: Annotated[
        int | None,
        Field(
            ge=1,
            le=64,
            description="engines of each tower in one replica of Triton, which share its cpu; one when left out",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return what is given, as the application's arguments."""
        written = self.writing.arguments() if self.writing else {}
        given = {"models": list(self.models), "plugins": self.plugins, "instances": self.instances}
        return {**{name: value for name, value in given.items() if value}, **written}


class ReplicaResources(Part):
    """What one replica asks for."""

    cpu: Annotated[float, Field(gt=0)] = 1
    memory: str = "1Gi"


class ModelServiceSpec(Part):
    """What is served, by what, how well, and how it is replaced."""

    model: Name
    version: Annotated[Name, Field(description="the ModelVersion to serve; a new value starts a rollout")]
    backend: Annotated[
        Literal["rayServe", "triton"], Field(description="the model server; both answer the same protocol")
    ] = "rayServe"
    engine: EnginePolicy = EnginePolicy()
    slo: Slo = Slo()
    scaling: Scaling = Scaling()
    rollout: Rollout = Rollout()
    routing: Routing = Routing()
    batching: Batching = Batching()
    server: Annotated[
        ServerOptions | None,
        Field(
            description="models and plugins of a rayServe replica, instances of a triton one, and how any replica writes"
        ),
    ] = None
    resources: ReplicaResources = ReplicaResources()
    pod: PodPatch = PodPatch()
    cel: ClassVar = (
        CelRule(
            rule="self.backend == 'rayServe' || !has(self.server)"
            " || (!has(self.server.plugins) && (!has(self.server.models) || size(self.server.models) == 0))",
            message="server.models and server.plugins are for backend rayServe;"
            " Triton serves all models of an engine, without plugins",
        ),
        CelRule(
            rule="self.backend == 'triton' || !has(self.server) || !has(self.server.instances)",
            message="server.instances is for backend triton; of rayServe there are more replicas, scaling.minReplicas",
        ),
        CelRule(
            rule="self.backend != 'triton' || !has(self.engine) || !has(self.engine.target) || !has(self.engine.target.runtime)"
            " || self.engine.target.runtime != 'litert'",
            message="engine.target.runtime litert is for backend rayServe: Triton has no backend for LiteRT",
        ),
        CelRule(
            rule="self.backend == oldSelf.backend",
            message="backend cannot be changed while versions are served by it: make a new ModelService",
        ),
    )


class ModelService(Resource):
    """A served model."""

    kind_name = "ModelService"
    plural = "modelservices"
    short_names = ("msvc",)
    columns = (
        PrinterColumn(name="Ready", type="string", json_path=".status.conditions[?(@.type=='Ready')].status"),
        PrinterColumn(name="Stable", type="string", json_path=".status.stable.version"),
        PrinterColumn(name="Candidate", type="string", json_path=".status.candidate.version"),
        PrinterColumn(name="Weight", type="integer", json_path=".status.candidate.desiredWeight"),
        PrinterColumn(name="Rollout", type="string", json_path=".status.rollout.phase"),
        PrinterColumn(name="Replicas", type="integer", json_path=".status.replicas"),
        PrinterColumn(name="P95", type="number", json_path=".status.stable.p95Milliseconds", priority=1),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    )
    conditions = {
        "Accepted": "Accepted, ModelVersionNotFound, ModelMismatch, AutoscalerNotInstalled",
        "EngineReady": "Ready, Building, ParityFailed, LatencyBudgetExceeded, BuildFailed, ModelVersionNotFound",
        "CapacityAvailable": "Fits, WaitingForCapacity, Unreported",
        "Ready": "Routable, NoReplicas, WaitingForEngine, WaitingForReplicas, WaitingForGateway",
        "RolloutProgressing": "Progressing, Complete, Paused, Aborted, EngineRefused, NoTraffic, Preparing",
        "SLOMet": "WithinObjective, ErrorBudgetBurning, LatencyBudgetBurning, NoData",
        "Degraded": "Healthy, FewerReplicas, MetricsUnavailable, AlertPathLost, ErrorBudgetBurning, CandidateRejected",
    }
    scale = {
        "specReplicasPath": ".spec.scaling.minReplicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }

    kind: Literal["ModelService"]
    spec: ModelServiceSpec
    status: ModelServiceStatus | None = None
