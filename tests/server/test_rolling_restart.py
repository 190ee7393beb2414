"""Two servers are replaced one after the other while clients keep sending: not one request is lost."""

import signal
import threading
import time

import httpx2

from mimic_engine import Mention
from mimic_engine.client import Client

JORDAN = Mention("Jordan", "the river in the east")
CLIENTS = 3


class Router(httpx2.BaseTransport):
    """Sends requests to the servers that say they are ready, in turn, as an orchestrator's service does."""

    def __init__(self):
        self.ports, self.ready, self.turn, self.served = [], [], 0, {}
        self.inner = httpx2.HTTPTransport()
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.prober = threading.Thread(target=self.probe, daemon=True)
        self.prober.start()

    def probe(self):
        with httpx2.Client(timeout=5) as probe:
            while not self.stopped.is_set():
                self.ready = [port for port in list(self.ports) if self.is_ready(probe, port)]
                time.sleep(0.01)

    @staticmethod
    def is_ready(probe, port):
        try:
            return probe.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def handle_request(self, request):
        with self.lock:
            self.turn += 1
            ready = self.ready
            if not ready:
                raise httpx2.ConnectError("nobody is ready")
            port = ready[self.turn % len(ready)]
        request.url = request.url.copy_with(host="127.0.0.1", port=port)
        response = self.inner.handle_request(request)
        with self.lock:
            self.served[port] = self.served.get(port, 0) + (response.status_code == 200)
        return response

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition(self):
            assert time.monotonic() < end
            time.sleep(0.01)


def keep_sending(router, stop, answers, failures):
    with Client("http://service", transport=router) as client:
        while not stop.is_set():
            try:
                answers.append(client.link(JORDAN, top_k=1).candidates[0].id)
            except Exception as error:
                failures.append(error)


def test_not_one_request_is_lost(start):
    router, stop, answers, failures = Router(), threading.Event(), [], []
    options = {"drain_grace_s": 0.3}
    threads = [
        threading.Thread(target=keep_sending, args=(router, stop, answers, failures), daemon=True)
        for _ in range(CLIENTS)
    ]
    with start(0.002, **options) as (first, a), start(0.002, **options) as (second, b):
        router.ports = [a, b]
        router.until(lambda r: len(r.ready) == 2)
        for thread in threads:
            thread.start()
        router.until(lambda r: min(r.served.get(a, 0), r.served.get(b, 0)) >= 5)
        with start(0.002, **options) as (third, c):
            replace(router, first, a, c)
            with start(0.002, **options) as (fourth, d):
                replace(router, second, b, d)
                stop.set()
                for thread in threads:
                    thread.join(60)
                assert third.poll() is fourth.poll() is None
    router.stopped.set()
    router.prober.join(10)
    router.inner.close()
    assert failures == []
    assert set(answers) == {"a/b c"}
    assert len(answers) == sum(router.served.values())


def replace(router, old, old_port, new_port):
    """Add the new server, then let the old one drain and end, then serve a while without it."""
    router.ports = [*router.ports, new_port]
    router.until(lambda r: r.served.get(new_port, 0) >= 5)
    old.send_signal(signal.SIGTERM)
    router.until(lambda r: old_port not in r.ready)
    assert old.wait(60) == 0
    router.ports = [port for port in router.ports if port != old_port]
    before = router.served[new_port]
    router.until(lambda r: r.served[new_port] >= before + 5)
