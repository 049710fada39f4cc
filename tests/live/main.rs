//! Live tests: the real binary traces real programs and this kernel. Root, and one test at a time
//! (`--test-threads=1`), as kernel state and both CPUs are shared.

mod allocators;
mod exact;
mod explained;
mod filters;
mod first_stacks;
mod followed;
mod freed_at;
mod gdb;
mod hold;
mod holders;
mod host_wide;
mod hostile;
mod kept;
mod kernel;
mod kernel_view;
mod lifecycle;
mod lost;
mod mappings;
mod names;
mod old_kernel;
mod pairs;
mod preemption;
mod processes;
mod reach;
mod run;
mod runtimes;
mod sampling;
mod semantics;
mod start;
mod storm;
mod suppressions;
mod under_seccomp;
mod unwinding;
mod valgrind;
mod verdicts;
