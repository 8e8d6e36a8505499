"""Deploys the template with the real functions to an emulator of AWS and runs a command against it.

    python run.py --emulator VENV/bin/ministack --sam VENV/bin/sam --zips FOLDER --program target/debug/ringback -- COMMAND

The folder has an archive for each function, as `cargo lambda build --output-format zip` makes them. The command is told where
everything is by the variables that tests/it/everywhere.rs reads. Needs boto3, which the SAM CLI brings. Nothing leaves this machine.

With `--replace FOLDER` it replaces the code of all functions of the stack that is up, one after the other, and does nothing else.
"""

import argparse
import io
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile

import boto3

ROOT = pathlib.Path(__file__).resolve().parents[2]
STACK = "ringback"
REGION = "us-east-1"
# The emulator takes a key of twelve digits for the account.
ACCOUNT = "123456789012"
# What an archive may have, in bytes.
LARGEST = 4_000_000
# How many invocations of each function behind a queue may go on at once: each is a process.
INVOCATIONS = 8


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def aws_environment(endpoint):
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCOUNT,
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "SAM_CLI_TELEMETRY": "0",
    }


def start_emulator(program, port, folder):
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "LAMBDA_EXECUTOR": "local",
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_REGION": REGION,
        "TMPDIR": str(folder),
    }
    log = open(folder / "emulator.log", "wb")
    process = subprocess.Popen(
        [program],
        cwd=folder,
        env={**os.environ, **aws_environment(endpoint), **settings},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # So that the functions' processes end with it.
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=5):
                return process, endpoint
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the emulator did not start: {(folder / 'emulator.log').read_text()[-4000:]}")
            time.sleep(0.1)


def check_sizes(zips):
    """Each archive within its budget."""
    too_large = []
    for archive in sorted(zips.glob("*/bootstrap.zip")):
        size = archive.stat().st_size
        print(f"{archive.parent.name:>14} {size:>10,} bytes")
        if size > LARGEST:
            too_large.append(archive.parent.name)
    if too_large:
        sys.exit(f"larger than they may be: {', '.join(too_large)}")


def template_for(zips, folder):
    """The template with the archives in the place of the sources. Everything else is as it is deployed to AWS, but for one thing:
    the emulator compares MaximumConcurrency as a text if a parameter says it."""
    text = (ROOT / "template.yaml").read_text()
    functions = re.findall(r"CodeUri: functions/(.*)", text)
    missing = [name for name in functions if not (zips / name / "bootstrap.zip").is_file()]
    if missing:
        sys.exit(f"there is no archive of {', '.join(missing)}")
    text = re.sub(r"CodeUri: functions/(.*)", lambda found: f"CodeUri: {zips / found[1] / 'bootstrap.zip'}", text)
    text = re.sub(r"MaximumConcurrency: !Ref \w+", f"MaximumConcurrency: {INVOCATIONS}", text)
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("*.rs", "Cargo.toml"))
    path = folder / "template.yaml"
    path.write_text(text)
    return path


def deploy(sam, template, endpoint, models):
    architecture = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
    parameters = {
        "Architecture": architecture,
        "AllowPrivateTargets": "true",
        "DeletionProtection": "false",
        "ModelBaseUrl": models,
        # A claim on an item lasts as long and some seconds more: who is replaced in the middle is waited for so long.
        "ModelTimeoutSeconds": "5",
    }
    done = subprocess.run(
        [sam, "deploy", "--template-file", template, "--stack-name", STACK, "--resolve-s3", "--no-progressbar"]
        + ["--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset"]
        + ["--parameter-overrides", *(f"{name}={value}" for name, value in parameters.items())],
        cwd=template.parent,
        env={**os.environ, **aws_environment(endpoint)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"sam deploy failed:\n{done.stdout[-8000:]}")
    print(done.stdout.strip().splitlines()[-1])


def outputs(endpoint):
    cloudformation = boto3.client("cloudformation", endpoint_url=endpoint)
    [stack] = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def create_organization(program, table):
    """The first organization and its key, by the command of infra/README.md."""
    made = subprocess.run(
        [program, "org", "create", "main", "--table", table], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(made.stdout)["apiKey"]


def replace(zips):
    """Replaces the code of all functions, one after the other, as a deployment does."""
    cloudformation, functions = boto3.client("cloudformation"), boto3.client("lambda")
    replaced = 0
    for page in cloudformation.get_paginator("list_stack_resources").paginate(StackName=STACK):
        for resource in page["StackResourceSummaries"]:
            if resource["ResourceType"] != "AWS::Lambda::Function":
                continue
            name = resource["PhysicalResourceId"]
            # Another archive, or there would be nothing to replace.
            folder = re.sub(r"(?<!^)(?=[A-Z])", "-", resource["LogicalResourceId"]).lower()
            content = io.BytesIO((zips / folder / "bootstrap.zip").read_bytes())
            with zipfile.ZipFile(content, "a") as archive:
                archive.comment = uuid.uuid4().bytes
            functions.update_function_code(FunctionName=name, ZipFile=content.getvalue())
            functions.get_waiter("function_updated_v2").wait(FunctionName=name)
            replaced += 1
    if replaced == 0:
        sys.exit("the stack has no functions")
    print(f"replaced {replaced} functions")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replace", type=pathlib.Path)
    parser.add_argument("--emulator")
    parser.add_argument("--sam")
    parser.add_argument("--zips", type=pathlib.Path)
    parser.add_argument("--program")
    parser.add_argument("--within", type=int, default=1500, help="how many seconds the command may take")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.replace:
        replace(arguments.replace.resolve())
        return 0
    zips = arguments.zips.resolve()
    check_sizes(zips)
    with tempfile.TemporaryDirectory(prefix="ringback-deployed-") as made:
        folder = pathlib.Path(made)
        emulator, endpoint = start_emulator(arguments.emulator, free_port(), folder)
        try:
            os.environ.update(aws_environment(endpoint))
            models = free_port()
            deploy(arguments.sam, template_for(zips, folder), endpoint, f"http://127.0.0.1:{models}/v1")
            found = outputs(endpoint)
            api_id = re.match(r"https://([^.]+)\.", found["ApiUrl"])[1]
            api = f"{endpoint}/_aws/execute-api/{api_id}"
            told = {
                "RINGBACK_TARGET": "deployed",
                "RINGBACK_TARGET_URL": api,
                "RINGBACK_TARGET_HOOKS": api,
                "RINGBACK_API_KEY": create_organization(arguments.program, found["TableName"]),
                "RINGBACK_TARGET_QUEUE": found["RunItemsQueueUrl"],
                "RINGBACK_TARGET_DEAD_LETTERS": found["RunItemsDeadLettersUrl"],
                "RINGBACK_TARGET_REPLACE": f"{sys.executable} {__file__} --replace {zips}",
                "RINGBACK_MODELS_LISTEN": f"127.0.0.1:{models}",
            }
            command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
            try:
                done = subprocess.run(command, env={**os.environ, **told}, cwd=ROOT, timeout=arguments.within).returncode
            except subprocess.TimeoutExpired:
                print(f"not done within {arguments.within} s", file=sys.stderr)
                done = 1
            if done != 0:
                log = (folder / "emulator.log").read_text(errors="replace").splitlines()
                print("\n".join(["--- the emulator's log", *log[-150:]]), file=sys.stderr)
            return done
        finally:
            try:
                os.killpg(emulator.pid, 15)
                emulator.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(emulator.pid, 9)


sys.exit(main())
