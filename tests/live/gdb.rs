//! A thousand sampled malloc calls of each of seven programs: leaktrace's return addresses are
//! those of gdb's backtrace at the same call. See docs/unwinding.md.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use leaktrace_tests::{
    SOON,
    binary::{run, run_with_input, workspace},
    child::Child,
    leaker::Leaker,
    program::build_library,
    samples,
};

/// Programs of ours, that are busy from one byte to the next.
fn check_maze(mut leaker: Leaker, name: &str, every: usize, distinct: usize) {
    let pid = leaker.pid();
    let tally = samples::compare(pid, "libc.so", every, |_| {
        leaker.advance("running");
    });
    // Neither tracer has harmed it.
    leaker.advance("done");
    leaker.end();
    tally.check(name, distinct);
}

/// Writes rounds of input to a program until there are enough samples, then waits for its end.
fn check_filter(
    mut child: Child,
    name: &str,
    every: usize,
    distinct: usize,
    mut round: impl FnMut(usize) -> String + Send,
) {
    let pid = child.pid();
    let tally = samples::compare(pid, "libc.so", every, |enough| {
        let mut number = 0;
        while !enough.load(Ordering::Relaxed) {
            child.send(&round(number));
            number += 1;
        }
    });
    child.close_stdin();
    assert_eq!(child.wait(SOON), 0, "exit code of {name}: {}", child.stderr_text());
    tally.check(name, distinct);
}

#[test]
fn a_thousand_stacks_of_c_are_those_of_gdb() {
    let library = build_library("chainlib.so").display().to_string();
    check_maze(Leaker::start("maze-c", &[&library]), "C", 4, 500);
}

#[test]
fn a_thousand_stacks_of_cpp_are_those_of_gdb() {
    check_maze(Leaker::start("maze-cpp", &[]), "C++", 20, 200);
}

#[test]
fn a_thousand_stacks_of_rust_are_those_of_gdb() {
    check_maze(Leaker::start("maze-rust", &[]), "Rust", 10, 300);
}

#[test]
fn a_thousand_stacks_of_python_are_those_of_gdb() {
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-I").arg(workspace().join("tests/programs/maze.py"));
    command.env("PYTHONMALLOC", "malloc");
    check_maze(Leaker::launch(&mut command), "python3", 10, 300);
}

#[test]
fn a_thousand_stacks_of_sqlite_are_those_of_gdb() {
    let mut child = Child::start(Command::new("/usr/bin/sqlite3").args(["-batch", "-bail"]));
    child.send(
        "create table t(a integer primary key, b text, c real); create index i on t(b);\n\
         create table log(what text); create view v as select b, sum(c) as total from t group by b;\n\
         create trigger g after insert on t begin insert into log values (new.b || 'x'); end;\n\
         .shell echo ready\n",
    );
    assert_eq!(child.next_line(SOON), "ready\n");
    check_filter(child, "sqlite3", 10, 150, |n| {
        let text = "y".repeat(n % 90);
        format!(
            "insert into t(b, c) values ('x{n}{text}', {n}.5), ('z{}', {n});\n\
             select b, c from t where b like '%{}%' or c between 3 and {n} order by c desc limit 9;\n\
             select v.b, count(*), group_concat(log.what) from v join log on log.what like v.b || '%'\n\
              where v.total > 2 group by v.b having count(*) < 9 order by 2, 1 limit 5;\n\
             select b, row_number() over (partition by b order by c), lag(c) over w from t\n\
              window w as (order by a rows between 2 preceding and current row) limit 20;\n\
             with recursive r(n, s) as (select 1, 'a' union all select n + 1, s || n from r where n < 12)\n\
              select json_group_array(json_object('n', n, 's', upper(s))) from r;\n\
             select value ->> '$.a' from json_each('[{{\"a\": {n}}}, {{\"a\": [1, {n}]}}]');\n\
             begin; update t set c = c + 1, b = replace(b, 'x', 'w') where a % 7 = {}; savepoint s;\n\
             delete from t where a < {n} - 40; rollback to s; delete from log where rowid < {n} - 20; commit;\n\
             delete from t where a < {n} - 60;\n\
             create table n{n} as select distinct b from t; alter table n{n} add column d;\n\
             drop table n{n}; explain query plan select * from v, t where v.b = t.b;\n\
             select printf('%05d %s %.3f', {n}, hex(randomblob(8)), 1.0 / {n}), date({n}, 'unixepoch');\n",
            n % 13,
            n % 10,
            n % 7,
        )
    });
}

/// A repository whose commits change, copy and move files.
fn make_repository(git: impl Fn() -> Command) -> String {
    let mut input = String::new();
    for commit in 0..60 {
        let _ = writeln!(input, "commit refs/heads/main\nmark :{}", commit + 1);
        let _ = writeln!(input, "committer C <c@example.org> {} +0000", 1_700_000_000 + commit);
        let _ = writeln!(input, "data 8\nmessage");
        for file in commit * 3..commit * 3 + 3 {
            let lines =
                (0..file % 37 + 3).map(|line| format!("line {line}: {}\n", line * file % 17));
            let text: String = lines.collect();
            let path = format!("d{}/e{}/f{}", file % 5, file % 3, file % 13);
            let _ = writeln!(input, "M 100644 inline {path}\ndata {}\n{text}", text.len());
            if file % 7 == 6 {
                let _ = writeln!(input, "C {path} copies/{file}");
            }
            if file % 11 == 10 {
                let _ = writeln!(input, "R {path} moved/{file}");
            }
        }
    }
    assert_eq!(run(git().args(["init", "--quiet", "--bare"])).code, 0, "git init");
    let imported = run_with_input(git().args(["fast-import", "--quiet"]), &input);
    assert_eq!(imported.code, 0, "git fast-import: {}", imported.stderr);
    run(git().args(["rev-list", "--all"])).stdout
}

#[test]
fn a_thousand_stacks_of_git_are_those_of_gdb() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let git = || {
        let mut command = Command::new("/usr/bin/git");
        command.env("GIT_DIR", folder.path()).env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        command
    };
    let commits = make_repository(git);
    let mut command = git();
    command.args("diff-tree --stdin --root -r -p --stat --summary --pretty=fuller".split(' '));
    command.args("-M -C --find-copies-harder --word-diff".split(' '));
    let mut child = Child::start(&mut command);
    let first = commits.lines().next().unwrap_or_default();
    child.send(&format!("{first}\n"));
    assert!(child.next_line(SOON).contains(first), "the first commit's line");
    check_filter(child, "git", 10, 50, |_| commits.clone());
}

/// One command as redis reads it.
fn redis_command(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

fn redis_round(n: usize) -> String {
    let k = n % 50;
    let value = "x".repeat(n % 300);
    let commands = format!(
        "SET k{k} {value}\nAPPEND k{k} y\nGETRANGE k{k} 2 5\nLPUSH l{k} {n} a{n}\nLRANGE l{k} 0 -1\n\
         LTRIM l{k} 0 200\nHSET h{k} f{n} {value}\nHGETALL h{k}\nDEL h{}\nSADD s{k} {n} m{n}\n\
         SUNIONSTORE u s{k} s{}\nSORT s{k} ALPHA\nZADD z{k} {n} m{n}\nZRANGE z{k} 0 -1 WITHSCORES\n\
         XADD x{k} * field {n}\nXRANGE x{k} - +\nXTRIM x{k} MAXLEN 20\nMULTI\nINCR c{k}\nGET c{k}\nEXEC\n\
         PFADD p{k} {n}\nPFCOUNT p{k}\nGEOADD g{k} 13.3 38.1 m{n}\nGEOSEARCH g{k} FROMLONLAT 13 38 BYRADIUS 90 km\n\
         SETRANGE b{k} 40 {n}\nBITCOUNT b{k}\nEXPIRE k{k} 100\nRENAME k{k} r{k}\nOBJECT ENCODING r{k}\n\
         SCAN 0 COUNT 20\nINFO\nCLIENT LIST\nCONFIG GET max*\nDUMP l{k}\nCOMMAND DOCS get\nSUBSCRIBE-NOT\n\
         EVAL return{{redis.call('INCR',KEYS[1]),string.rep('x',{k})}} 1 e{k}",
        k * 7 % 50,
        (k + 1) % 50,
    );
    commands.lines().map(redis_command).collect()
}

fn write_rounds(socket: &Path, enough: &AtomicBool) {
    let mut stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{error}"));
    let mut answers = stream.try_clone().unwrap_or_else(|error| panic!("{error}"));
    // Unread answers would fill redis' memory.
    let reader =
        std::thread::spawn(move || while answers.read(&mut [0; 65536]).is_ok_and(|n| n > 0) {});
    let mut number = 0;
    while !enough.load(Ordering::Relaxed) {
        stream.write_all(redis_round(number).as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        number += 1;
    }
    let _ = stream.write_all(redis_command("SHUTDOWN NOSAVE").as_bytes());
    assert!(reader.join().is_ok(), "the reader of redis' answers");
}

/// Its allocator is jemalloc.
#[test]
fn a_thousand_stacks_of_redis_are_those_of_gdb() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let socket = folder.path().join("socket");
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(&socket).current_dir(folder.path());
    let mut child = Child::start(&mut command);
    while !child.next_line(SOON).contains("ready to accept connections") {}
    let tally = samples::compare(child.pid(), "libjemalloc.so", 10, |enough| {
        write_rounds(&socket, enough);
    });
    assert_eq!(child.wait(SOON), 0, "exit code of redis-server");
    tally.check("redis-server", 150);
}
