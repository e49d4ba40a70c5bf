"""Requests and money: linear in what was requested, the same per sample whatever the catalog, and no part of a hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import record as record_of

from dnnbench.config import Config, ConfigError, Prices, expand_settings
from dnnbench.metrics import EpochFigures, Round, Tally, record
from dnnbench.metrics_money import bytes_per_used_byte, cost, cost_of_requests, per_sample
from dnnbench.notes import costs

VERBS = ("GET", "HEAD", "LIST", "PUT", "DELETE")
REQUESTS = st.dictionaries(st.sampled_from(VERBS), st.integers(0, 10**9))
PRICE = st.floats(0, 1e3)


def prices(**asked):
    return Prices(**asked)


def of(requests, table, **what):
    known = {"transferred_bytes": 0, "stored_bytes": 0, "passes": 1, "samples": 1, **what}
    return cost(requests, prices=table, **known)


@given(REQUESTS, REQUESTS, PRICE, PRICE)
def test_the_cost_of_requests_adds_up(some, others, get, dearer):
    table = prices(get_per_1000=get, put_list_per_1000=dearer)
    both = {verb: some.get(verb, 0) + others.get(verb, 0) for verb in VERBS}
    apart = cost_of_requests(some, table) + cost_of_requests(others, table)
    assert cost_of_requests(both, table) == pytest.approx(apart)


@given(REQUESTS, st.integers(0, 10**15), st.integers(1, 50), st.integers(1, 10**6), PRICE, PRICE)
def test_more_passes_of_the_same_kind_cost_the_same_each(requests, transferred, times, samples, price, transfer):
    table = prices(get_per_1000=price, transfer_per_gb=transfer)
    one = of(requests, table, transferred_bytes=transferred, samples=samples)
    many = of(
        {verb: times * count for verb, count in requests.items()},
        table,
        transferred_bytes=times * transferred,
        samples=times * samples,
        passes=times,
    )
    for key in ("per_epoch", "requests_per_epoch", "transfer_per_epoch", "per_million_samples"):
        assert many[key] == pytest.approx(one[key])
    assert one["per_epoch"] == pytest.approx(one["requests_per_epoch"] + one["transfer_per_epoch"])


@given(REQUESTS, st.floats(0, 100))
def test_costs_are_proportional_to_the_prices(requests, factor):
    table = prices()
    scaled = prices(
        get_per_1000=factor * table.get_per_1000,
        put_list_per_1000=factor * table.put_list_per_1000,
        storage_per_gb_month=factor * table.storage_per_gb_month,
    )
    one, other = (of(requests, each, stored_bytes=10**12) for each in (table, scaled))
    for key in ("per_epoch", "per_million_samples", "storage_per_month"):
        assert other[key] == pytest.approx(factor * one[key])


def test_a_known_bill():
    # A million objects of 100 KiB, each by one GET, after a listing of 1,000 a page.
    told = of(
        {"GET": 1_000_000, "LIST": 1000, "DELETE": 7},
        prices(transfer_per_gb=0.09),
        transferred_bytes=1_000_000 * 100 * 1024,
        stored_bytes=1024**4,
        samples=1_000_000,
    )
    assert told["requests_per_epoch"] == pytest.approx(0.40 + 0.005)
    assert told["transfer_per_epoch"] == pytest.approx(0.09 * 1e6 * 100 / 1024**2)
    assert told["per_million_samples"] == told["per_epoch"]
    assert told["storage_per_month"] == pytest.approx(0.023 * 1024)
    assert told["currency"] == "USD"
    # The prices that the README and docs/requests-and-cost.md name.
    assert Prices().model_dump() == {
        "currency": "USD", "get_per_1000": 0.0004, "put_list_per_1000": 0.005, "transfer_per_gb": 0.0,
        "storage_per_gb_month": 0.023, "date": "2026-06",
        "source": "AWS S3 Standard, us-east-1, list prices, read in that region",
    }  # fmt: skip


def test_without_a_sample_nothing_is_divided():
    assert per_sample({"GET": 3}, 0) is None
    assert bytes_per_used_byte(10, 0) is None
    assert of({"GET": 3}, prices(), samples=0)["per_million_samples"] is None


def rounds(count=3, samples=10, epochs=0, used_bytes=None, verb="GET", listed_bytes=None):
    made = []
    for _ in range(count):
        tally = Tally(read_bytes=samples * 100)
        tally.latency_ns.extend([10**6] * samples)
        tally.requests[verb] += samples + 1
        of_epochs = [EpochFigures(samples, samples * 100, 10**9, 1, 1, 1) for _ in range(epochs)]
        one = Round(samples, tally, listed_bytes, of_epochs, used_bytes=used_bytes)
        one.wall_ns = 10**9
        made.append(one)
    return made


def figures(made, table=None):
    return record(made, cores=2, peak_memory_bytes=None, prices=table, stored_bytes=1000)


def test_the_record_has_the_requests_of_a_sample_retries_included_and_the_cost_of_a_pass():
    told = figures(rounds(), prices(get_per_1000=1000.0))
    assert told["requests_per_sample"] == {"GET": 1.1}
    assert told["bytes_per_used_byte"] == 1.0
    # Three rounds of eleven requests, a unit each.
    assert told["cost"]["per_epoch"] == pytest.approx(11)
    assert told["cost"]["per_million_samples"] == pytest.approx(1.1e6)


def test_a_training_has_several_epochs_in_one_round():
    told = figures(rounds(count=1, epochs=4), prices(get_per_1000=1000.0))
    assert told["cost"]["per_epoch"] == pytest.approx(11 / 4)


def test_what_is_read_beside_the_samples_shows():
    assert figures(rounds(used_bytes=800))["bytes_per_used_byte"] == pytest.approx(1000 / 800)


def test_a_listing_reads_nothing_and_a_file_system_bills_nothing():
    told = figures(rounds(verb="LIST", listed_bytes=5000), prices(put_list_per_1000=1000.0))
    assert told["bytes_per_used_byte"] is None
    assert told["requests_per_sample"] == {"LIST": 1.1}
    assert told["cost"]["per_epoch"] == pytest.approx(11)
    assert figures(rounds())["cost"] is None


def test_prices_are_no_part_of_what_tells_configurations_apart():
    one, other = (expand_settings({}, [f"prices.get_per_1000={price}"])[0].config for price in (0.0004, 7))
    assert one.resolved() != other.resolved()
    assert one.hash() == other.hash() == Config().hash()
    assert one.hash() != expand_settings({}, ["execution.rounds=4"])[0].config.hash()


@pytest.mark.parametrize("key", ["get_per_1000", "put_list_per_1000", "transfer_per_gb", "storage_per_gb_month"])
@pytest.mark.parametrize("value", ["-0.1", "NaN", "Infinity", "free", "true", "null"])
def test_a_price_that_is_none_is_one_line(key, value):
    with pytest.raises(ConfigError, match=rf"prices\.{key}: found .*, expected"):
        expand_settings({}, [f"prices.{key}={value}"])


def test_whatever_currency_is_taken_as_it_is():
    assert expand_settings({}, ["prices.currency=Taler"])[0].config.prices.currency == "Taler"
    with pytest.raises(ConfigError, match=r"prices\.currency"):
        expand_settings({"prices": {"currency": ""}}, [])


def test_a_line_for_each_storage_that_bills_says_what_a_sample_takes():
    table = prices()
    billed = []
    for what, count in (("read c8", 10), ("read c32", 10), ("ranges", 25)):
        requests = {"GET": count}
        told = {"requests_per_sample": per_sample(requests, 10), "cost": of(requests, table, samples=10)}
        billed.append(record_of(what=what, **told))
    free = record_of(storage="fs", client="posix", requests_per_sample={"READ": 1.0}, cost=None)
    (line,) = costs([free, *billed])
    assert line == (
        "aws (obstore): requests: 1 GET/sample, 0.4 USD per million samples (read c8, read c32); 2.5 GET/sample, 1 USD "
        "per million samples (ranges); prices of 2026-06"
    )
    # The same over files and over shards.
    several = [
        record_of(
            what="read", swept={"dataset.format": kind}, requests_per_sample={"GET": each},
            cost=of({"GET": 10}, table, samples=10),
        )
        for kind, each in (("files", 1.0), ("tar", 0.1))
    ]  # fmt: skip
    (line,) = costs(several)
    assert line == (
        "aws (obstore): requests: 1 GET/sample, 0.4 USD per million samples (read format=files); 0.1 GET/sample, 0.4 "
        "USD per million samples (read format=tar); prices of 2026-06"
    )
    # Shards, or large objects, are no samples.
    told = {"requests_per_sample": {"GET": 1.0}, "cost": of({"GET": 10}, table, samples=10)}
    shards = record_of(what="read c8", format="tar", **told)
    samples = record_of(what="torch loader random", format="tar", samples=10, **told)
    large = record_of(what="ranges", catalog={"part": "large"}, **told)
    (line,) = costs([shards, samples, large])
    assert line == (
        "aws (obstore): requests: 1 GET/shard, 0.4 USD per million shards (read c8); 1 GET/sample, 0.4 USD per million "
        "samples (torch loader random); 1 GET/object, 0.4 USD per million objects (ranges); prices of 2026-06"
    )
    # A record of an earlier version has neither.
    assert list(costs([record_of()])) == []
