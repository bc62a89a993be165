//! The mask of a client's frames (RFC 6455, section 5.3).

/// Applies or removes the mask, and returns it rotated for the bytes that follow.
pub(super) fn apply(data: &mut [u8], mask: [u8; 4]) -> [u8; 4] {
    // As wide as the processor likes it.
    let mut wide = [0; 64];
    for four in wide.as_chunks_mut::<4>().0 {
        *four = mask;
    }
    let length = data.len();
    let (blocks, rest) = data.as_chunks_mut::<64>();
    for block in blocks {
        for (byte, mask) in block.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in rest.iter_mut().zip(wide) {
        *byte ^= mask;
    }
    let mut mask = mask;
    mask.rotate_left(length % 4);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_gets_its_part_of_the_mask() {
        let mask = [1, 2, 3, 4];
        for length in 0..300 {
            let mut data = vec![0; length];
            let next = apply(&mut data, mask);
            let expected: Vec<_> = mask.into_iter().cycle().take(length).collect();
            assert_eq!(data, expected, "{length}");
            assert_eq!(next[0], mask[length % 4]);
            assert_eq!(apply(&mut data, mask), next);
            assert!(data.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn it_goes_on_where_it_was() {
        let mut whole: Vec<u8> = (0..=255).collect();
        let mut parts = whole.clone();
        let mask = [0xaa, 0x0f, 0x31, 0x80];
        apply(&mut whole, mask);
        let mut next = mask;
        for part in parts.chunks_mut(7) {
            next = apply(part, next);
        }
        assert_eq!(parts, whole);
    }
}
