"""No secret is in anything that a run writes: planted ones are looked for in all of it, also after failures.

Whole runs, which take most of a minute: ``pytest tests/secrets_in_runs.py``. What is quicker is in `test_secrets`.
"""

import json
import signal
import time

import pytest

from dnnbench.__main__ import main
from dnnbench.config import expand_settings
from dnnbench.trained import save_trained
from dnnbench.training import torch_build
from tests.faulty import Proxy
from tests.planted import CLIENTS, PLANTED, Refusals, assert_no_trace, command_lines, files_below, run
from tests.test_bench import LABELS, make_data

LOUD = (
    "-l", "--tb=long", "-vvv", "--full-trace", "-rA", "-o", "log_cli=true", "--log-level=DEBUG",
    "-o", "junit_logging=all",
)  # fmt: skip

MINE = """
from dnnbench.datasets.{framework} import RandomAccessDataset
from dnnbench.storage.s3 import S3Storage

class Mine(RandomAccessDataset):
    def read_s3_object(self, image):
        storage, config = self.storage, self.config
        credentials = self.storage.credentials
        # A server that tells what it was sent, and one that goes away while a request is sent, whose frames hold it.
        try:
            try:
                self.other("{refusing}").read(image)
            except Exception:
                self.other("http://127.0.0.1:9").read(image)
        except Exception as error:
            raise RuntimeError("I cannot read it") from error

    def other(self, endpoint):
        credentials = self.storage.credentials.model_copy(update={{"endpoint": endpoint}})
        return S3Storage("bucket", credentials, self.storage.client)
"""


# The second client's reads fail in the storage.
OBSTORES = """        if self.storage.client == "obstore":
            return super().read_s3_object(image)
"""


def save_network(folder):
    """The path of a network for the images of these tests, as `test_inference` saves one."""
    settings = [f"dataset.label={json.dumps(LABELS)}", f"model.save_dir={folder}", "framework.name=PyTorch"]
    config = expand_settings({}, settings)[0].config
    return save_trained(torch_build, config, torch_build.make_model(config, len(LABELS)), "torch-fs")


def configure(tmp_path, endpoint, bucket, credentials=PLANTED, storage="aws", client=CLIENTS, workers=0):
    account = {"credentials": {"endpoint": endpoint, **credentials}}
    clients = client if isinstance(client, str) else list(client)
    s3 = {"bucket": bucket, "prefix": [tmp_path.name], "client_lib": clients, "aws": account, "dss": account}
    s3["requests"] = {"max_attempts": 1}
    config = {
        "storage": {"format": "s3", "name": storage, "s3": s3},
        "dataset": {"label": LABELS},
        "framework": {"name": "PyTorch", "PyTorch": {"DataLoader": {"num_workers": workers}}},
        "model": {"save_dir": str(tmp_path / "run" / "saved")},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


def outputs(folder):
    """Options for all that pytest and we can write."""
    return (
        f"--benchmark-json={folder}/out.json", f"--dnn-set=metrics.path={folder}/all.csv",
        f"--junit-xml={folder}/out.xml", "-o", f"cache_dir={folder}/cache", f"--log-file={folder}/log.txt",
    )  # fmt: skip


def bench(folder, config, *arguments, **options):
    """Runs the benchmarks, as `run` does; its options are ours."""
    return run(folder, "pytest", "bench", f"--dnn-config={config}", *outputs(folder), *LOUD, *arguments, **options)


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


# -- what a run writes ---------------------------------------------------------------------------------


def test_a_run_that_succeeds_and_a_users_class_that_fails_show_none(tmp_path, filled, answering_server):
    config = configure(tmp_path, *filled)
    refusals = Refusals("SignatureDoesNotMatch")
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(framework="torch", refusing=answering_server(403, refusals)))
    settings = (f"--dnn-set=dataset.name={mine}:Mine", "--dnn-set=framework.PyTorch.DataLoader.num_workers=0,2")
    status, written = bench(tmp_path / "run", config, "-k", "read and c8 or loader and random", *settings)
    assert status == 1
    partial = json.loads(written[f"{tmp_path}/run/out.json.partial"])
    assert [one["extra_info"]["client"] for one in partial["benchmarks"]] == list(CLIENTS)
    assert f"{tmp_path}/run/out.json.journal" in written
    # In this process the user's own frame is there, with its variables; from a worker comes a text.
    assert written["output"].count("credentials = S3Credentials(") >= len(CLIENTS)
    assert "<dnnbench.storage.s3.S3Storage object" in written["output"]
    assert written["output"].count("Caught RuntimeError in DataLoader worker") >= len(CLIENTS)
    assert len(refusals.signatures) >= len(CLIENTS)
    for kind in ("multiprocessing.forkserver", "multiprocessing.resource_tracker"):
        assert kind in command_lines(written)
    assert_no_trace(written, refusals.signatures)


def test_what_fails_in_tensorflows_pipeline_shows_none(tmp_path, filled, answering_server):
    endpoint, bucket = filled
    refusals = Refusals("SignatureDoesNotMatch")
    mine = tmp_path / "mine.py"
    mine.write_text(MINE.format(framework="tensorflow", refusing=answering_server(403, refusals)))
    with Proxy(endpoint) as proxy:
        proxy.fail("reset", key="tulips", times=None)
        config = configure(tmp_path, proxy.endpoint, bucket, client=("boto3", "obstore"))
        settings = ("--dnn-set=framework.name=TensorFlow", f"--dnn-set=dataset.name={mine}:Mine")
        # One class for both: the first client's fault is the class's, the second's the storage's.
        mine.write_text(mine.read_text().replace("        storage, config", OBSTORES + "        storage, config"))
        status, written = bench(tmp_path / "run", config, *settings, "-k", "loader and random")
    assert status == 1
    assert "I cannot read it" in written["output"]
    assert "TransientError: aws (obstore)" in written["output"]
    assert refusals.signatures
    assert_no_trace(written, refusals.signatures)


@pytest.mark.parametrize(("client", "kind"), list(zip(CLIENTS, ("dss", "aws", "dss"), strict=True)))
def test_a_run_that_is_denied_shows_none(tmp_path, answering_server, client, kind):
    refusals = Refusals("SignatureDoesNotMatch")
    config = configure(tmp_path, answering_server(403, refusals), "bucket", storage=kind, client=client)
    status, written = bench(tmp_path / "run", config, "-k", "listing")
    assert status not in (0, 5), written["output"]
    assert_no_trace(written, refusals.signatures)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_is_interrupted_shows_none(tmp_path, filled, times):
    with Proxy(filled[0]) as proxy:
        proxy.fail("stall", key="tulips", times=None)

        def interrupt(process):
            while not any(verb == "GET" and "tulips" in key for verb, key in proxy.seen):
                time.sleep(0.05)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.2)

        config = configure(tmp_path, proxy.endpoint, filled[1], client="boto3")
        status, written = bench(tmp_path / "run", config, "-k", "read and serial", interrupt=interrupt)
    assert status == pytest.ExitCode.INTERRUPTED if times == 1 else status != 0
    assert "KeyboardInterrupt" in written["output"]
    assert_no_trace(written)


# -- the other commands --------------------------------------------------------------------------------


def commands(tmp_path, config):
    """Each that reaches a storage, on ``aws`` and on a DSS."""
    for place in ("s3://bucket/there", "dss:there"):
        yield "copy", tmp_path / "flowers", place, "--config", config
        yield "copy", place, tmp_path / "copied", "--config", config
        yield "generate", place, "--images-per-category", 1, "--config", config
        yield "manifest", place, "--config", config
        yield "predict", tmp_path / "torch-fs.pt", place, "--config", config
    yield "check", config


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "SignatureDoesNotMatch"), (400, "AuthorizationHeaderMalformed"), (500, "InternalError"), (200, "None"),
        (301, "PermanentRedirect"), (None, ""),
    ],
)  # fmt: skip
def test_the_commands_show_none_where_they_fail(tmp_path, answering_server, capfd, client, status, code):
    make_data(tmp_path)
    save_network(tmp_path)
    refusals = Refusals(code)
    endpoint = answering_server(status, refusals) if status else "http://127.0.0.1:9"
    config = configure(tmp_path, endpoint, "bucket", client=client)
    for command in commands(tmp_path, config):
        assert main([str(word) for word in command]) != 0, command
    assert main(["check", str(configure(tmp_path, endpoint, "bucket", storage="dss", client=client))]) != 0
    assert bool(refusals.signatures) == bool(status)
    assert_no_trace({"output": "".join(capfd.readouterr()), **files_below(tmp_path / "copied")}, refusals.signatures)


@pytest.mark.parametrize("client", CLIENTS)
def test_the_commands_show_none_where_all_is_well(tmp_path, filled, local_servers, capfd, client):
    config = configure(tmp_path, *filled, client=client)
    network = save_network(tmp_path)
    dss = f"--set=storage.s3.dss.credentials.endpoint={local_servers.dss().endpoint}"
    for place in (f"s3://{filled[1]}/{tmp_path.name}-there", f"dss:{tmp_path.name}-there"):
        more = ("--config", config, dss)
        for command in (
            ("copy", tmp_path / "flowers", place), ("copy", place, tmp_path / "out" / place[:3]),
            ("generate", f"{place}-made", "--images-per-category", 1), ("manifest", place),
            ("predict", network, place),
        ):  # fmt: skip
            assert main([str(word) for word in (*command, *more)]) == 0, command
    assert main(["check", str(config)]) == 0
    assert_no_trace({"output": "".join(capfd.readouterr()), **files_below(tmp_path / "out")})


# -- secrets from elsewhere ----------------------------------------------------------------------------


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


def test_secrets_of_the_command_line_are_on_no_other_and_in_no_file(tmp_path, filled):
    config = configure(tmp_path, *filled, credentials={}, client="obstore")
    settings = [f"--dnn-set=storage.s3.aws.credentials.{key}={value}" for key, value in PLANTED.items()]
    folder = tmp_path / "run"
    saving = ("--benchmark-autosave", f"--benchmark-storage=file://{folder}/store", "--benchmark-verbose")
    selected = ("-k", "read and c8 or inference")
    status, written = run(folder, "dnnbench", "run", config, *selected, *settings, *saving, *outputs(folder), *LOUD)
    assert status == 0, written["output"]
    assert "a secret on the command line" in written["output"]
    assert "-m pytest" in command_lines(written)
    places = " ".join(written)
    for kind in (
        "out.json",
        "out.json.journal, for a while",
        "all.csv",
        "out.xml",
        "log.txt",
        "nodeids",
        ".pt/",
        "/store/",
    ):
        assert kind in places
    assert_no_trace(written)


def test_a_variable_of_the_environment_reaches_no_command_line_and_no_other_variable(tmp_path, filled):
    named = {key: f"${{MY_{key.upper()}}}" for key in PLANTED}
    config = configure(tmp_path, *filled, credentials=named, client=("s3torchconnector", "obstore"), workers=1)
    environment = {f"MY_{key.upper()}": value for key, value in PLANTED.items()}
    status, written = bench(tmp_path / "run", config, "-k", "loader and random", **environment)
    assert status == 0, written["output"]
    assert "multiprocessing.forkserver" in command_lines(written)
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
