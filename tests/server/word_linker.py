"""A linker small enough to check by hand: candidates are ranked by the words they share with the mention.

It obeys the linker's contract in full (preparing checks and decodes, device work ranks, bad ids raise),
and its device can be held at a gate, slowed or broken. Run as a script it serves itself:
``python word_linker.py PORT DEVICE_SECONDS [SETTING=VALUE ...]``.
"""

import copy
import io
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from mimic_engine.errors import ImageError, ImageTypeError, InvalidInputError, UnknownEntityError
from mimic_engine.index.entities import image_path
from mimic_engine.types import Candidate, Entity, Explanation, LinkResult, TokenSpan

ENTITIES = (
    Entity("Q810", "Jordan", "country east of Israel", (b"flag", b"map"), "country", ("Urdunn", "HKJ"), 7.5),
    Entity("Q41421", "Michael Jordan", "American basketball player", (), "person"),
    Entity("a/b c", "Jordan River", "river in the east", (), "river"),
    Entity("Q312", "Apple", "American company"),
)


class WordIndex:
    def __init__(self, entities):
        self.entities = tuple(entities)
        self.row_of = {e.id: i for i, e in enumerate(self.entities)}

    def __len__(self):
        return len(self.entities)

    def rows(self, ids):
        for id_ in ids:
            if id_ not in self.row_of:
                raise UnknownEntityError(f"id: {id_!r} is not in the index")
        return [self.row_of[id_] for id_ in ids]

    def select(self, ids=None, types=None):
        if ids is not None and len(set(ids)) != len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise InvalidInputError(f"candidates: {twice!r} is given twice", field="candidates")
        rows = range(len(self)) if ids is None else self.rows(ids)
        if types is not None:
            rows = [row for row in rows if self.entities[row].type in types]
            if not rows:
                raise InvalidInputError("types: no entity has one of them", field="types")
        return rows

    def entity(self, row):
        return self.entities[row]

    def image(self, row):
        images = [image for image in self.entities[row].images if not isinstance(image, bytes)]
        return image_path(Path("/nowhere"), str(images[0])) if images else None


class WordRequest(NamedTuple):
    words: list
    has_image: bool
    options: object
    rows: list


class WordLinker:
    """What the service asks of a :class:`mimic_engine.Linker`."""

    model_hash = "words-1"

    threshold = cache = None
    counts_names = False
    modes = ("exact", "certified")

    def __init__(self, entities=ENTITIES, device_s=0.0):
        self.index = WordIndex(entities)
        self.device_s = device_s
        self.stored = [self.index.entities]  # what lies on the disk: the same for all that were reopened
        self.gate, self.warm_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.warm_gate.set()
        self.started = threading.Semaphore(0)  # released once for every batch that reaches the device
        self.fail_device = self.fail_prepare = self.fail_warm_up = self.fail_recovery = None
        self.recovered = 0
        self.batches, self.device_threads = [], set()

    def nil_threshold(self, names=True):
        return self.threshold

    def reopened(self):
        if self.stored[0] is self.index.entities:
            return self
        other = copy.copy(self)
        other.index = WordIndex(self.stored[0])
        return other

    def prepare(self, mention, options):
        if self.fail_prepare:
            raise self.fail_prepare
        if options.mode not in self.modes:
            raise InvalidInputError(f"mode: must be one of {', '.join(self.modes)}", field="mode")
        try:
            rows = self.index.select(options.candidates, options.types)
        except UnknownEntityError as error:
            error.field = "candidates"
            raise
        if mention.image is not None:
            check_image(mention.image)
        words = f"{mention.mention} {mention.sentence}".lower().split()
        return WordRequest(words, mention.image is not None, options, rows)

    def link_prepared(self, requests):
        self.device_threads.add(threading.current_thread().name)
        self.batches.append([request.words for request in requests])
        self.started.release()
        self.gate.wait(30)
        time.sleep(self.device_s)
        if self.fail_device:
            raise self.fail_device
        return [self._rank(*request) for request in requests]

    start_prepared = link_prepared

    def _rank(self, words, has_image, options, rows):
        found = []
        for entity in (self.index.entity(row) for row in rows):
            own = f"{entity.name} {entity.description}".lower().split()
            score = len(set(words) & set(own)) / len(set(own))
            why = Explanation({"tglu": score}, tuple(1 / len(words) for _ in words), 0.0)
            found.append(
                Candidate(entity.id, entity.name, score, {"tglu": score}, why if options.explain else None)
            )
        found.sort(key=lambda c: -c.score)
        tokens = (
            tuple(TokenSpan(word, "mention", 0, len(word)) for word in words) if options.explain else None
        )
        return LinkResult(
            tuple(found[: options.top_k]), len(words) > 40, has_image, options.mode, len(rows), tokens
        )

    def warm_in_steps(self):
        return None

    def warm_up(self):
        self.warm_gate.wait(30)
        if self.fail_warm_up:
            raise self.fail_warm_up

    def recover(self):
        if self.fail_recovery:
            raise self.fail_recovery
        self.warm_up()
        self.recovered += 1

    def info(self):
        return {"model_hash": self.model_hash, "mode": "exact"}


class WordWriter:
    """Changes what a linker finds when it is reopened."""

    def __init__(self, linker):
        self.stored = linker.stored

    def upsert(self, entities):
        for entity in entities:
            for image in entity.images:
                check_image(image)
        ids = {entity.id for entity in entities}
        self.stored[0] = (*(e for e in self.stored[0] if e.id not in ids), *entities)

    def delete(self, ids):
        rows = WordIndex(self.stored[0]).rows(ids)
        self.stored[0] = tuple(e for row, e in enumerate(self.stored[0]) if row not in rows)


def check_image(data):
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in ("PNG", "JPEG", "WEBP"):
                raise ImageTypeError(f"image: format {image.format} is not allowed", field="image")
            image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ImageError(f"image: cannot be decoded: {error}", field="image") from error


def main():
    from mimic_engine.server.app import create_app
    from mimic_engine.server.lifecycle import DrainingServer, bind
    from mimic_engine.server.settings import Settings

    port, device_s, *options = sys.argv[1:]
    settings = Settings(**dict(option.split("=") for option in options))
    with bind("127.0.0.1", int(port)) as taken:
        linker = WordLinker(device_s=float(device_s))
        app = create_app(linker, settings, writer=WordWriter(linker))
        say = lambda: print("ready", taken.getsockname()[1], flush=True)  # noqa: E731
        DrainingServer(app, settings, on_ready=say).run(sockets=[taken])
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
