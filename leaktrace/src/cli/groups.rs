//! Flags that several verbs share, and what they mean.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use leaktrace_common::{CGROUPS, sampling};

use crate::{
    error::Error,
    session::spec::{
        By, Format, NamedPair, Output, ProbeAt, Reachability, Schedule, Sort, StackMode,
        Suppressions, TraceOptions, Unwind, UserKinds, View, pairs,
    },
    units::{parse_bytes, parse_duration, parse_percent},
};

/// Most blocks that `--max-outstanding` allows: some 2.6 GB of kernel memory.
const MOST_OUTSTANDING: i64 = 50_000_000;

/// Flags of every tracing verb.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// Time between two reports, as 500ms, 5s or 1h [default: 5s; `run`: only the final report]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) interval: Option<Duration>,
    /// End after this many reports [default: no end]
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// End after this time, as 60s or 1h30m, with a final report [default: no end]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Number of call sites in a report
    #[arg(short = 'T', long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Count only blocks at least this old as outstanding, as 500ms, 30s or 5m
    #[arg(short, long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    older: Duration,
    /// Leave out allocations smaller than this, in bytes or as 64KiB [default: 0]
    #[arg(short = 'z', long, value_name = "SIZE", value_parser = parse_bytes)]
    min_size: Option<u64>,
    /// Leave out allocations larger than this, in bytes or as 10MB [default: no limit]
    #[arg(short = 'Z', long, value_name = "SIZE", value_parser = parse_bytes)]
    max_size: Option<u64>,
    /// Order of call sites: by verdict (what leaks, then what cannot be told yet, then what is
    /// healthy, each by growth), or most bytes, most blocks, oldest block or most growth first
    #[arg(short, long, value_enum, default_value_t = SortArg::Leak)]
    sort: SortArg,
    /// List the outstanding blocks of each call site [default: off]
    #[arg(short = 'a', long)]
    show_allocs: bool,
    /// Room for at least this many outstanding blocks, 1 to 50000000; bounds the kernel memory that is used
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=MOST_OUTSTANDING))]
    max_outstanding: u32,
    /// When stacks are taken: for the call sites that grow and a sample of the rest, always, or
    /// never [default: kernel adaptive, user and run all]
    #[arg(long, value_enum, value_name = "WHEN")]
    stacks: Option<StacksArg>,
    /// Most frames of a stack, 1 to 127
    #[arg(long, value_name = "N", default_value_t = 127,
          value_parser = clap::value_parser!(u32).range(1..=127))]
    max_depth: u32,
    /// Trace what functions acquire and others release, by their names, as fopen:fclose or
    /// SSL_new:SSL_free, instead of allocations (both with --kind as well). Several of one kind
    /// are listed: fopen,fdopen:fclose. What they give is known by what they return, if that is
    /// neither NULL nor an error; or by argument N, NAME(key=N), or by what they write to where it
    /// points, NAME(out=N), if they return 0. NAME(size=N) or (size=N*N): its size in bytes.
    /// NAME(if=RESULT): what says that it was acquired: any, zero, nonzero, true (of a bool) or
    /// nonnegative. It is released as argument 1 of RELEASE, or N of RELEASE(key=N). Acquired
    /// several times, it counts as often. Repeatable, up to 8 [default: none]
    #[arg(long = "pair", value_name = "ACQUIRE:RELEASE", value_parser = pairs::parse)]
    pairs: Vec<NamedPair>,
    /// Folder with debug information that no package installed: of kernel modules (anywhere below
    /// it), of vmlinux, and .build-id folders; repeatable [default: /usr/lib/debug and the like]
    #[arg(long = "debug-dir", value_name = "DIR")]
    debug_dirs: Vec<PathBuf>,
    /// Format of the reports
    #[arg(short, long, value_enum, default_value_t = FormatArg::Text)]
    format: FormatArg,
    /// Write the reports to this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// No notes on standard error [default: off]
    #[arg(short, long)]
    quiet: bool,
    /// More notes on standard error; twice for more [default: off]
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Flags of the verbs that trace processes.
#[derive(Debug, Args)]
pub(super) struct UserArgs {
    /// Object, by its path as the process sees it, whose allocator functions are probed as well:
    /// malloc and free under any prefix, operator new and delete; repeatable [default: each object
    /// with an allocator that is known]
    #[arg(short = 'O', long = "obj", value_name = "OBJ")]
    pub(super) objects: Vec<PathBuf>,
    /// Where probes go: on the first instruction that costs one trap where that is safe, or on
    /// each function's first instruction
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = ProbeAtArg::Auto)]
    probe_at: ProbeAtArg,
    /// How stacks are unwound: by call frame information and else by frame pointers, or by one
    /// of them alone
    #[arg(long, value_enum, value_name = "HOW", default_value_t = UnwindArg::Auto)]
    unwind: UnwindArg,
    /// Trace the children of traced processes as well, from their start on: other processes that
    /// map the same C library then pay about a microsecond for each call of malloc and free
    /// [default: off]
    #[arg(long)]
    children: bool,
    /// What is traced, as --kind malloc,mmap: blocks of malloc and its relatives; anonymous memory
    /// that the process maps itself (mmap, mremap, brk), at a cost of some 0.2 microseconds for
    /// each system call of every process of the host [default: malloc, nothing with --pair]
    #[arg(long = "kind", value_enum, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<UserKindArg>,
    /// Record one block in every SIZE bytes asked for, on average, and all from that size on, as
    /// 64KiB: cheaper, with estimates (~) for smaller blocks; 16 to 256MiB [default: every block]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    sample_bytes: Option<u64>,
    /// Let the probes cost at most this share of one CPU's time, as 2%: above it, blocks are
    /// sampled, and probes taken away where that is not enough [default: no limit]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    max_overhead: Option<u32>,
    /// Leave out the call sites that a rule of this file matches: lines `leak:NAME` of
    /// LeakSanitizer's, blocks of Valgrind's; repeatable [default: none]
    #[arg(long = "suppressions", value_name = "FILE")]
    suppressions: Vec<PathBuf>,
    /// Write such a block behind the last report for each call site that it shows [default: off]
    #[arg(long)]
    gen_suppressions: bool,
    /// How the final report tells which outstanding blocks are lost, as no address of them is in the
    /// process's memory, and who holds the others: by looking through the memory several times
    /// while the process runs (some seconds; Ctrl-C skips it); once, in a copy-on-write fork of the
    /// process (stops it for 30 to 85 ms a GiB) or while it is stopped (where that takes no more
    /// than 250 ms); or not at all. A command of `run` is looked at at its exit
    #[arg(long, value_enum, value_name = "HOW", default_value_t = ReachabilityArg::Live)]
    reachability: ReachabilityArg,
    /// What sums are shown by: each call site with its stack, or one line a process
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = UserByArg::Site)]
    by: UserByArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatArg {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortArg {
    Leak,
    Bytes,
    Count,
    Age,
    Growth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UserKindArg {
    Malloc,
    Mmap,
}

/// Processes have neither slab caches nor modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UserByArg {
    Site,
    Process,
}

impl UserArgs {
    /// What is traced beside pairs of functions; `default` says what to trace if the user asked for
    /// nothing.
    fn kinds(&self, default: bool) -> UserKinds {
        if self.kinds.is_empty() {
            return UserKinds { malloc: default, mmap: false };
        }
        UserKinds {
            malloc: self.kinds.contains(&UserKindArg::Malloc),
            mmap: self.kinds.contains(&UserKindArg::Mmap),
        }
    }

    /// The sampling interval in bytes; 0 if blocks are not sampled.
    fn sample_bytes(&self) -> Result<u32, Error> {
        let most = u64::from(sampling::MAX_INTERVAL_BYTES);
        match self.sample_bytes {
            None => Ok(0),
            Some(bytes) if (sampling::SMALLEST_BYTES..=most).contains(&bytes) => Ok(bytes as u32),
            Some(bytes) => Err(Error::Usage(format!(
                "--sample-bytes {bytes}: write 16 to 256MiB, or leave it out to record every block"
            ))),
        }
    }

    /// The rules of all files.
    pub(super) fn suppressions(&self) -> Result<Suppressions, Error> {
        let mut texts = Vec::new();
        for path in &self.suppressions {
            let text = fs::read(path).map_err(|error| {
                Error::Usage(format!("--suppressions {}: {error}", path.display()))
            })?;
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
        let files = self.suppressions.iter().map(PathBuf::as_path);
        Suppressions::parse(files.zip(texts.iter().map(String::as_str))).map_err(Error::Usage)
    }

    /// What sums are shown by.
    pub(super) fn by(&self) -> By {
        match self.by {
            UserByArg::Site => By::Site,
            UserByArg::Process => By::Process,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StacksArg {
    Adaptive,
    All,
    Site,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProbeAtArg {
    Auto,
    Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ReachabilityArg {
    Live,
    Snapshot,
    Stop,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UnwindArg {
    Auto,
    Dwarf,
    Fp,
}

impl CommonArgs {
    /// How allocations are traced; `stacks` is the verb's default.
    pub(super) fn trace(
        &self,
        user: Option<&UserArgs>,
        stacks: StackMode,
    ) -> Result<TraceOptions, Error> {
        let min_size_bytes = self.min_size.unwrap_or(0);
        let max_size_bytes = self.max_size.unwrap_or(u64::MAX);
        if min_size_bytes > max_size_bytes {
            return Err(Error::Usage(format!(
                "--min-size {min_size_bytes} is above --max-size {max_size_bytes}: nothing \
                 could match; swap them"
            )));
        }
        Ok(TraceOptions {
            stacks: match self.stacks {
                None => stacks,
                Some(StacksArg::Adaptive) => StackMode::Adaptive,
                Some(StacksArg::All) => StackMode::All,
                Some(StacksArg::Site) => StackMode::Site,
            },
            max_depth: self.max_depth,
            max_outstanding: self.max_outstanding,
            min_size_bytes,
            max_size_bytes,
            probe_at: match user.map(|user| user.probe_at) {
                None | Some(ProbeAtArg::Auto) => ProbeAt::Cheapest,
                Some(ProbeAtArg::Entry) => ProbeAt::Entry,
            },
            unwind: match user.map(|user| user.unwind) {
                None | Some(UnwindArg::Auto) => Unwind::Auto,
                Some(UnwindArg::Dwarf) => Unwind::Tables,
                Some(UnwindArg::Fp) => Unwind::FramePointers,
            },
            children: user.is_some_and(|user| user.children),
            sample_bytes: user.map_or(Ok(0), UserArgs::sample_bytes)?,
            max_overhead_ppm: user.and_then(|user| user.max_overhead),
            user_kinds: user.map_or(UserKinds { malloc: false, mmap: false }, |user| {
                user.kinds(self.pairs.is_empty())
            }),
            objects: user.map(|user| user.objects.clone()).unwrap_or_default(),
            verbose: self.verbose,
            pairs: self.pairs(user)?,
            reachability: match user.map(|user| user.reachability) {
                None | Some(ReachabilityArg::Off) => Reachability::Off,
                Some(ReachabilityArg::Live) => Reachability::Live,
                Some(ReachabilityArg::Snapshot) => Reachability::Snapshot,
                Some(ReachabilityArg::Stop) => Reachability::Stop,
            },
        })
    }

    /// Functions that are traced by their names.
    pub(super) fn pairs(&self, user: Option<&UserArgs>) -> Result<Vec<NamedPair>, Error> {
        pairs::check(&self.pairs).map_err(Error::Usage)?;
        let sampled = [
            ("--sample-bytes", user.is_some_and(|user| user.sample_bytes.is_some())),
            ("--max-overhead", user.is_some_and(|user| user.max_overhead.is_some())),
        ];
        match sampled.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) if !self.pairs.is_empty() => Err(Error::Usage(format!(
                "--pair cannot be combined with {flag}: every call of a pair is counted; leave one \
                 of them out"
            ))),
            _ => Ok(self.pairs.clone()),
        }
    }

    /// When reports are due; `interval` is the verb's default.
    pub(super) fn schedule(&self, interval: Option<Duration>) -> Result<Schedule, Error> {
        let not_zero = |flag: &str, time: Option<Duration>| {
            if time == Some(Duration::ZERO) {
                return Err(Error::Usage(format!("{flag} 0 is no time: write at least 1ms")));
            }
            Ok(time)
        };
        if self.count == Some(0) {
            return Err(Error::Usage("--count 0 asks for no report: write at least 1".into()));
        }
        // A count needs an interval to count.
        let interval = interval.or(self.count.map(|_| DEFAULT_INTERVAL));
        Ok(Schedule {
            interval: not_zero("--interval", self.interval)?.or(interval),
            count: self.count,
            duration: not_zero("--duration", self.duration)?,
        })
    }

    /// What a report shows.
    pub(super) fn view(&self, by: By) -> Result<View, Error> {
        if self.top == 0 {
            return Err(Error::Usage("--top 0 shows nothing: write at least 1".into()));
        }
        Ok(View {
            top: self.top,
            sort: match self.sort {
                SortArg::Leak => Sort::Leak,
                SortArg::Growth => Sort::Growth,
                SortArg::Bytes => Sort::Bytes,
                SortArg::Count => Sort::Count,
                SortArg::Age => Sort::Age,
            },
            older: self.older,
            show_allocs: self.show_allocs,
            by,
        })
    }

    /// Folders with debug information, all of which exist.
    pub(super) fn debug_dirs(&self) -> Result<Vec<PathBuf>, Error> {
        if let Some(folder) = self.debug_dirs.iter().find(|folder| !folder.is_dir()) {
            return Err(Error::Usage(format!(
                "--debug-dir {}: there is no such folder: name the one that holds the files \
                 with debug information",
                folder.display()
            )));
        }
        Ok(self.debug_dirs.clone())
    }

    /// How and where reports are printed.
    pub(super) fn output(&self, user: Option<&UserArgs>) -> Result<Output, Error> {
        let gen_suppressions = user.is_some_and(|user| user.gen_suppressions);
        if gen_suppressions && self.format == FormatArg::Json {
            return Err(Error::Usage(
                "--gen-suppressions writes text, and would break the JSON: leave out one of them"
                    .into(),
            ));
        }
        Ok(Output {
            gen_suppressions,
            format: match self.format {
                FormatArg::Text => Format::Text,
                FormatArg::Json => Format::Json,
            },
            write: self.write.clone(),
            quiet: self.quiet,
        })
    }
}

/// Time between reports unless the user asked for another.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

/// Refuses process ID 0.
pub(super) fn check_pids(pids: &[u32]) -> Result<(), Error> {
    if pids.contains(&0) {
        return Err(Error::Usage("--pid 0 is no process: write the ID of one".into()));
    }
    Ok(())
}

/// Refuses a text that no command name can be.
pub(super) fn check_comms(comms: &[String]) -> Result<(), Error> {
    match comms.iter().find(|comm| comm.is_empty() || comm.len() > 15) {
        Some(comm) => Err(Error::Usage(format!(
            "--comm `{comm}` names no command: the kernel keeps 1 to 15 bytes of a name (see `ps \
             -o comm`)"
        ))),
        None => Ok(()),
    }
}

/// Refuses more control groups than the BPF object tests.
pub(super) fn check_cgroup_count(cgroups: &[PathBuf]) -> Result<(), Error> {
    if cgroups.len() > CGROUPS {
        return Err(Error::Usage(format!(
            "--cgroup takes at most {CGROUPS} groups: name one above several of them"
        )));
    }
    Ok(())
}
