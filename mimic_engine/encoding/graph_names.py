"""Names of an exported model's graphs and of what goes in and out of them, for all who write or run one.

A fold gives the fields of :class:`~mimic_engine.types.MentionArrays` or
:class:`~mimic_engine.types.EntityArrays` under the prefix of its side, and the
scorer takes the arrays of both and gives :data:`TOTAL` and a score a unit.
Shapes are in the model's manifest (:mod:`mimic_engine.encoding.manifest`).
"""

from __future__ import annotations

TEXT_ENCODER, IMAGE_ENCODER = ENCODERS = ("text_encoder", "image_encoder")
MENTION_FOLD, ENTITY_FOLD = FOLDS = ("mention_fold", "entity_fold")
SCORER = "scorer"
GRAPHS = (*ENCODERS, *FOLDS, SCORER)

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
IDS, MASK = TEXT_INPUTS[:2]
PIXELS = "pixels"  # what an image encoder takes
CLS, TOKENS = "cls", "tokens"  # what either encoder gives
FEATURES = ("text_cls", "text_tokens", "text_mask", "image_cls", "image_tokens")  # what either fold takes
TEXT_CLS, TEXT_TOKENS, TEXT_MASK = FEATURES[:3]
MENTION, ENTITY = "mention_", "entity_"  # prefixes of folded arrays
TOTAL = "total"
