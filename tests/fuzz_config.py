"""Fuzzes the configuration's parser: ``python tests/fuzz_config.py [--minutes 10] [--seed 0]``.

Files of random bytes, damaged valid files, deep nests, huge numbers, surrogates, NaN, keys twice, references to the
environment; KEY=VALUE settings of the same kinds. Whatever comes must load, or be refused by a `ConfigError` of one
printable line, in a bounded processor time. What is neither is printed with what made it; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnbench.config import Config, ConfigError, expand_settings, load_config
from dnnbench.metrics_csv import csv_path
from dnnbench.storage.open import NAMES, sources_of

SLOW_S = 2.0
MOST_FINDINGS = 10
SEEDS = [
    json.dumps(Config().resolved(), indent=1),
    '{"storage": {"format": "s3", "name": "dss", "s3": {"bucket": "b", "prefix": ["a/", "b/"], "client_lib": ["boto3"],'
    '"aws": {"credentials": {"access_key": "${FUZZ_SET}", "secret_key": "x"}}, "dss": {"credentials": {"endpoint":'
    ' "http://10.0.0.7:9000"}}}}, "dataset": {"label": ["a", "b"], "image_dimension": [32, 32]}} // remark',
    '{"__c": 1, "execution": {"workers": 7 <<=== why\n, "test_share": 0.5}, "framework": {"name": "PyTorch",}}',
    "{}",
    "[]",
    "",
]
PIECES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"//", b"<<==", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf",
    b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0.0", b"1E400", b"0x1", b"01",
    b"9" * 5000, b"1" * 400, b"-", b"1.", b'"\\ud800"', b'"\\udfff"', b'"\\u0000"', b'"\\u2028"', b'"\x1b[31m"',
    b"${FUZZ_SET}", b"${FUZZ_UNSET}", b"${", b"$", b"${}", b"__x", b'"a": 1, "a": 2', "日".encode(), b"'", b"/*", b"#",
]  # fmt: skip


def keys() -> list[str]:
    """Every dotted path of the configuration, its sections too."""
    found = []

    def walk(node: Any, path: str) -> None:
        for key, value in node.items():
            below = f"{path}.{key}".lstrip(".")
            found.append(below)
            if isinstance(value, dict):
                walk(value, below)

    walk(Config().resolved(), "")
    return found


KEYS = keys()


def some_json(rng: random.Random, depth: int = 0) -> Any:
    """Any value that JSON (or Python's idea of it) can hold; its keys are mostly known ones."""
    kind = rng.randrange(12 if depth < 5 else 9)
    if kind < 9:
        text = "".join(
            chr(rng.choice([9, 10, 34, 36, 46, 92, 0xD800, 0x2028, 0x1F600, rng.randrange(128)])) for _ in "ab"
        )
        numbers = [
            rng.randrange(-5, 100),
            10 ** rng.randrange(400),
            -(2**63),
            rng.random(),
            float("nan"),
            float("inf"),
            1e308,
        ]
        words = ["", "s3", "fs", "PyTorch", "colour", "http://x", "${FUZZ_SET}", "/" * rng.randrange(4), "a/b", ".."]
        return rng.choice([None, True, False, rng.choice(numbers), rng.choice(numbers), text, rng.choice(words)])
    if kind == 9:
        return [some_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {
        rng.choice([*rng.choice(KEYS).split("."), "__", "x"]): some_json(rng, depth + 1)
        for _ in range(rng.randrange(5))
    }


def placed(rng: random.Random) -> dict[str, Any]:
    """Values at places that the configuration has."""
    # Of nothing but defaults a wrong value is the only one, so that what lies behind the others is reached.
    whole = rng.random() < 0.7
    data: dict[str, Any] = Config().resolved() if whole else {}
    for _ in range(rng.choice([0, 1, 1, 2]) if whole else rng.randrange(1, 6)):
        *above, last = rng.choice(KEYS).split(".")
        node = data
        for part in above:
            below = node.setdefault(part, {})
            node[part] = node = below if isinstance(below, dict) else {}
        node[last] = likely(rng, node.get(last)) if rng.random() < 0.7 else some_json(rng)
    return data


def likely(rng: random.Random, value: Any) -> Any:
    """A value of the kind of another, and on its edges."""
    if isinstance(value, bool):
        return rng.choice([True, False])
    if isinstance(value, int | float):
        return rng.choice([0, 1, -1, 2**31, 2**63, 10**300, 0.5, 1e-320, 1.0, float("nan")])
    if isinstance(value, list):
        return [some_json(rng, 5) for _ in range(rng.randrange(3))]
    return rng.choice(
        ["", "a", "~", "~nobody-at-all", "a\0b", "\ud800", "/" * 5, "x" * 5000, "http://[", "http://a b:c"]
    )


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def damaged(rng: random.Random) -> bytes:
    """A valid file with pieces put in, taken out, doubled or swapped."""
    data = bytearray(rng.choice(SEEDS).encode())
    for _ in range(rng.randrange(1, 6)):
        at, length = rng.randrange(len(data) + 1), rng.randrange(1, 30)
        how = rng.randrange(4)
        if how == 0:
            data[at:at] = rng.choice(PIECES)
        elif how == 1:
            del data[at : at + length]
        elif how == 2:
            data[at:at] = data[at : at + length]
        elif data:
            data[at % len(data)] = rng.randrange(256)
    return bytes(data)


def nested(rng: random.Random) -> bytes:
    depth = rng.choice([10, 100, 900, 1000, 5000, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"storage":', b"}"), (b'[{"__":', b"}]")])
    whole = opened * depth + b"1" + closed * rng.choice([depth, 0])
    return rng.choice([whole, b'{"dataset": {"label": ' + whole + b"}}"])


def a_file(rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return b"".join(rng.choice(PIECES) for _ in range(rng.randrange(30)))
    if kind == 2 and rng.randrange(20) == 0:
        return nested(rng)
    if kind == 3:
        return dumped(some_json(rng))
    return dumped(placed(rng)) if kind == 4 else damaged(rng)


def a_setting(rng: random.Random) -> str:
    key = rng.choice([rng.choice(KEYS), rng.choice(KEYS), rng.choice(KEYS) + ".x", "x", "", ".", "__x", "a" * 1000])
    pieces = [rng.choice(PIECES).decode("utf-8", "surrogateescape") for _ in range(rng.randrange(5))]
    value = rng.choice(["".join(pieces), json.dumps(some_json(rng)), ",".join(pieces), "[" * 2000, ""])
    if rng.random() < 0.5:
        value = ",".join(json.dumps(likely(rng, of)) for of in rng.sample([True, 1, [], ""], rng.randrange(1, 3)))
    return rng.choice([f"{key}={value}", f"{key}={value}", f"{key}{value}", value])


def attempt(path: Path, content: bytes, settings: list[str]) -> str:
    """ "loaded" or "refused"; raises what the parser must not."""
    path.write_bytes(content)
    try:
        for variant in expand_settings(load_config(path), settings, str(path)):
            json.dumps(variant.config.resolved()).encode()
            variant.config.hash()
            with contextlib.suppress(ConfigError):
                csv_path(variant.config)
            for name in NAMES:
                with contextlib.suppress(ConfigError):
                    sources_of(variant.config, name)
    except ConfigError as exc:
        message = str(exc)
        if len(message.splitlines()) != 1 or not message.isprintable():
            raise AssertionError(f"a message that is not one printable line: {message!r}") from exc
        message.encode()
        return "refused"
    return "loaded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["FUZZ_SET"] = 'a"b\n'
    os.environ.pop("FUZZ_UNSET", None)
    outcomes: Counter[str] = Counter()
    slowest_s, number = 0.0, arguments.seed
    end_s = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end_s and outcomes["wrong"] < MOST_FINDINGS:
            rng = random.Random(number)
            content = a_file(rng)
            settings = [a_setting(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
            start_s = time.process_time()
            try:
                outcome = attempt(Path(folder) / "c.json", content, settings)
            except Exception:
                outcome = "wrong"
                print(f"seed {number}: {content[:2000]!r} {[setting[:500] for setting in settings]!r}")
                traceback.print_exc(limit=-4, file=sys.stdout)
            taken_s = time.process_time() - start_s
            slowest_s = max(slowest_s, taken_s)
            if taken_s > SLOW_S:
                outcome = "wrong"
                shown = [setting[:200] for setting in settings]
                print(f"seed {number}: took {taken_s:.1f} s: {content[:200]!r} {shown!r}")
            outcomes[outcome] += 1
            number += 1
    print(
        f"{outcomes.total():,} tries from seed {arguments.seed}: {dict(outcomes)}; the slowest took {slowest_s:.2f} s"
    )
    return int(outcomes["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
