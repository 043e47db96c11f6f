"""Frequent itemsets, by intersecting the sets of transactions that hold an item."""

from collections.abc import Iterable, Sequence

from kdzoo.errors import UserError

MOST = 200_000  # itemsets: more are not patterns but an explosion


def frequent_itemsets(transactions: Sequence[Iterable[int]], least: int) -> list[tuple[tuple[int, ...], int]]:
    """All itemsets that `least` or more transactions hold, with how many do; the most frequent first.

    Depth-first over items from the rarest to the commonest (Eclat), a set of transactions being the bits of an integer.

    Raises:
        UserError: There are more than `MOST`.
    """
    holders: dict[int, int] = {}
    for number, items in enumerate(transactions):
        for item in set(items):
            holders[item] = holders.get(item, 0) | 1 << number
    common = [(item, bits) for item, bits in holders.items() if bits.bit_count() >= least]
    common.sort(key=lambda each: (each[1].bit_count(), each[0]))
    found: list[tuple[tuple[int, ...], int]] = []
    waiting: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = [((), common)]
    while waiting:
        prefix, candidates = waiting.pop()
        for place, (item, bits) in enumerate(candidates):
            found.append(((*prefix, item), bits.bit_count()))
            further = [(other, bits & more) for other, more in candidates[place + 1 :]]
            further = [(other, more) for other, more in further if more.bit_count() >= least]
            if further:
                waiting.append(((*prefix, item), further))
        if len(found) > MOST:
            raise UserError(f"A support of {least} graphs leaves more than {MOST:,} patterns: raise it.")
    return sorted(((tuple(sorted(items)), count) for items, count in found), key=lambda each: (-each[1], each[0]))
