// Calls every simulations, eval, structured-output, assistant and squad method of Vapi's Node client, with all the fields of
// their requests, and looks at what comes back. Run it with run.py. What the server does is looked at more closely in
// vapi_python.py; here it is looked at through the other client's eyes: its own encoding of queries and bodies, and its errors.

import { Vapi, VapiClient, VapiError } from "@vapi-ai/server-sdk";

import {
    KEY,
    NOBODY,
    Record,
    STAND_IN,
    URL_,
    check,
    contains,
    holds,
    http,
    ids,
    methods,
    pause,
    runAll,
    same,
    until,
} from "./checks.mjs";

const CLIENTS = [
    "simulationPersonalities",
    "simulationScenarios",
    "simulations",
    "simulationSuites",
    "simulationRuns",
    "structuredOutputs",
    "assistants",
    "squads",
    "eval",
];
// Methods that Ringback does not serve: the reasons are in vapi_python.py. A check sees to it that they are refused cleanly.
const OUTSIDE = new Set(["assistants.assistantControllerValidateBackgroundSoundUrl"]);

// A retry would hide a refusal.
const client = new VapiClient({ token: KEY, baseUrl: URL_, maxRetries: 0 });
const record = new Record();
const [personalities, scenarios, simulations, suites, runs, outputs, assistants, squads, evals] = CLIENTS.map(
    (name) => record.wrap(name, client[name]),
);

const CHAT = { provider: "vapi.webchat" };
const VOICE = { provider: "vapi.websocket" };
const HANGS = 'Say nothing. <<{"hang": true}>>';

/** The call throws the client's error with this status, in the shape of the API, and a message that has these words. */
async function refused(call, status, words = [], kind = VapiError) {
    let answer;
    try {
        answer = await call();
    } catch (error) {
        holds(error instanceof kind, `${error.constructor.name} instead of ${kind.name}: ${error.message}`);
        same(error.statusCode, status, `the status of ${JSON.stringify(error.body)}`);
        holds(error.body?.message, `${JSON.stringify(error.body)} has no message`);
        if (!["scenario_in_use", "personality_in_use"].includes(error.body.error)) {
            same(error.body.statusCode, status, "statusCode");
        }
        for (const word of words) {
            holds(String(error.body.message).includes(word), `'${word}' is not in: ${error.body.message}`);
        }
        return error.body;
    }
    throw new Error(`no error ${status}, but ${JSON.stringify(answer)?.slice(0, 300)}`);
}

// What is sent.

function tester(more = {}) {
    const messages = [{ role: "system", content: "You are in a hurry." }];
    return {
        model: { provider: "openai", model: "gpt-4.1-mini", messages, temperature: 0.5, maxTokens: 250 },
        firstMessageMode: "assistant-speaks-first-with-model-generated-message",
        ...more,
    };
}

function target(text = 'You run a clinic. <<{"place": "Bern"}>>', name = "Clinic") {
    const messages = [{ role: "system", content: text }];
    const parameters = { type: "object", properties: { day: { type: "string" } }, required: ["day"] };
    const tools = [{ type: "function", function: { name: "findSlot", description: "Finds a slot.", parameters } }];
    const model = { provider: "custom-llm", url: `${STAND_IN}/target/v1`, model: "clinic-1", messages, tools };
    return { name, model, firstMessage: "Clinic, good day." };
}

function evaluation(name, type, comparator, value, judged, more = {}) {
    return { structuredOutput: { name, schema: { type }, description: `<<${judged}>>` }, comparator, value, ...more };
}

const BOOKED = [evaluation("booked", "boolean", "=", true, "true")];
const MISSED = [evaluation("booked", "boolean", "=", true, "false")];

function inline(instructions = "Book a slot.", evaluations = BOOKED) {
    return {
        type: "simulation",
        name: "Inline",
        scenario: { name: "Inline scenario", instructions, evaluations },
        personality: { name: "Pat", assistant: tester() },
    };
}

function start(simulations_, more = {}) {
    const wanted = { type: "assistant", assistant: target() };
    return runs.simulationRunControllerCreate({
        simulations: simulations_,
        target: wanted,
        iterations: 1,
        transport: CHAT,
        ...more,
    });
}

/** Waits for the end of a run; gives the run and its items in the order in which they were laid out. */
async function ended(run) {
    const done = await until("the run to end", async () => {
        const found = await runs.simulationRunControllerFindOne({ id: run.id });
        return found.status === "ended" && found;
    });
    return [done, await runs.simulationRunControllerFindItems({ id: run.id, sortOrder: "ASC" })];
}

const user = (content) => ({ role: "user", content });
/** A prompt in the middle of a conversation: the stand-in's target does from then on what it says. */
const system = (content) => ({ role: "system", content });
const toolSays = (content) => ({ role: "tool", content });
const mockCall = (args, name = "findSlot") => ({ name, ...(args && { arguments: args }) });

/** A message that the target has to write, judged as the plan says; `more` may say how it goes on. */
const checkpoint = (judgePlan, more = {}) => ({ role: "assistant", judgePlan, ...more });
const exact = (content, toolCalls, continuePlan) =>
    checkpoint({ type: "exact", content, ...(toolCalls && { toolCalls }) }, continuePlan && { continuePlan });
const regex = (content, toolCalls) => checkpoint({ type: "regex", content, ...(toolCalls && { toolCalls }) });

/** The plan of a model that judges, behind an address of its own. */
function byModel(text, more = {}, modelMore = {}) {
    const messages = text === undefined ? [] : [{ role: "system", content: text }];
    const limits = { temperature: 0, maxTokens: 50, timeoutSeconds: 20 };
    const model = { provider: "custom-llm", url: `${STAND_IN}/judge/v1`, model: "judge-1", messages, ...limits, ...modelMore };
    return { type: "ai", model, ...more };
}

function conversation(messages, more = {}) {
    return { type: "chat.mockConversation", messages, ...more };
}

const GREETS = [user("Good day."), exact("answer 1 FROM bern.")];
const CALLS_A_TOOL = 'You run a clinic. <<{"tool": "findSlot", "place": "Bern"}>>';

/** Starts a run of an eval with these messages, or of the one that `more` names. */
function play(messages, more = {}, options = undefined) {
    const wanted = { type: "assistant", assistant: target() };
    const named = messages && { eval: conversation(messages) };
    return evals.evalControllerRun({ type: "eval", target: wanted, ...named, ...more }, options);
}

/** Waits for the end of an eval's run and gives it. */
async function played(starting) {
    const created = await starting;
    const { id } = created;
    contains(
        created,
        { evalRunId: id, workflowId: id, status: "queued", type: "eval", results: [], cost: 0, costs: [] },
        "what was created",
    );
    for (const later of ["startedAt", "endedAt", "endedReason", "endedMessage"]) {
        holds(!(later in created), `${later} is not known yet`);
    }
    return until("the eval to end", async () => {
        const found = await evals.evalControllerGetRun({ id });
        return found.status === "ended" && found;
    });
}

/** The verdicts on the judged messages of a run's first result: null for one that passed, else why it failed. */
function verdicts(run) {
    const judged = run.results[0].messages.map((message) => message.judge).filter((judge) => judge);
    return judged.map(({ status, failureReason }) => {
        same(status, failureReason === undefined ? "pass" : "fail", `the status with ${failureReason}`);
        return failureReason ?? null;
    });
}

/** What several checks use, made when the first of them needs it. */
const world = {};
for (const [name, make] of Object.entries({
    personality: () => personalities.personalityControllerCreate({ name: "World", assistant: tester() }),
    scenario: () => scenarios.scenarioControllerCreate({ name: "World", instructions: "Book.", evaluations: BOOKED }),
    failing: () => scenarios.scenarioControllerCreate({ name: "Fails", instructions: "Book.", evaluations: MISSED }),
    simulation: async () =>
        simulations.simulationControllerCreate({
            scenarioId: (await world.scenario).id,
            personalityId: (await world.personality).id,
            name: "World",
        }),
    failingSimulation: async () =>
        simulations.simulationControllerCreate({
            scenarioId: (await world.failing).id,
            personalityId: (await world.personality).id,
        }),
    suite: async () =>
        suites.simulationSuiteControllerCreate({
            name: "World",
            simulationIds: [(await world.simulation).id, (await world.failingSimulation).id],
        }),
    assistant: () => assistants.create({ ...target(), name: "World assistant" }),
    output: () => outputs.structuredOutputControllerCreate({ name: "world", schema: { type: "string" } }),
    eval: () => evals.evalControllerCreate(conversation(GREETS, { name: "World" })),
    squad: async () => squads.create({ name: "World", members: [{ assistantId: (await world.assistant).id }] }),
    run: async () => {
        const created = await start([{ type: "simulationSuite", simulationSuiteId: (await world.suite).id }], {
            target: { type: "assistant", assistantId: (await world.assistant).id },
        });
        return [created, ...(await ended(created))];
    },
})) {
    let made;
    Object.defineProperty(world, name, { get: () => (made ??= make()) });
}

// Definitions.

/**
 * Creates what `full` describes, reads it, changes it to `change`, and deletes it. `part` has its methods; `extra` is sent with
 * a change.
 */
async function lifeOf(part, full, change, extra = {}) {
    const made = await part.create(full);
    holds(made.id && made.orgId && made.createdAt === made.updatedAt, `id, orgId and times: ${JSON.stringify(made)}`);
    contains(made, full, "what was created");
    same(await part.get({ id: made.id }), made, "what is read");
    const changed = await part.update({ id: made.id, ...extra, ...change });
    contains(changed, change, "what was changed");
    same(changed.createdAt, made.createdAt, "createdAt after a change");
    if ("path" in full) {
        const bare = await part.update({ id: made.id, ...extra, path: null });
        same(bare.path ?? null, null, "path: null takes it out of its folder");
    }
    same((await part.remove({ id: made.id })).id, made.id, "what was deleted comes back");
    await refused(() => part.get({ id: made.id }), 404, [made.id]);
}

const parts = {
    personality: {
        create: (body) => personalities.personalityControllerCreate(body),
        list: (query) => personalities.personalityControllerFindAll(query),
        get: (id) => personalities.personalityControllerFindOne(id),
        update: (body) => personalities.personalityControllerUpdate(body),
        remove: (id) => personalities.personalityControllerRemove(id),
    },
    scenario: {
        create: (body) => scenarios.scenarioControllerCreate(body),
        list: (query) => scenarios.scenarioControllerFindAll(query),
        get: (id) => scenarios.scenarioControllerFindOne(id),
        update: (body) => scenarios.scenarioControllerUpdate(body),
        remove: (id) => scenarios.scenarioControllerRemove(id),
    },
    simulation: {
        create: (body) => simulations.simulationControllerCreate(body),
        list: (query) => simulations.simulationControllerFindAll(query),
        get: (id) => simulations.simulationControllerFindOne(id),
        update: (body) => simulations.simulationControllerUpdate(body),
        remove: (id) => simulations.simulationControllerRemove(id),
    },
    suite: {
        create: (body) => suites.simulationSuiteControllerCreate(body),
        list: (query) => suites.simulationSuiteControllerFindAll(query),
        get: (id) => suites.simulationSuiteControllerFindOne(id),
        update: (body) => suites.simulationSuiteControllerUpdate(body),
        remove: (id) => suites.simulationSuiteControllerRemove(id),
    },
    output: {
        create: (body) => outputs.structuredOutputControllerCreate(body),
        list: (query) => outputs.structuredOutputControllerFindAll(query),
        get: (id) => outputs.structuredOutputControllerFindOne(id),
        update: (body) => outputs.structuredOutputControllerUpdate(body),
        remove: (id) => outputs.structuredOutputControllerRemove(id),
    },
    assistant: {
        create: (body) => assistants.create(body),
        list: (query) => assistants.list(query),
        get: (id) => assistants.get(id),
        update: (body) => assistants.update(body),
        remove: (id) => assistants.delete(id),
    },
    squad: {
        create: (body) => squads.create(body),
        list: (query) => squads.list(query),
        get: (id) => squads.get(id),
        update: (body) => squads.update(body),
        remove: (id) => squads.delete(id),
    },
    eval: {
        create: (body) => evals.evalControllerCreate(body),
        list: (query) => evals.evalControllerGetPaginated(query),
        get: (id) => evals.evalControllerGet(id),
        update: (body) => evals.evalControllerUpdate(body),
        remove: (id) => evals.evalControllerRemove(id),
    },
};

check("personality: created, read, changed and deleted", async () => {
    const full = { name: "Impatient", assistant: tester({ name: "Tester" }), path: "dept/feature/variant" };
    await lifeOf(parts.personality, full, { name: "Patient", assistant: tester({ firstMessage: "Hello?" }), path: "dept" });
});

check("built-in personalities are listed and not changed", async () => {
    const builtIn = (await parts.personality.list()).filter((one) => one.orgId === null);
    same(builtIn.length, 7, "the built-in personalities");
    const { id } = builtIn[0];
    await refused(() => parts.personality.remove({ id }), 404, ["is a Vapi default (cannot be deleted)"]);
    await refused(() => parts.personality.update({ id, name: "x" }), 404, [id]);
});

async function fullScenario(where) {
    const backoffPlan = { type: "fixed", maxRetries: 2, baseDelaySeconds: 1 };
    const server = { url: `${STAND_IN}/hooks/${where}`, timeoutSeconds: 10, headers: { "x-team": "clinic" }, backoffPlan };
    const include = { transcript: true, messages: true, recordingUrl: true };
    const actions = [{ type: "webhook", server, include }];
    const output = await world.output;
    return {
        name: "Book an appointment",
        instructions: "Book an appointment for next week.",
        evaluations: [
            evaluation("booked", "boolean", "=", true, "true"),
            evaluation("visits", "integer", ">=", 3, "3"),
            evaluation("mood", "string", "!=", "angry", '"calm"', { required: false }),
            { structuredOutputId: output.id, comparator: "!=", value: "nothing" },
        ],
        hooks: [
            { on: "simulation.run.started", do: actions },
            { on: "simulation.run.ended", do: actions },
        ],
        targetOverrides: { variableValues: { place: "Basel" } },
        toolMocks: [
            { toolName: "findSlot", result: "Tuesday is free", enabled: true },
            { toolName: "unused", enabled: false },
        ],
        path: "clinic/booking",
    };
}

check("scenario: created, read, changed and deleted", async () => {
    await lifeOf(parts.scenario, await fullScenario("never"), {
        name: "Cancel an appointment",
        instructions: "Cancel it.",
        evaluations: MISSED,
        hooks: [{ on: "simulation.run.ended", do: [{ type: "webhook" }] }],
        targetOverrides: { variableValues: { place: "Chur" } },
        toolMocks: [{ toolName: "cancelSlot", result: "done" }],
        path: "clinic",
    });
});

check("simulation: created, read, changed and deleted", async () => {
    const [scenario, failing, personality] = [await world.scenario, await world.failing, await world.personality];
    const other = await parts.personality.create({ name: "Other", assistant: tester(), path: null });
    await lifeOf(
        parts.simulation,
        { scenarioId: scenario.id, personalityId: personality.id, name: "Hurried", path: "a/b" },
        { scenarioId: failing.id, personalityId: other.id, name: "Calm", path: "a" },
    );
});

check("suite: created, read, changed, duplicated and deleted", async () => {
    const both = [(await world.simulation).id, (await world.failingSimulation).id];
    const targetAssignments = [
        { targetType: "assistant", targetId: (await world.assistant).id },
        { targetType: "squad", targetId: NOBODY },
    ];
    const full = {
        name: "Nightly",
        simulationIds: both,
        slackWebhookUrl: "https://hooks.slack.example/x",
        targetAssignments,
        path: "nightly",
    };
    const made = await parts.suite.create(full);
    const copy = await suites.simulationSuiteControllerDuplicate({ id: made.id });
    holds(copy.id !== made.id && copy.name !== made.name, "a copy under a name of its own");
    contains(copy, { ...full, name: copy.name }, "the copy");
    await lifeOf(parts.suite, full, {
        name: "Weekly",
        simulationIds: both.slice(1),
        slackWebhookUrl: "https://hooks.slack.example/y",
        targetAssignments: targetAssignments.slice(1),
        path: "weekly",
    });
    await refused(() => suites.simulationSuiteControllerDuplicate({ id: NOBODY }), 404, [NOBODY], Vapi.NotFoundError);
});

check("structured output: created, read, changed and deleted", async () => {
    const messages = [{ role: "user", content: "Extract {{structuredOutput.name}} of {{transcript}}." }];
    await lifeOf(
        parts.output,
        {
            name: "outcome",
            schema: { type: "string", enum: ["won", "lost"], description: "How it ended" },
            type: "ai",
            regex: "won|lost",
            model: { provider: "openai", model: "gpt-4.1", temperature: 0, maxTokens: 300, messages },
            compliancePlan: { forceStoreOnHipaaEnabled: true },
            conditions: [{ type: "minMessages", count: 2 }],
            description: "How the conversation ended",
            assistantIds: [(await world.assistant).id],
            workflowIds: [NOBODY],
        },
        {
            name: "amount",
            schema: { type: "integer" },
            type: "regex",
            regex: "/\\d+/",
            model: { provider: "openai", model: "gpt-4.1-mini" },
            compliancePlan: { forceStoreOnHipaaEnabled: false },
            conditions: [{ type: "endedReason", operator: "notOneOf", values: ["silence-timed-out"] }],
            description: "The amount",
            assistantIds: [],
            workflowIds: [],
        },
        { schemaOverride: "true" },
    );
});

check("assistant: created, read, changed and deleted", async () => {
    const full = {
        transcriber: { provider: "deepgram", model: "nova-3", language: "en" },
        model: target().model,
        voice: { provider: "11labs", voiceId: "burt", model: "eleven_turbo_v2_5" },
        firstMessage: "Clinic, good day.",
        firstMessageInterruptionsEnabled: true,
        firstMessageMode: "assistant-speaks-first",
        voicemailDetection: "off",
        clientMessages: ["transcript", "hang"],
        serverMessages: ["end-of-call-report"],
        maxDurationSeconds: 600,
        backgroundSound: "office",
        modelOutputInMessagesEnabled: false,
        transportConfigurations: [{ provider: "twilio", timeout: 60, record: false }],
        observabilityPlan: { provider: "langfuse", tags: ["clinic"], metadata: { team: "a" } },
        credentials: [],
        hooks: [{ on: "call.ending", do: [{ type: "tool", toolId: NOBODY }] }],
        name: "Full assistant",
        voicemailMessage: "Please call back.",
        endCallMessage: "Goodbye.",
        endCallPhrases: ["goodbye", "see you"],
        compliancePlan: { hipaaEnabled: false },
        metadata: { team: "clinic", number: 7 },
        backgroundSpeechDenoisingPlan: { smartDenoisingPlan: { enabled: true } },
        analysisPlan: { minMessagesThreshold: 2 },
        artifactPlan: { recordingEnabled: true },
        startSpeakingPlan: { waitSeconds: 0.4 },
        stopSpeakingPlan: { numWords: 2 },
        monitorPlan: { listenEnabled: true, controlEnabled: false },
        credentialIds: [NOBODY],
        server: { url: "https://agent.example.com/hook", timeoutSeconds: 20 },
        keypadInputPlan: { enabled: true, timeoutSeconds: 2 },
    };
    await lifeOf(parts.assistant, full, { ...full, name: "Changed", firstMessage: "Hello.", metadata: { a: 1 } });
});

check("squad: created, read, changed and deleted", async () => {
    const members = [
        {
            assistantId: (await world.assistant).id,
            assistantOverrides: { variableValues: { place: "Bern" } },
            assistantDestinations: [{ type: "assistant", assistantName: "Billing", description: "For bills" }],
        },
        { assistant: target(undefined, "Billing") },
    ];
    const membersOverrides = { variableValues: { place: "Bern" } };
    await lifeOf(
        parts.squad,
        { name: "Front desk", members, membersOverrides },
        { name: "Back office", members: members.slice(1), membersOverrides: { variableValues: { place: "Chur" } } },
    );
});

check("eval: created, read, changed and deleted", async () => {
    const continuePlan = {
        exitOnFailureEnabled: true,
        contentOverride: "Tuesday.",
        toolCallsOverride: [mockCall({ day: "Tuesday" })],
    };
    const openai = { provider: "openai", model: "gpt-4.1", temperature: 0.5, messages: [user("{{messages[-1]}}")] };
    await lifeOf(
        parts.eval,
        conversation(
            [
                system("The caller is in a hurry."),
                user("A slot?"),
                { role: "assistant", content: "Let me see.", toolCalls: [mockCall({ day: "Monday" }), mockCall()] },
                toolSays('{"free": true}'),
                exact("Monday.", [mockCall({ day: "Monday" })], continuePlan),
                regex("/mon|tues/i", [mockCall({ day: "^Mon" })]),
                checkpoint(byModel("Judge {{messages}}.", { autoIncludeMessageHistory: false })),
                checkpoint({ type: "ai", model: openai }),
                { role: "tool", judgePlan: byModel("Judge {{messages[-1]}}.") },
            ],
            { name: "Books", description: "Books a slot" },
        ),
        conversation(GREETS, { name: "Greets", description: "Says hello" }),
    );
});

// Lists.

/** Times have milliseconds, and filters have to tell one entry from the next. */
async function tick(call) {
    await pause(4);
    const made = await call();
    await pause(4);
    return made;
}

const sorted = [];

/**
 * All that lists of definitions have in common. `narrow` are filters that leave all three entries, `bare` says whether the list
 * is bare when no page is asked for, `pages` whether it has pages and orders.
 */
async function listed(part, make, touch, { narrow = {}, bare = true, pages = true } = {}) {
    const made = [];
    for (const n of [0, 1, 2]) {
        made.push(await tick(() => part.create(make(n))));
    }
    const [first, second, third] = made;
    const touched = await tick(() => part.update({ id: second.id, ...touch }));
    const newest = ids(made).reverse();
    const within = { createdAtGe: first.createdAt, createdAtLe: third.createdAt, ...narrow };
    const found = await part.list(within);
    same(Array.isArray(found), bare, "whether the list is bare");
    same(ids(found), newest, "the newest first");
    const ask = async (query, wanted, what) => same(ids(await part.list({ ...within, ...query })), wanted, what);
    const between = { createdAtGt: first.createdAt, createdAtLt: third.createdAt };
    await ask(between, [second.id], "without the bounds of the time of creation");
    await ask({ updatedAtLt: touched.updatedAt }, [third.id, first.id], "changed before");
    await ask({ updatedAtGt: third.updatedAt }, [second.id], "changed after");
    await ask({ updatedAtGe: touched.updatedAt }, [second.id], "changed then or later");
    await ask({ updatedAtLe: touched.updatedAt }, newest, "changed then or earlier");
    if (!pages) {
        const few = await part.list({ ...within, limit: 2 });
        holds(Array.isArray(few), "a limit makes no page");
        same(ids(few), newest.slice(0, 2), "a limit");
        return made;
    }
    await ask({ sortOrder: "ASC", sortBy: "createdAt" }, ids(made), "the oldest first");
    const page = await part.list({ ...within, page: 2, limit: 2 });
    same(ids(page), [first.id], "the second page");
    contains(page.metadata, { itemsPerPage: 2, totalItems: 3, currentPage: 2, totalPages: 2, hasNextPage: false }, "metadata");
    await refused(() => part.list({ limit: 1001 }), 400, ["limit"]);
    await refused(() => part.list({ sortOrder: "UP" }), 400, ["sortOrder"]);
    sorted.push([part, within, newest]);
    return made;
}

check("personalities are listed", async () => {
    await listed(parts.personality, (n) => ({ name: `List ${n}`, assistant: tester() }), { name: "Touched" });
});

check("scenarios are listed", async () => {
    const made = await listed(
        parts.scenario,
        (n) => ({ name: `List ${n}`, instructions: "", evaluations: BOOKED }),
        { instructions: "Touched" },
        { narrow: { name: "list" } },
    );
    same(ids(await parts.scenario.list({ idAny: [made[0].id, made[2].id] })), [made[2].id, made[0].id], "idAny, repeated");
    same(ids(await parts.scenario.list({ idAny: made[1].id })), [made[1].id], "idAny, one");
});

check("simulations are listed", async () => {
    const of = { scenarioId: (await world.scenario).id, personalityId: (await world.personality).id };
    const made = await listed(parts.simulation, (n) => ({ ...of, name: `List ${n}` }), { name: "Touched" });
    const suite = await parts.suite.create({ name: "Holds one", simulationIds: [made[1].id] });
    const standalone = await parts.simulation.list({ idAny: ids(made), standaloneOnly: true });
    same(ids(standalone), [made[2].id, made[0].id], "those in no suite");
    await parts.suite.remove({ id: suite.id });
});

check("suites are listed", async () => {
    const simulationIds = [(await world.simulation).id];
    const made = await listed(parts.suite, (n) => ({ name: `List ${n}`, simulationIds }), { path: "touched" });
    same(ids(await parts.suite.list({ name: "list 1" })), [made[1].id], "a name");
});

check("structured outputs are listed", async () => {
    const made = await listed(
        parts.output,
        (n) => ({ name: `list ${n}`, schema: { type: "string" } }),
        { schemaOverride: "false", description: "Touched" },
        { bare: false },
    );
    same(ids(await parts.output.list({ id: made[1].id })), [made[1].id], "one by its id");
    same(ids(await parts.output.list({ name: "list 2" })), [made[2].id], "one by its name");
});

check("evals are listed", async () => {
    const make = (n) => conversation(GREETS, { name: `List ${n}` });
    const made = await listed(parts.eval, make, { description: "Touched" }, { bare: false });
    same(ids(await parts.eval.list({ id: made[1].id })), [made[1].id], "one by its id");
    same((await parts.eval.list({ id: NOBODY })).results, [], "none");
    holds((await parts.eval.list()).metadata.totalItems >= 3, "always a page");
});

check("assistants are listed", async () => {
    await listed(parts.assistant, (n) => ({ name: `List ${n}` }), { name: "Touched" }, { pages: false });
});

check("squads are listed", async () => {
    const members = [{ assistantId: (await world.assistant).id }];
    const make = (n) => ({ name: `List ${n}`, members });
    const made = await listed(parts.squad, make, { name: "Touched", members }, { pages: false });
    same(ids(await parts.squad.list({ idAny: [made[0].id, made[2].id] })), [made[2].id, made[0].id], "idAny, repeated");
});

check("lists of definitions have the other orders", async () => {
    holds(sorted.length > 0, "there are lists");
    for (const [part, within, newest] of sorted) {
        for (const sortBy of ["duration", "cost"]) {
            const found = await part.list({ ...within, sortBy, sortOrder: "ASC" });
            same(ids(found).sort(), [...newest].sort(), `by ${sortBy}, nothing is missing`);
        }
    }
});

// Runs.

let everything;

check("a run of everything there is to name goes to its end", async () => {
    const text = 'You run a clinic. <<{"tool": "findSlot", "place": "{{place}}"}>>';
    const named = await assistants.create({ ...target(text), name: "Named" });
    const full = await parts.scenario.create(await fullScenario("node"));
    const [scenario, personality, suite] = [await world.scenario, await world.personality, await world.suite];
    const created = await start(
        [
            { type: "simulationSuite", simulationSuiteId: suite.id },
            { type: "simulation", scenarioId: full.id, personalityId: personality.id, name: "By parts" },
            { type: "simulation", simulationId: (await world.simulation).id },
            inline(),
            { type: "simulation", scenarioId: scenario.id, personality: { name: "Max", assistant: tester() } },
        ],
        { target: { type: "assistant", assistantId: named.id }, iterations: 2 },
    );
    same(created.simulationRunItemIds.length, 12, "a suite of two and four others, each twice");
    holds(created.url.includes(created.id), `an address to look at: ${created.url}`);
    contains(
        created,
        {
            status: "queued",
            iterations: 2,
            transport: CHAT,
            target: { type: "assistant", assistantId: named.id },
            itemCounts: { total: 12, queued: 12, passed: 0, failed: 0, running: 0, canceled: 0 },
        },
        "what was created",
    );
    same(created.simulations[0].name, suite.name, "the suite's name at that time");
    const [done, items] = await ended(created);
    same(
        items.map((item) => item.status),
        [..."ppffpppppppp"].map((letter) => (letter === "p" ? "passed" : "failed")),
        "the items' statuses",
    );
    const counts = { total: 12, passed: 10, failed: 2, running: 0, queued: 0, canceled: 0 };
    contains(done.itemCounts, counts, "itemCounts");
    same(ids(items), created.simulationRunItemIds, "the items, in the order in which they were laid out");
    same(
        items.map((item) => item.iterationNumber),
        [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2],
        "their iterations",
    );
    everything = { created, items, full, named };
});

check("an item says what was said and how it was judged", async () => {
    const { id, runId } = everything.items[4];
    const item = await runs.simulationRunControllerFindItem({ id: runId, itemId: id });
    holds(item.sessionId && !item.callId, "a chat has a session and no call");
    for (const said of ["from Basel", "The tool says Tuesday is free"]) {
        holds(item.metadata.call.transcript.includes(said), `'${said}' is not in: ${item.metadata.call.transcript}`);
    }
    same(item.metadata.simulation.name, "By parts", "the entry's own name");
    same(item.results.passed, true, "the verdict");
    const values = Object.fromEntries(item.results.evaluations.map((one) => [one.name, one.extractedValue]));
    contains(values, { booked: true, visits: 3, mood: "calm" }, "the values");
    same(item.results.evaluations[3].structuredOutputId, (await world.output).id, "a stored output");
    same(item.hooks.length, 2, "its hooks");
    same(item.configurations.transport, CHAT, "its transport");
});

check("hooks tell of the start and the end", async () => {
    const sent = await until("four hooks", async () => {
        const all = (await http("GET", "/hooks", undefined, STAND_IN))[1].filter((hook) => hook.path === "/hooks/node");
        return all.length >= 4 && all;
    });
    const told = sent.map(({ body }) => `${body.type} ${body.iterationNumber}`);
    same(
        [...new Set(told)].sort(),
        ["ended 1", "ended 2", "started 1", "started 2"].map((event) => `simulation.run.${event}`),
        "each event for each iteration",
    );
});

check("a snapshot stays when what it was taken of changes", async () => {
    const { items, full, named } = everything;
    await parts.scenario.update({ id: full.id, name: "Renamed" });
    await assistants.update({ id: named.id, name: "Renamed" });
    const after = await runs.simulationRunControllerFindItem({ id: items[4].runId, itemId: items[4].id });
    same(after.metadata.scenario, items[4].metadata.scenario, "the scenario's");
    same(after.metadata.assistant, items[4].metadata.assistant, "the assistant's");
});

check("a run's items are listed", async () => {
    const [created, , [passed, failed]] = await world.run;
    const ask = async (query, wanted, what) => {
        same(ids(await runs.simulationRunControllerFindItems({ id: created.id, ...query })), wanted, what);
    };
    const both = [failed.id, passed.id];
    await ask({}, both, "the newest first");
    await ask({ sortOrder: "ASC", sortBy: "createdAt" }, [passed.id, failed.id], "the oldest first");
    await ask({ status: "passed" }, [passed.id], "those that passed");
    await ask({ status: "queued" }, [], "those that wait");
    await ask({ simulationId: (await world.failingSimulation).id }, [failed.id], "those of one simulation");
    const at = created.createdAt;
    await ask({ createdAtGe: at, createdAtLe: at }, both, "created then");
    await ask({ createdAtGt: at }, [], "created later");
    await ask({ createdAtLt: at }, [], "created earlier");
    const page = await runs.simulationRunControllerFindItems({ id: created.id, page: 2, limit: 1 });
    same(ids(page), [passed.id], "the second page of one");
    contains(page.metadata, { totalItems: 2, currentPage: 2, itemsPerPage: 1, totalPages: 2 }, "metadata");
    const last = [passed, failed].map((item) => item.updatedAt).sort()[1];
    await ask({ runId: created.id }, both, "of this run");
    await ask({ runId: NOBODY }, [], "of another run");
    await ask({ updatedAtGt: last }, [], "changed later");
    await ask({ updatedAtLt: at }, [], "changed before there were any");
    await ask({ updatedAtGe: at, updatedAtLe: last }, both, "changed in between");
});

check("runs are listed", async () => {
    const wanted = { target: { type: "assistant", assistantId: (await world.assistant).id } };
    const made = [];
    for (const entry of [inline(), inline(undefined, MISSED), inline(HANGS)]) {
        made.push(await tick(() => start([entry], wanted)));
    }
    const [passed, failed, hanging] = made;
    const done = [await ended(passed), await ended(failed)].map(([run]) => run.updatedAt);
    const last = done.sort()[1];
    await until("the third to run", async () => {
        return (await runs.simulationRunControllerFindOne({ id: hanging.id })).status === "running";
    });
    const within = { createdAtGe: passed.createdAt, createdAtLe: hanging.createdAt };
    const ask = async (query, found, what) => {
        same(ids(await runs.simulationRunControllerFindAll({ ...within, ...query })), ids(found), what);
    };
    await ask({}, [hanging, failed, passed], "the newest first");
    await ask({ sortOrder: "ASC", sortBy: "createdAt" }, made, "the oldest first");
    await ask({ createdAtGt: passed.createdAt, createdAtLt: hanging.createdAt }, [failed], "without the bounds");
    await ask({ status: "ended" }, [failed, passed], "those that ended");
    await ask({ filterStatus: "passed" }, [passed], "those that passed");
    await ask({ filterStatus: "failed" }, [failed], "those that failed");
    await ask({ filterStatus: "running" }, [hanging], "those that run");
    await ask({ targetType: "assistant", targetId: (await world.assistant).id }, [hanging, failed, passed], "one target's");
    await ask({ targetType: "squad" }, [], "squads'");
    await ask({ status: "ended", updatedAtGt: last }, [], "changed after");
    await ask({ status: "ended", updatedAtLe: last }, [failed, passed], "changed until then");
    await ask({ updatedAtLt: passed.createdAt }, [], "changed before there were any");
    await ask({ updatedAtGe: passed.createdAt }, [hanging, failed, passed], "changed since");
    const page = await runs.simulationRunControllerFindAll({ ...within, page: 2, limit: 2 });
    same(ids(page), [passed.id], "the second page");
    contains(page.metadata, { totalItems: 3, currentPage: 2 }, "metadata");
    same(page.results[0].summary.targetSnapshotName, "World assistant", "what a page says of a run");
    await runs.simulationRunControllerCancelGroup({ id: hanging.id });
    await ended(hanging);
});

check("runs and items are sorted by duration and cost", async () => {
    const span = (run) => Date.parse(run.endedAt) - Date.parse(run.startedAt);
    const up = await runs.simulationRunControllerFindAll({ status: "ended", sortBy: "duration", sortOrder: "ASC" });
    const spans = up.map(span);
    same(spans, [...spans].sort((a, b) => a - b), "the shortest first");
    same((await runs.simulationRunControllerFindAll({ status: "ended", sortBy: "cost" })).length, up.length, "by cost");
    const { id } = (await world.run)[0];
    for (const sortBy of ["duration", "cost"]) {
        same((await runs.simulationRunControllerFindItems({ id, sortBy })).length, 2, `items by ${sortBy}`);
    }
});

check("a run and an item are canceled", async () => {
    const created = await start([inline(HANGS)], { iterations: 3 });
    const [itemId] = created.simulationRunItemIds;
    const item = await runs.simulationRunControllerCancelItem({ id: created.id, itemId });
    same([item.id, item.status], [itemId, "canceled"], "the item comes back");
    await refused(() => runs.simulationRunControllerCancelItem({ id: created.id, itemId }), 400, ["ended"]);
    same((await runs.simulationRunControllerCancelGroup({ id: created.id })).id, created.id, "the run comes back");
    const [done, items] = await ended(created);
    same(done.itemCounts.canceled, 3, "all of it");
    holds(
        items.every((one) => one.status === "canceled" && one.canceledAt),
        "all of its items",
    );
    await refused(() => runs.simulationRunControllerCancelGroup({ id: created.id }), 400, ["Run has already ended"]);
});

check("a run by voice holds call slots while its calls are up", async () => {
    await refused(() => start([inline()], { transport: VOICE }), 400, ["endpoint"]);
    const [, endpoint] = await http("POST", "/endpoint", { name: "Phone", url: `${STAND_IN}/provider` });
    await http("POST", "/provider-secret", { secret: endpoint.secrets[0].secret }, STAND_IN);
    const active = async () => (await simulations.simulationControllerGetConcurrency()).activeSimulations;
    const idle = await simulations.simulationControllerGetConcurrency();
    const limit = idle.concurrencyLimit;
    contains(idle, { activeSimulations: 0, availableToStart: limit / 2, isDefault: true }, "nothing is up");
    const held = await start([inline(HANGS)], { transport: VOICE, iterations: 2 });
    await until("both calls", async () => {
        const items = await runs.simulationRunControllerFindItems({ id: held.id });
        return items.every((item) => item.callId && item.status === "running");
    });
    same(await active(), 4, "two slots for each call");
    await runs.simulationRunControllerCancelGroup({ id: held.id });
    await until("the slots", async () => (await active()) === 0);
    const [, [item]] = await ended(await start([inline()], { transport: VOICE }));
    same(item.status, "passed", "a call that ends by itself");
    same(item.results.latencyMetrics.avgTurn, 1200, "latencyMetrics");
});

check("a squad is played against by id and in place", async () => {
    const assistantDestinations = [{ type: "assistant", assistantName: "Billing", description: "For bills" }];
    const desk = target('You are the desk. <<{"handoff": true, "place": "the desk"}>>', "Desk");
    const members = [
        { assistant: desk, assistantDestinations },
        { assistant: target('You are billing. <<{"place": "billing"}>>', "Billing") },
    ];
    const stored = await squads.create({ name: "Stored squad", members });
    for (const wanted of [
        { type: "squad", squadId: stored.id },
        { type: "squad", squad: { name: "In place", members } },
    ]) {
        const [, [item]] = await ended(await start([inline()], { target: wanted }));
        same([item.status, item.failureReason ?? null], ["passed", null], "the item");
        const { transcript } = item.metadata.call;
        holds(transcript.includes("from billing"), `the desk hands over to billing: ${transcript}`);
        holds(item.metadata.squad, "the squad's snapshot");
    }
});

// What a model writes.

check("scenarios are generated and can be created", async () => {
    for (const wanted of [{ assistantId: (await world.assistant).id }, { squadId: (await world.squad).id }]) {
        const made = await simulations.simulationGenerateControllerGenerate(wanted);
        holds(made.coverageNotes && made.scenarios.length > 0, `there are some: ${JSON.stringify(made)}`);
        for (const { name, instructions, category, reasoning } of made.scenarios) {
            holds(["happy_path", "edge_case", "failure_mode"].includes(category) && reasoning, "category and reasoning");
            const kept = await parts.scenario.create({ name, instructions, evaluations: BOOKED });
            await parts.scenario.remove({ id: kept.id });
        }
    }
    await refused(() => simulations.simulationGenerateControllerGenerate({}), 400, ["assistantId"]);
    await refused(() => simulations.simulationGenerateControllerGenerate({ assistantId: NOBODY }), 404, [NOBODY]);
});

check("improvements are suggested and kept", async () => {
    const [{ id }, , [, failed]] = await world.run;
    const kept = async () => {
        const item = await runs.simulationRunControllerFindItem({ id, itemId: failed.id });
        return item.improvementSuggestions;
    };
    const suggest = (more) => runs.simulationRunControllerGenerateSuggestions({ id, itemId: failed.id, ...more });
    await suggest({ force: "false", persist: "true" });
    const first = await kept();
    for (const field of ["systemPromptSuggestions", "toolSuggestions", "scenarioSuggestions"]) {
        holds(first[field].length > 0 && first[field].every((one) => one.issue && one.suggestion), field);
    }
    await suggest({ force: "false" });
    same(await kept(), first, "what there is, is not made anew");
    await suggest({ force: "true" });
    holds((await kept()).analysis !== first.analysis, "force makes them anew");
});

check("a structured output is run on a conversation", async () => {
    const [, , [item]] = await world.run;
    const structuredOutputId = (await world.output).id;
    const call = item.callId ?? item.id;
    const preview = await outputs.structuredOutputControllerRun({
        callIds: [call],
        previewEnabled: true,
        structuredOutput: { name: "transient", schema: { type: "boolean" }, description: "<<true>>" },
    });
    const [found] = Object.values(preview);
    contains(found, { name: "transient", result: true }, "the value");
    const kept = await outputs.structuredOutputControllerRun({ callIds: [call], previewEnabled: false, structuredOutputId });
    holds(kept.message, `without a preview: ${JSON.stringify(kept)}`);
    await refused(() => outputs.structuredOutputControllerRun({ callIds: [call], previewEnabled: true }), 400);
});

// Evals.

check("a stored eval is run against a stored assistant", async () => {
    const [{ id: evalId }, { id: assistantId }] = [await world.eval, await world.assistant];
    const created = await play(undefined, { evalId, target: { type: "assistant", assistantId } });
    const done = await played(created);
    contains(
        done,
        {
            id: created.id,
            orgId: created.orgId,
            type: "eval",
            evalId,
            target: { type: "assistant", assistantId },
            endedReason: "mockConversation.done",
            cost: 0,
            costs: [{ type: "model", model: "stand-in" }],
        },
        "the run",
    );
    holds(!("eval" in done) && !("endedMessage" in done), "what it has not");
    const [result] = done.results;
    const times = [done.createdAt, done.startedAt, result.startedAt, result.endedAt, done.endedAt];
    same(times, [...times].sort(), "its times are in order");
    same(result.status, "pass", "the verdict");
    same(
        result.messages,
        [user("Good day."), { role: "assistant", content: "Answer 1 from Bern.", judge: { status: "pass" } }],
        "what was said, and how it was judged",
    );
    same(await evals.evalControllerRemoveRun({ id: done.id }), done, "what was deleted comes back");
    await refused(() => evals.evalControllerGetRun({ id: done.id }), 404, [done.id]);
    await refused(() => evals.evalControllerRemoveRun({ id: done.id }), 404, [done.id]);
});

check("a checkpoint is judged as its plan says", async () => {
    const slot = user("A slot, please.");
    const { id: assistantId } = await assistants.create({ ...target(CALLS_A_TOOL), name: "Calls a tool" });
    const calls = { target: { type: "assistant", assistantId } };
    const unless = (passIf, told) => checkpoint(byModel(`<<{"passIf": "${passIf}"}>> Judge ${told}`));
    const headers = { "x-pass-if": "from Bern" };
    const cases = [
        [[slot, exact("ANSWER 1 from bern.")], {}, [null]],
        [[slot, exact("No.")], {}, ["Expected exact match: 'No.' but got: 'Answer 1 from Bern.'"]],
        [[slot, exact("", [mockCall({ day: "Monday" })])], calls, [null]],
        [
            [slot, exact("", [mockCall({ day: 14 })])],
            calls,
            ["Tool call arguments mismatch. Expected day: '14' but got: 'Monday'"],
        ],
        // The content of a plan may be left out where it has tool calls.
        [[slot, checkpoint({ type: "exact", toolCalls: [mockCall()] })], calls, [null]],
        [
            [slot, exact("", [mockCall(undefined, "bookSlot")])],
            calls,
            ["Expected tool calls: 'bookSlot' but got: 'findSlot'"],
        ],
        [[slot, regex("/^ANSWER \\d/i")], {}, [null]],
        [[slot, regex("^(?![\\s\\S]*Basel)[\\s\\S]+$")], {}, [null]],
        [[slot, regex("Basel")], {}, ["Expected match of pattern: 'Basel' but got: 'Answer 1 from Bern.'"]],
        [[slot, regex("[\\s\\S]*", [mockCall({ day: "^Mon" })])], calls, [null]],
        [[slot, unless("from Bern", "{{messages[-1]}}")], {}, [null]],
        [[slot, unless("A slot", "{{messages[-1].content}}")], {}, ["The judge's verdict is fail"]],
        [
            [slot, checkpoint(byModel('<<{"say": "Maybe"}>>'))],
            {},
            ["The judge's verdict cannot be read: expected 'pass' or 'fail' but got: 'Maybe'"],
        ],
        [[slot, checkpoint(byModel(undefined, { autoIncludeMessageHistory: true }, { headers }))], {}, [null]],
        [[slot, exact("", [mockCall()]), toolSays("Friday"), regex("tool says Friday")], calls, [null, null]],
    ];
    const started = [];
    for (const [messages, more, reasons] of cases) {
        started.push([messages, await play(messages, more), reasons]);
    }
    for (const [messages, created, reasons] of started) {
        const done = await played(created);
        same(verdicts(done), reasons, "the verdicts");
        same(done.results[0].status, reasons.every((reason) => reason === null) ? "pass" : "fail", "the result");
        same(done.results[0].messages.length, messages.length, "everything was played");
        contains(done.eval, conversation(messages), "the eval, which was defined in place");
    }
});

check("a plan says how the conversation goes on", async () => {
    const exits = exact("Wrong.", undefined, { exitOnFailureEnabled: true });
    let done = await played(play([user("One."), exits, user("Two."), exact("Answer 2 from Bern.")]));
    same([verdicts(done).length, done.results[0].messages.length], [1, 2], "what comes after the exit is not played");
    same([done.endedReason, done.results[0].status], ["mockConversation.done", "fail"], "its end");
    const toolCallsOverride = [mockCall({ day: "Friday" })];
    done = await played(
        play([
            user("One."),
            exact("Wrong.", undefined, { contentOverride: "One moment.", toolCallsOverride }),
            toolSays("Friday at nine"),
            exact("Answer 1 from Bern. The tool says Friday at nine."),
            user("Two."),
            checkpoint(byModel('<<{"passIf": "One moment."}>> {{messages}}')),
        ]),
    );
    same(
        verdicts(done).map((reason) => reason === null),
        [false, true, true],
        "target and judges are told what took the answer's place",
    );
});

check("an eval is run against assistants and squads by id and in place", async () => {
    const placed = 'You run a clinic. <<{"place": "{{place}}"}>>';
    const assistantOverrides = { variableValues: { place: "Basel" } };
    const named = await assistants.create({ ...target(placed), name: "Placed" });
    for (const wanted of [{ assistantId: named.id }, { assistant: target(placed) }]) {
        const messages = [user("Where?"), exact("Answer 1 from Basel.")];
        const more = { target: { type: "assistant", ...wanted, assistantOverrides } };
        const done = await played(play(messages, more));
        same(verdicts(done), [null], "the overrides are laid over the assistant");
        contains(done.target, more.target, "its target");
    }
    const assistantDestinations = [{ type: "assistant", assistantName: "Billing", description: "For bills" }];
    const members = [
        { assistant: target('You are the desk. <<{"handoff": true}>>', "Desk"), assistantDestinations },
        { assistant: target(placed, "Billing") },
    ];
    const stored = await squads.create({ name: "Squad of an eval", members });
    for (const wanted of [{ squadId: stored.id }, { squad: { name: "In place", members } }]) {
        const handsOver = exact("", [mockCall(undefined, "handoff_to_Billing")]);
        const messages = [user("A bill, please."), handsOver, user("How much?"), exact("Answer 2 from Basel.")];
        const more = { target: { type: "squad", ...wanted, assistantOverrides } };
        const done = await played(play(messages, more));
        same(verdicts(done), [null, null], "the desk hands over to billing");
        contains(done.target, more.target, "its target");
    }
});

check("several evals are run at once, and tools without a mock if that is asked for", async () => {
    const agent = target(CALLS_A_TOOL);
    agent.model.tools[0].server = { url: `${STAND_IN}/tools/node` };
    const judgePlan = byModel('<<{"passIf": "Monday at ten is free"}>> {{messages[-1]}}');
    const second = conversation([user("A slot?"), exact("", [mockCall()]), { role: "tool", judgePlan }]);
    const body = {
        type: "eval",
        evals: [{ evalId: (await world.eval).id }, { eval: second }],
        target: { type: "assistant", assistant: agent },
        unmockedTools: "run",
    };
    const [status, created] = await http("POST", "/eval/run", body);
    same(status, 201, `a run of several: ${JSON.stringify(created)}`);
    const done = await played(created);
    same(
        done.results.map((result) => result.status),
        ["fail", "pass"],
        "a result for each, in order",
    );
    contains(done.results[1].messages[2], { role: "tool", content: "Monday at ten is free" }, "the response");
    contains(done, { evals: body.evals, unmockedTools: "run" }, "the run says what was asked for");
    const without = await played(play(second.messages, { target: body.target }));
    holds(verdicts(without)[1].includes("findSlot was not run"), `a tool is not run by itself: ${verdicts(without)[1]}`);
    same((await http("POST", "/eval/run", { ...body, evals: [] }))[0], 400, "a run of none");
    same((await http("POST", "/eval/run", { ...body, unmockedTools: "maybe" }))[0], 400, "another word");
});

/** A run whose target falls silent after its first answer, and that waits for it. */
async function silent() {
    const created = await play([...GREETS, system('<<{"hang": true}>>'), user("Still there?"), exact("Yes.")]);
    await until("it to run", async () => (await evals.evalControllerGetRun({ id: created.id })).status === "running");
    return created;
}

check("a run of an eval is canceled, and deleted while it is under way", async () => {
    const created = await silent();
    const where = `/eval/run/${created.id}`;
    const [status, canceled] = await http("PATCH", where);
    same([status, canceled.id], [200, created.id], "the run comes back");
    const done = await played(created);
    same([done.endedReason, done.results[0].status], ["cancelled", "fail"], "its end");
    holds(done.endedMessage, "and why");
    const [again, refusal] = await http("PATCH", where);
    same([again, refusal.statusCode], [400, 400], "a second time");
    holds(refusal.message.includes("already ended"), refusal.message);
    same((await http("PATCH", `/eval/run/${NOBODY}`))[0], 404, "a run that is not there");
    const { id } = await silent();
    const removed = await evals.evalControllerRemoveRun({ id });
    same([removed.id, removed.status], [id, "running"], "what was deleted comes back");
    await refused(() => evals.evalControllerGetRun({ id }), 404, [id]);
});

check("a run that breaks off says why and how far it came", async () => {
    const done = await played(play([...GREETS, system('<<{"status": 400}>>'), user("Still there?"), exact("Yes.")]));
    same([done.endedReason, done.results[0].status], ["error", "fail"], "its end");
    holds(done.endedMessage.includes("400"), `why: ${done.endedMessage}`);
    same(verdicts(done), [null], "what was judged before");
});

check("runs of evals are listed", async () => {
    const { id: evalId } = await parts.eval.create(conversation(GREETS, { name: "Listed in Node" }));
    const made = [];
    for (const more of [{ evalId }, { eval: conversation(GREETS) }, { evalId }]) {
        made.push(await tick(() => played(play(undefined, more))));
    }
    const [first, second, third] = made;
    const newest = [third, second, first];
    const within = { createdAtGe: first.createdAt, createdAtLe: third.createdAt };
    const ask = async (query, found, what, options) => {
        same(ids(await evals.evalControllerGetRunsPaginated({ ...within, ...query }, options)), ids(found), what);
    };
    const page = await evals.evalControllerGetRunsPaginated(within);
    same(page.results, newest, "the newest first, each with its results");
    contains(page.metadata, { totalItems: 3, currentPage: 1, itemsPerPage: 100, hasNextPage: false }, "metadata");
    await ask({ sortOrder: "ASC", sortBy: "createdAt" }, made, "the oldest first");
    await ask({ page: 2, limit: 2 }, [first], "the second page");
    await ask({ createdAtGt: first.createdAt, createdAtLt: third.createdAt }, [second], "without the bounds");
    await ask({ updatedAtLt: second.createdAt }, [first], "changed before the second was there");
    await ask({ updatedAtLe: second.createdAt }, [first], "or just then");
    await ask({ updatedAtGt: second.endedAt }, [third], "changed after the second ended");
    await ask({ updatedAtGe: third.createdAt }, [third], "changed since the third was there");
    await ask({ id: second.id }, [second], "one by its id");
    await ask({ id: NOBODY }, [], "none");
    await ask({}, [third, first], "those of one eval", { queryParams: { evalId } });
    await ask({}, [third, first], "a search", { queryParams: { search: "listed in NODE" } });
    await refused(() => evals.evalControllerGetRunsPaginated({ limit: 1001 }), 400, ["limit"]);
    await refused(() => evals.evalControllerGetRunsPaginated({ sortOrder: "UP" }), 400, ["sortOrder"]);
});

check("a bad eval is refused with what is wrong", async () => {
    const { id: evalId } = await world.eval;
    const create = (messages, more) => parts.eval.create(conversation(messages, more));
    for (const [call, ...words] of [
        [() => create([user("x"), regex("(")]), "messages.1.judgePlan.content"],
        [() => create([checkpoint({ type: "exact" })]), "messages.0.judgePlan.content", "toolCalls"],
        [() => create([checkpoint({ type: "guess" })]), "judgePlan", "exact, regex, ai"],
        [() => create([user("x".repeat(1001))]), "messages.0.content", "1000"],
        [() => create([], { name: "x".repeat(81) }), "name", "80"],
        [() => parts.eval.update({ id: evalId, messages: [regex("(")] }), "messages.0.judgePlan.content"],
        [() => play([user("Nothing is judged.")]), "checkpoint"],
        [() => play(undefined), "evalId", "eval"],
        [() => play(GREETS, { evalId }), "evalId", "eval"],
        [() => play(GREETS, { target: { type: "assistant" } }), "target", "assistant"],
    ]) {
        same((await refused(call, 400, words)).error, "Bad Request", "error");
    }
});

check("the same request with the same key plays an eval once", async () => {
    const { id: evalId } = await world.eval;
    const options = { headers: { "Idempotency-Key": `node-eval-${Date.now()}` } };
    const first = await play(undefined, { evalId }, options);
    await played(first);
    same(await play(undefined, { evalId }, options), first, "the answer, though the run has ended");
    await refused(() => play(GREETS, {}, options), 409, ["Idempotency-Key"]);
});

// Refusals.

check("a wrong key is refused everywhere", async () => {
    const stranger = new VapiClient({ token: "wrong", baseUrl: URL_, maxRetries: 0 });
    for (const call of [
        () => stranger.simulationPersonalities.personalityControllerFindAll(),
        () => stranger.simulationScenarios.scenarioControllerFindAll(),
        () => stranger.simulations.simulationControllerGetConcurrency(),
        () => stranger.simulationSuites.simulationSuiteControllerFindAll(),
        () => stranger.simulationRuns.simulationRunControllerFindAll(),
        () => stranger.structuredOutputs.structuredOutputControllerFindAll(),
        () => stranger.assistants.list(),
        () => stranger.squads.list(),
        () => stranger.eval.evalControllerGetPaginated(),
        () => stranger.eval.evalControllerGetRunsPaginated(),
    ]) {
        same((await refused(call, 401, ["API key"])).error, "Unauthorized", "error");
    }
});

check("what is not there is not found", async () => {
    const id = NOBODY;
    const members = [{ assistantId: (await world.assistant).id }];
    for (const [name, part] of Object.entries(parts)) {
        await refused(() => part.get({ id }), 404, [NOBODY]);
        await refused(() => part.remove({ id }), 404, [NOBODY]);
        const change = name === "squad" ? { members } : { name: "x", ...(name === "output" && { schemaOverride: "false" }) };
        await refused(() => part.update({ id, ...change }), 404, [NOBODY]);
    }
    await refused(() => runs.simulationRunControllerFindOne({ id }), 404, [NOBODY]);
    await refused(() => runs.simulationRunControllerCancelGroup({ id }), 404, [NOBODY]);
    await refused(() => runs.simulationRunControllerFindItems({ id }), 404, [NOBODY]);
    await refused(() => runs.simulationRunControllerFindItem({ id, itemId: id }), 404, [NOBODY]);
    await refused(() => runs.simulationRunControllerCancelItem({ id, itemId: id }), 404, [NOBODY]);
    await refused(() => evals.evalControllerGetRun({ id }), 404, [NOBODY]);
    await refused(() => evals.evalControllerRemoveRun({ id }), 404, [NOBODY]);
    await refused(() => play(undefined, { evalId: id }), 404, [NOBODY]);
    await refused(() => play(GREETS, { target: { type: "assistant", assistantId: id } }), 404, [NOBODY]);
    await refused(() => play(GREETS, { target: { type: "squad", squadId: id } }), 404, [NOBODY]);
    await refused(() => start([{ type: "simulation", simulationId: id }]), 404, [NOBODY]);
    await refused(() => start([{ type: "simulationSuite", simulationSuiteId: id }]), 404, [NOBODY]);
    await refused(() => start([inline()], { target: { type: "assistant", assistantId: id } }), 404, [NOBODY]);
});

check("bad input is refused with what is wrong", async () => {
    const long = "x".repeat(81);
    for (const [call, ...words] of [
        [() => parts.personality.create({ name: long, assistant: tester() }), "name", "80"],
        [() => parts.scenario.create({ name: long, instructions: "", evaluations: [] }), "name", "80"],
        [
            () => parts.scenario.create({
                name: "x",
                instructions: "x",
                evaluations: [...BOOKED, evaluation("", "boolean", "=", true, "true")],
            }),
            "evaluations.1.structuredOutput",
            "must be between 1 and 40 characters",
        ],
        [() => parts.simulation.create({ scenarioId: "x", personalityId: "y" }), "scenarioId"],
        [() => parts.suite.create({ name: long, simulationIds: [] }), "name", "80"],
        [() => parts.output.create({ name: "", schema: { type: "string" } }), "name", "40"],
        [() => parts.assistant.create({ name: long }), "name", "40"],
        [() => start([inline()], { iterations: 11 }), "iterations"],
        [() => start([]), "simulations"],
        [() => start([inline()], { target: { type: "assistant" } }), "assistant"],
        [() => start([inline()], { transport: { provider: "carrier-pigeon" } }), "transport"],
    ]) {
        same((await refused(call, 400, words)).error, "Bad Request", "error");
    }
});

check("what is in use is not deleted", async () => {
    const personality = await parts.personality.create({ name: "Used", assistant: tester() });
    const scenario = await parts.scenario.create({ name: "Used", instructions: "", evaluations: BOOKED });
    const simulation = await parts.simulation.create({ scenarioId: scenario.id, personalityId: personality.id });
    for (const [part, id, error] of [
        [parts.personality, personality.id, "personality_in_use"],
        [parts.scenario, scenario.id, "scenario_in_use"],
    ]) {
        same((await refused(() => part.remove({ id }), 409, [simulation.id])).error, error, "error");
    }
    await parts.simulation.remove({ id: simulation.id });
    await parts.personality.remove({ id: personality.id });
    await parts.scenario.remove({ id: scenario.id });
});

check("a run above the spending cap is refused", async () => {
    const [known, [org]] = await http("GET", "/org");
    same(known, 200, `the organization: ${JSON.stringify(org)}`);
    const [status, capped] = await http("PATCH", `/org/${org.id}`, { billingLimit: 0 });
    same([status, capped.billingLimit], [200, 0], "the cap is set");
    try {
        const body = await refused(() => start([inline()]), 402, [], Vapi.PaymentRequiredError);
        same(body.reason, "billing_limit", "why");
        same((await refused(() => play(GREETS), 402)).reason, "billing_limit", "why an eval is not run");
    } finally {
        await http("PATCH", `/org/${org.id}`, { billingLimit: null });
    }
});

check("what is outside of Ringback is refused cleanly", async () => {
    for (const name of OUTSIDE) {
        const [part, method] = name.split(".");
        holds(methods(client[part]).includes(method), `${name} is no longer there: take it from the list`);
        try {
            await client[part][method]({ url: "https://sound.example.com/a.mp3" });
        } catch (error) {
            holds([404, 405].includes(error.statusCode), `${name}: ${error.statusCode}`);
            continue;
        }
        throw new Error(`${name} is served now: write a check for it and take it from the list`);
    }
});

check("every method was called with all the fields of its request", () => {
    const lacking = record.missing(Object.fromEntries(CLIENTS.map((name) => [name, client[name]])), OUTSIDE);
    holds(lacking.length === 0, `no check calls ${lacking.join(", ")}`);
});

process.exitCode = (await runAll()) === 0 ? 0 : 1;
