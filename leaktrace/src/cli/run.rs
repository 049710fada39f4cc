//! `leaktrace run`

use std::ffi::OsString;

use crate::{
    error::Error,
    session::spec::{Spec, StackMode, Target},
};

use super::groups::{CommonArgs, UserArgs};

/// Run a command and report what it has not freed at its end.
///
/// The command keeps standard input, output and error, and its exit code is returned. The report
/// follows its output, or goes to the file of --write. Its children are traced with --children.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  leaktrace run -- ./prog args
  leaktrace run --error-exitcode 1 -w leaks.txt -- ./prog
  leaktrace run -i 10s -- ./server            a report every 10 s as well

Exit code: that of the command, 128 and the signal's number if a signal ended it, or that of
--error-exitcode.")]
pub(super) struct Args {
    /// Return this exit code, 1 to 255, when any block is outstanding at the command's end that
    /// no library keeps for itself
    /// [default: the command's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=255))]
    error_exitcode: Option<u8>,
    #[command(flatten)]
    user: UserArgs,
    #[command(flatten)]
    common: CommonArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<OsString>,
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        Ok(Spec {
            trace: self.common.trace(Some(&self.user), StackMode::All)?,
            schedule: self.common.schedule(None)?,
            view: self.common.view(self.user.by())?,
            output: self.common.output(Some(&self.user))?,
            suppressions: self.user.suppressions()?,
            debug_dirs: self.common.debug_dirs()?,
            target: Target::Command { argv: self.argv, error_exitcode: self.error_exitcode },
        })
    }
}
