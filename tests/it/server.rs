//! The real program as a child process, the same stack in this process, and a client for both.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use reqwest::Method;
use ringback_local::serve::{Local, Model, Options};
use serde_json::Value;
use tempfile::TempDir;

use crate::stand_in::StandIn;

pub(crate) const KEY: &str = "rb_test_key";

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < within, "waited {within:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A client with a key, or without.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) base: String,
    pub(crate) key: Option<String>,
    pub(crate) http: reqwest::Client,
}

impl Api {
    pub(crate) fn new(base: &str, key: &str) -> Self {
        let http = ringback_shared::net::client()
            .no_proxy()
            .timeout(Duration::from_secs(300))
            .build()
            .unwrap();
        Self {
            base: base.to_owned(),
            key: Some(key.to_owned()),
            http,
        }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; gives status and body.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.bytes().await.unwrap();
        if body.is_empty() {
            return (status, Value::Null);
        }
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| {
            panic!(
                "{path} answered {status} without JSON: {}",
                String::from_utf8_lossy(&body)
            )
        });
        (status, value)
    }

    pub(crate) async fn expect(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Value {
        let (answered, value) = self.call(method.clone(), path, body).await;
        assert_eq!(answered, status, "{method} {path}: {value:#}");
        value
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.expect(Method::GET, path, None, 200).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.expect(Method::POST, path, Some(body), 201).await
    }

    pub(crate) async fn patch(&self, path: &str) -> Value {
        self.expect(Method::PATCH, path, None, 200).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Value {
        self.expect(Method::DELETE, path, None, 200).await
    }
}

/// The stack in this process, in memory.
pub(crate) async fn local(stand_in: &StandIn) -> (Local, Api) {
    local_with(stand_in, |_| {}).await
}

/// The stack in this process, in memory, started in another way than usual.
pub(crate) async fn local_with(stand_in: &StandIn, change: impl FnOnce(&mut Options)) -> (Local, Api) {
    let mut options = Options {
        allow_private_targets: true,
        model: Model {
            base_url: Some(stand_in.url()),
            ..Model::default()
        },
        api_key: Some(KEY.to_owned()),
        ..Options::default()
    };
    change(&mut options);
    let local = Local::start(options).await.unwrap();
    let api = Api::new(local.base_url(), KEY);
    (local, api)
}

/// The program as it is now, or the one that `RINGBACK_TEST_PROGRAM` names, such as a release build.
pub(crate) fn program() -> PathBuf {
    match std::env::var_os("RINGBACK_TEST_PROGRAM") {
        Some(path) => path.into(),
        None => binary("ringback"),
    }
}

/// The program or one of the functions as they are now, built once for all tests.
pub(crate) fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // target/{profile}/deps/it-…
        let this = std::env::current_exe().unwrap();
        let folder = this.ancestors().nth(2).unwrap();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            profile => profile,
        };
        // With the same packages and targets as `cargo test --workspace`, so that nothing is built a second time.
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--test", "it"])
            .args(["--bin", "ringback", "--bin", "schedule"])
            .args(["--profile", profile])
            .arg("--target-dir")
            .arg(folder.parent().unwrap())
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .unwrap();
        assert!(built.success(), "the program cannot be built");
        folder.to_owned()
    });
    folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// Runs a command of the program to its end: whether it succeeded, the JSON on its standard output, and what it said.
pub(crate) async fn finished(mut command: Command) -> (bool, Value, String) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let shown = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.success(), shown, said)
}

/// The program, serving.
pub(crate) struct Server {
    pub(crate) api: Api,
    pub(crate) folder: TempDir,
    child: Child,
    models: String,
    args: Vec<String>,
    settings: Vec<(String, String)>,
    starts: usize,
}

impl Server {
    pub(crate) async fn start(stand_in: &StandIn, args: &[&str]) -> Self {
        Self::start_with(stand_in, args, &[]).await
    }

    /// With settings in its environment, such as `CALL_SLOTS`.
    pub(crate) async fn start_with(stand_in: &StandIn, args: &[&str], settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let args = args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        let settings = settings
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let settings = settings.collect::<Vec<_>>();
        let models = stand_in.url();
        let (child, base) = spawn(folder.path(), &models, &args, &settings, 0).await;
        Self {
            api: Api::new(&base, KEY),
            folder,
            child,
            models,
            args,
            settings,
            starts: 1,
        }
    }

    /// Ends the process at once, as a crash would.
    pub(crate) fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same folder, at another address.
    pub(crate) async fn restart(&mut self) {
        let folder = self.folder.path();
        let (child, base) = spawn(folder, &self.models, &self.args, &self.settings, self.starts).await;
        self.child = child;
        self.starts += 1;
        self.api = Api::new(&base, KEY);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be dead already.
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            for start in 0..self.starts {
                let log = std::fs::read_to_string(log(self.folder.path(), start)).unwrap_or_default();
                let tail = log.lines().rev().take(30).collect::<Vec<_>>();
                eprintln!("--- the program's log, start {start}");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

fn log(folder: &Path, start: usize) -> PathBuf {
    folder.join(format!("log-{start}"))
}

async fn spawn(
    folder: &Path,
    models: &str,
    args: &[String],
    settings: &[(String, String)],
    start: usize,
) -> (Child, String) {
    let program = tokio::task::spawn_blocking(program).await.unwrap();
    let log = log(folder, start);
    let mut child = Command::new(program)
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--allow-private-targets",
            "--data-dir",
        ])
        .arg(folder.join("data"))
        .args(args)
        .env("RINGBACK_API_KEY", KEY)
        .env("OPENAI_BASE_URL", models)
        .env("OPENAI_API_KEY", "sk-test")
        .env("RUST_LOG", "warn,dynoxide=error")
        .env_remove("RINGBACK_MODEL")
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let base = until("the program to listen", Duration::from_secs(240), async || {
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the program ended: {said}");
        let line = said.lines().find_map(|line| line.strip_prefix("listening on "))?;
        Some(line.trim().to_owned()).filter(|_| said.ends_with('\n'))
    })
    .await;
    let probe = Api {
        key: None,
        ..Api::new(&base, "")
    };
    until("the program to answer", Duration::from_secs(240), async || {
        let answer = probe.request(Method::GET, "/health").send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    (child, base)
}
