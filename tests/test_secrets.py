"""Who may read secrets, and errors that do not show them. Whole runs are searched by `secrets_in_runs`."""

import json
import os
import sys
import traceback
from types import SimpleNamespace

import pytest

from dnnbench import run
from dnnbench.__main__ import main
from dnnbench.config import ConfigError, expand_settings, exposed_secrets, load_config
from dnnbench.errors import DnnbenchError
from dnnbench.secrets import hide_secrets
from dnnbench.storage.base import Meter

# -- what others can read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "value", "warned"),
    [(0o644, "abc", True), (0o640, "abc", True), (0o600, "abc", False), (0o644, "${HOME}", False), (0o644, "", False)],
)
def test_a_file_with_secrets_that_others_can_read_gets_a_warning(tmp_path, mode, value, warned):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"storage": {"s3": {"dss": {"credentials": {"secret_key": value}}}}}))
    path.chmod(mode)
    told = exposed_secrets(path)
    assert len(told) == warned
    assert all("abc" not in line and f"mode {mode:03o}" in line for line in told)


@pytest.mark.parametrize(
    "setting",
    [
        "storage.s3.aws.credentials.secret_key sesame",
        "=sesame",
        'storage.s3.aws="sesame"',
        "storage.s3.aws.credentials=sesame",
        "storage.s3.aws.credentials.endpoint=http://h/?X-Amz-Signature=sesame",
        "storage.s3.aws.credentials.secret_key=sesame,b",
        "storage.s3.aws.credentials.secret_kye=sesame",
        'storage.s3.aws.credentials.access_key=["sesame"]',
    ],
)
def test_an_error_of_a_setting_does_not_show_its_value(setting):
    with pytest.raises(ConfigError) as caught:
        expand_settings({}, [setting])
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "account", ["sesame", ["sesame"], {"credentials": "sesame"}, {"credentials": {"secret_key": 5}}]
)
def test_an_error_of_an_account_does_not_show_its_value(tmp_path, account):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"storage": {"s3": {"aws": account}}}))
    with pytest.raises(ConfigError) as caught:
        expand_settings(load_config(path), [])
    assert "sesame" not in str(caught.value)


# -- command lines -------------------------------------------------------------------------------------

SETTING = "storage.s3.aws.credentials.secret_key=sesame"


@pytest.mark.parametrize(
    "arguments", [["copy", "a", "b", f"--sett={SETTING}"], ["copy", SETTING, "b"], ["check", "a", "--set", SETTING]]
)
def test_a_mistake_of_the_command_line_is_told_without_its_secrets(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(arguments))
    told = capsys.readouterr().err
    assert "sesame" not in told
    assert "secret_key=***" in told


@pytest.mark.parametrize("words", [[f"--dnn-set={SETTING}"], ["--dnn-set", SETTING], [f"--dnn-sett={SETTING}"]])
def test_what_sets_a_secret_is_on_no_command_line_that_we_make(words):
    shown, (handle,) = run._hide(["-k", "read", *words])
    try:
        assert shown == [f"@/proc/self/fd/{handle}"]
        assert os.pread(handle, 999, 0).decode().split("\n") == ["-k", "read", *words]
    finally:
        os.close(handle)
    assert run._hide(["-k", "secret_key"]) == (["-k", "secret_key"], [])


# -- errors --------------------------------------------------------------------------------------------


def test_an_error_ends_before_the_storage_and_keeps_its_lines():
    inside = {"__name__": "dnnbench.storage.s3_boto3"}
    exec("def sign(secret):\n    raise KeyError('Date')", inside)  # noqa: S102 (a module of that name)

    def outside():
        inside["sign"]("planted")

    with pytest.raises(KeyError) as caught:
        outside()
    hide_secrets(caught.value)
    names = []
    trace = caught.value.__traceback__
    while trace:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "outside"
    assert "in sign" in caught.value.__notes__[0]


def test_behind_an_error_of_ours_nothing_is_shown():
    inner = ValueError("planted")
    ours = DnnbenchError("the storage said no")
    ours.__cause__ = inner
    users = RuntimeError("mine")
    users.__context__ = ours
    hide_secrets(ExceptionGroup("several", [users]))
    assert users.__context__ is ours
    assert ours.__cause__ is None


def test_errors_that_point_at_each_other_come_to_an_end():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__context__, second.__context__ = second, first
    hide_secrets(first)


def test_of_an_error_in_a_loader_worker_nothing_is_told_that_lies_behind_ours():
    # Whatever is not ours torch hands on as the text of its traceback.
    from dnnbench.datasets.torch_worker import pack_batch

    def samples():
        try:
            raise DnnbenchError("the storage said no") from ValueError("planted".upper())
        except DnnbenchError as error:
            raise RuntimeError("mine") from error
        yield

    with pytest.raises(RuntimeError) as caught:
        pack_batch(SimpleNamespace(storage=SimpleNamespace(meter=Meter())), samples)
    told = "".join(traceback.format_exception(caught.value))
    assert "the storage said no" in told
    # The lines of the source do stand there.
    assert "PLANTED" not in told
