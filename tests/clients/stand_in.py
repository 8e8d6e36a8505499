"""Stands in for what Ringback talks to, on one loopback port and with nothing but the standard library: an OpenAI-compatible
model server, a voice provider that speaks infra/PROVIDER.md, and a receiver of hooks and of calls of tools.

What the models say follows from the requests alone. How one behaves is written into its prompt as JSON between `<<` and
`>>`, as in tests/it/stand_in.rs:

  the tester   {"turns": 2}        hangs up after so many turns (2 unless it says)
               {"hang": true}      does not answer until `POST /release`
  the target   {"say": "..."}      always says that
               {"hang": true}      does not answer until `POST /release`
               {"status": 400}     is answered by its server with that status
               {"tool": "name"}    calls that tool first, and then says what the tool said
               {"handoff": true}   calls its first tool for handing over, once
               {"place": "..."}    where its answers come from
  the judge    a description `<<value>>` gives the value of an output
               {"say": "pass"}     the judge of a checkpoint always says that
               {"passIf": "..."}   it passes what it is told if that is in it, and fails everything else; for a judge
                                   without a prompt of its own a header `x-pass-if` says so

The last prompt that says anything counts, so that a system message in the middle of an eval changes what the target does.

Everything else that is asked for with a JSON schema gets an instance of the schema: of an enumeration the next value each
time, a list of three, and texts with a number that counts such requests, so that what was made anew can be told from what was
kept.
"""

import base64
import hashlib
import hmac
import itertools
import json
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

# Without the proxy of this machine, which has no way to its loopback interface.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def text_of(message):
    """What a message says; the texts of its parts where it has parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def directive(text):
    """The JSON between `<<` and `>>`, or None."""
    _, opened, rest = text.partition("<<")
    inner, closed, _ = rest.partition(">>")
    if not (opened and closed):
        return None
    try:
        return json.loads(inner)
    except ValueError:
        return None


def tool_names(request):
    return [tool.get("function", {}).get("name", "") for tool in request.get("tools") or []]


class Filler:
    """Makes an instance of a JSON schema."""

    def __init__(self, root, number):
        self.root = root
        self.number = number

    def resolved(self, schema):
        while "$ref" in schema:
            found = self.root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        for word in ("anyOf", "oneOf"):
            for choice in schema.get(word, []):
                if choice.get("type") != "null":
                    return self.resolved(choice)
        for part in schema.get("allOf", []):
            schema = {**self.resolved(part), **{key: value for key, value in schema.items() if key != "allOf"}}
        return schema

    def fill(self, schema, name="value", turn=0):
        schema = self.resolved(schema)
        if "const" in schema:
            return schema["const"]
        wanted = directive(schema.get("description", ""))
        if wanted is not None:
            return wanted
        values = [value for value in schema.get("enum", []) if value is not None]
        if values:
            return values[turn % len(values)]
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object":
            return {key: self.fill(value, key, turn) for key, value in schema.get("properties", {}).items()}
        if kind == "array":
            count = min(max(3, schema.get("minItems", 0)), schema.get("maxItems", 3))
            return [self.fill(schema.get("items", {}), name, index) for index in range(count)]
        if kind == "boolean":
            return True
        if kind in ("integer", "number"):
            return max(turn + 1, schema.get("minimum", 0))
        if kind == "null":
            return None
        text = f"{name} {turn + 1} of answer {self.number}"
        return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", 1000)]


class Models:
    """The tester, the target and the judge."""

    def __init__(self):
        self.answers = itertools.count(1)
        self.released = threading.Event()

    def reply(self, path, request, pass_if=None):
        """The message that answers a chat completion. `pass_if` is what a judge is to look for, unless its prompt says."""
        messages = request.get("messages") or []
        wanted = prompted(messages)
        if request.get("response_format", {}).get("type") == "json_schema":
            return {"role": "assistant", "content": json.dumps(self.instance(request, messages))}
        pass_if = wanted.get("passIf", pass_if)
        if pass_if is not None:
            return {"role": "assistant", "content": verdict(messages, pass_if)}
        if wanted.get("hang"):
            self.released.wait(600)
        if not path.startswith("/target") and "endCall" in tool_names(request):
            return self.tester(messages, wanted)
        return self.target(request, messages, wanted)

    def instance(self, request, messages):
        schema = request["response_format"]["json_schema"]["schema"]
        filler = Filler(schema, next(self.answers))
        lines = [line for message in messages for line in text_of(message).splitlines()]
        values = {}
        for key, property_ in schema.get("properties", {}).items():
            value = described(lines, key)
            values[key] = filler.fill(property_, key) if value is None else value
        return values

    def tester(self, messages, wanted):
        said = sum(message.get("role") == "assistant" for message in messages)
        if said >= wanted.get("turns", 2):
            return calling("endCall", {"reason": "done"}, "Thank you, goodbye.")
        return {"role": "assistant", "content": f"Point {said + 1}, please."}

    def target(self, request, messages, wanted):
        if "say" in wanted:
            return {"role": "assistant", "content": wanted["say"]}
        used = [message for message in messages if message.get("role") == "tool"]
        if wanted.get("tool") and not used:
            return calling(wanted["tool"], {"day": "Monday"})
        if wanted.get("handoff"):
            for tool in request.get("tools") or []:
                function = tool.get("function", {})
                if any(word in function.get("name", "").lower() for word in ("handoff", "transfer")):
                    return calling(function["name"], Filler({}, 0).fill(function.get("parameters", {})))
        turn = sum(message.get("role") == "user" for message in messages)
        answer = f"Answer {turn} from {wanted.get('place', 'nowhere')}."
        if messages and messages[-1].get("role") == "tool":
            answer += f" The tool says {text_of(messages[-1])}."
        return {"role": "assistant", "content": answer}


def described(lines, key):
    """What the description of the output that a prompt calls `key` wants as its value."""
    for place, line in enumerate(lines):
        if line.startswith(f"{key}: "):
            after = lines[place + 1] if place + 1 < len(lines) else ""
            return directive(after)
    if not key.startswith("output_"):
        return None
    # An output with a prompt of its own: there it is somewhere in the prompt.
    return next((found for found in map(directive, lines) if found is not None), None)


def prompted(messages):
    """What the last prompt that has a directive wants."""
    wanted = {}
    for message in messages:
        if message.get("role") in ("system", "developer"):
            found = directive(text_of(message))
            wanted = found if isinstance(found, dict) else wanted
    return wanted


def verdict(messages, pass_if):
    """A judge's word on what it is told, which is everything but its directive."""
    texts = [text_of(message) for message in messages]
    told = "".join(text.partition(">>")[2] if "<<" in text else text for text in texts)
    return "pass" if pass_if in told else "fail"


def calling(name, arguments, content=None):
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


class Calls:
    """A voice provider. A call is over at once, with a transcript and latencies, unless its tester hangs: then it stays up
    until somebody ends it. Its webhooks are signed with the secret that `POST /provider-secret` brought."""

    STARTED = "2026-01-01T00:00:00.000Z"
    ENDED = "2026-01-01T00:00:09.000Z"

    def __init__(self):
        self.lock = threading.Lock()
        self.calls = {}
        self.keys = {}
        self.secret = b""

    def place(self, key, order):
        """Places a call, once for each key."""
        with self.lock:
            known = self.keys.get(key)
            if known:
                return {"id": known}
            id_ = f"call-{len(self.calls) + 1}"
            self.keys[key] = id_
            call = {"id": id_, "correlation": order["correlation"], "status": "in-progress", "startedAt": self.STARTED}
            self.calls[id_] = call
        events = [(order["webhooks"]["callStarted"], {"type": "call.started", "startedAt": self.STARTED})]
        prompts = [text_of(message) for message in order["tester"].get("model", {}).get("messages", [])]
        if not any((directive(text) or {}).get("hang") for text in prompts):
            report = {"endedAt": self.ENDED, "endedReason": "customer-ended-call", **self.conversation()}
            call.update(report, status="ended")
            events.append((order["webhooks"]["callEnded"], {"type": "call.ended", "startedAt": self.STARTED, **report}))
        else:
            call["webhook"] = order["webhooks"]["callEnded"]
        threading.Thread(target=self.tell, args=(call, events), daemon=True).start()
        return {"id": id_}

    @staticmethod
    def conversation():
        begin = 1767225600000
        said = [("user", "A slot, please."), ("bot", "Answer 1 from the phone."), ("user", "Thank you, goodbye.")]
        messages = [
            {
                **{"role": role, "message": text, "time": begin + 3000 * place, "endTime": begin + 3000 * place + 1000},
                "secondsFromStart": 3.0 * place,
            }
            for place, (role, text) in enumerate(said)
        ]
        return {
            "messages": messages,
            "turnLatencies": [{"turn": 1200, "model": 600, "voice": 300, "transcriber": 150, "endpointing": 100}],
            "recordingUrl": "https://calls.example.com/1.wav",
            "cost": 0.05,
        }

    def tell(self, call, events):
        for url, event in events:
            body = json.dumps({**event, "callId": call["id"], "correlation": call["correlation"]}).encode()
            id_, now = f"msg_{call['id']}_{event['type']}", str(int(time.time()))
            signed = hmac.new(self.secret, f"{id_}.{now}.".encode() + body, hashlib.sha256).digest()
            request = urllib.request.Request(url, data=body, method="POST")
            request.add_header("content-type", "application/json")
            request.add_header("webhook-id", id_)
            request.add_header("webhook-timestamp", now)
            request.add_header("webhook-signature", "v1," + base64.b64encode(signed).decode())
            try:
                with LOCAL.open(request, timeout=20):
                    pass
            except OSError as error:
                print(f"the stand-in's {event['type']} was refused: {error}", file=sys.stderr)

    def end(self, id_):
        """Ends a call."""
        with self.lock:
            call = self.calls.get(id_)
            if not call or call["status"] == "ended":
                return call
            call.update(status="ended", endedAt=self.ENDED, endedReason="hangup")
        event = {"type": "call.ended", "startedAt": self.STARTED, "endedAt": self.ENDED, "endedReason": "hangup"}
        threading.Thread(target=self.tell, args=(call, [(call["webhook"], event)]), daemon=True).start()
        return call

    def get(self, id_):
        with self.lock:
            return self.calls.get(id_)

    def found(self, correlation):
        with self.lock:
            return [call for call in self.calls.values() if call["correlation"] == correlation]


class StandIn:
    """The server. `url` is where it listens; what came to `/hooks/...` and `/tools/...` is in `GET /hooks`."""

    def __init__(self):
        self.models = Models()
        self.calls = Calls()
        self.hooks = []
        handler = type("Handler", (Handler,), {"stand_in": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.models.released.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is written in several pieces; without this they wait for each other.
    disable_nagle_algorithm = True
    stand_in = None

    def do_GET(self):
        url = urlsplit(self.path)
        calls = self.stand_in.calls
        if url.path == "/hooks":
            return self.answer(200, self.stand_in.hooks)
        if url.path == "/provider":
            correlation = parse_qs(url.query).get("correlation", [""])[0]
            return self.answer(200, {"results": calls.found(correlation)})
        if url.path.startswith("/provider/"):
            call = calls.get(url.path.rsplit("/", 1)[1])
            return self.answer(200, call) if call else self.answer(404, {"message": "no such call"})
        return self.answer(404, {"message": "not here"})

    def do_POST(self):
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if path == "/release":
            self.stand_in.models.released.set()
            return self.answer(200, {})
        if path.endswith("/chat/completions"):
            request = json.loads(body)
            status = prompted(request.get("messages") or []).get("status")
            if status:
                return self.answer(status, {"error": {"message": "the model is not to be had"}})
            message = self.stand_in.models.reply(path, request, self.headers.get("x-pass-if"))
            reason = "tool_calls" if message.get("tool_calls") else "stop"
            choice = {"index": 0, "message": message, "finish_reason": reason}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            completion = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "stand-in"}
            return self.answer(200, {**completion, "choices": [choice], "usage": usage})
        if path.startswith(("/hooks/", "/tools/")):
            headers = {name.lower(): value for name, value in self.headers.items()}
            sent = json.loads(body)
            self.stand_in.hooks.append({"path": path, "headers": headers, "body": sent})
            if path.startswith("/hooks/"):
                return self.answer(200, {})
            results = [
                {"toolCallId": call["id"], "result": f"{call['arguments'].get('day')} at ten is free"}
                for call in sent["message"]["toolCallList"]
            ]
            return self.answer(200, {"results": results})
        if path == "/provider-secret":
            secret = json.loads(body)["secret"]
            self.stand_in.calls.secret = base64.b64decode(secret.removeprefix("whsec_") + "==")
            return self.answer(200, {})
        if path == "/provider":
            order = json.loads(body)
            return self.answer(201, self.stand_in.calls.place(self.headers.get("idempotency-key"), order))
        if path.startswith("/provider/") and path.endswith("/end"):
            call = self.stand_in.calls.end(path.split("/")[2])
            return self.answer(200, call) if call else self.answer(404, {"message": "no such call"})
        return self.answer(404, {"message": "not here"})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            # Whoever asked did not wait: a canceled item hangs up on its model.
            self.close_connection = True

    def log_message(self, format, *args):
        """It says nothing: what it was asked is nobody's business but the client's."""
