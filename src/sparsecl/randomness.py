"""Named random streams: every random choice says which stream it draws from (paper, section Replicates).

A replicate varies everything random. The streams are `base` (initialisation and pretraining order),
`data` (suite, splits, tokenizer), `batches`, `calibration`, `eval` and those the probes name; each is
derived from (study seed, replicate, stream name) alone, so adding one never moves another.
"""

import hashlib

import numpy as np


def stream_seed(study_seed: int, replicate: int | str, name: str) -> int:
    """Return the 63-bit seed of one named stream; equal arguments give equal seeds for ever."""
    digest = hashlib.sha256(f"{study_seed}/{replicate}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(study_seed: int, replicate: int | str, name: str) -> np.random.Generator:
    """Return a fresh NumPy generator of the named stream."""
    return np.random.default_rng(stream_seed(study_seed, replicate, name))
