"""A device of the pipeline in plain memory that runs late, and says in which order things happened.

Nothing that is queued happens before the host waits for it, as slow as a device
may be, so that memory written too early or read too early gives wrong numbers.
"""

import contextlib

import numpy as np

from mimic_engine.gpu.layout import Placed


class LateDevice:
    def __init__(self):
        self.log = []
        self.main, self.uploads = [], []
        self.recording = None
        self.fail_capture = None
        self.inside = 0

    @contextlib.contextmanager
    def current(self):
        self.inside += 1
        yield
        self.inside -= 1

    def memory(self, size_bytes):
        return np.full(max(1, size_bytes), 0xAB, np.uint8)

    pinned = memory

    def place(self, memory, layout):
        return {
            name: Placed(view.ctypes.data, view.shape, view.dtype, view)
            for name, view in layout.views(memory).items()
        }

    def queue(self, name, work):
        (self.main if self.recording is None else self.recording).append((name, work))

    def upload(self, host, memory):
        def work():
            memory[: len(host)] = host

        event = [False]
        self.uploads.append(("upload", work, event))
        self.log.append("queue upload")
        return event

    def wait(self, event):
        self.queue("wait", lambda: self.until(event))

    def until(self, event):
        while not event[0]:
            name, work, done = self.uploads.pop(0)
            work()
            self.log.append(name)
            done[0] = True

    def copy(self, source, target, size_bytes):
        def work():
            target[:size_bytes] = source[:size_bytes]

        self.queue("copy", work)

    def download(self, memory, host):
        def work():
            host[:] = memory[: len(host)]

        self.queue("download", work)

    def mark(self):
        event = [False]

        def work():
            event[0] = True

        self.queue("mark", work)
        return event

    def finish(self, event):
        while not event[0]:
            name, work = self.main.pop(0)
            self.log.append(name)
            work()

    def capture(self, work):
        if self.fail_capture:
            raise self.fail_capture
        self.recording = []
        try:
            work()
            return self.recording
        finally:
            self.recording = None

    def replay(self, graph):
        self.main.extend(graph)
