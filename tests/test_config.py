"""The configuration: what a file may hold, what an error says, what a setting makes, and that secrets stay inside."""

import itertools
import json
import os
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnbench.config import Config, ConfigError, expand_settings, load_config

SECRET = "tops3cret"
AWS = "storage.s3.aws.credentials"
# The seed's fragments as they stand there, in one file. Added: the outer braces, the framework's own
# line, and the closing braces of storage, PyTorch and framework, which the seed leaves open.
SEED = """{
"storage": {
      "format": "fs",
      "name": "nfs1",
      "s3": {
        "bucket": "bucket",
        "prefix": ["flower_photos/", "flower_photos2/"],
        "client_lib": "boto3",
        "aws": {
          "credentials": {
            "region_name": "us-east-2",
            "access_key": "access_key",
            "secret_key": "secret_key"
          }
        },
        "dss": {
          "credentials": {
            "endpoint": "http://202.0.0.137:9000",
            "access_key": "minio",
            "secret_key": "minio123"
          }
        }
      },
      "fs": {
         "data_dir": ["/home/somnath.s/.keras/datasets/flower_photos","/home/somnath.s/.keras/datasets/flower_photos2"]
      }
},
"dataset" : {
             "name": "MyDataset",
             "access": {"random": true, "sequential":  false},
             "type":  "image",
             "label": ["roses", "sunflowers", "tulips", "daisy", "dandelion"],
             "image_dimension": [32,32]
            },
 "execution":{
    "workers": 10,  <<=== Update parallel workers no
    "steps":{
      "model": true,
      "training": true,
      "inference": false,
      "metrics": false
    }
  },
"framework": {"name": "PyTorch",
"PyTorch": {
                  "DataLoader": {
                    "shuffle": true,
                    "num_workers": 49,   << ==== Update this variable.
                    "persistent_workers": true,
                    "prefetch_factor": 2,
                    "pin_memory": false,
                    "drop_last": false
                  },
}},
"model":{
  "name": "ConvNet",  <<== Add your neural network class name.
  "loss_function": "<Specify Loss Function ex.[CorssEntrophy]"
},
"training":{
  "name": "RandomAccessDatasetTrain"  
},
}
"""  # noqa: W291 (the seed's own blanks)
# As a careful user writes it: no comma before a closing brace.
SEED_AS_JSON = re.sub(r",(?=\s*})", "", SEED)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function from a file's text and some settings to the variants that they make."""
    path = tmp_path_factory.mktemp("config") / "c.json"

    def read(text, *dnn_set):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return expand_settings(load_config(path), dnn_set, "c.json")

    return read


def _requests(text):
    return f'{{"storage": {{"s3": {{"requests": {{{text}}}}}}}}}'


def with_credentials(credentials, account="aws"):
    return json.dumps({"storage": {"s3": {account: {"credentials": credentials}}}})


def test_the_default_is_complete_and_is_a_configuration_itself():
    resolved = Config().resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert expand_settings(json.loads(json.dumps(resolved)), [])[0].config == Config()
    assert expand_settings(load_config(None), [])[0].config == Config()


def test_the_seeds_fragments_make_one_file(load):
    config = load(SEED_AS_JSON)[0].config
    assert config.storage.selected == "fs"
    assert config.storage.name == "nfs1"
    assert config.storage.s3.prefix == ["flower_photos/", "flower_photos2/"]
    assert config.storage.s3.aws.credentials.secret_key.get_secret_value() == "secret_key"
    assert config.storage.s3.dss.credentials.endpoint == "http://202.0.0.137:9000"
    assert len(config.storage.fs.data_dir) == 2
    assert config.dataset.name == "MyDataset"
    assert (config.dataset.access.random, config.dataset.access.sequential) == (True, False)
    assert config.dataset.image_dimension == [32, 32]
    assert (config.execution.workers, config.execution.steps.inference) == (10, False)
    assert config.framework.pytorch.loader.num_workers == 49
    assert config.model.loss_function == "<Specify Loss Function ex.[CorssEntrophy]"
    assert config.training.name == "RandomAccessDatasetTrain"


def test_the_seeds_fragments_keep_their_trailing_commas(load):
    assert load(SEED) == load(SEED_AS_JSON)


@pytest.mark.parametrize(
    "text",
    [
        '{"__why": "slow", "execution": {"__": [1], "workers": 7, "__": {"workers": 8}}}',
        '{"execution": { // how many "at once"?\n"workers": 7 // 8 } \n}} // end',
        '{"execution": {"workers": 7 <<=== Update "this"\n}}',
    ],
)
def test_comments_and_remarks_say_nothing(load, text):
    assert load(text)[0].config == expand_settings({"execution": {"workers": 7}}, [])[0].config


@pytest.mark.parametrize("value", ["http://x//y", "a <<== b", 'a "//" b', "__x", "a\\", "a,}", ",\n ]"])
def test_what_looks_like_a_remark_or_a_spare_comma_inside_of_a_string_stays(load, value):
    assert load(json.dumps({"model": {"name": value}}))[0].config.model.name == value


def test_a_variable_of_the_environment_is_put_in(load, monkeypatch):
    monkeypatch.setenv("DNN_TEST", 'a"b')
    monkeypatch.setenv("DNN_OTHER", "b")
    text = '{"storage": {"s3": {"bucket": "x-${DNN_OTHER}", "prefix": ["${DNN_TEST}/"]}}}'
    s3 = load(text, "model.name=${DNN_TEST}")[0].config.storage.s3
    assert (s3.bucket, s3.prefix) == ("x-b", ['a"b/'])
    assert load("{}", "model.name=${DNN_TEST}")[0].config.model.name == 'a"b'


def test_a_variable_that_is_not_set_names_its_place(load, monkeypatch):
    monkeypatch.delenv("DNN_TEST", raising=False)
    with pytest.raises(ConfigError, match=r"dataset\.label\[1\]: .*DNN_TEST is not set"):
        load('{"dataset": {"label": ["a", "${DNN_TEST}"]}}')
    with pytest.raises(ConfigError, match=r"model\.name: .*DNN_TEST is not set"):
        load("{}", "model.name=${DNN_TEST}")
    assert load('{"__": "${DNN_TEST}"}')[0].config == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"storag": {}}', r'c\.json: storag: unknown key; did you mean "storage"\?'),
        ('{"dataset": {"labl": []}}', r'dataset\.labl: unknown key; did you mean "label"\?'),
        ('{"framework": {"pytorch": {}}}', r'framework\.pytorch: .* "PyTorch"\?'),
        ('{"framework": {"PyTorch": {"DataLoader": {"workers": 1}}}}', r'DataLoader\.workers: .*"num_workers"\?'),
        ('{"training": {"qqq": 1}}', r"training\.qqq: unknown key; known here: name"),
        ('{"str": 1}', r"c\.json: str: unknown key"),
        ('{"dataset": {"list[x": 1}}', r"dataset\.list\[x: unknown key"),
        ('{"execution": {"workers": "5"}}', r'execution\.workers: found the string "5", expected a valid integer$'),
        ('{"execution": {"workers": true}}', r"execution\.workers: found the boolean true, expected a valid integer$"),
        ('{"execution": {"workers": 1.0}}', r"execution\.workers: found the number 1\.0, expected a valid integer$"),
        ('{"execution": {"workers": 0}}', r"execution\.workers: found the number 0, expected greater than"),
        ('{"execution": {"test_share": NaN}}', r"execution\.test_share: found the number NaN, expected"),
        ('{"dataset": {"access": {"random": 1}}}', r"dataset\.access\.random: found the number 1, expected"),
        ('{"dataset": {"label": "roses"}}', r'dataset\.label: found the string "roses", expected a valid list$'),
        ('{"dataset": {"label": null}}', r"dataset\.label: found null, expected a valid list$"),
        ('{"dataset": {"image_dimension": [32]}}', r"dataset\.image_dimension: found a list, expected (?!List)"),
        ('{"dataset": {"image_dimension": [1, true]}}', r"dataset\.image_dimension\[1\]: found the boolean true"),
        ('{"dataset": {"name": ""}}', r'dataset\.name: found the string "", expected (?!String)'),
        ('{"storage": {"format": "nfs"}}', r"storage\.format: found the string \"nfs\", expected 'fs' or 's3'$"),
        ('{"storage": {"format": "s3", "name": "gcs"}}', r'storage: expected name "aws" or "dss"'),
        ('{"storage": {"s3": {"client_lib": 5}}}', r"storage\.s3\.client_lib: found the number 5, expected [^(]*$"),
        ('{"storage": {"s3": {"client_lib": []}}}', r"storage\.s3\.client_lib: "),
        ('{"framework": {"name": []}}', r"framework\.name: "),
        (_requests('"read_timeout_s": 0'), r"requests\.read_timeout_s: found the number 0, expected greater than"),
        (_requests('"total_timeout_s": Infinity'), r"requests\.total_timeout_s: found the number Infinity, expected"),
        (_requests('"connect_timeout_s": "1s"'), r'requests\.connect_timeout_s: found the string "1s", expected'),
        (_requests('"read_timeout_s": 61'), r"requests: expected read_timeout_s to be at most total_timeout_s \(60\)"),
        (_requests('"max_attempts": 0'), r"requests\.max_attempts: found the number 0, expected greater than"),
        (_requests('"max_attempts": 2.0'), r"requests\.max_attempts: found the number 2\.0, expected a valid integer$"),
        (_requests('"back_off_s": -1'), r"requests\.back_off_s: found the number -1, expected greater than"),
        (_requests('"retries": 3'), r"storage\.s3\.requests\.retries: unknown key"),
        ('{"storage": {"s3": {"verify_tls": 0}}}', r"storage\.s3\.verify_tls: found the number 0, expected [^(]*$"),
        ('{"storage": {"s3": {"verify_tls": ""}}}', r'storage\.s3\.verify_tls: found the string "", expected [^(]*$'),
        ('{"framework": {"name": "Torch"}}', r'framework\.name: found the string "Torch", expected [^(]*$'),
        ('{"execution": {"workers": 1, "workers": 2}}', r'c\.json: .*"workers" is there twice'),
        ('{\n  "model" {}}', r"c\.json:2:11: not valid JSON"),
        ('{"model": {}} // remark\n}', r"c\.json:2:1: not valid JSON"),
        ('{"model": {},,}', r"c\.json:1:1\d: not valid JSON"),
        ("", r"c\.json:1:1: not valid JSON"),
        ("[]", r"c\.json: found a list, expected an object"),
        (b"\xff\xfe{}", r"c\.json: cannot be read as a text file"),
        (f'{{"execution": {{"workers": {"9" * 5000}}}}}', r"c\.json"),
        ("[" * 100_000, r"c\.json"),
        ('{"a":' * 900 + "1" + "}" * 900, r"c\.json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_error_names_the_place_what_was_found_and_what_is_expected(load, text, says):
    with pytest.raises(ConfigError, match=says):
        load(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json: there is no such"):
        load_config(tmp_path / "no.json")
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        with_credentials(SECRET),
        with_credentials([SECRET]),
        with_credentials({"access_key": [SECRET]}),
        with_credentials({"acess_key": SECRET, "secret_key": SECRET}),
        with_credentials({"secret_key": SECRET}),
        with_credentials({"endpoint": f"http://me:{SECRET}@host"}),
        with_credentials({"access_key": SECRET, "secret_key": SECRET, "endpoint": 5}, "dss"),
        with_credentials({"access_key": SECRET, "secret_key": SECRET}).replace("}}", ""),
    ],
)
def test_no_error_shows_a_secret(load, text):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert SECRET not in str(caught.value)


def test_no_output_shows_a_secret_and_the_hash_does_not_know_it(load):
    keys = {"access_key": SECRET, "secret_key": SECRET, "session_token": SECRET}
    (variant,) = load(with_credentials(keys))
    config = variant.config
    assert config.storage.s3.aws.credentials.session_token.get_secret_value() == SECRET
    shown = [str(config), repr(config), repr(variant), json.dumps(config.resolved()), config.model_dump_json()]
    assert not any(SECRET in text for text in shown)
    assert config.hash() == load(with_credentials(dict.fromkeys(keys, "another")))[0].config.hash()


def test_a_secret_that_is_swept_is_not_shown(load):
    # Allowed or refused: what is swept goes into test ids and result files.
    keys = with_credentials({"access_key": "a", "secret_key": "b"})
    try:
        shown = repr(load(keys, f"{AWS}.secret_key={SECRET},other"))
    except ConfigError as exc:
        shown = str(exc)
    assert SECRET not in shown


def test_the_hash_knows_every_other_key():
    changes = ["storage.name=nfs2", "storage.s3.bucket=b", f"{AWS}.endpoint=http://x", "dataset.label=a", "device=gpu"]
    changes += ["execution.seed=1", "framework.PyTorch.DataLoader.num_workers=3", "model.name=x", "metrics.path=y"]
    hashes = {expand_settings({}, some)[0].config.hash() for some in ([], *([change] for change in changes))}
    assert len(hashes) == len(changes) + 1
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in hashes)


def test_the_hash_does_not_know_the_order_of_keys():
    data = {"execution": {"workers": 3, "seed": 4}, "device": "gpu"}
    turned = {"device": "gpu", "execution": {"seed": 4, "workers": 3}}
    assert expand_settings(data, [])[0].config.hash() == expand_settings(turned, [])[0].config.hash()


@pytest.mark.parametrize(
    ("setting", "path", "values"),
    [
        ("execution.workers=4", "execution.workers", [4]),
        ("framework.PyTorch.DataLoader.num_workers=1,4,10", "framework.pytorch.loader.num_workers", [1, 4, 10]),
        ("dataset.image_dimension=[32,32],[64, 48]", "dataset.image_dimension", [[32, 32], [64, 48]]),
        ("storage.s3.prefix=a/,b/", "storage.s3.prefix", [["a/"], ["b/"]]),
        ('dataset.label=["a","b"]', "dataset.label", [["a", "b"]]),
        ("dataset.label=[a,b]", "dataset.label", [["a", "b"]]),
        ('model.name="a,b",c', "model.name", ["a,b", "c"]),
        (r'model.name="a\",b"', "model.name", ['a",b']),
        ("model.name=a=b", "model.name", ["a=b"]),
        ("execution.steps.training=true,false", "execution.steps.training", [True, False]),
    ],
)
def test_a_setting_sets_its_key(setting, path, values):
    variants = expand_settings({"execution": {"workers": 99}}, [setting])
    found = [variant.config for variant in variants]
    for part in path.split("."):
        found = [getattr(node, part) for node in found]
    assert found == values


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True), min_size=1, max_size=3))
def test_several_values_make_every_combination(axes):
    keys = ["execution.workers", "framework.batch_size", "framework.epochs"][: len(axes)]
    variants = expand_settings({}, [f"{k}={','.join(map(str, v))}" for k, v in zip(keys, axes, strict=True)])
    assert len(variants) == len({variant.config.hash() for variant in variants})
    expected = [
        tuple((k, str(v)) for k, v, axis in zip(keys, values, axes, strict=True) if len(axis) > 1)
        for values in itertools.product(*axes)
    ]
    assert [variant.swept for variant in variants] == expected


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("execution.workers", "expected KEY=VALUE"),
        ("execution.workers=", "expected KEY=VALUE"),
        ("=4", "expected KEY=VALUE"),
        ("execution=4", "--dnn-set execution: is a section; set one of workers, "),
        ("storage.s3.aws=4", "is a section; set one of credentials"),
        ("execution.workers.x=4", "execution.workers has no keys below it"),
        ("framework.PyTorch.DataLoader.num_worker=1", r'num_worker: unknown key; did you mean "num_workers"\?'),
        ("execution.workers=1,,2", r'execution\.workers: found the string ""'),
        ('execution.workers="5"', r'execution\.workers: found the string "5", expected a valid integer'),
        (f"execution.workers={'9' * 5000}", r"execution\.workers"),
        (f"execution.workers={'[' * 100_000}", r"execution\.workers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_setting_says_why(setting, says):
    with pytest.raises(ConfigError, match=says):
        expand_settings({}, [setting])


def test_a_setting_below_something_that_is_no_section_says_so():
    with pytest.raises(ConfigError, match=r"storage\.name: the file has null at storage"):
        expand_settings({"storage": None}, ["storage.name=x"])


def _names(value):
    return [k for key, item in value.items() for k in (key, *_names(item))] if isinstance(value, dict) else []


NAMES = st.sampled_from(sorted(set(_names(Config().resolved()))))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["s3", "${A}", "a\nb"])
JSON = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(NAMES | st.text(), some))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join)
SETTINGS = st.text() | st.builds("{}={}".format, PATHS, st.text(string.printable, max_size=30) | JSON.map(json.dumps))


def _holds_or_says_why_in_one_line(action):
    message = "one line"
    try:
        json.dumps([variant.config.resolved() for variant in action()])
    except ConfigError as exc:
        message = str(exc)
    assert len(message.splitlines()) == 1


@given(st.dictionaries(NAMES, JSON).map(json.dumps) | JSON.map(json.dumps) | st.text() | st.binary())
@settings(max_examples=150, deadline=None)
def test_any_file_loads_or_is_refused_in_one_line(load, text):
    _holds_or_says_why_in_one_line(lambda: load(text))


@given(st.lists(SETTINGS, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_setting_works_or_is_refused_in_one_line(dnn_set):
    _holds_or_says_why_in_one_line(lambda: expand_settings({}, dnn_set))


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: "${" not in text and not text.isspace()
)
# Of some keys, values that they may have.
VALID = {
    "storage.name": words.filter(lambda name: name not in ("aws", "dss")),
    "storage.s3.bucket": st.from_regex(r"[a-z0-9.-]{1,8}", fullmatch=True),
    "storage.s3.prefix": st.lists(words, min_size=1, max_size=3, unique_by=lambda prefix: prefix.strip("/")),
    "storage.fs.data_dir": st.lists(words, max_size=3, unique_by=os.path.normpath),
    "dataset.label": st.lists(st.from_regex(r"[a-z ]{1,8}", fullmatch=True), min_size=1, max_size=5, unique=True),
    "dataset.image_dimension": st.lists(st.integers(1, 10**6), min_size=2, max_size=2),
    "dataset.verify": st.sampled_from(["none", "length", "checksum"]),
    "execution.workers": st.integers(1, 10**9),
    "execution.seed": st.integers(0, 2**64),
    "execution.test_share": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "execution.steps.training": st.booleans(),
    "framework.PyTorch.DataLoader.num_workers": st.integers(0, 100),
    "training.batch_compute_ms": st.floats(1e-9, 1e9),
    "model.save_dir": st.none() | words,
}
SOME = st.sets(st.sampled_from(sorted(VALID))).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALID[key] for key in keys})
)


@given(SOME)
@settings(max_examples=100, deadline=None)
def test_a_setting_means_what_the_files_key_means_and_what_is_resolved_means_itself(chosen):
    data = {}
    for key, value in chosen.items():
        *above, last = key.split(".")
        node = data
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    (from_file,) = expand_settings(data, [])
    (from_settings,) = expand_settings({}, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])
    (again,) = expand_settings(json.loads(json.dumps(from_file.config.resolved())), [])
    assert from_file.config == from_settings.config == again.config
    assert from_file.config.hash() == from_settings.config.hash() == again.config.hash()
    if from_file.config != Config():
        assert from_file.config.hash() != Config().hash()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"storage": {"format": "fs", "name": "dss"}}, ['format "s3"', '"dss"']),
        ({"dataset": {"label": ["a", "a/b"]}}, ["dataset.label", '"a/b" is a folder in "a"']),
        ({"storage": {"fs": {"data_dir": ["/d/s", "/d/s/"]}}}, ["storage.fs.data_dir", "twice"]),
        ({"storage": {"s3": {"client_lib": ["boto3", "boto3"]}}}, ["client_lib", "twice"]),
        ({"framework": {"name": ["PyTorch", "PyTorch"]}}, ["framework.name", "twice"]),
        ({"framework": {"name": ["pytorch"]}}, ["framework.name[0]", '"pytorch"', "'PyTorch'"]),
        ({"storage": {"s3": {"aws": {"credentials": {"access_key": "a", "secret_key": "b\n"}}}}}, ["line breaks"]),
        ({"storage": {"fs": {"data_dir": ["/d", "/d\0"]}}}, ["storage.fs.data_dir[1]", "no file's name can hold"]),
        ({"storage": {"fs": {"data_dir": [""]}}}, ["storage.fs.data_dir[0]", "at least 1 character"]),
        ({"metrics": {"path": "\ud800"}}, ["metrics.path", "no file's name can hold"]),
        ({"model": {"save_dir": "a\0"}}, ["model.save_dir", "no file's name can hold"]),
        ({"dataset": {"verify": "md5"}}, ["dataset.verify", '"md5"', "'checksum'"]),
    ],
)
def test_what_would_measure_something_else_is_refused(data, words):
    with pytest.raises(ConfigError) as caught:
        expand_settings(data, [])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("key", "ask"),
    [
        ("storage.fs.data_dir", Config.data_dirs),
        ("model.save_dir", Config.save_dir),
        ("metrics.path", Config.metrics_path),
    ],
)
def test_the_home_of_a_user_that_is_not_there_is_one_line(key, ask):
    (variant,) = expand_settings({}, [f"{key}=~no-such-user/x"])
    with pytest.raises(ConfigError, match=f"{key}: ~no-such-user/x: "):
        ask(variant.config)
    assert ask(Config()) in ([], None)


def test_the_same_folder_under_another_name_is_refused(tmp_path):
    from dnnbench.storage.open import sources_of

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folders = [f"{tmp_path}/real", f"{tmp_path}/link"]
    (variant,) = expand_settings({"storage": {"fs": {"data_dir": folders}}}, [])
    with pytest.raises(ConfigError, match=r"link: is the same folder as .*real"):
        sources_of(variant.config, "fs")


@pytest.mark.parametrize(
    "setting",
    [
        *(
            f"storage.s3.aws.credentials.endpoint={url}"
            for url in ("http://127.0.0.1:91020", "http://bad host", "http://", "http://[::1", "https://a:b")
        ),
        *(f"storage.s3.bucket={name}" for name in ("My Bucket", "b?x", "b#x", "b\n")),
        "storage.s3.aws.credentials.region_name=us east",
    ],
)
def test_what_cannot_be_in_a_request_is_refused(setting):
    # obstore ends the process over some of these, and reads from another bucket with others.
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        expand_settings({}, [setting])


@pytest.mark.parametrize(
    "setting",
    [
        *(
            f"storage.s3.aws.credentials.endpoint={url}"
            for url in ("http://[::1]:9000", "https://s3.example.com/", "http://minio_1:1")
        ),
        "storage.s3.bucket=arn:aws:s3:us-east-1:123456789012:accesspoint/mine",
        "storage.s3.aws.credentials.region_name=us-gov-west-1",
    ],
)
def test_what_can_be_in_a_request_is_taken(setting):
    assert expand_settings({}, [setting])
