//! `leaktrace kernel`

use std::path::PathBuf;

use crate::{
    error::Error,
    session::spec::{By, KernelFilters, KernelKind, Spec, StackMode, Suppressions, Target, gfp},
};

use super::groups::{self, CommonArgs, DEFAULT_INTERVAL};

/// Most flags that `--gfp` takes.
const GFP_MOST: usize = leaktrace_common::GFP_TESTS;
/// Most modules that `--module` takes, and `--not-module`.
const MODULES_MOST: usize = leaktrace_common::MODULES_MOST;

/// Modules' names as the kernel writes them: `snd-usb-audio` becomes `snd_usb_audio`.
fn kernel_names(flag: &str, modules: &[String]) -> Result<Vec<String>, Error> {
    if modules.len() > MODULES_MOST {
        return Err(Error::Usage(format!(
            "{flag} takes at most {MODULES_MOST} modules: write fewer"
        )));
    }
    Ok(modules.iter().map(|name| name.replace('-', "_")).collect())
}

/// Refuses names that no slab cache has.
fn check_caches(flag: &str, caches: &[String]) -> Result<(), Error> {
    match caches.iter().find(|name| name.is_empty() || name.len() > 31) {
        Some(cache) => Err(Error::Usage(format!(
            "{flag} `{cache}` names no slab cache that leaktrace can find: 1 to 31 bytes (see \
             /proc/slabinfo)"
        ))),
        None => Ok(()),
    }
}

/// Refuses what one flag wants and another one leaves out.
fn check_both(
    flag: &str,
    wanted: &[String],
    other: &str,
    unwanted: &[String],
) -> Result<(), Error> {
    match wanted.iter().find(|name| unwanted.contains(name)) {
        Some(name) => Err(Error::Usage(format!(
            "{flag} {name} and {other} {name}: nothing would be left; leave one of them out"
        ))),
        None => Ok(()),
    }
}

/// Trace kernel allocations: kmalloc and slab caches, vmalloc, percpu memory, pages.
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
  leaktrace kernel --pages                    pages of drivers as well
  leaktrace kernel --comm modprobe --stacks all
  leaktrace kernel --pair clk_get:clk_put     handles that are not given back
  leaktrace kernel -d 10s -f json -w leak.json")]
pub(super) struct Args {
    /// Only allocations made while this process runs; repeatable [default: all]
    #[arg(short, long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Only allocations made while a process, or a thread, of this command name runs; repeatable
    /// [default: all]
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Only allocations made while a process in this control group (a folder of cgroup2, or a path
    /// as in /proc/PID/cgroup) or in one below it runs; repeatable [default: all]
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// Only objects of this slab cache, as kmalloc-64 or dentry, by any of its names (see
    /// /sys/kernel/slab); repeatable [default: all]
    #[arg(long = "cache", value_name = "NAME")]
    caches: Vec<String>,
    /// Only what this module (see /proc/modules) allocates, or has the kernel allocate: its code is
    /// in the stack, which is taken for every allocation of the host then; with --stacks site only
    /// its own calls, which costs next to nothing. One that is not loaded yet is waited for, and
    /// traced from its init on; repeatable [default: all]
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Leave out objects of this slab cache, by any of its names; repeatable [default: none]
    #[arg(long = "not-cache", value_name = "NAME")]
    not_caches: Vec<String>,
    /// Leave out what this module allocates, and what it has the kernel allocate where the stack is
    /// known (with --stacks all: everywhere); repeatable [default: none]
    #[arg(long = "not-module", value_name = "NAME")]
    not_modules: Vec<String>,
    /// Leave out slab caches that the kernel takes back under pressure, as dentries and inodes
    /// [default: they come last]
    #[arg(long)]
    unreclaimable: bool,
    /// Only allocations with this GFP flag, as __GFP_ZERO, or made as GFP_ATOMIC, GFP_KERNEL and
    /// the like; repeatable: any of several [default: all]
    #[arg(long = "gfp", value_name = "FLAG")]
    gfp: Vec<String>,
    /// Only these allocators, as --kind slab,vmalloc [default: slab,vmalloc,percpu; none with
    /// --pair]
    #[arg(long = "kind", value_enum, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<KindArg>,
    /// Trace pages as well: `own`, those that neither a process, a file nor another allocator of
    /// the kernel has, or `all`
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true,
          default_missing_value = "own")]
    pages: Option<PagesArg>,
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
    Pages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PagesArg {
    Own,
    All,
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

/// The allocators that the user asked for; else all but pages, which are dear, or none with pairs
/// of functions.
fn kinds(asked: &[KindArg], pages: bool, has_pairs: bool) -> Vec<KernelKind> {
    let default: &[KindArg] =
        if has_pairs { &[] } else { &[KindArg::Slab, KindArg::Vmalloc, KindArg::Percpu] };
    let asked = if asked.is_empty() { default } else { asked };
    let mut kinds: Vec<KernelKind> = asked
        .iter()
        .chain(pages.then_some(&KindArg::Pages))
        .map(|kind| match kind {
            KindArg::Slab => KernelKind::Slab,
            KindArg::Vmalloc => KernelKind::Vmalloc,
            KindArg::Percpu => KernelKind::Percpu,
            KindArg::Pages => KernelKind::Pages,
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn gfp_names(asked: &[String]) -> Result<Vec<gfp::GfpName>, Error> {
    if asked.len() > GFP_MOST {
        return Err(Error::Usage(format!("--gfp takes at most {GFP_MOST} flags: write fewer")));
    }
    let find = |name: &String| {
        gfp::find(name).ok_or_else(|| {
            let nearest = gfp::nearest(name).join(", ");
            Error::Usage(format!("--gfp `{name}` is no flag of the kernel: write {nearest}, ..."))
        })
    };
    asked.iter().map(find).collect()
}

impl Args {
    pub(super) fn spec(self) -> Result<Spec, Error> {
        groups::check_pids(&self.pids)?;
        groups::check_comms(&self.comms)?;
        groups::check_cgroup_count(&self.cgroups)?;
        check_caches("--cache", &self.caches)?;
        check_caches("--not-cache", &self.not_caches)?;
        check_both("--cache", &self.caches, "--not-cache", &self.not_caches)?;
        let gfp = gfp_names(&self.gfp)?;
        let modules = kernel_names("--module", &self.modules)?;
        let not_modules = kernel_names("--not-module", &self.not_modules)?;
        check_both("--module", &modules, "--not-module", &not_modules)?;
        let trace = self.common.trace(None, StackMode::Adaptive)?;
        let kinds = kinds(&self.kinds, self.pages.is_some(), !trace.pairs.is_empty());
        let of_blocks = [
            ("--cache", self.caches.is_empty()),
            ("--not-cache", self.not_caches.is_empty()),
            ("--unreclaimable", !self.unreclaimable),
            ("--gfp", gfp.is_empty()),
        ];
        if let (true, Some((flag, _))) =
            (kinds.is_empty(), of_blocks.iter().find(|(_, is_empty)| !is_empty))
        {
            return Err(Error::Usage(format!(
                "{flag} says nothing of --pair: leave one of them out, or add --kind slab"
            )));
        }
        Ok(Spec {
            trace,
            schedule: self.common.schedule(Some(DEFAULT_INTERVAL))?,
            view: self.common.view(self.by.meaning())?,
            output: self.common.output(None)?,
            suppressions: Suppressions::default(),
            debug_dirs: self.common.debug_dirs()?,
            target: Target::Kernel {
                kinds,
                all_pages: self.pages == Some(PagesArg::All),
                filters: KernelFilters {
                    caches: self.caches,
                    modules,
                    not_caches: self.not_caches,
                    not_modules,
                    unreclaimable: self.unreclaimable,
                    gfp,
                    pids: self.pids,
                    comms: self.comms,
                    cgroups: self.cgroups,
                },
            },
        })
    }
}
