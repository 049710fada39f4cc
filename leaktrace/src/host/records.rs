//! The kernel's records of what processes execute and map. /proc shows nothing of a process that
//! has ended, and many processes end within a millisecond.
//!
//! A perf event that counts nothing writes a record of each fork, exec, executable mapping and
//! exit, of one process and its descendants or of the whole host. Each record has the time of
//! `CLOCK_MONOTONIC`, the clock of the BPF programs. While there is such an event, programs start
//! some 10 to 20 microseconds later (docs/performance.md).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use perf_event::{Builder, Clock, SampleFlag, Sampler, data, events::Software};

use super::proc::Mapping;

/// Bytes of each CPU's buffer: room for some 3,000 records, which 400 programs write.
const BUFFER_BYTES: usize = 256 << 10;
/// `PERF_RECORD_MISC_COMM_EXEC` (include/uapi/linux/perf_event.h): marks a name that an exec has
/// set.
const MISC_COMM_EXEC: u16 = 1 << 13;
/// `PROT_EXEC`.
const PROT_EXEC: u32 = 4;
/// Nanoseconds for which the mappings of an ended process are kept: the BPF programs report its end
/// within milliseconds.
const KEPT_NS: u64 = 10_000_000_000;
/// Number of processes, running or ended, from which on the records of ended ones are dropped.
const FIRST_MANY: usize = 1024;
/// Most records that are kept of one process, the latest ones. A process that maps and unmaps
/// libraries for ever has lived long enough to be read in /proc.
const MOST_KEPT: usize = 4096;

/// Which processes are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A process that has only one thread yet, and all processes that it starts.
    Family(u32),
    /// All processes.
    All,
}

/// The records since the events were opened.
pub struct Records {
    samplers: Vec<Sampler>,
    processes: HashMap<u32, Vec<Record>>,
    /// The time of the latest record, in nanoseconds.
    last_ns: u64,
    /// Number of processes from which on the records of those that ended long ago are dropped.
    many: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    at_ns: u64,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Forked,
    Executed(String),
    Mapped(Mapping),
    Ended,
}

/// A process between two execs, as far as it was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The command name; `None` if the records do not begin with the exec.
    pub comm: Option<String>,
    /// The executable mappings, the latest last.
    pub mappings: Vec<Mapping>,
}

impl Records {
    /// Begins to record.
    ///
    /// # Errors
    ///
    /// The kernel's error, such as `EACCES` without `CAP_PERFMON`.
    pub fn open(whose: Whose) -> io::Result<Self> {
        let cpus = aya::util::online_cpus().map_err(|(_, error)| error)?;
        let samplers: io::Result<Vec<Sampler>> =
            cpus.into_iter().map(|cpu| sampler(whose, cpu)).collect();
        Ok(Self { samplers: samplers?, processes: HashMap::new(), last_ns: 0, many: FIRST_MANY })
    }

    /// Descriptors that are readable once a buffer is half full; then the caller must call
    /// [`Records::read`].
    ///
    /// # Errors
    ///
    /// Fails when there are too many open files.
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        let own = |sampler: &Sampler| {
            // SAFETY: the sampler holds its descriptor open while it is borrowed here.
            unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) }.try_clone_to_owned()
        };
        self.samplers.iter().map(own).collect()
    }

    /// Takes the records out of the buffers.
    pub fn read(&mut self) {
        for sampler in &mut self.samplers {
            while let Some(raw) = sampler.next_record() {
                let bytes = raw.to_contiguous();
                // With `sample_id_all` each record ends with its time (`perf_event_open(2)`).
                let Some((_, at_ns)) = bytes.split_last_chunk() else { continue };
                let at_ns = u64::from_ne_bytes(*at_ns);
                let is_exec = raw.misc() & MISC_COMM_EXEC != 0;
                let Some((pid, what)) = raw.parse_record().ok().and_then(|it| what(&it, is_exec))
                else {
                    continue;
                };
                self.last_ns = self.last_ns.max(at_ns);
                add(self.processes.entry(pid).or_default(), Record { at_ns, what });
            }
        }
        if self.processes.len() < self.many {
            return;
        }
        let last_ns = self.last_ns;
        self.processes.retain(|_, records| {
            records.last().is_some_and(|last| {
                last.what != What::Ended || last.at_ns.saturating_add(KEPT_NS) > last_ns
            })
        });
        // The look takes all of them: seldom enough that it does not matter.
        self.many = FIRST_MANY + 2 * self.processes.len();
    }

    /// What process `pid` was at `at_ns` of `CLOCK_MONOTONIC`, and what it mapped from then on
    /// until its next exec or its end.
    pub fn image(&mut self, pid: u32, at_ns: u64) -> Image {
        self.read();
        self.processes.get(&pid).map(|records| image(records, at_ns)).unwrap_or_default()
    }
}

fn sampler(whose: Whose, cpu: u32) -> io::Result<Sampler> {
    let mut builder = Builder::new(Software::DUMMY);
    match whose {
        Whose::Family(pid) => builder.observe_pid(pid as libc::pid_t).inherit(true),
        Whose::All => builder.any_pid(),
    };
    builder
        .one_cpu(cpu as usize)
        .mmap(true)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .task(true)
        .sample(SampleFlag::TIME)
        .sample_id_all(true)
        .clockid(Clock::MONOTONIC)
        .wakeup_watermark(BUFFER_BYTES / 2);
    let mut sampler = builder.build()?.sampled(BUFFER_BYTES)?;
    sampler.enable()?;
    Ok(sampler)
}

/// What a record reports, and of which process; `None` for a record of a thread, or of memory that
/// no file backs.
fn what(record: &data::Record<'_>, is_exec: bool) -> Option<(u32, What)> {
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    };
    match record {
        data::Record::Fork(fork) if fork.pid == fork.tid => Some((fork.pid, What::Forked)),
        data::Record::Exit(exit) if exit.pid == exit.tid => Some((exit.pid, What::Ended)),
        data::Record::Comm(comm) if is_exec => Some((comm.pid, What::Executed(text(&comm.comm)))),
        data::Record::Mmap2(map) if map.prot & PROT_EXEC != 0 => {
            let path = text(&map.filename);
            let inode = map.ino().unwrap_or(0);
            let is_known = path == "[vdso]" || (path.starts_with('/') && inode != 0);
            let mapping = Mapping {
                start: map.addr,
                end: map.addr.saturating_add(map.len),
                executable: true,
                file_offset: map.pgoff,
                device: (map.maj().unwrap_or(0), map.min().unwrap_or(0)),
                inode,
                path: Some(path),
            };
            is_known.then_some((map.pid, What::Mapped(mapping)))
        }
        _ => None,
    }
}

/// Adds a record in the order of time: the buffers of the CPUs are read one after the other.
fn add(records: &mut Vec<Record>, record: Record) {
    if records.len() >= MOST_KEPT {
        records.remove(0);
    }
    let at = records.partition_point(|earlier| earlier.at_ns <= record.at_ns);
    records.insert(at, record);
}

fn image(records: &[Record], at_ns: u64) -> Image {
    let is_begin = |record: &Record| matches!(record.what, What::Forked | What::Executed(_));
    let past = records.partition_point(|record| record.at_ns <= at_ns);
    let (before, after) = records.split_at(past);
    // What another process with this number left is not its beginning.
    let begin = before.iter().rposition(|it| is_begin(it) || it.what == What::Ended);
    let mut image = Image::default();
    if let Some(What::Executed(comm)) = begin.and_then(|at| before.get(at)).map(|it| &it.what) {
        image.comm = Some(comm.clone());
    }
    let known = before.get(begin.map_or(0, |at| at + 1)..).unwrap_or_default();
    let rest = after.iter().take_while(|record| !is_begin(record));
    for record in known.iter().chain(rest) {
        match &record.what {
            What::Mapped(mapping) => {
                image.mappings.retain(|old| old.end <= mapping.start || old.start >= mapping.end);
                image.mappings.push(mapping.clone());
            }
            _ => break,
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(at_ns: u64, start: u64, path: &str) -> Record {
        let what = What::Mapped(Mapping {
            start,
            end: start + 0x1000,
            executable: true,
            file_offset: 0,
            device: (8, 1),
            inode: 7,
            path: Some(path.into()),
        });
        Record { at_ns, what }
    }

    fn paths(image: &Image) -> Vec<&str> {
        image.mappings.iter().filter_map(|mapping| mapping.path.as_deref()).collect()
    }

    #[test]
    fn an_image_lasts_from_its_exec_to_the_next_one() {
        let mut records = Vec::new();
        let executed = |at_ns, comm: &str| Record { at_ns, what: What::Executed(comm.into()) };
        // Another process had the number before; and the records of a second CPU come later.
        for record in [
            executed(1, "other"),
            mapped(2, 0x1000, "/other"),
            Record { at_ns: 3, what: What::Ended },
            Record { at_ns: 10, what: What::Forked },
            executed(20, "sh"),
            mapped(21, 0x1000, "/bin/sh"),
            mapped(26, 0x5000, "/lib/libc"),
            executed(30, "true"),
            mapped(31, 0x1000, "/bin/true"),
            Record { at_ns: 40, what: What::Ended },
            mapped(24, 0x5000, "/lib/ld"),
        ] {
            add(&mut records, record);
        }
        let sh = image(&records, 22);
        assert_eq!((sh.comm.as_deref(), paths(&sh)), (Some("sh"), vec!["/bin/sh", "/lib/libc"]));
        let later = image(&records, 35);
        assert_eq!((later.comm.as_deref(), paths(&later)), (Some("true"), vec!["/bin/true"]));
        // A child maps what its parent does: only what it adds is recorded.
        assert_eq!(image(&records, 15), Image::default());
        // Its fork was not recorded.
        records.retain(|record| record.at_ns != 10 && record.at_ns != 20);
        let unknown = image(&records, 20);
        assert_eq!(
            (unknown.comm.as_deref(), paths(&unknown)),
            (None, vec!["/bin/sh", "/lib/libc"])
        );
    }
}
