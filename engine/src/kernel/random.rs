//! Random bytes from the kernel, which secrets and names are made of.
//!
//! Leaves to others: what they become. Invariant: what is returned is whole and
//! from the kernel's own generator; there is no weaker source to fall back on.

use crate::error::{Error, Result, why};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fresh random bytes.
///
/// # Errors
/// [`crate::ErrorKind::Local`], only where a filter forbids getrandom(2): once
/// the machine is up its generator always answers.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => {
                let error = Error::local("cannot get random bytes from the kernel", why(errno));
                return Err(error.cure("let this process call getrandom(2)"));
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::random;

    #[test]
    fn random_bytes_are_whole_and_differ() {
        // Longer than the 256 bytes that one call gives for sure.
        let (one, other) = (random::<1024>(), random::<1024>());
        let (one, other) = (one.expect("given"), other.expect("given"));
        assert_ne!(one, other);
        for part in one.chunks(64) {
            assert!(part.iter().any(|byte| *byte != 0), "a part was not filled");
        }
        assert_eq!(random::<0>(), Ok([]));
    }
}
