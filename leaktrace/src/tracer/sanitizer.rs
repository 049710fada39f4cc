//! Whether a command has LeakSanitizer in it: that stops the command at its end to look for leaks
//! itself, and fails where somebody else traces it (lsan_common_linux.cpp of compiler-rt: "does not
//! work under ptrace").

use std::{fs, io::Read as _};

/// The name of the sanitizer in a process that is about to run, if there is one.
pub(super) fn of(pid: u32) -> Option<&'static str> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let has = |name: &str| maps.lines().any(|line| line.contains(name));
    if has("/libasan.so") || has("/liblsan.so") || has("/libclang_rt.asan") {
        return Some("LeakSanitizer");
    }
    // clang links it into the executable.
    is_in_executable(pid).unwrap_or(false).then_some("LeakSanitizer")
}

/// Whether the executable holds the name of the sanitizer's function, which it exports.
fn is_in_executable(pid: u32) -> std::io::Result<bool> {
    const NAME: &[u8] = b"__lsan_do_leak_check\0";
    let mut file = fs::File::open(format!("/proc/{pid}/exe"))?;
    let mut buffer = vec![0; 1 << 20];
    let mut kept = 0;
    loop {
        let Some(free) = buffer.get_mut(kept..) else { return Ok(false) };
        let got = file.read(free)?;
        if got == 0 {
            return Ok(false);
        }
        let filled = buffer.get(..kept + got).unwrap_or_default();
        if filled.windows(NAME.len()).any(|window| window == NAME) {
            return Ok(true);
        }
        // The name may lie across two pieces.
        let from = filled.len().saturating_sub(NAME.len());
        let end = filled.len();
        kept = end - from;
        buffer.copy_within(from..end, 0);
    }
}
