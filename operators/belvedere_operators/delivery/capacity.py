"""Say whether the replicas of a rollout fit what the cluster has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether it fits, with the figures as a sentence. `fits` is None when the cluster does not say what it has."""

    fits: bool | None
    message: str


def fit(*, total_cpus: float | None, used_by_others: float, replicas: dict[str, int], cpu_each: float) -> Fit:
    """Return whether these replicas by version fit beside what others asked for."""
    wanted = sum(replicas.values()) * cpu_each
    what = " + ".join(f"{count} x {version}" for version, count in sorted(replicas.items()))
    if total_cpus is None:
        return Fit(fits=None, message=f"{what} need {wanted:g} CPUs; the cluster does not say how many it has")
    free = total_cpus - used_by_others
    if wanted <= free + 1e-9:
        return Fit(fits=True, message=f"{what} need {wanted:g} of {free:g} free CPUs")
    return Fit(
        fits=False,
        message=f"{what} need {wanted:g} CPUs and {free:g} are free: lower scaling.maxReplicas or resources.cpu, or add CPUs",
    )
