// What the checks of a Node client need: a list of them, a record of what was called with what, and comparisons that say what
// they found. The Node counterpart of checks.py.

import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

export const URL_ = process.env.RINGBACK_URL;
export const KEY = process.env.RINGBACK_API_KEY;
export const STAND_IN = process.env.STAND_IN_URL;
// An id that nothing has.
export const NOBODY = "0193e6a4-0000-7000-8000-000000000000";

const all = [];

/** Adds a check: a function that throws if something is wrong. They run in the order in which they are written. */
export function check(name, run) {
    all.push({ name, run });
}

/** Runs all checks, each whatever became of the others, and prints what came of each and the closing line. */
export async function runAll() {
    let failed = 0;
    for (const { name, run } of all) {
        const began = Date.now();
        try {
            await run();
            console.log(`ok      ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
        } catch (error) {
            failed += 1;
            const steps = String(error.stack).match(/\w+\.mjs:\d+/g) ?? [];
            console.log(`FAILED  ${name}: ${error.name}: ${error.message.replaceAll("\n", " ")}  [${steps.join(" < ")}]`);
        }
    }
    console.log(`${all.length - failed} passed, ${failed} failed`);
    return failed;
}

/** A request that no client of Vapi makes: Ringback's own API, and the stand-in. */
export async function http(method, where, body, base = URL_) {
    const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
    const answer = await fetch(base + where, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    return [answer.status, await answer.json()];
}

export function pause(milliseconds) {
    return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Asks until the answer is something. */
export async function until(what, ask, within = 60_000) {
    const end = Date.now() + within;
    for (;;) {
        const answer = await ask();
        if (answer !== undefined && answer !== null && answer !== false) {
            return answer;
        }
        if (Date.now() > end) {
            throw new Error(`waited ${within} ms for ${what}`);
        }
        await pause(50);
    }
}

/** The fact holds. */
export function holds(fact, what) {
    if (!fact) {
        throw new Error(what);
    }
}

/** Both are equal, whatever the order of their fields. */
export function same(found, wanted, what) {
    if (ordered(found) !== ordered(wanted)) {
        throw new Error(`${what}: ${shortened(found)} instead of ${shortened(wanted)}`);
    }
}

function ordered(value) {
    const sorted = (_, inner) =>
        inner && typeof inner === "object" && !Array.isArray(inner)
            ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
            : inner;
    return JSON.stringify(value, sorted);
}

/** `found` has all that `wanted` has; it may have more fields. */
export function contains(found, wanted, what) {
    if (Array.isArray(wanted)) {
        holds(Array.isArray(found), `${what}: ${shortened(found)} is no list`);
        same(found.length, wanted.length, `the length of ${what}`);
        wanted.forEach((value, place) => contains(found[place], value, `${what}.${place}`));
    } else if (wanted && typeof wanted === "object") {
        holds(found && typeof found === "object", `${what}: ${shortened(found)} is no object`);
        for (const [key, value] of Object.entries(wanted)) {
            if (value !== undefined && value !== null) {
                holds(key in found, `${what}.${key} is missing in ${shortened(found)}`);
                contains(found[key], value, `${what}.${key}`);
            }
        }
    } else {
        same(found, wanted, what);
    }
}

function shortened(value) {
    const text = JSON.stringify(value) ?? "undefined";
    return text.length <= 500 ? text : `${text.slice(0, 500)}...`;
}

/** The ids of a list, in order; of a page, those of its results. */
export function ids(values) {
    return (values.results ?? values).map((value) => value.id);
}

/** Which fields each method of a client was given in requests that succeeded. */
export class Record {
    seen = new Map();

    /** The client `name`, with its calls written down. */
    wrap(name, client) {
        return new Proxy(client, {
            get: (target, method) => {
                const value = target[method];
                if (typeof value !== "function") {
                    return value;
                }
                return async (request, options) => {
                    const answer = await value.call(target, request, options);
                    const fields = this.seen.get(`${name}.${method}`) ?? new Set();
                    Object.keys(request ?? {}).forEach((field) => fields.add(field));
                    this.seen.set(`${name}.${method}`, fields);
                    return answer;
                };
            },
        });
    }

    /** What nobody called: methods, and fields of the requests of those that were. `outside` are methods without a check. */
    missing(clients, outside) {
        const lacking = [];
        for (const [name, client] of Object.entries(clients)) {
            for (const method of methods(client)) {
                const given = this.seen.get(`${name}.${method}`);
                if (outside.has(`${name}.${method}`)) {
                    continue;
                }
                if (!given) {
                    lacking.push(`${name}.${method}`);
                    continue;
                }
                for (const field of fieldsOf(name, method)) {
                    if (!given.has(field)) {
                        lacking.push(`${name}.${method}({${field}})`);
                    }
                }
            }
        }
        return lacking;
    }
}

/** The public methods of a client. */
export function methods(client) {
    const names = Object.getOwnPropertyNames(Object.getPrototypeOf(client));
    return names.filter((name) => name !== "constructor" && !name.startsWith("_"));
}

const declarations = path.join(
    path.dirname(createRequire(import.meta.url).resolve("@vapi-ai/server-sdk")),
    "api",
);

/** The fields of a method's request, from the client's declarations: at run time nothing knows them. */
function fieldsOf(name, method) {
    const folder = path.join(declarations, "resources", name, "client");
    const client = readFileSync(path.join(folder, "Client.d.ts"), "utf8");
    const signature = client.match(new RegExp(`^    ${method}\\(request\\??: Vapi\\.(\\w+),`, "m"));
    if (!signature) {
        holds(new RegExp(`^    ${method}\\(requestOptions\\?:`, "m").test(client), `no declaration of ${name}.${method}`);
        return [];
    }
    return fieldsOfType(signature[1], path.join(folder, "requests"));
}

function fieldsOfType(type, requests) {
    const folder = readdirSync(requests).includes(`${type}.d.ts`) ? requests : path.join(declarations, "types");
    const text = readFileSync(path.join(folder, `${type}.d.ts`), "utf8");
    const body = text.match(new RegExp(`^export interface ${type}[^{]*\\{\\n([\\s\\S]*?)^\\}`, "m"));
    holds(body, `no interface ${type} in the client's declarations`);
    const fields = [...body[1].matchAll(/^ {4}"?([\w:]+)"?\??:/gm)].map((match) => match[1]);
    holds(fields.length > 0, `no fields in ${type}`);
    return fields;
}
