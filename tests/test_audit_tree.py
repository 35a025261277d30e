"""The Merkle tree of RFC 6962: the published vectors, and proofs of every size against every other claim."""

import itertools
from collections.abc import Callable

import pytest

from ilcp.audit.tree import appended, consistency, extends, includes, inclusion, leaf_hash, root_of

# Of Certificate Transparency's reference implementation: leaves, and the root after each.
LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
PROOF = (  # of leaf 5 among 8
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    ROOTS[3],
)
SIZE = 40


@pytest.fixture(scope="module")
def node() -> Callable[[int, int], bytes]:
    """A tree of the published leaves and some more."""
    hashes: dict[tuple[int, int], bytes] = {}

    def known(level: int, place: int) -> bytes:
        return hashes[level, place]

    for number in range(SIZE):
        leaf = bytes.fromhex(LEAVES[number]) if number < len(LEAVES) else bytes([number])
        for level, place, made in appended(number, leaf_hash(leaf), known):
            assert (level, place) not in hashes  # a complete subtree never changes
            hashes[level, place] = made
    return known


def test_roots_are_the_published_ones(node) -> None:
    assert list(ROOTS) == [root_of(size, node).hex() for size in range(1, len(ROOTS) + 1)]
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" == root_of(0, node).hex()
    assert list(PROOF) == [each.hex() for each in inclusion(5, 8, node)]


def test_a_proof_of_inclusion_shows_one_leaf_at_one_place(node) -> None:
    """Every leaf of every size has one; another place, leaf, size, root or proof is refused."""
    for size in range(1, SIZE + 1):
        root = root_of(size, node)
        for number in range(size):
            proof, leaf = inclusion(number, size, node), node(0, number)
            assert includes(root, size, number, leaf, proof)
            assert not includes(root, size, number, leaf[::-1], proof)
            assert not includes(root[::-1], size, number, leaf, proof)
            assert not any(includes(root, size, other, leaf, proof) for other in range(size) if other != number)
            assert not includes(root, size, number, leaf, [*proof, root])
            assert not proof or not includes(root, size, number, leaf, proof[:-1])
            assert not includes(root, size, number, leaf, [each[::-1] for each in proof]) or not proof
        assert not includes(root, size, size, node(0, 0), [])
        assert not includes(root, size, -1, node(0, 0), [])
    for number, size in ((5, 5), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="expected a leaf from 0"):
            inclusion(number, size, node)


def test_a_proof_of_consistency_shows_a_beginning(node) -> None:
    """Every size begins every later one; another size, root or proof is refused."""
    for earlier, later in itertools.combinations_with_replacement(range(1, SIZE + 1), 2):
        proof = consistency(earlier, later, node)
        before, after = root_of(earlier, node), root_of(later, node)
        assert extends(after, later, before, earlier, proof)
        assert not extends(after, later, before[::-1], earlier, proof)
        assert not extends(after[::-1], later, before, earlier, proof)
        assert not extends(after, later, before, earlier, [*proof, after])
        assert not proof or not extends(after, later, before, earlier, proof[:-1])
        assert earlier == 1 or not extends(after, later, before, earlier - 1, proof)
    assert not extends(root_of(3, node), 3, root_of(0, node), 0, [])
    for earlier, later in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match="expected an earlier size"):
            consistency(earlier, later, node)
