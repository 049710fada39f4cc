//! What scans said, in words and in JSON.

use super::*;
use crate::snapshot::{
    RootName,
    reach::{HeldBy, Reached, Root, Scan, Way},
};

fn scan(way: Way) -> Scan {
    Scan { pid: 42, space: 1, way, bytes: 5 << 20, threads: 3, refused: None, limits: Vec::new() }
}

/// The first site: some blocks are lost, some held.
fn judged(way: Way) -> (Snapshot, Names) {
    let (mut snapshot, mut names) = user();
    let global = Root::Global { object: 0, address: 0x4000 };
    let main = Frame { found: Found::FramePointer, ..snapshot.stacks[&1].frames[1] };
    let stack = Root::Stack { thread: 7, frame: Some(Frame { found: Found::Return, ..main }) };
    let Root::Stack { frame: Some(frame), .. } = &stack else { unreachable!() };
    names.frames.insert(*frame, names.frames[&main].clone());
    names.roots.insert(
        global.clone(),
        RootName {
            name: Some("g_\x1bcache".into()),
            object: Some("/usr/bin/demo".into()),
            section: Some(".bss".into()),
        },
    );
    snapshot.sites[0].reached = Some(Reached {
        definitely_lost: amount(1, 100),
        indirectly_lost: amount(2, 200),
        possibly_lost: amount(3, 300),
        still_reachable: amount(10_990, 1_099_000),
        not_judged: amount(4, 400),
        leads: amount(5, 555),
        held_by: vec![
            HeldBy { root: global, held: amount(10_000, 1_000_000), through: 3 },
            HeldBy { root: stack, held: amount(900, 90_000), through: 64 },
            HeldBy { root: Root::OlderHeap, held: amount(90, 9_000), through: 0 },
        ],
    });
    snapshot.scans = vec![scan(way)];
    (snapshot, names)
}

const LIVE: Way = Way::Live { scans: 4, time_ms: 3_100 };

#[test]
fn what_is_said_is_what_was_seen() {
    let text = rendered(&judged(LIVE), Format::Text);
    for line in [
        "      definitely lost: 100 B in 1 block: no address in this block was seen in any of 4 \
         scans over 3.1 s (memory changed meanwhile)\n",
        "      they alone lead to 555 B in 5 blocks\n",
        "      indirectly lost: 200 B in 2 blocks: held only by blocks that are lost\n",
        "      interior only: 300 B in 3 blocks: held by addresses inside them alone, and not \
         counted as lost\n",
        "      still reachable: 1.0 MiB in 10,990 blocks: 91 % of the bytes hang from \
         `g_\\x1bcache` (.bss of /usr/bin/demo), through 3 blocks; 8 % of the bytes hang from the \
         stack frame of run in thread 7, through 64 blocks or more; 1 % of the bytes hang from \
         older heap memory (allocated before tracing, or freed), directly\n",
        "      not judged: 400 B in 4 blocks: too young, changed meanwhile, or held by such\n",
        "\nreachability: process 42: 4 scans over 3.1 s of 5.0 MiB while it ran\n",
    ] {
        assert!(text.contains(line), "{line}in\n{text}");
    }
    // Only a view that cannot change lets more be said.
    let text = rendered(&judged(Way::Snapshot), Format::Text);
    let line = "nothing in the memory of the process (5.0 MiB, 3 threads' registers) held an \
                address in this block\n";
    assert!(text.contains(line) && !text.contains("was seen in any"), "{text}");
}

#[test]
fn without_a_verdict_the_reason_is_said() {
    let (mut snapshot, names) = judged(LIVE);
    snapshot.sites[0].reached = None;
    snapshot.scans[0].refused = Some("it is \x1b hidden".into());
    let shown = (snapshot, names);
    let text = rendered(&shown, Format::Text);
    assert!(!text.contains("lost:") && !text.contains("reachable:"), "{text}");
    assert!(text.contains("reachability: process 42 not judged: it is \\x1b hidden\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&rendered(&shown, Format::Json)).unwrap();
    let expected = serde_json::json!([
        {"pid": 42, "way": "live", "threads": 3, "refused": "it is \u{1b} hidden"}
    ]);
    assert_eq!(json["scans"], expected);
    assert!(json["sites"][0]["reachability"].is_null() && json["sites"][0]["held_by"].is_null());
}

#[test]
fn json_has_every_sum_and_holder() {
    let text = rendered(&judged(LIVE), Format::Json);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let site = &json["sites"][0];
    assert_eq!(
        site["reachability"],
        serde_json::json!({
            "definitely_lost_bytes": 100, "definitely_lost_count": 1,
            "indirectly_lost_bytes": 200, "indirectly_lost_count": 2,
            "possibly_lost_bytes": 300, "possibly_lost_count": 3,
            "still_reachable_bytes": 1_099_000, "still_reachable_count": 10_990,
            "not_judged_bytes": 400, "not_judged_count": 4,
            "leads_to_bytes": 555, "leads_to_count": 5,
        })
    );
    assert_eq!(
        site["held_by"],
        serde_json::json!([
            {"root": "global", "name": "g_\u{1b}cache", "object": "/usr/bin/demo",
             "section": ".bss", "bytes": 1_000_000, "count": 10_000, "through": 3},
            {"root": "stack", "name": "run", "object": "/lib/libdemo.so.1", "thread": 7,
             "bytes": 90_000, "count": 900, "through": 64},
            {"root": "older_heap", "bytes": 9_000, "count": 90, "through": 0},
        ])
    );
    assert!(json["sites"][1]["reachability"].is_null());
    let expected = serde_json::json!([
        {"pid": 42, "way": "live", "scans": 4, "time_ms": 3100, "bytes": 5 << 20, "threads": 3}
    ]);
    assert_eq!(json["scans"], expected);
}

/// Two call sites of equal stacks are one row: their sums and holders are joined.
#[test]
fn merged_rows_join_what_was_found() {
    let (mut snapshot, names) = judged(LIVE);
    let mut twin = snapshot.sites[0].clone();
    twin.id = 99;
    snapshot.sites.push(twin);
    let text = rendered(&(snapshot, names), Format::Text);
    assert!(
        text.contains("definitely lost: 200 B in 2 blocks: no address in these blocks"),
        "{text}"
    );
    assert!(text.contains("91 % of the bytes hang from `g_\\x1bcache`"), "{text}");
}
