//! Starts the programs of the corpus, and the servers with their clients. Each client asks by the
//! clock, so that a busy machine changes no rate.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use leaktrace_tests::{SOON, child::Child, leaker::Leaker, program::build_corpus, wait_until};
use tempfile::TempDir;

use crate::cases::Start;

/// What a client does in a turn; turns are numbered.
type Turn = Box<dyn FnMut(usize) -> io::Result<()> + Send>;

/// A client's turns are so far apart.
const TURN: Duration = Duration::from_millis(20);

/// A running case; it ends when dropped.
pub(crate) struct Running {
    pid: u32,
    what: What,
}

enum What {
    /// It works by itself once it is told to.
    Program(Leaker),
    /// It answers a client.
    Server { client: Client, _server: Option<Child>, _folder: TempDir },
}

/// A client, asleep until it is told to go on.
struct Client {
    turn: Option<Turn>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    /// Starts it, up to where tracing may begin.
    pub(crate) fn start(start: Start) -> Self {
        match start {
            Start::Program(program, case) => {
                Self::program(Command::new(build_corpus(program)).arg(case))
            }
            Start::Python(case) => {
                Self::program(Command::new("/usr/bin/python3").arg(script("cases.py")).arg(case))
            }
            Start::Perl => Self::program(Command::new("/usr/bin/perl").arg(script("loop.pl"))),
            Start::Redis => redis(),
            Start::Nginx => nginx(),
            Start::Sqlite => sqlite(),
        }
    }

    fn program(command: &mut Command) -> Self {
        let leaker = Leaker::launch(command);
        Self { pid: leaker.pid(), what: What::Program(leaker) }
    }

    fn server(server: Child, folder: TempDir, turn: Turn) -> Self {
        let client = Client::new(turn);
        Self {
            pid: server.pid(),
            what: What::Server { client, _server: Some(server), _folder: folder },
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it work.
    pub(crate) fn go(&mut self) {
        match &mut self.what {
            What::Program(leaker) => leaker.go_on(),
            What::Server { client, .. } => client.go(),
        }
    }

    /// Panics unless it still runs, and its client too.
    pub(crate) fn assert_alive(&self, name: &str) {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let is_dead = state.is_empty() || state.contains(") Z ");
        assert!(!is_dead, "{name} has ended: {state:?}");
        if let What::Server { client, .. } = &self.what {
            let failed = client.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!failed, "the client of {name} has failed");
        }
    }
}

impl Client {
    fn new(turn: Turn) -> Self {
        Self { turn: Some(turn), stop: Arc::default(), thread: None }
    }

    fn go(&mut self) {
        let stop = Arc::clone(&self.stop);
        let Some(mut turn) = self.turn.take() else { panic!("the client runs") };
        self.thread = Some(std::thread::spawn(move || {
            let start = Instant::now();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                turn(number)?;
                let next = start + TURN * (number as u32 + 1);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        }));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its failure was asked for before (`assert_alive`).
            let _ = thread.join();
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"))
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

/// Six commands on a bounded number of keys.
fn redis_round(number: usize) -> String {
    // Steps that are prime to 500 meet every key.
    let (set, gone) = (number * 7 % 500, number * 11 % 500);
    let value = "v".repeat(number * 13 % 700);
    let commands = format!(
        "SET k{set} {value}\nDEL k{gone}\nHSET h{} f{} {value}\nHDEL h{} f{}\nRPUSH l{} {value}\nLTRIM l{} -20 -1",
        set % 50,
        number * 3 % 40,
        gone % 50,
        number * 3 % 40,
        number % 10,
        number % 10,
    );
    commands.lines().map(redis_command).collect()
}

fn redis() -> Running {
    let folder = folder();
    let socket = folder.path().join("socket");
    let mut command = Command::new("/usr/bin/redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(&socket).current_dir(folder.path());
    let mut server = Child::start(&mut command);
    while !server.next_line(SOON).contains("ready to accept connections") {}
    let mut stream = UnixStream::connect(&socket).unwrap_or_else(|error| panic!("{error}"));
    let mut ask = move |number: usize| {
        stream.write_all(redis_round(number).as_bytes())?;
        // Six answers of a line each: `+OK`, `:1`.
        let (mut lines, mut buffer) = (0, [0; 4096]);
        while lines < 6 {
            let got = stream.read(&mut buffer)?;
            if got == 0 || buffer.starts_with(b"-") {
                return Err(io::ErrorKind::InvalidData.into());
            }
            lines += buffer[..got].iter().filter(|byte| **byte == b'\n').count();
        }
        Ok(())
    };
    // A server that has data already.
    for number in 0..300 {
        ask(number).unwrap_or_else(|error| panic!("redis: {error}"));
    }
    Running::server(server, folder, Box::new(ask))
}

/// One process, which has a file and a text to give.
const NGINX: &str = r#"
daemon off;
master_process off;
pid FOLDER/pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log FOLDER/access;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server {
        listen unix:FOLDER/socket;
        root FOLDER;
        location = /text { return 200 "a text"; }
    }
}
"#;

fn nginx() -> Running {
    let folder = folder();
    let path = folder.path().display().to_string();
    let (socket, config) = (folder.path().join("socket"), folder.path().join("config"));
    let page = "a page\n".repeat(3000);
    for (file, text) in [("config", NGINX.replace("FOLDER", &path)), ("page", page)] {
        let file = folder.path().join(file);
        fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-e").arg("stderr").arg("-p").arg(folder.path()).arg("-c").arg(config);
    let server = Child::start(&mut command);
    wait_until("nginx answers", SOON, || UnixStream::connect(&socket).is_ok());
    let ask = move |number: usize| {
        let wanted = ["/text", "/page", "/missing"][number % 3];
        let mut stream = UnixStream::connect(&socket)?;
        let request = format!("GET {wanted} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let code = if wanted == "/missing" { "404" } else { "200" };
        let is_right = answer.starts_with(&format!("HTTP/1.1 {code}"));
        if is_right { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    Running::server(server, folder, Box::new(ask))
}

/// The shell of sqlite3, fed with statements.
fn sqlite() -> Running {
    let mut command = Command::new("/usr/bin/sqlite3");
    let mut shell = Child::start(command.args(["-batch", ":memory:"]));
    shell.send("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT);\n");
    shell.send("CREATE INDEX names ON t(name);\nSELECT 'ready';\n");
    assert_eq!(shell.next_line(SOON).trim(), "ready");
    let pid = shell.pid();
    let feed = move |number: usize| {
        let name = "n".repeat(number * 17 % 90);
        shell.send(&format!(
            "INSERT INTO t VALUES({number}, '{number} {name}');\n\
             DELETE FROM t WHERE id <= {number} - 500;\n\
             SELECT max(length(name)) FROM t WHERE name > '{}' ORDER BY name;\n",
            number % 10
        ));
        // Its answer, so that it is never asked faster than it answers.
        shell.next_line(SOON);
        Ok(())
    };
    let what =
        What::Server { client: Client::new(Box::new(feed)), _server: None, _folder: folder() };
    Running { pid, what }
}
