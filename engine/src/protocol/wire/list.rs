//! Lists that a peer sends, cut off while they are read.
//!
//! Leaves to others: what is in them. Invariant: no list takes more memory than
//! its limit says, whatever its length claims.

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use std::marker::PhantomData;

/// A list of at most `MAX` elements: one byte on the wire can be a hundred in
/// memory, so a list is cut off while it is read, not after.
pub(super) fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "a list of at most {MAX}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = seq.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom("too long a list"));
                }
                list.push(element);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}
