"""The story of the demo, chapter by chapter: data, train, compile, serve, replace, revert, scale.

Everything is asked for by applying the files of deploy/examples/quickstart; nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import httpx

from belvedere_platform.errors import Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE, JOB, MODEL_SERVICE, MODEL_VERSION, TRAINING_RUN
from contact_sheet import make as make_contact_sheet
from control import condition, engine_refused, is_true
from rollouts import STEADY_RATE, roll_out_faulty, roll_out_good
from samples import read_split, write_traffic_samples
from stage import SERVICE, Demo, service_line
from timeline import requests_between

LOAD_CLIENTS = 40


async def build_data(demo: Demo) -> None:
    """Chapter 1: drawings into shards."""
    demo.apply("01-data.yaml")
    await demo.control.follow(
        JOB,
        "build-emoji",
        lambda job: job.get("status", {}).get("succeeded", 0) > 0,
        lambda job: f"rendering drawings into WebDataset shards ({job.get('status', {}).get('active', 0)} active)",
        failed=lambda job: any(
            c["type"] == "Failed" and c["status"] == "True" for c in job.get("status", {}).get("conditions", [])
        ),
        timeout_seconds=900,
    )
    config = demo.artifacts.config("datasets/emoji")
    demo.report["data"] = {"digest": demo.artifacts.resolve("datasets/emoji").digest} | {
        k: config[k] for k in ("splits", "styles", "licences") if k in config
    }
    for split, facts in config["splits"].items():
        demo.control.narrator.say(f"  {split:<18} {facts['samples']:>6} pictures in {facts['shards']} shards")
    demo.samples = read_split(demo.artifacts, "datasets/emoji", "heldout_style", demo.output / "data")
    write_traffic_samples(demo.samples[:: max(1, len(demo.samples) // 400)], demo.output / "traffic-samples.jsonl")


VERSION_1, VERSION_2 = ("02-train-v1.yaml", "emoji-clip-v1"), ("05-train-v2.yaml", "emoji-clip-v2")


async def train(demo: Demo, file: str, version: str) -> None:
    """Chapter 2 (and 5): a TrainingRun becomes a ModelVersion. Applying a file again changes nothing."""
    demo.apply(file)
    run = await demo.control.follow(
        TRAINING_RUN,
        version,
        lambda run: run.get("status", {}).get("phase") == "Succeeded",
        _training_line,
        failed=lambda run: run.get("status", {}).get("phase") == "Failed",
        timeout_seconds=3000,
    )
    model_version = await demo.control.follow(
        MODEL_VERSION,
        run["status"]["modelVersion"],
        lambda v: is_true(v, "Ready"),
        lambda v: "verifying the artifact",
        timeout_seconds=60,
    )
    config = demo.artifacts.config(model_version["spec"]["digest"])
    metrics = model_version["spec"]["metrics"]
    demo.report["versions"].append(
        {
            "name": version,
            "digest": model_version["spec"]["digest"],
            "metrics": nested_metrics(metrics),
            "pairs": config["pairs"],
            "images_per_second": config["imagesPerSecond"],
            "curves": _curves(demo, model_version["spec"]["digest"]),
        }
    )
    for gate in run["status"].get("gates", []):
        demo.control.narrator.say(
            f"  gate {gate['metric']}: {gate['value']:.3f} ≥ {gate['minimum']} {'passed' if gate['passed'] else 'failed'}"
        )
    shown = ", ".join(
        f"{name} {metrics[name]:.3f}"
        for name in ("heldout_style_en_r1", "heldout_style_en_r5", "heldout_style_zh_r5")
        if name in metrics
    )
    demo.control.narrator.say(
        f"  {version} {model_version['spec']['digest'][:19]}…  {shown}  ({config['imagesPerSecond']:.0f} images/s)"
    )


def _training_line(run: Manifest) -> str:
    status = run.get("status", {})
    progress = status.get("progress") or {}
    total = run["spec"]["optimization"]["pairs"]
    pairs = progress.get("pairs") or 0
    bar = "█" * round(24 * min(1, pairs / total))
    recall = (progress.get("recall") or {}).get("heldout_style_en_r1")
    return (
        f"{status.get('phase', 'Pending'):<10} {bar:<24} {pairs:>7}/{total} pairs"
        + (f"  loss {progress['loss']:.3f}" if progress.get("loss") is not None else "")
        + (f"  {progress['imagesPerSecond']:.0f} images/s" if progress.get("imagesPerSecond") else "")
        + (f"  recall@1 {recall:.3f}" if recall is not None else "")
    )


def nested_metrics(flat: dict[str, float]) -> dict[str, Any]:
    """Turn heldout_style_en_r1 into {heldout_style: {en: {r1: …}}}; directions keep their own level."""
    nested: dict[str, Any] = {}
    for name, value in sorted(flat.items()):
        for split in ("heldout_style", "heldout_concepts", "hard_style"):
            language, _, rest = name.removeprefix(split + "_").partition("_")
            if name.startswith(split + "_") and language in ("en", "zh"):
                nested.setdefault(split, {}).setdefault(language, {})[rest] = value
                break
        else:
            nested[name] = value
    return nested


def _curves(demo: Demo, digest: str) -> Any:
    return json.loads(demo.artifacts.read(digest, "curves.json"))


async def compile_engines(demo: Demo) -> None:
    """Chapter 3: ONNX Runtime engines in fp32 and int8, checked against torch."""
    demo.apply("03-engines-v1.yaml")
    if demo.quick:
        # Half of so short a training is the start of its processes, each of which leaves the other core idle.
        # At full budget it would only slow what is measured in this chapter and the next.
        demo.apply(VERSION_2[0])
    for precision in ("fp32", "int8"):
        engine = await demo.control.follow(
            ENGINE,
            f"emoji-clip-v1-onnxruntime-{precision}",
            lambda engine: is_true(engine, "Ready"),
            lambda engine: f"{engine['metadata']['name']}: {condition(engine, 'Ready').get('reason', 'Pending')}",
            failed=engine_refused,
            timeout_seconds=300,
        )
        for model, parity in sorted(engine["status"]["parity"].items()):
            latency = engine["status"]["latency"][model]
            row = {
                "name": engine["metadata"]["name"],
                "digest": engine["status"]["digest"],
                "precision": precision,
                "model": model,
                "cosine_min": parity["cosineMin"],
                "cosine_mean": parity["cosineMean"],
                "top1_agreement": parity["top1Agreement"],
                "p50_ms": latency["p50Milliseconds"],
                "torch_p50_ms": latency["torchP50Milliseconds"],
            }
            demo.report["engines"].append(row)
            demo.control.narrator.say(
                f"  {precision} {model:<12} cosine ≥ {row['cosine_min']:.5f}, same first answer {row['top1_agreement']:.1%}, "
                f"{row['p50_ms']:.2f} ms against torch {row['torch_p50_ms']:.2f} ms"
            )


async def serve(demo: Demo) -> None:
    """Chapter 4: a ModelService behind the gateway; a search over the pictures through unmodified clients."""
    demo.apply("04-service.yaml")
    await demo.control.follow(
        MODEL_SERVICE, SERVICE, lambda service: is_true(service, "Ready"), service_line, timeout_seconds=180
    )
    await gateway_answers(demo.address)
    gallery = demo.samples[:300] if demo.quick else demo.samples
    sheet = await asyncio.to_thread(make_contact_sheet, demo.address, gallery, demo.output / "contact-sheet.png")
    demo.report["contact_sheet"] = sheet
    for query, hits in sheet["queries"].items():
        demo.control.narrator.say(f"  {query:<28} → {', '.join(hits[:3])}")


async def gateway_answers(address: str, timeout_seconds: float = 60) -> None:
    """Wait until a client is told that the service is ready. Raises Unavailable."""
    deadline = time.monotonic() + timeout_seconds
    async with httpx.AsyncClient() as client:
        while True:
            try:
                answer = await client.get(f"http://{address}/v2/health/ready", timeout=5)
            except httpx.HTTPError as error:
                said = repr(error)
            else:
                if answer.status_code == 200:
                    return
                said = f"{answer.status_code} {answer.text[:200]}"
            if time.monotonic() > deadline:
                raise Unavailable(f"the gateway at {address} did not serve within {timeout_seconds:.0f} s: {said}")
            await asyncio.sleep(0.25)


async def scale(demo: Demo) -> None:
    """Chapter 7: load rises and falls."""
    narrator = demo.control.narrator
    # An overload in a busy moment before may have brought a second replica already.
    await demo.control.follow(MODEL_SERVICE, SERVICE, one_replica, _scaling_line, timeout_seconds=120)
    begin = time.time()
    await demo.send(f"load {LOAD_CLIENTS}")
    narrator.say(f"  {LOAD_CLIENTS} clients at once")
    await demo.control.follow(
        MODEL_SERVICE,
        SERVICE,
        lambda service: (service["status"].get("replicas") or 0) >= 2,
        _scaling_line,
        timeout_seconds=180,
    )
    out = time.time()
    await asyncio.sleep(4)
    await demo.send(f"rate {STEADY_RATE}")
    narrator.say(f"  second replica routable after {out - begin:.0f} s; back to {STEADY_RATE} requests a second")
    await demo.control.follow(
        MODEL_SERVICE,
        SERVICE,
        one_replica,
        _scaling_line,
        timeout_seconds=240,
    )
    await asyncio.sleep(3)
    end = time.time()
    clients = requests_between(demo.requests_file, begin, end)
    decisions = [
        d
        for d in demo.timeline.decisions.values()
        if d["decision"] in ("ScaleOut", "ScaleIn") and datetime.fromisoformat(d["time"]).timestamp() >= begin
    ]
    demo.report["scaling"] = [
        {"decision": d["decision"], "time": d["time"], "signal": d.get("signal"), "reason": d["reason"]}
        for d in sorted(decisions, key=lambda d: d["time"])
    ]
    demo.report["scaling_clients"] = {
        "requests": len(clients),
        "errors": sum("error" in r for r in clients),
        "seconds_to_second_replica": round(out - begin, 1),
    }
    for row in demo.report["scaling"]:
        narrator.say(f"  {row['time'][11:19]}  {row['decision']:<10} {row['reason']}")
    narrator.say(f"  clients saw {demo.report['scaling_clients']['errors']} errors in {len(clients)} requests")


def one_replica(service: Manifest) -> bool:
    """Whether one replica serves and no other is wanted."""
    status = service["status"]
    return status.get("replicas") == 1 and (status.get("scaling") or {}).get("desiredReplicas") == 1


def _scaling_line(service: Manifest) -> str:
    status = service.get("status", {})
    scaling = status.get("scaling") or {}
    return f"replicas {status.get('replicas')} (wanted {scaling.get('desiredReplicas')}): {scaling.get('reason', '')}"


Chapter = tuple[str, Callable[[Demo], Awaitable[None]]]
CHAPTERS: tuple[Chapter, ...] = (
    ("Data: drawings with English and Chinese names", build_data),
    ("Train version 1", lambda demo: train(demo, *VERSION_1)),
    ("Compile: ONNX Runtime engines, checked against torch", compile_engines),
    ("Serve version 1", serve),
    ("Train version 2, from version 1", lambda demo: train(demo, *VERSION_2)),
    ("Roll out version 2 under traffic", lambda demo: roll_out_good(demo)),
    ("A bad version 3: it fails", lambda demo: roll_out_faulty(demo, "07-rollout-failing.yaml", "failing")),
    ("A bad version 3: it is slow", lambda demo: roll_out_faulty(demo, "08-rollout-slow.yaml", "slow")),
    ("A bad version 3: it is wrong", lambda demo: roll_out_faulty(demo, "09-rollout-wrong.yaml", "wrong")),
    ("Load rises and falls", scale),
)
