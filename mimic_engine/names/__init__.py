"""Names of entities: what a surface form shares with the names and aliases of an entity, as numbers.

:mod:`~mimic_engine.names.text` says when two names are the same, :mod:`~mimic_engine.names.features`
what is measured, :mod:`~mimic_engine.names.forms` what an index keeps of them, and
:mod:`~mimic_engine.names.lookup` finds the entities that share something with a mention.
"""
