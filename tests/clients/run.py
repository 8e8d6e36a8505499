"""Runs a client against a real `ringback serve`: starts the stand-in and the server on free ports of the loopback interface
and in a folder of their own, runs the client, and stops everything.

    python3 tests/clients/run.py [--program PATH] [--within SECONDS] [--exit-code] -- COMMAND...

The command gets RINGBACK_URL, RINGBACK_API_KEY and STAND_IN_URL in its environment; `{url}` and `{key}` in its arguments
stand for the first two. It has to end its output with a line `N passed, N failed`, which is repeated as the last line here.
The exit code is 0 only if it says so, something passed, and nothing failed. With `--exit-code` no such line is expected: the
command's own exit code decides.
"""

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from stand_in import StandIn

CLOSING = re.compile(r"(\d+) passed, (\d+) failed\n?")
# Names of settings that are this machine's and not the test's.
FOREIGN = ("RINGBACK_", "OPENAI_", "AWS_")


class Server:
    """`ringback serve` on a free port."""

    def __init__(self, program, folder, models, key):
        self.log = folder / "server.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "serve", "--listen", "127.0.0.1:0", "--allow-private-targets", "--data-dir", folder / "data"],
                env={
                    **own,
                    "RINGBACK_API_KEY": key,
                    "OPENAI_BASE_URL": models + "/v1",
                    "OPENAI_API_KEY": "sk-stand-in",
                    "RUST_LOG": "warn,dynoxide=error",
                    "NO_COLOR": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.url = self.until(self.listening)
        self.until(self.healthy)

    def until(self, ask, within=60):
        end = time.monotonic() + within
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit(f"the server ended by itself:\n{self.tail()}")
            answer = ask()
            if answer:
                return answer
            time.sleep(0.05)
        sys.exit(f"the server is not ready after {within} s:\n{self.tail()}")

    def listening(self):
        for line in self.log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith("listening on ") and line.endswith("\n"):
                return line.removeprefix("listening on ").strip()
        return None

    def healthy(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def tail(self, lines=30):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(command, environment, within):
    """Runs the client and passes its output on. Gives its exit code and what its last closing line counted, if it had one."""
    client = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    expired = threading.Event()

    def expire():
        expired.set()
        client.kill()

    timer = threading.Timer(within, expire)
    timer.start()
    counted = None
    try:
        for line in client.stdout:
            closing = CLOSING.fullmatch(line)
            if closing:
                counted = tuple(map(int, closing.groups()))
                continue
            print(line, end="", flush=True)
        code = client.wait()
    finally:
        timer.cancel()
    if expired.is_set():
        print(f"the client was stopped: it took more than {within} s", flush=True)
        return 1, counted
    return code, counted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/debug/ringback", help="the `ringback` program")
    parser.add_argument("--within", type=float, default=300, help="how long the client may take, in seconds")
    parser.add_argument("--exit-code", action="store_true", help="the client's exit code decides, not its closing line")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    program = Path(arguments.program)
    if not program.exists():
        sys.exit(f"there is no {program}; build it with: cargo build --bin ringback, or name it with --program")
    key = "rb_" + secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="ringback-clients-") as folder:
        stand_in = StandIn()
        server = None
        try:
            server = Server(program.resolve(), Path(folder), stand_in.url, key)
            words = [word.replace("{url}", server.url).replace("{key}", key) for word in arguments.command]
            environment = {
                **os.environ,
                "RINGBACK_URL": server.url,
                "RINGBACK_API_KEY": key,
                "STAND_IN_URL": stand_in.url,
                # A proxy of this machine has no way to its loopback interface.
                "NO_PROXY": "127.0.0.1",
                "no_proxy": "127.0.0.1",
                "PYTHONUNBUFFERED": "1",
            }
            code, counted = run(words, environment, arguments.within)
            died = server.process.poll() is not None
            if died:
                print(f"the server ended by itself, with exit code {server.process.returncode}")
            if code != 0 or died:
                tail = server.tail()
                print(f"--- the server's log\n{tail}" if tail else "--- the server's log is empty", flush=True)
        finally:
            if server:
                server.stop()
            stand_in.stop()
    if arguments.exit_code:
        sys.exit(code or int(died))
    passed, failed = counted or (0, 0)
    if counted is None or (code != 0 and failed == 0):
        print("the client broke off before it was done")
        failed += 1
    failed += int(died)
    print(f"{passed} passed, {failed} failed")
    sys.exit(0 if passed > 0 and failed == 0 else 1)


if __name__ == "__main__":
    main()
