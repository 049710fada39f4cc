//! What stands apart: memory that unloaded modules have left, and memory that libraries keep.

use super::*;

/// Text and JSON name the same part that an unloaded module had in blocks.
#[test]
fn what_an_unloaded_module_left_is_told_by_its_part() {
    let symbol = |name: &str, object: &str| {
        Resolved::Known(vec![Symbol {
            name: name.into(),
            linkage: None,
            offset: 0,
            object: object.into(),
            file: None,
            line: None,
            inlined: false,
        }])
    };
    let own = frame(0x100, Place::Module { load: 0 });
    let kernels = frame(0x200, Place::Kernel);
    let creates = frame(0x300, Place::Kernel);
    let names = Names {
        frames: [
            (own, symbol("drv_probe", "[drv]")),
            (kernels, symbol("make_inode", "vmlinux")),
            (creates, symbol("kmem_cache_create", "vmlinux")),
        ]
        .into(),
        ..Names::default()
    };
    let mut base = snapshot(Mode::Kernel, StackMode::All);
    let stack = |frames: &[Frame]| Stack { frames: frames.to_vec(), end: StackEnd::Complete };
    base.stacks =
        [(1, stack(&[own])), (2, stack(&[kernels, own])), (3, stack(&[creates, own]))].into();
    base.modules = vec![std::sync::Arc::new(crate::snapshot::Module {
        name: "drv".into(),
        ..Default::default()
    })];
    let of = |made: Option<u64>, on: u64, gone: bool| {
        let call = if on == 2 { kernels } else { own };
        let mut snapshot = base.clone();
        snapshot.gone_modules = gone.then_some(0).into_iter().collect();
        let mut site = site(1, Kind::KmemCache, call, StackRef::Known(on));
        (site.outstanding, site.allocated) = (amount(5, 500), amount(5, 500));
        site.cache_made = made.map(StackRef::Known);
        snapshot.sites = vec![site];
        let both = (snapshot, names.clone());
        (rendered(&both, Format::Text), rendered(&both, Format::Json))
    };
    for (made, on, words, json) in [
        (
            Some(3),
            1,
            "certain leak: module drv made their cache",
            r#""unloaded_module":"drv","verdict":{"reachability":"definitely lost""#,
        ),
        (
            None,
            1,
            "left behind: module drv allocated these itself",
            r#""unloaded_module":"drv","verdict":{"reachability":"left behind""#,
        ),
        (
            None,
            2,
            "outstanding when module drv was unloaded",
            r#""unloaded_module":"drv","verdict":{"class":"unknown yet""#,
        ),
    ] {
        let (text, object) = of(made, on, true);
        assert!(text.contains(words), "{words}: {text}");
        assert!(object.contains(json), "{json}: {object}");
        let (text, object) = of(made, on, false);
        assert!(!text.contains("unloaded") && !object.contains("unloaded"), "{text}{object}");
    }
}

/// The C library's own blocks stand apart; an open stream makes its buffer doubtful.
#[test]
fn what_libraries_keep_stands_apart() {
    let libc = "/lib/libc.so.6";
    let stack_of = |frames: &[(&str, &str)], names: &mut Names, base: u64| {
        let frames = frames.iter().enumerate().map(|(index, (name, object))| {
            let frame = frame(base + index as u64, Place::Kernel);
            names.frames.insert(frame, Resolved::Known(vec![known(name, 1, object, None)]));
            frame
        });
        Stack { frames: frames.collect(), end: StackEnd::Complete }
    };
    let kept_and_shown = |stacks: &[&[(&str, &str)]]| {
        let mut snapshot = snapshot(Mode::Run, StackMode::All);
        let mut names = Names::default();
        for (index, frames) in stacks.iter().enumerate() {
            let id = index as u64 + 1;
            let stack = stack_of(frames, &mut names, id * 0x1000);
            let mut site = site(id, Kind::Malloc, stack.frames[0], StackRef::Known(id));
            site.allocated = amount(1, 10);
            site.outstanding = amount(1, 10);
            snapshot.stacks.insert(id, stack);
            snapshot.sites.push(site);
        }
        let report =
            report::build(&snapshot, &names, &Default::default(), &VIEW, &Default::default());
        let kept: u64 = report.kept.iter().map(|kept| kept.totals.outstanding.count).sum();
        (kept, report.totals.outstanding.count)
    };
    let main = ("main", "/bin/program");
    let locale = [("_nl_intern_locale_data", libc), ("setlocale", libc), main];
    let copy = [("strdup", libc), main];
    let buffer = [("_IO_file_doallocate", libc), ("fwrite", libc), main];
    let printed = [("_IO_file_doallocate", libc), ("printf", libc), main];
    let stream = [("fopen", libc), main];
    let pool = [("pool", "/lib/libstdc++.so.6"), ("_dl_init", "/lib/ld-linux-x86-64.so.2")];
    let own = [("setlocale", "/lib/libown.so"), main];
    assert_eq!(kept_and_shown(&[&locale, &copy]), (1, 1));
    assert_eq!(kept_and_shown(&[&buffer]), (1, 0));
    assert_eq!(kept_and_shown(&[&buffer, &stream]), (0, 2));
    assert_eq!(kept_and_shown(&[&printed, &stream]), (1, 1));
    assert_eq!(kept_and_shown(&[&pool]), (1, 0));
    // A function of that name elsewhere, and one that the program called in between.
    assert_eq!(kept_and_shown(&[&own]), (0, 1));
    assert_eq!(kept_and_shown(&[&[main, ("qsort", libc), main]]), (0, 1));
    // The end of its stack is not known.
    assert_eq!(kept_and_shown(&[&[("strdup", libc), ("setlocale", libc)]]), (0, 1));
}
