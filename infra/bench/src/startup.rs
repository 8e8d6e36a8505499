//! How long a function takes from its process's start until it asks for its first event: the binaries as they are deployed,
//! against a simulator of Lambda's Runtime API, by turns with a function that does nothing. A ratio of medians, made by turns, is about
//! the same on every machine; a time is not.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    task::JoinSet,
};

use crate::{BoxError, measure::rounded};

/// What a function may take, as a multiple of what the one takes that does nothing.
const MOST: f64 = 1.5;

/// How often each is started, by turns with the one that does nothing.
const TIMES: usize = 41;

/// How often a function that takes too long is measured: what else the machine does can make it slower and never faster.
const ROUNDS: usize = 3;

/// The longest that a start may take.
const LONGEST: Duration = Duration::from_secs(20);

/// The functions.
const FUNCTIONS: [&str; 12] = [
    "api",
    "api-secrets",
    "call-ended",
    "call-started",
    "cekura",
    "deliver",
    "evaluate",
    "relay",
    "schedule",
    "sigmamind",
    "start-item",
    "sweep",
];

/// What was measured of a function.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Startup {
    function: &'static str,
    /// The median.
    ms: f64,
    /// The median of the starts of the function that does nothing, which were made by turns.
    hello_ms: f64,
    /// The one divided by the other.
    ratio: f64,
    bytes: u64,
}

/// Measures the functions in `folder`, where `hello` is as well, and prints what they take. Gives `false` when `check` is on and one of
/// them takes too long.
pub(crate) async fn run(folder: &Path, check: bool) -> Result<bool, BoxError> {
    let mut simulator = Simulator::start().await?;
    let here = tempfile::tempdir()?;
    let hello = unpacked(folder, "hello", here.path())?;
    let mut measured = Vec::new();
    for function in FUNCTIONS {
        let path = unpacked(folder, function, here.path())?;
        let mut least = simulator.compare(&path, &hello).await?;
        for _ in 1..ROUNDS {
            if ratio(least) > MOST {
                let again = simulator.compare(&path, &hello).await?;
                least = if ratio(again) < ratio(least) { again } else { least };
            }
        }
        let (own, bare) = least;
        measured.push(Startup {
            function,
            ms: rounded(own * 1000.0),
            hello_ms: rounded(bare * 1000.0),
            ratio: rounded(ratio(least)),
            bytes: std::fs::metadata(&path)?.len(),
        });
    }
    crate::print(&measured, true)?;
    let slow = measured.iter().filter(|one| one.ratio > MOST);
    let slow: Vec<String> = slow
        .map(|one| format!("{} takes {} times as long as nothing", one.function, one.ratio))
        .collect();
    if check {
        for fault in &slow {
            crate::report::progress(&format!("over budget: {fault}; {MOST} is allowed"));
        }
    }
    Ok(!check || slow.is_empty())
}

/// A function's binary as it lies there when its archive was unpacked into `here`: a file that the linker has written lies in memory in
/// other pieces, and is started slower.
fn unpacked(folder: &Path, name: &str, here: &Path) -> Result<PathBuf, BoxError> {
    let (from, to) = (binary(folder, name)?, here.join(name));
    std::fs::write(&to, std::fs::read(&from)?)?;
    std::fs::set_permissions(&to, std::fs::metadata(&from)?.permissions())?;
    Ok(to)
}

/// Where a function's binary is: as cargo leaves it, or in a folder of its own.
fn binary(folder: &Path, name: &str) -> Result<PathBuf, BoxError> {
    [folder.join(name).join("bootstrap"), folder.join(name)]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{} is not in {}", name, folder.display()).into())
}

/// How many times as long as the second the first takes.
fn ratio((own, bare): (f64, f64)) -> f64 {
    own / bare
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The Runtime API, as far as a function's start goes, and the table.
struct Simulator {
    address: String,
    asked: mpsc::UnboundedReceiver<Instant>,
    _server: JoinSet<()>,
}

impl Simulator {
    async fn start() -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (asks, asked) = mpsc::unbounded_channel();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let asks = asks.clone();
                connections.spawn(async move {
                    // A process that is killed leaves half a connection.
                    let _gone = answer(stream, &asks).await;
                });
            }
        });
        Ok(Self {
            address,
            asked,
            _server: server,
        })
    }

    /// Starts both by turns. Gives the seconds of each, the medians.
    async fn compare(&mut self, path: &Path, hello: &Path) -> Result<(f64, f64), BoxError> {
        let (mut own, mut bare) = (Vec::new(), Vec::new());
        // The first start reads the file from the disk.
        for path in [path, hello] {
            self.start_once(path).await?;
        }
        for _ in 0..TIMES {
            own.push(self.start_once(path).await?);
            bare.push(self.start_once(hello).await?);
        }
        Ok((median(own), median(bare)))
    }

    /// Starts a process, and stops it when it asks for an event. Gives the seconds until then.
    async fn start_once(&mut self, path: &Path) -> Result<f64, BoxError> {
        while self.asked.try_recv().is_ok() {}
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("AWS_LAMBDA_RUNTIME_API", &self.address)
            .env("AWS_LAMBDA_FUNCTION_NAME", "f")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "s")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", "g")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("TABLE_NAME", "table")
            .env("SECRETS_PREFIX", "ringback")
            .env("PUBLIC_URL", "https://ringback.example")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        for queue in ["RUN_ITEMS", "EVALUATIONS", "DELIVERIES"] {
            command.env(format!("{queue}_QUEUE_URL"), format!("http://{}/q", self.address));
        }
        let began = Instant::now();
        let mut child = command.spawn()?;
        let ready = tokio::select! {
            ready = tokio::time::timeout(LONGEST, self.asked.recv()) => ready,
            ended = child.wait() => return Err(format!("{} ended by itself: {}", path.display(), ended?).into()),
        };
        let ready = ready
            .map_err(|_| format!("{} did not ask for an event", path.display()))?
            .ok_or("the simulator has stopped")?;
        child.kill().await?;
        Ok(ready.duration_since(began).as_secs_f64())
    }
}

/// Answers the requests of one connection until somebody asks for an event, which never comes.
async fn answer(mut stream: TcpStream, asks: &mpsc::UnboundedSender<Instant>) -> Result<(), BoxError> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut chunk = [0_u8; 4096];
            let read = stream.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
        };
        let text = String::from_utf8_lossy(buffer.get(..head).unwrap_or_default()).to_ascii_lowercase();
        if text.contains("/runtime/invocation/next") {
            asks.send(Instant::now())?;
            std::future::pending::<()>().await;
        }
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(Ok(0), |length| length.trim().parse::<usize>())?;
        while buffer.len() < head + length {
            let mut chunk = [0_u8; 4096];
            let read = stream.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
        buffer.drain(..head + length);
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: 2\r\n\r\n{}",
            )
            .await?;
    }
}
