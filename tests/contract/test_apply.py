"""Server-side apply: who owns which field, what counts as a change, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from belvedere_platform.errors import Conflict, InvalidInput, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import CONFIG_MAP, ENGINE, MODEL_SERVICE, TRAINING_RUN

Make = Callable[..., Manifest]
DIGEST = "sha256:" + "0" * 64


async def test_a_new_object_gets_identity_and_generation(store: ObjectStore, training_run: Make) -> None:
    created = await store.apply(training_run(), field_manager="test")
    metadata = created["metadata"]
    assert metadata["uid"]
    assert metadata["resourceVersion"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert metadata["generation"] == 1
    assert created == await store.get(TRAINING_RUN, "run", metadata["namespace"])


async def test_defaults_are_filled_in(store: ObjectStore, training_run: Make) -> None:
    created = await store.apply(training_run(), field_manager="test")
    assert created["spec"]["size"] == "nano"
    assert created["spec"]["workers"] == {
        "min": 1,
        "max": 1,
        "resources": {"cpu": 1, "gpu": 0, "memory": "2Gi"},
        "split": "Even",
        "sharding": "Auto",
    }
    assert "status" not in created


async def test_the_same_apply_writes_nothing(store: ObjectStore, training_run: Make) -> None:
    first = await store.apply(training_run(), field_manager="test")
    assert await store.apply(training_run(), field_manager="test") == first


async def test_a_field_left_out_is_removed(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(data={"colour": "blue", "size": "small"}), field_manager="test")
    applied = await store.apply(config_map(data={"colour": "red"}), field_manager="test")
    assert applied["data"] == {"colour": "red"}


async def test_a_field_left_out_gets_its_default_back(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(size="small", workers={"max": 4}), field_manager="test")
    applied = await store.apply(training_run(size="small"), field_manager="test")
    assert applied["spec"]["workers"]["max"] == 1


async def test_fields_of_another_manager_stay(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(data={"colour": "blue"}, labels={"a": "1"}), field_manager="one")
    await store.apply(config_map(data={"size": "small"}, labels={"b": "2"}), field_manager="two")
    applied = await store.apply(config_map(data={}), field_manager="one")
    assert applied["data"] == {"size": "small"}
    assert applied["metadata"]["labels"] == {"b": "2"}


async def test_a_field_that_two_managers_give_stays_until_both_leave_it_out(
    store: ObjectStore, config_map: Make
) -> None:
    await store.apply(config_map(), field_manager="one")
    await store.apply(config_map(), field_manager="two")
    assert (await store.apply(config_map(data={}), field_manager="one"))["data"] == {"colour": "blue"}
    assert not (await store.apply(config_map(data={}), field_manager="two")).get("data")


async def test_without_force_anothers_field_is_a_conflict_that_names_it(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(), field_manager="one")
    with pytest.raises(Conflict, match="colour"):
        await store.apply(config_map(data={"colour": "red"}), field_manager="two", force=False)


async def test_without_force_the_same_value_is_shared(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(), field_manager="one")
    applied = await store.apply(config_map(), field_manager="two", force=False)
    assert applied["data"] == {"colour": "blue"}


async def test_force_takes_a_field_over(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(), field_manager="one")
    await store.apply(config_map(data={"colour": "red"}), field_manager="two")
    assert (await store.apply(config_map(data={}), field_manager="one"))["data"] == {"colour": "red"}


async def test_a_stale_resource_version_is_a_conflict(store: ObjectStore, config_map: Make) -> None:
    first = await store.apply(config_map(), field_manager="test")
    stale = first["metadata"]["resourceVersion"]
    second = await store.apply(config_map(data={"colour": "red"}, resourceVersion=stale), field_manager="test")
    with pytest.raises(Conflict):
        await store.apply(config_map(data={"colour": "green"}, resourceVersion=stale), field_manager="test")
    assert (await store.get(CONFIG_MAP, "settings", first["metadata"]["namespace"])) == second


async def test_another_uid_is_a_conflict(store: ObjectStore, config_map: Make) -> None:
    await store.apply(config_map(), field_manager="test")
    with pytest.raises(Conflict):
        await store.apply(config_map(uid="5dc1a2f4-0000-4000-8000-000000000000"), field_manager="test")


async def test_only_the_spec_counts_for_the_generation(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")
    labelled = await store.apply(training_run(metadata={"labels": {"a": "b"}}), field_manager="test")
    assert labelled["metadata"]["generation"] == 1
    observed = await store.apply_status(training_run() | {"status": {"phase": "Running"}}, field_manager="test")
    assert observed["metadata"]["generation"] == 1
    suspended = await store.apply(training_run(suspend=True), field_manager="test")
    assert suspended["metadata"]["generation"] == 2


async def test_apply_leaves_the_status_alone_and_apply_status_the_spec(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run() | {"status": {"phase": "Failed"}}, field_manager="test")
    observed = await store.apply_status(
        training_run(suspend=True) | {"status": {"phase": "Running"}}, field_manager="test"
    )
    assert observed["spec"]["suspend"] is False
    assert observed["status"] == {"phase": "Running"}
    applied = await store.apply(training_run() | {"status": {"phase": "Failed"}}, field_manager="test")
    assert applied["status"] == {"phase": "Running"}


async def test_a_status_needs_its_object(store: ObjectStore, training_run: Make) -> None:
    with pytest.raises(NotFound):
        await store.apply_status(training_run() | {"status": {"phase": "Running"}}, field_manager="test")


async def test_the_same_status_writes_nothing(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")
    status = training_run() | {"status": {"phase": "Running", "progress": {"pairs": 10}}}
    first = await store.apply_status(status, field_manager="test")
    assert await store.apply_status(status, field_manager="test") == first


async def test_a_status_field_left_out_is_removed(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")
    status = {"phase": "Running", "progress": {"pairs": 10}}
    await store.apply_status(training_run() | {"status": status}, field_manager="test")
    observed = await store.apply_status(training_run() | {"status": {"phase": "Succeeded"}}, field_manager="test")
    assert observed["status"]["phase"] == "Succeeded"
    assert not observed["status"].get("progress")


def condition(type_: str, status: str = "True") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": "Tested", "message": ""}


async def test_conditions_are_merged_by_type(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")

    async def observe(manager: str, *conditions: dict[str, str]) -> set[tuple[str, str]]:
        status = {"status": {"conditions": list(conditions)}}
        observed = await store.apply_status(training_run() | status, field_manager=manager)
        return {(found["type"], found["status"]) for found in observed["status"]["conditions"]}

    await observe("one", condition("Accepted"), condition("Ready", "False"))
    assert await observe("two", condition("CapacityAvailable")) == {
        ("Accepted", "True"),
        ("Ready", "False"),
        ("CapacityAvailable", "True"),
    }
    assert await observe("one", condition("Ready")) == {("Ready", "True"), ("CapacityAvailable", "True")}


async def test_two_conditions_of_one_type_are_refused(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")
    status = {"status": {"conditions": [condition("Ready"), condition("Ready")]}}
    with pytest.raises(InvalidInput, match="Ready"):
        await store.apply_status(training_run() | status, field_manager="test")


async def test_an_unknown_field_is_refused_by_name(store: ObjectStore, training_run: Make) -> None:
    with pytest.raises(InvalidInput, match="wokers"):
        await store.apply(training_run(wokers={"max": 2}), field_manager="test")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"size": "giant"}, "size"),
        ({"suspend": "yes"}, "suspend"),
        ({"optimization": {"pairs": 0}}, "pairs"),
        ({"optimization": {}}, "pairs"),
        ({"model": "Not A Name"}, "model"),
        ({"workers": {"min": 3, "max": 2}}, "workers"),
        ({"evaluation": {"gates": [{"metric": "recall"}]}}, "minimum"),
        ({"evaluation": {"gates": [{"metric": "recall", "minimum": 0.1}] * 33}}, "gates"),
    ],
)
async def test_what_the_schema_forbids_is_refused(
    store: ObjectStore, training_run: Make, namespace: str, spec: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        await store.apply(training_run(**spec), field_manager="test")
    assert (await store.list(TRAINING_RUN, namespace)).items == []


async def test_a_null_says_the_same_as_leaving_the_field_out(store: ObjectStore, training_run: Make) -> None:
    created = await store.apply(training_run(size=None, initializeFrom=None), field_manager="test")
    assert created["spec"]["size"] == "nano"
    assert "initializeFrom" not in created["spec"]


async def test_a_rule_over_the_old_object_holds_updates_only(store: ObjectStore, training_run: Make) -> None:
    await store.apply(training_run(), field_manager="test")
    with pytest.raises(InvalidInput, match="cannot be changed"):
        await store.apply(training_run(model="other"), field_manager="test")


async def test_an_engine_keeps_its_target(store: ObjectStore, namespace: str) -> None:
    engine = {
        "apiVersion": ENGINE.api_version,
        "kind": "Engine",
        "metadata": {"name": "v1-onnxruntime-fp32", "namespace": namespace},
        "spec": {"modelVersion": "v1"},
    }
    await store.apply(engine, field_manager="test")
    relaxed = {"modelVersion": "v1", "parity": {"cosineMinimum": 0.5}}
    await store.apply(engine | {"spec": relaxed}, field_manager="test")
    with pytest.raises(InvalidInput, match="make a new one"):
        await store.apply(engine | {"spec": {"modelVersion": "v1", "target": {"precision": "int8"}}}, field_manager="t")


async def test_a_model_version_is_immutable_to_the_last_metric(store: ObjectStore, namespace: str) -> None:
    version = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": "v1", "namespace": namespace},
        "spec": {"model": "emoji", "digest": DIGEST, "evaluation": {"passed": True}, "metrics": {"recall": 1}},
    }
    first = await store.apply(version, field_manager="test")
    assert await store.apply(version, field_manager="test") == first
    with pytest.raises(InvalidInput, match="immutable"):
        await store.apply(version | {"spec": {**version["spec"], "metrics": {"recall": 0.5}}}, field_manager="test")


@pytest.mark.parametrize(("weights", "valid"), [([5, 25, 50], True), ([100], True), ([5, 5], False), ([25, 5], False)])
async def test_rollout_weights_increase(store: ObjectStore, namespace: str, weights: list[int], valid: bool) -> None:
    service = {
        "apiVersion": MODEL_SERVICE.api_version,
        "kind": "ModelService",
        "metadata": {"name": "emoji", "namespace": namespace},
        "spec": {"model": "emoji", "version": "v1", "rollout": {"steps": [{"weight": weight} for weight in weights]}},
    }
    if valid:
        assert (await store.apply(service, field_manager="test"))["spec"]["rollout"]["noData"] == "Hold"
    else:
        with pytest.raises(InvalidInput, match="each weight must be greater"):
            await store.apply(service, field_manager="test")


async def test_containers_are_merged_by_name(store: ObjectStore, namespace: str) -> None:
    def deployment(**container: object) -> Manifest:
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "server", "namespace": namespace},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "server"}},
                "template": {
                    "metadata": {"labels": {"app": "server"}},
                    "spec": {"containers": [{"name": "server", "image": "server:1", **container}]},
                },
            },
        }

    await store.apply(deployment(env=[{"name": "A", "value": "1"}]), field_manager="one")
    applied = await store.apply(deployment(env=[{"name": "B", "value": "2"}]), field_manager="two")
    (container,) = applied["spec"]["template"]["spec"]["containers"]
    assert {variable["name"] for variable in container["env"]} == {"A", "B"}


async def test_of_concurrent_writers_with_one_version_one_wins(store: ObjectStore, config_map: Make) -> None:
    first = await store.apply(config_map(), field_manager="test")
    version = first["metadata"]["resourceVersion"]

    async def write(number: int) -> bool:
        try:
            await store.apply(
                config_map(data={"colour": str(number)}, resourceVersion=version), field_manager=f"writer-{number}"
            )
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*(write(number) for number in range(8)))) == 1
