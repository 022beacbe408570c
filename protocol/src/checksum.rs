//! CRC-32C of what is put together from parts whose checksums are known.
//!
//! Owns this arithmetic: a checksum is a polynomial over GF(2), of degree below 32, with its highest bit for x^0. Never looks
//! at the bytes themselves: that of a long value is computed once, and then used in each frame that carries the value. The
//! function of the same purpose in `crc32c` squares matrices and takes longer than to go through 64 KiB again.

/// The polynomial of CRC-32C without x^32.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0.
const ONE: u32 = 1 << 31;

/// x^(8 * 2^k) for each bit of a length.
const BYTES: [u32; usize::BITS as usize] = {
    let mut powers = [0; usize::BITS as usize];
    // x^8.
    let mut power = ONE >> 8;
    let mut bit = 0;
    while bit < powers.len() {
        powers[bit] = power;
        power = multiplied(power, power);
        bit += 1;
    }
    powers
};

/// The product of two polynomials, modulo CRC-32C's.
const fn multiplied(mut left: u32, mut right: u32) -> u32 {
    let mut product = 0;
    while left != 0 {
        if left & ONE != 0 {
            product ^= right;
        }
        left <<= 1;
        right = if right & 1 == 0 { right >> 1 } else { (right >> 1) ^ POLYNOMIAL };
    }
    product
}

/// The checksum of a first part and a second one of `second_bytes` bytes, from the checksum of each.
pub(crate) fn joined(first: u32, second: u32, second_bytes: usize) -> u32 {
    let mut moved = first;
    let mut left = second_bytes;
    while left != 0 {
        moved = multiplied(BYTES[left.trailing_zeros() as usize], moved);
        left &= left - 1;
    }
    moved ^ second
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_parts_are_joined_as_if_they_had_been_summed_together() {
        let bytes: Vec<u8> = (0..(3 << 20) + 7).map(|at: usize| (at * at / 7) as u8).collect();
        for cut in [0, 1, 65_536, 1 << 20, bytes.len() - 1, bytes.len()] {
            let (first, second) = bytes.split_at(cut);
            let found = joined(crc32c::crc32c(first), crc32c::crc32c(second), second.len());
            assert_eq!(found, crc32c::crc32c(&bytes), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn parts_are_joined_as_if_they_had_been_summed_together(
            first in prop::collection::vec(any::<u8>(), 0..300),
            second in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let whole = [&first[..], &second[..]].concat();
            let found = joined(crc32c::crc32c(&first), crc32c::crc32c(&second), second.len());
            prop_assert_eq!(found, crc32c::crc32c(&whole));
        }
    }
}
