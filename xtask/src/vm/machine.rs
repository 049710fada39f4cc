//! The machine: an initramfs that mounts this machine's files, and qemu.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, fs::symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Job, command, folder, kernel::Kernel};
use crate::workspace;

/// Where programs are.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The variable that tells tests that they may cost every process of the machine.
const MACHINE: &str = "LEAKTRACE_MACHINE";
const BUSYBOX: &str = "/bin/busybox";

/// The kernel's command line. Without `no_timer_check` it counts the ticks that come while it
/// spins, and panics when a busy host has run the emulator too little for that ("IO-APIC + timer
/// doesn't work"). A CPU that such a host does not run for 20 seconds is no lockup of the kernel:
/// that is one after two minutes. `preempt=full` is for 6.1 and later: before, and in real-time
/// kernels, it is ignored. A kernel with an oops ends there, as nothing that follows counts.
const CMDLINE: &str = "console=ttyS0 quiet oops=panic panic=-1 preempt=full no_timer_check \
                       watchdog_thresh=60";

/// Modules that mount this machine's files, in the order of their needs, and one that tests mount.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "fs/netfs/netfs",
    "fs/fscache/fscache",
    "net/9p/9pnet",
    "net/9p/9pnet_virtio",
    "fs/9p/9p",
    "fs/overlayfs/overlay",
];

/// What the emulator's own fault looks like, and nothing else: the kernel switches a tracepoint by
/// way of a breakpoint, and a CPU of multi-threaded TCG at times runs into it when the kernel does
/// not expect that any more. Seen at tracepoints, and while perf events come and go; on 7.2 more
/// often than once in thirty runs.
const EMULATORS_FAULT: &str = "int3: 0000 [#1]";

/// What a kernel's console says when something is broken. Before 6.10 a fault is named without the
/// word "Oops", but numbered as well (`__die_header`, arch/x86/kernel/dumpstack.c).
const FAULTS: [&str; 5] = ["BUG:", "Oops", "kernel BUG at", " [#", "Kernel panic"];

/// How the emulator runs the CPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    /// Each in a thread of its own.
    Multi,
    /// One after the other in one thread: slower, but a change of the kernel's text reaches all of
    /// them at once.
    Single,
}

/// Boots the kernel, runs the job and gives its exit code; once more if it was the emulator that
/// failed. A kernel that says that something is broken fails the job, whatever its exit code.
pub(super) fn run(kernel: &Kernel, job: &Job<'_>) -> Result<u8> {
    let (folder, _lock) = own_folder(&folder(job.flavour)?)?;
    let first = run_once(&folder, kernel, job, Threads::Multi);
    let console = Console::read(&folder);
    // Whatever follows the first fault of a kernel may be its consequence.
    if console.faults().next().is_some_and(|line| line.contains(EMULATORS_FAULT)) {
        let kept = console.path.with_extension("first.log");
        fs::rename(&console.path, &kept).context("cannot keep the console")?;
        eprintln!(
            "xtask: the emulator failed at a breakpoint of the kernel's own ({}): once more",
            kept.display()
        );
        let second = run_once(&folder, kernel, job, Threads::Single);
        return Console::read(&folder).judge(second);
    }
    console.judge(first)
}

/// A folder for the files of one machine, which no other machine of that kernel has meanwhile; it
/// is free again when the lock is dropped.
fn own_folder(of_kernel: &Path) -> Result<(PathBuf, fs::File)> {
    for number in 0.. {
        let folder = of_kernel.join(format!("run.{number}"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = fs::File::create(folder.join("lock")).context("cannot make a machine's lock")?;
        match lock.try_lock() {
            Ok(()) => return Ok((folder, lock)),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context("cannot lock a machine's folder");
            }
        }
    }
    bail!("no folder is free in {}", of_kernel.display())
}

/// What the kernel has printed.
struct Console {
    path: PathBuf,
    text: String,
}

impl Console {
    fn path(folder: &Path) -> PathBuf {
        folder.join("console.log")
    }

    /// An empty one where the machine has not come so far.
    fn read(folder: &Path) -> Self {
        let path = Self::path(folder);
        let bytes = fs::read(&path).unwrap_or_default();
        Self { path, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    /// The lines that say that something is broken.
    fn faults(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| FAULTS.iter().any(|fault| line.contains(fault)))
    }

    /// The job's result, unless the kernel is broken.
    fn judge(&self, result: Result<u8>) -> Result<u8> {
        if self.faults().next().is_some() {
            for line in self.faults() {
                eprintln!("console: {line}");
            }
            bail!("the kernel has a fault; its console is in {}", self.path.display());
        }
        if result.is_err() {
            let tail: Vec<&str> = self.text.lines().rev().take(30).collect();
            for line in tail.iter().rev() {
                eprintln!("console: {line}");
            }
        }
        result.with_context(|| format!("the machine's console is in {}", self.path.display()))
    }
}

fn run_once(folder: &Path, kernel: &Kernel, job: &Job<'_>, threads: Threads) -> Result<u8> {
    let shares = shares(folder)?;
    let initramfs = initramfs(folder, kernel, &shares)?;
    let script = folder.join("command");
    fs::write(&script, script_of(job, folder)).context("cannot write the guest's command")?;
    let code = folder.join("exit-code");
    let _ = fs::remove_file(&code);
    let _ = fs::remove_file(Console::path(folder));

    let mut qemu = Command::new("qemu-system-x86_64");
    let (accelerator, limit) = match threads {
        Threads::Multi => ("tcg,thread=multi", job.limit),
        Threads::Single => ("tcg,thread=single", job.limit * 2),
    };
    qemu.args(["-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", "2048"])
        .args(["-nographic", "-no-reboot", "-monitor", "none", "-nic", "none", "-vga", "none"])
        .args(["-append", CMDLINE])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .arg("-serial")
        .arg(option("file:", &Console::path(folder), ""))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null());
    for share in &shares {
        let suffix = format!(
            ",mount_tag={},security_model=none,multidevs=remap{}",
            share.tag,
            if share.writable { "" } else { ",readonly=on" }
        );
        qemu.arg("-virtfs").arg(option("local,path=", &share.path, &suffix));
    }
    if let Some(output) = &job.output {
        // The second run of a job says everything again.
        output.set_len(0).context("cannot empty the machine's output")?;
        qemu.stdout(output.try_clone().context("cannot share the machine's output")?);
    }
    eprintln!("xtask: booting Linux {} (emulated)", kernel.release);
    let mut child = qemu.spawn().context("cannot run qemu-system-x86_64")?;
    let in_time = wait(&mut child, limit)?;

    let text = fs::read_to_string(&code).unwrap_or_default();
    match text.trim().parse() {
        Ok(code) if in_time => Ok(code),
        _ if in_time => bail!("the machine ended without an exit code"),
        _ => bail!("the machine took too long"),
    }
}

/// Waits for the machine's end; false if it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn option(prefix: &str, path: &Path, suffix: &str) -> OsString {
    let mut option = OsString::from(prefix);
    // A comma ends a path in qemu's options, unless it is doubled.
    option.push(path.to_string_lossy().replace(',', ",,"));
    option.push(suffix);
    option
}

/// A folder of this machine that the guest sees at the same place.
struct Share {
    tag: &'static str,
    path: PathBuf,
    writable: bool,
}

/// What the guest sees. The workspace and the target folder may lie below `/tmp`, where the
/// guest has a file system of its own.
fn shares(folder: &Path) -> Result<Vec<Share>> {
    let target = workspace::target_dir()?;
    debug_assert!(folder.starts_with(&target));
    Ok(vec![
        Share { tag: "host", path: "/".into(), writable: false },
        Share { tag: "workspace", path: workspace::root()?, writable: false },
        Share { tag: "target", path: target, writable: true },
    ])
}

/// The guest's first program, and its modules.
fn initramfs(folder: &Path, kernel: &Kernel, shares: &[Share]) -> Result<PathBuf> {
    let root = folder.join("initramfs");
    let _ = fs::remove_dir_all(&root);
    for name in ["bin", "modules", "host", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name)).context("cannot make the initramfs")?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context(BUSYBOX)?;
    symlink("busybox", root.join("bin/sh"))?;
    let mut insmod = String::new();
    for module in MODULES {
        let from = kernel.modules.join(format!("{module}.ko"));
        let Some(name) = from.file_name() else { continue };
        let to = root.join("modules").join(name);
        let packed = from.with_extension("ko.xz");
        if packed.exists() {
            // From 6.12 on.
            let file = fs::File::create(&to)?;
            command::run(Command::new("xz").arg("-dc").arg(&packed).stdout(file))?;
        } else if from.exists() {
            fs::copy(&from, &to)?;
        } else {
            // What is built in has no file.
            continue;
        }
        insmod += &format!("insmod /modules/{}\n", name.display());
    }
    let mut mounts = String::new();
    for share in shares {
        let at =
            quoted(&[OsStr::new("/host"), share.path.as_os_str()].map(OsStr::as_bytes).concat());
        let mode = if share.writable { "rw" } else { "ro" };
        // The host's own root comes first; the others may lie in the guest's /tmp.
        if share.path != Path::new("/") {
            mounts += &format!("mkdir -p {at}\n");
        }
        mounts += &format!(
            "mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,{mode} {} {at}\n",
            share.tag
        );
        if share.path == Path::new("/") {
            mounts += GUEST_MOUNTS;
        }
    }
    let script = quoted(folder.join("command").as_os_str().as_bytes());
    let init = format!(
        "#!/bin/sh\n\
         export PATH=/bin\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc none /proc; mount -t devtmpfs none /dev\n\
         {insmod}{mounts}\
         ip link set lo up\n\
         umount /proc\n\
         exec switch_root /host /bin/sh {script} </dev/ttyS1 >/dev/ttyS1 2>&1\n"
    );
    let path = root.join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let archive = folder.join("initramfs.cpio");
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""]).arg(&archive).current_dir(&root);
    command::run(&mut cpio)?;
    Ok(archive)
}

/// What the guest has of its own, below its root.
const GUEST_MOUNTS: &str = "\
mount -t proc none /host/proc
mount -t sysfs none /host/sys
mount -t devtmpfs none /host/dev
mkdir -p /host/dev/shm && mount -t tmpfs none /host/dev/shm
for folder in tmp run root var/tmp var/lib; do mount -t tmpfs none /host/$folder; done
mount -t tracefs none /host/sys/kernel/tracing
mount -t debugfs none /host/sys/kernel/debug
mount -t bpf none /host/sys/fs/bpf
mount -t cgroup2 none /host/sys/fs/cgroup
";

/// The guest's script: runs the job, leaves its exit code, and switches the machine off.
fn script_of(job: &Job<'_>, folder: &Path) -> Vec<u8> {
    let mut script =
        format!("export PATH={PATH} HOME=/root TERM=dumb {MACHINE}=1\nstty raw\n").into_bytes();
    for (name, value) in job.environment {
        script.extend(format!("export {name}=").bytes());
        script.extend(quoted(value.as_bytes()).bytes());
        script.push(b'\n');
    }
    script.extend(format!("cd {}\n", quoted(job.directory.as_os_str().as_bytes())).bytes());
    let words: Vec<String> = job.command.iter().map(|word| quoted(word.as_bytes())).collect();
    script.extend(words.join(" ").bytes());
    let code = quoted(folder.join("exit-code").as_os_str().as_bytes());
    script.extend(
        format!("\ncode=$?\necho $code >{code}\nsync\necho o >/proc/sysrq-trigger\nread forever\n")
            .bytes(),
    );
    script
}

/// A word as a shell takes it.
fn quoted(word: &[u8]) -> String {
    format!("'{}'", String::from_utf8_lossy(word).replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::vm::Flavour;

    #[test]
    fn a_kernel_that_is_broken_fails_the_job() {
        let judge = |text: &str| {
            let console = Console { path: PathBuf::new(), text: text.to_owned() };
            console.judge(Ok(0)).is_ok()
        };
        assert!(judge("[ 1.2] e1000: link [up]\n"));
        // As 6.1 and 7.2 print them.
        for line in [
            "[   14.0] BUG: unable to handle page fault for address: ffffc9000",
            "[   14.0] general protection fault, probably for address 0x1: 0000 [#1] PREEMPT SMP",
            "[   14.0] Oops: general protection fault, kernel NULL pointer 0x0: 0000 [#3] SMP",
            "[   14.0] kernel BUG at mm/slub.c:448!",
        ] {
            assert!(!judge(&format!("[ 1.2] quiet\n{line}\n")), "{line}");
        }
    }

    #[test]
    fn the_guest_runs_the_command_and_says_how_it_ended() {
        let script = script_of(
            &Job {
                flavour: Flavour::Stable,
                command: &["echo".into(), "it's".into()],
                directory: Path::new("/a b"),
                environment: &[("NAME", "va lue".into())],
                limit: Duration::from_secs(1),
                output: None,
            },
            Path::new("/target/vm"),
        );
        let script = String::from_utf8(script).unwrap_or_default();
        let lines: Vec<&str> = script.lines().skip(2).take(5).collect();
        assert_eq!(
            lines,
            [
                "export NAME='va lue'",
                "cd '/a b'",
                r"'echo' 'it'\''s'",
                "code=$?",
                "echo $code >'/target/vm/exit-code'"
            ]
        );
    }
}
