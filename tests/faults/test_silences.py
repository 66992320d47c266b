"""Silences of hand-drawn timelines."""

from outcome import Event, Job
from silences import longest_outage, longest_silence


def a_job(created_at, *times):
    types = ["gradient_step"] * (len(times) - 1) + ["training_ended"]
    events = tuple(Event(seq, type, at) for seq, (type, at) in enumerate(zip(types, times, strict=True), 1))
    return Job(f"job{created_at}", "succeeded", 1, None, created_at, events)


def test_waiting_counts_but_idleness_does_not():
    jobs = [a_job(10, 14, 15), a_job(30, 31, 33)]
    assert longest_silence(jobs, 0, 40) == 4  # from acceptance to the first event; from 15 to 30 no job was open


def test_events_of_other_jobs_break_the_silence_but_their_acceptance_does_not():
    assert longest_silence([a_job(10, 20), a_job(11, 14, 21)], 0, 40) == 6
    assert longest_silence([a_job(10, 20), a_job(14, 21, 22)], 0, 40) == 10


def test_only_silences_of_the_fault_count():
    jobs = [a_job(10, 11, 19, 20, 23, 24)]
    assert longest_silence(jobs, 9, 30) == 8
    assert longest_silence(jobs, 21, 30) == 3
    assert longest_silence(jobs, 15, 16) == 8  # the fault came in the middle
    assert longest_silence(jobs, 30, 40) == 0


def test_an_outage_lasts_from_one_answer_to_the_next():
    times = [1.0, 2.0, 9.0, 10.0]
    assert longest_outage(times, 0, 20) == 7
    assert longest_outage(times, 9.5, 20) == 1
    assert longest_outage([], 3, 20) == 17
