"""What the checks of a Python client need: a list of them, a record of what was called with what, and comparisons that say
what they found."""

import inspect
import json
import os
import time
import traceback
import urllib.error
import urllib.request
import warnings

URL = os.environ["RINGBACK_URL"]
KEY = os.environ["RINGBACK_API_KEY"]
STAND_IN = os.environ["STAND_IN_URL"]
# Without the proxy of this machine, which has no way to its loopback interface.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# An id that nothing has.
NOBODY = "0193e6a4-0000-7000-8000-000000000000"

ALL = []


def check(function):
    """Adds a check: a function that raises if something is wrong. They run in the order in which they are written."""
    ALL.append(function)
    return function


def run_all():
    """Runs all checks, each whatever became of the others, and prints what came of each and the closing line."""
    failed = 0
    # The client's types are not what comes in every place; that is not what is looked at here.
    warnings.simplefilter("ignore", UserWarning)
    for function in ALL:
        name = function.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            function()
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)
            lines = [f"{step.name}:{step.lineno}" for step in where if os.path.dirname(__file__) in step.filename]
            print(f"FAILED  {name}: {type(error).__name__}: {error}  [{' > '.join(lines)}]")
        else:
            print(f"ok      {name} ({time.monotonic() - began:.1f} s)")
    print(f"{len(ALL) - failed} passed, {failed} failed")
    return failed


def http(method, path, body=None, base=URL):
    """A request that no client of Vapi makes: Ringback's own API, and the stand-in. Gives status and JSON body."""
    request = urllib.request.Request(base + path, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {KEY}")
    request.add_header("content-type", "application/json")
    try:
        with LOCAL.open(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.loads(refusal.read())


def until(what, ask, within=60):
    """Asks until the answer is neither None nor False."""
    end = time.monotonic() + within
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {within} s for {what}")
        time.sleep(0.05)


def same(found, wanted, what):
    """Both are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: {shortened(found)} instead of {shortened(wanted)}")


def holds(fact, what):
    """The fact holds."""
    if not fact:
        raise AssertionError(what)


def contains(found, wanted, what):
    """`found` has all that `wanted` has; it may have more fields. Fields that are None in `wanted` say nothing."""
    if isinstance(wanted, dict):
        holds(isinstance(found, dict), f"{what}: {shortened(found)} is no object")
        for key, value in wanted.items():
            if value is not None:
                holds(key in found, f"{what}.{key} is missing in {shortened(found)}")
                contains(found[key], value, f"{what}.{key}")
    elif isinstance(wanted, list):
        holds(isinstance(found, list), f"{what}: {shortened(found)} is no list")
        same(len(found), len(wanted), f"the length of {what}")
        for place, value in enumerate(wanted):
            contains(found[place], value, f"{what}.{place}")
    else:
        same(found, wanted, what)


def shortened(value):
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}..."


class Record:
    """Which parameters each method of a client was given in calls that succeeded."""

    def __init__(self):
        self.seen = {}

    def wrap(self, name, client):
        """The client `name`, with its calls written down."""
        return Recorded(self, name, client)

    def missing(self, clients, outside):
        """What nobody called: methods, and parameters of those that were called. `outside` are methods without a check."""
        lacking = []
        for name, client in clients.items():
            for method, function in methods(client):
                if (name, method) in outside:
                    continue
                given = self.seen.get((name, method))
                if given is None:
                    lacking.append(f"{name}.{method}")
                    continue
                known = set(inspect.signature(function).parameters) - {"request_options"}
                lacking.extend(f"{name}.{method}({parameter})" for parameter in sorted(known - given))
        return lacking


def methods(client):
    """The public methods of a client."""
    return [(name, method) for name, method in inspect.getmembers(client, inspect.ismethod) if not name.startswith("_")]


class Recorded:
    """A client whose calls are written down, and are not retried: a retry would hide a refusal."""

    def __init__(self, record, name, client):
        self._record = record
        self._name = name
        self._client = client

    def __getattr__(self, method):
        function = getattr(self._client, method)
        if inspect.iscoroutinefunction(function):

            async def call_async(*args, **kwargs):
                answer = await function(*args, **without_retries(kwargs))
                self._note(method, function, args, kwargs)
                return answer

            return call_async

        def call(*args, **kwargs):
            answer = function(*args, **without_retries(kwargs))
            self._note(method, function, args, kwargs)
            return answer

        return call

    def _note(self, method, function, args, kwargs):
        given = set(inspect.signature(function).bind(*args, **kwargs).arguments)
        self._record.seen.setdefault((self._name, method), set()).update(given)


def without_retries(kwargs):
    return {**kwargs, "request_options": {"max_retries": 0, **kwargs.get("request_options", {})}}
