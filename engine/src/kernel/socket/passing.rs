//! Which faults of a connection pass by themselves.
//!
//! Leaves to others: trying again. Invariant: what a peer or a network does
//! passes; what this machine refuses, or was told to refuse, does not, and a
//! fault that nobody thought of is not tried again.

use rustix::io::Errno;

/// True where waiting can cure it.
pub(super) fn passes(error: &std::io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else {
        // The system's calls have numbers; the deadline of a connect has none.
        return error.kind() == std::io::ErrorKind::TimedOut;
    };
    matches!(
        errno,
        // The peer is not there, or has no room.
        Errno::CONNREFUSED | Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE
            // The way to it is interrupted, or its own address is away.
            | Errno::TIMEDOUT | Errno::NETUNREACH | Errno::HOSTUNREACH
            | Errno::NETDOWN | Errno::HOSTDOWN | Errno::ADDRNOTAVAIL
            // What others give back: ports, memory.
            | Errno::ADDRINUSE | Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_network_does_passes_and_what_is_refused_does_not() {
        let of = |errno: Errno| passes(&std::io::Error::from(errno));
        let passing = [
            Errno::CONNREFUSED,
            Errno::TIMEDOUT,
            Errno::NETUNREACH,
            Errno::NETDOWN,
            Errno::ADDRNOTAVAIL,
            Errno::NOBUFS,
        ];
        // An address family that is not there, a firewall's word, an option, a limit.
        let lasting = [
            Errno::AFNOSUPPORT,
            Errno::PERM,
            Errno::ACCESS,
            Errno::INVAL,
            Errno::NOPROTOOPT,
            Errno::MFILE,
            Errno::NFILE,
        ];
        assert!(passing.into_iter().all(of));
        assert!(!lasting.into_iter().any(of));
        assert!(passes(&std::io::ErrorKind::TimedOut.into()));
        assert!(!passes(&std::io::Error::other("who knows")));
    }
}
