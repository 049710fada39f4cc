//! A storm of kernel allocations: connections within this host, a walk over a file system, and
//! processes that come and go, until it is stopped.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often each part of a storm went round.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Connections made, used and closed.
    pub connections: AtomicU64,
    /// Files and folders looked at.
    pub files: AtomicU64,
    /// Processes started and waited for.
    pub processes: AtomicU64,
}

/// A storm that blows; it ends when stopped.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    rounds: Arc<Rounds>,
    threads: Vec<JoinHandle<()>>,
}

impl Storm {
    /// Starts it.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(Rounds::default());
        let parts: [fn(&Rounds, &AtomicBool) -> io::Result<()>; 3] = [network, walk, processes];
        let threads = parts
            .into_iter()
            .map(|part| {
                let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = part(&rounds, &stop) {
                            panic!("a part of the storm failed: {error}");
                        }
                    }
                })
            })
            .collect();
        Self { stop, rounds, threads }
    }

    /// Lets it blow for so long, ends it, and gives how often each part went round.
    ///
    /// # Panics
    ///
    /// When a part of it failed.
    pub fn blow(self, time: Duration) -> Arc<Rounds> {
        let end = Instant::now() + time;
        // Not a wait for something to happen: this is how long it lasts.
        while Instant::now() < end && !self.threads.iter().any(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert!(thread.join().is_ok(), "a part of the storm failed");
        }
        self.rounds
    }
}

/// One connection of each kind, with data both ways.
fn network(rounds: &Rounds, _stop: &AtomicBool) -> io::Result<()> {
    let mut bytes = [7; 8000];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(&bytes)?;
    server.read_exact(&mut bytes)?;
    server.write_all(&bytes)?;
    client.read_exact(&mut bytes)?;
    let (one, other) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    for _ in 0..20 {
        one.send_to(&bytes[..1000], other.local_addr()?)?;
        other.recv(&mut bytes)?;
    }
    let (mut near, mut far) = UnixStream::pair()?;
    near.write_all(&bytes)?;
    far.read_exact(&mut bytes)?;
    rounds.connections.fetch_add(3, Ordering::Relaxed);
    Ok(())
}

/// A walk over the folders below /usr.
fn walk(rounds: &Rounds, stop: &AtomicBool) -> io::Result<()> {
    walk_below(Path::new("/usr"), rounds, stop)
}

fn walk_below(folder: &Path, rounds: &Rounds, stop: &AtomicBool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let entry = entry?;
        rounds.files.fetch_add(1, Ordering::Relaxed);
        // What is gone since is no failure.
        if entry.metadata().is_ok_and(|found| found.is_dir()) {
            walk_below(&entry.path(), rounds, stop)?;
        }
    }
    Ok(())
}

fn processes(rounds: &Rounds, _stop: &AtomicBool) -> io::Result<()> {
    Command::new("/bin/true").status()?;
    rounds.processes.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Objects in use by slab cache, from /proc/slabinfo.
///
/// # Errors
///
/// What reading it gives.
pub fn slab_objects() -> io::Result<Vec<(String, i64)>> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    Ok(text.lines().skip(2).filter_map(line).collect())
}
