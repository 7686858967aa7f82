"""A keyed permutation of 0..n-1 that needs no table: a balanced Feistel network with cycle walking."""

import hashlib

NUM_ROUNDS = 8  # ours: 4 rounds already make a random permutation of large halves; small ones want more
_MASK = (1 << 64) - 1
# Multipliers of the splitmix64 finaliser (Steele, Lea, Flood 2014).
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def keyed_hash(*parts: int | str) -> int:
    """A 64-bit hash of the parts: the one source of pseudo-randomness in sampling."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Permutation:
    """The permutation of range(size) that belongs to a key."""

    def __init__(self, size: int, *parts: int | str) -> None:
        self.size = size
        # cycle walking needs a power of four >= size; at most 4 steps on average
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        self._keys = tuple(keyed_hash("feistel", round_index, *parts) for round_index in range(NUM_ROUNDS))

    def __getitem__(self, position: int) -> int:
        value = self._encrypt(position)
        while value >= self.size:
            value = self._encrypt(value)
        return value

    def _encrypt(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._keys:
            mixed = right ^ key
            mixed = ((mixed ^ (mixed >> 30)) * _MIX1) & _MASK
            mixed = ((mixed ^ (mixed >> 27)) * _MIX2) & _MASK
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & self._half_mask)
        return (left << self._half_bits) | right
