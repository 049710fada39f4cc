//! `leaktrace user`

use crate::{
    error::Error,
    session::spec::{Spec, StackMode, Target},
};

use super::groups::{self, CommonArgs, DEFAULT_INTERVAL, UserArgs};

/// Trace the allocations of running processes: malloc and its family.
///
/// Nothing is restarted or stopped. Blocks that were allocated before tracing began are not
/// seen. Children of a process are traced with --children, or when they are named themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  leaktrace user -p 1234                      a report every 5 s until Ctrl-C
  leaktrace user -p 1234 -d 5m -o 1m          what is older than a minute after 5 minutes
  leaktrace user -p 1234 -p 5678 -s age -T 3
  leaktrace user -p 1234 -c 1 -f json         one report as JSON")]
pub(super) struct Args {
    /// Process to trace; repeatable
    #[arg(short, long = "pid", value_name = "PID", required = true)]
    pids: Vec<u32>,
    #[command(flatten)]
    user: UserArgs,
    #[command(flatten)]
    common: CommonArgs,
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        groups::check_pids(&self.pids)?;
        let mut pids = self.pids;
        pids.sort_unstable();
        pids.dedup();
        Ok(Spec {
            trace: self.common.trace(Some(&self.user), StackMode::All)?,
            schedule: self.common.schedule(Some(DEFAULT_INTERVAL))?,
            view: self.common.view(self.user.by())?,
            output: self.common.output(),
            debug_dirs: self.common.debug_dirs()?,
            objects: self.user.objects,
            target: Target::Processes { pids },
        })
    }
}
