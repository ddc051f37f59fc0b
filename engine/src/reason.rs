//! What the system says of a failure, in our words, and what cures it.
//!
//! Leaves to others: what was being done. Invariant: a reason is a clause without
//! a number, and every error number that a user can do something about has its
//! cure here, once.

use rustix::io::Errno;

/// Error numbers that have words of ours or a cure; of the others the system's
/// own words are used.
const KNOWN: [(Errno, &str, Option<&str>); 30] = [
    (
        Errno::MFILE,
        "this process may open no more files",
        Some("raise the limit of open files (`ulimit -n`)"),
    ),
    (
        Errno::NFILE,
        "this machine has too many files open",
        Some("close some, or raise the sysctl fs.file-max"),
    ),
    (
        Errno::NOMEM,
        "there is not enough memory",
        Some("free some, or raise the limit of memory (`ulimit -v`, or the container's)"),
    ),
    (
        Errno::AGAIN,
        "the system has none left at the moment",
        Some("raise the limits of processes and of memory (`ulimit -u`, `ulimit -v`)"),
    ),
    (
        Errno::NOSPC,
        "no space left on device",
        Some("free space there and run the same command again"),
    ),
    (
        Errno::DQUOT,
        "the disk quota is used up",
        Some("raise the quota and run the same command again"),
    ),
    (
        Errno::FBIG,
        "the file would be too large",
        Some("use a file system or a limit (`ulimit -f`) that allows its size"),
    ),
    (
        Errno::ROFS,
        "the file system is read-only",
        Some("mount it writable, or choose another place"),
    ),
    (
        Errno::IO,
        "the device reports an I/O error",
        Some("check the disk (`dmesg`)"),
    ),
    (
        Errno::ACCESS,
        "permission denied",
        Some("check the permissions there, or run as a user who has them"),
    ),
    (
        Errno::PERM,
        "operation not permitted",
        Some("run as a user who may, or allow it in the container's profile"),
    ),
    (
        Errno::LOOP,
        "there is a loop of symbolic links",
        Some("name the file itself"),
    ),
    (
        Errno::NAMETOOLONG,
        "the name is too long",
        Some("use a shorter name there"),
    ),
    (Errno::NOENT, "no such file or directory", None),
    (Errno::NOTDIR, "not a directory", None),
    (Errno::ISDIR, "is a directory", None),
    (Errno::EXIST, "something of that name is there", None),
    (Errno::XDEV, "it lies on another file system", None),
    (
        Errno::STALE,
        "its server no longer has it",
        Some("mount the file system again"),
    ),
    (
        Errno::ADDRINUSE,
        "the address is in use",
        Some("choose another port, or stop what listens there"),
    ),
    (
        Errno::ADDRNOTAVAIL,
        "it is no address of this machine",
        Some("choose one that `ip address` shows"),
    ),
    (
        Errno::AFNOSUPPORT,
        "this machine does not speak that kind of address",
        Some("use an address of the other kind, IPv4 or IPv6"),
    ),
    (
        Errno::CONNREFUSED,
        "connection refused",
        Some("check that `haul serve` listens on that port"),
    ),
    (
        Errno::HOSTUNREACH,
        "no route to host",
        Some("check the address, the route and the firewalls between"),
    ),
    (
        Errno::NETUNREACH,
        "network is unreachable",
        Some("check the address, the route and the firewalls between"),
    ),
    (
        Errno::TIMEDOUT,
        "no answer came in time",
        Some("check the address and the firewalls between"),
    ),
    (Errno::CONNRESET, "connection reset by peer", None),
    (Errno::PIPE, "broken pipe", None),
    (
        Errno::NOBUFS,
        "the network has no buffers left",
        Some("close connections, or raise the sysctls net.core.wmem_max and rmem_max"),
    ),
    (
        Errno::NOSYS,
        "this kernel does not offer it, or a filter hides it",
        Some("use Linux 6.1 or later, and a container's profile that lets it through"),
    ),
];

/// What the standard library puts before an error's number.
const NUMBER: &str = " (os error ";
/// What it puts before a resolver's words.
const RESOLVER: &str = "failed to lookup address information: ";

/// A reason as a clause, whoever gave it: the system's words in ours, others as
/// they are, without a number in any case.
#[must_use]
pub fn clause(reason: &str) -> String {
    let Some((words, rest)) = reason.split_once(NUMBER) else {
        return match reason.strip_prefix(RESOLVER) {
            Some(words) => lowered(words),
            None => reason.to_owned(),
        };
    };
    let (number, rest) = rest.split_once(')').unwrap_or((rest, ""));
    let known = number
        .parse()
        .ok()
        // What lies beyond is no error number of any kernel.
        .filter(|number| (1..4096).contains(number))
        .and_then(|number| known(Errno::from_raw_os_error(number)));
    let words = known.map_or_else(|| lowered(words), |(words, _)| words.to_owned());
    clause(&format!("{words}{rest}"))
}

/// What can be done where `clause` is why something failed.
#[must_use]
pub fn cure(clause: &str) -> Option<&'static str> {
    let found = KNOWN.iter().find(|(_, words, _)| *words == clause);
    found.and_then(|(_, _, cure)| *cure)
}

fn known(errno: Errno) -> Option<(&'static str, Option<&'static str>)> {
    let found = KNOWN.iter().find(|(known, ..)| *known == errno);
    found.map(|(_, words, cure)| (*words, *cure))
}

/// With a small first letter, unless that begins an abbreviation.
fn lowered(words: &str) -> String {
    let mut letters = words.chars();
    let Some(first) = letters.next() else {
        return String::new();
    };
    let is_short = |second: char| second.is_uppercase() || second == '/';
    if letters.clone().next().is_some_and(is_short) {
        return words.to_owned();
    }
    first.to_lowercase().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_number_is_ever_said() {
        for number in 1..=133 {
            let system = std::io::Error::from_raw_os_error(number).to_string();
            for reason in [system.clone(), Errno::from_raw_os_error(number).to_string()] {
                let said = clause(&reason);
                assert!(!said.contains("os error"), "{reason}: {said}");
                assert!(!said.is_empty(), "{reason}");
                let first = said.chars().next().expect("some words");
                let second = said.chars().nth(1).expect("some words");
                assert!(
                    !first.is_uppercase() || second.is_uppercase() || second == '/',
                    "{said}"
                );
            }
        }
        let nested =
            "cannot do: Permission denied (os error 13), twice: Too many open files (os error 24)";
        assert!(!clause(nested).contains("os error"), "{}", clause(nested));
        assert_eq!(clause("it is closed"), "it is closed");
        assert_eq!(clause("I/O stays (os error 5000)"), "I/O stays");
        let resolver = format!("{RESOLVER}Name or service not known");
        assert_eq!(clause(&resolver), "name or service not known");
    }

    #[test]
    fn what_a_user_can_cure_has_a_cure() {
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::DQUOT,
            Errno::NOSPC,
            Errno::PERM,
            Errno::ACCESS,
            Errno::ROFS,
            Errno::FBIG,
            Errno::ADDRINUSE,
            Errno::ADDRNOTAVAIL,
            Errno::CONNREFUSED,
            Errno::HOSTUNREACH,
            Errno::NAMETOOLONG,
            Errno::LOOP,
            Errno::AGAIN,
        ] {
            let said = clause(&errno.to_string());
            assert!(cure(&said).is_some(), "{said}");
        }
        let mut words: Vec<_> = KNOWN.iter().map(|(_, words, _)| words).collect();
        words.sort();
        words.dedup();
        assert_eq!(words.len(), KNOWN.len(), "each has words of its own");
    }
}
