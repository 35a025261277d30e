"""The Merkle tree of RFC 6962, over leaves that are only ever added: roots, and proofs of inclusion and consistency.

The hash of a leaf is ``SHA-256(0x00 || leaf)``, that of two subtrees ``SHA-256(0x01 || left || right)``, and a tree of
n leaves is split at the largest power of two below n. So all hashes but those on the right edge belong to complete
subtrees, which never change: whoever appends stores each of them once, by its level and its place there, and a root
or a proof takes O(log n) of them.

::

    appended    number, leaf's hash   --> the complete subtrees that it ends
    root_of     size                  --> root
    inclusion   number, size          --> proof   --includes-->   root
    consistency earlier, later size   --> proof   --extends-->    later root

Sources: RFC 6962 section 2.1; the checks are those of RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

__all__ = [
    "EMPTY",
    "HASH_BYTES",
    "Node",
    "appended",
    "consistency",
    "ended",
    "extends",
    "includes",
    "inclusion",
    "joined",
    "leaf_hash",
    "root_of",
]

HASH_BYTES = 32
EMPTY = sha256(b"").digest()  # the root of a tree without leaves
Node = Callable[[int, int], bytes]  # the hash of the complete subtree of a level (0: leaves) at a place in it


def leaf_hash(leaf: bytes) -> bytes:
    """Returns the hash of a leaf's bytes."""
    return sha256(b"\x00" + leaf).digest()


def joined(left: bytes, right: bytes) -> bytes:
    """Returns the hash of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


def appended(number: int, leaf: bytes, node: Node) -> Iterator[tuple[int, int, bytes]]:
    """Yields level, place and hash of each complete subtree that a leaf ends, from the leaf itself upwards.

    Args:
        number: of the leaf, from 0: as many as the tree had.
        leaf: its hash.
        node: gives the hashes of before.
    """
    found = leaf
    for level, place in ended(number):
        if level:
            found = joined(node(level - 1, 2 * place), found)
        yield level, place, found


def ended(number: int) -> Iterator[tuple[int, int]]:
    """Yields level and place of each complete subtree that a leaf ends, from the leaf itself upwards."""
    level = 0
    yield level, number
    while number % 2:
        level, number = level + 1, number // 2
        yield level, number


def root_of(size: int, node: Node) -> bytes:
    """Returns the root of the first ``size`` leaves."""
    return _root(0, size, node) if size else EMPTY


def inclusion(number: int, size: int, node: Node) -> list[bytes]:
    """Returns the proof that leaf ``number`` is one of the first ``size``: the hashes beside its way to the root.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= number < size:
        raise ValueError(f"expected a leaf from 0 to {size - 1}, got {number}")
    start, end, found = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if number < middle:
            found.append(_root(middle, end, node))
            end = middle
        else:
            found.append(_root(start, middle, node))
            start = middle
    return found[::-1]


def consistency(earlier: int, later: int, node: Node) -> list[bytes]:
    """Returns the proof that the first ``earlier`` leaves are the beginning of the first ``later``.

    Raises:
        ValueError: the earlier tree is larger, or empty.
    """
    if not 0 < earlier <= later:
        raise ValueError(f"expected an earlier size from 1 to {later}, got {earlier}")
    start, end, whole, found = 0, later, True, []
    while earlier != end:
        middle = start + _split(end - start)
        if earlier <= middle:
            found.append(_root(middle, end, node))
            end = middle
        else:
            found.append(_root(start, middle, node))
            start, whole = middle, False
    return [*([] if whole else [_root(start, end, node)]), *found[::-1]]


def includes(root: bytes, size: int, number: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Says whether a proof shows that a leaf of that hash is the one of that number below the root of ``size``."""
    if not 0 <= number < size:
        return False
    place, last, found = number, size - 1, leaf
    for beside in proof:
        if last == 0:
            return False
        if place % 2 or place == last:
            found = joined(beside, found)
            while not (place % 2 or place == 0):
                place, last = place // 2, last // 2
        else:
            found = joined(found, beside)
        place, last = place // 2, last // 2
    return last == 0 and found == root


def extends(later_root: bytes, later: int, earlier_root: bytes, earlier: int, proof: Sequence[bytes]) -> bool:
    """Says whether a proof shows that the tree of ``later`` leaves begins with that of ``earlier``."""
    if not 0 < earlier <= later:
        return False
    if earlier == later:
        return not proof and earlier_root == later_root
    given = list(proof)
    if earlier & (earlier - 1) == 0:  # a complete subtree, whose root the proof leaves out
        given.insert(0, earlier_root)
    if not given:
        return False
    place, last = earlier - 1, later - 1
    while place % 2:
        place, last = place // 2, last // 2
    before = after = given[0]
    for beside in given[1:]:
        if last == 0:
            return False
        if place % 2 or place == last:
            before, after = joined(beside, before), joined(beside, after)
            while not (place % 2 or place == 0):
                place, last = place // 2, last // 2
        else:
            after = joined(after, beside)
        place, last = place // 2, last // 2
    return last == 0 and before == earlier_root and after == later_root


def _split(leaves: int) -> int:
    """Returns the largest power of two below a number of leaves, of at least 2."""
    return int(1 << (leaves - 1).bit_length() - 1)


def _root(start: int, end: int, node: Node) -> bytes:
    """Returns the root of leaves ``start`` to ``end``, a range that splitting a tree has left."""
    size = end - start
    if size & (size - 1) == 0:
        return node(size.bit_length() - 1, start // size)
    middle = start + _split(size)
    return joined(_root(start, middle, node), _root(middle, end, node))
