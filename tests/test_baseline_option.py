"""`pytest bench/ --dnn-baseline`: what a run's exit status says of earlier ones."""

import json

import pytest

from tests.test_bench import bench, make_data

ONE = ("-k", "listing")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """(configuration, result file of a run, folder)."""
    folder = tmp_path_factory.mktemp("earlier")
    config = make_data(folder)
    out = folder / "first.json"
    done = bench(f"--dnn-config={config}", f"--benchmark-json={out}", *ONE, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return config, out, folder


def with_rate(path, folder, factor, count=8):
    """As many earlier runs as one would have: all alike but for a little noise, their rates times a factor."""
    folder.mkdir()
    for number in range(count):
        data = json.loads(path.read_text())
        for one in data["benchmarks"]:
            one["extra_info"]["objects_per_s"] *= factor * (1 + (number % 3 - 1) / 1000)
        data["dnnbench"]["runs"][0]["started_utc"] = f"2026-01-0{number + 1}T00:00:00+00:00"
        (folder / f"{number}.json").write_text(json.dumps(data))
    return folder


# A hundred times faster or slower than before is beyond any noise.
@pytest.mark.parametrize(
    ("factor", "status", "told"), [(100, 1, "regression: of 1 comparison 1 slower"), (0.01, 0, "1 faster")]
)
def test_a_run_is_compared_at_its_end(earlier, tmp_path, factor, status, told):
    config, out, folder = earlier
    with_rate(out, tmp_path / "runs", factor)
    target = tmp_path / "out.json"
    done = bench(f"--dnn-config={config}", f"--benchmark-json={target}", f"--dnn-baseline={tmp_path}/runs/*.json",
                 *ONE, cwd=folder)  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert told in done.stdout
    # A regression is a result like any other.
    assert json.loads(target.read_text())["dnnbench"]["complete"] is True
    assert not (tmp_path / "out.json.partial").exists()


def test_what_cannot_be_compared_is_status_two_also_without_a_json(earlier, tmp_path):
    config, out, folder = earlier
    runs = with_rate(out, tmp_path / "runs", 1)
    done = bench(f"--dnn-config={config}", f"--dnn-baseline={runs}", *ONE, "--dnn-set=execution.rounds=2", cwd=folder)
    assert done.returncode == 2
    assert "refused: configuration: execution.rounds: 3, now 2 (in 1 benchmark)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dnn-baseline=nowhere"], "nowhere: there is no such baseline in baselines, and no such result file"),
        (["--dnn-allow=hadrware"], "expected some of catalog"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(earlier, arguments, told):
    config, _, folder = earlier
    done = bench(f"--dnn-config={config}", *arguments, *ONE, cwd=folder)
    assert done.returncode == 4
    assert told in done.stderr
    assert "passed" not in done.stdout
