"""Drives Ringback with Cekura's Python client: agents, personalities, metrics, test profiles, scenarios, launches, results, runs
and cron jobs, and looks at what comes back. Run it with run.py."""

import asyncio
import json

from cekura import AsyncCekura, Cekura
from cekura._exceptions import APIError, AuthenticationError, NotFoundError

from checks import KEY, STAND_IN, URL, check, contains, holds, http, run_all, same, until

client = Cekura(api_key=KEY, base_url=URL)
# A retry would hide what went wrong.
client._http.max_retries = 0
MADE = {}


def directed(text, **directive):
    """A prompt that tells the stand-in how to behave."""
    return f"{text} <<{json.dumps(directive)}>>"


def refused(call, status, *fields):
    """The call raises the client's error with this status, and a body that names these fields."""
    try:
        answer = call()
    except APIError as error:
        same(error.status_code, status, f"the status of {error.response_body}")
        for field in fields:
            holds(field in str(error.response_body), f"'{field}' is not in {error.response_body}")
        return error.response_body
    raise AssertionError(f"no error {status}, but {str(answer)[:300]}")


def gone(call):
    try:
        answer = call()
    except NotFoundError:
        return
    raise AssertionError(f"it is still there: {str(answer)[:300]}")


def finished(result_id):
    return client.results.wait(result_id, poll_interval=0.1, timeout=60)


@check
def agents_are_made_changed_and_listed():
    model = {"provider": "custom-llm", "url": STAND_IN + "/target", "model": "stand-in"}
    made = client.agents.create(
        name="Booker",
        description="You book tables.",
        language="en",
        telephony={"phone_number": "+15550100", "inbound": True},
        model={**model, "messages": [{"role": "system", "content": directed("You book tables.", place="the desk")}]},
    )
    holds(isinstance(made["id"], int), made)
    contains(made, {"name": "Booker", "telephony": {"phone_number": "+15550100", "inbound": True}}, "the agent")
    same(client.agents.get(made["id"])["name"], "Booker", "its name")
    same(client.agents.update(made["id"], name="Booker 2")["name"], "Booker 2", "its new name")
    contains(client.agents.get(made["id"])["model"], model, "its model stays")
    listed = client.agents.list()
    contains(listed, {"count": 1, "next": None, "previous": None}, "the list")
    same([one["id"] for one in listed["results"]], [made["id"]], "the listed agents")
    same(client.agents.short_list(), [{"id": made["id"], "name": "Booker 2"}], "the short list")
    holds(len(client.agents.get_personalities(made["id"])) >= 7, "the built-in personalities")
    refused(lambda: client.agents.create(name="x", provider={"type": "vapi", "credentials": {"api_key": "k"}}), 400, "endpoint")
    other = client.agents.create(name="Other", description="Nobody.")
    client.agents.delete(other["id"])
    gone(lambda: client.agents.get(other["id"]))
    MADE["agent"] = made["id"]


@check
def personalities_are_a_bare_list():
    made = client.personalities.create(name="Pat", prompt=directed("You are Pat.", turns=2), language="en", accent="british")
    contains(client.personalities.get(made["id"]), {"name": "Pat", "accent": "british", "language": "en"}, "the personality")
    listed = client.personalities.list()
    holds(isinstance(listed, list) and made["id"] in [one["id"] for one in listed], listed)
    refused(lambda: client.personalities.create(name="Nobody"), 400, "prompt")
    MADE["personality"] = made["id"]


@check
def metrics_have_kinds():
    judged = client.metrics.create(
        name="Polite", description="Was the agent polite?", type="llm_judge", eval_type="binary_workflow_adherence"
    )
    rating = client.metrics.create(name="Tone", description="How was the tone?", eval_type="continuous_qualitative")
    enum = client.metrics.create(name="Mood", description="The mood", eval_type="enum", enum_values=["good", "bad"])
    latency = client.metrics.create(name="Latency", function_name="latency", eval_type="numeric")
    silence = client.metrics.create(name="Silence", function_name="silence", eval_type="numeric")
    contains(client.metrics.get(judged["id"]), {"eval_type": "binary_workflow_adherence", "type": "llm_judge"}, "the metric")
    same(client.metrics.update(rating["id"], description="How was the tone, really?")["eval_type"], "continuous_qualitative", "its kind")
    same(client.metrics.list()["count"], 5, "how many there are")
    many = client.metrics.bulk_create([{"name": "A", "description": "a", "eval_type": "binary"}, {"name": "B", "description": "b", "eval_type": "numeric"}])
    same([one["name"] for one in many], ["A", "B"], "those made at once")
    for one in many:
        client.metrics.delete(one["id"])
    gone(lambda: client.metrics.get(many[0]["id"]))
    catalogue = client.predefined_metrics.list()
    holds("talk_ratio" in [one["code"] for one in catalogue], catalogue)
    copied = client.predefined_metrics.copy(codes=["talk_ratio"])
    contains(copied[0], {"function_name": "talk_ratio", "eval_type": "numeric"}, "the copy")
    refused(lambda: client.metrics.create(name="Code", description="x", eval_type="binary", type="custom_code"), 400, "type")
    MADE["metrics"] = [one["id"] for one in (judged, rating, enum, latency, silence, copied[0])]


@check
def test_profiles_are_a_bare_list():
    information = {"main_agent_variables": {"plan": "gold"}, "testing_agent_variables": {"name": "Ann"}}
    made = client.test_profiles.create(name="Ann", agent=MADE["agent"], information=information)
    contains(client.test_profiles.get(made["id"]), {"name": "Ann", "agent": MADE["agent"], "information": information}, "the profile")
    same([one["id"] for one in client.test_profiles.list(agent_id=MADE["agent"])], [made["id"]], "the listed profiles")
    same(client.test_profiles.update(made["id"], name="Ann B.")["information"], information, "what is not changed")
    other = client.test_profiles.create(name="Ben", information={"name": "Ben"})
    client.test_profiles.delete(other["id"])
    gone(lambda: client.test_profiles.get(other["id"]))
    MADE["profile"] = made["id"]


@check
def scenarios_are_made_changed_and_listed():
    made = client.scenarios.create(
        name="Booking",
        agent=MADE["agent"],
        personality=MADE["personality"],
        instructions="You are {{test_profile.name}} and book a table.",
        expected_outcome_prompt="A table is booked.",
        metrics=MADE["metrics"],
        tags=["smoke"],
        folder_path="Sales.Inbound",
        max_duration=60,
    )
    contains(
        client.scenarios.get(made["id"]),
        {
            **{"name": "Booking", "agent": MADE["agent"], "personality": MADE["personality"], "metrics": MADE["metrics"]},
            **{"tags": ["smoke"], "folder_path": "Sales.Inbound", "max_duration": 60},
        },
        "the scenario",
    )
    same(client.scenarios.update(made["id"], tags=["smoke", "nightly"])["metrics"], MADE["metrics"], "what is not changed")
    same(client.scenarios.list(agent_id=MADE["agent"], tags="nightly")["count"], 1, "those with the tag")
    same(client.scenarios.list(tags="nightly", tag_filter_type="not")["count"], 0, "those without it")
    same(client.scenarios.list(folder_path="Sales")["count"], 1, "those in the folder")
    same(client.scenarios.get_tags(), ["nightly", "smoke"], "all tags")
    other = client.scenarios.create(name="Other", agent=MADE["agent"], personality=MADE["personality"], instructions="x")
    client.scenarios.delete_bulk(scenarios=[other["id"]])
    gone(lambda: client.scenarios.get(other["id"]))
    refused(lambda: client.scenarios.create(name="x" * 81), 400, "name", "personality", "agent")
    MADE["scenario"] = made["id"]


@check
def a_launch_is_polled_to_its_end_and_its_counts_are_those_of_its_runs():
    launched = client.scenarios.run_text(
        agent_id=MADE["agent"], scenarios=[MADE["scenario"]], frequency=3, name="Nightly", test_profile_ids=[MADE["profile"]]
    )
    contains(launched, {"status": "pending", "agent": MADE["agent"], "run_as_text": True, "success_rate": 0}, "the launch")
    same(len(launched["runs"]), 3, "its runs")
    result = finished(launched["id"])
    contains(result, {"status": "completed", "name": "Nightly", "is_cronjob": False, "run_type": "Text"}, "the result")
    runs = list(result["runs"].values())
    for field, count in {
        "total_runs_count": len(runs),
        "completed_runs_count": sum(run["status"] == "completed" for run in runs),
        "success_runs_count": sum(run["success"] for run in runs),
        "failed_runs_count": sum(not run["success"] for run in runs),
        "total_expected_outcome_count": sum("score" in run["expected_outcome"] for run in runs),
        "met_expected_outcome_count": sum(run["expected_outcome"].get("score") == 100 for run in runs),
    }.items():
        same(result[field], count, field)
    same(result["success_rate"], 1.0, "the rate")
    metrics = {one["name"]: one for one in runs[0]["evaluation"]["metrics"]}
    same([one["id"] for one in runs[0]["evaluation"]["metrics"]], MADE["metrics"], "the metrics")
    contains(metrics["Polite"], {"type": "binary_workflow_adherence", "score": 5}, "a binary metric")
    holds(metrics["Mood"]["enum"] in ("good", "bad"), metrics["Mood"])
    holds(metrics["Latency"]["extra"]["percentiles"]["p50"] >= 0, metrics["Latency"])
    contains(metrics["Silence"], {"extra": {"skipped": True}}, "a metric that a chat does not have")
    same(metrics["Silence"]["score"], None, "its score")
    listed = client.results.list(agent_id=MADE["agent"])
    same([one["id"] for one in listed["results"]], [launched["id"]], "the listed results")
    MADE["result"], MADE["runs"] = launched["id"], [run["id"] for run in launched["runs"]]


@check
def runs_are_read_listed_and_read_together():
    run = client.runs.get(MADE["runs"][0])
    contains(run, {"result_id": MADE["result"], "status": "completed", "success": True, "agent": MADE["agent"]}, "the run")
    holds("Main Agent: Answer 1 from the desk." in run["transcript"], run["transcript"])
    holds(run["scenario_instructions"].startswith("You are Ann and book"), run["scenario_instructions"])
    contains(run["test_profile_data"], {"id": MADE["profile"], "information": {"main_agent_variables": {"plan": "gold"}}}, "its profile")
    same({entry["role"] for entry in run["transcript_object"]} >= {"Main Agent", "Testing Agent"}, True, "the roles")
    listed = client.runs.list(result_id=MADE["result"], page_size=2)
    same((listed["count"], len(listed["results"])), (3, 2), "the page")
    holds(listed["next"].endswith("page=2") and listed["previous"] is None, listed["next"])
    same([one["id"] for one in client.runs.bulk(run_ids=f"{MADE['runs'][2]},{MADE['runs'][0]}")], [MADE["runs"][2], MADE["runs"][0]], "the bulk")
    same([one["id"] for one in client.results.get_runs(MADE["runs"])], MADE["runs"], "those of the result")
    refused(lambda: client.runs.get_listen_url(MADE["runs"][0]), 400, "listened")
    refused(lambda: client.runs.end_call(MADE["runs"][0]), 400, "over")


@check
def results_are_judged_again_rerun_and_deleted():
    # Whatever it was, it stays the same result.
    again = client.results.evaluate_metrics(MADE["result"], run_ids=MADE["runs"][:2], metric_ids=MADE["metrics"][:1])
    same(again["id"], MADE["result"], "the result that is judged again")
    same(finished(MADE["result"])["completed_runs_count"], 3, "its completed runs")
    rerun = client.results.rerun(MADE["result"], run_ids=MADE["runs"][:1])
    holds(rerun["id"] != MADE["result"], "a rerun is a new result")
    same(finished(rerun["id"])["total_runs_count"], 1, "its runs")
    same(client.results.list()["count"], 2, "how many results there are")
    refused(lambda: client.results.rerun(MADE["result"], run_ids=[1]), 400, "run_ids")


@check
def calls_are_ended():
    quiet = client.personalities.create(name="Quiet", prompt=directed("You say nothing.", hang=True))
    launched = client.scenarios.run_text(agent_id=MADE["agent"], scenarios=[MADE["scenario"]], personality_ids=[quiet["id"]])
    until("the run to be under way", lambda: client.runs.get(launched["runs"][0]["id"])["status"] == "in_progress")
    same(client.results.end_calls(launched["id"])["id"], launched["id"], "the ended result")
    same(finished(launched["id"])["status"], "cancelled", "its status")
    http("POST", "/release", {}, base=STAND_IN)


@check
def an_agent_without_a_model_is_played_by_the_default_one():
    agent = client.agents.create(name="Plain", description="You run a clinic.")
    launched = client.scenarios.run_text(agent_id=agent["id"], scenarios=[MADE["scenario"]])
    contains(finished(launched["id"]), {"status": "completed", "agent": agent["id"], "agent_name": "Plain"}, "the result")
    holds("Main Agent: Answer 1 from nowhere." in client.runs.get(launched["runs"][0]["id"])["transcript"], "it answers")


@check
def channels_that_ringback_does_not_have_say_so():
    wanted = {"agent_id": MADE["agent"], "scenarios": [MADE["scenario"]]}
    for run in ("run", "run_email", "run_websocket", "run_pipecat_v2", "run_livekit_v2", "run_retell", "run_vapi", "run_elevenlabs", "run_sip"):
        body = refused(lambda: getattr(client.scenarios, run)(**wanted), 400)
        holds(isinstance(body, list) and body[0], f"{run}: {body}")


@check
def cron_jobs_are_schedules():
    made = client.cron_jobs.create(
        name="Weekly",
        agent=MADE["agent"],
        scenarios=[MADE["scenario"]],
        crontab_expression="0 9 * * 1",
        timezone="Europe/Berlin",
        execution_mode="text",
    )
    contains(client.cron_jobs.get(made["id"]), {"name": "Weekly", "is_active": True, "scenarios": [MADE["scenario"]]}, "the job")
    holds(client.cron_jobs.get(made["id"])["next_runs"], "it fires")
    same([one["id"] for one in client.cron_jobs.list(agent_id=MADE["agent"])], [made["id"]], "the listed jobs")
    contains(client.cron_jobs.update(made["id"], is_active=False), {"is_active": False, "crontab_expression": "0 9 * * 1"}, "the changed job")
    status, schedules = http("GET", "/schedule")
    same((status, schedules[0]["name"]), (200, "Weekly"), "the schedule")
    status, started = http("POST", f"/schedule/{schedules[0]['id']}/run", {})
    same(status, 201, started)
    result = client.results.list(search="weekly")["results"][0]
    contains(finished(result["id"]), {"is_cronjob": True, "name": "Weekly"}, "its result")
    refused(lambda: client.cron_jobs.create(name="Wrong", agent=MADE["agent"], scenarios=[MADE["scenario"]], crontab_expression="often", execution_mode="text"), 400, "crontab_expression")
    client.cron_jobs.delete(made["id"])
    gone(lambda: client.cron_jobs.get(made["id"]))


@check
def the_project_has_a_rubric():
    project = client.projects.list()["results"][0]
    same(client.projects.get(project["id"])["rubric_config"], {}, "no rubric")


@check
def a_key_that_is_nobodys_is_refused():
    try:
        Cekura(api_key="nobody's", base_url=URL).results.list()
    except AuthenticationError:
        return
    raise AssertionError("it was let in")


@check
def the_asynchronous_client_reads_the_same():
    async def read():
        async with AsyncCekura(api_key=KEY, base_url=URL) as other:
            return await other.results.get(MADE["result"])

    same(asyncio.run(read())["id"], MADE["result"], "the result")


if __name__ == "__main__":
    raise SystemExit(1 if run_all() else 0)
