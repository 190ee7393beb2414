"""The base model: trained by us, for knowledge bases without labelled mentions; made ready on first use."""

from mimic_engine.base.model import BASE, EncoderFiles, base_card, base_model, fetch_encoders, find_model

__all__ = ["BASE", "EncoderFiles", "base_card", "base_model", "fetch_encoders", "find_model"]
