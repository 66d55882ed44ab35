"""What people and alerts do to a rollout: abort, promote, pause, resume."""

from __future__ import annotations

import json


async def test_a_person_aborts_and_promotes(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(6)
    request = {"verb": "abort", "candidate": "v2", "id": "1"}
    await serving.ask("v2", annotations={"belvedere.dev/rollout-request": json.dumps(request)})
    await serving.run(1)
    assert (await serving.decisions())[-1] == ("Abort", "person")
    assert (await serving.status())["rollout"]["lastRequestId"] == "1"
    await serving.add_version("v3")
    await serving.ask("v3", annotations={"belvedere.dev/rollout-request": json.dumps(request)})
    await serving.run(4)
    promote = {"verb": "promote", "candidate": "v3", "id": "2"}
    await serving.ask("v3", annotations={"belvedere.dev/rollout-request": json.dumps(promote)})
    await serving.run(3)
    assert (await serving.decisions())[-1] == ("Promote", "person")
    assert await serving.weights() == {"v3": 100}


async def test_a_pause_holds_and_a_harmful_candidate_goes_all_the_same(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(4)
    await serving.ask("v2", rollout={"paused": True})
    await serving.run(30)
    assert (await serving.status())["rollout"]["phase"] == "Paused"
    assert (await serving.weights())["v2"] == 10
    serving.traffic.behaviour["v2"].error_rate = 0.5
    await serving.run(60, until="Aborted")
    assert await serving.weights() == {"v1": 100}


async def test_the_deadline_pauses_until_someone_resumes(serving):
    await serving.add_version("v2")
    serving.traffic.rate = 0
    await serving.ask("v2", rollout={"deadlineSeconds": 20})
    await serving.run(25)
    assert (await serving.decisions())[-1] == ("Pause", "deadline")
    serving.traffic.rate = 200
    resume = {"verb": "resume", "id": "9"}
    await serving.ask(
        "v2",
        rollout={"deadlineSeconds": 20},
        annotations={"belvedere.dev/rollout-request": json.dumps(resume)},
    )
    await serving.run(2)
    assert (await serving.status())["rollout"]["phase"] == "Progressing"


async def test_an_alert_about_the_candidate_aborts_and_one_about_the_stable_version_does_not(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    await serving.fire("CandidateErrorBudgetBurn", "abort", version="v1")
    await serving.run(2)
    assert (await serving.status())["rollout"]["phase"] == "Progressing"
    await serving.fire("CandidateErrorBudgetBurn", "abort", version="v2")
    await serving.reconcile()
    assert (await serving.decisions())[-1] == ("Abort", "alert:CandidateErrorBudgetBurn")


async def test_an_alert_after_the_judge_is_recorded_as_a_second_opinion(serving):
    await serving.add_version("v2")
    serving.traffic.behaviour["v2"].error_rate = 0.4
    await serving.ask("v2")
    await serving.run(120, until="Aborted")
    await serving.run(3)
    await serving.fire("CandidateErrorBudgetBurn", "abort", version="v2")
    await serving.run(5)
    assert (await serving.decisions())[-2:] == [("Abort", "judge:errors"), ("Alert", "alert:CandidateErrorBudgetBurn")]


async def test_an_alert_of_an_earlier_try_does_not_abort_the_next(serving):
    await serving.add_version("v2")
    await serving.ask("v2")
    await serving.run(5)
    await serving.fire("CandidateErrorBudgetBurn", "abort", version="v2")
    await serving.run(15)
    await serving.ask("v2", rollout={"deadlineSeconds": 700})
    await serving.run(5)
    assert (await serving.status())["rollout"]["phase"] == "Progressing"
