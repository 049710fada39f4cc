//! Programs that the kernel preempts, and what they must not have then.

use leaktrace_tests::{
    binary::{require_root, target_dir},
    jited::{Program, private_stacks},
    kernel::kernel_release,
    leaker::Leaker,
    traced::Traced,
};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// The programs of uprobes in the BPF object, and whether they have a tail call.
fn programs_of_uprobes() -> Vec<(String, bool)> {
    let path = target_dir().join("bpf/leaktrace.o");
    let data = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let elf = object::File::parse(&*data).unwrap_or_else(|error| panic!("{error}"));
    // `struct bpf_insn`: a call of the helper 12 (include/uapi/linux/bpf.h).
    let tail_call = [0x85, 0, 0, 0, 12, 0, 0, 0];
    let mut programs = Vec::new();
    for section in elf.sections() {
        if !matches!(section.name(), Ok("uprobe" | "uretprobe")) {
            continue;
        }
        for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            if symbol.section_index() != Some(section.index()) {
                continue;
            }
            let code = section.data_range(symbol.address(), symbol.size());
            let Ok(Some(code)) = code else { panic!("{section:?}: {symbol:?}: {code:?}") };
            let name = symbol.name().unwrap_or_else(|error| panic!("{error}")).to_owned();
            programs.push((name, code.chunks(8).any(|instruction| instruction == tail_call)));
        }
    }
    programs
}

/// Also those that are not used on this kernel.
#[test]
fn each_program_of_a_uprobe_has_a_tail_call() {
    let programs = programs_of_uprobes();
    assert!(programs.iter().any(|(name, _)| name == "lt_return"), "{programs:?}");
    assert!(programs.len() >= 5, "{programs:?}");
    let without: Vec<_> = programs.iter().filter(|(_, has_tail_call)| !has_tail_call).collect();
    assert!(without.is_empty(), "{without:?}");
}

/// A thread of a traced program can be preempted within a program of a uprobe, and another one come
/// to it on that CPU. On a stack that the program has for each CPU it would overwrite what the first
/// has there, pointers among them: the kernel crashes.
#[test]
fn no_program_of_a_uprobe_has_a_private_stack() {
    require_root();
    let control = Program::with_much_stack();
    let gives_them = control.has_private_stack();
    // From 6.13 on the kernel's compiler gives them on x86; before, what follows says nothing.
    assert_eq!(gives_them, kernel_release() >= (6, 13), "the control program");
    // A C++ program has functions that throw, whose returns have a program of their own.
    let leaker = Leaker::start("cpp", &[]);
    let pair = ["--kind", "malloc", "--pair", "fopen:fclose"];
    let args = ["user", "-p", &leaker.pid_arg(), "--interval", "1h"];
    let traced = Traced::start(&[&args, &pair[..]].concat());
    let programs = private_stacks(traced.pid());
    let has = |name: &str| programs.iter().any(|(program, _)| program == name);
    assert!(has("lt_session") || (has("lt_entry") && has("lt_return")), "{programs:?}");
    assert!(has("lt_free") && has("lt_entry") && has("lt_returning"), "{programs:?}");
    assert!(has("lt_pair_free"), "{programs:?}");
    assert!(has("lt_pair_session") || has("lt_pair_return"), "{programs:?}");
    let private: Vec<_> = programs.iter().filter(|(_, is_private)| *is_private).collect();
    assert!(private.is_empty(), "{private:?} of {programs:?}");
    traced.interrupt();
}
