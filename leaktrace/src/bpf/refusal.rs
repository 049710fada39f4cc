//! Tells from the verifier's words what the kernel lacks when it does not load a program.

use std::io;

use aya::programs::ProgramError;

use crate::error::Error;

/// Names the oldest kernel that has everything the programs use.
const OLDEST: &str = "leaktrace needs Linux 5.15 or newer";

/// Features that the programs use: the words of a verifier that does not know the feature, the
/// feature's name, and the first kernel that has it.
const FEATURES: [(&str, &str, &str); 4] = [
    // BPF_ATOMIC with BPF_FETCH, and BPF_CMPXCHG (5.12); check_xadd, kernel/bpf/verifier.c, 5.10.
    ("BPF_STX uses reserved fields", "atomic operations with results", "5.12"),
    ("BPF_ATOMIC uses invalid atomic opcode", "atomic operations with results", "5.12"),
    // bpf_get_attach_cookie: check_helper_call has no name for what it does not know.
    ("#174", "cookies of probes", "5.15"),
    // bpf_get_func_ip of uprobes and kprobes.
    ("#173", "the addresses of probes", "5.15"),
];

/// The error for a program that the kernel does not load.
pub(super) fn refused(program: &str, refusal: &io::Error, verifier: &str) -> Error {
    Error::Refused { line: line(program, refusal, verifier), verifier: verifier.trim().to_owned() }
}

/// As [`refused`], for an error of aya; another failure becomes a kernel error with `context`.
pub(super) fn of_aya(program: &str, context: &str, error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            refused(program, &io_error, &verifier_log.to_string())
        }
        other => Error::kernel(context, other),
    }
}

fn line(program: &str, refusal: &io::Error, verifier: &str) -> String {
    let feature = FEATURES.iter().find(|(words, ..)| verifier.contains(words));
    match (feature, refusal.raw_os_error()) {
        (Some((_, feature, from)), _) => {
            format!("this kernel lacks {feature} in BPF programs (from Linux {from}): {OLDEST}")
        }
        // Before the verifier has looked at it.
        (None, Some(libc::EPERM | libc::EACCES)) if verifier.trim().is_empty() => format!(
            "the kernel does not permit loading BPF program {program} ({refusal}): see `leaktrace \
             doctor`"
        ),
        (None, _) => format!(
            "the kernel's verifier refuses BPF program {program} ({refusal}; -v shows its words): \
             {OLDEST}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::one_line;

    fn check(errno: i32, verifier: &str, parts: &[&str]) {
        let error = refused("lt_x", &io::Error::from_raw_os_error(errno), verifier);
        let line = error.to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        for part in parts {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
        assert_eq!(error.verifier().unwrap_or_default(), verifier.trim());
    }

    #[test]
    fn what_is_missing_is_named() {
        // The verifier of 5.10.
        let stx = "BPF_STX uses reserved fields\nverification time 146 usec\nstack depth 0+0\n";
        check(libc::EINVAL, stx, &["atomic operations with results", "5.12", "5.15 or newer"]);
        let cookie = "0: (85) call unknown#174\ninvalid func unknown#174\n";
        check(libc::EINVAL, cookie, &["cookies of probes in BPF programs (from Linux 5.15)"]);
    }

    /// The text of aya alone ends in "failed".
    #[test]
    fn the_errno_behind_an_error_of_aya_is_told() {
        let io_error = io::Error::from_raw_os_error(libc::EPERM);
        let call = aya::sys::SyscallError { call: "bpf_raw_tracepoint_open", io_error };
        let error = of_aya("lt_x", "cannot attach to tracepoint kmalloc", call.into());
        assert_eq!(
            one_line(&error),
            "cannot attach to tracepoint kmalloc: `bpf_raw_tracepoint_open` failed: Operation not \
             permitted (os error 1)"
        );
    }

    #[test]
    fn what_is_not_known_is_one_line_as_well() {
        check(libc::EPERM, "", &["does not permit", "lt_x", "doctor"]);
        check(libc::EACCES, "R1 invalid mem access 'inv'\n", &["refuses", "lt_x", "-v", "5.15"]);
    }
}
