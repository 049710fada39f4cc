//! Hand-made BTF, damaged BTF, and the running kernel's own.

use proptest::prelude::*;

use super::*;

/// Writes BTF: a string when it is first used, types in order.
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
}

impl Writer {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], next: 1 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        offset
    }

    /// Adds a type; each row of `body` is an entry: a name, then words.
    fn add(
        &mut self,
        kind: u32,
        name: &str,
        size_or_type: u32,
        body: &[(Option<&str>, &[u32])],
    ) -> u32 {
        let name = self.string(name);
        let info = kind << 24 | body.len() as u32;
        let mut words = vec![name, info, size_or_type];
        for (name, rest) in body {
            if let Some(name) = name {
                words.push(self.string(name));
            }
            words.extend_from_slice(rest);
        }
        self.types.extend(words.into_iter().flat_map(u32::to_le_bytes));
        self.next += 1;
        self.next - 1
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes
    }
}

/// A struct with an anonymous union, a struct in it, an enum and a tracepoint's typedef.
fn sample() -> Vec<u8> {
    let mut writer = Writer::new();
    // An int has one more word, which is no list.
    let int = writer.add(kind::INT, "unsigned long", 8, &[]);
    writer.types.extend(64_u32.to_le_bytes());
    let size_t = writer.add(kind::TYPEDEF, "size_t", int, &[]);
    let inner = writer.add(
        kind::STRUCT,
        "inner",
        16,
        &[(Some("first"), &[int, 0]), (Some("second"), &[int, 64])],
    );
    let anonymous =
        writer.add(kind::UNION, "", 16, &[(Some("left"), &[int, 0]), (Some("right"), &[inner, 0])]);
    let outer = writer.add(
        kind::STRUCT,
        "outer",
        24,
        &[(Some("head"), &[int, 0]), (Some(""), &[anonymous, 64])],
    );
    writer.add(kind::ENUM, "", 4, &[(Some("ZERO_BIT"), &[0]), (Some("SOME_BIT"), &[22])]);
    let constant = writer.add(kind::CONST, "", outer, &[]);
    let to_outer = writer.add(kind::PTR, "", constant, &[]);
    let to_void = writer.add(kind::PTR, "", 0, &[]);
    let proto = writer.add(
        kind::FUNC_PROTO,
        "",
        0,
        &[
            (Some("__data"), &[to_void]),
            (Some("object"), &[to_outer]),
            (Some("bytes"), &[size_t]),
            (Some("node"), &[int]),
        ],
    );
    let to_proto = writer.add(kind::PTR, "", proto, &[]);
    writer.add(kind::TYPEDEF, "btf_trace_event", to_proto, &[]);
    writer.finish()
}

#[test]
fn members_are_found_through_anonymous_ones() {
    let btf = Btf::parse(sample()).unwrap();
    let offset = |path| btf.member_offset("outer", path);
    assert_eq!(offset("head"), Some(0));
    assert_eq!(offset("left"), Some(8));
    assert_eq!(offset("right.second"), Some(16));
    assert_eq!(offset("absent"), None);
    assert_eq!(btf.member_offset("nobody", "head"), None);
}

#[test]
fn parameters_are_described() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(
        btf.tracepoint("event").unwrap(),
        [Param::StructPointer("outer".into()), Param::Typedef("size_t".into()), Param::Other]
    );
    assert_eq!(btf.tracepoint("absent"), None);
}

#[test]
fn enumerators_are_found_in_anonymous_enums() {
    let btf = Btf::parse(sample()).unwrap();
    assert_eq!(btf.enumerator("SOME_BIT"), Some(22));
    assert_eq!(btf.enumerator("SOME"), None);
}

#[test]
fn what_is_no_btf_is_refused() {
    for garbage in [&b""[..], b"\x7fELF", &[0; 64]] {
        assert!(Btf::parse(garbage.to_vec()).is_err(), "{garbage:?}");
    }
    let whole = sample();
    for length in 0..whole.len() {
        assert!(Btf::parse(whole[..length].to_vec()).is_err(), "{length}");
    }
}

/// A type that leads back to itself is not there, and the search for it ends.
#[test]
fn a_type_that_contains_itself_is_not_there() {
    let mut writer = Writer::new();
    let snake = writer.add(kind::TYPEDEF, "btf_trace_snake", 1, &[]);
    let ring = writer.add(kind::CONST, "", 2, &[]);
    let proto = writer.add(
        kind::FUNC_PROTO,
        "",
        0,
        &[(Some("__data"), &[ring]), (Some("x"), &[ring]), (Some("y"), &[snake])],
    );
    let to_proto = writer.add(kind::PTR, "", proto, &[]);
    writer.add(kind::TYPEDEF, "btf_trace_ring", to_proto, &[]);
    let doll = writer.next;
    writer.add(kind::STRUCT, "doll", 8, &[(Some(""), [doll, 0].as_slice()); 100]);
    let btf = Btf::parse(writer.finish()).unwrap();
    assert_eq!(btf.tracepoint("snake"), None);
    assert_eq!(
        btf.tracepoint("ring").unwrap(),
        [Param::Other, Param::Typedef("btf_trace_snake".into())]
    );
    assert_eq!(btf.member_offset("doll", "x"), None);
}

/// Asks the running kernel's BTF, where the kernel has it.
#[test]
fn the_running_kernel_answers() {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        let btf = Btf::read(path).unwrap();
        let params = btf.tracepoint("kfree").unwrap();
        assert_eq!(params.get(1), Some(&Param::Pointer));
        assert_eq!(btf.member_offset("work_struct", "func"), Some(24));
        assert_eq!(btf.member_offset("list_head", "prev"), Some(8));
        assert_eq!(btf.tracepoint("no_such_tracepoint"), None);
    }
}

/// Asks every question of data that may be damaged.
fn ask_everything(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for path in ["head", "left", "right.second", "absent"] {
        let _ = btf.member_offset("outer", path);
    }
    let _ = btf.tracepoint("event");
    let _ = btf.enumerator("SOME_BIT");
}

proptest! {
    #[test]
    fn damaged_btf_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = sample();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        ask_everything(bytes);
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        bytes.extend(tail);
        ask_everything(bytes);
    }
}
