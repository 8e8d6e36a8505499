// Asks Ringback's verifier of webhooks with deliveries that two libraries for Node signed, that of Standard Webhooks and
// GitHub's: the Node counterpart of signatures.py, which says more. Run it with run.py, or with `--offline` to look only at the
// libraries.

import { createHmac, randomBytes, randomInt, randomUUID } from "node:crypto";
import http from "node:http";

import { sign, verify } from "@octokit/webhooks-methods";
import { Webhook } from "standardwebhooks";

import { URL_, check, holds, http as ask, runAll, same, until } from "./checks.mjs";

const OFFLINE = process.argv.includes("--offline");
const VECTORS = 20;
// The window of Standard Webhooks, and how far from its edge a time is that should be within it, or not, in seconds.
const WINDOW = 300;
const MARGIN = 25;

/** What is 32 bytes or of some other length, as the text that the libraries take. */
const whsec = () => `whsec_${randomBytes(randomInt(24, 65)).toString("base64")}`;
const token = () => randomBytes(32).toString("base64url");

const now = () => Date.now() / 1000;

const SIGNS = [..."aZ09 .,:;=|&+%/?#\"'\\{}\n\täßéЖא中あ한\u2028\u200d\ufeff📞👩"];

/** A call's end by the generic contract, written in one of the ways that JSON can be. */
function event() {
    const words = Array.from({ length: randomInt(1, 30) }, () => SIGNS[randomInt(SIGNS.length)]).join("");
    const said = { type: "call.ended", callId: randomUUID(), endedReason: "hung-up", transcript: `User: ${words}` };
    return JSON.stringify(said, undefined, randomInt(3)) + ["", "\n", " "][randomInt(3)];
}

const hmac = (key, text) => createHmac("sha256", key).update(text);

/** The two schemes: a key, the headers of a body by the library and without it, and whether the library believes them. */
const CASES = [
    {
        scheme: "standard-webhooks",
        key: whsec,
        timed: true,
        signed: async (key, body, at) => {
            const id = `msg_${randomBytes(18).toString("hex")}`;
            const signature = new Webhook(key).sign(id, new Date(at * 1000), body);
            return { "webhook-id": id, "webhook-timestamp": `${Math.floor(at)}`, "webhook-signature": signature };
        },
        own: (key, body, headers) => {
            const text = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`;
            const code = hmac(Buffer.from(key.slice("whsec_".length), "base64"), text).digest("base64");
            return { ...headers, "webhook-signature": `v1,${code}` };
        },
        believes: async (key, body, headers) => {
            try {
                new Webhook(key).verify(body, headers, { jsonParse: false });
                return true;
            } catch {
                return false;
            }
        },
    },
    {
        scheme: "github",
        key: token,
        timed: false,
        signed: async (key, body) => ({ "x-hub-signature-256": await sign(key, body) }),
        own: (key, body) => ({ "x-hub-signature-256": `sha256=${hmac(key, body).digest("hex")}` }),
        believes: (key, body, headers) => verify(key, body, headers["x-hub-signature-256"]),
    },
];

/** A random time that is within the window. */
const someTime = () => now() + randomInt(MARGIN - WINDOW, WINDOW - MARGIN);

for (const { scheme, key: newKey, signed, own, believes } of CASES) {
    check(`${scheme}: signed as its library does`, async () => {
        for (let turn = 0; turn < VECTORS; turn += 1) {
            const [key, body] = [newKey(), event()];
            const headers = await signed(key, body, someTime());
            same(own(key, body, headers), headers, "what the library signs");
            holds(await believes(key, body, headers), "the library believes itself");
            holds(!(await believes(newKey(), body, headers)), "the library believes no other key");
        }
    });
}

check("known vectors come out", async () => {
    const at = new Date(1614265330 * 1000);
    const known = new Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    const signature = known.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}');
    same(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "that of Standard Webhooks");
    same(
        await sign("It's a Secret to Everybody", "Hello, World!"),
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "that of GitHub",
    );
});

const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const counts = {};

/** Sends a delivery as it is: the bytes of a header's value are the characters of its text. Gives the status and the answer. */
function post(url, body, headers) {
    return new Promise((resolve, reject) => {
        const content = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
        const request = http.request(url, { agent, method: "POST", headers: { ...content, ...headers } }, (answer) => {
            const pieces = [];
            answer.on("data", (piece) => pieces.push(piece));
            answer.on("error", reject);
            answer.on("end", () => {
                counts[answer.statusCode] = (counts[answer.statusCode] ?? 0) + 1;
                resolve([answer.statusCode, Buffer.concat(pieces).toString()]);
            });
        });
        request.on("error", reject);
        request.end(body);
    });
}

async function answers(status, url, body, headers, what) {
    const [found, text] = await post(url, body, headers);
    holds(found === status, `${what}: ${found} ${text} for ${JSON.stringify({ body: body.toString(), headers })}`);
}

const made = new Map();

/** The scheme's endpoint and the key that its webhooks are signed with. */
async function endpoint({ scheme, key: newKey }) {
    if (!made.has(scheme)) {
        const secret = newKey();
        const wanted = { provider: "generic", url: "http://127.0.0.1:9/calls", name: `${scheme} in Node`, secret };
        const [status, answer] = await ask("POST", "/endpoint", { ...wanted, signature: { scheme } });
        same(status, 201, `an endpoint: ${JSON.stringify(answer)}`);
        made.set(scheme, { id: answer.id, url: answer.webhooks.callEnded, key: secret, secret: answer.secrets[0].id });
    }
    return made.get(scheme);
}

/** All that is one bit away. */
function flips(bytes) {
    const all = [];
    for (let place = 0; place < bytes.length; place += 1) {
        for (let bit = 0; bit < 8; bit += 1) {
            const changed = Buffer.from(bytes);
            changed[place] ^= 1 << bit;
            all.push([`byte ${place}, bit ${bit}`, changed]);
        }
    }
    return all;
}

/** Whether a header can have this value and loses nothing of it on the way. */
function sendable(bytes) {
    const visible = bytes.every((byte) => byte === 9 || (byte >= 32 && byte !== 127));
    return visible && ![9, 32].includes(bytes[0]) && ![9, 32].includes(bytes[bytes.length - 1]);
}

for (const one of OFFLINE ? [] : CASES) {
    const { scheme, key: newKey, signed, timed } = one;

    check(`${scheme}: fresh deliveries are accepted`, async () => {
        const { url, key } = await endpoint(one);
        for (let turn = 0; turn < VECTORS; turn += 1) {
            const body = event();
            await answers(200, url, body, await signed(key, body, someTime()), "a fresh one");
        }
    });

    check(`${scheme}: every change of a bit is refused`, async () => {
        const { url, key } = await endpoint(one);
        const body = event();
        const headers = await signed(key, body, now());
        await answers(200, url, body, headers, "the one that is changed next");
        const changed = flips(Buffer.from(body)).map(([where, other]) => [`body, ${where}`, other, headers]);
        let skipped = 0;
        for (const [name, value] of Object.entries(headers)) {
            for (const [where, other] of flips(Buffer.from(value))) {
                if (sendable(other)) {
                    changed.push([`${name}, ${where}`, body, { ...headers, [name]: other.toString("latin1") }]);
                } else {
                    skipped += 1;
                }
            }
        }
        const found = await Promise.all(
            changed.map(async ([where, ...delivery]) => [where, ...(await post(url, ...delivery))]),
        );
        const wrong = found.filter(([, status]) => status !== 401).map((entry) => entry.join(" "));
        await answers(200, url, body, headers, "the one that was changed is still right");
        const example = `${wrong.slice(0, 5).join("; ")} for ${JSON.stringify({ body, headers })}`;
        holds(wrong.length === 0, `${wrong.length} of ${changed.length} changes were not refused: ${example}`);
        console.log(`        ${scheme}: ${changed.length} changes refused; not sent: ${skipped} are no header's value`);
    });

    check(`${scheme}: nothing else is believed`, async () => {
        const { url, key } = await endpoint(one);
        const body = event();
        const right = await signed(key, body, now());
        await answers(401, url, body, await signed(newKey(), body, now()), "another key");
        for (const name of Object.keys(right)) {
            const { [name]: _, ...rest } = right;
            await answers(401, url, body, rest, `without ${name}`);
        }
        if (timed) {
            for (const [offset, status] of [
                [MARGIN - WINDOW, 200],
                [WINDOW - MARGIN, 200],
                [-MARGIN - WINDOW, 401],
                [WINDOW + MARGIN, 401],
            ]) {
                await answers(status, url, body, await signed(key, body, now() + offset), `${offset} s from now`);
            }
        }
        await answers(200, url, body, right, "with all of them");
    });

    check(`${scheme}: a second secret counts as well`, async () => {
        const { id, url, key, secret } = await endpoint(one);
        const second = newKey();
        const body = event();
        const [status, answer] = await ask("POST", `/endpoint/${id}/secret`, { secret: second });
        same(status, 201, `a second secret: ${JSON.stringify(answer)}`);
        const counted = async () => (await post(url, body, await signed(second, body, now())))[0] === 200;
        await until("the second secret to count", counted, 15_000);
        await answers(200, url, body, await signed(key, body, now()), "the first");
        same((await ask("DELETE", `/endpoint/${id}/secret/${secret}`))[0], 200, "the first is deleted");
        await answers(200, url, body, await signed(second, body, now()), "the second");
    });
}

if (!OFFLINE) {
    check("nothing was answered but these", () => {
        console.log(`        answers: ${JSON.stringify(counts)}`);
        same(Object.keys(counts).sort(), ["200", "401"], "the statuses");
        holds(made.size === CASES.length && URL_, "at the server");
    });
}

process.exitCode = (await runAll()) === 0 ? 0 : 1;
agent.destroy();
