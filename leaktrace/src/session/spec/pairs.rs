//! Pairs of functions by name, as `fopen:fclose`: what `--pair` means.
//!
//! ```text
//! PAIR     = ACQUIRE {"," ACQUIRE} ":" RELEASE {"," RELEASE}
//! ACQUIRE  = NAME ["(" OPTION {"," OPTION} ")"]
//! OPTION   = "key=" N | "out=" N | "size=" N ["*" N] | "if=" RESULT
//! RELEASE  = NAME ["(" "key=" N ")"]
//! RESULT   = "any" | "zero" | "nonzero" | "true" | "nonnegative"
//! ```
//!
//! `N` is the number of an argument, 1 to 6.

use leaktrace_common::{ACQUIRERS_MOST, ARGUMENTS_MOST, PAIRS_MOST, PairCookie, PairKey, Success};

/// A pair of functions, or of two sets of functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPair {
    /// The names without options, as `fopen,fdopen:fclose`.
    pub name: String,
    /// Functions that acquire something; never empty.
    pub acquire: Vec<Acquirer>,
    /// Functions that release it again; never empty.
    pub release: Vec<Releaser>,
}

/// A function that acquires something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquirer {
    /// The function's symbol.
    pub name: String,
    /// The value that identifies what was acquired.
    pub key: PairKey,
    /// The results by which the function reports success.
    pub success: Success,
    /// The argument that is a size in bytes; 0 if none is.
    pub size: u8,
    /// The argument by which the size is multiplied; 0 if there is none.
    pub count: u8,
}

/// A function that releases something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Releaser {
    /// The function's symbol.
    pub name: String,
    /// The number of the argument that identifies what is released.
    pub key: u8,
}

/// A function of a pair, in the form that the BPF programs use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFunction {
    /// The function's symbol.
    pub name: String,
    /// The attach cookie of the function's probe.
    pub cookie: PairCookie,
    /// Whether the function acquires.
    pub acquires: bool,
    /// The arguments that must be intact at the function's probe, counted from 0.
    pub arguments: Vec<u8>,
}

/// All functions of these pairs; the acquiring functions are numbered in this order.
pub fn functions(pairs: &[NamedPair]) -> Vec<PairFunction> {
    let mut functions = Vec::new();
    let mut index = 0;
    for (number, pair) in pairs.iter().enumerate() {
        let of_pair = |key| {
            let cookie = PairCookie::new(number as u32, key);
            if pair.has_numbers() { cookie.numbered() } else { cookie }
        };
        for Acquirer { name, key, success, size, count } in &pair.acquire {
            let argument = match *key {
                PairKey::Result => 0,
                PairKey::Argument(argument) | PairKey::Out(argument) => argument,
            };
            functions.push(PairFunction {
                name: name.clone(),
                cookie: of_pair(*key).acquiring(index, *success).sized(*size, *count),
                acquires: true,
                arguments: needed([argument, *size, *count]),
            });
            index += 1;
        }
        let nests = pair.release.len() > 1;
        functions.extend(pair.release.iter().zip(0..).map(|(Releaser { name, key }, number)| {
            let cookie = of_pair(PairKey::Argument(*key));
            PairFunction {
                name: name.clone(),
                cookie: if nests { cookie.nesting(number) } else { cookie },
                acquires: false,
                arguments: needed([*key, 0, 0]),
            }
        }));
    }
    functions
}

/// Turns argument numbers, which count from 1, into indices, which count from 0; drops 0, which
/// stands for none.
fn needed(arguments: [u8; 3]) -> Vec<u8> {
    arguments.into_iter().filter_map(|argument| argument.checked_sub(1)).collect()
}

impl NamedPair {
    /// Whether the keys are numbers of which 0 is one, as file descriptors are.
    fn has_numbers(&self) -> bool {
        let is_number = |acquirer: &Acquirer| {
            acquirer.key == PairKey::Result && acquirer.success == Success::NonNegative
        };
        self.acquire.iter().any(is_number)
    }
}

/// Parses one pair.
///
/// # Errors
///
/// Says in one line what is wrong and what to write.
pub fn parse(text: &str) -> Result<NamedPair, String> {
    let fail = |cause: &str| format!("`{text}` names no pair: {cause}");
    let as_this = "write ACQUIRE:RELEASE, as fopen:fclose";
    let sides = split(text, ':');
    let [acquire, release] = sides.as_slice() else {
        return Err(fail(match sides.len() {
            1 => "write ACQUIRE:RELEASE, as fopen:fclose",
            _ => {
                "there is more than one colon; write C++ and Rust functions by their symbols, as \
                  _ZN4PoolC1Ev"
            }
        }));
    };
    let read = |side: &str| -> Result<Vec<Written>, String> {
        split(side, ',').into_iter().map(|function| function_of(function, as_this)).collect()
    };
    let acquire = read(acquire).map_err(|cause| fail(&cause))?;
    let release = read(release).map_err(|cause| fail(&cause))?;
    let acquire: Result<Vec<Acquirer>, String> =
        acquire.into_iter().map(|(name, options)| acquirer(name, &options)).collect();
    let release: Result<Vec<Releaser>, String> =
        release.into_iter().map(|(name, options)| releaser(name, &options)).collect();
    let acquire = acquire.map_err(|cause| fail(&cause))?;
    let release = release.map_err(|cause| fail(&cause))?;
    let names = |mut names: Vec<&str>| {
        names.dedup();
        names.join(",")
    };
    let name = format!(
        "{}:{}",
        names(acquire.iter().map(|function| function.name.as_str()).collect()),
        names(release.iter().map(|function| function.name.as_str()).collect()),
    );
    Ok(NamedPair { name, acquire, release })
}

/// Checks what shows only when all pairs are looked at together.
///
/// # Errors
///
/// Says in one line what is wrong and what to write.
pub fn check(pairs: &[NamedPair]) -> Result<(), String> {
    if pairs.len() > PAIRS_MOST {
        return Err(format!("--pair is given more than {PAIRS_MOST} times: write fewer"));
    }
    let acquire: Vec<&str> =
        pairs.iter().flat_map(|pair| &pair.acquire).map(|one| one.name.as_str()).collect();
    let releases = pairs.iter().map(|pair| pair.release.len()).max().unwrap_or(0);
    if acquire.len() > ACQUIRERS_MOST || releases > ACQUIRERS_MOST {
        return Err(format!(
            "--pair: more than {ACQUIRERS_MOST} functions acquire, or release: name fewer"
        ));
    }
    if let Some(name) = twice(&acquire) {
        return Err(format!("--pair: {name} acquires twice: name it once"));
    }
    for pair in pairs {
        let release: Vec<&str> = pair.release.iter().map(|one| one.name.as_str()).collect();
        if let Some(name) = twice(&release) {
            return Err(format!("--pair: {name} releases twice: name it once"));
        }
        let both =
            pair.acquire.iter().find(|one| pair.release.iter().any(|other| other.name == one.name));
        if let Some(both) = both {
            return Err(format!(
                "--pair {}: {} cannot do both: name another",
                pair.name, both.name
            ));
        }
    }
    Ok(())
}

/// The first name that has been there before.
fn twice<'name>(names: &[&'name str]) -> Option<&'name str> {
    let mut before = names.iter().enumerate();
    before
        .find(|(at, name)| names.iter().take(*at).any(|other| other == *name))
        .map(|(_, name)| *name)
}

/// Splits at the separators that are not inside brackets.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_u32);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if letter == separator && depth == 0 => {
                parts.push(text.get(start..at).unwrap_or_default());
                start = at + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default());
    parts
}

/// A function's name and its options, as the user wrote them.
type Written = (String, Vec<(String, String)>);

/// A function's name and its options.
fn function_of(text: &str, as_this: &str) -> Result<Written, String> {
    let text = text.trim();
    let (name, options) = match text.split_once('(') {
        None => (text, ""),
        Some((name, rest)) => match rest.strip_suffix(')') {
            Some(options) => (name, options),
            None => return Err(format!("`{text}` has no closing bracket")),
        },
    };
    let name = name.trim();
    if name.is_empty() {
        return Err(format!("a function has no name; {as_this}"));
    }
    let is_symbol = |letter: char| letter.is_ascii_alphanumeric() || "_.$@".contains(letter);
    if !name.chars().all(is_symbol) {
        return Err(format!(
            "`{name}` is no symbol; write C++ and Rust functions by their symbols, as _ZN4PoolC1Ev"
        ));
    }
    let options = options.split(',').map(str::trim).filter(|option| !option.is_empty());
    let pairs = options.map(|option| match option.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(format!("`{option}` is no option; write {OPTIONS}")),
    });
    Ok((name.to_owned(), pairs.collect::<Result<_, _>>()?))
}

const OPTIONS: &str = "key=N, out=N, size=N, size=N*N or if=RESULT";

fn acquirer(name: String, options: &[(String, String)]) -> Result<Acquirer, String> {
    let mut key = None;
    let mut success = None;
    let (mut size, mut count) = (0, 0);
    for (option, value) in options {
        let is_new = match option.as_str() {
            "key" => key.replace(PairKey::Argument(argument(value)?)).is_none(),
            "out" => key.replace(PairKey::Out(argument(value)?)).is_none(),
            "if" => success.replace(result(value)?).is_none(),
            "size" => {
                let was = size;
                (size, count) = match value.split_once('*') {
                    Some((size, count)) => (argument(size)?, argument(count)?),
                    None => (argument(value)?, 0),
                };
                was == 0
            }
            _ => return Err(format!("{option} is no option of {name}; write {OPTIONS}")),
        };
        if !is_new {
            return Err(format!("{name} has {option} twice, or a key and an out: write one"));
        }
    }
    let key = key.unwrap_or(PairKey::Result);
    let default = match key {
        PairKey::Out(_) => Success::Zero,
        PairKey::Result | PairKey::Argument(_) => Success::Any,
    };
    let success = success.unwrap_or(default);
    if key == PairKey::Result && !matches!(success, Success::Any | Success::NonNegative) {
        return Err(format!(
            "what {name} returns is its key, which cannot be 0 or a bool; name the key with key=N \
             or out=N"
        ));
    }
    Ok(Acquirer { name, key, success, size, count })
}

fn releaser(name: String, options: &[(String, String)]) -> Result<Releaser, String> {
    match options {
        [] => Ok(Releaser { name, key: 1 }),
        [(option, value)] if option == "key" => Ok(Releaser { name, key: argument(value)? }),
        _ => Err(format!("{name} releases, and takes but key=N")),
    }
}

fn argument(text: &str) -> Result<u8, String> {
    let number = text.trim().parse().ok().filter(|number| (1..=ARGUMENTS_MOST).contains(number));
    number.ok_or_else(|| format!("`{text}` is no argument; write 1 to {ARGUMENTS_MOST}"))
}

fn result(text: &str) -> Result<Success, String> {
    Ok(match text {
        "any" => Success::Any,
        "zero" => Success::Zero,
        "nonzero" => Success::NonZero,
        "true" => Success::True,
        "nonnegative" => Success::NonNegative,
        _ => {
            return Err(format!(
                "if={text} means nothing; write if=any, zero, nonzero, true or nonnegative"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_read_as_it_is_meant() {
        let plain = parse("fopen,fdopen:fclose").unwrap();
        assert_eq!(plain.name, "fopen,fdopen:fclose");
        assert_eq!((plain.acquire.len(), plain.release.len()), (2, 1));
        assert_eq!(plain.acquire[0].key, PairKey::Result);
        assert_eq!(plain.acquire[1].success, Success::Any);
        let database =
            parse("sqlite3_open( out=2, if=any ):sqlite3_close,sqlite3_close_v2").unwrap();
        assert_eq!(database.name, "sqlite3_open:sqlite3_close,sqlite3_close_v2");
        assert_eq!(database.acquire[0].key, PairKey::Out(2));
        assert_eq!(database.acquire[0].success, Success::Any);
        assert_eq!(parse("open_it(out=1):close_it").unwrap().acquire[0].success, Success::Zero);
        let pool = parse("pool_calloc(size=2*3):pool_free(key=2)").unwrap();
        assert_eq!((pool.acquire[0].size, pool.acquire[0].count), (2, 3));
        assert_eq!(pool.release[0].key, 2);
        let clock = parse("clk_enable(key=1,if=zero):clk_disable").unwrap();
        assert_eq!(clock.acquire[0].key, PairKey::Argument(1));
    }

    #[test]
    fn functions_know_what_they_need() {
        let pairs = [
            parse("a_new(size=3):a_free(key=2)").unwrap(),
            parse("b_open(out=2),b_get(key=1):b_close,b_put").unwrap(),
            parse("open(if=nonnegative):close").unwrap(),
        ];
        let functions = functions(&pairs);
        let needed: Vec<(&str, &[u8])> =
            functions.iter().map(|one| (one.name.as_str(), one.arguments.as_slice())).collect();
        assert_eq!(
            needed,
            [
                ("a_new", &[2][..]),
                ("a_free", &[1]),
                ("b_open", &[1]),
                ("b_get", &[0]),
                ("b_close", &[0]),
                ("b_put", &[0]),
                ("open", &[]),
                ("close", &[0]),
            ]
        );
        let of = |name: &str| functions.iter().find(|one| one.name == name).unwrap().cookie;
        assert_eq!((of("b_get").pair(), of("b_get").index(), of("open").index()), (1, 2, 3));
        assert!(of("b_put").nests() && !of("a_free").nests());
        assert!(of("close").is_number() && !of("b_close").is_number());
    }

    #[test]
    fn what_is_no_pair_says_what_to_write() {
        for (text, cause) in [
            ("fopen", "write ACQUIRE:RELEASE, as fopen:fclose"),
            (":fclose", "a function has no name; write ACQUIRE:RELEASE"),
            ("fopen:", "a function has no name"),
            (
                "Pool::get:Pool::put",
                "more than one colon; write C++ and Rust functions by their symbols",
            ),
            ("a b:c", "`a b` is no symbol"),
            ("a(size=2:b", "write ACQUIRE:RELEASE"),
            ("a:b(key=1", "`b(key=1` has no closing bracket"),
            ("a(size=7):b", "`7` is no argument; write 1 to 6"),
            ("a(2):b", "`2` is no option; write key=N, out=N"),
            ("a(len=2):b", "len is no option of a"),
            ("a(key=1,out=2):b", "write one"),
            ("a(if=ok):b", "if=ok means nothing; write if=any, zero"),
            ("a(if=zero):b", "name the key with key=N or out=N"),
            ("a:b(size=1)", "b releases, and takes but key=N"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(cause), "{text}\nexpected: {cause}\n     got: {said}");
        }
    }

    #[test]
    fn pairs_are_checked_together() {
        let of = |texts: &[&str]| -> Vec<NamedPair> {
            texts.iter().map(|text| parse(text).unwrap()).collect()
        };
        check(&of(&["a,b:c", "d:c"])).unwrap();
        assert!(check(&of(&["a:b", "a:c"])).unwrap_err().contains("a acquires twice"));
        assert!(check(&of(&["a:b(key=1),b(key=2)"])).unwrap_err().contains("b releases twice"));
        check(&of(&["a:c", "b:c(key=2)"])).unwrap();
        assert!(check(&of(&["a:a"])).unwrap_err().contains("a cannot do both"));
        let many: Vec<NamedPair> = (0..9).map(|at| parse(&format!("a{at}:b")).unwrap()).collect();
        assert!(check(&many).unwrap_err().contains("more than 8 times"));
    }
}
