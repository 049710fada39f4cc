//! The semantics of both kinds of rules.

use super::*;

fn parsed(text: &str) -> Result<Vec<Rule>, String> {
    Suppressions::parse([(Path::new("f"), text)]).map(|all| all.rules)
}

fn frame<'a>(name: &'a str, linkage: &'a str, object: &'a str) -> Frame<'a> {
    Frame { name, linkage, object, ..Frame::default() }
}

fn allocator(name: &'static str) -> Frame<'static> {
    Frame { is_allocator: true, ..frame(name, "", "/lib/libc.so.6") }
}

/// Whether the rules of a text suppress a stack below `malloc`.
fn suppresses(text: &str, below: &[Frame<'_>]) -> bool {
    let all = Suppressions::parse([(Path::new("f"), text)]).unwrap();
    let stack = [&[allocator("malloc")], below].concat();
    all.find(&[stack]).is_some()
}

const PARSE: Frame<'_> = Frame {
    name: "json::Parser::parse(char const*)",
    linkage: "_ZN4json6Parser5parseEPKc",
    object: "/usr/lib/libjson.so.1",
    file: "/src/json/parser.cpp",
    line: 42,
    is_allocator: false,
};

fn stack() -> [Frame<'static>; 3] {
    [PARSE, frame("load", "", "/usr/bin/demo"), frame("main", "", "/usr/bin/demo")]
}

#[test]
fn templates_are_found_anywhere() {
    let cases = [
        ("json::Parser", true),
        ("libjson", true),
        ("parser.cpp", true),
        ("^json::", true),
        ("^Parser", false),
        ("^/usr/bin/demo$", true),
        ("usr*demo$", true),
        ("usr/bin$", false),
        // `$` holds behind `*`, whatever follows.
        ("usr/bin*$", true),
        // `^` is a letter anywhere else.
        ("json^", false),
        ("Json", false),
        ("mai?", false),
        ("load", true),
        ("malloc", true),
        // The C library's path is not that of LeakSanitizer's own malloc.
        ("libc.so", false),
        ("_ZN4json", true),
    ];
    for (template, expected) in cases {
        assert_eq!(suppresses(&format!("leak:{template}"), &stack()), expected, "{template}");
    }
    // What has no name matches nothing, and an object without one has a name for that.
    assert!(!suppresses("leak:???", &[Frame::default()]));
    assert!(suppresses("leak:<unknown module>", &[Frame::default()]));
}

#[test]
fn the_innermost_frame_decides_which_line_counts() {
    let all = Suppressions::parse([(Path::new("f"), "leak:main\nleak:load\n")]).unwrap();
    assert_eq!(all.find(&[stack().to_vec()]), Some(1));
    let blocks = "{\nlater\nMemcheck:Leak\n...\nfun:main\n}\nleak:load\n";
    let both = Suppressions::parse([(Path::new("f"), blocks)]).unwrap();
    assert_eq!(both.find(&[[vec![allocator("malloc")], stack().to_vec()].concat()]), Some(0));
}

fn block(locations: &str) -> String {
    format!("{{\n  name\n  Memcheck:Leak\n{locations}\n}}\n")
}

#[test]
fn blocks_match_from_the_allocator_on() {
    let cases = [
        ("fun:malloc", true),
        ("fun:calloc", false),
        ("fun:*alloc", true),
        ("fun:m?lloc\nfun:_ZN4json*", true),
        // The whole name.
        ("fun:mall", false),
        ("fun:malloc\nfun:load", false),
        ("fun:malloc\n...\nfun:load", true),
        ("...\nfun:main", true),
        ("...\nfun:main\nfun:*", false),
        ("fun:malloc\n...\nobj:*/libjson.so*", true),
        ("fun:malloc\nobj:libjson.so.1", false),
        ("obj:*vgpreload_memcheck*\nobj:*", true),
        ("obj:*/libc.so.6", true),
        ("fun:malloc\nsrc:parser.cpp:42", true),
        ("fun:malloc\nsrc:parser.cpp:43", false),
        ("fun:malloc\nsrc:*.cpp", true),
        // More frames than there are.
        ("fun:malloc\nfun:*\nfun:*\nfun:*\nfun:*", false),
        ("match-leak-kinds: definite,reachable\nfun:malloc", true),
        ("match-leak-kinds:all\nfun:malloc", true),
        ("match-leak-kinds: none\nfun:malloc", false),
        ("fun:malloc\nfun:json::Parser::parse*", true),
    ];
    for (locations, expected) in cases {
        assert_eq!(suppresses(&block(locations), &stack()), expected, "{locations}");
    }
    let unnamed = [frame("", "", "/bin/stripped")];
    assert!(suppresses(&block("fun:malloc\nfun:\\?\\?\\?\n").replace('\\', ""), &unnamed));
}

/// Of a call of `operator new`, the rules may mean that or the malloc below it.
#[test]
fn several_views_of_one_stack_are_tried() {
    let all =
        Suppressions::parse([(Path::new("f"), block("fun:_Znwm\nfun:load").as_str())]).unwrap();
    let new = frame("operator new(unsigned long)", "_Znwm", "/lib/libstdc++.so.6");
    let below = [new, frame("load", "", "/usr/bin/demo")];
    let whole = [&[allocator("malloc")][..], &below].concat();
    assert_eq!(all.find(std::slice::from_ref(&whole)), None);
    assert_eq!(all.find(&[whole, below.to_vec()]), Some(0));
}

#[test]
fn what_is_for_others_is_passed_over() {
    let text = "# a comment\n\n{\n<insert>\nMemcheck:Param\nwrite(buf)\nfun:write\n}\n\
                {\nrace\nHelgrind:Race\nfun:x\n}\n  leak: not trimmed\r\n\
                {\n a name with : and {\n Addrcheck,Memcheck:Leak\n fun:x\n}\n";
    let rules = parsed(text).unwrap();
    let names: Vec<(usize, &str)> =
        rules.iter().map(|rule| (rule.line, rule.name.as_str())).collect();
    assert_eq!(names, [(14, "leak: not trimmed"), (15, "a name with : and {")]);
}

#[test]
fn what_is_wrong_has_its_line() {
    let cases = [
        ("leak:a\nrace:b\n", "line 2: `race:b` is neither"),
        ("leak:\n", "line 1: `leak:` names nothing"),
        ("\n{\nname\nMemcheck:Leak\nfun:x\n", "line 2: this block has no `}`"),
        ("{\n}\n", "line 2: a block needs a name"),
        ("{\nname\nLeak\nfun:x\n}\n", "line 3: `Leak` is no TOOL:KIND"),
        ("{\nname\nMemcheck:Leak\nfan:x\n}\n", "line 4: `fan:x` is no location"),
        ("{\nname\nMemcheck:Leak\nfun:\n}\n", "line 4: `fun:` is no location"),
        ("{\nname\nMemcheck:Leak\nsrc:a.c:x\n}\n", "line 4: `src:a.c:x` is no location"),
        ("{\nname\nMemcheck:Leak\n...\n}\n", "line 5: a block needs a line with fun:"),
        ("{\nname\nMemcheck:Leak\nmatch-leak-kinds: some\nfun:x\n}\n", "line 4: `some` is no kind"),
        ("}\n", "line 1: `}` is neither"),
    ];
    for (text, expected) in cases {
        let error = parsed(text).unwrap_err();
        assert!(error.starts_with(&format!("--suppressions f: {expected}")), "{text}: {error}");
    }
    let many = block(&"fun:x\n".repeat(25));
    assert!(parsed(&many).unwrap_err().contains("line 28: a block has at most 24"));
}
