//! This machine: what it is, what it allows, and how its kernel is laid out.

pub mod answer;
mod attempts;
pub mod bpf_code;
pub mod btf;
pub mod cgroup;
pub mod debug_files;
pub mod doctor;
pub mod elf;
pub mod features;
pub mod kallsyms;
pub mod layout;
pub mod module_code;
pub mod modules;
pub mod objects;
pub mod page_owners;
pub mod preemption;
pub mod proc;
pub mod records;
pub mod seccomp;
pub mod slabinfo;
pub mod slabs;
pub mod variables;
