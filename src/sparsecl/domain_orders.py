"""Domain orders by name: the main one, the rows of its Williams design, and its repeat (paper, sections Orders and Drift).

Nothing here imports pandas or torch: the workflow reads studies every time it plans.
"""

from collections.abc import Sequence

MAIN, WILLIAMS = "main", "williams"  # the main order, and the name of the whole design
REPEAT = "repeat"  # the domains of the main order with other batches: how far apart two runs of one fine-tuning end


def williams_design(domains: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Orders in which every domain stands in every position, and right after every other domain, equally often.

    A Williams design (Williams 1949, Australian Journal of Scientific Research A 2:149): n rows for an even number of
    domains n, 2n for an odd one. The first row, `main`, is the given order; the others are `williams-2`, `williams-3`, ...
    """
    domains, n = tuple(domains), len(domains)
    if n < 2 or len(set(domains)) < n:
        raise ValueError(f"domains {domains}: an order design needs at least 2 different domains")
    # 0, 1, n-1, 2, n-2, ...: the distances of neighbours take every value but 0, so the n rotations hold every pair.
    zigzag = [(step + 1) // 2 if step % 2 else -(step // 2) % n for step in range(n)]
    label = dict(zip(zigzag, domains, strict=True))
    rows = [tuple(label[(place + shift) % n] for place in zigzag) for shift in range(n)]
    if n % 2:  # distances then come in pairs d, n-d of one kind only; the reversed rows hold the other kind
        rows += [row[::-1] for row in rows]
    return {MAIN if number == 1 else f"{WILLIAMS}-{number}": row for number, row in enumerate(rows, start=1)}
