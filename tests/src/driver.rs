//! A test driver: a kernel module of `tests/drivers`, loaded and led through its commands.
//!
//! xtask has built them for the kernels of its machines, and no other.

use std::{
    ffi::{CStr, CString},
    fs,
    fs::File,
    os::fd::AsRawFd as _,
    path::PathBuf,
    time::Instant,
};

use serde_json::Value;

use crate::{
    SOON,
    binary::{require_root, target_dir},
    leaker::sites_of,
    report::{Amounts, Report},
    traced::Traced,
};

/// A loaded driver; unloaded when dropped.
#[derive(Debug)]
pub struct Driver {
    name: &'static str,
    is_loaded: bool,
}

impl Driver {
    /// Loads it.
    ///
    /// # Panics
    ///
    /// When not root, when it is not built, or when the kernel refuses it.
    pub fn load(name: &'static str) -> Self {
        Self::load_with(name, c"")
    }

    /// Loads it with parameters.
    ///
    /// # Panics
    ///
    /// As for [`Driver::load`].
    pub fn load_with(name: &'static str, parameters: &CStr) -> Self {
        let loaded = Self::try_load(name, parameters);
        loaded.unwrap_or_else(|error| panic!("the kernel refuses {name}: {error}"))
    }

    /// Loads it with parameters, or gives why the kernel, or its own init, refuses.
    ///
    /// # Errors
    ///
    /// What its init has failed with.
    ///
    /// # Panics
    ///
    /// When not root, or when it is not built.
    pub fn try_load(name: &'static str, parameters: &CStr) -> std::io::Result<Self> {
        require_root();
        let path = Self::folder().join(name).with_extension("ko");
        let file = File::open(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask test vm` builds it", path.display())
        });
        // SAFETY: the descriptor is open, and the parameters are a string.
        let result = unsafe {
            libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0)
        };
        match result {
            0 => Ok(Self { name, is_loaded: true }),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Where those for the running kernel are.
    ///
    /// # Panics
    ///
    /// When the kernel does not say what it is.
    pub fn folder() -> PathBuf {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_else(|error| panic!("/proc/sys/kernel/osrelease: {error}"));
        target_dir().join("test-drivers").join(release.trim())
    }

    /// Its name, which is the module's.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Has it do something, and returns when it is done.
    ///
    /// # Panics
    ///
    /// When the driver fails or does not know the command.
    pub fn command(&self, name: &str, number: u32) {
        fs::write(self.file("command"), format!("{name} {number}"))
            .unwrap_or_else(|error| panic!("{}: {name} {number}: {error}", self.name));
    }

    /// Where its code begins (/proc/modules).
    ///
    /// # Panics
    ///
    /// When the kernel does not tell.
    pub fn base(&self) -> u64 {
        let list = fs::read_to_string("/proc/modules").unwrap_or_default();
        let line = list.lines().find(|line| line.split(' ').next() == Some(self.name));
        let base = line.and_then(|line| line.split(' ').nth(5)).unwrap_or_default();
        u64::from_str_radix(base.trim_start_matches("0x"), 16)
            .unwrap_or_else(|error| panic!("address of {}: {error}: {list}", self.name))
    }

    /// What each of its functions allocated and freed, by its own count.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    pub fn account(&self) -> Vec<(String, Amounts)> {
        let text = fs::read_to_string(self.file("account"))
            .unwrap_or_else(|error| panic!("account of {}: {error}", self.name));
        let value: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("account of {}: {error}: {text}", self.name));
        sites_of(&value)
    }

    /// The account of one function.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub fn account_of(&self, function: &str) -> Amounts {
        let found = self.account().into_iter().find(|(name, _)| name == function);
        found.unwrap_or_else(|| panic!("no account {function:?} in {}", self.name)).1
    }

    /// Where a report differs from the driver's account, line by line; empty if nowhere. Of each
    /// function all six figures count, and so does that nothing else is outstanding below the
    /// driver.
    pub fn differences(&self, report: &Report) -> String {
        let mut differences = String::new();
        let mut outstanding = (0, 0);
        for (function, expected) in self.account() {
            outstanding.0 += expected.outstanding_count;
            outstanding.1 += expected.outstanding_bytes;
            let got = report.sum_in_module(self.name, &function);
            if got != expected {
                differences +=
                    &format!("{function}\n  expected {expected:?}\n  got      {got:?}\n");
            }
        }
        let all = report.sum(|site| site.module() == self.name);
        if (all.outstanding_count, all.outstanding_bytes) != outstanding {
            differences += &format!("all of it\n  expected {outstanding:?}\n  got      {all:?}\n");
        }
        differences
    }

    /// Waits for a report that is as the driver counted.
    ///
    /// # Panics
    ///
    /// When none comes soon; the message holds what differs in the last one, and its call sites in
    /// the driver.
    pub fn wait_reported(&self, traced: &mut Traced) -> Report {
        let end = Instant::now() + SOON;
        loop {
            let report = traced.next_report(SOON);
            let differences = self.differences(&report);
            if differences.is_empty() {
                return report;
            }
            assert!(
                Instant::now() < end,
                "{} counted otherwise, and so for {SOON:?}:\n{differences}{}",
                self.name,
                report.outline_of(|site| site.module() == self.name)
            );
        }
    }

    /// Waits for a report in which these functions of it are as it counted, whatever else is in it.
    ///
    /// # Panics
    ///
    /// When none comes soon.
    pub fn wait_reported_of(&self, traced: &mut Traced, functions: &[&str]) {
        let expected: Vec<Amounts> =
            functions.iter().map(|function| self.account_of(function)).collect();
        traced.wait_report("it is as the driver counted", SOON, |report| {
            let of = |function: &&str| report.sum_in_module(self.name, function);
            functions.iter().map(of).collect::<Vec<_>>() == expected
        });
    }

    /// Unloads it.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    pub fn unload(mut self) {
        self.try_unload().unwrap_or_else(|error| panic!("cannot unload {}: {error}", self.name));
    }

    fn try_unload(&mut self) -> std::io::Result<()> {
        if !std::mem::take(&mut self.is_loaded) {
            return Ok(());
        }
        let name = CString::new(self.name)?;
        // SAFETY: the name is a string that lives on.
        match unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        ["/sys/kernel/debug", self.name, name].iter().collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A test that failed says why itself.
        let _ = self.try_unload();
    }
}
