//! `leaktrace run`

use std::ffi::OsString;

use clap::ValueEnum;

use crate::{
    error::Error,
    session::spec::{LeakKinds, Reachability, Spec, StackMode, Target},
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
    /// Return this exit code, 1 to 255, when blocks of --leak-kinds are outstanding at the command's
    /// end, or handles of --pair. A command that cannot be judged keeps its own
    /// [default: the command's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=255))]
    error_exitcode: Option<u8>,
    /// What counts as a leak for --error-exitcode: blocks that no address in the command's memory
    /// leads to at its exit; blocks that only such blocks lead to; blocks that only addresses inside
    /// them lead to; all that are outstanding, but what the C and C++ libraries keep for themselves
    #[arg(
        long,
        value_enum,
        value_name = "KINDS",
        value_delimiter = ',',
        default_values_t = [LeakKindArg::Definite, LeakKindArg::Indirect]
    )]
    leak_kinds: Vec<LeakKindArg>,
    #[command(flatten)]
    user: UserArgs,
    #[command(flatten)]
    common: CommonArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LeakKindArg {
    Definite,
    Indirect,
    Possible,
    Reachable,
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        let trace = self.common.trace(Some(&self.user), StackMode::All)?;
        let counts = |kind| self.leak_kinds.contains(&kind);
        let leak_kinds = LeakKinds {
            definite: counts(LeakKindArg::Definite),
            indirect: counts(LeakKindArg::Indirect),
            possible: counts(LeakKindArg::Possible),
            reachable: counts(LeakKindArg::Reachable),
        };
        let is_off = trace.reachability == Reachability::Off && trace.pairs.is_empty();
        if self.error_exitcode.is_some() && is_off && !leak_kinds.reachable {
            return Err(Error::Usage(
                "--error-exitcode counts lost blocks, which --reachability off does not look for: \
                 leave it out, or add --leak-kinds reachable to count every outstanding block"
                    .into(),
            ));
        }
        let counts_lost = self.error_exitcode.is_some() && !leak_kinds.reachable;
        if counts_lost && !trace.user_kinds.malloc && trace.pairs.is_empty() {
            return Err(Error::Usage(
                "--error-exitcode counts lost blocks of malloc, which --kind mmap leaves out: add \
                 malloc to --kind, or --leak-kinds reachable to count every mapping"
                    .into(),
            ));
        }
        let view = self.common.view(self.user.by())?;
        if counts_lost && !view.older.is_zero() {
            return Err(Error::Usage(
                "--error-exitcode counts lost blocks of any age: leave --older out".into(),
            ));
        }
        Ok(Spec {
            trace,
            schedule: self.common.schedule(None)?,
            view,
            output: self.common.output(Some(&self.user))?,
            suppressions: self.user.suppressions()?,
            debug_dirs: self.common.debug_dirs()?,
            target: Target::Command {
                argv: self.argv,
                error_exitcode: self.error_exitcode,
                leak_kinds,
            },
        })
    }
}
