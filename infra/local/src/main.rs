//! The `ringback` program.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use ringback_local::{
    demo::{self, DemoOptions},
    serve::{Local, Model, Options, WORKERS},
};
use ringback_shared::config::Config;
use tracing_subscriber::EnvFilter;

/// Rehearses the calls that a voice or chat agent will get.
#[derive(Debug, Parser)]
#[command(name = "ringback", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What is not given on the command line, where others can see it.
const SECRETS: &str = "Environment:
  RINGBACK_API_KEY  the local organization's API key; without it one is made up and kept in the folder
  OPENAI_API_KEY    the key of the model's endpoint";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API on this machine, with everything behind it in this process.
    #[command(after_help = SECRETS)]
    Serve(Serve),
    /// Run sample simulations against a sample agent and show what they find.
    #[command(after_help = "OPENAI_API_KEY  the key of the model's endpoint")]
    Demo(Demo),
}

#[derive(Debug, Args)]
struct Serve {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787)))]
    listen: SocketAddr,
    /// The folder for what is kept.
    #[arg(long, value_name = "FOLDER", default_value = ".ringback")]
    data_dir: PathBuf,
    /// How many conversations run at once.
    #[arg(long, value_name = "NUMBER", default_value_t = WORKERS)]
    workers: usize,
    /// Allow agents and webhooks on private and loopback addresses.
    #[arg(long)]
    allow_private_targets: bool,
    /// Keep everything but the API key in memory: it is gone when the program stops.
    #[arg(long)]
    memory: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Args)]
struct Demo {
    /// Print the items as a JSON array, and nothing else, on standard output.
    #[arg(long)]
    json: bool,
    /// Keep everything in memory.
    #[arg(long)]
    memory: bool,
    /// The folder for what is kept; without it a temporary one.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// The language model that calls and judges. Its key is in `OPENAI_API_KEY`: what is on a command line, others can see.
#[derive(Debug, Args)]
struct ModelArgs {
    /// The base URL of an OpenAI-compatible endpoint.
    #[arg(
        id = "model_url",
        long = "model-url",
        value_name = "URL",
        env = "OPENAI_BASE_URL"
    )]
    base_url: Option<String>,
    /// The model to ask for where none is named.
    #[arg(
        id = "model_name",
        long = "model",
        value_name = "NAME",
        env = "RINGBACK_MODEL"
    )]
    default_model: Option<String>,
}

/// A variable of the environment; an empty one counts as not set.
#[expect(
    clippy::disallowed_methods,
    reason = "the program's own configuration, read once"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

impl From<ModelArgs> for Model {
    fn from(args: ModelArgs) -> Self {
        // An empty variable is one that is not set.
        let set = |value: Option<String>| value.filter(|value| !value.trim().is_empty());
        Self {
            base_url: set(args.base_url),
            api_key: variable("OPENAI_API_KEY"),
            default_model: set(args.default_model),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default_level = match cli.command {
        Command::Serve(_) => "info,dynoxide=error",
        Command::Demo(_) => "error",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    // Two threads for everything but the emulators, which have their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build();
    let result = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let result = runtime.block_on(async {
            match cli.command {
                Command::Serve(args) => serve(args).await,
                Command::Demo(args) => run_demo(args).await,
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(500));
        result
    });
    result.unwrap_or_else(|error| {
        say(&format!("ringback: {error}"));
        ExitCode::FAILURE
    })
}

/// Tells the user something, on standard error.
fn say(text: &str) {
    // Nobody is left to tell if this fails.
    let _unheard = writeln!(io::stderr(), "{text}");
}

async fn serve(args: Serve) -> Result<ExitCode, String> {
    let mut stop = Signals::new()?;
    let options = Options {
        listen: args.listen,
        data_dir: Some(args.data_dir),
        memory: args.memory,
        workers: args.workers,
        allow_private_targets: args.allow_private_targets,
        model: args.model.into(),
        api_key: variable("RINGBACK_API_KEY"),
        settings: Config::VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), variable(name)?)))
            .collect(),
    };
    let mut local = tokio::select! {
        local = Local::start(options) => local.map_err(|error| error.to_string())?,
        () = stop.received() => return Ok(ExitCode::SUCCESS),
    };
    match local.key_file() {
        Some(path) => say(&format!("the API key is in {}", path.display())),
        None => say("the API key is the one of RINGBACK_API_KEY"),
    }
    say(&format!("listening on {}", local.base_url()));
    let failed = tokio::select! {
        () = stop.received() => None,
        reason = local.failed() => Some(reason),
    };
    local.shutdown().await;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(reason) => Err(reason),
    }
}

async fn run_demo(args: Demo) -> Result<ExitCode, String> {
    let mut stop = Signals::new()?;
    let options = DemoOptions {
        json: args.json,
        memory: args.memory,
        data_dir: args.data_dir,
        model: args.model.into(),
    };
    let mut out = Vec::new();
    let result = tokio::select! {
        result = demo::run(options, &mut out) => Some(result),
        () = stop.received() => None,
    };
    match result {
        Some(Ok(worked)) => {
            io::stdout().write_all(&out).map_err(|error| error.to_string())?;
            Ok(if worked {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Some(Err(error)) => Err(error.to_string()),
        None => Err("stopped".to_owned()),
    }
}

/// Ctrl-C and, where there is one, SIGTERM.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, String> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
            Ok(Self { terminate })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn received(&mut self) {
        let interrupt = async {
            if tokio::signal::ctrl_c().await.is_err() {
                // Without a handler the signal ends the process by itself.
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        tokio::select! {
            () = interrupt => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        interrupt.await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_bare_shows_the_help() {
        Cli::command().debug_assert();
        let bare = Cli::try_parse_from(["ringback"]).unwrap_err();
        assert!(bare.to_string().contains("serve") && bare.to_string().contains("demo"));
        let serve = [
            "ringback",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "x",
            "--memory",
        ];
        assert!(matches!(Cli::try_parse_from(serve).unwrap().command, Command::Serve(args) if args.memory));
    }
}
