"""The load generator: when requests leave, from when latency counts, which answers are right, what a row says."""

import asyncio
import time
from dataclasses import replace

import pytest
from aiohttp import web

from benchmarks.service.open_loop import Caller, Question, Sample, offer, percentile, session, summarise
from mimic_engine.errors import EngineError

RIGHT = (("a", 80.0), ("b", 70.0), ("c", 60.0))
QUESTION = Question(b"{}", 2, RIGHT)


def candidates(*pairs):
    return [{"id": id_, "score": score} for id_, score in pairs]


def test_the_right_answer_passes_with_rounding():
    QUESTION.check(candidates(("a", 80.0005), ("b", 69.9995)))


@pytest.mark.parametrize(
    "wrong",
    [
        candidates(("b", 70.0), ("a", 80.0)),
        candidates(("a", 80.0), ("c", 60.0)),
        candidates(("a", 80.0), ("x", 70.0)),
        candidates(("a", 81.0), ("b", 70.0)),
        candidates(("a", float("nan")), ("b", 70.0)),
        candidates(("a", 80.0)),
        candidates(("a", 80.0), ("b", 70.0), ("c", 60.0)),
        candidates(("a", 80.0), ("b", 70.0), ("c", 60.0), ("d", 50.0)),
        [],
    ],
)
def test_a_wrong_answer_is_told(wrong):
    with pytest.raises(EngineError, match="wrong answer"):
        QUESTION.check(wrong)


def test_ties_may_change_places_even_with_the_runner_up():
    tied = replace(QUESTION, answer=(("a", 80.0), ("b", 70.0), ("c", 70.001)))
    tied.check(candidates(("a", 80.0), ("c", 70.001)))
    with pytest.raises(EngineError):
        QUESTION.check(candidates(("a", 80.0), ("c", 60.0)))


def test_entities_that_were_added_are_left_out():
    QUESTION.check(candidates(("new-1", 90.0), ("a", 80.0)), beside="new-")
    with pytest.raises(EngineError):
        QUESTION.check(candidates(("new-1", 90.0), ("a", 80.0)))


def run_against(handler, question, rate, seconds):
    """Offer load to a handler on a real socket; gives the samples."""

    async def run():
        app = web.Application()
        app.router.add_post("/v1/link", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        try:
            async with session() as client:
                return await offer(
                    Caller(client, f"http://127.0.0.1:{port}/v1/link"), [question], rate, seconds
                )
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def answer(*pairs, **headers):
    return web.json_response({"candidates": candidates(*pairs)}, headers=headers)


def test_requests_leave_evenly_and_do_not_wait_for_answers():
    arrived = []

    async def slow(request):
        arrived.append(time.monotonic())
        await asyncio.sleep(0.4)
        return answer(*RIGHT[:2])

    samples = run_against(slow, QUESTION, 50, 0.4)
    assert [s.intended_s for s in samples] == pytest.approx([i / 50 for i in range(20)])
    assert len(arrived) == 20
    assert all(s.latency_ms >= 400 for s in samples)
    assert max(s.done_s for s in samples) < 20 * 0.4  # one after the other would take so long


def test_latency_counts_from_the_intended_moment():
    """A service that stalls once makes all that were due meanwhile late, not one."""
    stalled = False

    async def stall_once(request):
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.5)  # blocks the generator's own loop too: it must not hide that
        return answer(*RIGHT[:2])

    samples = run_against(stall_once, QUESTION, 100, 0.5)
    late = [s for s in samples if s.latency_ms > 100]
    assert len(late) >= 30
    assert max(s.late_ms for s in samples) > 100


def test_refusals_and_server_timing_are_kept():
    async def refuse(request):
        return web.json_response(
            {"error": {"message": "full"}}, status=429, headers={"Server-Timing": "total;dur=1.5"}
        )

    samples = run_against(refuse, QUESTION, 20, 0.2)
    assert {s.status for s in samples} == {429}
    assert samples[0].parts_ms == {"total": 1.5}
    assert "full" in samples[0].problem


def test_a_wrong_answer_ends_the_run():
    async def wrong(request):
        return answer(("z", 1.0))

    with pytest.raises(ExceptionGroup) as raised:
        run_against(wrong, QUESTION, 20, 0.2)
    assert raised.group_contains(EngineError, match="wrong answer")


def test_a_connection_that_breaks_is_a_failure_that_is_named():
    async def hang_up(request):
        request.transport.abort()
        return web.Response()

    samples = run_against(hang_up, QUESTION, 20, 0.1)
    assert {s.status for s in samples} == {0}
    with pytest.raises(EngineError, match=r"2 requests failed, one of them: 0 .*Disconnected"):
        summarise(samples, 20, 0.1)


def test_a_row_sums_up_what_counts():
    parts = {"queue": 3.0, "device": 5.0, "total": 12.0}
    samples = [Sample(i / 10, 0.5, 10.0 * (i + 1), 200, parts) for i in range(10)]
    samples += [Sample(0.55, 0.5, 7.0, 429), Sample(0.95, 0.5, 5_000.0, 504)]
    row = summarise(samples, 12, 1.0, settle_s=0.5)
    assert (row.sent, row.accepted, row.rejected, row.expired) == (7, 5, 1, 1)
    assert row.throughput_per_s == 5 / 0.5
    assert row.p50_ms == pytest.approx(80.0)
    assert row.queue_share == pytest.approx(0.25)
    assert (row.device_p99_ms, row.rejected_p99_ms, row.generator_late_p99_ms) == pytest.approx(
        (5.0, 7.0, 0.5)
    )
    assert row.to_json()["seconds"] == 0.5


def test_a_row_without_answers_says_nothing_of_latency():
    row = summarise([Sample(0.0, 0.0, 3.0, 429)], 1, 1.0)
    assert (row.throughput_per_s, row.p50_ms, row.queue_share) == (0.0, None, None)
    assert percentile([], 50) is None
