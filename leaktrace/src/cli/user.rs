//! `leaktrace user`

use std::path::PathBuf;

use crate::{
    error::Error,
    session::spec::{Spec, StackMode, Target, Wanted},
};

use super::groups::{self, CommonArgs, DEFAULT_INTERVAL, UserArgs};

/// Trace the allocations of processes: malloc and its family.
///
/// Nothing is restarted or stopped. Blocks that were allocated before tracing began are not
/// seen. At least one of --pid, --comm, --cgroup and --all says which processes; what any of them
/// names is traced. With the last three, processes that begin meanwhile are traced from their
/// start on, those that end leave the report, and other processes that map the same C library
/// pay about a microsecond for each call of malloc and free.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  leaktrace user -p 1234                      a report every 5 s until Ctrl-C
  leaktrace user -p 1234 -d 5m -o 1m          what is older than a minute after 5 minutes
  leaktrace user -p 1234 -p 5678 -s age -T 3
  leaktrace user --comm nginx                 every nginx, running or not yet
  leaktrace user --cgroup /system.slice/docker.service
  leaktrace user --all --by process           which process holds how much
  leaktrace user -p 1234 --pair fopen:fclose  streams that are not closed
  leaktrace user -p 1234 --pair 'pool_alloc(size=2):pool_free(key=2)'
  leaktrace user -p 1234 -c 1 -f json         one report as JSON")]
pub(super) struct Args {
    /// Process to trace; repeatable
    #[arg(short, long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Trace the processes of this command name, now and later, until they execute another;
    /// repeatable
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Trace the processes in this control group (a folder of cgroup2, or a path as in
    /// /proc/PID/cgroup) and in those below it, now and later; repeatable
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// Trace all processes but leaktrace itself, now and later
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    user: UserArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        groups::check_pids(&self.pids)?;
        groups::check_comms(&self.comms)?;
        groups::check_cgroup_count(&self.cgroups)?;
        let named = [
            (self.pids.is_empty(), "--pid"),
            (self.comms.is_empty(), "--comm"),
            (self.cgroups.is_empty(), "--cgroup"),
        ];
        if self.all
            && let Some((_, other)) = named.iter().find(|(is_empty, _)| !is_empty)
        {
            return Err(Error::Usage(format!(
                "--all cannot be combined with {other}: leave one of them out"
            )));
        }
        let mut pids = self.pids;
        pids.sort_unstable();
        pids.dedup();
        let wanted = Wanted { pids, comms: self.comms, cgroups: self.cgroups, all: self.all };
        if wanted == Wanted::default() {
            return Err(Error::Usage(
                "no process to trace: name some with -p, --comm or --cgroup, or write --all; see \
                 `leaktrace user --help`"
                    .into(),
            ));
        }
        Ok(Spec {
            trace: self.common.trace(Some(&self.user), StackMode::All)?,
            schedule: self.common.schedule(Some(DEFAULT_INTERVAL))?,
            view: self.common.view(self.user.by())?,
            output: self.common.output(Some(&self.user))?,
            suppressions: self.user.suppressions()?,
            debug_dirs: self.common.debug_dirs()?,
            target: Target::Processes(wanted),
        })
    }
}
