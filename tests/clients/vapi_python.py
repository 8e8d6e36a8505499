"""Calls every simulations, eval, structured-output, assistant and squad method of Vapi's Python client, with all of their
arguments, and looks at what comes back. Run it with run.py."""

import asyncio
import datetime
import functools
import sys
import time
import types

import vapi
from vapi.core.api_error import ApiError
from vapi.core.jsonable_encoder import jsonable_encoder
from vapi.eval import (
    CreateEvalRunDtoTarget_Assistant as EvalAssistantTarget,
    CreateEvalRunDtoTarget_Squad as EvalSquadTarget,
)
from vapi.simulation_runs import (
    CreateSimulationRunDtoSimulationsItem_Simulation as SimulationEntry,
    CreateSimulationRunDtoSimulationsItem_SimulationSuite as SuiteEntry,
    CreateSimulationRunDtoTarget_Assistant as AssistantTarget,
    CreateSimulationRunDtoTarget_Squad as SquadTarget,
)
from vapi.simulation_scenarios import UpdateScenarioDtoHooksItem_SimulationRunStarted as UpdateStartedHook
from vapi.structured_outputs import (
    UpdateStructuredOutputDtoConditionsItem_EndedReason as UpdateEndedReason,
    UpdateStructuredOutputDtoModel_Openai as UpdateOpenaiModel,
)

from checks import KEY, NOBODY, STAND_IN, URL, Record, check, contains, holds, http, run_all, same, until

CLIENTS = (
    "simulation_personalities",
    "simulation_scenarios",
    "simulations",
    "simulation_suites",
    "simulation_runs",
    "structured_outputs",
    "assistants",
    "squads",
    "eval",
)
# Methods that Ringback does not serve, and why. A check sees to it that they are refused cleanly.
OUTSIDE = {
    ("assistants", "assistant_controller_validate_background_sound_url"): "a sound for real calls, which nothing here plays",
}

client = vapi.Vapi(base_url=URL, token=KEY)
record = Record()
personalities, scenarios, simulations, suites, runs, outputs, assistants, squads, evals = (
    record.wrap(name, getattr(client, name)) for name in CLIENTS
)
raw_runs = record.wrap("raw simulation_runs", client.simulation_runs.with_raw_response)

CHAT = vapi.SimulationRunTransportConfiguration(provider="vapi.webchat")
VOICE = vapi.SimulationRunTransportConfiguration(provider="vapi.websocket")


def plain(value):
    """A model of the client as JSON, with the names of the wire."""
    return jsonable_encoder(value)


def ids(values):
    """The ids of a list, in order; of a page, those of its results."""
    if isinstance(values, dict):
        values = values["results"]
    values = getattr(values, "results", values)
    return [value["id"] if isinstance(value, dict) else value.id for value in values]


def refused(call, status, *words, kind=ApiError):
    """The call raises the client's error with this status, in the shape of the API, and a message that has these words."""
    try:
        answer = call()
    except ApiError as error:
        holds(isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}")
        same(error.status_code, status, f"the status of {error.body}")
        body = plain(error.body)
        holds(isinstance(body, dict) and body.get("message"), f"{body} has no message")
        if body.get("error") not in ("scenario_in_use", "personality_in_use"):
            same(body.get("statusCode"), status, "statusCode")
        for word in words:
            holds(word in str(body["message"]), f"'{word}' is not in: {body['message']}")
        return body
    raise AssertionError(f"no error {status}, but {str(answer)[:300]}")


# What is sent.


def prompt(text):
    return [vapi.OpenAiMessage(role="system", content=text)]


def tester(mode="assistant-speaks-first-with-model-generated-message", **fields):
    """A tester that speaks first, in its model's words, unless `mode` says otherwise."""
    model = vapi.CreateAssistantDtoModel_Openai(
        model="gpt-4.1-mini", messages=prompt("You are in a hurry."), temperature=0.5, max_tokens=250.0
    )
    return vapi.CreateAssistantDto(model=model, first_message_mode=mode, **fields)


def target(text="You run a clinic. <<{\"place\": \"Bern\"}>>", name="Clinic"):
    """An agent with a tool, behind an address of its own."""
    tool = vapi.CustomLlmModelToolsItem_Function(
        function=vapi.OpenAiFunction(
            name="findSlot",
            description="Finds a free slot.",
            parameters=vapi.OpenAiFunctionParameters(
                type="object", properties={"day": vapi.JsonSchema(type="string")}, required=["day"]
            ),
        )
    )
    model = vapi.CreateAssistantDtoModel_CustomLlm(
        url=f"{STAND_IN}/target/v1", model="clinic-1", messages=prompt(text), tools=[tool]
    )
    return vapi.CreateAssistantDto(name=name, model=model, first_message="Clinic, good day.")


def output(name, type_, value=None, **fields):
    """An inline structured output; the stand-in's judge will give `value` for it."""
    described = None if value is None else f"<<{value}>>"
    return vapi.CreateStructuredOutputDto(name=name, schema_=vapi.JsonSchema(type=type_), description=described, **fields)


def evaluation(name, type_, comparator, value, judged, **fields):
    return vapi.EvaluationPlanItem(
        structured_output=output(name, type_, judged), comparator=comparator, value=value, **fields
    )


BOOKED = [evaluation("booked", "boolean", "=", True, "true")]
MISSED = [evaluation("booked", "boolean", "=", True, "false")]
HANGS = 'Say nothing. <<{"hang": true}>>'


def inline(instructions="Book a slot.", evaluations=None, name="Inline"):
    """An entry of a run that refers to nothing."""
    return SimulationEntry(
        name=name,
        scenario=vapi.CreateScenarioDto(
            name=f"{name} scenario", instructions=instructions, evaluations=evaluations or BOOKED
        ),
        personality=vapi.CreatePersonalityDto(name="Pat", assistant=tester()),
    )


def start(entries, wanted=None, **fields):
    wanted = wanted or AssistantTarget(assistant=target())
    return runs.simulation_run_controller_create(
        **{"simulations": entries, "target": wanted, "iterations": 1.0, "transport": CHAT, **fields}
    )


def ended(run):
    """Waits for the end of a run; gives the run and its items in the order in which they were laid out."""

    def ask():
        found = runs.simulation_run_controller_find_one(run.id)
        return found if found.status == "ended" else None

    found = until("the run to end", ask)
    return found, runs.simulation_run_controller_find_items(run.id, sort_order="ASC")


def user(text):
    return vapi.ChatEvalUserMessageMock(role="user", content=text)


def system(text):
    """A prompt in the middle of a conversation. The stand-in's target does from then on what it says."""
    return vapi.ChatEvalSystemMessageMock(role="system", content=text)


def tool_says(text):
    return vapi.ChatEvalToolResponseMessageMock(role="tool", content=text)


def mock_call(name="findSlot", **arguments):
    return vapi.ChatEvalAssistantMessageMockToolCall(name=name, arguments=arguments or None)


def checkpoint(plan, **go_on):
    """A message that the target has to write; `go_on` is the plan for what comes after it."""
    plans = {"continue_plan": vapi.AssistantMessageEvaluationContinuePlan(**go_on)} if go_on else {}
    return vapi.ChatEvalAssistantMessageEvaluation(role="assistant", judge_plan=plan, **plans)


def exact(content, *calls, **go_on):
    plan = vapi.ChatEvalAssistantMessageEvaluationJudgePlan_Exact(content=content, tool_calls=list(calls) or None)
    return checkpoint(plan, **go_on)


def regex(pattern, *calls):
    return checkpoint(
        vapi.ChatEvalAssistantMessageEvaluationJudgePlan_Regex(content=pattern, tool_calls=list(calls) or None)
    )


def judge(prompt_=None, **fields):
    """A model that judges, behind an address of its own."""
    messages = [] if prompt_ is None else [{"role": "system", "content": prompt_}]
    return vapi.AssistantMessageJudgePlanAiModel_CustomLlm(
        url=f"{STAND_IN}/judge/v1", model="judge-1", temperature=0.0, max_tokens=50.0, timeout_seconds=20.0,
        messages=messages, **fields,
    )


def by_model(model, **fields):
    return checkpoint(vapi.ChatEvalAssistantMessageEvaluationJudgePlan_Ai(model=model, **fields))


def response(model):
    """A tool's response that the target's call has to bring."""
    plan = vapi.AssistantMessageJudgePlanAi(type="ai", model=model, auto_include_message_history=True)
    return vapi.ChatEvalToolResponseMessageEvaluation(role="tool", judge_plan=plan)


def conversation(*messages, **fields):
    """An eval that is nowhere stored."""
    return vapi.CreateEvalDto(type="chat.mockConversation", messages=list(messages), **fields)


GREETS = (user("Good day."), exact("answer 1 FROM bern."))
CALLS_A_TOOL = 'You run a clinic. <<{"tool": "findSlot", "place": "Bern"}>>'


def play(*messages, wanted=None, **fields):
    """Starts a run of an eval with these messages, or of the one that `fields` name."""
    named = {"eval": conversation(*messages)} if messages else {}
    return evals.eval_controller_run(
        **{"target": wanted or EvalAssistantTarget(assistant_id=world.assistant.id), "type": "eval", **named, **fields}
    )


def just_queued(created):
    """The answer of a run that was just created."""
    holds(isinstance(created, dict), f"an object, not {type(created)}")
    same((created["evalRunId"], created["workflowId"]), (created["id"], created["id"]), "the ids that other clients read")
    same((created["status"], created["type"]), ("queued", "eval"), "its status")
    same((created["results"], created["cost"], created["costs"]), ([], 0, []), "what only its end knows")
    for later in ("startedAt", "endedAt", "endedReason", "endedMessage"):
        holds(later not in created, f"{later} is not known yet: {created}")
    return created


def played(created):
    """Waits for the end of an eval's run and gives it."""
    just_queued(created)

    def ask():
        found = evals.eval_controller_get_run(created["id"])
        return found if found.status == "ended" else None

    return until("the eval to end", ask)


def verdicts(run, place=0):
    """The verdicts on the judged messages of one of a run's results, with their reasons."""
    said = plain(run.results[place])["messages"]
    return [(one["judge"]["status"], one["judge"].get("failureReason")) for one in said if "judge" in one]


class World:
    """What several checks use, made when the first of them needs it."""

    @functools.cached_property
    def personality(self):
        return personalities.personality_controller_create(name="World personality", assistant=tester())

    @functools.cached_property
    def scenario(self):
        return scenarios.scenario_controller_create(name="World", instructions="Book a slot.", evaluations=BOOKED)

    @functools.cached_property
    def failing(self):
        return scenarios.scenario_controller_create(name="World fails", instructions="Book.", evaluations=MISSED)

    @functools.cached_property
    def simulation(self):
        return simulations.simulation_controller_create(
            scenario_id=self.scenario.id, personality_id=self.personality.id, name="World simulation"
        )

    @functools.cached_property
    def failing_simulation(self):
        return simulations.simulation_controller_create(
            scenario_id=self.failing.id, personality_id=self.personality.id, name="World fails"
        )

    @functools.cached_property
    def suite(self):
        return suites.simulation_suite_controller_create(
            name="World suite", simulation_ids=[self.simulation.id, self.failing_simulation.id]
        )

    @functools.cached_property
    def assistant(self):
        made = target()
        return assistants.create(name="World assistant", model=made.model, first_message=made.first_message)

    @functools.cached_property
    def output(self):
        return outputs.structured_output_controller_create(name="world", schema=vapi.JsonSchema(type="string"))

    @functools.cached_property
    def squad(self):
        return squads.create(name="World squad", members=[vapi.SquadMemberDto(assistant_id=self.assistant.id)])

    @functools.cached_property
    def eval(self):
        return evals.eval_controller_create(
            messages=list(GREETS), type="chat.mockConversation", name="World eval", description="Says where it is"
        )

    @functools.cached_property
    def run(self):
        """A run of one passing and one failing simulation, ended: the run as created, as it is, and its items."""
        created = start([SuiteEntry(simulation_suite_id=self.suite.id)], AssistantTarget(assistant_id=self.assistant.id))
        return (created, *ended(created))


world = World()


# Definitions.


def stamped(made, fields):
    """What the server adds to what was sent."""
    holds(made.id and made.org_id, "id and orgId are there")
    holds(made.created_at.tzinfo is not None, "createdAt is a time with its zone")
    same(made.updated_at, made.created_at, "updatedAt of what is new")
    contains(plain(made), plain(fields), type(made).__name__)


@check
def personality_created_read_changed_and_deleted():
    sent = {"name": "Impatient customer", "assistant": tester(name="Tester"), "path": "dept/feature/variant"}
    made = personalities.personality_controller_create(**sent)
    holds(isinstance(made, vapi.Personality), f"a Personality, not {type(made)}")
    stamped(made, sent)
    same(made.assistant.model.max_tokens, 250, "a float for an integer")
    same(personalities.personality_controller_find_one(made.id), made, "what is read")
    changed = personalities.personality_controller_update(
        made.id, name="Patient customer", assistant=tester(name="Other", first_message="Hello?"), path="dept"
    )
    contains(
        plain(changed),
        {"id": made.id, "name": "Patient customer", "path": "dept", "assistant": {"firstMessage": "Hello?"}},
        "the change",
    )
    same(changed.created_at, made.created_at, "createdAt after a change")
    holds(changed.updated_at >= made.updated_at, "updatedAt moves on")
    bare = personalities.personality_controller_update(made.id, path=None)
    holds(plain(bare).get("path") is None, f"path=None takes it out of its folder: {bare.path}")
    same(bare.name, "Patient customer", "a field that was not sent")
    same(personalities.personality_controller_remove(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: personalities.personality_controller_find_one(made.id), 404, made.id)
    nowhere = personalities.personality_controller_create(name="Nowhere", assistant=tester(), path=None)
    holds(plain(nowhere).get("path") is None, "path=None is as good as none")
    personalities.personality_controller_remove(nowhere.id)


@check
def built_in_personalities_can_be_used_and_not_changed():
    found = [one for one in personalities.personality_controller_find_all(sort_order="ASC") if one.org_id is None]
    same(
        sorted(one.name for one in found),
        [
            *("Confused Carl", "Decisive Derek", "Emotional Eva", "Impatient Irene", "Multitasking Maya", "Rambling Roger"),
            "Skeptical Sam",
        ],
        "the built-in personalities",
    )
    carl = next(one for one in found if one.name == "Confused Carl")
    holds(carl.id.startswith("a0000000-0000-4000-8000-00000000000"), carl.id)
    same(personalities.personality_controller_find_one(carl.id).name, carl.name, "it can be read")
    words = f"Personality {carl.id} not found or is a Vapi default (cannot be deleted)"
    refused(lambda: personalities.personality_controller_remove(carl.id), 404, words)
    refused(lambda: personalities.personality_controller_update(carl.id, name="Carla"), 404, carl.id)
    entry = SimulationEntry(scenario_id=world.scenario.id, personality_id=carl.id)
    done, items = ended(start([entry]))
    same((done.item_counts.passed, items[0].personality_id), (1, carl.id), "a run with it")


def full_scenario(hook=f"{STAND_IN}/hooks/full"):
    """All the fields of a scenario, with each kind of evaluation."""
    # The client's type of `type` is an object, where the API has a word: it is not to be checked.
    backoff = vapi.BackoffPlan.model_construct(type="fixed", max_retries=2.0, base_delay_seconds=1.0)
    server = vapi.Server(url=hook, timeout_seconds=10.0, headers={"x-team": "clinic"}, backoff_plan=backoff)
    include = vapi.SimulationHookInclude(transcript=True, messages=True, recording_url=True)
    action = vapi.SimulationHookWebhookAction(type="webhook", server=server, include=include)
    regex = output("greeted", "boolean", type="regex", regex="/clinic, good day/i")
    gated = output(
        "gated",
        "boolean",
        "true",
        conditions=[vapi.CreateStructuredOutputDtoConditionsItem_MinMessages(count=99.0)],
    )
    evaluations = [
        evaluation("booked", "boolean", "=", True, "true"),
        evaluation("mood", "string", "!=", "angry", '"calm"'),
        evaluation("visits", "integer", ">=", 3.0, "3"),
        evaluation("price", "number", "<", 12.5, "12"),
        evaluation("upsold", "boolean", "=", True, "false", required=False),
        vapi.EvaluationPlanItem(structured_output=regex, comparator="=", value=True),
        vapi.EvaluationPlanItem(structured_output=gated, comparator="=", value=True),
        vapi.EvaluationPlanItem(structured_output_id=visit_output().id, path="slot.hour", comparator=">", value=13.0),
    ]
    return {
        "name": "Book an appointment",
        "instructions": "Book an appointment for next week.",
        "evaluations": evaluations,
        "hooks": [
            vapi.CreateScenarioDtoHooksItem_SimulationRunStarted(do=[action]),
            vapi.CreateScenarioDtoHooksItem_SimulationRunEnded(do=[action]),
        ],
        "target_overrides": vapi.AssistantOverrides(variable_values={"place": "Basel"}, first_message="Clinic, good day."),
        "tool_mocks": [
            vapi.ScenarioToolMock(tool_name="findSlot", result="Tuesday is free", enabled=True),
            vapi.ScenarioToolMock(tool_name="unused", enabled=False),
        ],
        "latency_expectations": [
            vapi.LatencyExpectation(metric="turn", aggregation="p95", threshold_ms=2000.0, required=True),
            vapi.LatencyExpectation(metric="model", aggregation="mean", threshold_ms=800.0, required=False),
        ],
        "path": "clinic/booking",
    }


@functools.cache
def visit_output():
    """A stored output whose value is an object."""
    slot = vapi.JsonSchema(type="object", properties={"hour": vapi.JsonSchema(type="integer")}, required=["hour"])
    schema = vapi.JsonSchema(type="object", properties={"slot": slot, "note": vapi.JsonSchema(type="string")})
    return outputs.structured_output_controller_create(
        name="visit", schema=schema, description='<<{"slot": {"hour": 14}, "note": "ok"}>>'
    )


@check
def scenario_created_read_changed_and_deleted():
    sent = full_scenario()
    made = scenarios.scenario_controller_create(**sent)
    holds(isinstance(made, vapi.Scenario), f"a Scenario, not {type(made)}")
    stamped(made, {key: value for key, value in sent.items() if "_" not in key})
    contains(plain(made), {
        "targetOverrides": {"variableValues": {"place": "Basel"}, "firstMessage": "Clinic, good day."},
        "toolMocks": [
            {"toolName": "findSlot", "result": "Tuesday is free", "enabled": True},
            {"toolName": "unused", "enabled": False},
        ],
        "latencyExpectations": plain(sent["latency_expectations"]),
    }, "Scenario")
    same(scenarios.scenario_controller_find_one(made.id), made, "what is read")
    action = vapi.SimulationHookWebhookAction(type="webhook", server=vapi.Server(url=f"{STAND_IN}/hooks/other"))
    change = {
        "name": "Cancel an appointment",
        "instructions": "Cancel it.",
        "evaluations": [evaluation("canceled", "boolean", "=", True, "true")],
        "hooks": [UpdateStartedHook(do=[action])],
        "target_overrides": vapi.AssistantOverrides(variable_values={"place": "Chur"}),
        "tool_mocks": [vapi.ScenarioToolMock(tool_name="cancelSlot", result="done")],
        "latency_expectations": [vapi.LatencyExpectation(metric="voice", aggregation="max", threshold_ms=500.0)],
        "path": "clinic",
    }
    changed = scenarios.scenario_controller_update(made.id, **change)
    wanted = plain(change)
    for name, wire in [
        ("target_overrides", "targetOverrides"),
        ("tool_mocks", "toolMocks"),
        ("latency_expectations", "latencyExpectations"),
    ]:
        wanted[wire] = wanted.pop(name)
    contains(plain(changed), wanted, "the change, whose lists replace the old ones")
    holds(plain(scenarios.scenario_controller_update(made.id, path=None)).get("path") is None, "path=None clears it")
    same(scenarios.scenario_controller_remove(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: scenarios.scenario_controller_find_one(made.id), 404, made.id)
    empty = scenarios.scenario_controller_create(name="Draft", instructions="Later.", evaluations=[], path=None)
    same(empty.evaluations, [], "a draft without evaluations is kept")
    scenarios.scenario_controller_remove(empty.id)


@check
def simulation_created_read_changed_and_deleted():
    sent = {"scenario_id": world.scenario.id, "personality_id": world.personality.id, "name": "Hurried", "path": "a/b"}
    made = simulations.simulation_controller_create(**sent)
    holds(isinstance(made, vapi.Simulation), f"a Simulation, not {type(made)}")
    stamped(made, {"name": "Hurried", "path": "a/b"})
    same((made.scenario_id, made.personality_id), (world.scenario.id, world.personality.id), "what it is made of")
    same(simulations.simulation_controller_find_one(made.id), made, "what is read")
    other = personalities.personality_controller_create(name="Other", assistant=tester())
    changed = simulations.simulation_controller_update(
        made.id, name="Calm", scenario_id=world.failing.id, personality_id=other.id, path="a"
    )
    contains(
        plain(changed),
        {"name": "Calm", "scenarioId": world.failing.id, "personalityId": other.id, "path": "a"},
        "the change",
    )
    holds(plain(simulations.simulation_controller_update(made.id, path=None)).get("path") is None, "path=None clears it")
    same(simulations.simulation_controller_remove(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: simulations.simulation_controller_find_one(made.id), 404, made.id)
    personalities.personality_controller_remove(other.id)


@check
def suite_created_read_changed_duplicated_and_deleted():
    both = [world.simulation.id, world.failing_simulation.id]
    assignments = [
        vapi.SimulationSuiteTargetAssignment(target_type="assistant", target_id=world.assistant.id),
        vapi.SimulationSuiteTargetAssignment(target_type="squad", target_id=NOBODY),
    ]
    made = suites.simulation_suite_controller_create(
        name="Nightly",
        simulation_ids=both,
        slack_webhook_url="https://hooks.slack.example/x",
        target_assignments=assignments,
        path="nightly",
    )
    holds(isinstance(made, vapi.SimulationSuite), f"a SimulationSuite, not {type(made)}")
    stamped(made, {"name": "Nightly", "path": "nightly"})
    same(made.simulation_ids, both, "its simulations, in order")
    same(made.slack_webhook_url, "https://hooks.slack.example/x", "slackWebhookUrl")
    same(plain(made.target_assignments), plain(assignments), "targetAssignments, in order")
    same(suites.simulation_suite_controller_find_one(made.id), made, "what is read")
    copy = suites.simulation_suite_controller_duplicate(made.id)
    holds(copy.id != made.id and copy.name != made.name, f"a copy under a name of its own: {copy.name}")
    for field in ("simulation_ids", "slack_webhook_url", "target_assignments", "path"):
        same(getattr(copy, field), getattr(made, field), f"{field} of the copy")
    changed = suites.simulation_suite_controller_update(
        made.id,
        name="Weekly",
        slack_webhook_url="https://hooks.slack.example/y",
        simulation_ids=[both[1]],
        target_assignments=assignments[:1],
        path="weekly",
    )
    contains(
        plain(changed),
        {
            "name": "Weekly",
            "simulationIds": [both[1]],
            "slackWebhookUrl": "https://hooks.slack.example/y",
            "targetAssignments": plain(assignments[:1]),
            "path": "weekly",
        },
        "the change, whose lists replace the old ones",
    )
    same(suites.simulation_suite_controller_find_one(copy.id).simulation_ids, both, "the copy stays as it was")
    holds(plain(suites.simulation_suite_controller_update(made.id, path=None)).get("path") is None, "path=None clears it")
    same(suites.simulation_suite_controller_remove(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: suites.simulation_suite_controller_find_one(made.id), 404, made.id)
    refused(lambda: suites.simulation_suite_controller_duplicate(made.id), 404, made.id, kind=vapi.NotFoundError)
    suites.simulation_suite_controller_remove(copy.id)
    plainest = suites.simulation_suite_controller_create(name="Plain", simulation_ids=both)
    same(plainest.target_assignments, [], "targetAssignments is there even if there are none")
    suites.simulation_suite_controller_remove(plainest.id)


@check
def structured_output_created_read_changed_and_deleted():
    model = vapi.CreateStructuredOutputDtoModel_Openai(
        model="gpt-4.1",
        temperature=0.0,
        max_tokens=300.0,
        messages=[
            vapi.OpenAiMessage(role="system", content="Read {{transcript}}."),
            vapi.OpenAiMessage(role="user", content="Extract {{structuredOutput.name}}."),
        ],
    )
    sent = {
        "name": "outcome",
        "schema": vapi.JsonSchema(type="string", enum=["won", "lost"], description="How it ended", title="Outcome"),
        "type": "ai",
        "regex": "won|lost",
        "model": model,
        "compliance_plan": vapi.ComplianceOverride(force_store_on_hipaa_enabled=True),
        "conditions": [vapi.CreateStructuredOutputDtoConditionsItem_MinMessages(count=2.0)],
        "description": "How the conversation ended",
        "assistant_ids": [world.assistant.id],
        "workflow_ids": [NOBODY],
    }
    made = outputs.structured_output_controller_create(**sent)
    holds(isinstance(made, vapi.StructuredOutput), f"a StructuredOutput, not {type(made)}")
    stamped(made, {name: sent[name] for name in ("name", "schema", "type", "regex", "model", "conditions", "description")})
    same(made.compliance_plan.force_store_on_hipaa_enabled, True, "compliancePlan")
    same((made.assistant_ids, made.workflow_ids), ([world.assistant.id], [NOBODY]), "what it is linked to")
    same(outputs.structured_output_controller_find_one(made.id), made, "what is read")
    changed = outputs.structured_output_controller_update(
        made.id,
        schema_override="true",
        type="regex",
        regex="/\\d+/",
        compliance_plan=vapi.ComplianceOverride(force_store_on_hipaa_enabled=False),
        conditions=[UpdateEndedReason(operator="notOneOf", values=["silence-timed-out"])],
        model=UpdateOpenaiModel(model="gpt-4.1-mini"),
        name="amount",
        description="The amount",
        assistant_ids=[],
        workflow_ids=[],
        schema=vapi.JsonSchema(type="integer"),
    )
    contains(
        plain(changed),
        {
            "type": "regex",
            "regex": "/\\d+/",
            "name": "amount",
            "description": "The amount",
            "schema": {"type": "integer"},
            "model": {"provider": "openai", "model": "gpt-4.1-mini"},
            "conditions": [{"type": "endedReason", "operator": "notOneOf", "values": ["silence-timed-out"]}],
            "compliancePlan": {"forceStoreOnHipaaEnabled": False},
            "assistantIds": [],
            "workflowIds": [],
        },
        "the change",
    )
    same(outputs.structured_output_controller_remove(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: outputs.structured_output_controller_find_one(made.id), 404, made.id)


@check
def the_type_of_a_schema_is_changed_only_where_that_is_asked_for():
    made = outputs.structured_output_controller_create(name="kept", schema=vapi.JsonSchema(type="string"))
    change = functools.partial(outputs.structured_output_controller_update, made.id, schema=vapi.JsonSchema(type="boolean"))
    refused(lambda: change(schema_override="false"), 400, "schemaOverride")
    same(outputs.structured_output_controller_find_one(made.id).schema_.type, "string", "the type that it has")
    same(change(schema_override="true").schema_.type, "boolean", "the type that it was given")
    outputs.structured_output_controller_remove(made.id)


def full_assistant():
    """All the fields of an assistant."""
    made = target()
    return {
        "transcriber": {"provider": "deepgram", "model": "nova-3", "language": "en"},
        "model": made.model,
        "voice": {"provider": "11labs", "voiceId": "burt", "model": "eleven_turbo_v2_5"},
        "first_message": "Clinic, good day.",
        "first_message_interruptions_enabled": True,
        "first_message_mode": "assistant-speaks-first",
        "voicemail_detection": "off",
        "client_messages": ["transcript", "hang"],
        "server_messages": ["end-of-call-report"],
        "max_duration_seconds": 600.0,
        "background_sound": "office",
        "model_output_in_messages_enabled": False,
        "transport_configurations": [{"provider": "twilio", "timeout": 60.0, "record": False}],
        "observability_plan": {"provider": "langfuse", "tags": ["clinic"], "metadata": {"team": "a"}},
        "credentials": [],
        "hooks": [{"on": "call.ending", "do": [{"type": "tool", "toolId": NOBODY}]}],
        "name": "Full assistant",
        "voicemail_message": "Please call back.",
        "end_call_message": "Goodbye.",
        "end_call_phrases": ["goodbye", "see you"],
        "compliance_plan": {"hipaaEnabled": False},
        "metadata": {"team": "clinic", "number": 7},
        "background_speech_denoising_plan": {"smartDenoisingPlan": {"enabled": True}},
        "analysis_plan": {"minMessagesThreshold": 2.0},
        "artifact_plan": {"recordingEnabled": True},
        "start_speaking_plan": {"waitSeconds": 0.4},
        "stop_speaking_plan": {"numWords": 2.0},
        "monitor_plan": {"listenEnabled": True, "controlEnabled": False},
        "credential_ids": [NOBODY],
        "server": {"url": "https://agent.example.com/hook", "timeoutSeconds": 20.0},
        "keypad_input_plan": {"enabled": True, "timeoutSeconds": 2.0},
    }


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def on_the_wire(fields):
    return {camel(name): plain(value) for name, value in fields.items()}


@check
def assistant_created_read_changed_and_deleted():
    sent = full_assistant()
    made = assistants.create(**sent)
    holds(isinstance(made, vapi.Assistant), f"an Assistant, not {type(made)}")
    contains(plain(made), on_the_wire(sent), "Assistant")
    holds(made.org_id and made.created_at == made.updated_at, "orgId and times")
    same(made.model.url, f"{STAND_IN}/target/v1", "the model's url")
    same(assistants.get(made.id), made, "what is read")
    change = {**sent, "name": "Changed assistant", "first_message": "Hello.", "end_call_phrases": ["bye"], "metadata": {"a": 1}}
    changed = assistants.update(made.id, **change)
    contains(plain(changed), on_the_wire(change), "the change")
    same(changed.created_at, made.created_at, "createdAt after a change")
    same(assistants.update(made.id, name="Again").first_message, "Hello.", "a field that was not sent")
    same(assistants.delete(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: assistants.get(made.id), 404, made.id)


@check
def squad_created_read_changed_and_deleted():
    destination = vapi.HandoffDestinationAssistant(type="assistant", assistant_name="Billing", description="For bills")
    overrides = vapi.AssistantOverrides(variable_values={"place": "Bern"})
    members = [
        vapi.SquadMemberDto(
            assistant_id=world.assistant.id, assistant_overrides=overrides, assistant_destinations=[destination]
        ),
        vapi.SquadMemberDto(assistant=target(name="Billing")),
    ]
    made = squads.create(name="Front desk", members=members, members_overrides=overrides)
    holds(isinstance(made, vapi.Squad), f"a Squad, not {type(made)}")
    contains(plain(made), {"name": "Front desk", "members": plain(members), "membersOverrides": plain(overrides)}, "Squad")
    holds(made.org_id and made.created_at == made.updated_at, "orgId and times")
    same(squads.get(made.id), made, "what is read")
    changed = squads.update(
        made.id,
        members=members[1:],
        name="Back office",
        members_overrides=vapi.AssistantOverrides(variable_values={"place": "Chur"}),
    )
    contains(
        plain(changed),
        {
            "name": "Back office",
            "members": plain(members[1:]),
            "membersOverrides": {"variableValues": {"place": "Chur"}},
        },
        "the change",
    )
    same(squads.delete(made.id).id, made.id, "what was deleted comes back")
    refused(lambda: squads.get(made.id), 404, made.id)
    refused(lambda: squads.create(members=[]), 400, "members")
    refused(lambda: squads.create(members=[vapi.SquadMemberDto(assistant_id=NOBODY)]), 404, NOBODY)


@check
def eval_created_read_changed_and_deleted():
    everything = [
        system("The caller is in a hurry."),
        user("A slot?"),
        vapi.ChatEvalAssistantMessageMock(
            role="assistant", content="Let me see.", tool_calls=[mock_call(day="Monday"), mock_call("endCall")]
        ),
        tool_says('{"free": true}'),
        exact(
            "Monday.",
            mock_call(day="Monday"),
            exit_on_failure_enabled=True,
            content_override="Tuesday.",
            tool_calls_override=[mock_call(day="Tuesday")],
        ),
        regex("/mon|tues/i", mock_call(day="^Mon")),
        by_model(judge("Judge {{messages}}.", headers={"x-team": "clinic"}), auto_include_message_history=False),
        by_model(
            vapi.AssistantMessageJudgePlanAiModel_Openai(
                model="gpt-4.1", temperature=0.5, max_tokens=50.0, messages=[{"role": "user", "content": "{{messages[-1]}}"}]
            )
        ),
        response(judge("Judge {{messages[-1]}}.")),
    ]
    sent = {"messages": everything, "type": "chat.mockConversation", "name": "Books", "description": "Books a slot"}
    made = evals.eval_controller_create(**sent)
    holds(isinstance(made, vapi.Eval), f"an Eval, not {type(made)}")
    stamped(made, sent)
    same(evals.eval_controller_get(made.id), made, "what is read")
    change = {"messages": list(GREETS), "name": "Greets", "description": "Says hello", "type": "chat.mockConversation"}
    changed = evals.eval_controller_update(made.id, **change)
    contains(plain(changed), plain(change), "the change, whose messages replace the old ones")
    same(changed.created_at, made.created_at, "createdAt after a change")
    renamed = evals.eval_controller_update(made.id, name="Greets well")
    same((renamed.name, renamed.description), ("Greets well", "Says hello"), "a field that was not sent")
    same(plain(renamed.messages), plain(changed.messages), "the messages, which were not sent either")
    same(evals.eval_controller_remove(made.id), renamed, "what was deleted comes back")
    refused(lambda: evals.eval_controller_get(made.id), 404, made.id)
    refused(lambda: evals.eval_controller_remove(made.id), 404, made.id)
    refused(lambda: play(eval_id=made.id), 404, made.id)
    draft = evals.eval_controller_create(messages=[user("")], type="chat.mockConversation")
    holds(draft.name is None and draft.description is None, "a draft without a name or a checkpoint is kept")
    evals.eval_controller_remove(draft.id)


# Lists.


def tick(call):
    """Does it in a millisecond of its own: times have milliseconds, and filters have to tell one entry from the next."""
    time.sleep(0.003)
    made = call()
    time.sleep(0.003)
    return made


def listed(find_all, make, touch, *, sorts=True, pages=True, bare=True, limit_pages=True, **narrow):
    """All that lists of definitions have in common. `make(n)` creates an entry, `touch(id)` changes it, and `narrow` are
    filters that leave all three. `bare` says whether the list is bare when no page is asked for, `limit_pages` whether it
    is a page as soon as there is a limit."""
    made = [tick(functools.partial(make, n)) for n in range(3)]
    first, second, third = made
    touched = tick(functools.partial(touch, second.id))
    all_three = ids(made)
    within = {"created_at_ge": first.created_at, "created_at_le": third.created_at, **narrow}
    found = find_all(**within)
    same(isinstance(found, list), bare, "whether the list is bare")
    same(ids(found), all_three[::-1], "the newest first, with both bounds of the time of creation")
    between = {"created_at_gt": first.created_at, "created_at_lt": third.created_at}
    same(ids(find_all(**{**narrow, **between})), [second.id], "without the bounds")
    before, after = {"updated_at_lt": touched.updated_at}, {"updated_at_gt": third.updated_at}
    same(ids(find_all(**within, **before)), [third.id, first.id], "changed before")
    same(ids(find_all(**within, **after)), [second.id], "changed after")
    same(ids(find_all(**within, updated_at_ge=touched.updated_at)), [second.id], "changed then or later")
    same(ids(find_all(**within, updated_at_le=touched.updated_at)), all_three[::-1], "changed then or earlier")
    same(
        ids(find_all(**within, **between, **after, updated_at_ge=touched.updated_at, updated_at_le=touched.updated_at)),
        [second.id],
        "all bounds but one",
    )
    if sorts:
        same(ids(find_all(**within, sort_order="ASC", sort_by="createdAt")), all_three, "the oldest first")
        same(ids(find_all(**within, sort_order="DESC", sort_by="createdAt")), all_three[::-1], "the newest first")
    if not limit_pages:
        few = find_all(**within, limit=2.0)
        holds(isinstance(few, list), f"a limit makes no page: {type(few)}")
        same(ids(few), all_three[:0:-1], "a limit")
    if pages:
        page = plain(find_all(**within, page=2.0, limit=2.0))
        same([one["id"] for one in page["results"]], [first.id], "the second page")
        contains(
            page["metadata"],
            {"itemsPerPage": 2, "totalItems": 3, "currentPage": 2, "totalPages": 2, "hasNextPage": False, "sortOrder": "DESC"},
            "metadata",
        )
        same([len(ids(find_all(**within, page=float(n), limit=1.0))) for n in (1, 2, 3, 4)], [1, 1, 1, 0], "pages of one")
        same(ids(find_all(**within, limit=0.0)), [], "a limit of nothing")
        seen, cursor = [], None
        while True:
            more = {"additional_query_parameters": {"cursor": cursor} if cursor else {}}
            page = plain(find_all(**within, limit=2.0, request_options=more))
            seen += [one["id"] for one in page["results"]]
            cursor = page["metadata"].get("nextCursor")
            same(bool(cursor), page["metadata"]["hasNextPage"], "a cursor where there is more")
            if not cursor:
                break
        same(seen, all_three[::-1], "all pages by their cursors")
        refused(lambda: find_all(limit=1001.0), 400, "limit")
        refused(lambda: find_all(page=0.0), 400, "page")
    if sorts:
        refused(lambda: find_all(sort_order="UP"), 400, "sortOrder")
        SORTED.append((find_all, within, all_three))
    return made


# Lists whose other orders are looked at in a check of their own: how to ask, for what, and the ids that come.
SORTED = []


@check
def personalities_are_listed():
    find_all = personalities.personality_controller_find_all
    made = listed(
        find_all,
        lambda n: personalities.personality_controller_create(name=f"List {n}", assistant=tester()),
        lambda id_: personalities.personality_controller_update(id_, name="Touched"),
    )
    holds(set(ids(made)) <= set(ids(find_all())), "all of them without filters")
    holds(all(isinstance(one, vapi.Personality) for one in find_all()), "each is a Personality")


@check
def scenarios_are_listed():
    find_all = scenarios.scenario_controller_find_all
    made = listed(
        find_all,
        lambda n: scenarios.scenario_controller_create(name=f"List {n}", instructions="", evaluations=BOOKED),
        lambda id_: scenarios.scenario_controller_update(id_, instructions="Touched"),
        name="list",
    )
    first, _, third = made
    same(ids(find_all(id_any=[first.id, third.id])), [third.id, first.id], "idAny, repeated")
    same(ids(find_all(id_any=f"{first.id},{third.id}")), [third.id, first.id], "idAny with commas")
    same(ids(find_all(id_any=[first.id, NOBODY], name="List 0")), [first.id], "idAny and a name")
    same(ids(find_all(name="LIST 2")), [third.id], "a name, whatever its case")
    same(find_all(name="no such name"), [], "no such name")
    refused(lambda: find_all(id_any=["x"]), 400, "idAny")


@check
def simulations_are_listed():
    find_all = simulations.simulation_controller_find_all
    made = listed(
        find_all,
        lambda n: simulations.simulation_controller_create(
            scenario_id=world.scenario.id, personality_id=world.personality.id, name=f"List {n}"
        ),
        lambda id_: simulations.simulation_controller_update(id_, name="Touched"),
        standalone_only=False,
    )
    first, second, third = made
    same(ids(find_all(id_any=[first.id, third.id])), [third.id, first.id], "idAny, repeated")
    suite = suites.simulation_suite_controller_create(name="Holds one", simulation_ids=[second.id])
    same(ids(find_all(id_any=ids(made), standalone_only=True)), [third.id, first.id], "those in no suite")
    suites.simulation_suite_controller_remove(suite.id)
    same(len(find_all(id_any=ids(made), standalone_only=True)), 3, "those in no suite, when it is gone")


@check
def suites_are_listed():
    find_all = suites.simulation_suite_controller_find_all
    made = listed(
        find_all,
        lambda n: suites.simulation_suite_controller_create(name=f"List {n}", simulation_ids=[world.simulation.id]),
        lambda id_: suites.simulation_suite_controller_update(id_, path="touched"),
        name="list",
    )
    same(ids(find_all(name="list 1")), [made[1].id], "a name")


@check
def structured_outputs_are_listed():
    find_all = outputs.structured_output_controller_find_all
    made = listed(
        find_all,
        lambda n: outputs.structured_output_controller_create(name=f"list {n}", schema=vapi.JsonSchema(type="string")),
        lambda id_: outputs.structured_output_controller_update(id_, schema_override="false", description="Touched"),
        bare=False,
        name="list",
    )
    page = find_all()
    holds(isinstance(page, vapi.StructuredOutputPaginatedResponse), f"always a page: {type(page)}")
    holds(page.metadata.total_items >= 3, "with its metadata")
    same(ids(find_all(id=made[1].id)), [made[1].id], "one by its id")
    same(ids(find_all(name="list 2")), [made[2].id], "one by its name")
    same(find_all(id=NOBODY).results, [], "none")


@check
def evals_are_listed():
    find_all = evals.eval_controller_get_paginated
    made = listed(
        find_all,
        lambda n: evals.eval_controller_create(messages=list(GREETS), type="chat.mockConversation", name=f"List {n}"),
        lambda id_: evals.eval_controller_update(id_, description="Touched"),
        bare=False,
    )
    page = find_all()
    holds(isinstance(page, vapi.EvalPaginatedResponse), f"always a page: {type(page)}")
    holds(page.metadata.total_items >= 3 and all(isinstance(one, vapi.Eval) for one in page.results), "each is an Eval")
    same(find_all(id=made[1].id).results[0].description, "Touched", "one by its id")
    same(find_all(id=NOBODY).results, [], "none")


@check
def assistants_are_listed():
    made = listed(
        assistants.list,
        lambda n: assistants.create(name=f"List {n}"),
        lambda id_: assistants.update(id_, name="Touched"),
        sorts=False,
        pages=False,
        limit_pages=False,
    )
    holds(set(ids(made)) <= set(ids(assistants.list(limit=1000.0))), "all of them without filters")


@check
def squads_are_listed():
    members = [vapi.SquadMemberDto(assistant_id=world.assistant.id)]
    made = listed(
        squads.list,
        lambda n: squads.create(name=f"List {n}", members=members),
        lambda id_: squads.update(id_, name="Touched", members=members),
        sorts=False,
        pages=False,
        limit_pages=False,
    )
    same(ids(squads.list(id_any=[made[0].id, made[2].id])), [made[2].id, made[0].id], "idAny, repeated")


# Runs.


@check
def a_run_of_everything_there_is_to_name_goes_to_its_end():
    text = 'You run a clinic. <<{"tool": "findSlot", "place": "{{place}}"}>>'
    named = assistants.create(name="Named", model=target(text).model, first_message="Clinic, good day.")
    full = scenarios.scenario_controller_create(**full_scenario(f"{STAND_IN}/hooks/run"))
    waiting = personalities.personality_controller_create(name="Waits", assistant=tester("assistant-waits-for-user"))
    simulation = simulations.simulation_controller_create(scenario_id=full.id, personality_id=waiting.id, name="Full")
    entries = [
        SuiteEntry(simulation_suite_id=world.suite.id),
        SimulationEntry(simulation_id=simulation.id),
        SimulationEntry(scenario_id=world.scenario.id, personality_id=world.personality.id, name="By parts"),
        inline(name="In place"),
        SimulationEntry(
            scenario_id=world.scenario.id, personality=vapi.CreatePersonalityDto(name="Max", assistant=tester())
        ),
    ]
    began = time.time()
    created = start(entries, AssistantTarget(assistant_id=named.id), iterations=2.0)
    same(len(created.simulation_run_item_ids), 12, "a suite of two and four others, each twice")
    same(len(set(created.simulation_run_item_ids)), 12, "different items")
    holds(created.url.startswith("http") and created.id in created.url, f"an address to look at: {created.url}")
    contains(
        plain(created),
        {
            "status": "queued",
            "iterations": 2,
            "transport": {"provider": "vapi.webchat"},
            "target": {"type": "assistant", "assistantId": named.id},
            "itemCounts": {"total": 12, "queued": 12, "passed": 0, "failed": 0, "running": 0, "canceled": 0},
        },
        "what was created",
    )
    same([entry.type for entry in created.simulations], ["simulationSuite"] + ["simulation"] * 4, "its entries")
    same(created.simulations[0].name, "World suite", "the suite's name at that time")
    same(created.simulations[1].simulation_id, simulation.id, "the simulation's id")
    holds(abs(created.queued_at.timestamp() - began) < 60, "queuedAt is now")
    done, items = ended(created)
    run_everything.update(items=items, full=full, named=named, waiting=waiting)
    statuses = [item.status for item in items]
    why = [item.failure_reason or plain(item.results) for item in items[4:] if item.status != "passed"]
    same(statuses, ["passed"] * 2 + ["failed"] * 2 + ["passed"] * 8, f"the items' statuses, with {why}")
    contains(
        plain(done),
        {
            "id": created.id,
            "orgId": created.org_id,
            "itemCounts": {
                **{"total": 12, "passed": 10, "failed": 2, "running": 0, "queued": 0, "canceled": 0},
                **{"distinctSimulationTotal": 6, "distinctSimulationFailed": 1},
            },
        },
        "what it came to",
    )
    holds(done.queued_at <= done.started_at <= done.ended_at, "its times are in order")
    holds(plain(done).get("url") is None, "the address is in the first answer only")
    same(ids(items), created.simulation_run_item_ids, "the items, in the order in which they were laid out")
    same([item.iteration_number for item in items], [1, 2] * 6, "their iterations")
    same({item.run_id for item in items}, {created.id}, "their run")
    same([items[0].simulation_id, items[2].simulation_id], world.suite.simulation_ids, "the suite's simulations, in order")
    same(items[6].metadata.simulation["name"], "By parts", "an entry's own name")
    same(items[8].metadata.scenario["name"], "In place scenario", "a scenario defined in place")
    same(items[8].scenario_id, None, "which has no id")
    same(items[10].metadata.personality["name"], "Max", "a personality defined in place")


# What the run of everything came to, for the checks after it.
run_everything = {}


@check
def an_item_says_what_was_said_and_how_it_was_judged():
    item = runs.simulation_run_controller_find_item(run_everything["items"][4].run_id, run_everything["items"][4].id)
    holds(isinstance(item, vapi.SimulationRunItem), f"a SimulationRunItem, not {type(item)}")
    same((item.status, item.failure_reason, item.failed_at, item.canceled_at), ("passed", None, None, None), "it passed")
    holds(item.queued_at <= item.started_at <= item.completed_at, "its times are in order")
    holds(item.session_id and not item.call_id, "a chat has a session and no call")
    same((item.scenario_id, item.personality_id), (run_everything["full"].id, run_everything["waiting"].id), "what it played")
    same(item.configurations.transport.provider, "vapi.webchat", "its transport")
    same([hook.on for hook in item.hooks], ["simulation.run.started", "simulation.run.ended"], "its hooks")
    call = item.metadata.call
    for said in ("Clinic, good day.", "from Basel", "The tool says Tuesday is free"):
        holds(said in call.transcript, f"'{said}' is not in the transcript: {call.transcript}")
    roles = [message["role"] for message in call.messages]
    holds({"tool_calls", "tool_call_result"} <= set(roles), f"the tool was called: {roles}")
    tool = next(message for message in call.messages if message["role"] == "tool_calls")
    same(tool["toolCalls"][0]["function"]["name"], "findSlot", "the tool's name")
    same(item.metadata.assistant["name"], "Named", "the assistant that it was played against")
    results = {result.name: result for result in item.results.evaluations}
    same(
        {name: result.extracted_value for name, result in results.items()},
        {
            **{"booked": True, "mood": "calm", "visits": 3, "price": 12, "upsold": False, "greeted": True},
            **{"gated": None, "visit": 14},
        },
        "the values",
    )
    same(item.results.passed, True, "the verdict")
    same([name for name, result in results.items() if not result.passed], ["upsold", "gated"], "those that did not pass")
    same((results["upsold"].required, results["booked"].required), (False, True), "required")
    same(results["gated"].is_skipped, True, "a condition that is not met")
    holds(results["gated"].skip_reason, "and why")
    contains(
        plain(results["visit"]),
        {
            "structuredOutputId": visit_output().id,
            "path": "slot.hour",
            "expectedValue": 13,
            "comparator": ">",
            "schema": {"type": "object"},
        },
        "a stored output",
    )
    same(results["booked"].structured_output_id, "inline", "an inline output")
    latencies = item.results.latency_evaluations
    same([(one.metric, one.aggregation, one.threshold_ms, one.is_skipped) for one in latencies], [
        ("turn", "p95", 2000, True),
        ("model", "mean", 800, True),
    ], "a chat has no latencies")
    failed = run_everything["items"][2]
    same((failed.results.passed, failed.results.evaluations[0].extracted_value), (False, False), "the one that failed")
    holds(failed.failed_at and not failed.completed_at, "and when")


@check
def hooks_tell_of_the_start_and_the_end():
    run_id = run_everything["items"][4].run_id

    def told():
        sent = [hook for hook in http("GET", "/hooks", base=STAND_IN)[1] if hook["path"] == "/hooks/run"]
        return sent if len(sent) >= 4 else None

    sent = until("four hooks", told)
    same({(hook["body"]["type"], hook["body"]["iterationNumber"]) for hook in sent}, {
        ("simulation.run.started", 1), ("simulation.run.started", 2), ("simulation.run.ended", 1), ("simulation.run.ended", 2)
    }, "each event for each iteration")
    for hook in sent:
        same(hook["body"]["runId"], run_id, "the run")
        same(hook["headers"].get("x-team"), "clinic", "the header that was asked for")
    over = next(hook["body"] for hook in sent if hook["body"]["type"] == "simulation.run.ended")
    holds("Tuesday is free" in over["transcript"] and over["messages"], "transcript and messages")
    until("the state of the hooks", lambda: runs.simulation_run_controller_find_item(
        run_id, run_everything["items"][4].id
    ).metadata.hooks)


@check
def a_snapshot_stays_when_what_it_was_taken_of_changes():
    item, full, named = run_everything["items"][4], run_everything["full"], run_everything["named"]
    scenarios.scenario_controller_update(full.id, name="Renamed", tool_mocks=[])
    assistants.update(named.id, name="Renamed")
    personalities.personality_controller_update(item.personality_id, name="Renamed")
    simulations.simulation_controller_update(item.simulation_id, name="Renamed")
    after = runs.simulation_run_controller_find_item(item.run_id, item.id)
    for part in ("scenario", "assistant", "personality", "simulation"):
        same(getattr(after.metadata, part), getattr(item.metadata, part), f"the snapshot of the {part}")
    same(after.metadata.scenario["toolMocks"][0]["result"], "Tuesday is free", "with its tool mocks")


@check
def lists_of_definitions_have_the_other_orders():
    holds(SORTED, "there are lists")
    for find_all, within, wanted in SORTED:
        for column in ("duration", "cost"):
            for order in ("ASC", "DESC"):
                found = ids(find_all(**within, sort_by=column, sort_order=order))
                same(sorted(found), sorted(wanted), f"by {column}, nothing is missing")
        refused(lambda: find_all(sort_by="name"), 400, "sortBy")


@check
def runs_and_items_are_sorted_by_duration_and_cost():
    run_ids = [world.run[0].id, run_everything["items"][0].run_id]

    def ascending(find, span, columns=("duration", "cost")):
        for column in columns:
            up = find(sort_by=column, sort_order="ASC")
            down = find(sort_by=column, sort_order="DESC")
            same(sorted(ids(up)), sorted(ids(down)), f"by {column}, both ways have the same")
            holds(len(ids(up)) > 1, "there are some")
            if column == "duration":
                spans = [span(one) for one in up]
                same(spans, sorted(spans), "the shortest first")
                same([span(one) for one in down], sorted(spans, reverse=True), "the longest first")

    for run_id in run_ids:
        ascending(
            functools.partial(runs.simulation_run_controller_find_items, run_id),
            lambda item: (item.completed_at or item.failed_at) - item.started_at,
            columns=("cost",),
        )
        same(
            len(runs.simulation_run_controller_find_items(run_id, sort_by="duration", sort_order="ASC")),
            len(runs.simulation_run_controller_find_items(run_id)),
            "by duration, nothing is missing",
        )
    ascending(
        functools.partial(runs.simulation_run_controller_find_all, status="ended"),
        lambda run: run.ended_at - run.started_at,
    )


@check
def a_run_s_items_are_listed():
    created, _, items = world.run
    find_items = functools.partial(runs.simulation_run_controller_find_items, created.id)
    passed, failed = items
    found = find_items()
    holds(isinstance(found, list) and all(isinstance(one, vapi.SimulationRunItem) for one in found), "a bare list of items")
    same(ids(found), [failed.id, passed.id], "the newest first")
    same(ids(find_items(sort_order="ASC", sort_by="createdAt")), [passed.id, failed.id], "the oldest first")
    for status in ("queued", "running", "evaluating", "passed", "failed", "canceled"):
        wanted = {"passed": [passed.id], "failed": [failed.id]}.get(status, [])
        same(ids(find_items(status=status)), wanted, f"those that are {status}")
    same(ids(find_items(simulation_id=world.failing_simulation.id)), [failed.id], "those of one simulation")
    same(find_items(simulation_id=NOBODY), [], "of none")
    same(len(find_items(run_id=created.id)), 2, "of this run")
    same(find_items(run_id=NOBODY), [], "of another run")
    at, step = created.created_at, datetime.timedelta(seconds=1)
    same(len(find_items(created_at_ge=at, created_at_le=at)), 2, "created then")
    same(find_items(created_at_gt=at), [], "created later")
    same(find_items(created_at_lt=at), [], "created earlier")
    last = max(passed.updated_at, failed.updated_at)
    same(find_items(updated_at_gt=last), [], "changed later")
    same(len(find_items(updated_at_le=last, updated_at_gt=at - step)), 2, "changed until then")
    same(find_items(updated_at_lt=at), [], "changed before there were any")
    holds(failed.id in ids(find_items(updated_at_ge=failed.updated_at)), "changed then or later")
    page = find_items(page=2.0, limit=1.0)
    same(ids(page), [passed.id], "the second page of one")
    contains(page["metadata"], {"totalItems": 2, "currentPage": 2, "itemsPerPage": 1, "totalPages": 2}, "metadata")
    refused(lambda: find_items(status="lost"), 400, "status")
    refused(lambda: runs.simulation_run_controller_find_items(NOBODY), 404, NOBODY)


@check
def runs_are_listed():
    find_all = runs.simulation_run_controller_find_all
    made = []
    for entry in (inline(), inline(evaluations=MISSED), inline(HANGS)):
        wanted = AssistantTarget(assistant_id=world.assistant.id)
        made.append(tick(functools.partial(start, [entry], wanted)))
    passed, failed, hanging = made
    done = [ended(run)[0] for run in made[:2]]
    until("the third to run", lambda: runs.simulation_run_controller_find_one(hanging.id).status == "running")
    within = {"created_at_ge": passed.created_at, "created_at_le": hanging.created_at}
    found = find_all(**within)
    holds(isinstance(found, list) and all(isinstance(one, vapi.SimulationRun) for one in found), "a bare list of runs")
    same(ids(found), [hanging.id, failed.id, passed.id], "the newest first")
    between = {"created_at_gt": passed.created_at, "created_at_lt": hanging.created_at}
    same(ids(find_all(**between)), [failed.id], "without the bounds")
    same(ids(find_all(**within, status="ended")), [failed.id, passed.id], "those that ended")
    same(ids(find_all(**within, status="running")), [hanging.id], "those that run")
    same(find_all(**within, status="queued"), [], "those that wait")
    for result, wanted in (("passed", passed), ("failed", failed), ("running", hanging)):
        same(ids(find_all(**within, filter_status=result)), [wanted.id], f"those that come to {result}")
    same(len(find_all(**within, target_type="assistant", target_id=world.assistant.id)), 3, "of one target")
    same(find_all(**within, target_type="squad"), [], "of squads")
    same(find_all(**within, target_id=NOBODY), [], "of no target")
    last = max(run.updated_at for run in done)
    same(ids(find_all(**within, updated_at_le=last, status="ended")), [failed.id, passed.id], "changed until then")
    same(find_all(**within, updated_at_gt=last, status="ended"), [], "changed after")
    same(find_all(**within, updated_at_lt=passed.created_at), [], "changed before there were any")
    holds(failed.id in ids(find_all(**within, updated_at_ge=done[1].updated_at)), "changed then or later")
    page = find_all(**within, page=1.0, limit=2.0, sort_order="ASC", sort_by="createdAt")
    holds(isinstance(page, vapi.SimulationRunsPaginatedResponse), f"a page: {type(page)}")
    same(ids(page), [passed.id, failed.id], "the oldest first")
    contains(plain(page.metadata), {"totalItems": 3, "hasNextPage": True, "currentPage": 1, "totalPages": 2}, "metadata")
    same(page.results[0].summary.simulation_count, 1, "what it played")
    same(page.results[0].summary.source.type, "adHoc", "and what that was")
    same(page.results[0].summary.target_snapshot_name, "World assistant", "and against whom")
    runs.simulation_run_controller_cancel_group(hanging.id)
    ended(hanging)
    refused(lambda: find_all(filter_status="lost"), 400, "filterStatus")
    refused(lambda: find_all(status="lost"), 400, "status")
    refused(lambda: find_all(target_type="workflow"), 400, "targetType")


@check
def a_run_is_canceled():
    created = start([inline(HANGS)], iterations=3.0)
    until("it to run", lambda: runs.simulation_run_controller_find_one(created.id).status == "running")
    canceled = runs.simulation_run_controller_cancel_group(created.id)
    same(canceled.id, created.id, "the run comes back")
    done, items = ended(created)
    same((done.item_counts.canceled, done.item_counts.total), (3, 3), "all of it")
    same([item.status for item in items], ["canceled"] * 3, "all of its items")
    holds(all(item.canceled_at and not item.completed_at and not item.results for item in items), "with the time, without results")
    refused(lambda: runs.simulation_run_controller_cancel_group(created.id), 400, "Run has already ended")


@check
def an_item_is_canceled():
    created = start([inline(HANGS)], iterations=2.0)
    first, second = created.simulation_run_item_ids
    canceled = runs.simulation_run_controller_cancel_item(created.id, first)
    same((canceled.id, canceled.status), (first, "canceled"), "the item comes back")
    refused(lambda: runs.simulation_run_controller_cancel_item(created.id, first), 400, "ended")
    other = runs.simulation_run_controller_find_item(created.id, second)
    holds(other.status in ("queued", "running"), f"the other goes on: {other.status}")
    refused(lambda: runs.simulation_run_controller_cancel_item(world.run[0].id, second), 404, second)
    refused(lambda: runs.simulation_run_controller_cancel_item(created.id, NOBODY), 404, NOBODY)
    runs.simulation_run_controller_cancel_group(created.id)
    same(ended(created)[0].item_counts.canceled, 2, "both")


@check
def a_run_by_voice_holds_call_slots_while_its_calls_are_up():
    entries = [inline(HANGS)]
    refused(lambda: start(entries, transport=VOICE), 400, "endpoint")
    status, endpoint = http("POST", "/endpoint", {"name": "Phone", "url": f"{STAND_IN}/provider"})
    same(status, 201, f"the provider is known: {endpoint}")
    http("POST", "/provider-secret", {"secret": endpoint["secrets"][0]["secret"]}, base=STAND_IN)
    idle = simulations.simulation_controller_get_concurrency()
    holds(isinstance(idle, vapi.SimulationConcurrencyResponse) and idle.org_id, f"{idle}")
    limit = idle.concurrency_limit
    same((idle.active_simulations, idle.available_to_start, idle.is_default), (0, limit // 2, True), "nothing is up")
    same((idle.created_at, idle.updated_at), (None, None), "nobody set a limit")
    created = start(entries, transport=VOICE, iterations=2.0)
    same(created.transport.provider, "vapi.websocket", "its transport")

    def up():
        items = runs.simulation_run_controller_find_items(created.id)
        return items if all(item.call_id and item.status == "running" for item in items) else None

    items = until("both calls", up)
    holds(all(not item.session_id for item in items), "a call has no session")
    busy = simulations.simulation_controller_get_concurrency()
    same((busy.active_simulations, busy.available_to_start), (4, (limit - 4) // 2), "two slots for each call")
    runs.simulation_run_controller_cancel_group(created.id)
    until("the slots", lambda: simulations.simulation_controller_get_concurrency().active_simulations == 0)
    same(ended(created)[0].item_counts.canceled, 2, "both calls were ended")


@check
def a_run_by_voice_goes_to_its_end():
    expectations = [
        vapi.LatencyExpectation(metric="turn", aggregation="max", threshold_ms=2000.0),
        vapi.LatencyExpectation(metric="voice", aggregation="mean", threshold_ms=100.0, required=False),
    ]
    spoken = scenarios.scenario_controller_create(
        name="Spoken", instructions="Call.", evaluations=BOOKED, latency_expectations=expectations
    )
    entry = SimulationEntry(scenario_id=spoken.id, personality_id=world.personality.id)
    # Without a transport it is a call.
    created = runs.simulation_run_controller_create(simulations=[entry], target=AssistantTarget(assistant=target()))
    same((created.transport.provider, created.iterations), ("vapi.websocket", 1), "what is not said")
    _, (item,) = ended(created)
    same((item.status, item.failure_reason), ("passed", None), "the item")
    holds(item.call_id and not item.session_id, "a call, and no session")
    holds("Answer 1 from the phone." in item.metadata.call.transcript, item.metadata.call.transcript)
    same(item.metadata.call.recording_url, "https://calls.example.com/1.wav", "the recording")
    contains(
        plain(item.results.latency_metrics),
        {"turnCount": 1, "avgTurn": 1200, "avgModel": 600, "avgVoice": 300, "avgTranscriber": 150, "avgEndpointing": 100},
        "latencyMetrics",
    )
    same(
        [(one.actual_ms, one.sample_count, one.passed, one.required) for one in item.results.latency_evaluations],
        [(1200, 1, True, True), (300, 1, False, False)],
        "latencyEvaluations",
    )


@check
def a_squad_is_played_against_by_id_and_in_place():
    destination = vapi.HandoffDestinationAssistant(type="assistant", assistant_name="Billing", description="For bills")
    desk = target('You are the desk. <<{"handoff": true, "place": "the desk"}>>', name="Desk")
    billing = target('You are billing. <<{"place": "billing"}>>', name="Billing")
    members = [
        vapi.SquadMemberDto(assistant=desk, assistant_destinations=[destination]),
        vapi.SquadMemberDto(assistant=billing),
    ]
    stored = squads.create(name="Stored squad", members=members)
    for wanted in (
        SquadTarget(squad_id=stored.id),
        SquadTarget(squad=vapi.CreateSquadDto(name="Squad in place", members=members)),
    ):
        created = start([inline()], wanted)
        same(created.target.type, "squad", "its target")
        done, items = ended(created)
        same((items[0].status, items[0].failure_reason), ("passed", None), "the item")
        same(done.item_counts.passed, 1, "the run")
        transcript = items[0].metadata.call.transcript
        holds("from billing" in transcript, f"the desk hands over to billing: {transcript}")
        holds(items[0].metadata.squad["name"] in ("Stored squad", "Squad in place"), "the squad's snapshot")
    same(len(runs.simulation_run_controller_find_all(target_type="squad", target_id=stored.id)), 1, "runs of the stored squad")
    refused(lambda: start([inline()], SquadTarget(squad_id=NOBODY)), 404, NOBODY)


# What a model writes.


@check
def scenarios_are_generated_and_can_be_created():
    for wanted in ({"assistant_id": world.assistant.id}, {"squad_id": world.squad.id}):
        made = simulations.simulation_generate_controller_generate(**wanted)
        holds(isinstance(made, vapi.GenerateScenariosResponse) and made.coverage_notes, f"{made}")
        holds(made.scenarios, "there are some")
        before = len(scenarios.scenario_controller_find_all(limit=1000.0)["results"])
        for one in made.scenarios:
            holds(one.category in ("happy_path", "edge_case", "failure_mode"), f"its category: {one.category}")
            holds(one.reasoning and one.instructions, "why, and what")
            kept = scenarios.scenario_controller_create(
                name=one.name, instructions=one.instructions, evaluations=BOOKED
            )
            same((kept.name, kept.instructions), (one.name, one.instructions), "it is valid as it is")
            scenarios.scenario_controller_remove(kept.id)
        same(len(scenarios.scenario_controller_find_all(limit=1000.0)["results"]), before, "nothing is kept by itself")
    refused(lambda: simulations.simulation_generate_controller_generate(), 400, "assistantId")
    refused(lambda: simulations.simulation_generate_controller_generate(
        assistant_id=world.assistant.id, squad_id=world.squad.id
    ), 400)
    refused(lambda: simulations.simulation_generate_controller_generate(assistant_id=NOBODY), 404, NOBODY)


@check
def improvements_are_suggested_and_kept():
    run_id, item_id = world.run[0].id, world.run[2][1].id
    kept = lambda: runs.simulation_run_controller_find_item(run_id, item_id).improvement_suggestions
    same(kept(), None, "none before they are asked for")
    suggest = functools.partial(runs.simulation_run_controller_generate_suggestions, run_id, item_id)
    same(suggest(force="false", persist="true"), None, "the client passes over the body")
    first = until("what was suggested", kept)
    holds(isinstance(first, vapi.SimulationRunItemImprovements) and first.analysis, f"{first}")
    for name in ("system_prompt_suggestions", "tool_suggestions", "scenario_suggestions"):
        found = getattr(first, name)
        holds(found and all(one.issue and one.suggestion for one in found), f"{name}: {found}")
    suggest(force="false", persist="true")
    same(kept(), first, "what there is, is not made anew")
    answer = raw_runs.simulation_run_controller_generate_suggestions(run_id, item_id, force="true", persist="true")
    same(answer._response.status_code, 201, "the status")
    second = kept()
    holds(second.analysis != first.analysis, "force makes them anew")
    contains(answer._response.json(), {"analysis": second.analysis}, "the body that other clients read")
    answer = raw_runs.simulation_run_controller_generate_suggestions(run_id, item_id, force="true", persist="false")
    holds(answer._response.json()["analysis"] != second.analysis, "new ones that are not to be kept")
    same(kept(), second, "and are not")
    passed = world.run[2][0].id
    refused(lambda: runs.simulation_run_controller_generate_suggestions(run_id, passed, force="true"), 400, "failed")
    refused(lambda: runs.simulation_run_controller_generate_suggestions(run_id, NOBODY, force="true"), 404, NOBODY)


@check
def a_structured_output_is_run_on_a_conversation():
    item = world.run[2][0]
    conversation = item.call_id or item.id
    transient = output("transient", "boolean", "true")
    preview = plain(outputs.structured_output_controller_run(
        call_ids=[conversation], preview_enabled=True, structured_output=transient
    ))
    found = [value for value in preview.values() if isinstance(value, dict) and value.get("name") == "transient"]
    same([value["result"] for value in found], [True], f"the value in {preview}")
    preview = plain(outputs.structured_output_controller_run(
        call_ids=[conversation], preview_enabled=True, structured_output_id=world.output.id
    ))
    same(preview[world.output.id]["name"], "world", f"by its id in {preview}")
    kept = outputs.structured_output_controller_run(
        call_ids=[conversation], preview_enabled=False, structured_output_id=world.output.id
    )
    holds(kept.message, f"without a preview: {kept}")
    holds(world.output.id in str(plain(runs.simulation_run_controller_find_item(item.run_id, item.id))), "it is kept")
    gated = output("gated", "boolean", conditions=[vapi.CreateStructuredOutputDtoConditionsItem_MinMessages(count=99.0)])
    preview = outputs.structured_output_controller_run(
        call_ids=[conversation], preview_enabled=True, structured_output=gated
    )
    (skipped,) = preview.skipped.values()
    same(plain(skipped), {"name": "gated", "unmetCondition": {"type": "minMessages", "count": 99}}, "what is skipped")
    refused(lambda: outputs.structured_output_controller_run(call_ids=[conversation], preview_enabled=True), 400)
    refused(lambda: outputs.structured_output_controller_run(
        call_ids=[conversation, NOBODY], preview_enabled=True, structured_output_id=world.output.id
    ), 400, "callIds")
    refused(lambda: outputs.structured_output_controller_run(
        call_ids=[NOBODY], preview_enabled=True, structured_output_id=world.output.id
    ), 404, NOBODY)


# Evals.


@check
def a_stored_eval_is_run_against_a_stored_assistant():
    wanted = EvalAssistantTarget(assistant_id=world.assistant.id)
    created = play(eval_id=world.eval.id, wanted=wanted)
    done = played(created)
    holds(isinstance(done, vapi.EvalRun), f"an EvalRun, not {type(done)}")
    contains(
        plain(done),
        {
            **{"id": created["id"], "orgId": world.eval.org_id, "type": "eval", "status": "ended"},
            **{"endedReason": "mockConversation.done", "evalId": world.eval.id, "target": plain(wanted), "cost": 0},
        },
        "the run",
    )
    same((done.eval, done.ended_message), (None, None), "what it has not")
    holds(done.created_at <= done.started_at <= done.ended_at, "its times are in order")
    # Nobody has a price for the stand-in's model.
    used = {"type": "model", "model": "stand-in", "cost": None, "unknown": True, "promptTokens": 3, "completionTokens": 2}
    same((done.costs, plain(done)["costsUnknown"]), ([used], ["stand-in"]), "what it cost, by model")
    (result,) = done.results
    holds(done.started_at <= result.started_at <= result.ended_at <= done.ended_at, "the result's times lie within")
    same(result.status, "pass", "the verdict")
    same(
        plain(result.messages),
        [
            {"role": "user", "content": "Good day."},
            {"role": "assistant", "content": "Answer 1 from Bern.", "judge": {"status": "pass"}},
        ],
        "what was said, and how it was judged",
    )
    same(plain(evals.eval_controller_remove_run(created["id"])), plain(done), "what was deleted comes back")
    refused(lambda: evals.eval_controller_get_run(created["id"]), 404, created["id"])
    refused(lambda: evals.eval_controller_remove_run(created["id"]), 404, created["id"])


@check
def an_eval_stays_as_it_was_when_the_run_began():
    own = evals.eval_controller_create(messages=list(GREETS), type="chat.mockConversation", name="Short life")
    created = play(eval_id=own.id)
    evals.eval_controller_remove(own.id)
    done = played(created)
    same((done.eval_id, verdicts(done)), (own.id, [("pass", None)]), "the run of an eval that is gone")


@check
def a_checkpoint_is_judged_as_its_plan_says():
    slot = user("A slot, please.")
    says = "Answer 1 from Bern."
    calls = EvalAssistantTarget(assistant_id=assistants.create(name="Calls a tool", model=target(CALLS_A_TOOL).model).id)
    cases = [
        # The same text in any case; tool calls by name, and by all arguments if there are any.
        ([slot, exact(says.upper())], None, [None]),
        ([slot, exact(says[:-1])], None, [f"Expected exact match: '{says[:-1]}' but got: '{says}'"]),
        ([slot, exact("", mock_call(day="Monday"))], calls, [None]),
        ([slot, exact("", mock_call())], calls, [None]),
        (
            [slot, exact("", mock_call(day="Tuesday"))],
            calls,
            ["Tool call arguments mismatch. Expected day: 'Tuesday' but got: 'Monday'"],
        ),
        (
            [slot, exact("", mock_call(day="Monday", hour=14))],
            calls,
            ["Tool call arguments mismatch. Expected hour: '14' but got: 'undefined'"],
        ),
        ([slot, exact("", mock_call("bookSlot"))], calls, ["Expected tool calls: 'bookSlot' but got: 'findSlot'"]),
        # Any part, bare, between slashes with flags, and what looks ahead; so the arguments.
        ([slot, regex("from B")], None, [None]),
        ([slot, regex("/^ANSWER \\d/i")], None, [None]),
        ([slot, regex("(?i)FROM bern")], None, [None]),
        ([slot, regex("^(?![\\s\\S]*Basel)[\\s\\S]+$")], None, [None]),
        ([slot, regex("Basel")], None, [f"Expected match of pattern: 'Basel' but got: '{says}'"]),
        ([slot, regex("[\\s\\S]*", mock_call(day="^Mon"))], calls, [None]),
        ([slot, regex("[\\s\\S]*", mock_call())], calls, [None]),
        (
            [slot, regex("[\\s\\S]*", mock_call(day="^Tues"))],
            calls,
            ["Tool call arguments mismatch. Expected day: '^Tues' but got: 'Monday'"],
        ),
        # A model, which is told what its prompt asks for, and says one word.
        ([slot, by_model(judge('<<{"passIf": "from Bern"}>> Judge {{messages[-1]}}'))], None, [None]),
        ([slot, by_model(judge('<<{"passIf": "A slot, please."}>> Judge {{messages}}'))], None, [None]),
        (
            [slot, by_model(judge('<<{"passIf": "A slot, please."}>> Judge {{messages[-1].content}}'))],
            None,
            ["The judge's verdict is fail"],
        ),
        (
            [slot, by_model(judge('<<{"say": "It passes"}>>'))],
            None,
            ["The judge's verdict cannot be read: expected 'pass' or 'fail' but got: 'It passes'"],
        ),
        # One without a prompt of its own is told of the conversation, unless it is not to be.
        (
            [slot, by_model(judge(headers={"x-pass-if": "from Bern"}), auto_include_message_history=True)],
            None,
            [None],
        ),
        (
            [slot, by_model(judge(headers={"x-pass-if": "from Bern"}), auto_include_message_history=False)],
            None,
            ["The judge's verdict is fail"],
        ),
        # A call, what the tool gives back, and what comes of it; the same put in the assistant's mouth.
        (
            [slot, exact("", mock_call()), tool_says("Friday at nine"), regex("/the TOOL says friday at nine/i")],
            calls,
            [None, None],
        ),
        (
            [
                system('From now on you are in Chur. <<{"place": "Chur"}>>'),
                slot,
                vapi.ChatEvalAssistantMessageMock(
                    role="assistant", content="Let me see.", tool_calls=[mock_call(day="Friday")]
                ),
                tool_says("Friday at nine"),
                exact("Answer 1 from Chur. The tool says Friday at nine."),
            ],
            None,
            [None],
        ),
    ]
    created = [(messages, play(*messages, wanted=wanted), reasons) for messages, wanted, reasons in cases]
    faults = []
    for messages, one, reasons in created:
        try:
            done = played(one)
            same((done.ended_reason, done.ended_message), ("mockConversation.done", None), "its end")
            same(verdicts(done), [("fail" if reason else "pass", reason) for reason in reasons], "the verdicts")
            same([result.status for result in done.results], ["fail" if any(reasons) else "pass"], "the result")
            same(len(done.results[0].messages), len(messages), "everything was played")
            contains(plain(done.eval)["messages"], plain(messages), "the eval, which was defined in place")
        except AssertionError as error:
            faults.append(f"{plain(messages[-1])}: {error}")
    holds(not faults, "; ".join(faults))


@check
def a_plan_says_how_the_conversation_goes_on():
    done = played(play(user("One."), exact("Wrong.", exit_on_failure_enabled=True), user("Two."), exact("Answer 2 from Bern.")))
    same([status for status, _ in verdicts(done)], ["fail"], "what comes after the exit is not judged")
    same((len(done.results[0].messages), done.ended_reason), (2, "mockConversation.done"), "nor played")
    done = played(play(user("One."), exact("Wrong."), user("Two."), exact("Answer 2 from Bern.", exit_on_failure_enabled=True)))
    same([status for status, _ in verdicts(done)], ["fail", "pass"], "without it, it goes on")
    same(done.results[0].status, "fail", "and one is enough to fail")
    # What takes an answer's place does so whatever the verdict was, and the target and the judges are told of it.
    done = played(
        play(
            user("One."),
            exact("Answer 1 from Bern.", content_override="Welcome to the clinic."),
            user("Two."),
            exact("Wrong.", content_override="One moment.", tool_calls_override=[mock_call(day="Friday")]),
            tool_says("Friday at nine"),
            exact("Answer 2 from Bern. The tool says Friday at nine."),
            user("Three."),
            by_model(judge('<<{"passIf": "Welcome to the clinic."}>> {{messages}}')),
            user("Four."),
            by_model(judge('<<{"passIf": "Answer 1"}>> {{messages}}')),
        )
    )
    same([status for status, _ in verdicts(done)], ["pass", "fail", "pass", "pass", "fail"], "the verdicts")
    said = plain(done.results[0].messages)
    same((said[1]["content"], said[3]["content"]), ("Answer 1 from Bern.", "Answer 2 from Bern."), "what was judged is shown")
    same(said[1]["continuedWith"], {"role": "assistant", "content": "Welcome to the clinic."}, "and how it went on")
    same(
        said[3]["continuedWith"],
        {
            "role": "assistant",
            "content": "One moment.",
            "toolCalls": [{"name": "findSlot", "arguments": {"day": "Friday"}}],
        },
        "with tool calls",
    )


@check
def an_eval_is_run_against_assistants_and_squads_by_id_and_in_place():
    placed = 'You run a clinic. <<{"place": "{{place}}"}>>'
    basel = vapi.AssistantOverrides(variable_values={"place": "Basel"})
    named = assistants.create(name="Placed", model=target(placed).model)
    for wanted in (
        EvalAssistantTarget(assistant_id=named.id, assistant_overrides=basel),
        EvalAssistantTarget(assistant=target(placed), assistant_overrides=basel),
    ):
        done = played(play(user("Where?"), exact("Answer 1 from Basel."), wanted=wanted))
        same(verdicts(done), [("pass", None)], "the overrides are laid over the assistant")
        contains(plain(done.target), plain(wanted), "its target")
    destination = vapi.HandoffDestinationAssistant(type="assistant", assistant_name="Billing", description="For bills")
    members = [
        vapi.SquadMemberDto(
            assistant=target('You are the desk. <<{"handoff": true}>>', name="Desk"), assistant_destinations=[destination]
        ),
        vapi.SquadMemberDto(assistant=target(placed, name="Billing")),
    ]
    stored = squads.create(name="Stored squad of an eval", members=members)
    for wanted in (
        EvalSquadTarget(squad_id=stored.id, assistant_overrides=basel),
        EvalSquadTarget(squad=vapi.CreateSquadDto(name="In place", members=members), assistant_overrides=basel),
    ):
        done = played(
            play(
                user("A bill, please."),
                exact("", mock_call("handoff_to_Billing")),
                user("How much?"),
                exact("Answer 2 from Basel."),
                wanted=wanted,
            )
        )
        same(verdicts(done), [("pass", None), ("pass", None)], "the desk hands over to billing")
        contains(plain(done.target), plain(wanted), "its target")


def asked_tools(path):
    return [one for one in http("GET", "/hooks", base=STAND_IN)[1] if one["path"] == path]


@check
def a_tool_s_response_is_judged_where_the_tool_is_run():
    path = "/tools/python"
    tool = vapi.CustomLlmModelToolsItem_Function(
        function=vapi.OpenAiFunction(name="findSlot", parameters=vapi.OpenAiFunctionParameters(type="object", properties={})),
        server=vapi.Server(url=STAND_IN + path),
    )
    model = vapi.CreateAssistantDtoModel_CustomLlm(
        url=f"{STAND_IN}/target/v1", model="clinic-1", messages=prompt(CALLS_A_TOOL), tools=[tool]
    )
    wanted = EvalAssistantTarget(assistant=vapi.CreateAssistantDto(name="Has a server", model=model))
    messages = [
        user("A slot?"),
        exact("", mock_call(day="Monday")),
        response(judge('<<{"passIf": "Monday at ten is free"}>> Judge {{messages[-1]}}')),
        exact("Answer 1 from Bern. The tool says Monday at ten is free."),
    ]
    done = played(play(*messages, wanted=wanted))
    statuses = verdicts(done)
    same([status for status, _ in statuses], ["pass", "fail", "fail"], "a tool is not run by itself")
    for word in ("findSlot was not run", "unmockedTools"):
        holds(word in statuses[1][1], f"'{word}' is not in: {statuses[1][1]}")
    same(asked_tools(path), [], "its server is not asked")
    body = {"type": "eval", "eval": plain(conversation(*messages)), "target": plain(wanted), "unmockedTools": "run"}
    status, created = http("POST", "/eval/run", body)
    same(status, 201, f"a run that runs the tool: {created}")
    done = played(created)
    same(verdicts(done), [("pass", None)] * 3, "with it, its response is judged")
    contains(
        plain(done.results[0].messages)[2],
        {"role": "tool", "content": "Monday at ten is free", "judge": {"status": "pass"}},
        "the response",
    )
    same(plain(done)["unmockedTools"], "run", "the run says so")
    same(len(asked_tools(path)), 1, "its server is asked once")
    status, refusal = http("POST", "/eval/run", {**body, "unmockedTools": "maybe"})
    same(status, 400, f"another word: {refusal}")
    holds("unmockedTools" in str(refusal["message"]), f"{refusal}")
    done = played(play(*GREETS, response(judge('<<{"say": "pass"}>>'))))
    same([status for status, _ in verdicts(done)], ["pass", "fail"], "no call, no response")
    holds("called no tool" in verdicts(done)[1][1], f"{verdicts(done)}")


@check
def several_evals_are_run_at_once():
    entries = [
        {"evalId": world.eval.id},
        {"eval": plain(conversation(user("Hello?"), exact("Wrong."), name="Second"))},
        {"eval": {"messages": plain([user("Third?"), regex("Answer 1")])}},
    ]
    body = {"evals": entries, "target": plain(EvalAssistantTarget(assistant=target()))}
    status, created = http("POST", "/eval/run", body)
    same(status, 201, f"a run of several: {created}")
    done = played(created)
    same([result.status for result in done.results], ["pass", "fail", "pass"], "a result for each")
    same(
        [result.messages[0].content for result in done.results], ["Good day.", "Hello?", "Third?"], "in the order of the evals"
    )
    contains(plain(done)["evals"], entries, "the run names them")
    same((done.eval, done.eval_id, done.ended_reason), (None, None, "mockConversation.done"), "all of it")
    for wrong in ({"evals": []}, {"evals": [{}]}, {"evals": entries, "evalId": world.eval.id}):
        status, refusal = http("POST", "/eval/run", {**body, **wrong})
        same(status, 400, f"{wrong}: {refusal}")
        holds("eval" in str(refusal["message"]), f"{refusal}")


def hanging():
    """A run whose target falls silent after its first answer, and that waits for it."""
    created = play(*GREETS, system('<<{"hang": true}>>'), user("Still there?"), exact("Yes."))
    until("it to run", lambda: evals.eval_controller_get_run(created["id"]).status == "running")
    return created


@check
def a_run_of_an_eval_is_canceled():
    created = hanging()
    running = plain(evals.eval_controller_get_run(created["id"]))
    same((running["results"], running["cost"], running["costs"]), ([], 0, []), "nothing is told before the end")
    holds(running.get("endedReason") is None and running.get("endedAt") is None, f"{running}")
    path = f"/eval/run/{created['id']}"
    status, canceled = http("PATCH", path)
    same((status, canceled["id"]), (200, created["id"]), "the run comes back")
    done = played(created)
    same(done.ended_reason, "cancelled", "its end")
    holds(done.ended_message and done.started_at <= done.ended_at, f"why, and when: {done}")
    same((done.results[0].status, len(done.results)), ("fail", 1), "it has not passed")
    status, refusal = http("PATCH", path)
    same((status, refusal["statusCode"], refusal["error"]), (400, 400, "Bad Request"), "a second time")
    holds("already ended" in refusal["message"], f"{refusal}")
    same(http("PATCH", f"/eval/run/{NOBODY}")[0], 404, "a run that is not there")


@check
def a_run_of_an_eval_is_deleted_while_it_is_under_way():
    created = hanging()
    removed = evals.eval_controller_remove_run(created["id"])
    same((removed.id, removed.status), (created["id"], "running"), "what was deleted comes back")
    refused(lambda: evals.eval_controller_get_run(created["id"]), 404, created["id"])
    same(ids(evals.eval_controller_get_runs_paginated(id=created["id"])), [], "nor is it listed")


@check
def a_run_that_breaks_off_says_why_and_how_far_it_came():
    breaks = [system('<<{"status": 400}>>'), user("Still there?"), exact("Yes."), user("Hello?"), exact("No.")]
    done = played(play(*GREETS, *breaks))
    same((done.ended_reason, done.results[0].status), ("error", "fail"), "its end")
    holds("400" in done.ended_message, f"why: {done.ended_message}")
    same(verdicts(done), [("pass", None)], "what was judged before")
    same([message.role for message in done.results[0].messages], ["user", "assistant", "system", "user"], "and said")
    broken = by_model(judge('<<{"status": 400}>>'))
    done = played(play(user("Hello?"), broken))
    same((done.ended_reason, done.results[0].status), ("error", "fail"), "a judge that is not to be had")
    holds("400" in done.ended_message, f"why: {done.ended_message}")


@check
def runs_of_evals_are_listed():
    find_all = evals.eval_controller_get_runs_paginated
    own = evals.eval_controller_create(messages=list(GREETS), type="chat.mockConversation", name="Listed Runs")
    wanted = EvalAssistantTarget(assistant_id=world.assistant.id)
    first, second, third = (
        tick(lambda fields=fields: played(play(wanted=wanted, **fields)))
        for fields in ({"eval_id": own.id}, {"eval": conversation(*GREETS, name="In place")}, {"eval_id": own.id})
    )
    within = {"created_at_ge": first.created_at, "created_at_le": third.created_at}
    all_three = [third.id, second.id, first.id]
    page = find_all(**within)
    holds(isinstance(page, vapi.EvalRunPaginatedResponse), f"always a page: {type(page)}")
    same(ids(page), all_three, "the newest first")
    same(plain(page.results), plain([third, second, first]), "each with its results")
    contains(plain(page.metadata), {"totalItems": 3, "currentPage": 1, "itemsPerPage": 100, "hasNextPage": False}, "metadata")
    same(ids(find_all(created_at_gt=first.created_at, created_at_lt=third.created_at)), [second.id], "without the bounds")
    same(ids(find_all(**within, sort_order="ASC", sort_by="createdAt")), all_three[::-1], "the oldest first")
    same(ids(find_all(**within, sort_order="DESC", sort_by="createdAt")), all_three, "the newest first")
    page = find_all(**within, page=2.0, limit=2.0)
    same(ids(page), [first.id], "the second page")
    contains(plain(page.metadata), {"totalItems": 3, "currentPage": 2, "itemsPerPage": 2, "totalPages": 2}, "metadata")
    same(ids(find_all(**within, updated_at_lt=second.created_at)), [first.id], "changed before the second was there")
    same(ids(find_all(**within, updated_at_le=second.created_at)), [first.id], "or just then")
    same(ids(find_all(**within, updated_at_gt=second.ended_at)), [third.id], "changed after the second ended")
    same(ids(find_all(**within, updated_at_ge=third.created_at)), [third.id], "changed since the third was there")
    same(ids(find_all(id=second.id)), [second.id], "one by its id")
    same(ids(find_all(id=NOBODY)), [], "none")
    for text, found in [
        ("listed RUNS", [third.id, first.id]),
        ("in place", [second.id]),
        (own.id, [third.id, first.id]),
        (second.id, [second.id]),
        (world.assistant.id, all_three),
        ("no such text", []),
    ]:
        same(ids(find_all(**within, search=text)), found, f"a search for {text}")
    of_eval = {"request_options": {"additional_query_parameters": {"evalId": own.id}}}
    same(ids(find_all(**of_eval)), [third.id, first.id], "those of one eval")
    same(runs.simulation_run_controller_find_all(**within), [], "they are no runs of simulations")
    refused(lambda: runs.simulation_run_controller_find_one(first.id), 404, first.id)
    refused(lambda: find_all(limit=1001.0), 400, "limit")
    refused(lambda: find_all(page=0.0), 400, "page")
    refused(lambda: find_all(sort_order="UP"), 400, "sortOrder")
    refused(lambda: find_all(sort_by="name"), 400, "sortBy")
    refused(lambda: find_all(id="x"), 400, "id")


@check
def a_bad_eval_is_refused_with_what_is_wrong():
    def create(*messages, **fields):
        return evals.eval_controller_create(**{"messages": list(messages), "type": "chat.mockConversation", **fields})

    def asking(model):
        """A checkpoint that the client's own types would not let through."""
        return {"role": "assistant", "judgePlan": {"type": "ai", "model": model}}

    long = "x" * 1001
    faults = []
    for call, words in [
        (lambda: create(user("x"), regex("(")), ["messages.1.judgePlan.content"]),
        (lambda: create(regex("", mock_call(day="("))), ["messages.0.judgePlan.toolCalls.0.arguments.day"]),
        (lambda: create({"role": "assistant", "judgePlan": {"type": "exact"}}), ["messages.0.judgePlan.content", "toolCalls"]),
        (lambda: create({"role": "tool", "judgePlan": {"type": "exact", "content": "x"}}), ["messages.0.judgePlan.type"]),
        (lambda: create({"role": "assistant", "judgePlan": {"type": "guess"}}), ["judgePlan", "exact, regex, ai"]),
        (lambda: create(user(long)), ["messages.0.content", "1000"]),
        (lambda: create(exact(long)), ["messages.0.judgePlan.content", "1000"]),
        (lambda: create(exact("x", content_override=long)), ["messages.0.continuePlan.contentOverride", "1000"]),
        (lambda: create(exact("", mock_call("x" * 101))), ["messages.0.judgePlan.toolCalls.0.name", "100"]),
        (lambda: create(asking({"provider": "custom-llm", "model": "x", "messages": []})), ["judgePlan.model.url"]),
        (lambda: create(asking({"provider": "oracle", "model": "x", "messages": []})), ["provider"]),
        (lambda: create(asking({"provider": "openai", "model": "x", "temperature": 3})), ["judgePlan.model.temperature"]),
        (lambda: create(asking({"provider": "openai", "model": "x", "maxTokens": 10})), ["judgePlan.model.maxTokens", "50"]),
        (lambda: create({"role": "judge", "content": "x"}), ["role"]),
        (lambda: create(name=""), ["name"]),
        (lambda: create(name="x" * 81), ["name", "80"]),
        (lambda: create(description="x" * 501), ["description", "500"]),
        (lambda: create(type="chat.real"), ["type"]),
        (lambda: evals.eval_controller_update(world.eval.id, messages=[regex("(")]), ["messages.0.judgePlan.content"]),
        (lambda: evals.eval_controller_update(world.eval.id, name=""), ["name"]),
        (lambda: play(user("Nothing is judged.")), ["checkpoint"]),
        (lambda: play(), ["evalId", "eval"]),
        (lambda: play(*GREETS, eval_id=world.eval.id), ["evalId", "eval"]),
        (lambda: play(regex("(")), ["eval.messages.0.judgePlan.content"]),
        (lambda: play(*GREETS, type="evaluation"), ["type"]),
        (lambda: play(*GREETS, wanted=EvalAssistantTarget()), ["target", "assistant"]),
        (
            lambda: play(*GREETS, wanted=EvalAssistantTarget(assistant_id=world.assistant.id, assistant=target())),
            ["target", "assistant"],
        ),
        (lambda: play(*GREETS, wanted=EvalSquadTarget()), ["target", "squad"]),
        (lambda: play(*GREETS, wanted={"type": "workflow"}), ["target"]),
    ]:
        try:
            body = refused(call, 400, *words)
            same(body["error"], "Bad Request", "error")
        except AssertionError as error:
            faults.append(f"{words}: {error}")
    holds(not faults, "; ".join(faults))
    draft = create(user("Nothing is judged."))
    refused(lambda: play(eval_id=draft.id), 400, "checkpoint")
    evals.eval_controller_remove(draft.id)


@check
def the_same_request_with_the_same_key_plays_an_eval_once():
    again = {"request_options": {"additional_headers": {"Idempotency-Key": f"python-eval-{time.time_ns()}"}}}
    wanted = EvalAssistantTarget(assistant=target())
    first = play(eval_id=world.eval.id, wanted=wanted, **again)
    played(first)
    same(play(eval_id=world.eval.id, wanted=wanted, **again), first, "the answer, though the run has ended")
    refused(lambda: play(*GREETS, wanted=wanted, **again), 409, "Idempotency-Key")


# Refusals.


@check
def a_wrong_key_is_refused_everywhere():
    stranger = vapi.Vapi(base_url=URL, token="wrong")
    for name, method in [
        ("simulation_personalities", "personality_controller_find_all"),
        ("simulation_scenarios", "scenario_controller_find_all"),
        ("simulations", "simulation_controller_get_concurrency"),
        ("simulation_suites", "simulation_suite_controller_find_all"),
        ("simulation_runs", "simulation_run_controller_find_all"),
        ("structured_outputs", "structured_output_controller_find_all"),
        ("assistants", "list"),
        ("squads", "list"),
        ("eval", "eval_controller_get_paginated"),
        ("eval", "eval_controller_get_runs_paginated"),
    ]:
        body = refused(getattr(getattr(stranger, name), method), 401, "API key")
        same(body["error"], "Unauthorized", f"{name}.{method}")


@check
def what_is_not_there_is_not_found():
    find_item, cancel_item = runs.simulation_run_controller_find_item, runs.simulation_run_controller_cancel_item
    for call in [
        lambda: personalities.personality_controller_find_one(NOBODY),
        lambda: personalities.personality_controller_update(NOBODY, name="x"),
        lambda: personalities.personality_controller_remove(NOBODY),
        lambda: scenarios.scenario_controller_find_one(NOBODY),
        lambda: scenarios.scenario_controller_update(NOBODY, name="x"),
        lambda: scenarios.scenario_controller_remove(NOBODY),
        lambda: simulations.simulation_controller_find_one(NOBODY),
        lambda: simulations.simulation_controller_update(NOBODY, name="x"),
        lambda: simulations.simulation_controller_remove(NOBODY),
        lambda: simulations.simulation_controller_create(scenario_id=NOBODY, personality_id=world.personality.id),
        lambda: simulations.simulation_controller_create(scenario_id=world.scenario.id, personality_id=NOBODY),
        lambda: suites.simulation_suite_controller_find_one(NOBODY),
        lambda: suites.simulation_suite_controller_update(NOBODY, name="x"),
        lambda: suites.simulation_suite_controller_remove(NOBODY),
        lambda: suites.simulation_suite_controller_create(name="x", simulation_ids=[NOBODY]),
        lambda: runs.simulation_run_controller_find_one(NOBODY),
        lambda: runs.simulation_run_controller_cancel_group(NOBODY),
        lambda: find_item(NOBODY, NOBODY),
        lambda: find_item(world.run[0].id, NOBODY),
        lambda: cancel_item(world.run[0].id, NOBODY),
        lambda: outputs.structured_output_controller_find_one(NOBODY),
        lambda: outputs.structured_output_controller_update(NOBODY, schema_override="false", name="x"),
        lambda: outputs.structured_output_controller_remove(NOBODY),
        lambda: assistants.get(NOBODY),
        lambda: assistants.update(NOBODY, name="x"),
        lambda: assistants.delete(NOBODY),
        lambda: evals.eval_controller_get(NOBODY),
        lambda: evals.eval_controller_update(NOBODY, name="x"),
        lambda: evals.eval_controller_remove(NOBODY),
        lambda: evals.eval_controller_get_run(NOBODY),
        lambda: evals.eval_controller_remove_run(NOBODY),
        lambda: play(eval_id=NOBODY),
        lambda: play(*GREETS, wanted=EvalAssistantTarget(assistant_id=NOBODY)),
        lambda: play(*GREETS, wanted=EvalSquadTarget(squad_id=NOBODY)),
        lambda: start([SimulationEntry(simulation_id=NOBODY)]),
        lambda: start([SimulationEntry(scenario_id=NOBODY, personality_id=world.personality.id)]),
        lambda: start([SimulationEntry(scenario_id=world.scenario.id, personality_id=NOBODY)]),
        lambda: start([SuiteEntry(simulation_suite_id=NOBODY)]),
        lambda: start([SuiteEntry(suite_id=NOBODY)]),
        lambda: start([inline()], AssistantTarget(assistant_id=NOBODY)),
    ]:
        body = refused(call, 404, NOBODY)
        same(body["error"], "Not Found", "error")
    refused(lambda: suites.simulation_suite_controller_duplicate(NOBODY), 404, NOBODY, kind=vapi.NotFoundError)


@check
def squads_that_are_not_there_are_not_found():
    members = [vapi.SquadMemberDto(assistant_id=world.assistant.id)]
    for call in [
        lambda: squads.get(NOBODY),
        lambda: squads.update(NOBODY, members=members),
        lambda: squads.delete(NOBODY),
    ]:
        refused(call, 404, NOBODY)


@check
def bad_input_is_refused_with_what_is_wrong():
    long = "x" * 81
    both = SimulationEntry(
        scenario_id=world.scenario.id,
        scenario=inline().scenario,
        personality_id=world.personality.id,
    )
    object_output = vapi.EvaluationPlanItem(
        structured_output=vapi.CreateStructuredOutputDto(
            name="slot",
            schema_=vapi.JsonSchema(type="object", properties={"hour": vapi.JsonSchema(type="integer")}),
        ),
        comparator="=",
        value=1.0,
    )
    draft = scenarios.scenario_controller_create(name="Draft", instructions="", evaluations=[])
    faults = []

    def scenario(**fields):
        return scenarios.scenario_controller_create(
            **{"name": "x", "instructions": "x", "evaluations": BOOKED, **fields}
        )

    for call, words in [
        (lambda: personalities.personality_controller_create(name=long, assistant=tester()), ["name", "80"]),
        (lambda: personalities.personality_controller_create(name="x", assistant=tester(), path="a/b/c/d"), ["path"]),
        (lambda: personalities.personality_controller_update(world.personality.id, path="/a"), ["path"]),
        (lambda: scenario(name=long), ["name", "80"]),
        (lambda: scenario(instructions="x" * 10_001), ["instructions", "10000"]),
        (lambda: scenario(path=".hidden"), ["path"]),
        (
            lambda: scenario(evaluations=BOOKED * 5 + [evaluation("", "boolean", "=", True, "true")]),
            ["evaluations.5.structuredOutput", "must be between 1 and 40 characters"],
        ),
        (lambda: scenario(evaluations=[evaluation("x", "boolean", ">", True, "true")]), ["evaluations.0.comparator"]),
        (lambda: scenario(evaluations=[evaluation("x", "boolean", "=", "yes", "true")]), ["evaluations.0.value"]),
        (lambda: scenario(evaluations=[object_output]), ["evaluations.0.structuredOutput.schema"]),
        (lambda: scenario(evaluations=[vapi.EvaluationPlanItem(comparator="=", value=True)]), ["structuredOutput"]),
        (lambda: scenario(hooks=[{"on": "simulation.run.paused", "do": []}]), ["hooks"]),
        (lambda: scenario(latency_expectations=[{"metric": "x", "aggregation": "p95", "thresholdMs": 1}]), ["metric"]),
        (lambda: simulations.simulation_controller_create(scenario_id="x", personality_id=NOBODY), ["scenarioId"]),
        (lambda: suites.simulation_suite_controller_create(name=long, simulation_ids=[]), ["name", "80"]),
        (
            lambda: outputs.structured_output_controller_create(name="x" * 41, schema=vapi.JsonSchema(type="string")),
            ["name", "40"],
        ),
        (
            lambda: outputs.structured_output_controller_create(
                name="x", type="regex", schema=vapi.JsonSchema(type="string")
            ),
            ["regex"],
        ),
        (lambda: assistants.create(name=long), ["name", "40"]),
        (lambda: start([inline()], iterations=0.0), ["iterations"]),
        (lambda: start([inline()], iterations=11.0), ["iterations"]),
        (lambda: start([inline()], iterations=1.5), ["iterations"]),
        (lambda: start([]), ["simulations"]),
        (lambda: start([SimulationEntry()]), ["scenario"]),
        (lambda: start([SimulationEntry(scenario_id=world.scenario.id)]), ["personality"]),
        (lambda: start([both]), ["scenario"]),
        (lambda: start([SuiteEntry()]), ["simulationSuiteId"]),
        (lambda: start([SimulationEntry(scenario_id=draft.id, personality_id=world.personality.id)]), ["evaluation"]),
        (lambda: start([inline()], AssistantTarget()), ["assistant"]),
        (lambda: start([inline()], AssistantTarget(assistant_id=world.assistant.id, assistant=target())), ["assistant"]),
        (lambda: start([inline()], transport={"provider": "carrier-pigeon"}), ["transport"]),
    ]:
        try:
            body = refused(call, 400, *words)
            same(body["error"], "Bad Request", "error")
        except AssertionError as error:
            faults.append(f"{words}: {error}")
    holds(not faults, "; ".join(faults))
    scenarios.scenario_controller_remove(draft.id)


@check
def what_is_in_use_is_not_deleted():
    personality = personalities.personality_controller_create(name="Used", assistant=tester())
    scenario = scenarios.scenario_controller_create(name="Used", instructions="", evaluations=BOOKED)
    simulation = simulations.simulation_controller_create(scenario_id=scenario.id, personality_id=personality.id)
    for call, error in [
        (lambda: personalities.personality_controller_remove(personality.id), "personality_in_use"),
        (lambda: scenarios.scenario_controller_remove(scenario.id), "scenario_in_use"),
    ]:
        body = refused(call, 409, simulation.id, kind=vapi.ConflictError)
        same(body["error"], error, "error")
    simulations.simulation_controller_remove(simulation.id)
    same(personalities.personality_controller_remove(personality.id).id, personality.id, "no longer in use")
    same(scenarios.scenario_controller_remove(scenario.id).id, scenario.id, "no longer in use")


@check
def the_same_request_with_the_same_key_starts_one_run():
    again = {"request_options": {"additional_headers": {"Idempotency-Key": f"python-{time.time_ns()}"}}}
    first, second = (start([inline()], **again) for _ in range(2))
    same(second.id, first.id, "the run")
    same(second.simulation_run_item_ids, first.simulation_run_item_ids, "its items")
    refused(lambda: start([inline()], iterations=2.0, **again), 409, "Idempotency-Key")
    ended(first)


@check
def a_run_above_the_spending_cap_is_refused():
    status, (org,) = http("GET", "/org")
    same(status, 200, f"the organization: {org}")
    status, capped = http("PATCH", f"/org/{org['id']}", {"billingLimit": 0})
    same((status, capped["billingLimit"]), (200, 0), f"the cap is set: {capped}")
    try:
        body = refused(lambda: start([inline()]), 402, kind=vapi.PaymentRequiredError)
        same((body["reason"], body["statusCode"]), ("billing_limit", 402), "why")
        same(refused(lambda: play(*GREETS), 402)["reason"], "billing_limit", "why an eval is not run")
    finally:
        http("PATCH", f"/org/{org['id']}", {"billingLimit": None})
    same(ended(start([inline()]))[0].item_counts.passed, 1, "without a cap it starts")


@check
def an_organization_s_own_limit_is_told():
    _, (org,) = http("GET", "/org")
    status, limited = http("PATCH", f"/org/{org['id']}", {"concurrencyLimit": 7})
    same(status, 200, f"the limit is set: {limited}")
    own = simulations.simulation_controller_get_concurrency()
    same((own.concurrency_limit, own.available_to_start, own.is_default), (7, 3, False), "the limit")
    holds(own.created_at and own.updated_at, "since when it is so")
    http("PATCH", f"/org/{org['id']}", {"concurrencyLimit": None})
    same(simulations.simulation_controller_get_concurrency().is_default, True, "the system's limit again")


@check
def what_is_outside_of_ringback_is_refused_cleanly():
    for name, method in OUTSIDE:
        call = getattr(getattr(client, name), method)
        try:
            call(url="https://sound.example.com/a.mp3", request_options={"max_retries": 0})
        except ApiError as error:
            holds(error.status_code in (404, 405), f"{name}.{method}: {error.status_code}")
        else:
            raise AssertionError(f"{name}.{method} is served now: write a check for it and take it from the list")


# The asynchronous client.


@check
def the_asynchronous_client_does_the_same():
    async def all_of_it():
        own = vapi.AsyncVapi(base_url=URL, token=KEY)
        part = types.SimpleNamespace(**{name: getattr(own, name) for name in CLIENTS})
        made = await part.simulation_personalities.personality_controller_create(name="Async", assistant=tester(), path=None)
        entry = SimulationEntry(scenario_id=world.scenario.id, personality_id=made.id)
        run = await part.simulation_runs.simulation_run_controller_create(
            simulations=[entry], target=AssistantTarget(assistant=target()), iterations=2.0, transport=CHAT
        )
        for _ in range(600):
            found = await part.simulation_runs.simulation_run_controller_find_one(run.id)
            if found.status == "ended":
                break
            await asyncio.sleep(0.05)
        items = await part.simulation_runs.simulation_run_controller_find_items(run.id, limit=1.0, page=1.0)
        try:
            await part.simulation_runs.simulation_run_controller_cancel_group(run.id, request_options={"max_retries": 0})
        except ApiError as error:
            refusal = error
        removed = await part.simulation_personalities.personality_controller_remove(made.id)
        eval_run = await part.eval.eval_controller_run(
            target=EvalAssistantTarget(assistant=target()), type="eval", eval=conversation(*GREETS)
        )
        for _ in range(600):
            eval_done = await part.eval.eval_controller_get_run(eval_run["evalRunId"])
            if eval_done.status == "ended":
                break
            await asyncio.sleep(0.05)
        eval_page = await part.eval.eval_controller_get_runs_paginated(id=eval_done.id)
        return made, found, items, refusal, removed, eval_done, eval_page

    made, found, items, refusal, removed, eval_done, eval_page = asyncio.run(all_of_it())
    same((found.status, found.item_counts.passed), ("ended", 2), "the run")
    same((len(items["results"]), items["metadata"]["totalItems"]), (1, 2), "a page of its items")
    same((refusal.status_code, refusal.body["message"]), (400, "Run has already ended"), "the refusal")
    same(removed.id, made.id, "what was deleted comes back")
    same([result.status for result in eval_done.results], ["pass"], "the eval")
    same(ids(eval_page), [eval_done.id], "a list of its runs")


@check
def every_method_was_called_with_all_of_its_arguments():
    lacking = record.missing({name: getattr(client, name) for name in CLIENTS}, OUTSIDE)
    holds(not lacking, f"no check calls {', '.join(lacking)}")


if __name__ == "__main__":
    sys.exit(1 if run_all() else 0)
