"""TrainingRun: pretrain a model and publish it as a ModelVersion when it passes its evaluation gates."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from belvedere_platform.resources.base import CelRule, Digest, Name, Part, PrinterColumn, Resource, Status, Timestamp
from belvedere_platform.resources.pod_patch import PodPatch
from belvedere_platform.resources.training_data import TrainingData


class WorkerResources(Part):
    """What one worker asks for."""

    cpu: Annotated[float, Field(gt=0)] = 1
    gpu: Annotated[float, Field(ge=0)] = 0
    memory: Annotated[str, Field(description="Kubernetes quantity")] = "2Gi"


class Workers(Part):
    """Elastic between min and max; the global batch stays the same."""

    min: Annotated[int, Field(ge=1, le=4096)] = 1
    max: Annotated[int, Field(ge=1, le=4096)] = 1
    resources: WorkerResources = WorkerResources()
    split: Annotated[
        Literal["Even", "Measured"],
        Field(
            description="how a batch is shared out: Measured gives slow workers less, anew at each checkpoint; Even makes every run with so many workers the same bit for bit"
        ),
    ] = "Even"
    sharding: Annotated[
        Literal["Auto", "DDP", "FSDP"],
        Field(
            description="what each worker holds: DDP the whole model, FSDP its share of every weight, gradient and optimizer state; Auto takes FSDP from a billion weights on"
        ),
    ] = "Auto"
    cel: ClassVar = (CelRule(rule="self.min <= self.max", message="workers.min must not be greater than workers.max"),)


class Optimization(Part):
    """How the weights move. Budgets count image-text pairs, so results do not depend on the machine."""

    pairs: Annotated[int, Field(ge=1, description="image-text pairs to train on, over all workers")]
    batch_size: Annotated[int, Field(ge=2, le=65536, description="global batch")] = 256
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    warmup_pairs: Annotated[int, Field(ge=0)] = 20_000
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="auto measures fp32 and bf16 briefly and chooses; weights are kept in fp32 with every one"),
    ] = "auto"
    chunk_size: Annotated[
        int,
        Field(
            ge=0, description="pairs a worker embeds at a time (GradCache); the gradient is the whole batch's. 0: all"
        ),
    ] = 0
    recompute: Annotated[bool, Field(description="keep no activations inside transformer layers")] = False
    clip: Annotated[Literal["global", "perTower"], Field(description="what clipNorm is the limit of")] = "global"
    backbone_rate: Annotated[
        float, Field(gt=0, le=1, description="learning rate of the towers' blocks, of the heads'")
    ] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1, description="further factor from each block to the one below")] = (
        1.0
    )
    unfreeze_every_pairs: Annotated[
        int, Field(ge=0, description="heads learn first, then one more block of each tower every so many pairs. 0: all")
    ] = 0
    coarse_share: Annotated[
        float, Field(ge=0, lt=1, description="share of the budget, at its start, with pictures of half the resolution")
    ] = 0.0
    resolution: Annotated[
        Literal["Whole", "ByEntropy", "Progressive"],
        Field(
            description="ByEntropy: plain pictures (below 4 bits of grey) are trained on at half of their edge, others below 7 bits at five sevenths. Progressive: half of the budget with whole pictures, a fifth in which of the vision tower a learned view of them alone learns, then all together, each step at one of these resolutions"
        ),
    ] = "Whole"
    texts_per_picture: Annotated[
        int,
        Field(
            ge=1,
            le=4,
            description="texts drawn for each picture and contrasted with it; words are learned slower than pictures",
        ),
    ] = 1
    questions_per_picture: Annotated[
        int,
        Field(
            ge=1,
            le=32,
            description="texts of each picture that words are learned from, each by itself: questions with their answers where it has any. The picture is looked at once for all of them",
        ),
    ] = 1


class Architecture(Part):
    """Which model of a size. What is not given is the size's own."""

    topology: Annotated[
        Literal["dual", "fusion", "unified", "hybrid"] | None,
        Field(description="how far the modalities see each other"),
    ] = None
    tower: Annotated[Literal["conv", "vit", "resnet"] | None, Field(description="the vision tower")] = None
    attend: Annotated[
        Literal["full", "pooled", "top"] | None,
        Field(description="image keys that text looks at: all, means of 2x2, or the best quarter of blocks"),
    ] = None
    itm_head: Annotated[
        Literal["bce", "ce"] | None,
        Field(
            description="how the matching head answers: one logit (bce, the default), or one for each of two classes"
        ),
    ] = None
    normalization: Annotated[
        Literal["half", "imagenet", "clip"] | None,
        Field(
            description="mean and deviation by which pictures are normalised, in training and by every server; half: all 0.5"
        ),
    ] = None
    max_length: Annotated[
        int | None, Field(ge=4, le=512, description="tokens of a text; what is longer is cut off")
    ] = None


class Objectives(Part):
    """What is learned beside contrast (which always is, with weight 1), and with what weight. 0: not at all."""

    itm: Annotated[float, Field(ge=0, le=100, description="does this text belong to this picture")] = 0.0
    lm: Annotated[float, Field(ge=0, le=100, description="say the text, word after word")] = 0.0
    mlm: Annotated[float, Field(ge=0, le=100, description="say hidden words")] = 0.0
    mim: Annotated[float, Field(ge=0, le=100, description="paint hidden patches")] = 0.0
    disentangle: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="part a picture's embedding into what its attributes share and what each of them alone decides",
        ),
    ] = 0.0
    attributes: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            max_length=16,
            description="fields of the data set's records that disentangle goes by; those with one value are left out",
        ),
    ] = ("style", "group")
    groups_per_step: Annotated[
        int, Field(ge=1, le=3, description="how many of (itm with lm), mlm and mim are drawn for each step")
    ] = 1
    distillation: Annotated[
        float, Field(ge=0, le=1, description="share of a slow copy's belief in the targets of contrast")
    ] = 0.0
    queue_size: Annotated[
        int, Field(ge=0, le=1_048_576, description="embeddings of the slow copy kept as further negatives")
    ] = 0


class InitializeFrom(Part):
    """Start from a finished version, and stay comparable with its embeddings."""

    model_version: Name
    compatibility_weight: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            description="weight of the loss that keeps embeddings near the parent's, so that an index built with the parent stays usable",
        ),
    ] = 1.0


class EvaluationGate(Part):
    """A metric that the trained model must reach."""

    metric: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=128)]
    minimum: float


class Evaluation(Part):
    """When to evaluate and what is asked."""

    every_pairs: Annotated[int, Field(ge=1)] = 50_000
    gates: Annotated[tuple[EvaluationGate, ...], Field(max_length=32)] = ()


class Resume(Part):
    """What happens when a run is interrupted."""

    policy: Literal["FromCheckpoint", "Never"] = "FromCheckpoint"
    checkpoint_every_pairs: Annotated[int, Field(ge=1)] = 50_000
    max_failures: Annotated[int, Field(ge=0, le=100)] = 3


class TrainingRunSpec(Part):
    """What to train, on what, how long, and what it must reach."""

    model: Annotated[Name, Field(description="the model that the version belongs to")]
    version: Annotated[
        Name | None, Field(description="name of the ModelVersion published; the run's own name by default")
    ] = None
    recipe: Literal["contrastive"] = "contrastive"
    size: Literal["nano", "small", "base", "large"] = "nano"
    architecture: Architecture = Architecture()
    data: TrainingData
    objectives: Objectives = Objectives()
    optimization: Optimization
    initialize_from: InitializeFrom | None = None
    workers: Workers = Workers()
    evaluation: Evaluation = Evaluation()
    resume: Resume = Resume()
    suspend: bool = False
    queue: Annotated[
        Name | None,
        Field(description="Kueue LocalQueue that admits all workers together or none; it must be set from the start"),
    ] = None
    pod: PodPatch = PodPatch()
    cel: ClassVar = (
        CelRule(
            rule="self == oldSelf || (self.model == oldSelf.model && self.data == oldSelf.data && self.optimization == oldSelf.optimization && self.recipe == oldSelf.recipe && self.size == oldSelf.size && self.architecture == oldSelf.architecture && self.objectives == oldSelf.objectives)",
            message="model, data, optimization, recipe, size, architecture and objectives of a TrainingRun cannot be changed: make a new run",
        ),
        CelRule(
            rule="has(self.queue) == has(oldSelf.queue) && (!has(self.queue) || self.queue == oldSelf.queue)",
            message="queue of a TrainingRun cannot be changed: make a new run",
        ),
    )


class TrainingProgress(Part):
    """Where the run is now, as its workers report."""

    pairs: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    recall: Annotated[dict[str, float], Field(description="last evaluation, by metric")] = {}


class GateResult(Part):
    """One evaluation gate with what was measured."""

    metric: str
    minimum: float
    value: float | None = None
    passed: bool


class TrainingRunStatus(Status):
    """One truth about the run."""

    phase: Literal["Pending", "Running", "Suspended", "Evaluating", "Succeeded", "Failed"] | None = None
    attempt: int | None = None
    job: Annotated[str | None, Field(description="name of the RayJob of this attempt")] = None
    progress: TrainingProgress | None = None
    gates: tuple[GateResult, ...] = ()
    model_version: str | None = None
    digest: Digest | None = None
    start_time: Timestamp | None = None
    completion_time: Timestamp | None = None


class TrainingRun(Resource):
    """A pretraining run on Ray."""

    kind_name = "TrainingRun"
    plural = "trainingruns"
    short_names = ("trun",)
    columns = (
        PrinterColumn(name="Phase", type="string", json_path=".status.phase"),
        PrinterColumn(name="Pairs", type="integer", json_path=".status.progress.pairs"),
        PrinterColumn(name="Loss", type="number", json_path=".status.progress.loss"),
        PrinterColumn(name="Version", type="string", json_path=".status.modelVersion"),
        PrinterColumn(
            name="Reason", type="string", json_path=".status.conditions[?(@.type=='Ready')].reason", priority=1
        ),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    )
    conditions = {
        "Accepted": "Accepted, ExceedsAccelerators, DatasetNotFound, ParentNotFound, ParentNotReady, VersionExists",
        "CapacityAvailable": "Fits, WaitingForCapacity",
        "ProgressKnown": "Reported, NoSeriesYet, MetricsUnavailable",
        "Ready": "Published, Pending, Queued, Training, Evaluating, GateFailed, JobFailed, Suspended, VersionExists",
    }

    kind: Literal["TrainingRun"]
    spec: TrainingRunSpec
    status: TrainingRunStatus | None = None
