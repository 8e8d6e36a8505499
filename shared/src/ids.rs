//! Identifiers. A UUID v7 begins with its time, so the order of ids is the order of creation.

use sha2::{Digest, Sha256};
use uuid::{NoContext, Timestamp, Uuid};

/// The most items that a run can have: an item's index takes 24 bits of its id.
pub const MAX_ITEMS: u32 = 1 << 24;

/// A new id for something created at `now_ms` (milliseconds since the Unix epoch).
#[must_use]
pub fn new_id(now_ms: i64) -> Uuid {
    let ms = u64::try_from(now_ms).unwrap_or(0);
    let nanos = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    Uuid::new_v7(Timestamp::from_unix(NoContext, ms / 1000, nanos))
}

/// When an id made by [`new_id`] was created, in milliseconds since the Unix epoch.
#[must_use]
pub fn created_ms(id: Uuid) -> i64 {
    i64::try_from(id.as_u128() >> 80).unwrap_or(0)
}

/// The smallest id that can have been created at `ms`, for range queries by creation time.
#[must_use]
pub fn floor_id(ms: i64) -> Uuid {
    Uuid::from_u128(u128::try_from(ms.clamp(0, (1 << 48) - 1)).unwrap_or(0) << 80)
}

/// The id of the item with `index` in `run`.
///
/// It is a UUID v7 with the run's time, the index in the 24 bits that follow the variant, and a digest of the run's id in
/// the rest: known before the item is stored, in the order of the indexes, and [`item_index`] finds the way back.
#[must_use]
pub fn item_id(run: Uuid, index: u32) -> Uuid {
    let digest = Sha256::digest(run.as_bytes());
    let mut seed = [0; 16];
    seed.copy_from_slice(&digest[..16]);
    let seed = u128::from_be_bytes(seed);
    let time = run.as_u128() >> 80 << 80;
    let rand_a = (seed >> 100) & 0xfff;
    let low = seed & ((1 << 38) - 1);
    Uuid::from_u128(time | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | u128::from(index % MAX_ITEMS) << 38 | low)
}

/// The index of `item` in `run`; `None` when the id does not belong to that run.
#[must_use]
pub fn item_index(run: Uuid, item: Uuid) -> Option<u32> {
    let index = u32::try_from((item.as_u128() >> 38) & u128::from(MAX_ITEMS - 1)).ok()?;
    (item_id(run, index) == item).then_some(index)
}

/// The id of the chat session of `item`.
#[must_use]
pub fn session_id(item: Uuid) -> Uuid {
    Uuid::new_v5(&item, b"session")
}

/// The id of a new span of a trace: random, not 0.
#[must_use]
pub fn span_id() -> u64 {
    // The low half of a UUID v7 is random but for its variant, which is not 0.
    Uuid::now_v7().as_u64_pair().1
}

/// The id of a call as users see it: the provider's own where it is a UUID, else [`call_id`].
#[must_use]
pub fn shown_call_id(endpoint: Uuid, id: &str) -> Uuid {
    id.parse().unwrap_or_else(|_| call_id(endpoint, id))
}

/// The id of a provider's call whose own name, `call`, is no UUID; `endpoint` is the provider's.
#[must_use]
pub fn call_id(endpoint: Uuid, call: &str) -> Uuid {
    Uuid::new_v5(&endpoint, call.as_bytes())
}

/// The id of a structured output that came with a request of `org` and is stored nowhere: the same `definition` (JSON) has
/// the same id, so running it again replaces what it found before.
#[must_use]
pub fn inline_output_id(org: Uuid, definition: &str) -> Uuid {
    Uuid::new_v5(&org, definition.as_bytes())
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            for nibble in [byte >> 4, byte & 0xf] {
                hex.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
            hex
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn item_ids_are_ordered_unique_and_lead_back(ms in 0_i64..(1 << 47), a in 0..MAX_ITEMS, b in 0..MAX_ITEMS) {
            let (run, other) = (new_id(ms), new_id(ms));
            let id = item_id(run, a);
            prop_assert_eq!(item_index(run, id), Some(a));
            prop_assert_eq!(item_index(other, id), None);
            prop_assert_eq!(item_id(run, a).cmp(&item_id(run, b)), a.cmp(&b));
            prop_assert_eq!((id.get_version_num(), created_ms(id)), (7, ms));
            prop_assert!(id >= floor_id(ms) && id < floor_id(ms + 1));
        }
    }

    #[test]
    fn hex_of_a_known_digest() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
