"""The story of the demo, chapter by chapter: data, train, compile, serve, replace, revert, scale.

Everything is asked for by applying the files of deploy/examples/quickstart; nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import Rejected, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENGINE, JOB, MODEL_SERVICE, MODEL_VERSION, TRAINING_RUN
from contact_sheet import make as make_contact_sheet
from control import Control, condition, is_true
from samples import Sample, read_split, write_traffic_samples
from timeline import Timeline, requests_between, seconds_between

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
SERVICE = "emoji"
STEADY_RATE = 60
LOAD_CLIENTS = 24


@dataclass(kw_only=True)
class Demo:
    """What the chapters share."""

    control: Control
    artifacts: ArtifactStore
    output: Path
    address: str
    quick: bool
    traffic: asyncio.subprocess.Process | None = None
    timeline: Timeline
    samples: list[Sample] = field(default_factory=list)
    report: dict[str, Any] = field(
        default_factory=lambda: {"versions": [], "engines": [], "rollouts": [], "scaling": []}
    )

    @property
    def requests_file(self) -> Path:
        return self.output / "requests.jsonl"

    def apply(self, file: str) -> None:
        """Apply a file of the quickstart; with a quick budget its twin in quick/, where there is one."""
        quick = QUICKSTART / "quick" / file
        self.control.run(
            "apply", "-f", str((quick if self.quick and quick.exists() else QUICKSTART / file).relative_to(Path.cwd()))
        )

    async def send(self, command: str) -> None:
        """Tell the traffic generator what to do."""
        assert self.traffic is not None
        assert self.traffic.stdin is not None
        self.traffic.stdin.write(f"{command}\n".encode())
        await self.traffic.stdin.drain()


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


async def train(demo: Demo, file: str, version: str) -> None:
    """Chapter 2 (and 5): a TrainingRun becomes a ModelVersion."""
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
    import json

    return json.loads(demo.artifacts.read(digest, "curves.json"))


async def compile_engines(demo: Demo) -> None:
    """Chapter 3: ONNX Runtime engines in fp32 and int8, checked against torch."""
    demo.apply("03-engines-v1.yaml")
    for precision in ("fp32", "int8"):
        engine = await demo.control.follow(
            ENGINE,
            f"emoji-clip-v1-onnxruntime-{precision}",
            lambda engine: is_true(engine, "Ready"),
            lambda engine: f"{engine['metadata']['name']}: {condition(engine, 'Ready').get('reason', 'Pending')}",
            failed=lambda engine: (
                condition(engine, "Ready").get("reason") in ("ParityFailed", "LatencyBudgetExceeded", "BuildFailed")
            ),
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
        MODEL_SERVICE, SERVICE, lambda service: is_true(service, "Ready"), _service_line, timeout_seconds=180
    )
    await gateway_answers(demo.address)
    gallery = demo.samples[:300] if demo.quick else demo.samples
    sheet = await asyncio.to_thread(make_contact_sheet, demo.address, gallery, demo.output / "contact-sheet.png")
    demo.report["contact_sheet"] = sheet
    for query, hits in sheet["queries"].items():
        demo.control.narrator.say(f"  {query:<28} → {', '.join(hits[:3])}")
    await demo.send(f"rate {STEADY_RATE}")


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


def _service_line(service: Manifest) -> str:
    status = service.get("status", {})
    stable, candidate, rollout = status.get("stable") or {}, status.get("candidate") or {}, status.get("rollout") or {}
    line = f"stable {stable.get('version', '-')}"
    if candidate:
        line += f"  candidate {candidate['version']} {candidate.get('desiredWeight') or 0} %"
    if rollout.get("phase"):
        line += f"  {rollout['phase']}"
    if (status.get("evidence") or {}).get("line"):
        line += f"  {status['evidence']['line']}"
    return (
        line
        if stable or candidate
        else f"{condition(service, 'Ready').get('reason', 'Pending')}: {condition(service, 'Ready').get('message', '')}"
    )


async def roll_out(demo: Demo, file: str, candidate: str, *, fault: str | None) -> None:
    """Chapters 5 and 6: ask for a version, watch what the judge does with it."""
    begin = time.time()
    demo.apply(file)
    ended = ("Promoted", "Aborted")
    service = await demo.control.follow(
        MODEL_SERVICE,
        SERVICE,
        lambda service: _rollout(service).get("candidate") == candidate and _rollout(service).get("phase") in ended,
        _service_line,
        failed=lambda service: (
            _rollout(service).get("candidate") == candidate
            and condition(service, "EngineReady").get("reason") in ("ParityFailed", "BuildFailed")
        ),
        timeout_seconds=420,
    )
    await _settle(demo, fault is not None)
    outcome = _rollout(service)["phase"]
    record = rollout_record(demo, _rollout(service), candidate, fault, begin)
    demo.report["rollouts"].append(record)
    narrator = demo.control.narrator
    for decision in demo.timeline.decided(candidate):
        narrator.say(f"  {decision['time'][11:19]}  {decision['decision']:<10} {decision['reason']}")
    narrator.say(
        f"  {candidate}: {outcome.lower()} after {record['seconds_to_decision']:.0f} s, first signal {record['first_signal']}; "
        f"clients saw {record['client_errors']} errors in {record['client_requests']} requests"
    )
    if outcome != ("Aborted" if fault else "Promoted"):
        raise Rejected(
            f"{candidate} should have been {'reverted' if fault else 'promoted'}, but was {outcome.lower()}: {_rollout(service)}"
        )


async def _settle(demo: Demo, expect_alert: bool) -> None:
    """Let the last answers and a late alert arrive before the record is drawn up."""
    await asyncio.sleep(6 if expect_alert else 2)


def _rollout(service: Manifest) -> dict[str, Any]:
    return service.get("status", {}).get("rollout") or {}


def rollout_record(
    demo: Demo, state: dict[str, Any], candidate: str, fault: str | None, begin: float
) -> dict[str, Any]:
    """Draw up what the report says of one rollout."""
    decisions = demo.timeline.decided(candidate)
    clients = requests_between(demo.requests_file, begin, time.time())
    samples = [s for s in demo.timeline.samples if s["time"] >= begin]
    mine = [r for r in clients if r["version"] == candidate]
    last = next((d for d in reversed(decisions) if d["decision"] in ("Abort", "Promote")), None)
    errors = [r for r in clients if "error" in r]
    first_weight = state.get("firstWeightTime")
    return {
        "candidate": candidate,
        "fault": fault,
        "outcome": state["phase"],
        "seconds_to_decision": seconds_between(first_weight, state["completionTime"]) if first_weight else None,
        "candidate_requests": len(mine),
        "candidate_errors": sum("error" in r for r in mine),
        "client_requests": len(clients),
        "client_errors": len(errors),
        "client_errors_outside_candidate": sum(r["version"] != candidate for r in errors),
        "error_samples": sorted({str(r["error"])[:200] for r in errors})[:5],
        "first_signal": last["signal"] if last else None,
        "signals": _signals(decisions),
        "steps": [d for d in decisions if d["decision"] == "SetWeight"],
        "decisions": decisions,
        "begin": begin,
        "end": time.time(),
        "largest_weight": max((s["weight"] for s in samples if s["candidate"] == candidate), default=0),
    }


def _signals(decisions: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return every signal that spoke about the candidate with the time it was first heard, in order."""
    first: dict[str, str] = {}
    for decision in decisions:
        if decision.get("signal"):
            first.setdefault(decision["signal"], decision["time"])
    return [{"signal": signal, "time": at} for signal, at in sorted(first.items(), key=lambda item: item[1])]


async def make_faulty(demo: Demo, fault: str) -> str:
    """Derive a bad version from the good one and import it with its evaluation waived. Returns its name."""
    version, tag = f"emoji-clip-v3-{fault}", f"imports/emoji-clip-v3-{fault}"
    demo.control.run("train", "derive", "--from", "models/emoji-clip-v2", "--fault", fault, "--tag", tag)
    demo.control.run(
        "model",
        "import",
        "--from",
        tag,
        "--name",
        version,
        "--model",
        "emoji-clip",
        "--waive-evaluation",
        f"demonstration of a {fault} version",
    )
    return version


async def scale(demo: Demo) -> None:
    """Chapter 7: load rises and falls."""
    begin = time.time()
    narrator = demo.control.narrator
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
        lambda service: (service["status"].get("replicas") or 0) == 1,
        _scaling_line,
        timeout_seconds=240,
    )
    await asyncio.sleep(6)
    end = time.time()
    clients = requests_between(demo.requests_file, begin, end)
    decisions = [d for d in demo.timeline.decisions.values() if d["decision"] in ("ScaleOut", "ScaleIn")]
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


def _scaling_line(service: Manifest) -> str:
    status = service.get("status", {})
    scaling = status.get("scaling") or {}
    return f"replicas {status.get('replicas')} (wanted {scaling.get('desiredReplicas')}): {scaling.get('reason', '')}"


Chapter = tuple[str, Callable[[Demo], Awaitable[None]]]
CHAPTERS: tuple[Chapter, ...] = (
    ("Data: drawings with English and Chinese names", build_data),
    ("Train version 1", lambda demo: train(demo, "02-train-v1.yaml", "emoji-clip-v1")),
    ("Compile: ONNX Runtime engines, checked against torch", compile_engines),
    ("Serve version 1", serve),
    ("Train version 2, from version 1", lambda demo: train(demo, "05-train-v2.yaml", "emoji-clip-v2")),
    (
        "Roll out version 2 under traffic",
        lambda demo: roll_out(demo, "06-rollout-v2.yaml", "emoji-clip-v2", fault=None),
    ),
    ("A bad version 3: it fails", lambda demo: roll_out_faulty(demo, "07-rollout-failing.yaml", "failing")),
    ("A bad version 3: it is slow", lambda demo: roll_out_faulty(demo, "08-rollout-slow.yaml", "slow")),
    ("A bad version 3: it is wrong", lambda demo: roll_out_faulty(demo, "09-rollout-wrong.yaml", "wrong")),
    ("Load rises and falls", scale),
)


async def roll_out_faulty(demo: Demo, file: str, fault: str) -> None:
    """Derive, import, and ask for it."""
    await roll_out(demo, file, await make_faulty(demo, fault), fault=fault)
