"""The kinds of object that Belvedere reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from belvedere_platform.resources.base import API_VERSION


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object in an API group and version."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The API group, empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def path(self) -> str:
        """The REST path of the group and version, for example `/apis/apps/v1` or `/api/v1`."""
        return f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"


TRAINING_RUN = Kind(api_version=API_VERSION, kind="TrainingRun", plural="trainingruns", short_names=("trun",))
MODEL_VERSION = Kind(api_version=API_VERSION, kind="ModelVersion", plural="modelversions", short_names=("mver",))
ENGINE = Kind(api_version=API_VERSION, kind="Engine", plural="engines", short_names=("eng",))
MODEL_SERVICE = Kind(api_version=API_VERSION, kind="ModelService", plural="modelservices", short_names=("msvc",))
RAY_JOB = Kind(api_version="ray.io/v1", kind="RayJob", plural="rayjobs")
RAY_SERVICE = Kind(api_version="ray.io/v1", kind="RayService", plural="rayservices")
RAY_CLUSTER = Kind(api_version="ray.io/v1", kind="RayCluster", plural="rayclusters")
DEPLOYMENT = Kind(api_version="apps/v1", kind="Deployment", plural="deployments", short_names=("deploy",))
JOB = Kind(api_version="batch/v1", kind="Job", plural="jobs")
SERVICE = Kind(api_version="v1", kind="Service", plural="services", short_names=("svc",))
CONFIG_MAP = Kind(api_version="v1", kind="ConfigMap", plural="configmaps", short_names=("cm",))
SECRET = Kind(api_version="v1", kind="Secret", plural="secrets")
EVENT = Kind(api_version="v1", kind="Event", plural="events", short_names=("ev",))
ENDPOINT_SLICE = Kind(api_version="discovery.k8s.io/v1", kind="EndpointSlice", plural="endpointslices")
PROMETHEUS_RULE = Kind(
    api_version="monitoring.coreos.com/v1", kind="PrometheusRule", plural="prometheusrules", short_names=("promrule",)
)
POD_DISRUPTION_BUDGET = Kind(
    api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets", short_names=("pdb",)
)
NETWORK_POLICY = Kind(
    api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies", short_names=("netpol",)
)
HORIZONTAL_POD_AUTOSCALER = Kind(
    api_version="autoscaling/v2",
    kind="HorizontalPodAutoscaler",
    plural="horizontalpodautoscalers",
    short_names=("hpa",),
)
SCALED_OBJECT = Kind(api_version="keda.sh/v1alpha1", kind="ScaledObject", plural="scaledobjects", short_names=("so",))
NODE = Kind(api_version="v1", kind="Node", plural="nodes", namespaced=False)
"""Read by an operator that counts accelerators; not among KINDS, as users of a namespace may not list it."""
WORKLOAD = Kind(api_version="kueue.x-k8s.io/v1beta2", kind="Workload", plural="workloads")
"""What Kueue makes of a RayJob in a queue; read to say why it waits, and nobody's to write, so not among KINDS."""
LEASE = Kind(api_version="coordination.k8s.io/v1", kind="Lease", plural="leases")

KINDS: tuple[Kind, ...] = (
    TRAINING_RUN, MODEL_VERSION, ENGINE, MODEL_SERVICE,
    RAY_JOB, RAY_SERVICE, RAY_CLUSTER, DEPLOYMENT, JOB, SERVICE, CONFIG_MAP, SECRET, EVENT, ENDPOINT_SLICE, PROMETHEUS_RULE,
    POD_DISRUPTION_BUDGET, NETWORK_POLICY, HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT, LEASE,
)  # fmt: skip
