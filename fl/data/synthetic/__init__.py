"""Synthetic populations of people who mix languages: grammar, spelling habits, voices (espeak-ng, Kokoro), rooms, microphones.

Knows language pairs and how people speak and write; not how a population is divided or trained on.
"""

from fl.data.synthetic.pairs import known_pairs, load_pair
from fl.data.synthetic.population import new_people_of, population_digest, synthesize, traits_of

__all__ = ["known_pairs", "load_pair", "new_people_of", "population_digest", "synthesize", "traits_of"]
