"""A held-out test set: the stock list of a shop that does not exist, and mentions of what is in it or not.

98 entities with ambiguous names (a club, a scale, a bass), described and
written about by us; 120 mentions of them and 30 of things that are not in the
list. Images are drawings of the demo's packages, named and not held; that of a
mention is always by another hand than every image of its entity. Nothing is
trained, chosen or tuned on this set: it is only ever tested on.
"""

from benchmarks.catalogue.catalogue import Catalogue, read_catalogue, write_catalogue

__all__ = ["Catalogue", "read_catalogue", "write_catalogue"]
