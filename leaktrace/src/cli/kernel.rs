//! `leaktrace kernel`

use clap::ValueEnum as _;

use crate::{
    error::Error,
    session::spec::{By, KernelKind, Spec, StackMode, Target},
};

use super::groups::{self, CommonArgs, DEFAULT_INTERVAL};

/// Trace kernel allocations: kmalloc and slab caches, vmalloc, percpu memory.
///
/// Every allocation and free is counted by call site. Stacks are dear in the kernel (3 to 5
/// microseconds), so by default they are taken for the first allocations of a call site, for one
/// in 1024 after that, and for all once it keeps growing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  leaktrace kernel                            a report every 5 s until Ctrl-C
  leaktrace kernel -d 60s -o 30s              what is older than 30 s after a minute
  leaktrace kernel --cache kmalloc-64         who allocates from this cache
  leaktrace kernel --by module --stacks all   which driver holds how much
  leaktrace kernel --comm modprobe --stacks all
  leaktrace kernel -d 10s -f json -w leak.json")]
pub(super) struct Args {
    /// Only allocations made while this process runs; repeatable [default: all]
    #[arg(short, long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Only allocations made while a process of this command name runs; repeatable
    /// [default: all]
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Only objects of this slab cache, as kmalloc-64 or dentry (see /proc/slabinfo); repeatable
    /// [default: all]
    #[arg(long = "cache", value_name = "NAME")]
    caches: Vec<String>,
    /// Only these allocators, as --kind slab,vmalloc [default: all]
    #[arg(long = "kind", value_enum, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<KindArg>,
    /// What sums are shown by: each call site with its stack, or one line for each module that the
    /// memory is for, each slab cache, or each process that allocated
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = ByArg::Site)]
    by: ByArg,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum KindArg {
    Slab,
    Vmalloc,
    Percpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ByArg {
    Site,
    Module,
    Cache,
    Process,
}

impl ByArg {
    fn meaning(self) -> By {
        match self {
            Self::Site => By::Site,
            Self::Module => By::Module,
            Self::Cache => By::Cache,
            Self::Process => By::Process,
        }
    }
}

/// The allocators asked for, or all.
fn kinds(asked: &[KindArg]) -> Vec<KernelKind> {
    let asked = if asked.is_empty() { KindArg::value_variants() } else { asked };
    let mut kinds: Vec<KernelKind> = asked
        .iter()
        .map(|kind| match kind {
            KindArg::Slab => KernelKind::Slab,
            KindArg::Vmalloc => KernelKind::Vmalloc,
            KindArg::Percpu => KernelKind::Percpu,
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        groups::check_pids(&self.pids)?;
        if let Some(comm) = self.comms.iter().find(|comm| comm.is_empty() || comm.len() > 15) {
            return Err(Error::Usage(format!(
                "--comm `{comm}` names no command: the kernel keeps 1 to 15 bytes of a name \
                 (see `ps -o comm`)"
            )));
        }
        if let Some(cache) = self.caches.iter().find(|name| name.is_empty() || name.len() > 31) {
            return Err(Error::Usage(format!(
                "--cache `{cache}` names no slab cache that leaktrace can find: 1 to 31 bytes \
                 (see /proc/slabinfo)"
            )));
        }
        Ok(Spec {
            trace: self.common.trace(None, StackMode::Adaptive)?,
            schedule: self.common.schedule(Some(DEFAULT_INTERVAL))?,
            view: self.common.view(self.by.meaning())?,
            output: self.common.output(),
            target: Target::Kernel {
                kinds: kinds(&self.kinds),
                caches: self.caches,
                pids: self.pids,
                comms: self.comms,
            },
        })
    }
}
