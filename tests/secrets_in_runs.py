"""No secret is in anything that a run writes: planted ones are looked for in all of it, also after failures.

Whole runs, which take most of a minute: ``pytest tests/secrets_in_runs.py``. What is quicker is in `test_secrets`.
"""

import json
import subprocess
import sys
import threading
import time

import psutil
import pytest

from dnnbench.__main__ import main
from tests.test_bench import ENVIRONMENT, LABELS, ROOT, make_data

CLIENTS = ("boto3", "obstore", "s3torchconnector")
PLANTED = {
    "access_key": "AKIAPLANTEDKEY234567",
    "secret_key": "planted/secret+key9876543210",
    "session_token": "plantedtoken4711",
}
# Also a part of one, such as a shortened value has, and what is computed from them.
TRACES = (
    "AKIAPLANTED", "PLANTEDKEY", "planted/secret", "planted%2Fsecret", "key9876543210", "plantedtoken", "Signature=",
    "X-Amz-Signature",
)  # fmt: skip
LOUD = (
    "-l", "--tb=long", "-vvv", "--full-trace", "-rA", "-o", "log_cli=true", "--log-level=DEBUG",
    "-o", "junit_logging=all",
)  # fmt: skip

MINE = """
from dnnbench.datasets.torch import RandomAccessDataset
from dnnbench.storage.s3 import S3Storage

class Mine(RandomAccessDataset):
    def read_s3_object(self, image):
        storage, config = self.storage, self.config
        credentials = self.storage.credentials
        # A server that goes away while a request is sent, whose frames hold all that is signed.
        gone = S3Storage("bucket", credentials.model_copy(update={"endpoint": "http://127.0.0.1:9"}), storage.client)
        try:
            gone.read(image)
        except Exception as error:
            raise RuntimeError("I cannot read it") from error
"""
# What a server says of a key that it does not know.
REFUSAL = (
    "<Error><Code>InvalidAccessKeyId</Code><Message>The key is not known</Message>"
    f"<AWSAccessKeyId>{PLANTED['access_key']}</AWSAccessKeyId></Error>"
)


def configure(tmp_path, endpoint, bucket, credentials=PLANTED, name="config.json"):
    aws = {"credentials": {"endpoint": endpoint, **credentials}}
    s3 = {"bucket": bucket, "prefix": [tmp_path.name], "client_lib": list(CLIENTS), "aws": aws}
    config = {
        "storage": {"format": "s3", "name": "aws", "s3": s3},
        "dataset": {"label": LABELS},
        "framework": {"name": "PyTorch", "PyTorch": {"DataLoader": {"num_workers": 0}}},
    }
    path = tmp_path / name
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


def run(folder, *arguments, **environment):
    """Runs a command with all that it writes in a folder; returns all of it, with the process."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", *map(str, arguments)]
    env = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("AWS_")} | environment
    env |= {"TMPDIR": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
    children = []
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watching = threading.Thread(target=_watch, args=(process, children), daemon=True)
    watching.start()
    written, _ = process.communicate(timeout=120)
    watching.join()
    files = {str(file): file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file()}
    return process.returncode, {"output": written, "command lines": "\n".join(children), **files}


def _watch(process, children):
    """Collects the command lines of what the process starts."""
    me = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for child in me.children(recursive=True):
                line = " ".join(child.cmdline())
                if line not in children:
                    children.append(line)
        except psutil.Error:
            pass
        time.sleep(0.2)


def assert_no_trace(written):
    found = [
        (place, trace, text[max(text.index(trace) - 200, 0) : text.index(trace) + 100])
        for place, text in written.items()
        for trace in TRACES
        if trace in text
    ]
    assert found == []


def bench(folder, config, *arguments, **environment):
    outputs = (
        f"--benchmark-json={folder}/out.json", f"--dnn-set=metrics.path={folder}/all.csv",
        f"--junit-xml={folder}/out.xml", "-o", f"cache_dir={folder}/cache", f"--log-file={folder}/log.txt",
    )  # fmt: skip
    return run(folder, "pytest", "bench", f"--dnn-config={config}", *outputs, *LOUD, *arguments, **environment)


@pytest.fixture
def filled(tmp_path, local_servers):
    """(endpoint, bucket) of a server that holds the data set below the folder's name."""
    from dnnbench.storage.s3 import S3Storage

    make_data(tmp_path)
    credentials, bucket = local_servers.aws()
    storage = S3Storage(bucket, credentials)
    for file in (tmp_path / "flowers").rglob("*.jpg"):
        storage.write(f"{tmp_path.name}/{file.relative_to(tmp_path / 'flowers')}", file.read_bytes())
    return credentials.endpoint, bucket


def test_a_run_that_succeeds_and_a_users_class_that_fails_show_none(tmp_path, filled):
    config = configure(tmp_path, *filled)
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    selected = ("-k", "read and c8 or loader and random", f"--dnn-set=dataset.name={mine}:Mine")
    status, written = bench(tmp_path / "run", config, *selected)
    assert status == 1
    partial = json.loads(written[f"{tmp_path}/run/out.json.partial"])
    assert [one["extra_info"]["client"] for one in partial["benchmarks"]] == list(CLIENTS)
    assert f"{tmp_path}/run/out.json.journal" in written
    # The user's own frame is there, with its variables.
    assert written["output"].count("credentials = S3Credentials(") >= len(CLIENTS)
    assert "<dnnbench.storage.s3.S3Storage object" in written["output"]
    assert_no_trace(written)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_run_that_is_denied_or_misled_shows_none(tmp_path, answering_server, local_servers, client):
    endpoint = {
        "boto3": local_servers.aws()[0].endpoint,
        "obstore": answering_server(403, REFUSAL),
        "s3torchconnector": "http://127.0.0.1:9",
    }[client]
    config = configure(tmp_path, endpoint, "no-such-bucket")
    status, written = bench(tmp_path / "run", config, "-k", "listing", f"--dnn-set=storage.s3.client_lib={client}")
    assert status not in (0, 5), written["output"]
    assert_no_trace(written)


def test_check_shows_none(tmp_path, answering_server, capsys):
    assert main(["check", str(configure(tmp_path, answering_server(403, REFUSAL), "bucket"))]) == 1
    assert_no_trace({"output": "".join(capsys.readouterr())})


def test_secrets_of_the_environment_and_of_a_profile_are_not_shown(tmp_path, filled):
    keys = dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), PLANTED, strict=True))
    in_environment = {key.upper(): PLANTED[name] for key, name in keys.items()}
    profile = tmp_path / "credentials"
    profile.write_text("[mine]\n" + "".join(f"{key}={PLANTED[name]}\n" for key, name in keys.items()))
    config = configure(tmp_path, *filled, credentials={"profile": "mine"})
    environment = in_environment | {"AWS_SHARED_CREDENTIALS_FILE": str(profile)}
    status, written = bench(tmp_path / "run", config, "-k", "read and c8", **environment)
    assert status == 0, written["output"]
    assert_no_trace(written)


def test_secrets_of_the_command_line_are_on_no_other(tmp_path, filled):
    config = configure(tmp_path, *filled, credentials={})
    settings = [f"--dnn-set=storage.s3.aws.credentials.{key}={value}" for key, value in PLANTED.items()]
    folder = tmp_path / "run"
    outputs = (f"--benchmark-json={folder}/out.json", f"--dnn-set=metrics.path={folder}/all.csv")
    status, written = run(folder, "dnnbench", "run", config, "-k", "read and c8", *settings, *outputs, *LOUD)
    assert status == 0, written["output"]
    assert "a secret on the command line" in written["output"]
    assert "-m pytest" in written["command lines"]
    assert_no_trace(written)


def test_check_and_a_run_say_so(tmp_path, capsys):
    credentials = {"access_key": "abcdef", "secret_key": "ghijkl"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"storage": {"format": "fs", "s3": {"aws": {"credentials": credentials}}}}))
    path.chmod(0o644)
    main(["check", str(path)])
    _, written = run(tmp_path / "out", "pytest", "-q", "--collect-only", "bench", f"--dnn-config={path}")
    for told in (capsys.readouterr().out, written["output"]):
        assert told.count("others can read it (mode 644)") == 1
        assert "ghijkl" not in told
