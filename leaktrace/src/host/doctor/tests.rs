//! Hosts that have everything, hosts that lack something, and hosts of another kind.

use super::*;

fn good() -> HostFacts {
    HostFacts {
        is_root: true,
        kernel_release: "6.18.0".into(),
        has_btf: true,
        raw_tracepoint: Answer::Yes,
        slab_tracepoints: Answer::Yes,
        has_uprobe: true,
        uprobe_multi: Answer::Yes,
        session: Answer::Yes,
        records: Answer::Yes,
        fentry: Answer::Yes,
        has_kprobe: true,
        has_slabinfo: true,
        vmlinux: Some("/usr/lib/debug/boot/vmlinux-6.18.0".into()),
        capabilities: Capabilities(u64::MAX),
        lockdown: Some("none".into()),
        kptr_restrict: Some(1),
        perf_event_paranoid: Some(2),
        libc: Some("/lib/libc.so.6".into()),
    }
}

fn loads() -> Trials {
    Trials { kernel: Answer::Yes, user: Answer::Yes, return_probes: Answer::Yes }
}

fn text(facts: &HostFacts) -> String {
    let mut out = Vec::new();
    write_text(&checks(facts, &loads()), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn all_is_well_on_a_good_host() {
    assert!(checks(&good(), &loads()).iter().all(|check| check.status == Status::Ok));
    assert!(text(&good()).ends_with("\nkernel mode: yes; user mode: yes\n"));
}

#[test]
fn each_mode_falls_with_what_it_needs() {
    let no_btf = HostFacts { has_btf: false, ..good() };
    assert!(text(&no_btf).ends_with("kernel mode: no; user mode: yes\n"));
    let no_uprobe = HostFacts { has_uprobe: false, ..good() };
    assert!(text(&no_uprobe).ends_with("kernel mode: yes; user mode: no\n"));
    let locked = HostFacts { lockdown: Some("confidentiality".into()), ..good() };
    assert!(text(&locked).ends_with("kernel mode: no; user mode: no\n"));
}

#[test]
fn a_mode_whose_programs_do_not_load_does_not_work() {
    let old = || Answer::No("this kernel lacks atomic operations".into());
    for (trials, verdict) in [
        (Trials { kernel: old(), ..loads() }, "kernel mode: no; user mode: yes\n"),
        (Trials { user: old(), ..loads() }, "kernel mode: yes; user mode: no\n"),
    ] {
        let mut out = Vec::new();
        write_text(&checks(&good(), &trials), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("this kernel lacks atomic"), "{text}");
        assert!(text.ends_with(verdict), "{text}");
    }
}

#[test]
fn deadly_return_probes_are_told() {
    let trials = Trials { return_probes: Answer::No("it kills".into()), ..loads() };
    let checks = checks(&good(), &trials);
    let told = checks.iter().find(|check| check.status == Status::Degraded).unwrap();
    assert_eq!((told.name, told.detail.as_str()), ("return probes under seccomp", "it kills"));
    assert!(told.lost.contains("--all") && told.mend.contains("6.14"));
    assert_eq!(Verdict::of(&checks), Verdict { kernel_mode: true, user_mode: true });
}

#[test]
fn a_lesser_kernel_is_degraded_and_says_what_is_lost() {
    let no = || Answer::No("Operation not permitted".into());
    let facts = HostFacts { fentry: no(), session: no(), has_kprobe: false, ..good() };
    let checks = checks(&facts, &loads());
    let degraded: Vec<&str> = checks
        .iter()
        .filter(|check| check.status == Status::Degraded)
        .inspect(|check| assert!(!check.lost.is_empty() && !check.mend.is_empty()))
        .map(|check| check.name)
        .collect();
    assert_eq!(degraded, ["fentry", "uprobe session links", "kprobes"]);
    assert_eq!(Verdict::of(&checks), Verdict { kernel_mode: true, user_mode: true });
}

#[test]
fn others_than_root_are_told_to_be_root() {
    let refused = || Answer::No("Operation not permitted".into());
    let facts = HostFacts {
        is_root: false,
        capabilities: Capabilities(0),
        raw_tracepoint: refused(),
        slab_tracepoints: refused(),
        ..good()
    };
    let text = text(&facts);
    assert!(text.contains("missing   privileges"), "{text}");
    assert!(text.contains("needs root (Operation not permitted)"), "{text}");
    assert!(text.ends_with("kernel mode: no; user mode: no\n"), "{text}");
}

#[test]
fn json_has_the_verdict_and_the_checks() {
    let mut out = Vec::new();
    write_json(&checks(&HostFacts { has_btf: false, ..good() }, &loads()), &mut out).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["kernel_mode"], false);
    assert_eq!(json["checks"][2]["name"], "BTF");
    assert_eq!(json["checks"][2]["status"], "missing");
}
