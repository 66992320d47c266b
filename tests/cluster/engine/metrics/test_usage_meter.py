"""The amounts that an engine counts, by hand: time is the test's, and sequences come and go as it says."""

import random

import pytest

from tandem.cluster.engine.metrics.usage import Charged, EngineUsage, UsageMeter, Used

ALICE, BOB = Charged("sample", "team", "alice", "m", 3), Charged("sample", "team", "bob", "m", 3)
JOB = Charged("score", job_id="j")


class Time:
    now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def meter(time):
    return UsageMeter(time, lambda: 5000.0)


def used(batches):
    sums = {}
    for batch in batches:
        for charged, amounts in batch.used.items():
            sums.setdefault(charged, Used()).add(amounts)
    return sums


def test_time_is_shared_by_the_sequences_that_are_there(meter, time):
    time.passes(1000)  # idle
    meter.begin("a", ALICE)
    time.passes(2)  # alone: 2 for alice
    meter.begin("b", BOB)
    time.passes(6)  # 3 for each
    meter.begin("c", JOB)
    time.passes(3)  # 1 for each
    meter.end("a")
    time.passes(4)  # 2 for each
    meter.end("b")
    meter.end("c")
    time.passes(1000)
    seconds = {charged: amounts.engine_seconds for charged, amounts in used(meter.take()).items()}
    assert seconds == {ALICE: 6.0, BOB: 6.0, JOB: 3.0}
    assert meter.busy_s == 15.0


def test_tokens_are_those_of_the_request_and_a_prompt_of_many_choices_counts_once(meter):
    for index in range(3):
        meter.begin(f"{index}_a", ALICE, is_first=index == 0)
        meter.prefilled(f"{index}_a", 40, 32 if index else 16)
        meter.sampled(f"{index}_a", 5)
    meter.begin("s", JOB)
    meter.prefilled("s", 90, 0)
    meter.sampled("s", 1)  # vLLM samples one token after a prompt that is scored
    meter.sampled("gone", 1)
    for id in ("0_a", "1_a", "2_a", "s", "s", "gone"):
        meter.end(id)
    amounts = used(meter.take())
    assert amounts[ALICE] == Used(requests=1, prompt_tokens=40, cached_prompt_tokens=16, sampled_tokens=15)
    assert amounts[JOB] == Used()


def test_a_prompt_that_was_never_computed_costs_nothing(meter):
    meter.begin("a", ALICE)
    meter.end("a")
    assert used(meter.take())[ALICE] == Used()


def test_a_batch_is_repeated_until_it_is_acknowledged(meter, time):
    meter.begin("a", ALICE)
    meter.sampled("a", 5)
    time.passes(1)
    [first] = meter.take()  # of a sequence that still runs
    assert (first.number, first.used[ALICE].sampled_tokens, first.used[ALICE].engine_seconds) == (1, 5, 1.0)
    meter.sampled("a", 2)
    meter.end("a")
    assert [batch.number for batch in meter.take(0)] == [1, 2]
    [second] = meter.take(1)
    assert (second.number, second.used[ALICE].sampled_tokens) == (2, 2)
    assert meter.take(2) == []
    assert meter.take(2) == []
    assert meter.total.sampled_tokens == 7


def test_batches_that_nobody_fetches_stay_few_and_lose_nothing(meter):
    for index in range(300):
        meter.begin(str(index), ALICE)
        meter.sampled(str(index), 1)
        meter.end(str(index))
        batches = meter.take()
    assert len(batches) < 101
    meter.take(batches[-1].number)
    assert used(batches)[ALICE].sampled_tokens + used(meter.take(batches[-1].number)).get(
        ALICE, Used()
    ).sampled_tokens == pytest.approx(300)


def test_the_charges_are_the_time_in_which_the_engine_had_work(meter, time):
    """Whatever happens, at any time, and whenever batches are taken."""
    chance = random.Random(7)
    running, sums, acknowledged = [], {}, 0
    busy = 0.0
    for number in range(2000):
        passed = chance.choice([0.0, 0.001, 0.5, 3.0])
        time.passes(passed)
        busy += passed if running else 0.0
        if running and chance.random() < 0.5:
            meter.end(running.pop(chance.randrange(len(running))))
        else:
            running.append(str(number))
            meter.begin(str(number), chance.choice([ALICE, BOB, JOB, Charged()]))
        if chance.random() < 0.05:
            batches = meter.take(acknowledged)
            for batch in batches:
                for charged, amounts in batch.used.items():
                    sums[charged] = sums.get(charged, 0.0) + amounts.engine_seconds
                acknowledged = batch.number
    for batch in meter.take(acknowledged):
        for charged, amounts in batch.used.items():
            sums[charged] = sums.get(charged, 0.0) + amounts.engine_seconds
    assert len(sums) == 4
    assert sum(sums.values()) == pytest.approx(busy)
    assert meter.busy_s == pytest.approx(busy)
    assert meter.total.engine_seconds == pytest.approx(busy)


def test_sampling_is_one_stretch_across_short_pauses(meter, time):
    meter.begin("a", ALICE)
    time.passes(2)
    meter.begin("b", BOB)  # the same model
    meter.end("a")
    time.passes(1)
    meter.end("b")
    time.passes(0.9)
    meter.begin("c", ALICE)
    time.passes(1)
    meter.end("c")
    time.passes(5)
    meter.begin("d", ALICE)
    time.passes(1)
    [batch] = meter.take()
    assert [(one.began_at, one.ended_at) for one in batch.sampling] == [(5000.0, 5004.9), (5009.9, 5010.9)]
    time.passes(2)
    meter.end("d")
    [batch] = meter.take(1)
    assert [(one.began_at, one.ended_at) for one in batch.sampling] == [(5010.9, 5012.9)]


def test_a_header_says_who_is_charged_whatever_the_names():
    for charged in (ALICE, Charged("sample", "t/e am", "k%", "", 5, "ftjob-1"), Charged("sample", step=2)):
        assert Charged.of_header(charged.header(), charged.step) == charged
        assert charged.header().isascii() and " " not in charged.header()
    with pytest.raises(ValueError):
        Charged.of_header("team/alice", 3)


def test_amounts_survive_as_json(meter, time):
    meter.begin("a", ALICE)
    meter.begin("b", JOB)
    time.passes(1)
    meter.end("a")
    left = EngineUsage("replica", "tiny", meter.take())
    assert EngineUsage.of_json(left.to_json()) == left
