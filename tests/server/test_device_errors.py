"""Device errors as callers of the service see them: status, readiness, liveness, metrics, and the end."""

import time

from mimic_engine.errors import DeviceError, DeviceLostError

JORDAN = {"mention": "Jordan", "sentence": "the river in the east"}
OOM = DeviceError("text_encoder.onnx: out of memory: RuntimeError: secret path", reason="out of memory")


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "condition never held"
        time.sleep(0.001)


def test_an_error_once_then_ready_again(serve, linker, error_of):
    client = serve(device_retry_delay_s=0)
    linker.fail_device = OOM
    linker.warm_gate.clear()  # recovering ends with a warm-up
    response = client.post("/v1/link", json=JORDAN)
    error = error_of(response, 503, "device_error")
    assert error["message"] == "the device failed on a batch: out of memory"
    assert int(response.headers["retry-after"]) >= 1 and "secret" not in response.text
    for path in ("/health/ready", "/v2/health/ready"):
        assert client.get(path).status_code == 503
    assert "recovering" in error_of(client.get("/health/ready"), 503, "not_ready")["message"]
    assert "recovering" in error_of(client.post("/v1/link", json=JORDAN), 503, "not_ready")["message"]
    assert client.get("/health/live").status_code == 200
    assert "mimic_ready 0.0" in client.get("/metrics").text
    linker.fail_device = None
    linker.warm_gate.set()
    until(lambda: client.get("/health/ready").status_code == 200)
    assert client.post("/v1/link", json=JORDAN).status_code == 200
    assert linker.recovered == 1
    text = client.get("/metrics").text
    assert "mimic_device_recoveries_total 1.0" in text and "mimic_batch_failures_total 1.0" in text


def test_a_batch_says_it_for_each_of_its_mentions(serve, linker):
    client = serve(device_retry_delay_s=0)
    linker.fail_device = OOM
    answer = client.post("/v1/link:batch", json={"mentions": [JORDAN, JORDAN]})
    assert answer.text.count("device_error") == 2
    linker.fail_device = None
    until(lambda: client.get("/health/ready").status_code == 200)


def test_an_error_for_ever_stays_unready_and_ends_cleanly(serve, linker, error_of):
    client = serve(device_retry_delay_s=0, device_attempts=3)
    linker.fail_device = linker.fail_recovery = OOM
    error_of(client.post("/v1/link", json=JORDAN), 503, "device_error")
    until(lambda: client.get("/health/live").status_code == 503)
    assert "only a restart helps" in error_of(client.get("/health/live"), 503, "not_ready")["message"]
    linker.fail_device = linker.fail_recovery = None  # too late: the attempts are over
    for response in (client.get("/health/ready"), client.post("/v1/link", json=JORDAN)):
        assert "only a restart helps" in error_of(response, 503, "not_ready")["message"]
    assert not client.get("/v2/health/live").json()["live"]
    assert linker.recovered == 0
    client.app.state.service.close()
    assert not client.app.state.service.batcher._thread.is_alive()


def test_a_lost_device_is_not_tried_again(serve, linker, error_of, caplog):
    client = serve()
    linker.fail_device = DeviceLostError("scan: illegal memory access", reason="its context is broken")
    error = error_of(client.post("/v1/link", json=JORDAN), 503, "device_error")
    assert error["message"] == "the device failed on a batch: its context is broken"
    until(lambda: client.get("/health/live").status_code == 503)
    assert "only a restart helps" in error_of(client.get("/health/ready"), 503, "not_ready")["message"]
    assert linker.recovered == 0
    assert "illegal memory access" in caplog.text and "restart" in caplog.text
