//! Runs `haul` in a fresh folder and looks at what it left.
//!
//! Leaves to others: what is expected. Invariant: a command that hangs is
//! ended and fails its test; a server ends with its test.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// No command here takes a fraction of this.
const HANG: Duration = Duration::from_secs(120);

/// A fresh folder, and haul in it.
pub struct Folder(tempfile::TempDir);

/// What a command left.
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| unreachable!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    pub fn directory(&self, name: &str) {
        std::fs::create_dir(self.path(name)).expect("made");
    }

    /// The names in a folder, sorted.
    pub fn names(&self, name: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(name))
            .expect("listed")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into()
            })
            .collect();
        names.sort();
        names
    }

    /// haul with `arguments`, separated by spaces, in the folder.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_haul"));
        command
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("HAUL_LOG")
            .env_remove("HAUL_TOKEN")
            .env("XDG_RUNTIME_DIR", self.path("runtime"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn haul(&self, arguments: &str) -> Ran {
        run(self.command(arguments), Vec::new())
    }

    /// The same, with `input` on standard input.
    pub fn haul_with(&self, arguments: &str, input: Vec<u8>) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        run(command, input)
    }

    /// The same, as the last argument of another program's command line.
    pub fn haul_by(&self, mut program: Command, arguments: &str) -> Ran {
        let haul = self.command(arguments);
        program
            .arg(haul.get_program())
            .args(haul.get_args())
            .current_dir(self.0.path())
            .env("TMPDIR", self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run(program, Vec::new())
    }

    /// The same; it must succeed.
    pub fn must(&self, arguments: &str) -> Ran {
        let ran = self.haul(arguments);
        assert_eq!(ran.code, 0, "haul {arguments}: {}", ran.stderr);
        ran
    }
}

impl Ran {
    /// The last line of standard output as JSON.
    pub fn json(&self) -> Value {
        let text = String::from_utf8(self.stdout.clone()).expect("text");
        let line = text.lines().last().expect("a line");
        serde_json::from_str(line).unwrap_or_else(|error| unreachable!("{error}: {line}"))
    }

    /// The one error line.
    pub fn error(&self) -> &str {
        let mut lines = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("haul: "));
        let line = lines.next().expect("an error");
        assert_eq!(lines.next(), None, "one line: {}", self.stderr);
        line
    }
}

/// Runs `command` to its end.
pub fn run(mut command: Command, input: Vec<u8>) -> Ran {
    let mut child = command.spawn().expect("started");
    let guard = Guard::new(&child);
    let feeder = child.stdin.take().map(|mut stdin| {
        std::thread::spawn(move || {
            // haul may end before it read all.
            let _ = stdin.write_all(&input);
        })
    });
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().expect("ended");
    guard.done();
    if let Some(feeder) = feeder {
        feeder.join().expect("fed");
    }
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ran {
        code: status.code().unwrap_or(-1),
        stdout,
        stderr,
    }
}

/// Kills a process that hangs.
struct Guard {
    done: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Guard {
    fn new(child: &Child) -> Self {
        let (done, ended) = mpsc::channel();
        let pid = Pid::from_child(child);
        let thread = std::thread::spawn(move || {
            if ended.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { done, thread }
    }

    fn done(self) {
        drop(self.done);
        self.thread.join().expect("the guard");
    }
}

/// A running `haul serve`.
pub struct Server {
    child: Child,
    /// What it wrote to standard error so far comes through here.
    lines: mpsc::Receiver<String>,
    pub address: String,
}

impl Server {
    /// `haul serve` in `folder` with `arguments`, on ports of the kernel's choice.
    pub fn start(folder: &Folder, arguments: &str) -> Self {
        let line = format!("serve --listen 127.0.0.1:0 {arguments}");
        Self::start_by(folder.command(&line))
    }

    /// The same by a command of its own, which listens on one address.
    pub fn start_by(mut command: Command) -> Self {
        let mut child = command.spawn().expect("started");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut server = Self {
            child,
            lines,
            address: String::new(),
        };
        server.address = server
            .wait_for("listening on ")
            .rsplit(' ')
            .next()
            .expect("an address")
            .to_owned();
        server
    }

    /// Its next line that holds `text`.
    pub fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(HANG).expect("a line");
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("haul://{}/{path}", self.address)
    }

    /// Sends `signal` and waits; the exit code, and what it said since.
    pub fn stop_and_hear(mut self, signal: Signal) -> (i32, String) {
        kill_process(Pid::from_child(&self.child), signal).expect("signalled");
        let guard = Guard::new(&self.child);
        let status = self.child.wait().expect("ended");
        guard.done();
        // The reader ends with the pipe.
        let said: Vec<String> = self.lines.iter().collect();
        (status.code().unwrap_or(-1), said.join("\n"))
    }

    /// Sends `signal` and waits; the exit code and standard output.
    pub fn stop(mut self, signal: Signal) -> (i32, Vec<u8>) {
        kill_process(Pid::from_child(&self.child), signal).expect("signalled");
        let guard = Guard::new(&self.child);
        let mut output = Vec::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_end(&mut output).expect("read");
        }
        let status = self.child.wait().expect("ended");
        guard.done();
        (status.code().unwrap_or(-1), output)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that differ from place to place.
pub fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

/// A folder on a disk, where `--verify` has something to read back from; `None`
/// where this machine has only memory.
pub fn on_disk(path: &Path) -> bool {
    const TMPFS_MAGIC: i128 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| i128::from(found.f_type) != TMPFS_MAGIC)
}

/// Says why a test did nothing, and notes it where `HAUL_SKIPPED` says.
pub fn skip(why: &str) {
    // Past the capture of a test's output: who passes without having run says so.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    if let Some(list) = std::env::var_os("HAUL_SKIPPED") {
        let list = std::fs::File::options()
            .append(true)
            .create(true)
            .open(list);
        let said = list.and_then(|mut list| writeln!(list, "{why}"));
        said.expect("HAUL_SKIPPED names a file that can be written");
    }
}

/// True where commands can be run under limits and as somebody else.
pub fn can_limit() -> bool {
    let has = |name: &str| Command::new(name).arg("--version").output().is_ok();
    let can = has("prlimit") && has("setpriv");
    if !can {
        skip("there is no prlimit(1) or setpriv(1) here");
    }
    can
}
